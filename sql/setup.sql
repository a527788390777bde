--
-- CREATE EXTENSION, what it leaves in the catalogues, and what the tests that
-- follow use.
--
CREATE EXTENSION tasksched;

-- The extension can go and come back
DROP EXTENSION tasksched;
SELECT count(*) AS left_over
FROM pg_class WHERE relnamespace = to_regnamespace('tasksched');
CREATE EXTENSION tasksched;

SELECT n.nspname, e.extrelocatable
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'tasksched';

-- Every object has a comment (none is listed).  Since PostgreSQL 17 the types that
-- come with tables and with other types are members of their own.
CREATE VIEW members AS
	SELECT d.classid, d.objid
	FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
		AND e.extname = 'tasksched'
		AND NOT (d.classid = 'pg_type'::regclass AND EXISTS (
			SELECT FROM pg_depend i
			WHERE i.classid = d.classid AND i.objid = d.objid AND i.deptype = 'i'));

SELECT pg_describe_object(m.classid, m.objid, 0) AS without_comment
FROM (SELECT classid, objid FROM members
	  UNION
	  SELECT 'pg_namespace'::regclass, 'tasksched'::regnamespace
	  UNION
	  SELECT 'pg_policy'::regclass, p.oid FROM pg_policy p
	  JOIN members ON classid = 'pg_class'::regclass AND objid = p.polrelid) m
WHERE NOT EXISTS (
	SELECT FROM pg_description c
	WHERE c.classoid = m.classid AND c.objoid = m.objid AND c.objsubid = 0)
ORDER BY 1;

SELECT attrelid::regclass, attname AS column_without_comment
FROM pg_attribute
WHERE attrelid = 'tasksched.task'::regclass AND attnum > 0
	AND col_description(attrelid, attnum) IS NULL;

-- Nothing is granted to PUBLIC (none is listed)
SELECT pg_describe_object(m.classid, m.objid, 0) AS object, a.privilege_type AS granted_to_public
FROM (
	SELECT 'pg_proc'::regclass AS classid, oid AS objid, coalesce(proacl, acldefault('f', proowner)) AS acl
	FROM pg_proc WHERE pronamespace = 'tasksched'::regnamespace
	UNION ALL
	SELECT 'pg_class'::regclass, oid,
		coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
	FROM pg_class WHERE relnamespace = 'tasksched'::regnamespace
	UNION ALL
	SELECT 'pg_type'::regclass, t.oid, coalesce(typacl, acldefault('T', typowner))
	FROM pg_type t JOIN members ON classid = 'pg_type'::regclass AND objid = t.oid
	UNION ALL
	SELECT 'pg_namespace'::regclass, oid, coalesce(nspacl, acldefault('n', nspowner))
	FROM pg_namespace WHERE nspname = 'tasksched') m,
	LATERAL aclexplode(m.acl) a
WHERE a.grantee = 0
ORDER BY 1;

-- Every table has a primary key (none is listed)
SELECT oid::regclass AS without_primary_key
FROM pg_class c
WHERE relnamespace = 'tasksched'::regnamespace AND relkind IN ('r', 'p')
	AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary);

-- No table stores a type that stops pg_upgrade: of the reg types only
-- regclass, regrole and regtype are preserved (none is listed)
SELECT a.attrelid::regclass, a.attname, a.atttypid::regtype
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'tasksched'::regnamespace AND c.relkind IN ('r', 'p', 'c', 'i')
	AND a.attnum > 0 AND NOT a.attisdropped
	AND a.atttypid = ANY ('{regcollation,regconfig,regdictionary,regnamespace,regoper,regoperator,regproc,regprocedure}'::regtype[]);

-- The interface: functions, with the names and defaults of their arguments
SELECT p.proname AS function, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
FROM pg_proc p
WHERE p.pronamespace = 'tasksched'::regnamespace AND p.proname !~ '^(_|task_owner_)'
ORDER BY p.proname, pg_get_function_identity_arguments(p.oid);

-- The columns of the row type, and that the table has all of them
SELECT t.attname AS column, format_type(t.atttypid, t.atttypmod) AS in_task, format_type(s.atttypid, s.atttypmod) AS in_tasks
FROM pg_attribute t LEFT JOIN pg_attribute s
	ON s.attrelid = 'tasksched.tasks'::regclass AND s.attname = t.attname
WHERE t.attrelid = 'tasksched.task'::regclass AND t.attnum > 0 AND NOT t.attisdropped
ORDER BY t.attnum;

SELECT enum_range(NULL::tasksched.task_status);
SELECT attname, format_type(atttypid, atttypmod)
FROM pg_attribute WHERE attrelid = 'tasksched.outcome'::regclass AND attnum > 0 ORDER BY attnum;

--
-- What the other tests use
--

-- Run a statement and return its error in full, with task ids hidden
CREATE FUNCTION error_of(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	state text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN regexp_replace(
		state || ': ' || message ||
			CASE WHEN detail <> '' THEN E'\n  detail: ' || detail ELSE '' END ||
			CASE WHEN hint <> '' THEN E'\n  hint: ' || hint ELSE '' END,
		'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', '<id>', 'g');
END $$;

-- Wait, at most 30 s, until a condition is true
CREATE PROCEDURE wait_until(condition text)
LANGUAGE plpgsql AS $$
DECLARE
	good boolean;
	deadline timestamptz := clock_timestamp() + '30 s';
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO good;
		EXIT WHEN good;
		IF clock_timestamp() > deadline THEN
			RAISE 'condition did not become true: %', condition;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.005);
	END LOOP;
END $$;

-- What actions leave behind: one line for each call
CREATE TABLE ledger (
	n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	what text
);
