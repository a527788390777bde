# Dumps in all formats, restored into a server in which the extension runs and the
# role of one owner is missing.  Copies by TEMPLATE, logical replication and base
# backup.  Point-in-time recovery.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $elsewhere = 'the task comes from another installation; see adopt_tasks()';
my $no_role = 'the role that owns the task does not exist';

# all tasks, whatever their status
my $all_ids = q{SELECT count(*), md5(string_agg(id::text, ',' ORDER BY id)) FROM tasksched.tasks};

my $origin = new_node('origin', streaming => 1, start => 0, conf => "wal_level = logical\n");
$origin->enable_archiving;
$origin->start;
create_fixtures($origin);
my $target = new_node('target', extension => 0, conf => "tasksched.stuck_after = '1s'\n");
my $dir = PostgreSQL::Test::Utils::tempdir();
my $me = sql($origin, 'SELECT current_user');

# ---------------------------------------------------------------------------
# Tasks of every status, one of them owned by a role that will be missing, and some
# that run while the dumps are made
# ---------------------------------------------------------------------------
sql($origin, <<'EOSQL');
CREATE ROLE missing;
SELECT tasksched.grant_usage('missing');
SET ROLE missing;
SELECT tasksched.schedule_task('note', 'missing', '2100-01-01');
RESET ROLE;
SELECT tasksched.schedule_task('note', 'later', '2100-01-01');
SELECT tasksched.schedule_task('note', 'done');
SELECT tasksched.schedule_task('raising', 'broken', params => '{"message": "no"}');
SELECT tasksched.cancel_task(tasksched.schedule_task('note', 'stopped'));
EOSQL
my $active = schedule($origin, q{'hold', 'active'});
wait_for_running($origin, $active, 'a task is active');
wait_value($origin, q{SELECT count(*) FROM tasksched.tasks WHERE status IN ('complete', 'failed')}, 2,
	'others are finished');
flush_wal($origin);
$origin->backup('backup');
sql($origin, q{SELECT count(*) FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{300}'))});

my $plain = "$dir/plain.sql";
my $schema = "$dir/schema.sql";
my $cluster = "$dir/cluster.sql";
command_ok([ 'pg_dump', '-f', $plain, $origin->connstr('postgres') ], 'a dump of the database');
command_ok([ 'pg_dump', '-Fd', '-j2', '-f', "$dir/directory", $origin->connstr('postgres') ], 'a parallel one');
command_ok([ 'pg_dump', '-Fc', '-f', "$dir/custom", $origin->connstr('postgres') ], 'one in the custom format');
command_ok([ 'pg_dump', '-n', 'tasksched', '-f', $schema, $origin->connstr('postgres') ], 'one of the schema alone');
command_ok([ 'pg_dumpall', '-d', $origin->connstr('postgres'), '-f', $cluster ], 'one of the cluster');
my ($definitions, $warnings) = run_command([ 'pg_dump', '--schema-only', $origin->connstr('postgres') ]);
like($definitions, qr/^CREATE EXTENSION IF NOT EXISTS tasksched/m, 'one of the definitions has the extension');
unlike($definitions, qr/^COPY/m, 'but no tasks');
is($warnings, '', 'pg_dump has nothing to warn of');
wait_value($origin, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'complete'}, 301, 'meanwhile tasks run');
my $ids = sql($origin, $all_ids);

# Make the role missing: the dump of the cluster would create it
my $text = slurp_file($cluster);
$text =~ s/^(CREATE|ALTER) ROLE (missing|$me)\b.*$//mg;
unlink $cluster;
append_to_file($cluster, $text);

# ---------------------------------------------------------------------------
# After the restore nothing is lost, and nothing runs before it is adopted
# ---------------------------------------------------------------------------
# Restore with a command.  Errors may only be about the role that is missing, or match
# the exception.
sub restore
{
	my ($db, $command, $exception) = @_;
	my (undef, $stderr) = run_command($command);
	my @errors = grep { /ERROR/ && !/role "missing" does not exist/ } split /\n/, $stderr;

	@errors = grep { !/$exception/ } @errors if $exception;
	is(join("\n", @errors), '', "$db: no other error than of the missing role");
	return;
}

sub check_restored
{
	my ($db) = @_;
	my $live = sql($target, 'SELECT count(*) FROM tasksched.live', $db);

	is(sql($target, $all_ids, $db), $ids, "$db: every task is there, once");
	is(sql($target, q{SELECT resource_id, status, owner::text, owner::oid = 0 FROM tasksched.tasks
			WHERE resource_id IS NOT NULL ORDER BY 1}, $db),
		"active|active|$me|f\nbroken|failed|$me|f\ndone|complete|$me|f\nlater|scheduled|$me|f\n"
		  . "missing|scheduled|missing|t\nstopped|cancelled|$me|f",
		"$db: as it was, an unknown owner keeps its name");
	sql($target,
		q{SELECT tasksched.update_task(id, run_at => now()) FROM tasksched.tasks WHERE status = 'scheduled'}, $db);
	my $here = schedule($target, q{'note', 'here'}, $db);
	wait_for_status($target, $here, 'complete', "$db: a task that is scheduled here runs", $db);
	is(sql($target, 'SELECT reason, count(*) FROM tasksched.blocked_tasks GROUP BY 1', $db), "$elsewhere|$live",
		"$db: all that were restored are held");
	is(sql($target, 'SELECT tasksched.adopt_tasks()', $db), $live, "$db: until they are adopted");
	wait_for_running($target, $active, "$db: then they run", $db);
	open_gate($target, 'active', $db);
	wait_value($target, q{SELECT resource_id FROM tasksched.live}, 'missing',
		"$db: all but that of the missing role", $db);
	is(sql($target, 'SELECT reason FROM tasksched.blocked_tasks', $db), $no_role, "$db: which says so");
	is(sql($target, "SELECT launch, first_launch FROM runs WHERE id = '$active'", $db), '2|f',
		"$db: the active one runs in a launch that is not its first");
	is(sql($target, q{SELECT count(*), count(DISTINCT id) FROM runs}, $db), '304|304', "$db: the others once");
	return;
}

sql($target, "CREATE DATABASE $_") foreach qw(plain custom directory schema replica);
restore('plain', [ 'psql', '-X', '-q', '-f', $plain, $target->connstr('plain') ]);
restore($_, [ 'pg_restore', '-j2', '-d', $target->connstr($_), "$dir/$_" ]) foreach qw(custom directory);
# the schema alone is restored where the extension and the functions exist
create_fixtures($target, 'schema');
sql($target, 'SELECT tasksched.unregister_action(action) FROM tasksched.actions', 'schema');
restore('schema', [ 'psql', '-X', '-q', '-f', $schema, $target->connstr('schema') ],
	'schema "tasksched" already exists');
# the rows that the tasks have left are not in that dump
sql($target, q{INSERT INTO runs (id, launch, first_launch)
	SELECT id, 1, true FROM tasksched.finished WHERE action = 'note' AND status = 'complete'}, 'schema');
restore('cluster', [ 'psql', '-X', '-q', '-f', $cluster, $target->connstr('postgres') ]);
my $scan = sql($target, q{SELECT last_scan FROM tasksched.status WHERE database = 'plain'}, 'plain');
sql($target, 'SELECT tasksched.resume_scheduler()', 'plain');
wait_until($target, qq{SELECT last_scan > '$scan' FROM tasksched.status WHERE database = 'plain'},
	'a scan after the restore', 'plain');
unlike(log_since($target, 0), qr/may be stuck/, 'a held task is not taken for a stuck one');
is(sql($target, 'SELECT count(*) FROM tasksched.stuck_tasks', 'plain'), 0, 'nor in stuck_tasks');
check_restored($_) foreach qw(plain custom directory schema postgres);

sql($target, q{CREATE ROLE missing; SELECT tasksched.grant_usage('missing')}, 'plain');
is(sql($target, 'SELECT tasksched.adopt_tasks()', 'plain'), 1, 'when there is such a role, adopt_tasks() finds it');
wait_value($target, q{SELECT status, owner::oid <> 0 FROM tasksched.tasks WHERE resource_id = 'missing'}, 'complete|t',
	'and its task runs', 'plain');

# ---------------------------------------------------------------------------
# A dump by the owner of a database who is not a superuser
# ---------------------------------------------------------------------------
sql($origin, 'CREATE ROLE dumper LOGIN');
sql($origin, 'CREATE DATABASE owned OWNER dumper');
sql($origin, 'CREATE EXTENSION tasksched', 'owned');
my @dump = ('pg_dump', '-U', 'dumper', '-f', "$dir/owned.sql", $origin->connstr('owned'));
command_fails_like(\@dump, qr/permission denied for schema tasksched/, 'a dump by the owner of the database fails');
command_ok([ @dump, '-N', 'tasksched' ], 'but not one without the tasks');
sql($origin, 'GRANT pg_read_all_data TO dumper');
command_fails_like(\@dump, qr/row-level security/, 'nor is the right to read all data enough');
sql($origin, 'ALTER ROLE dumper BYPASSRLS');
command_ok(\@dump, 'a role that bypasses row-level security can dump them');
like(slurp_file("$dir/owned.sql"), qr/^COPY tasksched\.live/m, 'which has them');

# ---------------------------------------------------------------------------
# CREATE DATABASE ... TEMPLATE
# ---------------------------------------------------------------------------
my $copied = schedule($target, q{'note', 'copied', '2100-01-01'}, 'custom');
sql($target, 'SELECT tasksched.pause_scheduler()', 'custom');
wait_value($target, q{SELECT count(*) FROM pg_stat_activity
	WHERE datname = 'custom' AND backend_type = 'tasksched worker' AND state <> 'idle'}, 0, 'nothing runs');
sql($target, 'CREATE DATABASE copy TEMPLATE custom');
is(sql($target, "SELECT tasksched.update_task('$copied', run_at => now())", 'copy'), 't', 'a copied task becomes due');
my $here = schedule($target, q{'note', 'in the copy'}, 'copy');
wait_for_status($target, $here, 'complete', 'a copied database is not paused with its template', 'copy');
is(sql($target, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$copied'", 'copy'),
	$elsewhere, 'its copied tasks are held');
sql($target, 'SELECT tasksched.adopt_tasks()', 'copy');
wait_for_status($target, $copied, 'complete', 'until they are adopted', 'copy');
is(status_of($target, $copied, 'custom'), 'scheduled', 'which changes nothing in the template');

# ---------------------------------------------------------------------------
# Logical replication of all tables
# ---------------------------------------------------------------------------
sql($origin, 'CREATE PUBLICATION everything FOR ALL TABLES');
append_to_file("$dir/definitions.sql", $definitions);
restore('replica', [ 'psql', '-X', '-q', '-f', "$dir/definitions.sql", $target->connstr('replica') ]);
sql($target, q{CREATE SUBSCRIPTION copy CONNECTION '} . $origin->connstr . q{ dbname=postgres' PUBLICATION everything},
	'replica');
wait_until($target, q{SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel}, 'every table is copied', 'replica');
my $soon = schedule($origin, q{'note', 'replicated', delay => '0.5 s'});
my $failing = schedule($origin, q{'raising', params => '{"message": "no"}'});
wait_for_status($origin, $_, $_ eq $soon ? 'complete' : 'failed', 'a task runs at the publisher')
  foreach ($soon, $failing);
wait_for_status($target, $soon, 'complete', 'its outcome arrives at the subscriber', 'replica');
wait_for_status($target, $failing, 'failed', 'so does that of another', 'replica');
sql($origin, "SELECT tasksched.retry_task('$failing')");
wait_value($origin, "SELECT status, launch FROM tasksched.tasks WHERE id = '$failing'", 'failed|2', 'it is retried');
wait_value($target, "SELECT status, launch FROM tasksched.tasks WHERE id = '$failing'", 'failed|2',
	'that arrives, too', 'replica');
sql($origin, 'SELECT tasksched.pause_scheduler()');
my $due = schedule($origin, q{'note', 'due'});
wait_for_status($target, $due, 'scheduled', 'a due task arrives', 'replica');
$here = schedule($target, q{'note', 'here'}, 'replica');
wait_for_status($target, $here, 'complete',
	'tasks that are scheduled here run, though the publisher is paused', 'replica');
is(sql($target, q{SELECT resource_id, reason FROM tasksched.blocked_tasks ORDER BY 1}, 'replica'),
	"active|$elsewhere\ndue|$elsewhere", 'those that were replicated are held');
is(sql($target, "SELECT count(*), count(DISTINCT id) FROM runs WHERE id IN ('$soon', '$due', '$here')", 'replica'),
	'2|2', 'and have not run here');
is(sql($origin, $all_ids), sql($target, "$all_ids WHERE id <> '$here'", 'replica'), 'every task is there, once');
sql($target, 'DROP SUBSCRIPTION copy', 'replica');
sql($target, 'SELECT tasksched.adopt_tasks()', 'replica');
wait_for_status($target, $due, 'complete', 'after the subscription they can be adopted', 'replica');
sql($origin, 'SELECT tasksched.resume_scheduler()');
wait_for_status($origin, $due, 'complete', 'at the publisher it runs as well');

# ---------------------------------------------------------------------------
# Point-in-time recovery from an archive: what was active goes on, and what has
# finished since then runs again
# ---------------------------------------------------------------------------
my $then = schedule($origin, q{'hold', 'then'});
wait_for_running($origin, $then, 'a task is active');
my $before = schedule($origin, q{'note', 'before'});
wait_for_status($origin, $before, 'complete', 'another has finished');
sql($origin, q{SELECT pg_create_restore_point('then')});
open_gate($origin, 'then');
wait_for_status($origin, $then, 'complete', 'after the point in time the first finishes');
my $after = schedule($origin, q{'note', 'after'});
wait_for_status($origin, $after, 'complete', 'and another runs');
my $segment = sql($origin, 'SELECT pg_walfile_name(pg_switch_wal())');
wait_until($origin, "SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver", 'all is archived');

my $past = PostgreSQL::Test::Cluster->new('past');
$past->init_from_backup($origin, 'backup', has_restoring => 1, standby => 0);
$past->append_conf('postgresql.conf',
	"archive_mode = off\nrecovery_target_name = 'then'\nrecovery_target_action = 'promote'\n");
$past->start;
wait_for_running($past, [ $then, $active ], 'recovered: what was active is resumed');
is(sql($past, qq{SELECT resource_id, status, launch FROM tasksched.tasks
		WHERE id IN ('$then', '$before', '$after') ORDER BY id}),
	"then|active|2\nbefore|complete|1", 'what had finished has, what came later has not been');
open_gate($past, 'then');
wait_for_status($past, $then, 'complete', 'it completes');
is(sql($past, "SELECT launch, first_launch FROM runs WHERE id = '$then'"), '2|f', 'in a launch that is not its first');
$past->stop;

# ---------------------------------------------------------------------------
# A base backup, started while the original still runs: its tasks are held once it
# has been given another identity
# ---------------------------------------------------------------------------
my $double = PostgreSQL::Test::Cluster->new('double');
$double->init_from_backup($origin, 'backup');
$double->append_conf('postgresql.conf', "archive_mode = off\ntasksched.enabled = off\n");
$double->start;
sql($double, 'SELECT tasksched._init()');
$double->append_conf('postgresql.conf', "tasksched.enabled = on\n");
$double->restart;
$here = schedule($double, q{'note', 'here'});
wait_for_status($double, $here, 'complete', 'a task that is scheduled here runs');
is(sql($double, q{SELECT resource_id, reason FROM tasksched.blocked_tasks}),
	"active|$elsewhere", 'those of the original are held');
is(sql($double, "SELECT launch FROM tasksched.tasks WHERE id = '$active'"), 1, 'and not launched');
$double->stop;

$origin->stop;
$target->stop;
check_log($_) foreach ($origin, $target, $past, $double);
done_testing();
