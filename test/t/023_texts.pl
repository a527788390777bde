# Texts and values: strings that are invalid in the database's encoding, values that
# a dump could not carry, names that another encoding makes longer, and owners whose
# roles are renamed or dropped.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use TaskschedTest;
use Test::More;

$ENV{PGCLIENTENCODING} = 'UTF8';
my $node = new_node('texts', utf8 => 1, conf => "autovacuum = off\n");
my $dir = PostgreSQL::Test::Utils::tempdir();
my $e = "\xc3\xa9";		# in UTF8; it is one byte in LATIN1
my $no_role = 'the role that owns the task does not exist';

sql($node, "CREATE DATABASE $_->[0] ENCODING '$_->[1]' LOCALE 'C' TEMPLATE template0")
  foreach (map { [ $_, 'UTF8' ] } qw(restored owners owners1 owners2 unowned wide wider)),
  [ 'latin1', 'LATIN1' ], [ 'narrow', 'LATIN1' ], [ 'ascii', 'SQL_ASCII' ];
create_fixtures($node, $_) foreach qw(latin1 owners);

# Dump a database, and restore the dump into another one without any error
sub dump_and_restore
{
	my ($from, $to) = @_;
	my $file = "$dir/$from-$to.sql";

	# use the encoding of the database, which the dump names
	delete local $ENV{PGCLIENTENCODING};
	command_ok([ 'pg_dump', '-f', $file, $node->connstr($from) ], "$from is dumped");
	my (undef, $stderr) = run_command([ 'psql', '-X', '-q', '-f', $file, $node->connstr($to) ]);
	is($stderr, '', "and restored in $to");
	return;
}

# ---------------------------------------------------------------------------
# Texts that are cut inside a character
# ---------------------------------------------------------------------------

# the server itself cuts this message, in UTF8
sql($node, <<"EOT");
CREATE FUNCTION bad_text() RETURNS text LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM to_date('1$e$e', 'YYYYMM');
EXCEPTION WHEN OTHERS THEN
	RETURN SQLERRM;
END \$\$;
CREATE FUNCTION bad_outcome(task tasksched.task) RETURNS tasksched.outcome LANGUAGE plpgsql AS \$\$
BEGIN
	RETURN CASE task.resource_id WHEN 'fail' THEN tasksched.fail(public.bad_text())
		ELSE tasksched.complete(to_jsonb(public.bad_text())) END;
END \$\$;
CREATE FUNCTION bad_result() RETURNS jsonb LANGUAGE sql AS 'SELECT jsonb_build_object(public.bad_text(), 1)';
CREATE PROCEDURE bad_inout(INOUT result jsonb) LANGUAGE plpgsql AS \$\$
BEGIN
	COMMIT;
	result := jsonb_build_array(jsonb_build_array(public.bad_text()));
END \$\$;
CREATE FUNCTION bad_progress(task tasksched.task) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM tasksched.report_progress(note => public.bad_text());
	PERFORM public.hold(task, true);
END \$\$;
SELECT tasksched.register_action(a, a) FROM unnest('{bad_outcome,bad_result,bad_inout,bad_progress}'::text[]) a;
EOT
like(sql($node, q{SELECT encode(bad_text()::bytea, 'escape')}),
	qr/\\303"/, 'the server cuts a message inside a character');

# Schedule a task that fails, given its arguments; returns its id
sub run_bad
{
	my ($arguments, $sqlstate, $name) = @_;
	my $id = schedule($node, $arguments);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_status($node, $id, 'failed', "$name: the task fails");
	is(field_of($node, $id, q{error_details ->> 'sqlstate'}), $sqlstate, 'with its SQLSTATE');
	return $id;
}

my @told = (
	run_bad(qq{'run_sql', params => jsonb_build_object('sql', \$\$SELECT to_date('1$e$e', 'YYYYMM')\$\$)},
		'22007', 'a message of the server'),
	run_bad(q{'run_sql', params => jsonb_build_object('sql',
		'DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = public.bad_text(), DETAIL = public.bad_text(),
			HINT = public.bad_text(); END $$')},
		'P0001', 'message, detail and hint'),
	run_bad(q{'run_sql',
		params => jsonb_build_object('sql', 'DO $$ BEGIN EXECUTE $x$SELECT 1/0 -- $x$ || public.bad_text(); END $$')},
		'22012', 'a context'),
	run_bad(q{'bad_outcome', 'fail'}, '', 'fail()'));
my $updated = schedule($node, q{'note', run_at => '2100-01-01'});
sql($node, "SELECT tasksched.update_task('$updated', error => bad_text())");
my $told = q{SELECT concat(error, error_details::text) FROM tasksched.tasks WHERE id = };
foreach my $id (@told, $updated)
{
	my (undef, $stderr) = try_sql($node, "SET client_encoding = 'LATIN1'; $told '$id'");

	is($stderr, '', 'a client with another encoding can read it');
	like(sql($node, "$told '$id'"), qr/\?/, 'what is no character is masked');
}

# invalid values are refused, not changed
sqlstate_is($node, "SELECT $_->[1]", '22021', "$_->[0] is refused") foreach (
	[ 'a string in params', q{tasksched.schedule_task('note', params => to_jsonb(bad_text()))} ],
	[ 'a key in params', q{tasksched.schedule_task('note',
		params => jsonb_build_object('a', jsonb_build_array(1, jsonb_build_object(bad_text(), null))))} ],
	[ 'resource_id', q{tasksched.schedule_task('note', bad_text())} ],
	[ 'one of many params', q{tasksched.schedule_tasks('note', ARRAY[NULL, '1', to_jsonb(bad_text())])} ],
	[ 'one of many resource_ids',
		q{tasksched.schedule_tasks('note', '{1,2}', resource_ids => ARRAY['a', bad_text()])} ],
	[ 'a resource_id for all', q{tasksched.schedule_tasks('note', '{1,2}', resource_id => bad_text())} ],
	[ 'params of an object',
		q{tasksched.schedule_tasks(jsonb_build_array(jsonb_build_object('action', 'note', 'params', bad_text())))} ],
	[ 'resource_id of an object', q{tasksched.schedule_tasks(jsonb_build_array(
		jsonb_build_object('action', 'note', 'resource_id', bad_text())))} ],
	[ 'a result', "tasksched.update_task('$updated', result => to_jsonb(bad_text()))" ],
	[ 'the name of an action', q{tasksched.register_action(bad_text(), 'note')} ],
	[ 'the name of an owner', q{bad_text()::tasksched.task_owner} ]);
run_bad("'$_'", '22021', "the result of $_") foreach qw(bad_result bad_inout bad_outcome);
run_bad(q{'run_sql', params => jsonb_build_object('sql',
	'SELECT tasksched.update_task(id, result => to_jsonb(public.bad_text())) FROM tasksched.current_task()')},
	'22021', 'a result that is staged');

my $progress = schedule($node, q{'bad_progress', 'progress'});
wait_until($node, "SELECT progress ->> 'note' LIKE '%?%' FROM tasksched.running_tasks WHERE task_id = '$progress'",
	'a note is masked');
open_gate($node, 'progress');
wait_for_status($node, $progress, 'complete', 'and its task completes');

# ---------------------------------------------------------------------------
# Names in another encoding, in shared catalogs and in shared memory
# ---------------------------------------------------------------------------
sql($node, qq{CREATE ROLE "J${e}rg"}, 'latin1');
my $oid = sql($node, qq{SELECT '"J${e}rg"'::regrole::oid}, 'latin1');
sql($node, "SELECT tasksched.grant_usage(rolname) FROM pg_roles WHERE oid = $oid");
my $foreign = sql($node, <<"EOT");
DO \$\$ BEGIN EXECUTE (SELECT format('SET ROLE %I', rolname) FROM pg_roles WHERE oid = $oid); END \$\$;
SELECT tasksched.schedule_task('note', run_at => '2100-01-01');
EOT
is(field_of($node, $foreign, "owner, owner::oid = $oid"),
	"J?rg (role $oid)|t", 'an owner whose name is no text here is masked and marked');
is(sql($node, "SELECT $oid\::regrole::tasksched.task_owner"), "J?rg (role $oid)", 'so is a role that is cast');
sql($node, 'CREATE ROLE "J?rg"');
is(sql($node, "SELECT ($oid\::regrole::tasksched.task_owner)::text::tasksched.task_owner::oid"),
	'0', 'and what it prints is no role of that name');
sql($node, 'DROP ROLE "J?rg"');
# pg_dump would name it in GRANT
sql($node, "SELECT tasksched.revoke_usage(rolname) FROM pg_roles WHERE oid = $oid");

sql($node, qq{CREATE DATABASE "b$e" ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0}, 'latin1');
sql($node, 'CREATE EXTENSION tasksched', "b\xe9");
wait_value($node, q{SELECT count(*) FROM tasksched.status WHERE database = 'b?'}, 1,
	'a database whose name is no text here is shown');

sql($node, qq{SELECT tasksched.register_action('h${e}ld', 'hold')}, 'latin1');
my $running = schedule($node, qq{'h${e}ld', 'drop'}, 'latin1');
wait_for_running($node, $running, 'a task runs in a database of another encoding', 'latin1');
my $in_use = sqlstate_is($node, 'DROP DATABASE latin1', '55006', 'which cannot be dropped');
like($in_use, qr/HINT: .*action "h\?ld"/, 'the hint masks what is no text here');
open_gate($node, 'drop', 'latin1');
wait_for_status($node, $running, 'complete', 'it completes', 'latin1');

# ---------------------------------------------------------------------------
# All of this can be dumped and restored
# ---------------------------------------------------------------------------
my $all = q{SELECT string_agg(concat_ws('|', id, status, error, error_details, owner), E'\n' ORDER BY id)
	FROM tasksched.tasks};
dump_and_restore('postgres', 'restored');
is(sql($node, $all, 'restored'), sql($node, $all), 'every task is there, as it was');

# ---------------------------------------------------------------------------
# Names that another encoding makes longer
# ---------------------------------------------------------------------------
my $long = $e x 63;
sql($node, <<"EOT", 'latin1');
CREATE ROLE "$long";
SELECT tasksched.grant_usage('$long');
SELECT tasksched.register_action('$long', 'note');
SET ROLE "$long";
SELECT tasksched.schedule_task('$long', 'kept', run_at => '2100-01-01');
RESET ROLE;
SELECT tasksched.revoke_usage('$long');
EOT
my $names = q{SELECT action, owner FROM tasksched.tasks WHERE resource_id = 'kept'};
my $count = 'SELECT count(*) FROM tasksched.actions';
is(sql($node, $names, 'latin1'), "$long|$long", 'names of 63 bytes');
foreach my $step ([ 'latin1', 'wide' ], [ 'wide', 'wider' ], [ 'wider', 'narrow' ])
{
	my ($from, $to) = @$step;

	dump_and_restore($from, $to);
	is(sql($node, $names, $to), "$long|$long", "$to: are what they were");
	is(sql($node, $count, $to), sql($node, $count, $from), "$to: no action is lost");
	my $id = schedule($node, qq{'$long', 'here'}, $to);
	wait_for_status($node, $id, 'complete', "$to: the action runs", $to);
	is(sql($node, "SELECT tasksched.register_action('$long', 'note')", $to), '', "$to: it can be registered again");
}
{
	# SQL_ASCII has bytes instead of characters
	local $ENV{PGCLIENTENCODING} = 'SQL_ASCII';
	dump_and_restore('wide', 'ascii');
	is(sql($node, $names, 'ascii'), "$long|$long", 'ascii: are what they were');
	my $id = schedule($node, qq{'$long', 'here'}, 'ascii');
	wait_for_status($node, $id, 'complete', 'ascii: the action runs', 'ascii');
}
my $hold = qq{SELECT tasksched.register_action('$long', 'hold')};
sql($node, $hold, 'wide');
my $shown = schedule($node, qq{'$long', 'long'}, 'wide');
wait_until($node, "SELECT action = '$long' FROM tasksched.running_tasks WHERE task_id = '$shown'",
	'running_tasks shows the whole name', 'wide');
open_gate($node, 'long', 'wide');
wait_for_status($node, $shown, 'complete', 'of a task that completes', 'wide');
is(sql($node, "SELECT tasksched.unregister_action('$long')", 'wide'), 't', 'such an action can be unregistered');
sqlstate_is($node, $hold, '22023', 'a new one cannot be that long', db => 'wide');
sqlstate_is($node, "SELECT tasksched.schedule_task('$long')", '22023', 'nor be scheduled', db => 'wide');
sqlstate_is($node, "SELECT '${long}x'::tasksched.task_owner", '22P02', 'an owner of 64 characters is none',
	db => 'wide');

# ---------------------------------------------------------------------------
# Values that a dump could not carry.  They are measured by their size in a dump; they
# are stored in far less space.
# ---------------------------------------------------------------------------
my $numbers = q{(SELECT jsonb_agg(n)
	FROM (SELECT jsonb_agg(1e100000) FROM generate_series(1, 40)) n(n), generate_series(1, %d))};
my $fits = sprintf($numbers, 100);
my $too_many = sprintf($numbers, 110);
my $too_escaped = q{to_jsonb(repeat(E'\x01', 61 * 1024 * 1024))};
my $large = sql($node, "SELECT tasksched.schedule_task('note', run_at => '2100-01-01', params => $fits)");
is(field_of($node, $large, 'jsonb_array_length(params)'), 100, 'params of 400,000,000 digits are accepted');
foreach my $case (
	[ 'params of 440,000,000 digits', "tasksched.schedule_task('note', params => $too_many)" ],
	[ 'params of 61 MB that are escaped', "tasksched.schedule_task('note', params => $too_escaped)" ],
	[ 'one of many params', "tasksched.schedule_tasks('note', ARRAY['1', $too_many])" ],
	[ 'params of an object',
		"tasksched.schedule_tasks(jsonb_build_array(jsonb_build_object('action', 'note', 'params', $too_many)))" ],
	[ 'a result', "tasksched.update_task('$large', result => $too_many)" ])
{
	my $error = sqlstate_is($node, "SELECT $case->[1]", '54000', "$case->[0]: too large");

	like($error, qr/value for (params|result) is too large.*DETAIL:.*400 MB.*HINT:/s,
		'with what is too large, and how much it may be');
}
sql($node, <<"EOT");
CREATE FUNCTION too_large(task tasksched.task) RETURNS tasksched.outcome LANGUAGE plpgsql AS \$\$
BEGIN
	RETURN tasksched.complete($too_many);
END \$\$;
CREATE FUNCTION too_large_result() RETURNS jsonb LANGUAGE sql AS \$\$ SELECT $too_many \$\$;
SELECT tasksched.register_action(a, a) FROM unnest('{too_large,too_large_result}'::text[]) a;
EOT
run_bad("'$_'", '54000', "a result of $_") foreach qw(too_large too_large_result);
# the limit is that of an index entry, which is compressed
sqlstate_is($node, q{SELECT tasksched.schedule_task('note', repeat('x', 1000000))}, '54000',
	'resource_id is bounded by its index');

# as much of an error's texts is kept as a dump can carry
sql($node, 'ALTER SYSTEM SET log_min_messages = fatal');
$node->reload;
wait_value($node, 'SHOW log_min_messages', 'fatal', 'what follows is not logged');
my $escaped = run_bad(
	q{'run_sql', params => jsonb_build_object('sql',
	$x$DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = repeat(E'\x01', 10000000), DETAIL = repeat('"', 16000000), }
	  . q{HINT = repeat('h', 16000000); END $$ $x$)},
	'P0001', 'an error that is escaped');
is(field_of($node, $escaped,
		q{octet_length(error), octet_length(error_details ->> 'detail'), octet_length(error_details ->> 'hint')}),
	'4793490|11184810|16000000', 'is cut by what it takes in a dump');
sql($node, 'ALTER SYSTEM RESET log_min_messages');
$node->reload;

# ---------------------------------------------------------------------------
# A role that was dropped, and another role with its name
# ---------------------------------------------------------------------------
my $name63 = 'n' x 63;
my $odd = 'odd (dropped role 1)';
my %tasks;
foreach my $role ('carl', $name63, $odd)
{
	$tasks{$role} = sql($node, <<"EOT", 'owners');
CREATE ROLE "$role";
DO \$\$ BEGIN PERFORM tasksched.grant_usage('$role'); END \$\$;
SET ROLE "$role";
SELECT tasksched.schedule_task('note', run_at => '2100-01-01');
EOT
}
my $carl = sql($node, q{SELECT 'carl'::regrole::oid}, 'owners');
my $oid63 = sql($node, "SELECT '$name63'::regrole::oid", 'owners');
sql($node, q{INSERT INTO tasksched.live
	SELECT (jsonb_populate_record(l, jsonb_build_object('id', gen_random_uuid(), 'owner', 'nobody yet'))).*
	FROM tasksched.live l LIMIT 1}, 'owners');
sql($node, 'ALTER ROLE carl RENAME TO carl_old', 'owners');
is(field_of($node, $tasks{carl}, 'owner', 'owners'), 'carl_old', 'a role that is renamed is followed');
sql($node, qq{SELECT tasksched.revoke_usage(r) FROM unnest('{carl_old,$name63,$odd}'::text[]) r}, 'owners');
sql($node, qq{DROP ROLE carl_old, $name63; CREATE ROLE carl; CREATE ROLE $name63}, 'owners');
sql($node, qq{CREATE ROLE "carl (dropped role $carl)"}, 'owners');

my $owners = q{SELECT owner, owner::oid <> 0, owner::regrole FROM tasksched.tasks ORDER BY id};
my @owners = ("carl (dropped role $carl)|f|-", "$name63 (dropped role $oid63)|f|-");
is(sql($node, "$owners LIMIT 2", 'owners'), join("\n", @owners), 'one that is dropped prints a mark');
is(field_of($node, $tasks{$odd}, 'owner, owner::oid <> 0', 'owners'), "$odd|t", 'one that has such a name is known');
is(sql($node, 'SELECT tasksched.adopt_tasks()', 'owners'), 0, 'adopt_tasks() leaves those of dropped roles alone');
sql($node, 'CREATE ROLE "nobody yet"', 'owners');
foreach my $step ([ 'owners', 'owners1' ], [ 'owners1', 'owners2' ])
{
	my ($from, $to) = @$step;

	dump_and_restore($from, $to);
	is(sql($node, "$owners LIMIT 3", $to),
		join("\n", @owners, "$odd|f|-"), "$to: no other role is taken for a dropped one");
	sql($node, q{UPDATE tasksched.live SET run_at = now()}, $to);
	is(sql($node, 'SELECT tasksched.adopt_tasks()', $to),
		sql($node, 'SELECT count(*) FROM tasksched.live', $from) + 0, "$to: all tasks are adopted");
	is(sql($node, "$owners LIMIT 3", $to), join("\n", @owners, "$odd|f|-"), "$to: and no owner is found for these");
	wait_value($node, 'SELECT reason, count(*) FROM tasksched.blocked_tasks GROUP BY 1', "$no_role|3",
		"$to: which are held", $to);
	wait_value($node, q{SELECT status, owner::oid <> 0 FROM tasksched.tasks WHERE owner::text = 'nobody yet'},
		'complete|t', "$to: a role that has come is", $to);
}

# functions that are restored without their owners
sql($node, 'CREATE ROLE author; ALTER FUNCTION note OWNER TO author', 'owners');
sql($node, q{SELECT tasksched.register_action('note', 'note')}, 'owners');
my $kept = schedule($node, q{'note', run_at => '2100-01-01'}, 'owners');
command_ok([ 'pg_dump', '-Fc', '-f', "$dir/owners.dump", $node->connstr('owners') ], 'a dump');
command_ok([ 'pg_restore', '--no-owner', '-d', $node->connstr('unowned'), "$dir/owners.dump" ],
	'restored with --no-owner');
sql($node, qq{SELECT tasksched.adopt_tasks(), tasksched.update_task('$kept', run_at => now())}, 'unowned');
wait_until($node, "SELECT reason ~ 'another owner' FROM tasksched.blocked_tasks WHERE id = '$kept'",
	'its actions are held', 'unowned');
sql($node, 'SELECT tasksched.register_action(action, function) FROM tasksched.actions WHERE function_exists',
	'unowned');
wait_for_status($node, $kept, 'complete', 'until they are registered again', 'unowned');

# the mark of a dropped role in a binary COPY, and names that only resemble it
sql($node, 'CREATE TABLE owned (owner tasksched.task_owner)', 'owners');
my $binary = "$dir/owners.data";
sql($node,
	"\\copy (SELECT owner FROM tasksched.tasks) TO '$binary' (FORMAT binary)\n"
	  . "\\copy owned FROM '$binary' (FORMAT binary)",
	'owners');
is(sql($node, q{SELECT owner::text, owner::oid FROM owned WHERE owner::text LIKE '%(dropped role %' ORDER BY 1},
		'owners'),
	join("\n", map { s/\|f\|-/|0/r } @owners, "$odd|0"), 'a binary COPY keeps the mark');
is( sql($node,
		q{SELECT string_agg((x::tasksched.task_owner::oid <> 0)::text || (x::tasksched.task_owner::text = x), ' '
			ORDER BY n)
		FROM unnest('{carl (dropped role),carl (dropped role 1) ,carl(dropped role 1),carl (dropped role x),
			carl (dropped role 12345678901),(dropped role 1),"1)",)}'::text[]) WITH ORDINALITY x(x, n)}, 'owners'),
	join(' ', ('falsetrue') x 8), 'names that only resemble it are names');
sql($node, 'CREATE ROLE "(dropped role 1)"', 'owners');
is(sql($node, q{SELECT '(dropped role 1)'::tasksched.task_owner::oid <> 0,
		' (dropped role 1)'::tasksched.task_owner::oid}, 'owners'),
	't|0', 'and looked up');

# ---------------------------------------------------------------------------
# Order and hash don't depend on names
# ---------------------------------------------------------------------------
sql($node, q{CREATE ROLE "role a"; CREATE ROLE "role b"; CREATE ROLE "role c"}, 'owners');
sql($node, <<'EOT', 'owners');
DELETE FROM owned;
ALTER TABLE owned ADD PRIMARY KEY (owner);
CREATE INDEX owned_hash ON owned USING hash (owner);
INSERT INTO owned SELECT ('role ' || chr(97 + g))::tasksched.task_owner FROM generate_series(0, 5) g;
INSERT INTO owned SELECT ('unknown ' || g)::tasksched.task_owner FROM generate_series(1, 1000) g;
ALTER ROLE "role a" RENAME TO "role z";
ALTER ROLE "role c" RENAME TO "a role";
EOT
sqlstate_is($node, q{INSERT INTO owned VALUES ('role z')}, '23505', 'a unique index knows a role that was renamed',
	db => 'owners');
my $found = q{SELECT count(*) FROM owned WHERE owner = 'role z'};
is(sql($node, "SET enable_seqscan = off; SET enable_indexscan = $_; SET enable_bitmapscan = $_; $found", 'owners'),
	1, "index scans $_: it is found by its new name")
  foreach qw(on off);
is(sql($node, q{SELECT count(*) FROM owned WHERE owner = 'role a'}, 'owners'), 0, 'not by its old one');
sql($node, 'DROP ROLE "role z"', 'owners');
is(sql($node, qq{SET enable_$_ = off; SELECT count(DISTINCT o.owner), count(*)
		FROM owned o JOIN owned p ON o.owner OPERATOR(tasksched.=) p.owner}, 'owners'),
	'1006|1006', "join and group without $_")
  foreach qw(hashjoin mergejoin);
is(sql($node, q{SELECT count(*) FROM (SELECT owner FROM owned GROUP BY owner) o}, 'owners'), 1006, 'a group for each');
is(sql($node, q{SELECT bool_and(a.owner OPERATOR(tasksched.<) b.owner) FROM owned a, owned b
		WHERE a.owner::oid <> 0 AND b.owner::text LIKE 'unknown%'}, 'owners'),
	't', 'known roles come first');
my $amcheck = $node->config_data('--sharedir') . '/extension/amcheck.control';
SKIP: {
	skip 'no amcheck', 1 unless -e $amcheck;
	sql($node, 'CREATE EXTENSION amcheck', 'owners');
	is(sql($node, q{SELECT bt_index_parent_check('owned_pkey', true)}, 'owners'), '', 'amcheck finds nothing');
}

# ---------------------------------------------------------------------------
# What complete() keeps of earlier stages: the result, but not the error
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION staged(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
BEGIN
	IF first_launch THEN
		RETURN ROW('scheduled', '{"stage": 1}', 'not yet', NULL)::tasksched.outcome;
	ELSIF task.error IS DISTINCT FROM 'not yet' THEN
		RAISE EXCEPTION 'the error of the stage was %', task.error;
	ELSIF task.resource_id = 'fail' THEN
		RETURN tasksched.fail();
	ELSIF task.resource_id = 'said' THEN
		RETURN ROW('complete', NULL, 'but', NULL)::tasksched.outcome;
	ELSIF task.resource_id = 'updated' THEN
		PERFORM tasksched.update_task(task.id, error => 'though');
	END IF;
	RETURN tasksched.complete();
END $$;
CREATE PROCEDURE committed(task tasksched.task, first_launch boolean, INOUT outcome tasksched.outcome)
LANGUAGE plpgsql AS $$
BEGIN
	IF first_launch THEN
		outcome := ROW('active', NULL, 'not yet', NULL)::tasksched.outcome;
	ELSIF task.resource_id = 'committed' THEN
		PERFORM tasksched.update_task(task.id, error => 'warned');
		COMMIT;
		PERFORM tasksched.update_task(task.id, result => '"done"');
		COMMIT;
	END IF;
END $$;
SELECT tasksched.register_action(a, a) FROM unnest('{staged,committed}'::text[]) a;
EOT
foreach my $case (
	[ 'staged', 'plain', 'complete', '{"stage": 1}|' ],
	[ 'staged', 'said', 'complete', '{"stage": 1}|but' ],
	[ 'staged', 'updated', 'complete', '{"stage": 1}|though' ],
	[ 'staged', 'fail', 'failed', '{"stage": 1}|not yet' ],
	[ 'committed', 'plain', 'complete', '|' ],
	[ 'committed', 'committed', 'complete', '"done"|warned' ])
{
	my ($action, $resource, $status, $expected) = @$case;
	my $id = schedule($node, "'$action', '$resource'");

	wait_for_status($node, $id, $status, "$action, $resource: $status");
	is(field_of($node, $id, 'result, error'), $expected, 'with what this launch says, and the result');
}

$node->stop;
check_log($node);
done_testing();
