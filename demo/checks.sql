-- What must be true after the import. The variables come from demo/run: what
-- the input was, and where the task was when the server was killed.
CREATE VIEW checks AS
SELECT *, found = expected AS ok
FROM (
	SELECT 1 AS no, 'the task''s status' AS what, 'complete' AS expected, status::text AS found
	FROM tasksched.get_task(:'task')
	UNION ALL
	SELECT 2, 'its launches, in both of which it imported', '2, 2',
		t.launch || ', ' || (SELECT count(DISTINCT launch) FROM import_log)
	FROM tasksched.get_task(:'task') t
	UNION ALL
	SELECT 3, 'first_launch at the first and at the second', 'true, false',
		string_agg(DISTINCT first_launch::text, ', ' ORDER BY first_launch::text DESC)
	FROM import_log
	UNION ALL
	SELECT 4, 'stanza at which the second began', (:'cursor'::bigint + 1)::text, min(batch_begin)::text
	FROM import_log WHERE launch = 2
	UNION ALL
	SELECT 5, 'batches that don''t begin where the one before ended', '0', count(*)::text
	FROM (SELECT batch_begin, lag(batch_end, 1, 0::bigint) OVER (ORDER BY launch, at) AS before FROM import_log) b
	WHERE batch_begin <> before + 1
	UNION ALL
	SELECT 6, 'rows', :'rows', count(*)::text FROM packages
	UNION ALL
	SELECT 7, 'different rows', :'rows', count(DISTINCT n)::text FROM packages
	UNION ALL
	SELECT 8, 'sum of the sizes', :'size', sum(size)::text FROM packages
	UNION ALL
	SELECT 9, 'MD5 of all names and versions', :'names',
		md5(string_agg(name || ' ' || version || E'\n', '' ORDER BY n)) FROM packages
) c;
