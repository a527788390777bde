/* sql/tasksched--0.2.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION tasksched" to load this file. \quit

-- Whoever owns the schema could put objects of its own beside ours, and what is
-- there already could be taken for a function or an operator that this script
-- means.  So nothing here may be looked up in the schema, either.
DO $$
DECLARE
	schema pg_catalog.oid;
	super pg_catalog.bool;
BEGIN
	SELECT n.oid, r.rolsuper INTO schema, super
	FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) n.nspowner
	WHERE n.nspname OPERATOR(pg_catalog.=) '@extschema@'::pg_catalog.name;
	IF NOT super THEN
		RAISE insufficient_privilege USING
			MESSAGE = 'schema "@extschema@" is owned by a role that is not a superuser',
			HINT = 'Drop the schema before you create the extension.';
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_depend d
			WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass::pg_catalog.oid
				AND d.refobjid OPERATOR(pg_catalog.=) schema
				AND d.deptype OPERATOR(pg_catalog.=) 'n'::pg_catalog."char"
				AND d.classid OPERATOR(pg_catalog.<>) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid) THEN
		RAISE object_not_in_prerequisite_state USING
			MESSAGE = 'schema "@extschema@" is not empty',
			HINT = 'Drop the schema before you create the extension.';
	END IF;
END
$$;

COMMENT ON SCHEMA @extschema@ IS 'tasksched: background tasks inside the database';

/*
 * Types
 */

CREATE TYPE task_status AS ENUM ('scheduled', 'active', 'complete', 'failed', 'cancelled');
COMMENT ON TYPE task_status IS 'where a task stands: scheduled and active tasks are live, the others are finished';

-- A role that outlives its own name: prints the current name of the role, the
-- last known name with a mark when the role was dropped, and a name that no role
-- had as it is.
CREATE TYPE task_owner;

CREATE FUNCTION task_owner_in(cstring) RETURNS task_owner
	AS 'MODULE_PATHNAME', 'tasksched_owner_in' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION task_owner_out(task_owner) RETURNS cstring
	AS 'MODULE_PATHNAME', 'tasksched_owner_out' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION task_owner_recv(internal) RETURNS task_owner
	AS 'MODULE_PATHNAME', 'tasksched_owner_recv' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION task_owner_send(task_owner) RETURNS bytea
	AS 'MODULE_PATHNAME', 'tasksched_owner_send' LANGUAGE C STABLE STRICT PARALLEL SAFE;

CREATE TYPE task_owner (
	INPUT = task_owner_in,
	OUTPUT = task_owner_out,
	RECEIVE = task_owner_recv,
	SEND = task_owner_send,
	INTERNALLENGTH = VARIABLE,
	ALIGNMENT = int4,
	STORAGE = plain
);
COMMENT ON TYPE task_owner IS 'a role, by its identity and its last known name, which survives a rename, a drop and a restore where the role is missing';
COMMENT ON FUNCTION task_owner_in(cstring) IS 'I/O';
COMMENT ON FUNCTION task_owner_out(task_owner) IS 'I/O';
COMMENT ON FUNCTION task_owner_recv(internal) IS 'I/O';
COMMENT ON FUNCTION task_owner_send(task_owner) IS 'I/O';

CREATE FUNCTION task_owner_oid(task_owner) RETURNS oid
	AS 'MODULE_PATHNAME', 'tasksched_owner_oid' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION task_owner_role(task_owner) RETURNS regrole
	AS 'MODULE_PATHNAME', 'tasksched_owner_oid' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION task_owner_from_role(regrole) RETURNS task_owner
	AS 'MODULE_PATHNAME', 'tasksched_owner_from_role' LANGUAGE C STABLE STRICT PARALLEL SAFE;

CREATE CAST (task_owner AS oid) WITH FUNCTION task_owner_oid(task_owner) AS IMPLICIT;
CREATE CAST (task_owner AS regrole) WITH FUNCTION task_owner_role(task_owner) AS IMPLICIT;
CREATE CAST (task_owner AS text) WITH INOUT AS IMPLICIT;
CREATE CAST (regrole AS task_owner) WITH FUNCTION task_owner_from_role(regrole) AS ASSIGNMENT;
COMMENT ON FUNCTION task_owner_oid(task_owner) IS 'the role''s OID, 0 if there is no such role';
COMMENT ON FUNCTION task_owner_role(task_owner) IS 'the role, 0 if there is no such role';
COMMENT ON FUNCTION task_owner_from_role(regrole) IS 'the role as a task_owner';
COMMENT ON CAST (task_owner AS oid) IS 'the role''s OID, 0 if there is no such role';
COMMENT ON CAST (task_owner AS regrole) IS 'the role, 0 if there is no such role';
COMMENT ON CAST (task_owner AS text) IS 'the role''s name, marked if it was dropped';
COMMENT ON CAST (regrole AS task_owner) IS 'the role as a task_owner';

CREATE FUNCTION task_owner_eq(task_owner, task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_eq' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_eq(task_owner, task_owner) IS 'implementation of = operator';
CREATE FUNCTION task_owner_ne(task_owner, task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_ne' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_ne(task_owner, task_owner) IS 'implementation of <> operator';
CREATE FUNCTION task_owner_lt(task_owner, task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_lt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_lt(task_owner, task_owner) IS 'implementation of < operator';
CREATE FUNCTION task_owner_le(task_owner, task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_le' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_le(task_owner, task_owner) IS 'implementation of <= operator';
CREATE FUNCTION task_owner_gt(task_owner, task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_gt' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_gt(task_owner, task_owner) IS 'implementation of > operator';
CREATE FUNCTION task_owner_ge(task_owner, task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_ge' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_ge(task_owner, task_owner) IS 'implementation of >= operator';
CREATE FUNCTION task_owner_cmp(task_owner, task_owner) RETURNS integer
	AS 'MODULE_PATHNAME', 'tasksched_owner_cmp' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_cmp(task_owner, task_owner) IS 'less-equal-greater';
CREATE FUNCTION task_owner_hash(task_owner) RETURNS integer
	AS 'MODULE_PATHNAME', 'tasksched_owner_hash' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION task_owner_hash(task_owner) IS 'hash';

CREATE OPERATOR = (
	LEFTARG = task_owner, RIGHTARG = task_owner, FUNCTION = task_owner_eq,
	COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES
);
COMMENT ON OPERATOR = (task_owner, task_owner) IS 'the same role';
CREATE OPERATOR <> (
	LEFTARG = task_owner, RIGHTARG = task_owner, FUNCTION = task_owner_ne,
	COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel
);
COMMENT ON OPERATOR <> (task_owner, task_owner) IS 'another role';
CREATE OPERATOR < (
	LEFTARG = task_owner, RIGHTARG = task_owner, FUNCTION = task_owner_lt,
	COMMUTATOR = >, NEGATOR = >=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
COMMENT ON OPERATOR < (task_owner, task_owner) IS 'before, in no order that means anything: roles by OID, then unknown names';
CREATE OPERATOR <= (
	LEFTARG = task_owner, RIGHTARG = task_owner, FUNCTION = task_owner_le,
	COMMUTATOR = >=, NEGATOR = >, RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
COMMENT ON OPERATOR <= (task_owner, task_owner) IS 'before or the same';
CREATE OPERATOR > (
	LEFTARG = task_owner, RIGHTARG = task_owner, FUNCTION = task_owner_gt,
	COMMUTATOR = <, NEGATOR = <=, RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
COMMENT ON OPERATOR > (task_owner, task_owner) IS 'after';
CREATE OPERATOR >= (
	LEFTARG = task_owner, RIGHTARG = task_owner, FUNCTION = task_owner_ge,
	COMMUTATOR = <=, NEGATOR = <, RESTRICT = scalargesel, JOIN = scalargejoinsel
);
COMMENT ON OPERATOR >= (task_owner, task_owner) IS 'after or the same';

CREATE OPERATOR FAMILY task_owner_ops USING btree;
CREATE OPERATOR CLASS task_owner_ops DEFAULT FOR TYPE task_owner USING btree FAMILY task_owner_ops AS
	OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
	FUNCTION 1 task_owner_cmp(task_owner, task_owner);
CREATE OPERATOR FAMILY task_owner_ops USING hash;
CREATE OPERATOR CLASS task_owner_ops DEFAULT FOR TYPE task_owner USING hash FAMILY task_owner_ops AS
	OPERATOR 1 =, FUNCTION 1 task_owner_hash(task_owner);
COMMENT ON OPERATOR FAMILY task_owner_ops USING btree IS 'order of roles by OID, then of unknown names, for indexes and grouping';
COMMENT ON OPERATOR CLASS task_owner_ops USING btree IS 'order of roles by OID, then of unknown names, for indexes and grouping';
COMMENT ON OPERATOR FAMILY task_owner_ops USING hash IS 'equality of roles, for indexes, grouping and joins';
COMMENT ON OPERATOR CLASS task_owner_ops USING hash IS 'equality of roles, for indexes, grouping and joins';

-- What actions receive and get_task() returns.  It only ever grows at its end.
CREATE TYPE task AS (
	id				uuid,
	action			text,
	status			task_status,
	run_at			timestamptz,
	resource_id		text,
	params			jsonb,
	result			jsonb,
	error			text,
	error_details	jsonb,
	owner			regrole,
	priority		smallint,
	attempt			integer,
	launch			integer,
	crashes			integer,
	created_at		timestamptz,
	started_at		timestamptz,
	updated_at		timestamptz,
	finished_at		timestamptz
);
COMMENT ON TYPE task IS 'a task as actions receive it and as get_task() and get_tasks() return it';
COMMENT ON COLUMN task.id IS 'UUID version 7: ordered by time, unique across servers';
COMMENT ON COLUMN task.action IS 'name of the registered action';
COMMENT ON COLUMN task.status IS 'scheduled, active, complete, failed or cancelled';
COMMENT ON COLUMN task.run_at IS 'due time: not launched before';
COMMENT ON COLUMN task.resource_id IS 'what the task is about, chosen by its scheduler';
COMMENT ON COLUMN task.params IS 'parameters, chosen by its scheduler';
COMMENT ON COLUMN task.result IS 'last checkpoint or final result';
COMMENT ON COLUMN task.error IS 'message of the last error';
COMMENT ON COLUMN task.error_details IS 'sqlstate, detail, hint and context of the last error';
COMMENT ON COLUMN task.owner IS 'role that scheduled the task and with whose rights it runs';
COMMENT ON COLUMN task.priority IS 'smaller runs first';
COMMENT ON COLUMN task.attempt IS 'number of the try: 0 before the first, 1 afterwards';
COMMENT ON COLUMN task.launch IS 'number of launches, whatever their reason; 0 before the first';
COMMENT ON COLUMN task.crashes IS 'number of launches that ended their own worker process';
COMMENT ON COLUMN task.created_at IS 'when it was scheduled';
COMMENT ON COLUMN task.started_at IS 'when the current attempt was first launched';
COMMENT ON COLUMN task.updated_at IS 'last change of the row';
COMMENT ON COLUMN task.finished_at IS 'when it became complete, failed or cancelled';

CREATE TYPE outcome AS (
	status	task_status,
	result	jsonb,
	error	text,
	run_at	timestamptz
);
COMMENT ON TYPE outcome IS 'what an action may return; best made by complete(), fail(), reschedule() or proceed()';

/*
 * Tables
 */

-- This installation's random identity, set once below.  A sequence is neither
-- dumped as part of an extension nor replicated, so rows that come from
-- elsewhere are told apart from our own.
CREATE SEQUENCE installation;
COMMENT ON SEQUENCE installation IS 'random identity of this installation; tasks of another one are held until adopt_tasks()';

CREATE TABLE registered_actions (
	-- no limit to the length: a restore in another encoding can make a name longer
	action			text PRIMARY KEY CHECK (action <> ''),
	function		text NOT NULL,
	function_owner	task_owner NOT NULL,
	registered_by	task_owner NOT NULL,
	registered_at	timestamptz NOT NULL
);
COMMENT ON TABLE registered_actions IS 'registered actions, written by register_action() and read through the view actions';

-- Without a row, a scheduler is not paused.  A row that a template or logical
-- replication brought along is another scheduler's.
CREATE TABLE scheduler_state (
	installation	bigint,
	database		oid,
	paused			boolean NOT NULL,
	PRIMARY KEY (installation, database)
);
COMMENT ON TABLE scheduler_state IS 'durable state of schedulers: a row for each that has been paused';

-- Live and finished tasks lie apart, so that the table that is claimed from
-- stays small: two tables that inherit from an empty one, which is what readers
-- see.  They are no partitions, whose data pg_dump -n could not dump (it
-- crashes).  A task moves by DELETE and INSERT in one statement.
CREATE TABLE tasks (
	id				uuid NOT NULL,
	action			text NOT NULL,
	status			task_status NOT NULL,
	run_at			timestamptz NOT NULL,
	resource_id		text,
	params			jsonb,
	result			jsonb,
	error			text,
	error_details	jsonb,
	owner			task_owner NOT NULL,
	priority		smallint NOT NULL DEFAULT 0,
	attempt			integer NOT NULL DEFAULT 0,
	launch			integer NOT NULL DEFAULT 0,
	crashes			integer NOT NULL DEFAULT 0,
	created_at		timestamptz NOT NULL,
	started_at		timestamptz,
	updated_at		timestamptz NOT NULL,
	finished_at		timestamptz,
	-- storage only, not part of the interface:
	first_launch	boolean NOT NULL DEFAULT true,	-- is the next (or current) launch the first?
	setbacks		integer NOT NULL DEFAULT 0,		-- launches in a row that came to nothing
	installation	bigint NOT NULL,				-- where the task belongs, together with
	database		oid NOT NULL,					-- the OID of the database
	finished		boolean NOT NULL,				-- in which of the two tables it is
	PRIMARY KEY (id),
	CHECK (false) NO INHERIT
);
COMMENT ON TABLE tasks IS 'all tasks, live and finished; written only through functions';
COMMENT ON COLUMN tasks.id IS 'UUID version 7: ordered by time, unique across servers';
COMMENT ON COLUMN tasks.owner IS 'role that scheduled the task and with whose rights it runs; its last known name where the role is missing';
COMMENT ON COLUMN tasks.first_launch IS 'whether the next (or current) launch is the first since schedule_task() or retry_task()';
COMMENT ON COLUMN tasks.setbacks IS 'launches in a row that ended before the action began, right after it, or in bookkeeping';
COMMENT ON COLUMN tasks.installation IS 'installation that the task belongs to';
COMMENT ON COLUMN tasks.database IS 'OID of the database that the task belongs to';
COMMENT ON COLUMN tasks.finished IS 'false in live, true in finished';

CREATE TABLE live (
	PRIMARY KEY (id),
	CHECK (NOT finished),
	CHECK (status IN ('scheduled', 'active') AND finished_at IS NULL)
) INHERITS (tasks) WITH (fillfactor = 80);
COMMENT ON TABLE live IS 'scheduled and active tasks';

CREATE TABLE finished (
	PRIMARY KEY (id),
	CHECK (finished),
	CHECK (status IN ('complete', 'failed', 'cancelled') AND finished_at IS NOT NULL)
) INHERITS (tasks);
COMMENT ON TABLE finished IS 'complete, failed and cancelled tasks, until tasksched.keep_finished_tasks';

CREATE INDEX live_queue ON live (status, priority, run_at, id);
CREATE INDEX live_resource_id ON live (resource_id) WHERE resource_id IS NOT NULL;
CREATE INDEX finished_finished_at ON finished (finished_at);
CREATE INDEX finished_resource_id ON finished (resource_id) WHERE resource_id IS NOT NULL;

-- one statement each: the function updates the same catalog row every time
SELECT pg_catalog.pg_extension_config_dump('registered_actions', '');
SELECT pg_catalog.pg_extension_config_dump('live', '');
SELECT pg_catalog.pg_extension_config_dump('finished', '');

/*
 * Internal functions: for the views, the tests and the scripts of this extension
 */

CREATE FUNCTION _init() RETURNS void
	AS 'MODULE_PATHNAME', 'tasksched_init' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION _init() IS 'internal: end of CREATE EXTENSION: set the installation''s identity and wake the launcher';

CREATE FUNCTION _name_only(owner task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_owner_name_only' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION _name_only(task_owner) IS 'internal: whether no role had the name when the value was made, and one may have it now';

CREATE FUNCTION _may_see(owner task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_may_see' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION _may_see(task_owner) IS 'internal: whether the current user has the rights of the owner or of an admin';

CREATE FUNCTION _may_monitor(owner task_owner) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_may_monitor' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION _may_monitor(task_owner) IS 'internal: the same, or the rights of pg_monitor';

CREATE FUNCTION _blocked_reason(action text, owner task_owner, installation bigint, database oid) RETURNS text
	AS 'MODULE_PATHNAME', 'tasksched_blocked_reason_sql' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION _blocked_reason(text, task_owner, bigint, oid) IS 'internal: why a due task cannot run, in words; NULL if it can';

CREATE FUNCTION _function_exists(action text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_function_exists' LANGUAGE C STABLE STRICT;
COMMENT ON FUNCTION _function_exists(text) IS 'internal: whether the function of an action still exists';

CREATE FUNCTION _stuck_before() RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'tasksched_stuck_before' LANGUAGE C STABLE;
COMMENT ON FUNCTION _stuck_before() IS 'internal: an active task that was last updated before this time is stuck';

CREATE FUNCTION _running_tasks(
	OUT task_id uuid, OUT action text, OUT owner regrole, OUT pid integer, OUT launch integer,
	OUT state text, OUT since timestamptz, OUT progress jsonb) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'tasksched_running_tasks' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION _running_tasks() IS 'internal: behind the view running_tasks';

CREATE FUNCTION _status(
	OUT database name, OUT state text, OUT pid integer, OUT running integer, OUT max_running integer,
	OUT next_due timestamptz, OUT last_scan timestamptz, OUT last_error text) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'tasksched_status' LANGUAGE C VOLATILE ROWS 10;
COMMENT ON FUNCTION _status() IS 'internal: behind the view status';

-- The state changes of a task that the scheduler and the workers make, so that
-- tests can race them without a worker.
CREATE FUNCTION _claim(ids uuid[], OUT id uuid, OUT launch integer) RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'tasksched_claim' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION _claim(uuid[]) IS 'internal: claim those of the tasks that are due and that nobody holds, as the scheduler does';

CREATE FUNCTION _finish(id uuid, launch integer, outcome outcome) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_finish' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION _finish(uuid, integer, outcome) IS 'internal: store the outcome of a launch, as a worker does; false if the launch was superseded';

/*
 * Actions and their outcomes
 */

CREATE FUNCTION register_action(action text, function text) RETURNS void
	AS 'MODULE_PATHNAME', 'tasksched_register_action' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION register_action(text, text) IS 'register a function or procedure, given by its name or its name and argument types, as an action; admins only';

CREATE FUNCTION register_action(action text, function regprocedure) RETURNS void
	AS 'MODULE_PATHNAME', 'tasksched_register_action_oid' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION register_action(text, regprocedure) IS 'register a function or procedure as an action; admins only';

CREATE FUNCTION unregister_action(action text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_unregister_action' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION unregister_action(text) IS 'remove an action; its tasks are held back until it is registered again; false if unknown; admins only';

CREATE FUNCTION complete(result jsonb DEFAULT NULL) RETURNS outcome
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	RETURN ROW('complete'::@extschema@.task_status, result, NULL::text, NULL::timestamptz)::@extschema@.outcome;
COMMENT ON FUNCTION complete(jsonb) IS 'outcome of an action: the task is complete';

CREATE FUNCTION fail(error text DEFAULT NULL) RETURNS outcome
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	RETURN ROW('failed'::@extschema@.task_status, NULL::jsonb, error, NULL::timestamptz)::@extschema@.outcome;
COMMENT ON FUNCTION fail(text) IS 'outcome of an action: the task has failed; what the action did stays';

CREATE FUNCTION reschedule(run_at timestamptz DEFAULT NULL, result jsonb DEFAULT NULL, delay interval DEFAULT NULL) RETURNS outcome
	AS 'MODULE_PATHNAME', 'tasksched_reschedule' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION reschedule(timestamptz, jsonb, interval) IS 'outcome of an action: this stage is done, the next is due at run_at or after delay';

CREATE FUNCTION proceed(result jsonb DEFAULT NULL) RETURNS outcome
	LANGUAGE sql IMMUTABLE PARALLEL SAFE
	RETURN ROW('active'::@extschema@.task_status, result, NULL::text, NULL::timestamptz)::@extschema@.outcome;
COMMENT ON FUNCTION proceed(jsonb) IS 'outcome of an action: commit this stage and call the action again at once';

/*
 * Tasks
 */

CREATE FUNCTION schedule_task(action text, resource_id text DEFAULT NULL, run_at timestamptz DEFAULT NULL,
	params jsonb DEFAULT NULL, delay interval DEFAULT NULL) RETURNS uuid
	AS 'MODULE_PATHNAME', 'tasksched_schedule_task' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION schedule_task(text, text, timestamptz, jsonb, interval) IS 'schedule a task in the current transaction, to be run now, at run_at or after delay';

CREATE FUNCTION schedule_tasks(action text, params jsonb[], resource_id text DEFAULT NULL, run_at timestamptz DEFAULT NULL,
	delay interval DEFAULT NULL, resource_ids text[] DEFAULT NULL, run_ats timestamptz[] DEFAULT NULL) RETURNS SETOF uuid
	AS 'MODULE_PATHNAME', 'tasksched_schedule_tasks' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION schedule_tasks(text, jsonb[], text, timestamptz, interval, text[], timestamptz[]) IS 'schedule one task for each element of params; scalars apply to all, arrays give one value for each';

CREATE FUNCTION schedule_tasks(tasks jsonb) RETURNS SETOF uuid
	AS 'MODULE_PATHNAME', 'tasksched_schedule_tasks_jsonb' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION schedule_tasks(jsonb) IS 'schedule the tasks of an array of objects, each with the arguments of schedule_task()';

CREATE FUNCTION update_task(id uuid, run_at timestamptz DEFAULT NULL, status task_status DEFAULT NULL,
	result jsonb DEFAULT NULL, error text DEFAULT NULL) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_update_task' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION update_task(uuid, timestamptz, task_status, jsonb, text) IS 'change a scheduled task, or store a checkpoint or stage the task from inside its own action; NULL leaves a field as it is';

CREATE FUNCTION get_task(id uuid) RETURNS SETOF task
	AS 'MODULE_PATHNAME', 'tasksched_get_task' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION get_task(uuid) IS 'the task, or no row if it is unknown';

CREATE FUNCTION get_tasks(actions text[] DEFAULT NULL, resource_id text DEFAULT NULL, statuses task_status[] DEFAULT NULL,
	max_timestamp timestamptz DEFAULT NULL, max_rows integer DEFAULT NULL) RETURNS SETOF task
	AS 'MODULE_PATHNAME', 'tasksched_get_tasks' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION get_tasks(text[], text, task_status[], timestamptz, integer) IS 'the tasks that pass all filters, by run_at while scheduled and updated_at afterwards; NULL is no filter';

CREATE FUNCTION delete_task(id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_delete_task' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION delete_task(uuid) IS 'delete a scheduled or finished task; false if it is unknown';

CREATE FUNCTION task_is_running(id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_task_is_running' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION task_is_running(uuid) IS 'whether a worker executes the task now';

CREATE FUNCTION cancel_task(id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_cancel_task' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION cancel_task(uuid) IS 'cancel a scheduled or active task at the commit of the current transaction; false if there was nothing to cancel';

CREATE FUNCTION retry_task(id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME', 'tasksched_retry_task' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION retry_task(uuid) IS 'schedule a finished task again, now; false if it is not finished or unknown';

CREATE FUNCTION wait_for_task(id uuid, timeout interval DEFAULT NULL) RETURNS SETOF task
	AS 'MODULE_PATHNAME', 'tasksched_wait_for_task' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION wait_for_task(uuid, interval) IS 'wait until the task is finished and return it; no row at the timeout (NULL: no limit), or at once for an unknown task';

CREATE FUNCTION report_progress(done bigint DEFAULT NULL, total bigint DEFAULT NULL, note text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'tasksched_report_progress' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION report_progress(bigint, bigint, text) IS 'inside an action: show how far it is, at once, in running_tasks';

CREATE FUNCTION current_task() RETURNS SETOF task
	AS 'MODULE_PATHNAME', 'tasksched_current_task' LANGUAGE C VOLATILE ROWS 1;
COMMENT ON FUNCTION current_task() IS 'inside an action: the task that it runs for, with its changes so far; elsewhere no row';

/*
 * Operation
 */

CREATE FUNCTION adopt_tasks() RETURNS bigint
	AS 'MODULE_PATHNAME', 'tasksched_adopt_tasks' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION adopt_tasks() IS 'let the live tasks that came from another installation (restored, copied or replicated) run here; returns their number; admins only';

CREATE FUNCTION pause_scheduler() RETURNS void
	AS 'MODULE_PATHNAME', 'tasksched_pause_scheduler' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION pause_scheduler() IS 'launch no more tasks in this database until resume_scheduler(); admins only';

CREATE FUNCTION resume_scheduler() RETURNS void
	AS 'MODULE_PATHNAME', 'tasksched_resume_scheduler' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION resume_scheduler() IS 'end pause_scheduler(); admins only';

/*
 * Row-level security: whoever has the rights of the owner sees a task, and
 * admins see all.  The other tables have no policy: rights on all tables, such
 * as those of pg_read_all_data and pg_write_all_data, do not reach them.
 */

ALTER TABLE tasks ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner_or_admin ON tasks FOR SELECT USING (@extschema@._may_see(owner));
COMMENT ON POLICY owner_or_admin ON tasks IS 'members of the owner role and admins see a task';
ALTER TABLE live ENABLE ROW LEVEL SECURITY;
ALTER TABLE finished ENABLE ROW LEVEL SECURITY;
ALTER TABLE registered_actions ENABLE ROW LEVEL SECURITY;
ALTER TABLE scheduler_state ENABLE ROW LEVEL SECURITY;

/*
 * Views
 */

CREATE VIEW actions WITH (security_barrier) AS
	SELECT action, function, @extschema@._function_exists(action) AS function_exists,
		registered_by, registered_at
	FROM @extschema@.registered_actions;
COMMENT ON VIEW actions IS 'the registered actions';

CREATE VIEW running_tasks WITH (security_barrier) AS
	SELECT task_id, action, owner, pid, launch, state, since, progress
	FROM @extschema@._running_tasks();
COMMENT ON VIEW running_tasks IS 'tasks of this database that a worker executes (running) or is about to (ready), from shared memory';

CREATE VIEW status WITH (security_barrier) AS
	SELECT database, state, pid, running, max_running, next_due, last_scan, last_error
	FROM @extschema@._status();
COMMENT ON VIEW status IS 'one row for each database scheduler; those of other databases for pg_monitor only';

CREATE VIEW stuck_tasks WITH (security_barrier) AS
	SELECT id, action, resource_id, owner, launch, started_at, updated_at,
		pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) updated_at AS without_update
	FROM @extschema@.live
	WHERE status = 'active' AND updated_at < @extschema@._stuck_before() AND @extschema@._may_monitor(owner)
		AND installation = (SELECT last_value FROM @extschema@.installation)
		AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database());
COMMENT ON VIEW stuck_tasks IS 'active tasks without an update for longer than tasksched.stuck_after';

CREATE VIEW blocked_tasks WITH (security_barrier) AS
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
COMMENT ON VIEW blocked_tasks IS 'due tasks that cannot run, with the reason in words';

/*
 * Privileges: nothing is granted to PUBLIC
 */

-- What a scheduling role (admin: false) and an operator (admin: true, in
-- addition) may do, as GRANT and REVOKE want it.
CREATE FUNCTION _privileges(admin boolean) RETURNS SETOF text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
AS $$
	SELECT 'USAGE ON SCHEMA @extschema@' WHERE NOT admin
	UNION ALL
	SELECT 'USAGE ON TYPE @extschema@.task, @extschema@.outcome, @extschema@.task_status, @extschema@.task_owner' WHERE NOT admin
	UNION ALL
	SELECT 'SELECT ON @extschema@.tasks, @extschema@.actions, @extschema@.running_tasks, @extschema@.status, '
		'@extschema@.stuck_tasks, @extschema@.blocked_tasks' WHERE NOT admin
	UNION ALL
	SELECT 'EXECUTE ON FUNCTION ' || p.oid::regprocedure
	FROM pg_proc p
	WHERE p.pronamespace = '@extschema@'::regnamespace
		AND p.proname !~ '^(grant_|revoke_)'
		AND (p.proname !~ '^_' OR p.proname IN ('_may_see', '_may_monitor', '_blocked_reason', '_function_exists', '_stuck_before', '_running_tasks', '_status'))
		AND admin = (p.proname IN ('register_action', 'unregister_action', 'adopt_tasks', 'pause_scheduler', 'resume_scheduler'))
$$;
COMMENT ON FUNCTION _privileges(boolean) IS 'internal: the privileges that grant_usage() and grant_admin() give';

CREATE FUNCTION _change_privileges(command text, admin boolean, role text) RETURNS void
	LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	privilege text;
BEGIN
	FOR privilege IN SELECT @extschema@._privileges(admin) LOOP
		EXECUTE format(command, privilege, role);
	END LOOP;
END
$$;
COMMENT ON FUNCTION _change_privileges(text, boolean, text) IS 'internal: GRANT or REVOKE all of these privileges';

CREATE FUNCTION grant_usage(role text) RETURNS void
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM @extschema@._change_privileges('GRANT %s TO %I', false, role);
END
$$;
COMMENT ON FUNCTION grant_usage(text) IS 'let a role schedule tasks and manage its own';

CREATE FUNCTION grant_admin(role text) RETURNS void
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM @extschema@._change_privileges('GRANT %s TO %I', false, role);
	PERFORM @extschema@._change_privileges('GRANT %s TO %I', true, role);
END
$$;
COMMENT ON FUNCTION grant_admin(text) IS 'let a role register actions, pause the scheduler and see and manage every task, beside what grant_usage() gives';

CREATE FUNCTION revoke_admin(role text) RETURNS void
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM @extschema@._change_privileges('REVOKE %s FROM %I', true, role);
END
$$;
COMMENT ON FUNCTION revoke_admin(text) IS 'take back what grant_admin() gave beyond grant_usage()';

CREATE FUNCTION revoke_usage(role text) RETURNS void
	LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM @extschema@._change_privileges('REVOKE %s FROM %I', true, role);
	PERFORM @extschema@._change_privileges('REVOKE %s FROM %I', false, role);
END
$$;
COMMENT ON FUNCTION revoke_usage(text) IS 'take back what grant_usage() and grant_admin() gave';

-- ... nor to anybody else, whatever ALTER DEFAULT PRIVILEGES says.  Nothing of
-- what follows is looked up in the schema.
DO $$
DECLARE
	command text;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	FOR command IN
		SELECT format('REVOKE ALL ON %s FROM %s', o.object, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
		FROM (
			SELECT 'FUNCTION ' || oid::regprocedure, coalesce(proacl, acldefault('f', proowner)), proowner
			FROM pg_proc WHERE pronamespace = '@extschema@'::regnamespace
			UNION ALL
			SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || oid::regclass, relacl, relowner
			FROM pg_class WHERE relnamespace = '@extschema@'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
			UNION ALL
			SELECT 'TYPE ' || oid::regtype, coalesce(typacl, acldefault('T', typowner)), typowner
			FROM pg_type WHERE typnamespace = '@extschema@'::regnamespace AND typelem = 0
			UNION ALL
			SELECT 'SCHEMA ' || oid::regnamespace, nspacl, nspowner
			FROM pg_namespace WHERE nspname = '@extschema@'
		) o(object, acl, owner), LATERAL aclexplode(o.acl) a
		WHERE a.grantee <> o.owner
		GROUP BY 1
	LOOP
		EXECUTE command;
	END LOOP;
END
$$;

-- The server records each REVOKE of an extension's script in pg_init_privs, also
-- those on the row types of tables.  pg_dump knows no such entry, and warns of each:
-- "unsupported pg_init_privs entry".  Only a DELETE helps: default privileges do
-- not apply to row types, so the right has to be revoked, and no command takes
-- the record back.
DELETE FROM pg_catalog.pg_init_privs p
USING pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
WHERE p.classoid = 'pg_catalog.pg_type'::regclass AND p.objoid = t.oid
	AND t.typnamespace = '@extschema@'::regnamespace AND c.relkind <> 'c';

GRANT USAGE ON SCHEMA @extschema@ TO pg_monitor;
GRANT USAGE ON TYPE @extschema@.task_owner, @extschema@.task_status TO pg_monitor;
GRANT EXECUTE ON FUNCTION @extschema@._may_monitor(@extschema@.task_owner),
	@extschema@._blocked_reason(text, @extschema@.task_owner, bigint, oid), @extschema@._function_exists(text),
	@extschema@._stuck_before(), @extschema@._running_tasks(), @extschema@._status() TO pg_monitor;
GRANT SELECT ON @extschema@.actions, @extschema@.running_tasks, @extschema@.status, @extschema@.stuck_tasks,
	@extschema@.blocked_tasks TO pg_monitor;

SELECT @extschema@._init();
