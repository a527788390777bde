--
-- The SQL interface: every function with its edges.  Tasks that are due
-- tomorrow are never launched, so what is asked of them here stays true.
--
CREATE FUNCTION noop() RETURNS void LANGUAGE sql BEGIN ATOMIC END;
CREATE FUNCTION echo(params jsonb) RETURNS jsonb LANGUAGE sql RETURN params;
CREATE FUNCTION log(params jsonb) RETURNS void LANGUAGE sql
AS $$ INSERT INTO public.ledger (what) VALUES (params ->> 'what') $$;
CREATE FUNCTION raising() RETURNS void LANGUAGE plpgsql
AS $$ BEGIN RAISE 'raising' USING DETAIL = 'the detail', HINT = 'the hint', ERRCODE = 'UT001'; END $$;

--
-- register_action, unregister_action, actions
--
SELECT tasksched.register_action('noop', 'noop');
SELECT tasksched.register_action(action => 'echo', function => 'public.echo');
SELECT tasksched.register_action('log', 'public.log(jsonb)');
SELECT tasksched.register_action('raising', 'raising()'::regprocedure);
SELECT tasksched.register_action('other', 'noop');
SELECT action, function, function_exists, registered_by = current_user AS by_me,
	registered_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS just_now
FROM tasksched.actions ORDER BY action;
-- the same name again replaces
SELECT tasksched.register_action('other', 'raising');
SELECT function FROM tasksched.actions WHERE action = 'other';
SELECT tasksched.unregister_action('other');
SELECT tasksched.unregister_action('other');
SELECT action FROM tasksched.actions ORDER BY action;

--
-- schedule_task: now
--
SELECT tasksched.schedule_task('echo', params => '{"val": 1}') AS id \gset
SELECT action, status, resource_id, params, result, error, error_details, owner = current_user::regrole AS mine,
	priority, attempt, launch, crashes,
	created_at <= started_at AND started_at <= updated_at AND updated_at = finished_at AS times
FROM tasksched.wait_for_task(:'id', '30 s');
-- a version 7 UUID of the time of the call
SELECT substr(:'id', 15, 1) AS version, substr(:'id', 20, 1) IN ('8', '9', 'a', 'b') AS variant,
	abs(('x' || lpad(translate(substr(:'id', 1, 13), '-', ''), 16, '0'))::bit(64)::bigint / 1000.0
		- extract(epoch FROM created_at)) < 0.01 AS time
FROM tasksched.get_task(:'id');
-- in the past, and a negative delay: now
SELECT tasksched.schedule_task('noop', run_at => '2000-01-01') AS id \gset
SELECT status, run_at = created_at AS due_at_once FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.schedule_task('noop', delay => '-1 day') AS id \gset
SELECT status, run_at = created_at AS due_at_once FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.schedule_task('noop', NULL, NULL, NULL, NULL) AS id \gset
SELECT status, run_at = created_at AS due_at_once, resource_id, params, result FROM tasksched.wait_for_task(:'id', '30 s');
-- JSON null is not NULL, and an array is as good as an object
SELECT tasksched.schedule_task('echo', params => 'null') AS id \gset
SELECT status, params, params IS NULL AS is_null, result, result IS NULL AS is_null FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.schedule_task('echo', params => '[1, "two", null]') AS id \gset
SELECT status, params, result FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.schedule_task('echo', params => '"scalar"') AS id \gset
SELECT status, params, result FROM tasksched.wait_for_task(:'id', '30 s');

-- later
SELECT tasksched.schedule_task('noop', 'room 1', 'tomorrow', '{"a": 1}') AS id \gset
SELECT action, status, resource_id, params, run_at = 'tomorrow'::timestamptz AS due_tomorrow,
	attempt, launch, crashes, started_at, finished_at, created_at = updated_at AS never_updated
FROM tasksched.get_task(:'id');
SELECT tasksched.schedule_task('noop', delay => '1 day 2 hours') AS delayed \gset
SELECT run_at - created_at FROM tasksched.get_task(:'delayed');
-- in the caller's transaction
BEGIN;
SELECT tasksched.schedule_task('noop') AS undone \gset
SELECT status FROM tasksched.get_task(:'undone');
ROLLBACK;
SELECT count(*) FROM tasksched.get_task(:'undone');
-- an empty resource_id is not NULL
SELECT tasksched.schedule_task('noop', '', 'tomorrow') AS empty \gset
SELECT resource_id = '' FROM tasksched.get_task(:'empty');
SELECT tasksched.delete_task(:'empty'), tasksched.delete_task(:'delayed');

--
-- schedule_tasks: one statement
--
CREATE TABLE many (n bigint, id uuid);
INSERT INTO many
SELECT n, id FROM tasksched.schedule_tasks('echo', ARRAY['1', NULL, 'null', '{"a": []}']::jsonb[]) WITH ORDINALITY u(id, n);
SELECT n, t.status, t.params, t.result, t.resource_id
FROM many, LATERAL tasksched.wait_for_task(id, '30 s') t ORDER BY n;
-- the ids are in order
SELECT array_agg(n ORDER BY id) FROM many;
-- scalars apply to all
TRUNCATE many;
INSERT INTO many
SELECT n, id FROM tasksched.schedule_tasks('noop', '{1,2}', resource_id => 'all', run_at => 'tomorrow') WITH ORDINALITY u(id, n);
SELECT n, resource_id, run_at = 'tomorrow'::timestamptz AS tomorrow, params
FROM many, LATERAL tasksched.get_task(id) ORDER BY n;
-- arrays give one value for each; NULL in one is as not given
TRUNCATE many;
INSERT INTO many
SELECT n, id FROM tasksched.schedule_tasks('noop', '{1,2,NULL}', resource_ids => '{a,NULL,c}',
	run_ats => ARRAY['tomorrow', '2100-01-01', NULL]::timestamptz[]) WITH ORDINALITY u(id, n);
SELECT n, resource_id, params, run_at = 'tomorrow'::timestamptz AS tomorrow, run_at = '2100-01-01' AS far, run_at = created_at AS now
FROM many, LATERAL tasksched.get_task(id) ORDER BY n;
TRUNCATE many;
INSERT INTO many SELECT n, id FROM tasksched.schedule_tasks('noop', '{1,2}', delay => '1 day', resource_ids => '{x,y}') WITH ORDINALITY u(id, n);
SELECT n, resource_id, run_at - created_at AS delay FROM many, LATERAL tasksched.get_task(id) ORDER BY n;
-- none
SELECT count(*) FROM tasksched.schedule_tasks('noop', '{}');
-- an array of objects
TRUNCATE many;
INSERT INTO many
SELECT n, id FROM tasksched.schedule_tasks('[
	{"action": "echo", "params": {"deep": [1, {"x": null}]}},
	{"action": "noop", "resource_id": "r", "run_at": "2100-01-01 00:00:00+00"},
	{"action": "noop", "delay": "1 day", "params": null},
	{"action": "noop", "resource_id": null, "run_at": "2100-01-01", "delay": null}]') WITH ORDINALITY u(id, n);
SELECT n, t.status, t.result FROM many, LATERAL tasksched.wait_for_task(id, '30 s') t WHERE n = 1;
SELECT n, action, status, resource_id, params, params IS NULL AS is_null, run_at - created_at = '1 day' AS in_a_day, run_at >= '2099-12-31' AS far
FROM many, LATERAL tasksched.get_task(id) WHERE n > 1 ORDER BY n;
SELECT count(*) FROM tasksched.schedule_tasks('[]');

--
-- update_task from outside
--
SELECT xmin AS before_xmin, updated_at AS before FROM tasksched.tasks WHERE id = :'id' \gset
SELECT tasksched.update_task(:'id');
SELECT updated_at > :'before' AS moved, run_at = 'tomorrow'::timestamptz AS run_at, status, result, error, params, launch
FROM tasksched.get_task(:'id');
SELECT tasksched.update_task(:'id', NULL, NULL, NULL, NULL);
-- result is replaced, not merged, and does not make the task run
SELECT tasksched.update_task(:'id', result => '{"a": 1}');
SELECT tasksched.update_task(:'id', result => '{"b": 2}', error => 'so far');
SELECT tasksched.update_task(:'id', status => 'scheduled');
SELECT result, error, status, run_at = 'tomorrow'::timestamptz AS run_at FROM tasksched.get_task(:'id');
SELECT tasksched.update_task(:'id', result => 'null');
SELECT result, result IS NULL AS is_null, error FROM tasksched.get_task(:'id');
SELECT tasksched.update_task(:'id', '2100-01-01', 'scheduled');
SELECT run_at = '2100-01-01' AS run_at, launch FROM tasksched.get_task(:'id');
-- undone with the transaction
BEGIN;
SELECT tasksched.update_task(:'id', result => '"undone"');
ROLLBACK;
SELECT result FROM tasksched.get_task(:'id');
-- a due time that has come: it runs, with first_launch as ever
SELECT tasksched.update_task(:'id', run_at => '2000-01-01');
SELECT status, result, error, launch, run_at > '2026-01-01' AS was_now FROM tasksched.wait_for_task(:'id', '30 s');
-- finished tasks stay as they are, and unknown ones are not an error
SELECT updated_at AS before FROM tasksched.get_task(:'id') \gset
SELECT tasksched.update_task(:'id'), tasksched.update_task(:'id', result => '1'), tasksched.update_task(:'id', 'tomorrow', 'scheduled');
SELECT status, result, updated_at = :'before' AS untouched FROM tasksched.get_task(:'id');
SELECT tasksched.update_task(gen_random_uuid(), result => '1'), tasksched.update_task(NULL, result => '1');

--
-- get_task
--
SELECT count(*) FROM tasksched.get_task(gen_random_uuid());
SELECT count(*) FROM tasksched.get_task(NULL);
SELECT (tasksched.get_task(:'id')).status;

--
-- delete_task
--
SELECT tasksched.delete_task(:'id');
SELECT tasksched.delete_task(:'id'), tasksched.delete_task(gen_random_uuid()), tasksched.delete_task(NULL);
SELECT count(*) FROM tasksched.get_task(:'id');
SELECT tasksched.schedule_task('noop', run_at => 'tomorrow') AS id \gset
BEGIN;
SELECT tasksched.delete_task(:'id');
SELECT count(*) FROM tasksched.get_task(:'id');
ROLLBACK;
SELECT tasksched.delete_task(:'id'), (SELECT count(*) FROM tasksched.get_task(:'id'));

--
-- get_tasks
--
SELECT count(tasksched.delete_task(id)) > 0 FROM tasksched.get_tasks();
SELECT count(*) FROM tasksched.get_tasks();
SELECT tasksched.schedule_task('raising', 'failed') AS failed \gset
SELECT status FROM tasksched.wait_for_task(:'failed', '30 s');
SELECT tasksched.schedule_task('noop', 'complete') AS complete \gset
SELECT status FROM tasksched.wait_for_task(:'complete', '30 s');
SELECT tasksched.schedule_task('noop', 'later', '2100-01-02') AS later \gset
SELECT tasksched.schedule_task('noop', 'soon', '2100-01-01') AS soon \gset
SELECT tasksched.schedule_task('noop', NULL, '2100-01-03') AS last \gset
SELECT tasksched.schedule_task('echo', 'same', '2100-01-04') AS same1 \gset
SELECT tasksched.schedule_task('echo', 'same', '2100-01-04') AS same2 \gset
-- ordered by run_at while scheduled and updated_at afterwards, then id
SELECT ordinality AS n, resource_id, action, status, id = :'same1' AS same1
FROM tasksched.get_tasks() WITH ORDINALITY;
-- NULL is no filter
SELECT count(*) FROM tasksched.get_tasks(NULL, NULL, NULL, NULL, NULL);
SELECT resource_id FROM tasksched.get_tasks(actions => '{raising,noop}');
SELECT resource_id FROM tasksched.get_tasks('{echo}', 'same');
SELECT action FROM tasksched.get_tasks(resource_id => 'complete');
SELECT resource_id FROM tasksched.get_tasks(statuses => '{complete,failed}');
SELECT count(*) FROM tasksched.get_tasks(resource_id => 'unheard of');
SELECT count(*) FROM tasksched.get_tasks(actions => '{unheard of}');
-- an empty array selects only NULL values, so none; a NULL in an array changes nothing
SELECT count(*) FROM tasksched.get_tasks(actions => '{}');
SELECT count(*) FROM tasksched.get_tasks(statuses => '{}');
SELECT count(*) FROM tasksched.get_tasks(actions => '{NULL}');
SELECT count(*) FROM tasksched.get_tasks(statuses => '{NULL}');
SELECT resource_id FROM tasksched.get_tasks(actions => '{NULL,raising}', statuses => '{failed,NULL}');
SELECT count(*) FROM tasksched.get_tasks(resource_id => '');
-- max_timestamp: up to and including
SELECT count(*) FROM tasksched.get_tasks(max_timestamp => '2000-01-01');
SELECT resource_id FROM tasksched.get_tasks(max_timestamp => now());
SELECT resource_id FROM tasksched.get_tasks(max_timestamp => '2100-01-02');
SELECT resource_id FROM tasksched.get_tasks(max_timestamp => '2100-01-02'::timestamptz - interval '1 us');
SELECT count(*) FROM tasksched.get_tasks(max_timestamp => 'infinity');
SELECT count(*) FROM tasksched.get_tasks(max_timestamp => '-infinity');
SELECT updated_at AS until FROM tasksched.get_task(:'failed') \gset
SELECT resource_id FROM tasksched.get_tasks(max_timestamp => :'until');
-- a failed task's due time does not count, but when it ended
SELECT tasksched.cancel_task(:'last');
SELECT resource_id, status FROM tasksched.get_tasks(max_timestamp => now());
-- max_rows
SELECT resource_id FROM tasksched.get_tasks(max_rows => 2);
SELECT count(*) FROM tasksched.get_tasks(max_rows => 0);
SELECT resource_id FROM tasksched.get_tasks(statuses => '{scheduled}', max_rows => 1);

--
-- cancel_task
--
SELECT updated_at AS before FROM tasksched.get_task(:'later') \gset
SELECT tasksched.cancel_task(:'later');
SELECT status, result, error, launch, finished_at = updated_at AND updated_at > :'before' AS times, run_at = '2100-01-02' AS run_at
FROM tasksched.get_task(:'later');
SELECT tasksched.cancel_task(:'later') AS again, tasksched.cancel_task(:'complete') AS finished,
	tasksched.cancel_task(gen_random_uuid()) AS unknown, tasksched.cancel_task(NULL) AS null;
BEGIN;
SELECT tasksched.cancel_task(:'soon');
SELECT status FROM tasksched.get_task(:'soon');
ROLLBACK;
SELECT status FROM tasksched.get_task(:'soon');
-- waiting for a cancelled task ends at once
SELECT status FROM tasksched.wait_for_task(:'later', '30 s');

--
-- retry_task
--
SELECT tasksched.retry_task(:'soon') AS scheduled, tasksched.retry_task(gen_random_uuid()) AS unknown, tasksched.retry_task(NULL) AS null;
CREATE FUNCTION fickle(task tasksched.task, first_launch boolean) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ledger (what)
	VALUES (format('launch %s attempt %s first %s result %s error %s', task.launch, task.attempt, first_launch, task.result, task.error));
	IF task.result IS NULL THEN
		RETURN '"kept"';
	END IF;
	PERFORM tasksched.update_task(task.id, result => '"lost"');
	RAISE 'second time' USING ERRCODE = 'UT002';
END $$;
SELECT tasksched.register_action('fickle', 'fickle');
SELECT tasksched.schedule_task('fickle') AS id \gset
SELECT status, attempt, launch, crashes, result, error FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.retry_task(:'id');
SELECT status, attempt, launch, crashes, result, error, error_details ->> 'sqlstate' AS sqlstate FROM tasksched.wait_for_task(:'id', '30 s');
SELECT created_at AS created, started_at AS started FROM tasksched.get_task(:'id') \gset
BEGIN;
SELECT tasksched.retry_task(:'id');
-- as new, but for launch and result
SELECT status, attempt, launch, crashes, result, error, error_details, started_at, finished_at,
	created_at = :'created' AS created, run_at = updated_at AND run_at > created_at AS due_now
FROM tasksched.get_task(:'id');
SELECT first_launch, NOT finished AS live FROM tasksched.tasks WHERE id = :'id';
ROLLBACK;
SELECT status FROM tasksched.get_task(:'id');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;
-- a cancelled task that never ran
SELECT tasksched.retry_task(:'later');
SELECT status, attempt, launch, run_at < '2100-01-01' AS due_now FROM tasksched.wait_for_task(:'later', '30 s');

--
-- task_is_running, running_tasks, report_progress, current_task, delete_task and
-- update_task of a running task
--
CREATE FUNCTION hold(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.report_progress(1, 3, 'begun');
	PERFORM tasksched.report_progress(done => 2);
	PERFORM pg_advisory_xact_lock((task.params ->> 'lock')::bigint);
	RETURN '"held"';
END $$;
SELECT tasksched.register_action('hold', 'hold');
SELECT pg_advisory_lock(1);
SELECT tasksched.schedule_task('hold', params => '{"lock": 1}') AS id \gset
CALL wait_until(format('EXISTS (SELECT FROM tasksched.running_tasks WHERE task_id = %L AND progress ->> ''done'' = ''2'')', :'id'));
SELECT tasksched.task_is_running(:'id') AS running, tasksched.task_is_running(:'soon') AS scheduled,
	tasksched.task_is_running(:'complete') AS finished, tasksched.task_is_running(gen_random_uuid()) AS unknown,
	tasksched.task_is_running(NULL) AS null;
SELECT action, owner = current_user::regrole AS mine, launch, state, since <= clock_timestamp() AS since, progress
FROM tasksched.running_tasks WHERE task_id = :'id';
SELECT backend_type, query LIKE '%hold%' AND query LIKE '%' || :'id' || '%' AS names_task, datname = current_database() AS here,
	usename = current_user AS mine
FROM pg_stat_activity WHERE pid = (SELECT pid FROM tasksched.running_tasks WHERE task_id = :'id');
SELECT running, max_running, state FROM tasksched.status WHERE database = current_database();
SELECT status, attempt, launch, result, finished_at, started_at IS NOT NULL AS started FROM tasksched.get_task(:'id');
SELECT resource_id, action FROM tasksched.get_tasks(statuses => '{active}');
SELECT error_of(format('SELECT tasksched.delete_task(%L)', :'id'));
SELECT error_of(format('SELECT tasksched.update_task(%L)', :'id'));
SELECT error_of(format('SELECT tasksched.update_task(%L, result => %L)', :'id', '1'));
SELECT tasksched.retry_task(:'id');
SELECT count(*) AS finished_in_time FROM tasksched.wait_for_task(:'id', '1 ms');
SELECT pg_advisory_unlock(1);
SELECT status, result FROM tasksched.wait_for_task(:'id', '30 s');
CALL wait_until(format('NOT tasksched.task_is_running(%L)', :'id'));
SELECT count(*) FROM tasksched.running_tasks WHERE task_id = :'id';

-- cancelling a running task interrupts it and undoes what it did
CREATE FUNCTION hold_on(params jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ledger (what) VALUES ('undone');
	PERFORM tasksched.report_progress(1);
	PERFORM pg_advisory_xact_lock((params ->> 'lock')::bigint);
	RAISE 'got here';
END $$;
SELECT tasksched.register_action('hold_on', 'hold_on');
SELECT pg_advisory_lock(1);
SELECT tasksched.schedule_task('hold_on', params => '{"lock": 1}') AS id \gset
CALL wait_until(format('EXISTS (SELECT FROM tasksched.running_tasks WHERE task_id = %L AND progress ->> ''done'' = ''1'')', :'id'));
BEGIN;
SELECT tasksched.cancel_task(:'id');
SELECT status FROM tasksched.get_task(:'id');
SELECT tasksched.task_is_running(:'id');
ROLLBACK;
SELECT status FROM tasksched.get_task(:'id');
SELECT tasksched.cancel_task(:'id');
SELECT status, attempt, launch, result, error, error_details FROM tasksched.wait_for_task(:'id', '30 s');
CALL wait_until(format('NOT tasksched.task_is_running(%L)', :'id'));
SELECT status, error FROM tasksched.get_task(:'id');
SELECT pg_advisory_unlock(1);
SELECT what FROM ledger;

--
-- wait_for_task
--
SELECT count(*) AS timeout FROM tasksched.wait_for_task(:'soon', '1 ms');
SELECT count(*) AS no_time FROM tasksched.wait_for_task(:'soon', '0');
SELECT count(*) AS unknown FROM tasksched.wait_for_task(gen_random_uuid());
SELECT count(*) AS null FROM tasksched.wait_for_task(NULL);
SELECT status FROM tasksched.wait_for_task(:'complete');
SELECT status FROM tasksched.wait_for_task(:'complete', '0');
-- sees what commits meanwhile under any isolation level
SELECT tasksched.schedule_task('echo', params => '"seen"') AS id \gset
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT 1;
SELECT status, result FROM tasksched.wait_for_task(:'id', '30 s');
COMMIT;
SELECT tasksched.schedule_task('echo', params => '"seen"') AS id \gset
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT 1;
SELECT status, result FROM tasksched.wait_for_task(:'id', '30 s');
COMMIT;

--
-- Outside an action
--
SELECT count(*) FROM tasksched.current_task();
SELECT error_of('SELECT tasksched.report_progress(1)');

--
-- Outcomes
--
SELECT * FROM tasksched.complete();
SELECT * FROM tasksched.complete('{"a": 1}');
SELECT * FROM tasksched.fail();
SELECT * FROM tasksched.fail('because');
SELECT * FROM tasksched.reschedule();
SELECT status, result, error, run_at = '2100-01-01' AS run_at FROM tasksched.reschedule('2100-01-01', '1');
SELECT status, result, run_at - now() BETWEEN '1 day' AND '1 day 1 min' AS in_a_day FROM tasksched.reschedule(delay => '1 day');
SELECT * FROM tasksched.proceed();
SELECT * FROM tasksched.proceed(result => 'null');

--
-- pause_scheduler and resume_scheduler: durable and idempotent
--
SELECT tasksched.pause_scheduler();
SELECT tasksched.pause_scheduler();
CALL wait_until('state = ''paused'' FROM tasksched.status WHERE database = current_database()');
SELECT tasksched.schedule_task('noop', 'paused') AS id \gset
CALL wait_until('EXISTS (SELECT FROM tasksched.blocked_tasks WHERE resource_id = ''paused'')');
SELECT action, resource_id, reason FROM tasksched.blocked_tasks;
SELECT status FROM tasksched.get_task(:'id');
SELECT tasksched.resume_scheduler();
SELECT tasksched.resume_scheduler();
SELECT status FROM tasksched.wait_for_task(:'id', '30 s');
SELECT count(*) FROM tasksched.blocked_tasks;
-- not if the transaction is rolled back
BEGIN;
SELECT tasksched.pause_scheduler();
ROLLBACK;
SELECT tasksched.schedule_task('noop') AS id \gset
SELECT status FROM tasksched.wait_for_task(:'id', '30 s');

--
-- The owner can be compared with roles and names, and grouped by
--
SELECT count(*) > 0 AS by_literal FROM tasksched.tasks WHERE owner = 'postgres' OR owner <> 'postgres';
SELECT bool_and(owner = current_user::regrole) AS by_role, bool_and(owner = current_user) AS by_name,
	bool_and(owner::oid = current_user::regrole::oid) AS by_oid, bool_and(pg_has_role(owner, 'USAGE')) AS in_functions
FROM tasksched.tasks;
SELECT count(*) FROM (SELECT DISTINCT owner FROM tasksched.tasks) o;
SELECT count(*) FROM (SELECT owner FROM tasksched.tasks GROUP BY owner ORDER BY owner) o;
SELECT v[1] OPERATOR(tasksched.<) v[2], v[1] OPERATOR(tasksched.<=) v[1], v[2] OPERATOR(tasksched.>) v[1],
	v[2] OPERATOR(tasksched.>=) v[2], v[1] OPERATOR(tasksched.=) v[2], v[1] OPERATOR(tasksched.<>) v[2]
FROM (SELECT '{a,b}'::tasksched.task_owner[] v) x;
-- a role is another than an unknown one of its name, also when they are hashed
CREATE TABLE owners (owner tasksched.task_owner);
INSERT INTO owners VALUES ('regress_ts_late'), ('regress_ts_never');
CREATE ROLE regress_ts_late;
INSERT INTO owners VALUES ('regress_ts_late');
SET enable_sort = off;
SELECT count(*) FROM (SELECT DISTINCT owner FROM owners) o;
RESET enable_sort;
SET enable_hashagg = off;
SELECT count(*) FROM (SELECT DISTINCT owner FROM owners) o;
RESET enable_hashagg;
-- in binary form it is its name, which is looked up by who reads it
SELECT owner, owner::oid <> 0 AS known FROM owners ORDER BY owner, known;
\copy owners TO 'results/owners.data' (FORMAT binary)
TRUNCATE owners;
\copy owners FROM 'results/owners.data' (FORMAT binary)
SELECT owner, owner::oid <> 0 AS known FROM owners ORDER BY owner;
DROP TABLE owners;
DROP ROLE regress_ts_late;

--
-- adopt_tasks: tasks of another installation, or of another database, are held
--
SELECT tasksched.adopt_tasks() AS none;
BEGIN;
SELECT tasksched.schedule_task('echo', 'installation', params => '1') AS id1 \gset
SELECT tasksched.schedule_task('echo', 'database', params => '2') AS id2 \gset
UPDATE tasksched.tasks SET installation = 0 WHERE id = :'id1';
UPDATE tasksched.tasks SET database = 0 WHERE id = :'id2';
COMMIT;
SELECT resource_id, reason FROM tasksched.blocked_tasks ORDER BY id;
-- one that is scheduled here runs
SELECT tasksched.schedule_task('echo') AS id \gset
SELECT status FROM tasksched.wait_for_task(:'id', '30 s');
SELECT status, launch FROM tasksched.get_tasks(resource_id => 'installation');
SELECT tasksched.adopt_tasks();
SELECT status, result FROM tasksched.wait_for_task(:'id1', '30 s');
SELECT status, result FROM tasksched.wait_for_task(:'id2', '30 s');
SELECT tasksched.adopt_tasks() AS none_any_more;

--
-- An action that is not registered any more, or whose function is gone, holds
-- back its own tasks only
--
CREATE FUNCTION fleeting() RETURNS void LANGUAGE sql BEGIN ATOMIC END;
SELECT tasksched.register_action('fleeting', 'fleeting');
SELECT tasksched.register_action('forgotten', 'noop');
BEGIN;
SELECT tasksched.schedule_task('fleeting', 'function') AS id1 \gset
SELECT tasksched.schedule_task('forgotten', 'action') AS id2 \gset
SELECT tasksched.unregister_action('forgotten');
DROP FUNCTION fleeting();
COMMIT;
SELECT function, function_exists FROM tasksched.actions WHERE action = 'fleeting';
SELECT tasksched.schedule_task('noop') AS id \gset
SELECT status FROM tasksched.wait_for_task(:'id', '30 s');
SELECT resource_id, reason FROM tasksched.blocked_tasks ORDER BY id;
SELECT resource_id, status, attempt, launch FROM tasksched.get_tasks('{fleeting,forgotten}');
-- one in its place that could not be registered
CREATE FUNCTION fleeting() RETURNS integer LANGUAGE sql RETURN 1;
SELECT reason FROM tasksched.blocked_tasks WHERE id = :'id1';
DROP FUNCTION fleeting();
SELECT tasksched.register_action('forgotten', 'noop');
SELECT status, attempt, launch FROM tasksched.wait_for_task(:'id2', '30 s');
CREATE FUNCTION fleeting() RETURNS jsonb LANGUAGE sql RETURN '"back"'::jsonb;
SELECT tasksched.register_action('fleeting', 'fleeting');
SELECT status, attempt, launch, result FROM tasksched.wait_for_task(:'id1', '30 s');

TRUNCATE ledger;
