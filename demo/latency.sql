CREATE TABLE starts (id uuid, sample integer, committed timestamptz, started timestamptz);

CREATE FUNCTION note_start(task tasksched.task) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	started timestamptz := clock_timestamp();	-- the action's first instruction
BEGIN
	INSERT INTO starts (id, started) VALUES (task.id, started);
END
$$;

CREATE PROCEDURE measure(samples integer) LANGUAGE plpgsql AS $$
DECLARE
	task_id uuid;
	commit_returned timestamptz;
BEGIN
	FOR i IN 1 .. samples LOOP
		task_id := tasksched.schedule_task('note_start');
		COMMIT;
		commit_returned := clock_timestamp();
		PERFORM tasksched.wait_for_task(task_id, timeout => '10 s');
		COMMIT;
		UPDATE starts s SET sample = i, committed = commit_returned WHERE s.id = task_id;
		COMMIT;
	END LOOP;
END
$$;
