# What changes while tasks exist: their owners, functions, tables and processes, and
# the settings.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('changes');
my ($id, @ids);

sub blocked_is
{
	my ($task, $reason, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$task'", $reason, $name);
	return;
}

# No commit announces that the reason of a block is gone: have the scheduler look
sub look_again { sql($node, 'SELECT tasksched.resume_scheduler()'); return; }

# A session that runs in the background
sub start_session
{
	my $session = { err => '', out => '' };

	$session->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), map { ('-c', $_) } @_ ],
		'>', \$session->{out}, '2>', \$session->{err});
	return $session;
}

sub end_session
{
	my ($session, $name, $expected) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session->{run}->finish;
	is($session->{err}, '', $name);
	is($session->{out}, $expected, "$name: what came of it") if defined $expected;
	return;
}

# ---------------------------------------------------------------------------
# Owners of tasks
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE ROLE mover NOLOGIN;
CREATE ROLE heir NOLOGIN;
SELECT tasksched.grant_usage('mover');
CREATE SCHEMA work AUTHORIZATION mover;
SET ROLE mover;
CREATE FUNCTION work.who() RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(current_user::text)';
RESET ROLE;
SELECT tasksched.register_action('who', 'work.who');
EOT
sub as_role
{
	my ($role, $arguments) = @_;

	return sql($node, "SET ROLE $role; SELECT tasksched.schedule_task($arguments)");
}

my $finished = as_role('mover', q{'who'});
wait_for_status($node, $finished, 'complete', 'a task of a role is finished');
my $running = as_role('mover', q{'hold', 'rename'});
my $pid = worker_pid($node, $running);
my $later = as_role('mover', q{'who', run_at => '2100-01-01'});
sql($node, 'ALTER ROLE mover RENAME TO moved');
is(sql($node, q{SELECT count(*), min(owner::text), max(owner::text) FROM tasksched.tasks}),
	'3|moved|moved', 'the owner is renamed');
open_gate($node, 'rename');
wait_for_status($node, $running, 'complete', 'its running task completes');
sql($node, "SELECT tasksched.update_task('$later', run_at => now())");
wait_for_status($node, $later, 'complete', 'the scheduled one runs');
is(field_of($node, $later, 'result, launch, attempt, crashes'), '"moved"|1|1|0', 'under the new name');

# another role gets what it owned, including the function of an action
$running = as_role('moved', q{'hold', 'reassign'});
$later = as_role('moved', q{'who', run_at => '2100-01-01'});
wait_for_running($node, $running, 'one runs');
sql($node, 'REASSIGN OWNED BY moved TO heir; DROP OWNED BY moved');
sql($node, "SELECT tasksched.update_task('$later', run_at => now())");
blocked_is($later, q{the action's function work.who() has got another owner since it was registered},
	'REASSIGN OWNED: not the same function any more');
sql($node, 'GRANT USAGE ON SCHEMA work TO moved; GRANT EXECUTE ON FUNCTION work.who() TO moved');
sql($node, q{SELECT tasksched.register_action('who', 'work.who')});
wait_for_status($node, $later, 'complete', 'until it is registered again');
sqlstate_is($node, q{SET ROLE moved; SELECT tasksched.schedule_task('who')}, '42501',
	'DROP OWNED takes the right to schedule');
open_gate($node, 'reassign');
wait_for_status($node, $running, 'complete', 'but not what it has scheduled');

# the role is dropped
sql($node, q{SELECT tasksched.grant_usage('moved')});
$running = as_role('moved', q{'hold', 'drop'});
$later = as_role('moved', q{'who', run_at => '2100-01-01'});
wait_for_running($node, $running, 'one runs');
sqlstate_is($node, 'DROP ROLE moved', '2BP01', 'DROP ROLE is refused as long as it has rights');
sql($node, 'DROP OWNED BY moved; DROP ROLE moved');
sql($node, "SELECT tasksched.update_task('$later', run_at => now())");
blocked_is($later, 'the role that owns the task does not exist', 'DROP ROLE: its task is held');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'the others are not');
open_gate($node, 'drop');
wait_until($node, "SELECT finished_at IS NOT NULL FROM tasksched.tasks WHERE id = '$running'",
	'what runs comes to an end');
is(field_of($node, $running, 'status, crashes, launch'), 'complete|0|1', 'as it would have');
sql($node, 'CREATE ROLE moved');
look_again();
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'another role of that name comes');
is(field_of($node, $later, 'status, owner::oid'), 'scheduled|0', 'it is another one');
is(sql($node, "SELECT tasksched.cancel_task('$later')"), 't', 'the task can be cancelled');
is(sql($node, 'SELECT count(*) FROM tasksched.blocked_tasks'), 0, 'nothing is held any more');

# ---------------------------------------------------------------------------
# Functions of actions
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE SCHEMA app;
CREATE FUNCTION app.version() RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(1) $$;
CREATE FUNCTION app.hold(params jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = params ->> 'gate') LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	RETURN '1';
END $$;
SELECT tasksched.register_action('version', 'app.version'), tasksched.register_action('app.hold', 'app.hold');
EOT

sub runs_with
{
	my ($result, $name) = @_;
	my $task = schedule($node, q{'version'});

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_status($node, $task, 'complete', $name);
	is(field_of($node, $task, 'result, launch'), "$result|1", "$name: which one");
	return;
}

runs_with(1, 'a function runs');
sql($node, 'CREATE OR REPLACE FUNCTION app.version() RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(2) $$');
runs_with(2, 'it is replaced');
sql($node, q{DROP FUNCTION app.version();
	CREATE PROCEDURE app.version(INOUT result jsonb) LANGUAGE plpgsql AS $$ BEGIN COMMIT; result := 3; END $$});
$id = schedule($node, q{'version'});
blocked_is($id, q{the action's function app.version() does not exist},
	'a procedure with another signature is another one');
sql($node, q{SELECT tasksched.register_action('version', 'app.version')});
wait_for_status($node, $id, 'complete', 'and runs when it is registered');
runs_with(3, 'again');

$running = schedule($node, q{'app.hold', params => '{"gate": "renames"}'});
wait_for_running($node, $running, 'one runs');
foreach (
	[ 'ALTER PROCEDURE app.version RENAME TO other', 'ALTER PROCEDURE app.other RENAME TO version' ],
	[ 'ALTER SCHEMA app RENAME TO elsewhere', 'ALTER SCHEMA elsewhere RENAME TO app' ],
	[ 'ALTER PROCEDURE app.version SET SCHEMA public', 'ALTER PROCEDURE public.version SET SCHEMA app' ])
{
	my ($there, $back) = @$_;

	sql($node, $there);
	$id = schedule($node, q{'version'});
	blocked_is($id, q{the action's function app.version(pg_catalog.jsonb) does not exist}, $there);
	sql($node, $back);
	look_again();
	wait_for_status($node, $id, 'complete', $back);
	is(field_of($node, $id, 'launch, attempt, setbacks'), '1|1|0', 'as if nothing had been');
}
sql($node, 'DROP SCHEMA app CASCADE');
open_gate($node, 'renames');
wait_for_status($node, $running, 'complete', 'what runs completes, though its function is dropped');
$id = schedule($node, q{'version'});
blocked_is($id, q{the action's function app.version(pg_catalog.jsonb) does not exist}, 'the next does not run');
sql($node, "SELECT tasksched.delete_task('$id')");

# a right that is revoked between scheduling and running
sql($node, q{CREATE ROLE user1; SELECT tasksched.grant_usage('user1')});
$id = as_role('user1', q{'note', run_at => '2100-01-01'});
sql($node, "REVOKE EXECUTE ON FUNCTION note FROM PUBLIC; SELECT tasksched.update_task('$id', run_at => now())");
wait_for_status($node, $id, 'failed', 'EXECUTE is revoked after a task was scheduled');
is(field_of($node, $id,
		q{error_details ->> 'sqlstate', (SELECT count(*) FROM runs r WHERE r.id = t.id)} =~ s/t\.id/'$id'/r),
	'42501|0', 'it fails for that');
sql($node, 'GRANT EXECUTE ON FUNCTION note TO PUBLIC');

# ---------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------
@ids = split /\n/,
  sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{3}'), resource_id => 'tables')});
wait_for_running($node, \@ids, 'three run');
my $waiter = start_session("SELECT status FROM tasksched.wait_for_task('$ids[0]')");
wait_value($node, q{SELECT count(*) FROM pg_stat_activity
	WHERE query ~ '^SELECT status FROM tasksched.wait' AND wait_event = 'Extension'}, 1, 'a session waits for one');
foreach my $command (
	'VACUUM FULL tasksched.live', 'VACUUM FULL tasksched.finished', 'VACUUM FULL tasksched.registered_actions',
	'CLUSTER tasksched.live USING live_queue', 'REINDEX TABLE tasksched.finished', 'REINDEX SCHEMA tasksched',
	'ANALYZE tasksched.tasks')
{
	sql($node, "SET lock_timeout = '1min';\n$command");
	$id = schedule($node, q{'note'});
	wait_for_status($node, $id, 'complete', "$command: tasks run after that");
}
my $reindex = start_session('REINDEX TABLE CONCURRENTLY tasksched.live');
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^REINDEX' AND wait_event_type = 'Lock'}, 1,
	'REINDEX CONCURRENTLY waits for transactions, those of running tasks among them');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'others begin and end meanwhile');
open_gate($node, 'tables');
end_session($waiter, 'the waiter is told', "complete\n");
end_session($reindex, 'REINDEX CONCURRENTLY goes on');

# REINDEX does not deadlock with a tasksched process that has read and is about to write
wait_for_status($node, schedule($node, q{'note'}), 'complete', 'all is quiet');
my $reindex_position = log_position($node);
$reindex = start_session(('REINDEX TABLE tasksched.live', 'REINDEX TABLE tasksched.finished') x 100);
foreach my $n (1 .. 10)
{
	my @some = split /\n/,
	  sql($node, q{SELECT tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{20}'), resource_id => 'reindex')});
	sql($node, "SELECT tasksched.cancel_task('$_')") foreach @some[17 .. 19];
}
end_session($reindex, 'REINDEX again and again');
wait_value($node, q{SELECT count(*) FROM tasksched.finished WHERE resource_id = 'reindex'}, 200,
	'while tasks are scheduled, run and are cancelled');
unlike(log_since($node, $reindex_position), qr/deadlock detected/, 'without a deadlock');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks t
	WHERE resource_id = 'tables' AND status = 'complete' AND 1 = (SELECT count(*) FROM runs r WHERE r.id = t.id)},
	3, 'all complete, once');

# a session that waits for a task blocks no other session: one that it blocked could in
# turn block the task
@ids = map { schedule($node, q{'hold', 'waiter'}) } 1 .. 2;
wait_for_running($node, \@ids, 'two run');
$waiter = start_session("SELECT status FROM tasksched.wait_for_task('$ids[0]')");
wait_value($node, q{SELECT count(*) FROM pg_stat_activity
	WHERE query ~ '^SELECT status FROM tasksched.wait' AND wait_event = 'Extension'}, 1, 'a session waits for one');
my $position = log_position($node);
sql($node, "SET lock_timeout = '1min';\nTRUNCATE tasksched.tasks");
open_gate($node, 'waiter');
wait_for_log($node, qr/task $ids[0] was cancelled or deleted while its action ran/, $position,
	'TRUNCATE: what runs can store nothing');
end_session($waiter, 'whoever waited for it is told', '');
is(sql($node, "SELECT count(*) FROM runs WHERE id IN ('$ids[0]', '$ids[1]')"), 0, 'it has no effects');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'new tasks run');

# with a publication, every table that is changed needs a replica identity
sql($node, 'CREATE PUBLICATION everything FOR ALL TABLES');
$id = schedule($node, q{'hold', 'published'});
wait_for_running($node, $id, 'with a publication of all tables, a task runs');
open_gate($node, 'published');
wait_for_status($node, $id, 'complete', 'and completes');
is(sql($node, "SELECT tasksched.retry_task('$id')"), 't', 'it is retried');
wait_value($node, "SELECT count(*) FROM runs WHERE id = '$id'", 2, 'and runs again');
wait_for_status($node, $id, 'complete', 'and completes again');
is(sql($node, "SELECT tasksched.delete_task('$id')"), 't', 'and deleted');
$id = schedule($node, q{'note', delay => '1 h'});
is(sql($node, "SELECT tasksched.update_task('$id', result => '1'), tasksched.cancel_task('$id')"),
	't|t', 'another is updated and cancelled');
sql($node, q{SELECT tasksched.register_action('who', 'work.who'), tasksched.unregister_action('who'),
	tasksched.pause_scheduler(), tasksched.resume_scheduler()});
sql($node, 'DROP PUBLICATION everything');

# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------
sub tasks_run
{
	my ($name) = @_;
	my $task = schedule($node, q{'note'});

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $took = wait_for_status($node, $task, 'complete', $name);
	is(field_of($node, $task, 'attempt, crashes'), '1|0', "$name: nothing is counted");
	cmp_ok($took, '<', 10, "$name: soon");
	return;
}

sub idle_worker
{
	return sql($node,
		q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'tasksched worker' AND state = 'idle' LIMIT 1});
}

tasks_run('there is a worker');
my %process = (launcher => launcher_pid($node), scheduler => scheduler_pid($node), worker => idle_worker());
foreach my $kind (sort keys %process)
{
	is(sql($node, "SELECT pg_cancel_backend($process{$kind})"), 't', "pg_cancel_backend: $kind");
}
tasks_run('after that');
is(launcher_pid($node), $process{launcher}, 'the launcher is still there');
is(scheduler_pid($node), $process{scheduler}, 'and so is the scheduler');
is(sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $process{worker}"), 1, 'and an idle worker');
foreach my $n (1 .. 5)
{
	is(sql($node, 'SELECT pg_terminate_backend(' . scheduler_pid($node) . ', 10000)'),
		't', "pg_terminate_backend: scheduler ($n)");
	tasks_run('a new one comes');
}
is(sql($node, 'SELECT pg_terminate_backend(' . idle_worker() . ', 10000)'), 't', 'pg_terminate_backend: idle worker');
tasks_run('another one runs the next');
is(sql($node, 'SELECT pg_terminate_backend(' . launcher_pid($node) . ', 10000)'),
	't', 'pg_terminate_backend: launcher');
tasks_run('the scheduler goes on');
launcher_pid($node);
is(sql($node, 'SELECT pg_terminate_backend(' . scheduler_pid($node) . ', 10000)'), 't', 'the new launcher comes');
tasks_run('and keeps the schedulers');

# both the scheduler and the launcher, while a task runs
$running = schedule($node, q{'hold', 'both'});
wait_for_running($node, $running, 'a task runs');
foreach my $type ('scheduler', 'launcher')
{
	sql($node, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE backend_type = 'tasksched $type'");
}
tasks_run('without launcher and scheduler');
is(sql($node, 'SELECT pg_terminate_backend(' . worker_pid($node, $running) . ', 10000)'),
	't', 'and its worker is terminated');
wait_value($node, "SELECT launch FROM tasksched.running_tasks WHERE task_id = '$running' AND state = 'running'", 2,
	'it is resumed');
is(field_of($node, $running, 'attempt, crashes'), '1|0', 'nothing is counted');
open_gate($node, 'both');
wait_for_status($node, $running, 'complete', 'it completes');
is(sql($node, "SELECT count(*) FROM runs WHERE id = '$running'"), 1, 'once');

# ---------------------------------------------------------------------------
# Settings, with ALTER SYSTEM and a reload
# ---------------------------------------------------------------------------
sub set_all
{
	my %settings = @_;

	$node->safe_psql('postgres',
		join('', map { "ALTER SYSTEM SET tasksched.$_ = '$settings{$_}';\n" } sort keys %settings));
	$node->reload;
	wait_value($node,
		join(' AND ', map { "current_setting('tasksched.$_')::text IN ('$settings{$_}')" } sort keys %settings)
		  =~ s/^/SELECT /r,
		't', join(', ', map { "$_ = $settings{$_}" } sort keys %settings));
	return;
}

is(sql($node, q{SELECT count(*), count(DISTINCT context), min(context) FROM pg_settings WHERE name ~ '^tasksched\.'}),
	'8|1|sighup', 'all settings are for a reload');
sqlstate_is($node, "SET $_", '55P02', "SET $_ is refused")
  foreach ('tasksched.enabled = off', 'LOCAL tasksched.max_crashes = 100');

set_all(reconcile_interval => '300ms');
sql($node, 'ALTER FUNCTION note RENAME TO noted');
$id = schedule($node, q{'note'});
blocked_is($id, q{the action's function public.note(tasksched.task,boolean) does not exist}, 'a task is held');
sql($node, 'ALTER FUNCTION noted RENAME TO note');
wait_for_status($node, $id, 'complete', 'reconcile_interval: and found by a scan that nobody asked for');
set_all(reconcile_interval => '1min');

$position = log_position($node);
set_all(stuck_after => '1s');
$running = schedule($node, q{'hold', 'stuck'});
wait_value($node, 'SELECT id FROM tasksched.stuck_tasks', $running, 'stuck_after: a task is stuck');
$node->reload;
wait_for_log($node, qr/WARNING:  task $running .* may be stuck/, $position, 'the log warns of it');
set_all(stuck_after => '1d');
is(sql($node, 'SELECT count(*) FROM tasksched.stuck_tasks'), 0, 'and not when there is more time');

set_all(keep_finished_tasks => '0');
wait_value($node, 'SELECT count(*) FROM tasksched.tasks WHERE finished', 0,
	'keep_finished_tasks = 0: finished tasks are deleted');
set_all(keep_finished_tasks => '-1');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', '-1: they are kept');

set_all(max_crashes => '1');
flush_wal($node);
signal_process('KILL', worker_pid($node, $running));
wait_for_status($node, $running, 'failed', 'max_crashes = 1: a task fails at its first crash');
is(field_of($node, $running, 'error, crashes'), 'task crashed its worker process 1 time|1', 'for that reason');

set_all(worker_idle_timeout => '100ms');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'a task runs');
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched worker'}, 0,
	'worker_idle_timeout: its worker goes');
set_all(scheduler_idle_timeout => '1s');
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched scheduler'}, 0,
	'scheduler_idle_timeout: so does the scheduler');
set_all(max_running_tasks => '0');
$id = schedule($node, q{'note'});
wait_value($node, 'SELECT max_running FROM tasksched.status', 0, 'max_running_tasks = 0');
is(field_of($node, $id, 'status, attempt'), 'scheduled|0', 'nothing runs');
set_all(enabled => 'off', max_running_tasks => '3');
blocked_is($id, 'tasksched.enabled is off', 'enabled = off: nothing runs either');
set_all(enabled => 'on');
wait_for_status($node, $id, 'complete', 'on: it does');
is(sql($node, q{SELECT count(*) FROM pg_settings WHERE pending_restart}), 0, 'nothing waits for a restart');

$node->stop;
check_log($node, signals => 1);
done_testing();
