-- What test/sqlsmith runs on
SET client_min_messages = warning;
CREATE EXTENSION tasksched;
CREATE ROLE smith_admin LOGIN;
CREATE ROLE smith_user LOGIN;
SELECT tasksched.grant_admin('smith_admin'), tasksched.grant_usage('smith_user');
GRANT pg_read_all_data, pg_monitor TO smith_admin;
CREATE SCHEMA smith;
GRANT USAGE ON SCHEMA smith TO smith_admin, smith_user;

-- sqlsmith chooses among thousands of functions, and leaves out those that
-- return sets or nothing: so each of ours comes in several guises.
DO $$
DECLARE
	f record;
BEGIN
	FOR f IN
		SELECT oid, proname, proargtypes::regtype[] AS types,
			(SELECT string_agg('$' || n, ', ') FROM generate_series(1, pronargs) n) AS args
		FROM pg_proc
		WHERE pronamespace = 'tasksched'::regnamespace AND proname !~ '^(task_owner_|_init|_change|grant|revoke)'
	LOOP
		FOR i IN 1..8 LOOP
			EXECUTE format('CREATE FUNCTION smith.%I(%s) RETURNS jsonb LANGUAGE sql AS $f$ SELECT to_jsonb(r) FROM tasksched.%I(%s) r LIMIT 1 $f$',
				f.proname || '_j' || i, array_to_string(f.types, ', '), f.proname, f.args);
			EXECUTE format('CREATE FUNCTION smith.%I(%s) RETURNS bigint LANGUAGE sql AS $f$ SELECT count(r) FROM tasksched.%I(%s) r $f$',
				f.proname || '_n' || i, array_to_string(f.types, ', '), f.proname, f.args);
		END LOOP;
	END LOOP;
END $$;

-- What tasks do
CREATE TABLE smith.queries (n integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, query text);
GRANT SELECT ON smith.queries TO smith_user;
CREATE FUNCTION smith.query(params jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	text text;
	state text;
BEGIN
	SELECT query INTO text FROM smith.queries WHERE n = (params ->> 'n')::integer;
	EXECUTE text;
	RETURN 'true';
EXCEPTION
	WHEN query_canceled THEN RAISE;
	WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE;
		RETURN to_jsonb(state);
END $$;
CREATE FUNCTION smith.query_stage(task tasksched.task) RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
BEGIN
	PERFORM smith.query(jsonb_build_object('n', task.launch + (task.params ->> 'n')::integer));
	RETURN CASE WHEN task.launch < 5 THEN tasksched.proceed(to_jsonb(task)) ELSE tasksched.complete() END;
END $$;
CREATE PROCEDURE smith.query_procedure(task tasksched.task, INOUT result jsonb) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..3 LOOP
		PERFORM tasksched.update_task(task.id, result => to_jsonb(i));
		result := smith.query(jsonb_build_object('n', i + (task.params ->> 'n')::integer));
		COMMIT;
	END LOOP;
END $$;
CREATE FUNCTION smith.nothing() RETURNS void LANGUAGE sql AS '';
SELECT tasksched.register_action(a, 'smith.' || a) FROM unnest('{query,query_stage,query_procedure,nothing}'::text[]) a;
