# The upgrade from version 0.1 creates the same objects as CREATE EXTENSION, keeps
# tasks and actions, and grants what is new to the roles that may schedule.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

my $node = new_node('upgrade', extension => 0);

# All objects of the extension with their properties, one per line
my $objects = <<'EOT';
WITH ours AS (
	SELECT classid, objid FROM pg_depend
	WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'tasksched')
), relations AS (
	SELECT c.* FROM pg_class c JOIN ours ON classid = 'pg_class'::regclass AND objid = c.oid
), acls(object, acl) AS (
	SELECT oid::regprocedure::text, proacl FROM pg_proc JOIN ours ON objid = oid AND classid = 'pg_proc'::regclass
	UNION ALL SELECT oid::regclass::text, relacl FROM relations
	UNION ALL SELECT oid::regtype::text, typacl FROM pg_type JOIN ours ON objid = oid AND classid = 'pg_type'::regclass
	UNION ALL SELECT nspname, nspacl FROM pg_namespace WHERE nspname = 'tasksched'
)
SELECT replace(line, E'\n', ' ') FROM (
SELECT 'object ' || pg_describe_object(classid, objid, 0) || ' '
	|| coalesce(obj_description(objid, classid::regclass::name), '')
FROM ours
UNION ALL
SELECT 'function ' || oid::regprocedure || ' ' || pg_get_function_result(oid) || ' '
	|| pg_get_function_arguments(oid) || ' '
	|| concat_ws(' ', prosrc, probin, pg_get_function_sqlbody(oid), provolatile, proparallel, proisstrict, prosecdef,
		proretset, prorows, proconfig)
FROM pg_proc JOIN ours ON objid = oid AND classid = 'pg_proc'::regclass
UNION ALL
SELECT 'column ' || attrelid::regclass || ' ' || attnum || ' ' || attname || ' '
	|| format_type(atttypid, atttypmod) || ' '
	|| concat_ws(' ', attnotnull, attislocal, attinhcount, attstorage, pg_get_expr(adbin, adrelid),
		col_description(attrelid, attnum))
FROM pg_attribute JOIN relations c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE NOT attisdropped
UNION ALL
SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(c.oid) || ' '
	|| connoinherit::text
FROM pg_constraint c JOIN relations ON relations.oid = conrelid
UNION ALL
SELECT 'index ' || pg_get_indexdef(indexrelid) FROM pg_index JOIN relations ON relations.oid = indrelid
UNION ALL
SELECT 'view ' || oid::regclass || pg_get_viewdef(oid) FROM relations WHERE relkind = 'v'
UNION ALL
SELECT concat_ws(' ', 'relation', oid::regclass, relkind, relrowsecurity, reloptions) FROM relations
UNION ALL
SELECT 'policy ' || polrelid::regclass || ' ' || polname || ' ' || pg_get_expr(polqual, polrelid)
FROM pg_policy JOIN relations c ON c.oid = polrelid
UNION ALL
SELECT 'operator ' || o.oid::regoperator || ' '
	|| concat_ws(' ', oprcode, oprrest, oprjoin, oprcanhash, oprcanmerge, oprcom::regoperator, oprnegate::regoperator)
FROM pg_operator o JOIN ours ON objid = o.oid AND classid = 'pg_operator'::regclass
UNION ALL
SELECT 'privilege ' || object || ' ' || CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END || ' '
	|| privilege_type
FROM acls, aclexplode(acl)
UNION ALL
SELECT 'dumped ' || unnest(extconfig)::regclass FROM pg_extension WHERE extname = 'tasksched'
UNION ALL
SELECT 'enum ' || enumtypid::regtype || ' ' || enumsortorder || ' ' || enumlabel
FROM pg_enum JOIN ours ON objid = enumtypid
) o(line) ORDER BY 1
EOT

sql($node, "CREATE DATABASE $_") foreach 'fresh', 'updated';
sql($node, 'CREATE EXTENSION tasksched', 'fresh');
sql($node, <<'EOT', 'updated');
CREATE EXTENSION tasksched VERSION '0.1';
CREATE TABLE owned (owner tasksched.task_owner);
CREATE INDEX owned_owner ON owned (owner);
CREATE TYPE pair AS (n int, owners tasksched.task_owner[]);
CREATE TABLE pairs (one pair);
CREATE INDEX pairs_one ON pairs (one);
ALTER EXTENSION tasksched UPDATE;
EOT
is( sql($node, q{SELECT count(*) FROM pg_class
		WHERE relname IN ('owned_owner', 'pairs_one') AND relfilenode <> oid}, 'updated'),
	'2', 'indexes on owners are built anew, and those on what contains owners');
sql($node, 'DROP TABLE owned, pairs; DROP TYPE pair', 'updated');

my @fresh = split /\n/, sql($node, $objects, 'fresh');
my @updated = split /\n/, sql($node, $objects, 'updated');
my %fresh = map { $_ => 1 } @fresh;
my %updated = map { $_ => 1 } @updated;
cmp_ok(scalar(@fresh), '>', 200, 'there are objects to compare');
is(join("\n", grep { !$updated{$_} } @fresh), '', 'nothing lacks after the upgrade');
is(join("\n", grep { !$fresh{$_} } @updated), '', 'and nothing is too much');

$node->stop;
check_log($node);
done_testing();
