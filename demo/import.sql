-- The input as it came, and what it becomes. The target has no unique key:
-- a stanza that was imported twice would be there twice.
CREATE TABLE stanzas (n bigint PRIMARY KEY, stanza text NOT NULL);
CREATE TABLE packages (n bigint, name text, version text, section text, size bigint, description text);
-- What each launch of the action did, batch by batch.
CREATE TABLE import_log (launch integer, first_launch boolean, pid integer,
	batch_begin bigint, batch_end bigint, at timestamptz);

CREATE PROCEDURE import_packages(task tasksched.task, first_launch boolean)
LANGUAGE plpgsql AS $$
DECLARE
	cursor bigint := coalesce((task.result->>'cursor')::bigint, 0);	-- where the last checkpoint was
	total bigint := (SELECT max(n) FROM stanzas);
	batch_end bigint;
BEGIN
	WHILE cursor < total LOOP
		batch_end := least(cursor + (task.params->>'batch_size')::bigint, total);

		INSERT INTO packages
		SELECT n,
			substring(stanza FROM '(?n)^Package: (.*)$'),
			substring(stanza FROM '(?n)^Version: (.*)$'),
			substring(stanza FROM '(?n)^Section: (.*)$'),
			substring(stanza FROM '(?n)^Size: (.*)$')::bigint,
			substring(stanza FROM '(?n)^Description(?:-en)?: (.*)$')
		FROM stanzas WHERE n > cursor AND n <= batch_end;

		INSERT INTO import_log
		VALUES (task.launch, first_launch, pg_backend_pid(), cursor + 1, batch_end, clock_timestamp());

		-- The checkpoint: batch and cursor are committed together, or neither is.
		PERFORM tasksched.update_task(task.id, result => jsonb_build_object('cursor', batch_end));
		COMMIT;

		cursor := batch_end;
		PERFORM tasksched.report_progress(done => cursor, total => total);
	END LOOP;
END
$$;
