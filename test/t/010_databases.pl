# Commands that need a database to themselves.  While tasksched's processes are idle
# there, the commands succeed as if there were none.  While a task runs there, they
# fail as they do for any session, and name the task.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedSession;
use TaskschedTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

# few slots, so that a lost one shows
my $node = new_node('databases', extension => 0, conf => <<'EOT');
max_worker_processes = 8
tasksched.max_running_tasks = 4
EOT
my $id;

mkdir $node->basedir . '/space' or die $!;
sql($node, 'CREATE TABLESPACE space LOCATION ' . "'" . $node->basedir . "/space'");
sql($node, <<'EOT');
CREATE ROLE boss LOGIN CREATEDB;
CREATE ROLE poor LOGIN;
CREATE ROLE other LOGIN CREATEDB;
GRANT CREATE ON TABLESPACE space TO boss;
CREATE DATABASE base;
EOT
create_fixtures($node, 'base');
sql($node, q{SELECT tasksched.grant_usage('boss')}, 'base');
sql($node, 'ALTER DATABASE base IS_TEMPLATE true; CREATE DATABASE ours TEMPLATE base OWNER boss');

sub ours_in
{
	return join(' ',
		sort { $a <=> $b } pids_of($node, 'tasksched scheduler', @_), pids_of($node, 'tasksched worker', @_));
}

# A scheduler and an idle worker are in the database: a task has just run there
sub be_idle
{
	my ($db) = @_;

	wait_for_status($node, schedule($node, q{'note'}, $db), 'complete', "a task runs in $db", $db);
	return;
}

# A command that runs in the background, and its stderr
sub start_command
{
	my ($user, $sql) = @_;
	my $command = { err => '' };

	$command->{run} = IPC::Run::start([ 'psql', '-XAtq', '-U', $user, '-d', $node->connstr('postgres'), '-c', $sql ],
		'2>', \$command->{err});
	return $command;
}

sub errors_of
{
	my ($command) = @_;

	$command->{run}->finish;
	return $command->{err};
}

# Commands that must succeed.  At least one of them must do so at once: 5 s is how long
# the server waits for a session that does not exit.
sub at_once
{
	my ($user, @commands) = @_;
	my $best = 1000;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $command (@commands)
	{
		my ($db, $sql) = @$command;
		be_idle($db);
		my $start = time;
		my (undef, $stderr) = try_sql($node, $sql, user => $user);
		my $took = time - $start;
		is($stderr, '', "idle: $sql");
		$best = $took if $took < $best;
	}
	ok($best < 4, 'at once') or diag("best of all: $best s");
	return;
}

# ---------------------------------------------------------------------------
# Idle
# ---------------------------------------------------------------------------
at_once('boss',
	[ 'ours', 'ALTER DATABASE ours RENAME TO theirs' ],
	[ 'theirs', 'DO $$ BEGIN ALTER DATABASE theirs RENAME TO ours; END $$' ]);
at_once('boss', [ 'ours', 'ALTER DATABASE ours SET TABLESPACE space' ]);
at_once(undef, [ 'ours', 'ALTER DATABASE ours SET TABLESPACE pg_default' ]);
at_once('boss',
	[ 'ours', 'CREATE DATABASE copy1 TEMPLATE ours STRATEGY wal_log' ],
	[ 'ours', 'CREATE DATABASE copy2 TEMPLATE ours STRATEGY file_copy' ]);
at_once('boss', [ 'copy1', 'DROP DATABASE copy1' ], [ 'copy2', 'DROP DATABASE copy2 WITH (FORCE)' ]);
be_idle('ours');
local $ENV{PGHOST} = $node->host;
local $ENV{PGPORT} = $node->port;
command_ok([ 'createdb', '-U', 'boss', '-T', 'ours', 'copy' ], 'createdb -T');
be_idle('copy');
command_ok([ 'dropdb', '-U', 'boss', 'copy' ], 'dropdb');

# a scheduler that is about to start does not get in between
foreach my $n (1 .. 5)
{
	my (undef, $stderr) = try_sql($node, "CREATE DATABASE copy TEMPLATE ours;\nDROP DATABASE copy;\n", user => 'boss');
	is($stderr, '', "a copy is dropped as soon as it is made ($n)");
}

# a copy of the database that the session is connected to
be_idle('ours');
(undef, my $refused) = try_sql($node, 'CREATE DATABASE copy TEMPLATE ours', db => 'ours', user => 'boss');
is($refused, '', 'a copy is made from within');
sql($node, 'DROP DATABASE copy');

# the default template
sql($node, 'CREATE EXTENSION tasksched', 'template1');
scheduler_pid($node, 'template1');
sql($node, 'CREATE DATABASE plain');
scheduler_pid($node, 'plain');
sql($node, 'DROP DATABASE plain');
sql($node, 'DROP EXTENSION tasksched', 'template1');

# ---------------------------------------------------------------------------
# A command that fails leaves the scheduler running, or lets it start again
# ---------------------------------------------------------------------------
be_idle('ours');
my $before = ours_in('ours');
sql($node, 'GRANT CREATE ON TABLESPACE space TO poor');
foreach (
	[ 'poor', 'DROP DATABASE ours' ],
	[ 'poor', 'DROP DATABASE ours WITH (FORCE)' ],
	[ 'poor', 'ALTER DATABASE ours RENAME TO mine' ],
	[ 'poor', 'ALTER DATABASE ours SET TABLESPACE space' ],
	[ 'other', 'CREATE DATABASE mine TEMPLATE ours' ],
	[ 'poor', 'CREATE DATABASE mine TEMPLATE base' ])
{
	sqlstate_is($node, $_->[1], '42501', "$_->[0] may not: $_->[1]", user => $_->[0]);
}
sqlstate_is($node, "BEGIN;\nDROP DATABASE ours", '25001', 'nor may anybody in a transaction block');
sqlstate_is($node, "BEGIN READ ONLY;\nALTER DATABASE ours RENAME TO mine", '25006', 'or in one that is read-only');
sqlstate_is($node, 'DROP DATABASE ours', '55006', 'or while being in the database', db => 'ours');
sql($node, 'ALTER ROLE boss NOCREATEDB');
sqlstate_is($node, 'ALTER DATABASE ours RENAME TO mine', '42501', 'nor an owner without CREATEDB rename',
	user => 'boss');
sqlstate_is($node, 'CREATE DATABASE mine TEMPLATE ours', '42501', 'or copy', user => 'boss');
sql($node, 'ALTER ROLE boss CREATEDB');
is(ours_in('ours'), $before, 'our processes are still the same');

foreach my $n (1 .. 2)
{
	sql($node, 'BEGIN; ALTER DATABASE ours RENAME TO mine; ROLLBACK');
	be_idle('ours');
	sqlstate_is($node, 'ALTER DATABASE ours RENAME TO base', '42P04', "a command is rolled back, another fails ($n)");
	my $took = wait_value($node,
		q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'ours' AND backend_type = 'tasksched scheduler'},
		1, 'the scheduler comes back');
	cmp_ok($took, '<', 10, 'each time soon');
}

# ---------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------
sql($node, 'CREATE DATABASE used TEMPLATE template0');
my $user = TaskschedSession->new($node, 'used');
my $held = schedule($node, q{'hold', 'gate'}, 'ours');
my $held_too = schedule($node, q{'hold', 'gate'}, 'base');
my $pid = worker_pid($node, $held, 'ours');
my $pid_too = worker_pid($node, $held_too, 'base');
my $drop = start_command('boss', 'DROP DATABASE ours');
my $copy = start_command('other', 'CREATE DATABASE copy TEMPLATE base');
my $drop_used = start_command(sql($node, 'SELECT current_user'), 'DROP DATABASE used');
my $stderr = errors_of($drop);
like($stderr, qr/database "ours" is being accessed by other users/, 'running: DROP DATABASE fails');
like($stderr, qr/HINT: .*\Q$held\E \(action "hold", PID $pid\).*cancel_task.*WITH \(FORCE\)/, 'and names the task');
$stderr = errors_of($copy);
like($stderr, qr/source database "base" is being accessed by other users/, 'so does a copy');
like($stderr, qr/HINT: .*\Q$held_too\E \(action "hold", PID $pid_too\).*cancel_task/, 'and names the task');
unlike($stderr, qr/FORCE/, 'it has no FORCE');
$stderr = errors_of($drop_used);
like($stderr, qr/database "used" is being accessed by other users/,
	'where somebody else is connected, DROP DATABASE fails as well');
unlike($stderr, qr/HINT/, 'which is no task');
$user->quit;
be_idle('ours');
is(worker_pid($node, $held, 'ours'), $pid, 'the task runs on, beside others');
open_gate($node, 'gate', 'base');

# as for any session, it is enough that the task ends in time
my $rename = start_command('boss', 'ALTER DATABASE ours RENAME TO renamed');
wait_value($node, q{SELECT count(*) FROM pg_locks
	WHERE locktype = 'object' AND classid = 'pg_database'::regclass AND mode = 'AccessExclusiveLock' AND granted},
	1, 'ALTER DATABASE waits');
signal_process('INT', $pid);
is(errors_of($rename), '', 'it goes on when the task has ended');
is(field_of($node, $held, q{status, error_details ->> 'sqlstate'}, 'renamed'), 'failed|57014', 'which was cancelled');
be_idle('renamed');

# FORCE requires the same rights as for any session
$held = schedule($node, q{'hold', 'force'}, 'renamed');
wait_for_running($node, $held, 'a task of a superuser runs', 'renamed');
$stderr = sqlstate_is($node, 'DROP DATABASE renamed WITH (FORCE)', '42501', 'an owner who is not may not end it',
	user => 'boss');
like($stderr, qr/HINT: .*\Q$held\E \(action "hold", PID \d+\).*cancel_task/, 'and is told what it is');
sql($node, "SELECT tasksched.cancel_task('$held')", 'renamed');
wait_for_status($node, $held, 'cancelled', 'it is cancelled', 'renamed');
wait_value($node, 'SELECT count(*) FROM tasksched.running_tasks', 0, 'and has ended', 'renamed');
$held = sql($node, q{SET ROLE boss; SELECT tasksched.schedule_task('hold', 'force')}, 'renamed');
wait_for_running($node, $held, 'a task of the owner runs', 'renamed');
(undef, $stderr) = try_sql($node, 'DROP DATABASE renamed WITH (FORCE)', user => 'boss');
is($stderr, '', 'the owner may end it');

# again and again: tasks that ran there leave nothing behind
foreach my $n (1 .. 5)
{
	sql($node, 'CREATE DATABASE victim TEMPLATE base');
	my @ids = map { schedule($node, q{'hold', 'never'}, 'victim') } 1 .. 4;
	wait_for_running($node, \@ids, "four tasks run ($n)", 'victim');
	sql($node, 'DROP DATABASE victim WITH (FORCE)');
}
be_idle('base');

# ---------------------------------------------------------------------------
# A database that allows no connections, and one that allows very few
# ---------------------------------------------------------------------------
sql($node, 'CREATE DATABASE ours TEMPLATE base');
$held = schedule($node, q{'hold', 'closed'}, 'ours');
$pid = worker_pid($node, $held, 'ours');
my $inside = TaskschedSession->new($node, 'ours');
sql($node, 'ALTER DATABASE ours ALLOW_CONNECTIONS false');
wait_value($node,
	q{SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE datname = 'ours' AND backend_type ~ '^tasksched'},
	$pid, 'ALLOW_CONNECTIONS false: all of ours leave but the worker that runs a task');
my $later = $inside->query(q{SELECT tasksched.schedule_task('note')});
is($inside->query("SELECT reason FROM tasksched.blocked_tasks WHERE id = '$later'"),
	'the database does not allow connections', 'who is still there can schedule a task, and read why it waits');
$inside->quit;
sql($node, 'CREATE DATABASE another TEMPLATE base');
be_idle('another');
$before = scheduler_pid($node, 'another');
signal_process('INT', $pid);
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'ours'}, 0, 'it leaves after that');
is(scheduler_pid($node, 'another'), $before, 'another database is not disturbed');
sql($node, 'ALTER DATABASE ours ALLOW_CONNECTIONS true');
wait_for_status($node, $later, 'complete', 'true again: the tasks go on', 'ours');
is(field_of($node, $held, q{status, error_details ->> 'sqlstate', launch}, 'ours'),
	'failed|57014|1', 'what ended meanwhile has its outcome');
sql($node, 'ALTER DATABASE ours CONNECTION LIMIT 0');
$node->restart;
$id = sql($node, q{SET ROLE boss; SELECT tasksched.schedule_task('note')}, 'ours');
wait_for_status($node, $id, 'complete', 'CONNECTION LIMIT does not count workers', 'ours');

$node->stop;
check_log($node);
done_testing();
