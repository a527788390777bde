/* sql/tasksched--0.1--0.2.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION tasksched UPDATE TO '0.2'" to load this file. \quit

/*
 * task_owner: compared by what never changes
 */

ALTER FUNCTION @extschema@.task_owner_eq(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_ne(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_lt(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_le(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_gt(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_ge(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_cmp(@extschema@.task_owner, @extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@.task_owner_hash(@extschema@.task_owner) IMMUTABLE;
ALTER FUNCTION @extschema@._name_only(@extschema@.task_owner) IMMUTABLE;

COMMENT ON CAST (@extschema@.task_owner AS pg_catalog.text) IS 'the role''s name, marked if it was dropped';
COMMENT ON OPERATOR @extschema@.< (@extschema@.task_owner, @extschema@.task_owner) IS 'before, in no order that means anything: roles by OID, then unknown names';
COMMENT ON OPERATOR @extschema@.<= (@extschema@.task_owner, @extschema@.task_owner) IS 'before or the same';
COMMENT ON OPERATOR @extschema@.> (@extschema@.task_owner, @extschema@.task_owner) IS 'after';
COMMENT ON OPERATOR @extschema@.>= (@extschema@.task_owner, @extschema@.task_owner) IS 'after or the same';
COMMENT ON OPERATOR FAMILY @extschema@.task_owner_ops USING btree IS 'order of roles by OID, then of unknown names, for indexes and grouping';
COMMENT ON OPERATOR CLASS @extschema@.task_owner_ops USING btree IS 'order of roles by OID, then of unknown names, for indexes and grouping';
COMMENT ON OPERATOR FAMILY @extschema@.task_owner_ops USING hash IS 'equality of roles, for indexes, grouping and joins';
COMMENT ON OPERATOR CLASS @extschema@.task_owner_ops USING hash IS 'equality of roles, for indexes, grouping and joins';
COMMENT ON FUNCTION @extschema@._name_only(@extschema@.task_owner) IS 'internal: whether no role had the name when the value was made, and one may have it now';

-- Indexes of users on columns of the type, or of one that contains it, are in the
-- order of the old version.
DO $$
DECLARE
	index pg_catalog.regclass;
BEGIN
	FOR index IN
		WITH RECURSIVE containing(type) AS (
			SELECT '@extschema@.task_owner'::pg_catalog.regtype::pg_catalog.oid
			UNION
			SELECT t.oid
			FROM containing c, pg_catalog.pg_type t
			WHERE c.type IN (t.typelem, t.typbasetype)
				OR EXISTS (SELECT FROM pg_catalog.pg_range r WHERE c.type = r.rngsubtype AND t.oid IN (r.rngtypid, r.rngmultitypid))
				OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.atttypid = c.type
					AND a.attnum > 0 AND NOT a.attisdropped))
		SELECT i.indexrelid
		FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
		WHERE ic.relkind = 'i' AND (
			EXISTS (SELECT FROM pg_catalog.pg_opclass o
				WHERE o.opcintype = '@extschema@.task_owner'::pg_catalog.regtype AND o.oid = ANY (i.indclass))
			OR EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN containing c ON c.type = a.atttypid
				WHERE a.attrelid = i.indexrelid))
	LOOP
		EXECUTE pg_catalog.format('REINDEX INDEX %s', index);
	END LOOP;
END
$$;

/*
 * Names of actions: a restore in another encoding can make one longer
 */

ALTER TABLE @extschema@.registered_actions DROP CONSTRAINT registered_actions_action_check;
ALTER TABLE @extschema@.registered_actions ADD CONSTRAINT registered_actions_action_check CHECK (action <> '');

/*
 * Views: a task that is finished as well is held
 */

CREATE OR REPLACE VIEW blocked_tasks WITH (security_barrier) AS
	SELECT t.id, t.action, t.resource_id, t.owner, t.run_at, r.reason
	FROM @extschema@.live t,
		LATERAL (SELECT CASE WHEN EXISTS (SELECT FROM @extschema@.finished f WHERE f.id = t.id)
			THEN 'the task is finished as well, so it came from a dump; see adopt_tasks() and delete_task()'
			ELSE @extschema@._blocked_reason(t.action, t.owner, t.installation, t.database) END AS reason OFFSET 0) r
	WHERE (t.status = 'scheduled' AND t.run_at <= pg_catalog.clock_timestamp()
			OR t.status = 'active' AND NOT EXISTS (
				SELECT FROM @extschema@._running_tasks() w WHERE w.task_id = t.id))
		AND r.reason IS NOT NULL
		AND @extschema@._may_monitor(t.owner);
