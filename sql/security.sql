--
-- Attacks that need no worker: on our objects, by names and types that deceive,
-- by what is passed as text, and on what can be seen of others' tasks
--
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_ts_mallory, regress_ts_victim, regress_ts_operator, regress_ts_monitor, regress_ts_gone, "42", "regress_ts ""q"" ö; --";
RESET client_min_messages;
CREATE ROLE regress_ts_mallory NOLOGIN;
CREATE ROLE regress_ts_victim NOLOGIN;
CREATE ROLE regress_ts_operator NOLOGIN;
CREATE ROLE regress_ts_monitor NOLOGIN IN ROLE pg_monitor;
CREATE ROLE "42" NOLOGIN;
CREATE ROLE "regress_ts ""q"" ö; --" NOLOGIN;
SELECT tasksched.grant_usage('regress_ts_mallory'), tasksched.grant_usage('regress_ts_victim'),
	tasksched.grant_admin('regress_ts_operator'), tasksched.grant_usage('42'), tasksched.grant_usage('regress_ts "q" ö; --');
CREATE SCHEMA regress_ts_evil;
GRANT ALL ON SCHEMA regress_ts_evil TO regress_ts_mallory;
GRANT USAGE ON SCHEMA regress_ts_evil TO PUBLIC;

-- the SQLSTATE that a statement ends with; messages differ between versions
CREATE FUNCTION state_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
CREATE FUNCTION states_of(VARIADIC statements text[]) RETURNS TABLE (state text, statement text) LANGUAGE sql AS $$
	SELECT state_of(s), s FROM unnest(statements) WITH ORDINALITY u(s, n) ORDER BY n $$;

-- Nothing may be executed, read or written but by those whom it is granted to: internal
-- functions are for the owner, and what the views and the policy call for who reads them
SELECT p.oid::regprocedure AS function, string_agg(a.grantee::regrole::text, ', ' ORDER BY a.grantee::regrole::text) AS granted_to
FROM pg_proc p, LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
WHERE p.pronamespace = 'tasksched'::regnamespace AND a.grantee <> p.proowner
	AND a.grantee NOT IN ('regress_ts_victim'::regrole, '"42"'::regrole, '"regress_ts ""q"" ö; --"'::regrole)
	AND (p.proname ~ '^_' OR a.grantee NOT IN ('regress_ts_mallory'::regrole, 'regress_ts_operator'::regrole))
GROUP BY p.oid ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT p.oid::regprocedure AS security_definer, p.proconfig
FROM pg_proc p WHERE p.pronamespace = 'tasksched'::regnamespace AND p.prosecdef ORDER BY p.proname;
SELECT c.oid::regclass AS without_row_security
FROM pg_class c WHERE c.relnamespace = 'tasksched'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relrowsecurity;
SELECT c.oid::regclass AS without_security_barrier
FROM pg_class c WHERE c.relnamespace = 'tasksched'::regnamespace AND c.relkind = 'v'
	AND NOT coalesce(c.reloptions @> '{security_barrier=true}', false) AND NOT coalesce(c.reloptions @> '{security_barrier}', false);

-- a task of the victim's, which the others shall not get at
CREATE FUNCTION for_all(params jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
SELECT tasksched.register_action('for_all', 'for_all');
SET ROLE regress_ts_victim;
SELECT tasksched.schedule_task('for_all', 'secret', delay => '1 day', params => '"secret"') AS secret \gset
RESET ROLE;

--
-- Our objects: what only their owner can do
--
SET ROLE regress_ts_operator;
SELECT * FROM states_of(
	'CREATE TRIGGER t BEFORE INSERT ON tasksched.live FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'CREATE CONSTRAINT TRIGGER t AFTER INSERT ON tasksched.tasks DEFERRABLE FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'CREATE RULE r AS ON INSERT TO tasksched.live DO INSTEAD NOTHING',
	'CREATE RULE "_RETURN" AS ON SELECT TO tasksched.live DO INSTEAD SELECT * FROM tasksched.live',
	'CREATE POLICY p ON tasksched.tasks USING (true)',
	'ALTER POLICY owner_or_admin ON tasksched.tasks USING (true)',
	'ALTER TABLE tasksched.tasks DISABLE ROW LEVEL SECURITY',
	'ALTER TABLE tasksched.live ALTER COLUMN owner SET DEFAULT ''postgres''',
	'ALTER TABLE tasksched.tasks ADD COLUMN x integer',
	'ALTER TABLE tasksched.tasks ADD CHECK (true)',
	'ALTER TABLE tasksched.live NO INHERIT tasksched.tasks',
	'CREATE TABLE child () INHERITS (tasksched.tasks)',
	'CREATE TABLE child () INHERITS (tasksched.live)',
	'CREATE TABLE child () INHERITS (tasksched.registered_actions)',
	'CREATE INDEX ON tasksched.live (lower(action))',
	'CREATE STATISTICS s ON action, owner FROM tasksched.live',
	'CREATE TABLE fk (id uuid, f boolean, FOREIGN KEY (id, f) REFERENCES tasksched.tasks)',
	'CREATE PUBLICATION p FOR TABLE tasksched.tasks',
	'ALTER TABLE tasksched.tasks OWNER TO regress_ts_operator',
	'ALTER TABLE tasksched.live SET SCHEMA regress_ts_evil',
	'ALTER VIEW tasksched.actions RENAME TO x',
	'CREATE OR REPLACE VIEW tasksched.status AS SELECT 1',
	'ALTER TYPE tasksched.task_status ADD VALUE ''mine''',
	'ALTER TYPE tasksched.task ADD ATTRIBUTE x integer',
	'ALTER FUNCTION tasksched._may_see(tasksched.task_owner) COST 1',
	'CREATE OR REPLACE FUNCTION tasksched.complete(result jsonb DEFAULT NULL) RETURNS tasksched.outcome LANGUAGE sql AS ''SELECT NULL''',
	'CREATE FUNCTION tasksched.f() RETURNS void LANGUAGE sql AS ''''',
	'CREATE CAST (tasksched.task AS jsonb) WITH INOUT AS IMPLICIT',
	'CREATE CAST (tasksched.task_owner AS bytea) WITHOUT FUNCTION',
	'COMMENT ON TABLE tasksched.tasks IS ''mine''',
	'ALTER EXTENSION tasksched DROP TABLE tasksched.tasks',
	'DROP EXTENSION tasksched CASCADE',
	'DROP SCHEMA tasksched CASCADE',
	'LOCK TABLE tasksched.tasks IN EXCLUSIVE MODE',
	'LOCK TABLE tasksched.live IN ACCESS SHARE MODE',
	'CREATE TEMP TABLE mine (LIKE tasksched.tasks); ALTER TABLE mine INHERIT tasksched.tasks',
	'SELECT FROM tasksched.tasks FOR UPDATE',
	'COPY tasksched.tasks FROM PROGRAM ''id''',
	'SELECT last_value FROM tasksched.installation',
	'SELECT nextval(''tasksched.installation'')',
	'SELECT tasksched.grant_usage(''regress_ts_operator'')',
	'SELECT tasksched.revoke_usage(''regress_ts_victim'')',
	'SELECT tasksched._privileges(true)',
	'SELECT tasksched._change_privileges(''GRANT %s TO %I'', true, ''regress_ts_operator'')',
	'GRANT SELECT ON tasksched.live TO regress_ts_operator');
RESET ROLE;

--
-- Names that deceive: functions, operators, types and casts of an attacker's,
-- before the server's own, and temporary objects before ours
--
SET ROLE regress_ts_mallory;
CREATE TABLE regress_ts_evil.ran (what text);
GRANT ALL ON regress_ts_evil.ran TO PUBLIC;
CREATE FUNCTION regress_ts_evil.spring(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_ts_evil.ran VALUES (what);
	RETURN true;
END $$;
DO $$
DECLARE
	t text;
	op text;
BEGIN
	-- what the statements on our tables and the script call
	EXECUTE 'CREATE FUNCTION regress_ts_evil.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE sql AS $f$ SELECT regress_ts_evil.spring(''pg_has_role'') $f$';
	EXECUTE 'CREATE FUNCTION regress_ts_evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $f$ SELECT now() FROM regress_ts_evil.spring(''clock_timestamp'') $f$';
	EXECUTE 'CREATE FUNCTION regress_ts_evil.format(text, text, text) RETURNS text LANGUAGE sql AS $f$ SELECT $1 FROM regress_ts_evil.spring(''format'') $f$';
	EXECUTE 'CREATE FUNCTION regress_ts_evil.to_regprocedure(text) RETURNS regprocedure LANGUAGE sql AS $f$ SELECT 0::regprocedure FROM regress_ts_evil.spring(''to_regprocedure'') $f$';
	FOREACH t IN ARRAY '{uuid,text,jsonb,timestamptz,oid,regrole,boolean,integer,smallint,bigint,tasksched.task_owner,tasksched.task_status}'::text[] LOOP
		EXECUTE format('CREATE FUNCTION regress_ts_evil.eq(%s, %1$s) RETURNS boolean LANGUAGE sql AS $f$ SELECT regress_ts_evil.spring(%L) $f$', t, '= of ' || t);
		FOREACH op IN ARRAY '{=,<>,<,<=,>,>=}'::text[] LOOP
			EXECUTE format('CREATE OPERATOR regress_ts_evil.%s (LEFTARG = %s, RIGHTARG = %2$s, FUNCTION = regress_ts_evil.eq)', op, t);
		END LOOP;
	END LOOP;
END $$;
CREATE TYPE regress_ts_evil.task AS (id uuid);
CREATE TYPE regress_ts_evil.jsonb AS ENUM ('x');
CREATE TYPE regress_ts_evil.regrole AS ENUM ('postgres');
CREATE DOMAIN regress_ts_evil.task_status AS text CHECK (regress_ts_evil.spring('domain'));
CREATE TYPE regress_ts_evil.owner AS (name text);
CREATE FUNCTION regress_ts_evil.to_owner(tasksched.task_owner) RETURNS regress_ts_evil.owner LANGUAGE sql AS $$
	SELECT ROW('x')::regress_ts_evil.owner FROM regress_ts_evil.spring('cast from task_owner') $$;
CREATE CAST (tasksched.task_owner AS regress_ts_evil.owner) WITH FUNCTION regress_ts_evil.to_owner AS IMPLICIT;
RESET ROLE;

-- everybody's session is so prepared, the superuser's too, before any statement is planned
\c -
CREATE TEMP TABLE tasks AS SELECT * FROM tasksched.tasks WITH NO DATA;
CREATE TEMP TABLE live AS SELECT * FROM tasksched.tasks WITH NO DATA;
CREATE TEMP TABLE finished AS SELECT * FROM tasksched.tasks WITH NO DATA;
CREATE TEMP TABLE registered_actions AS SELECT * FROM tasksched.actions WITH NO DATA;
CREATE TEMP TABLE scheduler_state (paused boolean);
CREATE TEMP TABLE actions (action text);
CREATE FUNCTION pg_temp.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE sql AS $$ SELECT regress_ts_evil.spring('pg_temp') $$;
GRANT ALL ON pg_temp.tasks, pg_temp.live, pg_temp.finished, pg_temp.registered_actions, pg_temp.scheduler_state, pg_temp.actions TO PUBLIC;
SET search_path = pg_temp, regress_ts_evil, tasksched, public, pg_catalog;
SELECT tasksched.pause_scheduler();
SELECT tasksched.register_action('deceived', 'public.for_all');
SELECT tasksched.grant_usage('regress_ts_mallory'), tasksched.revoke_admin('regress_ts_mallory');
SET ROLE regress_ts_mallory;
SELECT tasksched.schedule_task('deceived', 'mine', delay => interval '1 day') AS mine \gset
SELECT count(s) FROM tasksched.schedule_tasks('deceived', '{1,2}', delay => '1 day') s;
SELECT count(s) FROM tasksched.schedule_tasks('[{"action": "deceived", "delay": "1 day"}]'::pg_catalog.jsonb) s;
SELECT tasksched.update_task(:'mine', result => '1');
SELECT count(*) FROM tasksched.get_task(:'secret');
SELECT count(*) FROM tasksched.get_task(:'mine');
SELECT count(*) FROM tasksched.get_tasks(actions => '{deceived}', resource_id => 'mine', statuses => '{scheduled}', max_timestamp => now() + interval '2 days');
SELECT count(*) FROM tasksched.get_tasks(resource_id => 'secret');
SELECT count(*) FROM tasksched.tasks;
SELECT count(*) FROM tasksched.running_tasks;
SELECT count(*) FROM tasksched.stuck_tasks;
SELECT count(*) FROM tasksched.blocked_tasks;
SELECT count(*) FROM tasksched.status;
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 FROM tasksched.actions;
SELECT tasksched.task_is_running(:'secret'), tasksched.cancel_task(:'secret'), tasksched.retry_task(:'secret'), tasksched.delete_task(:'secret');
SELECT tasksched.cancel_task(:'mine'), tasksched.retry_task(:'mine'), tasksched.delete_task(:'mine');
SELECT status FROM tasksched.wait_for_task(:'secret', '30 s');
SELECT public.state_of($$SELECT tasksched.schedule_task('deceived', params => 'x')$$);
RESET ROLE;
SELECT tasksched.adopt_tasks();
SELECT tasksched.unregister_action('deceived');
SELECT tasksched.resume_scheduler();
RESET search_path;
SELECT count(*) AS in_temporary_tables FROM (SELECT id FROM pg_temp.tasks UNION ALL SELECT id FROM pg_temp.live) t;
SELECT * FROM regress_ts_evil.ran;
DROP TABLE pg_temp.tasks, pg_temp.live, pg_temp.finished, pg_temp.registered_actions, pg_temp.scheduler_state, pg_temp.actions;
DROP FUNCTION pg_temp.pg_has_role(oid, oid, text);

--
-- Types with code of their own in params: it runs at the call, as the caller
--
SET ROLE regress_ts_mallory;
CREATE TYPE regress_ts_evil.payload AS (x text);
CREATE FUNCTION regress_ts_evil.to_json(regress_ts_evil.payload) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO regress_ts_evil.ran VALUES ('cast as ' || current_user);
	RETURN pg_catalog.jsonb_build_object('x', ($1).x);
END $$;
CREATE CAST (regress_ts_evil.payload AS jsonb) WITH FUNCTION regress_ts_evil.to_json AS IMPLICIT;
CREATE DOMAIN regress_ts_evil.checked AS jsonb CHECK (regress_ts_evil.spring('domain as ' || current_user));
SELECT tasksched.schedule_task('for_all', delay => '1 day', params => ROW('a')::regress_ts_evil.payload) AS one \gset
SELECT tasksched.schedule_task('for_all', delay => '1 day', params => '{"x": "b"}'::regress_ts_evil.checked) AS two \gset
SELECT count(s) FROM tasksched.schedule_tasks('for_all', ARRAY['1'::regress_ts_evil.checked], delay => '1 day') s;
TABLE regress_ts_evil.ran;
DELETE FROM regress_ts_evil.ran;
RESET ROLE;
SELECT params, pg_typeof(params) FROM tasksched.tasks WHERE id IN (:'one', :'two') ORDER BY id;
TABLE regress_ts_evil.ran;

--
-- SQL in texts
--
CREATE TABLE target (x integer);
CREATE TEMP TABLE ids AS SELECT :'two'::uuid AS id;
SELECT call, string_agg(DISTINCT state_of(format('SELECT tasksched.' || call, quote_literal(text))), ', ') AS states
FROM unnest(ARRAY['register_action(%s, ''for_all'')', 'register_action(''x'', %s)', 'unregister_action(%s)',
		'schedule_task(%s)', 'schedule_task(''for_all'', resource_id => %s, delay => ''1 day'')',
		'update_task((SELECT id FROM ids), error => %s)', 'get_tasks(resource_id => %s)', 'get_tasks(actions => ARRAY[%s])',
		'schedule_tasks(jsonb_build_array(jsonb_build_object(''action'', %s)))',
		'schedule_tasks(jsonb_build_array(jsonb_build_object(%s, 1)))',
		'schedule_tasks(jsonb_build_array(jsonb_build_object(''action'', ''for_all'', ''delay'', %s)))',
		'schedule_tasks(jsonb_build_array(jsonb_build_object(''action'', ''for_all'', ''run_at'', %s)))',
		'schedule_tasks(%s)', 'fail(%s)', 'grant_usage(%s)', 'grant_admin(%s)', 'revoke_usage(%s)', 'revoke_admin(%s)']) WITH ORDINALITY u(call, n),
	unnest(ARRAY['''; DROP TABLE target; --', '"; DROP TABLE target; --', '$$; DROP TABLE target; --', '%s%I%L%1$s\n', 'public."x"; DROP TABLE target',
		'regress_ts_mallory, PUBLIC; DROP TABLE target; --']) text
GROUP BY call, n ORDER BY n;
SELECT count(*) FROM target;
DROP TABLE ids;

-- names of functions, procedures and schemas with all that a name may have, and of 63 bytes
CREATE SCHEMA "regress_ts S""c; --(ö";
GRANT USAGE ON SCHEMA "regress_ts S""c; --(ö" TO PUBLIC;
CREATE FUNCTION "regress_ts S""c; --(ö"."f(x, $1'"");DROP ö"(params jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE "regress_ts S""c; --(ö"."p)x, $1'""(;DROP ö"(params jsonb, INOUT r jsonb) LANGUAGE plpgsql AS 'BEGIN COMMIT; r := params; END';
CREATE FUNCTION "ööööööööööööööööööööööööööööööö3"(params jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
SELECT tasksched.register_action('f', '"regress_ts S""c; --(ö"."f(x, $1''"");DROP ö"'),
	tasksched.register_action('f''"; DROP ö', '"regress_ts S""c; --(ö"."f(x, $1''"");DROP ö"(jsonb)'),
	tasksched.register_action('p', '"regress_ts S""c; --(ö"."p)x, $1''""(;DROP ö"'),
	tasksched.register_action('ööööööööööööööööööööööööööööööö6', '"ööööööööööööööööööööööööööööööö3"');
SELECT action, function, function_exists FROM tasksched.actions WHERE action IN ('f', 'p') OR action ~ 'ö' ORDER BY function;
SET ROLE "regress_ts ""q"" ö; --";
CREATE TEMP TABLE ids AS SELECT tasksched.schedule_task(action, action, params => to_jsonb(function)) AS id
FROM tasksched.actions WHERE action IN ('f', 'p') OR action ~ 'ö';
SELECT w.action, w.status, w.result = w.params AS right, w.owner FROM ids, tasksched.wait_for_task(id, '30 s') w ORDER BY w.params;
DROP TABLE ids;
RESET ROLE;
SELECT tasksched.unregister_action(action) FROM tasksched.actions WHERE action IN ('f', 'p') OR action ~ 'ö';

--
-- task_owner: a name is a name, whatever it looks like
--
SELECT x, (x::tasksched.task_owner)::oid = 10 AS is_10, x::tasksched.task_owner::text = x AS same
FROM unnest('{10,42,-,none,public,current_user,"\"42\"",0,-1,99999999999999999999}'::text[]) x;
SELECT * FROM states_of('SELECT ''''::tasksched.task_owner', 'SELECT repeat(''x'', 64)::tasksched.task_owner', 'SELECT repeat(''x'', 63)::tasksched.task_owner',
	'SELECT 4294967295::oid::regrole::tasksched.task_owner', 'SELECT NULL::tasksched.task_owner = ''x''',
	'SELECT tasksched.task_owner_send(''x'')');
SET ROLE "42";
SELECT tasksched.schedule_task('for_all', delay => '1 day') AS id \gset
RESET ROLE;
SELECT owner, owner::regrole, owner::oid = '"42"'::regrole AS same FROM tasksched.tasks WHERE id = :'id';
UPDATE tasksched.live SET installation = 1 WHERE id = :'id';
SELECT tasksched.adopt_tasks();
SELECT owner, owner::regrole, owner::oid = '"42"'::regrole AS same FROM tasksched.tasks WHERE id = :'id';

-- a new role of the same name is not the one that was dropped, not even by adopt_tasks();
-- a role that was missing when its task came is found by its name
CREATE ROLE regress_ts_gone;
SELECT tasksched.grant_usage('regress_ts_gone');
SET ROLE regress_ts_gone;
SELECT tasksched.schedule_task('for_all', delay => '1 day') AS gone \gset
SELECT tasksched.schedule_task('for_all', delay => '1 day') AS copied \gset
SELECT tasksched.schedule_task('for_all', delay => '1 day') AS restored \gset
RESET ROLE;
SELECT tasksched.revoke_usage('regress_ts_gone');
DROP ROLE regress_ts_gone;
UPDATE tasksched.live SET installation = 1 WHERE id = :'copied';
UPDATE tasksched.live SET installation = 1, owner = 'regress_ts_gone' WHERE id = :'restored';
SELECT tasksched.adopt_tasks();
CREATE ROLE regress_ts_gone;
SELECT tasksched.adopt_tasks();
SELECT id = :'restored' AS restored, regexp_replace(owner, '\d+', 'N') AS owner, owner::oid <> 0 AS known FROM tasksched.tasks
WHERE id IN (:'gone', :'copied', :'restored') ORDER BY id;
SELECT tasksched.grant_usage('regress_ts_gone');
SET ROLE regress_ts_gone;
SELECT id = :'restored' AS restored FROM tasksched.get_tasks();
RESET ROLE;
SELECT count(tasksched.delete_task(id)) FROM tasksched.tasks WHERE owner::text ~ '^regress_ts_gone';
SELECT tasksched.revoke_usage('regress_ts_gone');
DROP ROLE regress_ts_gone;

--
-- What can be seen of a victim's task
--
SET ROLE regress_ts_mallory;
-- row-level security can't be put off, and holds for COPY, cursors, views, prepared statements
SET row_security = off;
SELECT state_of('SELECT FROM tasksched.tasks');
SELECT count(*) FROM tasksched.get_tasks(resource_id => 'secret');
SELECT count(*) FROM tasksched.stuck_tasks;
RESET row_security;
COPY (SELECT owner FROM tasksched.tasks WHERE resource_id = 'secret') TO STDOUT;
CREATE VIEW regress_ts_evil.all_tasks AS SELECT * FROM tasksched.tasks;
GRANT SELECT ON regress_ts_evil.all_tasks TO PUBLIC;
PREPARE all_tasks AS SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'secret';
RESET ROLE;
EXECUTE all_tasks;
SET ROLE regress_ts_mallory;
EXECUTE all_tasks;
SELECT count(*) FROM regress_ts_evil.all_tasks WHERE resource_id = 'secret';
DEALLOCATE all_tasks;
-- what is not leakproof waits for the policy
CREATE FUNCTION regress_ts_evil.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
	RAISE NOTICE 'leaked %', $1;
	RETURN true;
END $$;
SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'secret' AND regress_ts_evil.leak(params::text);
SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'secret' AND (params #>> '{}')::integer > 0;
SELECT * FROM states_of('CREATE FUNCTION regress_ts_evil.proof(text) RETURNS boolean LEAKPROOF LANGUAGE sql AS ''SELECT true''');
RESET ROLE;
-- statistics
ANALYZE tasksched.tasks, tasksched.live;
SELECT count(DISTINCT tablename) FROM pg_stats WHERE schemaname = 'tasksched' AND tablename IN ('tasks', 'live');
SET ROLE regress_ts_mallory;
SELECT count(*) FROM pg_stats WHERE schemaname = 'tasksched' AND tablename IN ('tasks', 'live', 'finished');
SET ROLE regress_ts_operator;
SELECT count(*) FROM pg_stats WHERE schemaname = 'tasksched' AND tablename IN ('tasks', 'live', 'finished');
RESET ROLE;

--
-- As whom: security contexts
--
SET ROLE regress_ts_victim;
CREATE FUNCTION pg_temp.wrapped(text) RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT tasksched.schedule_task('for_all', $1, delay => '1 day') $$;
CREATE FUNCTION pg_temp.seen(uuid) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT count(*) FROM tasksched.tasks WHERE id = $1 $$;
SET ROLE regress_ts_mallory;
SELECT pg_temp.wrapped('wrapped') AS wrapped \gset
SELECT count(*) FROM tasksched.get_task(:'wrapped');
SELECT pg_temp.seen(:'wrapped');
RESET ROLE;
SELECT owner FROM tasksched.tasks WHERE id = :'wrapped';
-- a superuser's ANALYZE calls a user's function as that user
SET ROLE regress_ts_mallory;
CREATE TABLE regress_ts_evil.indexed (x integer);
CREATE FUNCTION regress_ts_evil.trap(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM tasksched.schedule_task('for_all', 'trap', delay => '1 day');
	RETURN $1;
END $$;
CREATE INDEX ON regress_ts_evil.indexed (regress_ts_evil.trap(x));
INSERT INTO regress_ts_evil.indexed VALUES (1), (2);
RESET ROLE;
ANALYZE regress_ts_evil.indexed;
SELECT DISTINCT owner FROM tasksched.tasks WHERE resource_id = 'trap';

--
-- Our settings
--
SET ROLE regress_ts_mallory;
SELECT * FROM states_of('SET tasksched.enabled = off', 'SET LOCAL tasksched.max_crashes = 1000', 'SELECT set_config(''tasksched.enabled'', ''off'', true)',
	'ALTER ROLE regress_ts_mallory SET tasksched.max_running_tasks = 1000',
	'SET tasksched.unknown = 1', 'ALTER FUNCTION regress_ts_evil.leak(text) SET tasksched.max_crashes = 1');
RESET ROLE;
SELECT state_of(format('ALTER DATABASE %I SET tasksched.enabled = off', current_database()));

-- parallel plans give the same
SELECT count(set_config(name, 'on', false)) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SET ROLE regress_ts_mallory;
SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'secret';
SELECT count(*) FROM tasksched.get_task(:'secret');
SELECT count(*) > 0 FROM tasksched.actions;
SELECT count(*) FROM tasksched.stuck_tasks;
SELECT count(*) FROM tasksched.blocked_tasks;
SELECT count(*) FROM tasksched.running_tasks;
SET ROLE regress_ts_victim;
SELECT count(*) FROM tasksched.tasks WHERE id = :'secret';
SELECT count(*) FROM tasksched.get_task(:'secret');
RESET ROLE;
SELECT count(set_config(name, 'off', false)) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');

-- it is still as it was
SELECT status, params, owner, updated_at = created_at AS untouched FROM tasksched.tasks WHERE id = :'secret';

SELECT count(tasksched.delete_task(id)) > 0 FROM tasksched.tasks
WHERE owner::text IN ('regress_ts_mallory', 'regress_ts_victim', '42', 'regress_ts "q" ö; --');
SELECT tasksched.unregister_action('for_all');
SET client_min_messages = warning;
DROP SCHEMA regress_ts_evil, "regress_ts S""c; --(ö" CASCADE;
DROP FUNCTION "ööööööööööööööööööööööööööööööö3", for_all, states_of, state_of;
DROP TABLE target;
SELECT tasksched.revoke_usage(r) FROM unnest(ARRAY['regress_ts_mallory', 'regress_ts_victim', 'regress_ts_operator', '42', 'regress_ts "q" ö; --']) r;
DROP OWNED BY regress_ts_mallory, regress_ts_victim, regress_ts_operator, "42", "regress_ts ""q"" ö; --";
DROP ROLE regress_ts_mallory, regress_ts_victim, regress_ts_operator, regress_ts_monitor, "42", "regress_ts ""q"" ö; --";
