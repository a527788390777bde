# Locks of other sessions: transactions that stay open, locked tables, pg_dump,
# rebuilt tables and indexes, old snapshots.  Only what they touch waits, and it
# goes on when they end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use TaskschedSession;
use TaskschedTest;
use Test::More;
use Time::HiRes qw(usleep);

# no scan comes for as long as this test takes
my $node = new_node('locks', conf => "tasksched.reconcile_interval = '1h'\ntasksched.worker_idle_timeout = '1h'\n");
my $idle = TaskschedSession->new($node);
my $id;

# Does everything else go on?
sub others_run
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $other = schedule($node, q{'note'});
	wait_for_status($node, $other, 'complete', "$name: others run");
	return;
}

sub waits_for
{
	my ($pid, $blocker, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until($node, "SELECT $blocker = ANY (pg_blocking_pids($pid))", $name);
	return;
}

# How many rows the task has left
sub effects { return sql($node, "SELECT count(*) FROM runs WHERE id = '$_[0]'"); }

# ---------------------------------------------------------------------------
# A transaction stays open after it has changed a task that is to be launched
# ---------------------------------------------------------------------------
my %changes = (
	cancel_task => [ q{tasksched.cancel_task('%s')}, 'cancelled' ],
	delete_task => [ q{tasksched.delete_task('%s')}, '' ],
	update_task => [ q{tasksched.update_task('%s', run_at => now() + '1 day')}, 'scheduled' ]);
my $gate = 0;

foreach my $name (sort keys %changes)
{
	my ($call, $status) = @{ $changes{$name} };

	foreach my $end ('ROLLBACK', 'COMMIT', 'ROLLBACK TO s', 'terminate')
	{
		$id = schedule($node, q{'note', delay => '1 day'});
		is($idle->query('BEGIN; SAVEPOINT s; SELECT ' . sprintf($call, $id)),
			't', "$name, and the transaction stays open");
		# make it due: the first update_task waits, the second does not
		my $waiter = TaskschedSession->new($node);
		$waiter->begin("SELECT tasksched.update_task('$id', run_at => now())");
		waits_for($waiter->pid, $idle->pid, "$name: whoever touches the same task waits");
		others_run($name);

		if ($end eq 'terminate')
		{
			sql($node, 'SELECT pg_terminate_backend(' . $idle->pid . ')');
			$idle->gone;
			$idle = TaskschedSession->new($node);
		}
		else
		{
			$idle->query($end);
		}
		my $expected = $end eq 'COMMIT' && $status ne 'scheduled' ? $status : 'complete';
		is($waiter->end, $expected eq 'complete' ? 't' : 'f', "$name, $end: it goes on");
		$waiter->quit;
		$expected eq ''
		  ? is(status_of($node, $id), '', "$name, $end: the task is gone")
		  : wait_for_status($node, $id, $expected, "$name, $end: the task is $expected");
		$idle->query('ROLLBACK') if $end eq 'ROLLBACK TO s';
	}

	# the task becomes due while its row is locked: the end of the transaction makes it run
	$id = schedule($node, q{'note', delay => '0.7 s'});
	$idle->query('BEGIN; SELECT ' . sprintf($call, $id));
	wait_until($node,
		"SELECT run_at < clock_timestamp() AND status = 'scheduled' FROM tasksched.tasks WHERE id = '$id'",
		"$name: due, but locked");
	others_run("$name, due");
	is(field_of($node, $id, 'status, launch'), 'scheduled|0', "$name: it is passed by");
	$idle->query('ROLLBACK');
	wait_for_status($node, $id, 'complete', "$name: and runs after the ROLLBACK");
	is(field_of($node, $id, 'launch, attempt'), '1|1', "$name: once");
}

# ... or after it has scheduled or retried one
foreach my $end ('ROLLBACK', 'COMMIT')
{
	$id = $idle->query(q{BEGIN; SELECT tasksched.schedule_task('note')});
	others_run("schedule_task, $end");
	$idle->query($end);
	others_run("schedule_task, after $end");
	$end eq 'COMMIT'
	  ? wait_for_status($node, $id, 'complete', 'schedule_task: it runs after the COMMIT')
	  : is(status_of($node, $id), '', 'schedule_task: there is none after a ROLLBACK');

	my $failed = schedule($node, q{'raising', params => '{"message": "no"}'});
	wait_for_status($node, $failed, 'failed', 'a task fails');
	is($idle->query("BEGIN; SELECT tasksched.retry_task('$failed')"),
		't', 'retry_task, and the transaction stays open');
	others_run("retry_task, $end");
	is(field_of($node, $failed, 'status, launch'), 'failed|1', 'retry_task: nothing has happened');
	$idle->query($end);
	wait_value($node, "SELECT status, launch FROM tasksched.tasks WHERE id = '$failed'",
		$end eq 'COMMIT' ? 'failed|2' : 'failed|1', "retry_task, $end: as it says");
}
$idle->query(q{BEGIN; SELECT tasksched.pause_scheduler(), tasksched.register_action('late', 'note')});
others_run('pause_scheduler and register_action');
$idle->query('ROLLBACK');

# ---------------------------------------------------------------------------
# ... or after it has cancelled one that runs: the worker waits when the action ends
# ---------------------------------------------------------------------------
foreach my $end ('ROLLBACK', 'COMMIT', 'worker')
{
	my $name = 'gate' . ++$gate;

	$id = schedule($node, "'hold', '$name'");
	wait_for_running($node, $id, 'a task runs');
	my $pid = worker_pid($node, $id);
	is($idle->query("BEGIN; SELECT tasksched.cancel_task('$id')"),
		't', 'it is cancelled, in a transaction that stays open');
	open_gate($node, $name);
	waits_for($pid, $idle->pid, 'its worker waits');
	others_run("cancel_task of a running task, $end");
	sql($node, "SELECT pg_cancel_backend($pid)");
	others_run('pg_cancel_backend does not hit the outcome');
	if ($end eq 'worker')
	{
		sql($node, "SELECT pg_terminate_backend($pid)");
		process_gone($pid);
		others_run('its worker is terminated');
		is(field_of($node, $id, 'status, launch'), 'active|1', 'nobody can put it back yet');
		$idle->query('ROLLBACK');
		wait_for_status($node, $id, 'complete', 'after the ROLLBACK it is resumed');
		is(field_of($node, $id, 'launch, crashes'), '2|0', 'which counts no crash');
	}
	else
	{
		$idle->query($end);
		wait_for_status($node, $id, $end eq 'COMMIT' ? 'cancelled' : 'complete', "$end: it goes on");
		is(field_of($node, $id, 'launch'), '1', 'in the same launch');
	}
	is(effects($id), $end eq 'COMMIT' ? 0 : 1, 'its effects are as its outcome');
}

# an action's own lock_timeout does not apply to that wait
sql($node, <<'EOT');
CREATE FUNCTION impatient(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	SET lock_timeout = '10ms';
	PERFORM public.hold(task, first_launch);
END $$;
CREATE PROCEDURE impatient_too(task tasksched.task, first_launch boolean) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.hold(task, first_launch);
	SET lock_timeout = '10ms';
	COMMIT;
	PERFORM pg_sleep(0.01);	-- in the action: checks for interrupts
END $$;
SELECT tasksched.register_action(a, 'public.' || a) FROM unnest('{impatient,impatient_too}'::text[]) a;
EOT
foreach my $action ('impatient', 'impatient_too')
{
	my $name = 'gate' . ++$gate;

	$id = schedule($node, "'$action', '$name'");
	wait_for_running($node, $id, 'an action with a lock_timeout runs');
	my $pid = worker_pid($node, $id);
	$idle->query("BEGIN; SELECT FROM tasksched.live WHERE id = '$id' FOR UPDATE");
	open_gate($node, $name);
	waits_for($pid, $idle->pid, 'its worker waits for the row');
	others_run('a lock_timeout');
	$idle->query('COMMIT');
	wait_for_status($node, $id, 'complete', 'and the task completes');
	is(field_of($node, $id, 'launch, setbacks'), '1|0', 'in its first launch');
	is(effects($id), 1, 'with its effects');
}

# ---------------------------------------------------------------------------
# An old snapshot, and pg_dump
# ---------------------------------------------------------------------------
$idle->query(q{BEGIN ISOLATION LEVEL REPEATABLE READ;
	LOCK TABLE tasksched.tasks, tasksched.registered_actions IN ACCESS SHARE MODE});
my $known = $idle->query('SELECT count(*) FROM tasksched.tasks');
sql($node, q{SELECT tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{200}'), 'snapshot')});
wait_value($node,
	q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'snapshot' AND status = 'complete' AND launch = 1}, 200,
	'hundreds of tasks run while a snapshot is held');
$id = schedule($node, q{'hold', 'for ever'});
wait_for_running($node, $id, 'one runs');
sql($node, "SELECT tasksched.cancel_task('$id')");
wait_until($node, "SELECT NOT tasksched.task_is_running('$id')", 'and is cancelled');
is($idle->query('SELECT count(*) FROM tasksched.tasks'), $known, 'the snapshot sees nothing of it');
is($idle->query("SELECT status FROM tasksched.wait_for_task('$id')"), 'cancelled', 'but wait_for_task does');
$idle->query('COMMIT');

# serializable transactions in several workers: tasksched's own statements cause no
# conflicts
sql($node, <<'EOT');
CREATE ROLE serial;
SELECT tasksched.grant_usage('serial');
ALTER ROLE serial SET default_transaction_isolation = 'serializable';
CREATE PROCEDURE stages(task tasksched.task, INOUT outcome tasksched.outcome) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.update_task(task.id, result => to_jsonb(task.launch));
	COMMIT;
	outcome := CASE WHEN task.launch < 5 THEN tasksched.reschedule() ELSE tasksched.complete() END;
END $$;
SELECT tasksched.register_action('stages', 'stages');
SET ROLE serial;
SELECT tasksched.schedule_tasks('stages', array_fill(NULL::jsonb, '{100}'));
EOT
wait_value($node,
	q{SELECT count(*) FROM tasksched.tasks WHERE action = 'stages' AND status IN ('complete', 'failed')}, 100,
	'a role with serializable transactions: its tasks end');
is(sql($node, q{SELECT DISTINCT status, launch, error FROM tasksched.tasks WHERE action = 'stages'}),
	'complete|5|', 'none fails by a conflict with another');

# a dump that has to wait for another session
sql($node, 'CREATE TABLE zzz ()');
$idle->query('BEGIN; LOCK TABLE zzz');
my ($dump, $dump_errors) = ('', '');
my $pg_dump = IPC::Run::start([ 'pg_dump', '-d', $node->connstr('postgres') ], '>', \$dump, '2>', \$dump_errors,
	my $timer = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
my $running = schedule($node, q{'hold', 'dump'});
wait_value($node, q{SELECT count(*) FROM pg_locks WHERE relation = 'zzz'::regclass AND NOT granted}, 1,
	'pg_dump waits');
wait_for_running($node, $running, 'a task runs meanwhile');
others_run('pg_dump');
open_gate($node, 'dump');
wait_for_status($node, $running, 'complete', 'and completes');
$idle->query('COMMIT');
$timer->start($PostgreSQL::Test::Utils::timeout_default);
ok($pg_dump->finish, 'pg_dump succeeds') or diag($dump_errors);
like($dump, qr/^COPY tasksched\.live /m, 'and has the tasks');

# ---------------------------------------------------------------------------
# Locked tables, rebuilt indexes
# ---------------------------------------------------------------------------
sql($node, 'CREATE DATABASE other');
create_fixtures($node, 'other');
foreach my $statement (
	'LOCK TABLE tasksched.tasks',
	'LOCK TABLE tasksched.live',
	'LOCK TABLE tasksched.finished',
	'REINDEX TABLE tasksched.live',
	'CREATE INDEX extra ON tasksched.live (action)',
	'LOCK TABLE tasksched.registered_actions')
{
	my $name = 'gate' . ++$gate;

	$id = schedule($node, "'hold', '$name'");
	wait_for_running($node, $id, "$statement: a task runs");
	my $pid = worker_pid($node, $id);
	$idle->query("BEGIN; $statement");
	my $waits = $statement !~ /registered_actions/;

	# the tables may be locked, so look only at the processes
	open_gate($node, $name);
	waits_for($pid, $idle->pid, "$statement: its worker waits to store the outcome") if $waits;
	my $caller = TaskschedSession->new($node);
	$caller->begin(q{SELECT tasksched.schedule_task('note')});
	waits_for($caller->pid, $idle->pid, "$statement: so does schedule_task") if $statement !~ /finished/;
	like(sql($node, q{SELECT state FROM tasksched.status WHERE database = 'postgres'}),
		qr/^(running|idle|waiting for a worker slot)$/, "$statement: the views from shared memory can be read");
	my $elsewhere = schedule($node, q{'note'}, 'other');
	wait_for_status($node, $elsewhere, 'complete', "$statement: tasks of another database run", 'other');

	if ($statement eq 'LOCK TABLE tasksched.tasks')
	{
		# the scheduler waits as well, and can be terminated and disabled
		my $scheduler = scheduler_pid($node, 'postgres');

		$node->append_conf('postgresql.conf', "tasksched.enabled = off\n");
		$node->reload;
		waits_for($scheduler, $idle->pid, 'the scheduler waits when it scans');
		sql($node, "SELECT pg_terminate_backend($scheduler)");
		process_gone($scheduler);
		wait_until($node, qq{SELECT count(*) > 0 FROM pg_stat_activity
			WHERE backend_type = 'tasksched scheduler' AND datname = 'postgres' AND pid <> $scheduler},
			'it ends when it is told to, and comes back');
		waits_for(scheduler_pid($node, 'postgres'), $idle->pid, 'and waits again');
		$node->append_conf('postgresql.conf', "tasksched.enabled = on\n");
		$node->reload;
		# the scheduler gets the signal of the reload while it waits: it must not forget it
		usleep(300_000);	# time for the signal to arrive; polls nothing
	}
	$idle->query($gate % 2 ? 'ROLLBACK' : 'COMMIT');
	my $scheduled = $caller->end;
	$caller->quit;
	wait_for_status($node, $id, 'complete', "$statement: the task goes on");
	is(field_of($node, $id, 'launch, crashes, setbacks'), '1|0|0', "$statement: as if nothing had been");
	wait_for_status($node, $scheduled, 'complete', "$statement: and so does the other");
}

# a running action blocks no other session
$id = schedule($node, q{'hold', 'full'});
wait_for_running($node, $id, 'a task runs');
sql($node, "VACUUM FULL tasksched.$_; REINDEX TABLE tasksched.$_; CLUSTER tasksched.$_ USING ${_}_pkey")
  foreach ('live', 'finished');
others_run('VACUUM FULL and REINDEX');
open_gate($node, 'full');
wait_for_status($node, $id, 'complete', 'VACUUM FULL and REINDEX while it runs');
is(field_of($node, $id, 'launch, setbacks'), '1|0', 'do not disturb it');

# ---------------------------------------------------------------------------
# Shutdown while the worker and the scheduler wait
# ---------------------------------------------------------------------------
$id = schedule($node, q{'hold', 'shutdown'});
wait_for_running($node, $id, 'a task runs');
my $pid = worker_pid($node, $id);
my $scheduler = scheduler_pid($node, 'postgres');
$idle->query('BEGIN; LOCK TABLE tasksched.tasks');
open_gate($node, 'shutdown');
$node->reload;
waits_for($pid, $idle->pid, 'its worker waits for a locked table');
waits_for($scheduler, $idle->pid, 'and so does the scheduler');
$node->restart;
$idle->gone;
wait_for_status($node, $id, 'complete', 'a fast shutdown ends both, and the task is resumed');
is(field_of($node, $id, 'launch, crashes'), '2|0', 'in a second launch');
is(effects($id), 1, 'with its effects once');

$node->stop;
check_log($node);
done_testing();
