--
-- Who may do what, and as whom a task runs
--
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_ts_user, regress_ts_other, regress_ts_admin, regress_ts_monitor, regress_ts_group, regress_ts_none;
RESET client_min_messages;
CREATE ROLE regress_ts_group NOLOGIN;
CREATE ROLE regress_ts_user NOLOGIN;
CREATE ROLE regress_ts_other NOLOGIN IN ROLE regress_ts_group;
CREATE ROLE regress_ts_admin NOLOGIN;
CREATE ROLE regress_ts_monitor NOLOGIN IN ROLE pg_monitor;
CREATE ROLE regress_ts_none NOLOGIN;
SELECT tasksched.grant_usage('regress_ts_user'), tasksched.grant_usage('regress_ts_other'),
	tasksched.grant_usage('regress_ts_group'), tasksched.grant_admin('regress_ts_admin');
GRANT ALL ON ledger TO PUBLIC;
GRANT CREATE ON SCHEMA public TO regress_ts_user, regress_ts_admin;

-- without grants, nothing
SET ROLE regress_ts_none;
SELECT error_of($$SELECT tasksched.schedule_task('noop')$$);
SELECT error_of($$SELECT * FROM tasksched.tasks$$);
SELECT error_of($$SELECT * FROM tasksched.status$$);
RESET ROLE;

-- a user: tasks of its own
SET ROLE regress_ts_user;
SELECT tasksched.schedule_task('echo', 'mine', params => '"secret"') AS mine \gset
SELECT status, owner, result FROM tasksched.wait_for_task(:'mine', '30 s');
SELECT tasksched.schedule_task('noop', 'later', 'tomorrow') AS later \gset
SELECT resource_id, owner FROM tasksched.tasks ORDER BY id;
-- but no writing past the functions, and nothing of an admin's
SELECT error_of(s) FROM unnest(ARRAY[
	'INSERT INTO tasksched.tasks SELECT * FROM tasksched.tasks',
	'UPDATE tasksched.tasks SET priority = 1',
	'DELETE FROM tasksched.tasks',
	'TRUNCATE tasksched.tasks',
	'SELECT * FROM tasksched.live',
	'INSERT INTO tasksched.live SELECT * FROM tasksched.tasks',
	'UPDATE tasksched.live SET priority = 1',
	'DELETE FROM tasksched.finished',
	'TRUNCATE tasksched.finished',
	'SELECT * FROM tasksched.registered_actions',
	'UPDATE tasksched.registered_actions SET function = function',
	'UPDATE tasksched.scheduler_state SET paused = true',
	'SELECT * FROM tasksched.installation',
	'SELECT tasksched.register_action(''mine'', ''noop'')',
	'SELECT tasksched.unregister_action(''noop'')',
	'SELECT tasksched.adopt_tasks()',
	'SELECT tasksched.pause_scheduler()',
	'SELECT tasksched.grant_admin(''regress_ts_user'')',
	'SELECT tasksched._claim(''{}'')',
	'SELECT tasksched._finish(gen_random_uuid(), 1, tasksched.complete())',
	'SELECT tasksched._init()']) s;
RESET ROLE;

-- another user does not even learn that they exist
SET ROLE regress_ts_other;
SELECT count(*) FROM tasksched.tasks;
SELECT count(*) FROM tasksched.get_tasks();
SELECT count(*) FROM tasksched.get_task(:'mine');
SELECT count(*) FROM tasksched.wait_for_task(:'later', '30 s');
SELECT tasksched.update_task(:'later', result => '1'), tasksched.cancel_task(:'later'),
	tasksched.delete_task(:'later'), tasksched.retry_task(:'mine'), tasksched.task_is_running(:'mine');
RESET ROLE;

-- a member of the owner's role does
GRANT regress_ts_user TO regress_ts_other;
SET ROLE regress_ts_other;
SELECT resource_id FROM tasksched.get_tasks();
SELECT resource_id FROM tasksched.tasks ORDER BY id;
SELECT tasksched.update_task(:'later', result => '"by a member"');
RESET ROLE;
REVOKE regress_ts_user FROM regress_ts_other;

-- nor through a function that looks at rows before the views' own conditions do
CREATE FUNCTION leak(id uuid) RETURNS boolean LANGUAGE plpgsql COST 0.0000001
AS $$ BEGIN RAISE NOTICE 'leaked'; RETURN true; END $$;
CREATE FUNCTION for_leak() RETURNS void LANGUAGE sql AS 'SELECT 1';
SELECT tasksched.register_action('for_leak', 'for_leak');
BEGIN;
SELECT tasksched.schedule_task('for_leak') AS id \gset
SELECT tasksched.unregister_action('for_leak');
COMMIT;
SET ROLE regress_ts_other;
SELECT count(*) FROM tasksched.blocked_tasks WHERE leak(id);
SELECT count(*) FROM tasksched.stuck_tasks WHERE leak(id);
SELECT count(*) FROM tasksched.tasks WHERE leak(id);
RESET ROLE;
SELECT tasksched.delete_task(:'id');

-- an admin sees and manages all, and registers what it may execute itself
SET ROLE regress_ts_admin;
SELECT resource_id, result FROM tasksched.get_tasks(resource_id => 'later');
SELECT count(*) > 1 FROM tasksched.tasks;
SELECT tasksched.cancel_task(:'later');
CREATE FUNCTION admins() RETURNS void LANGUAGE sql AS 'SELECT 1';
SELECT tasksched.register_action('admins', 'admins');
SELECT error_of($$SELECT tasksched.grant_usage('regress_ts_none')$$);
RESET ROLE;
CREATE FUNCTION not_for_all() RETURNS jsonb LANGUAGE sql RETURN '"ran"'::jsonb;
REVOKE EXECUTE ON FUNCTION not_for_all FROM PUBLIC;
SET ROLE regress_ts_admin;
SELECT error_of($$SELECT tasksched.register_action('a', 'not_for_all')$$);
RESET ROLE;

-- EXECUTE is checked as the owner, at each run
SELECT tasksched.register_action('not_for_all', 'not_for_all');
SET ROLE regress_ts_user;
SELECT tasksched.schedule_task('not_for_all') AS id \gset
SELECT status, error, error_details ->> 'sqlstate' AS sqlstate FROM tasksched.wait_for_task(:'id', '30 s');
RESET ROLE;
GRANT EXECUTE ON FUNCTION not_for_all TO regress_ts_user;
SELECT tasksched.retry_task(:'id');
SELECT status, result, owner FROM tasksched.wait_for_task(:'id', '30 s');

-- the action runs as the owner, and can't get out of it: in a function, and in
-- a procedure before and after its COMMIT
CREATE PROCEDURE escape() LANGUAGE plpgsql AS $$
DECLARE
	s text;
BEGIN
	FOREACH s IN ARRAY ARRAY['SET ROLE postgres', 'RESET ROLE', 'SET SESSION AUTHORIZATION postgres', 'RESET SESSION AUTHORIZATION',
		'SELECT set_config(''role'', ''postgres'', false)', 'SELECT set_config(''session_authorization'', ''postgres'', false)',
		'SET ROLE NONE', 'SET LOCAL session_authorization = DEFAULT']
	LOOP
		BEGIN
			EXECUTE s;
			INSERT INTO ledger (what) VALUES (s || ': ' || current_user || ' ' || session_user);
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO ledger (what) VALUES (s || ': ' || SQLSTATE || ' ' || current_user);
		END;
	END LOOP;
END $$;
CREATE FUNCTION escape_function() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL escape(); END $$;
CREATE PROCEDURE escape_procedure(params jsonb) LANGUAGE plpgsql AS $$ BEGIN COMMIT; CALL escape(); COMMIT; END $$;
SELECT tasksched.register_action('escape_function', 'escape_function'), tasksched.register_action('escape_procedure', 'escape_procedure');
SET ROLE regress_ts_user;
SELECT tasksched.schedule_task('escape_function') AS id \gset
SELECT status, error FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.schedule_task('escape_procedure') AS id \gset
SELECT status, error FROM tasksched.wait_for_task(:'id', '30 s');
RESET ROLE;
SELECT replace(what, current_user, 'superuser') AS what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- a task runs with its role's own settings, but for client timeouts, whether or
-- not the role could log in, and a read-only default is not meant for us
ALTER ROLE regress_ts_user SET work_mem = '1234kB';
ALTER ROLE regress_ts_user SET default_transaction_read_only = on;
ALTER ROLE regress_ts_user SET statement_timeout = '1ms';
ALTER ROLE regress_ts_user SET lock_timeout = '1ms';
ALTER ROLE regress_ts_user SET idle_in_transaction_session_timeout = '1ms';
ALTER ROLE regress_ts_user CONNECTION LIMIT 0 VALID UNTIL '2000-01-01';
CREATE FUNCTION settings() RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_object_agg(name, setting) FROM pg_settings
	WHERE name IN ('work_mem', 'transaction_read_only', 'statement_timeout', 'lock_timeout',
		'idle_in_transaction_session_timeout', 'idle_session_timeout', 'is_superuser') $$;
SELECT tasksched.register_action('settings', 'settings');
SET ROLE regress_ts_user;
SELECT tasksched.schedule_task('settings') AS id \gset
SELECT status, error, jsonb_pretty(result) AS settings FROM tasksched.wait_for_task(:'id', '30 s');
RESET ROLE;
ALTER ROLE regress_ts_user RESET ALL;

-- pg_monitor reads the views, which show no params
SET ROLE regress_ts_user;
SELECT tasksched.schedule_task('admins', 'monitored', params => '"secret"') AS id \gset
SELECT status FROM tasksched.wait_for_task(:'id', '30 s');
RESET ROLE;
BEGIN;
SELECT tasksched.unregister_action('admins');
SELECT tasksched.retry_task(:'id');
COMMIT;
SELECT pg_advisory_lock(1);
SET ROLE regress_ts_user;
SELECT tasksched.schedule_task('hold', params => '{"lock": 1}') AS held \gset
RESET ROLE;
SET ROLE regress_ts_monitor;
CALL wait_until(format('EXISTS (SELECT FROM tasksched.running_tasks WHERE task_id = %L)', :'held'));
SELECT action, owner, launch FROM tasksched.running_tasks WHERE task_id = :'held';
SELECT count(*) > 0 FROM tasksched.status;
SELECT count(*) FROM tasksched.stuck_tasks;
SELECT * FROM tasksched.blocked_tasks WHERE id = :'id' \gset blocked_
SELECT :'blocked_resource_id' AS resource_id, :'blocked_owner' AS owner, :'blocked_reason' AS reason;
SELECT attrelid::regclass, attname FROM pg_attribute
WHERE attrelid IN ('tasksched.running_tasks'::regclass, 'tasksched.blocked_tasks'::regclass, 'tasksched.stuck_tasks'::regclass)
	AND attname IN ('params', 'result', 'error');
SELECT count(*) > 0 FROM tasksched.actions;
SELECT error_of('SELECT * FROM tasksched.tasks');
SELECT error_of('SELECT * FROM tasksched.get_tasks()');
RESET ROLE;

-- nor does a user see others' tasks there
SET ROLE regress_ts_group;
SELECT count(*) FROM tasksched.blocked_tasks;
SELECT count(*) FROM tasksched.running_tasks;
RESET ROLE;
SELECT pg_advisory_unlock(1);
SELECT status, owner FROM tasksched.wait_for_task(:'held', '30 s');
SELECT tasksched.delete_task(:'id');

-- revoking
SELECT tasksched.revoke_admin('regress_ts_admin');
SET ROLE regress_ts_admin;
SELECT error_of('SELECT tasksched.pause_scheduler()');
SELECT count(*) FROM tasksched.tasks;
RESET ROLE;
SELECT tasksched.revoke_usage('regress_ts_user');
SET ROLE regress_ts_user;
SELECT error_of($$SELECT tasksched.schedule_task('noop')$$);
RESET ROLE;

-- a renamed owner is followed, a dropped one holds its tasks back
SET ROLE regress_ts_other;
SELECT tasksched.schedule_task('echo', 'renamed', 'tomorrow', '1') AS id \gset
RESET ROLE;
ALTER ROLE regress_ts_other RENAME TO regress_ts_renamed;
SELECT owner FROM tasksched.tasks WHERE id = :'id';
SELECT owner FROM tasksched.get_task(:'id');
SELECT tasksched.revoke_usage('regress_ts_renamed');
DROP ROLE regress_ts_renamed;
SELECT tasksched.update_task(:'id', run_at => now());
SELECT regexp_replace(owner, '\d+', 'N') AS owner, owner::oid AS oid, reason FROM tasksched.blocked_tasks WHERE id = :'id';
SELECT status, owner FROM tasksched.get_task(:'id');
SELECT tasksched.delete_task(:'id');

SELECT tasksched.revoke_usage(r) FROM unnest('{regress_ts_user,regress_ts_group,regress_ts_admin}'::text[]) r;
DROP OWNED BY regress_ts_user, regress_ts_admin, regress_ts_group;
DROP ROLE regress_ts_user, regress_ts_admin, regress_ts_monitor, regress_ts_group, regress_ts_none;
