--
-- Bad input: each with its SQLSTATE, detail and hint; nothing is stored
--
SELECT count(tasksched.delete_task(id)) >= 0 FROM tasksched.get_tasks();

-- action names
SELECT error_of($$SELECT tasksched.schedule_task('unheard of')$$);
SELECT error_of($$SELECT tasksched.schedule_task(NULL)$$);
SELECT error_of($$SELECT tasksched.schedule_task('')$$);
SELECT error_of(format('SELECT tasksched.schedule_task(%L)', repeat('ü', 32)));
SELECT error_of($$SELECT tasksched.register_action(NULL, 'noop')$$);
SELECT error_of($$SELECT tasksched.register_action('', 'noop')$$);
SELECT error_of(format('SELECT tasksched.register_action(%L, %L)', repeat('x', 64), 'noop'));
SELECT error_of($$SELECT tasksched.unregister_action(NULL)$$);

-- functions that can't be actions
CREATE FUNCTION twice(jsonb) RETURNS void LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION twice() RETURNS void LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION wrong_args(integer) RETURNS void LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION wrong_result() RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION out_args(OUT jsonb) LANGUAGE sql AS 'SELECT ''1''::jsonb';
CREATE FUNCTION a_set() RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT ''1''::jsonb';
CREATE FUNCTION a_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE PROCEDURE wrong_inout(INOUT integer) LANGUAGE plpgsql AS 'BEGIN END';
CREATE PROCEDURE inout_first(INOUT params jsonb, a boolean) LANGUAGE plpgsql AS 'BEGIN END';
CREATE PROCEDURE two_inout(INOUT params jsonb, INOUT result jsonb) LANGUAGE plpgsql AS 'BEGIN END';
CREATE AGGREGATE an_aggregate(jsonb) (SFUNC = jsonb_concat, STYPE = jsonb);
SELECT error_of($$SELECT tasksched.register_action('a', NULL::text)$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'no_such_function')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'no_such_function(jsonb)')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'no_such_schema.f')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 0::regprocedure)$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'twice')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'wrong_args')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'wrong_args(integer)')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'wrong_args(integer)'::regprocedure)$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'wrong_result')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'out_args')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'wrong_inout')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'inout_first')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'two_inout')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'a_set')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'a_trigger')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'an_aggregate')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'row_number')$$);
SELECT error_of($$SELECT tasksched.register_action('a', 'twice(')$$);
SELECT count(*) FROM tasksched.actions WHERE action = 'a';

-- due times
SELECT error_of($$SELECT tasksched.schedule_task('noop', run_at => 'infinity')$$);
SELECT error_of($$SELECT tasksched.schedule_task('noop', run_at => '-infinity')$$);
SELECT error_of($$SELECT tasksched.schedule_task('noop', run_at => 'tomorrow', delay => '1 s')$$);
SELECT error_of($$SELECT tasksched.schedule_task('noop', delay => '300000 years')$$);
-- arguments are checked before anything is looked up
SELECT error_of($$SELECT tasksched.schedule_task('unheard of', run_at => 'infinity')$$);
SELECT error_of($$SELECT tasksched.reschedule('tomorrow', delay => '1 s')$$);
SELECT error_of($$SELECT tasksched.reschedule('infinity')$$);

-- schedule_tasks
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', NULL)$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('unheard of', '{1}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', '{1,2}', resource_ids => '{a}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', '{1}', run_ats => '{tomorrow,tomorrow}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', '{1}', 'r', resource_ids => '{a}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', '{1}', run_at => 'tomorrow', run_ats => '{tomorrow}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', '{1}', delay => '1 s', run_ats => '{tomorrow}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('noop', '{1}', run_ats => '{infinity}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks(NULL::jsonb)$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('{"action": "noop"}')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('1'::jsonb)$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[1]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{"action": "noop"}, {"action": "noop", "when": "now"}]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{"action": 1}]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{}]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{"action": "noop"}, {"action": "unheard of"}]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{"action": "unheard of"}, {"action": "noop", "when": "now"}]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{"action": "noop", "run_at": "whenever"}]')$$);
SELECT error_of($$SELECT tasksched.schedule_tasks('[{"action": "noop", "run_at": "tomorrow", "delay": "1 s"}]')$$);

-- update_task
SELECT tasksched.schedule_task('noop', run_at => 'tomorrow') AS id \gset
SELECT error_of(format('SELECT tasksched.update_task(%L, status => %L)', :'id', 'complete'));
SELECT error_of(format('SELECT tasksched.update_task(%L, status => %L)', :'id', 'failed'));
SELECT error_of(format('SELECT tasksched.update_task(%L, status => %L)', :'id', 'cancelled'));
SELECT error_of(format('SELECT tasksched.update_task(%L, status => %L)', :'id', 'active'));
SELECT error_of(format('SELECT tasksched.update_task(%L, run_at => %L)', :'id', 'infinity'));
SELECT error_of(format('SELECT tasksched.update_task(%L, status => %L)', gen_random_uuid(), 'complete'));
SELECT status, run_at = 'tomorrow'::timestamptz AS untouched FROM tasksched.get_task(:'id');
SELECT tasksched.delete_task(:'id');

-- an unknown id is no error
SELECT tasksched.update_task(gen_random_uuid(), result => '1'), tasksched.delete_task(gen_random_uuid()),
	tasksched.cancel_task(gen_random_uuid()), tasksched.retry_task(gen_random_uuid()), tasksched.task_is_running(gen_random_uuid());

-- waiting
SELECT error_of(format('SELECT * FROM tasksched.wait_for_task(%L, %L)', gen_random_uuid(), '-1 s'));
SELECT tasksched.schedule_task('noop', run_at => 'tomorrow') AS id \gset
BEGIN;
SELECT tasksched.update_task(:'id');
SELECT error_of(format('SELECT * FROM tasksched.wait_for_task(%L)', :'id'));
ROLLBACK;
BEGIN;
SELECT tasksched.schedule_task('noop') AS mine \gset
SELECT error_of(format('SELECT * FROM tasksched.wait_for_task(%L)', :'mine'));
ROLLBACK;
SELECT tasksched.delete_task(:'id');
SELECT error_of('SELECT * FROM tasksched.get_tasks(max_rows => -1)');

-- roles
SELECT error_of($$SELECT tasksched.grant_usage('no_such_role')$$);
SELECT error_of($$SELECT tasksched.grant_usage(NULL)$$);

-- nothing was stored by all this
SELECT count(*) FROM tasksched.get_tasks();
