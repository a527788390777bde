--
-- Actions: the four signatures, what they return, functions and procedures in
-- SQL, PL/pgSQL, C and internal; stages, checkpoints and errors.
--

-- Register a function under its own name, run it once, and show what came out
CREATE PROCEDURE run(function text, params jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	id uuid;
	task tasksched.task;
BEGIN
	PERFORM tasksched.register_action('run', function);
	id := tasksched.schedule_task('run', params => params);
	COMMIT;
	task := tasksched.wait_for_task(id, '30 s');
	RAISE NOTICE '%: % after % launch(es), result %, error %', function, task.status, task.launch, task.result,
		coalesce(task.error || ' (' || (task.error_details ->> 'sqlstate') || ')', task.error);
END $$;

-- functions: signatures
CREATE FUNCTION s_none() RETURNS jsonb LANGUAGE sql RETURN '"none"'::jsonb;
CREATE FUNCTION s_params(params jsonb) RETURNS jsonb LANGUAGE sql RETURN jsonb_build_object('params', params);
CREATE FUNCTION s_task(task tasksched.task) RETURNS jsonb LANGUAGE sql
	RETURN jsonb_build_object('status', (task).status, 'launch', (task).launch, 'params', (task).params);
CREATE FUNCTION s_both(task tasksched.task, first_launch boolean) RETURNS jsonb LANGUAGE plpgsql
AS $$ BEGIN RETURN jsonb_build_object('first', first_launch, 'attempt', task.attempt); END $$;
CALL run('s_none');
CALL run('s_params', '{"a": 1}');
CALL run('s_params');
CALL run('s_task', '[1]');
CALL run('s_both');

-- functions: what they return
CREATE FUNCTION r_void() RETURNS void LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION r_null() RETURNS jsonb LANGUAGE sql RETURN NULL::jsonb;
CREATE FUNCTION r_json_null() RETURNS jsonb LANGUAGE sql RETURN 'null'::jsonb;
CREATE FUNCTION r_complete() RETURNS tasksched.outcome LANGUAGE sql RETURN tasksched.complete('"done"');
CREATE FUNCTION r_fail() RETURNS tasksched.outcome LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO ledger (what) VALUES ('effects of fail() stay'); RETURN tasksched.fail('because'); END $$;
CREATE FUNCTION r_null_outcome() RETURNS tasksched.outcome LANGUAGE sql RETURN NULL::tasksched.outcome;
CREATE FUNCTION r_unset() RETURNS tasksched.outcome LANGUAGE plpgsql AS $$ DECLARE o tasksched.outcome; BEGIN RETURN o; END $$;
CREATE FUNCTION r_raise() RETURNS void LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO ledger (what) VALUES ('never seen'); RAISE 'raising' USING ERRCODE = 'UT001'; END $$;
CALL run('r_void');
CALL run('r_null');
CALL run('r_json_null');
CALL run('r_complete');
CALL run('r_fail');
CALL run('r_null_outcome');
CALL run('r_unset');
CALL run('r_raise');
SELECT what FROM ledger;
TRUNCATE ledger;

-- outcomes that make no sense
CREATE FUNCTION r_outcome(params jsonb) RETURNS tasksched.outcome LANGUAGE sql
	RETURN jsonb_populate_record(NULL::tasksched.outcome, params);
CALL run('r_outcome', '{"status": "cancelled"}');
CALL run('r_outcome', '{"status": "complete", "run_at": "2100-01-01"}');
CALL run('r_outcome', '{"status": "failed", "run_at": "2100-01-01"}');
CALL run('r_outcome', '{"status": "active", "run_at": "2100-01-01"}');
CALL run('r_outcome', '{"status": "scheduled", "run_at": "infinity"}');
CALL run('r_outcome', '{"result": 1}');
CALL run('r_outcome', '{}');
CALL run('r_outcome', '{"status": "complete", "result": 1, "error": "a note"}');

-- what is kept of an error
CREATE FUNCTION r_details() RETURNS void LANGUAGE plpgsql
AS $$ BEGIN RAISE '100%% of "it"' USING DETAIL = 'the detail', HINT = 'the hint', ERRCODE = 'UT001'; END $$;
CALL run('r_details');
SELECT error, error_details FROM tasksched.get_tasks('{run}', statuses => '{failed}') WHERE error LIKE '100%';
-- the error of a raise has the last word, and what was staged goes with the effects
CREATE FUNCTION r_staged_error(task tasksched.task) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN PERFORM tasksched.update_task(task.id, result => '1', error => 'staged'); RAISE 'raised'; END $$;
CALL run('r_staged_error');
-- first_launch is true again after retry_task, whatever happened before
CREATE FUNCTION again(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE plpgsql
AS $$
BEGIN
	INSERT INTO ledger (what) VALUES (format('launch %s, first %s, attempt %s, result %s', task.launch, first_launch, task.attempt, task.result));
	RETURN CASE WHEN first_launch THEN tasksched.reschedule(result => to_jsonb(task.launch)) ELSE tasksched.fail('again') END;
END $$;
SELECT tasksched.register_action('again', 'again');
SELECT tasksched.schedule_task('again') AS id \gset
SELECT status, attempt, launch, result, error FROM tasksched.wait_for_task(:'id', '30 s');
SELECT tasksched.retry_task(:'id');
SELECT status, attempt, launch, result, error FROM tasksched.wait_for_task(:'id', '30 s');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- procedures
CREATE PROCEDURE p_none() LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE p_params(params jsonb) LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE PROCEDURE p_task(task tasksched.task, INOUT result jsonb) LANGUAGE plpgsql
AS $$ BEGIN COMMIT; result := jsonb_build_object('launch', task.launch); END $$;
CREATE PROCEDURE p_both(task tasksched.task, first_launch boolean, INOUT result tasksched.outcome) LANGUAGE plpgsql
AS $$ BEGIN COMMIT; result := tasksched.fail('first ' || first_launch); END $$;
CREATE PROCEDURE p_inout(INOUT result jsonb) LANGUAGE plpgsql AS $$ BEGIN result := '"alone"'; END $$;
CREATE PROCEDURE p_sql(params jsonb, INOUT result jsonb) LANGUAGE sql AS 'SELECT params';
CREATE PROCEDURE p_null(INOUT result jsonb) LANGUAGE plpgsql AS $$ BEGIN result := NULL; END $$;
CREATE PROCEDURE p_raise(params jsonb) LANGUAGE plpgsql
AS $$ BEGIN INSERT INTO ledger (what) VALUES ('committed'); COMMIT; INSERT INTO ledger (what) VALUES ('not'); RAISE 'after'; END $$;
CALL run('p_none');
CALL run('p_params');
CALL run('p_task');
CALL run('p_both');
CALL run('p_inout');
CALL run('p_sql', '{"sql": true}');
CALL run('p_null');
CALL run('p_raise');
-- a procedure with a SET clause may not commit
CREATE PROCEDURE p_set() LANGUAGE plpgsql SET search_path = public AS $$ BEGIN COMMIT; END $$;
CALL run('p_set');
-- an outcome that was set before a COMMIT is as good as one after it
CREATE PROCEDURE p_outcome(task tasksched.task, INOUT result tasksched.outcome) LANGUAGE plpgsql
AS $$ BEGIN result := tasksched.proceed(to_jsonb(task.launch)); COMMIT; IF task.launch = 3 THEN result := tasksched.complete(); END IF; END $$;
CALL run('p_outcome');
CREATE PROCEDURE p_invalid(INOUT result tasksched.outcome) LANGUAGE plpgsql AS $$ BEGIN COMMIT; result.status := 'cancelled'; END $$;
CALL run('p_invalid');
SELECT what FROM ledger;
TRUNCATE ledger;

-- internal and C functions
CREATE FUNCTION i_pretty(jsonb) RETURNS jsonb LANGUAGE internal STRICT AS 'jsonb_strip_nulls';
CALL run('i_pretty', '{"a": null, "b": 1}');
-- a strict function is not called with NULL
CALL run('i_pretty');
CREATE FUNCTION c_pause() RETURNS void LANGUAGE c AS '$libdir/tasksched', 'tasksched_resume_scheduler';
CALL run('c_pause');

-- stages: first_launch is true once, and each stage is committed
CREATE FUNCTION stages(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE plpgsql
AS $$
BEGIN
	INSERT INTO ledger (what) VALUES (format('launch %s, first %s, attempt %s, result %s', task.launch, first_launch, task.attempt, task.result));
	RETURN CASE task.launch
		WHEN 1 THEN tasksched.reschedule(result => '1')
		WHEN 2 THEN tasksched.proceed('2')
		WHEN 3 THEN tasksched.proceed()
		WHEN 4 THEN tasksched.reschedule(delay => '1 ms')
		ELSE tasksched.complete() END;
END $$;
CALL run('stages');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- staging by update_task
CREATE FUNCTION staged(task tasksched.task) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
	INSERT INTO ledger (what) VALUES (format('launch %s result %s', task.launch, task.result));
	IF task.launch = 1 THEN
		PERFORM tasksched.update_task(task.id, status => 'scheduled', result => '"staged"');
	END IF;
END $$;
CALL run('staged');
-- what is returned has the last word
CREATE FUNCTION overruled(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql
AS $$ BEGIN PERFORM tasksched.update_task(task.id, status => 'scheduled', result => '"staged"'); RETURN '"returned"'; END $$;
CALL run('overruled');
-- taken back
CREATE FUNCTION unstaged(task tasksched.task) RETURNS void LANGUAGE plpgsql
AS $$ BEGIN PERFORM tasksched.update_task(task.id, status => 'scheduled'); PERFORM tasksched.update_task(task.id, status => 'active', result => '"kept"'); END $$;
CALL run('unstaged');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- staged changes follow subtransactions, and current_task() shows them
CREATE FUNCTION subtransactions(task tasksched.task) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
	PERFORM tasksched.update_task(task.id, result => '1');
	BEGIN
		PERFORM tasksched.update_task(task.id, result => '2', status => 'scheduled');
		BEGIN
			PERFORM tasksched.update_task(task.id, result => '3');
		END;
		RAISE division_by_zero USING MESSAGE = (SELECT format('inside: %s %s', result, status) FROM tasksched.current_task());
	EXCEPTION WHEN division_by_zero THEN
		INSERT INTO ledger (what) VALUES (SQLERRM);
		INSERT INTO ledger (what) SELECT format('after: %s %s', result, status) FROM tasksched.current_task();
	END;
	BEGIN
		PERFORM tasksched.update_task(task.id, result => '4', error => 'a note');
	END;
	INSERT INTO ledger (what) SELECT format('end: %s %s', result, error) FROM tasksched.current_task();
	INSERT INTO ledger (what) SELECT 'stored: ' || coalesce(result::text, 'none') FROM tasksched.get_task(task.id);
END $$;
CALL run('subtransactions');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- what a subtransaction commits is its parent's from then on, and goes with that one
CREATE FUNCTION staged_now() RETURNS text LANGUAGE sql STABLE
AS $$ SELECT format('%s %s %s', status, result, error) FROM tasksched.current_task() $$;
CREATE FUNCTION nested(task tasksched.task) RETURNS void LANGUAGE plpgsql
AS $$
DECLARE
	seen text[];	-- which no abort takes back
BEGIN
	-- nothing staged outside of it, so there is nothing to fall back to
	BEGIN
		BEGIN
			BEGIN
				PERFORM tasksched.update_task(task.id, status => 'scheduled', run_at => 'tomorrow', result => '1', error => 'one');
			EXCEPTION WHEN undefined_table THEN
			END;
			seen := seen || ('one level up: ' || staged_now());
			BEGIN
				PERFORM tasksched.update_task(task.id, result => '2', error => 'two');
				PERFORM tasksched.update_task(task.id, result => '3');
				RAISE division_by_zero;
			EXCEPTION WHEN division_by_zero THEN
				seen := seen || ('aborted: ' || staged_now());
			END;
		EXCEPTION WHEN undefined_table THEN
		END;
		seen := seen || ('two levels up: ' || staged_now());
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		seen := seen || ('all aborted: ' || staged_now());
	END;
	-- each replaces what the one outside has staged
	PERFORM tasksched.update_task(task.id, result => '4', error => 'four');
	BEGIN
		PERFORM tasksched.update_task(task.id, result => '5');
		BEGIN
			PERFORM tasksched.update_task(task.id, result => '6', error => 'six');
		EXCEPTION WHEN undefined_table THEN
		END;
		seen := seen || ('committed: ' || staged_now());
		PERFORM tasksched.update_task(task.id, result => '7');
	EXCEPTION WHEN undefined_table THEN
	END;
	seen := seen || ('all committed: ' || staged_now());
	INSERT INTO ledger (what) SELECT unnest(seen);
END $$;
CALL run('nested');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- what a procedure has committed is what a subtransaction falls back to
CREATE PROCEDURE nested_after_commit(task tasksched.task) LANGUAGE plpgsql
AS $$
BEGIN
	FOR i IN 1 .. 2 LOOP
		BEGIN
			PERFORM tasksched.update_task(task.id, result => to_jsonb(i), error => 'step ' || i);
		EXCEPTION WHEN undefined_table THEN
		END;
		COMMIT;
		BEGIN
			PERFORM tasksched.update_task(task.id, result => '"lost"', error => 'lost');
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			INSERT INTO ledger (what) VALUES ('aborted: ' || staged_now());
		END;
	END LOOP;
	PERFORM tasksched.update_task(task.id, result => '"last"');
END $$;
CALL run('nested_after_commit');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- a checkpoint is durable once a procedure has committed it, and not before
CREATE PROCEDURE checkpoints(task tasksched.task, first_launch boolean) LANGUAGE plpgsql
AS $$
BEGIN
	PERFORM tasksched.update_task(task.id, result => '1');
	COMMIT;
	INSERT INTO ledger (what) SELECT format('committed: %s', result) FROM tasksched.get_task(task.id);
	COMMIT;
	PERFORM tasksched.update_task(task.id, result => '2');
	ROLLBACK;
	INSERT INTO ledger (what) SELECT format('rolled back: %s', result) FROM tasksched.current_task();
	PERFORM tasksched.update_task(task.id, result => '3');
	COMMIT;
	PERFORM tasksched.update_task(task.id, result => '4');
	RAISE 'the last one is lost';
END $$;
CALL run('checkpoints');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- staging set before a COMMIT waits for the end of the procedure
CREATE PROCEDURE staged_early(task tasksched.task) LANGUAGE plpgsql
AS $$
BEGIN
	IF task.launch = 1 THEN
		PERFORM tasksched.update_task(task.id, status => 'scheduled');
		COMMIT;
		INSERT INTO ledger (what) SELECT format('still %s', status) FROM tasksched.get_task(task.id);
		COMMIT;
	END IF;
END $$;
CALL run('staged_early');
SELECT what FROM ledger;
TRUNCATE ledger;

-- what an action may not do to its own task
CREATE FUNCTION own(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql
AS $$
BEGIN
	INSERT INTO ledger (what) SELECT error_of(format(s, task.id)) FROM unnest(ARRAY[
		'SELECT tasksched.update_task(%L, run_at => ''2100-01-01'')',
		'SELECT tasksched.update_task(%L, status => ''complete'')',
		'SELECT tasksched.update_task(%L, status => ''failed'')',
		'SELECT tasksched.update_task(%L, status => ''scheduled'', run_at => ''infinity'')',
		'SELECT tasksched.cancel_task(%L)',
		'SELECT tasksched.delete_task(%L)',
		'SELECT * FROM tasksched.wait_for_task(%L)',
		'SELECT tasksched.report_progress(-1)']) s;
	RETURN to_jsonb(tasksched.task_is_running(task.id));
END $$;
CALL run('own');
SELECT what FROM ledger ORDER BY n;
TRUNCATE ledger;

-- a deferred constraint that fails at the commit: the attempt has failed
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION deferred() RETURNS void LANGUAGE sql AS 'INSERT INTO child VALUES (1)';
CALL run('deferred');
SELECT count(*) FROM child;

-- the session is as new for the next task: two at a time in the same worker
CREATE FUNCTION leave_traces() RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
	PERFORM set_config('work_mem', '123kB', false), set_config('search_path', 'pg_temp', false);
	PERFORM pg_advisory_lock(4711);
	CREATE TEMP TABLE traces ();
	EXECUTE 'PREPARE traces AS SELECT 1';
	EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT 1';
	EXECUTE 'SET ROLE pg_monitor';
END $$;
CREATE FUNCTION find_traces() RETURNS jsonb LANGUAGE sql
AS $$ SELECT jsonb_build_object('work_mem', current_setting('work_mem') = '123kB', 'path', current_setting('search_path') = 'pg_temp',
	'lock', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
	'temp', to_regclass('pg_temp.traces') IS NOT NULL,
	'prepared', (SELECT count(*) FROM pg_prepared_statements), 'cursors', (SELECT count(*) FROM pg_cursors WHERE name = 'held'),
	'role', current_user <> session_user) $$;
CALL run('leave_traces');
CALL run('find_traces');

-- names: quotes, other letters, as long as can be
CREATE SCHEMA "odd "" schema";
CREATE FUNCTION "odd "" schema"."Fünction ' ""()"(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1;
CREATE PROCEDURE "odd "" schema"."Pröcedure ' ""()"(jsonb, INOUT jsonb) LANGUAGE sql AS 'SELECT $1';
SELECT tasksched.register_action('It''s "quoted" — ünïcode %s', '"odd "" schema"."Fünction '' ""()"(jsonb)');
SELECT tasksched.register_action(repeat('x', 63), '"odd "" schema"."Pröcedure '' ""()"(jsonb,jsonb)');
SELECT tasksched.schedule_task('It''s "quoted" — ünïcode %s', params => '1') AS id1, tasksched.schedule_task(repeat('x', 63), params => '2') AS id2 \gset
SELECT action, status, result FROM tasksched.wait_for_task(:'id1', '30 s');
SELECT action, status, result FROM tasksched.wait_for_task(:'id2', '30 s');
