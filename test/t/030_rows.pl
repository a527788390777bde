# The row of a task, found by its id: the same id both live and finished, serializable
# transactions, due times that change while a session waits, the order of locks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use TaskschedSession;
use TaskschedTest;
use Test::More;

# no scan comes for as long as this test takes
my $node = new_node('rows', conf => <<'EOT');
tasksched.reconcile_interval = '1h'
tasksched.max_running_tasks = 8
EOT
my $dump = "$PostgreSQL::Test::Utils::tmp_check/rows.sql";
my $id;

sub runs_of { return sql($node, "SELECT count(*) FROM runs WHERE id = '$_[0]'"); }

sub tables_of
{
	return sql($node, qq{SELECT string_agg(tableoid::regclass || ' ' || status, ', ' ORDER BY finished)
		FROM tasksched.tasks WHERE id = '$_[0]'});
}

# ---------------------------------------------------------------------------
# A dump is restored after its tasks have finished
# ---------------------------------------------------------------------------
sub restore_over_finished
{
	$id = schedule($node, q{'note', delay => '1 day', params => '{"from": "dump"}'});
	$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-n', 'tasksched', '-f', $dump ],
		'a dump while a task is scheduled');
	sql($node, "SELECT tasksched.update_task('$id', run_at => now())");
	wait_for_status($node, $id, 'complete', 'it runs');
	# ignores errors, since the schema and the actions exist already
	$node->psql('postgres', slurp_file($dump), on_error_stop => 0);
	is(tables_of($id), 'tasksched.live scheduled, tasksched.finished complete',
		'the restore brings it back beside what has become of it');
	is(sql($node, "SELECT status FROM tasksched.get_task('$id')"), 'scheduled', 'the live one is meant: get_task');
	is(sql($node, "SELECT count(*) FROM tasksched.wait_for_task('$id', timeout => '0.1 s')"), '0', 'wait_for_task');
	is(sql($node, "SELECT tasksched.retry_task('$id')"), 'f', 'retry_task');
	is(sql($node, "SELECT tasksched.update_task('$id', run_at => now())"), 't', 'update_task makes it due');
	wait_until($node, "SELECT reason ~ 'finished' FROM tasksched.blocked_tasks WHERE id = '$id'",
		'it is held, for a reason');
	# once another task has run, the scheduler has passed this one in the queue
	wait_for_status($node, schedule($node, q{'note'}), 'complete', 'others run');
	is(field_of($node, $id, q{string_agg(launch || ' ' || status, ', ' ORDER BY finished)}),
		'0 scheduled, 1 complete', 'and it does not');
	is(runs_of($id), '1', 'so its effects are there once');
	return;
}

restore_over_finished();
is(sql($node, "SELECT tasksched.delete_task('$id')"), 't', 'delete_task');
is(tables_of($id), 'tasksched.finished complete', 'deletes the live one');
is(sql($node, "SELECT status FROM tasksched.get_task('$id')"), 'complete', 'and the finished one is meant again');

restore_over_finished();
is(sql($node, "SELECT tasksched.cancel_task('$id')"), 't', 'cancel_task');
is(tables_of($id), 'tasksched.finished cancelled', 'what it becomes replaces what it was');

restore_over_finished();
is(sql($node, 'SELECT tasksched.adopt_tasks()'), '1', 'adopt_tasks');
wait_for_status($node, $id, 'complete', 'has it run');
is(runs_of($id), '2', 'again');
is(tables_of($id), 'tasksched.finished complete', 'and what it becomes replaces what it was');
is(sql($node, 'SELECT tasksched.adopt_tasks()'), '0', 'nothing more is to be adopted');

# a finished one comes while the live one runs
$id = schedule($node, q{'hold', 'gate'});
wait_for_running($node, $id, 'a task runs');
sql($node, <<"EOT");
INSERT INTO tasksched.finished SELECT * FROM tasksched.finished LIMIT 0;
INSERT INTO tasksched.finished (id, action, status, run_at, owner, created_at, updated_at, finished_at, installation,
	database, finished)
SELECT id, action, 'failed', run_at, owner, created_at, updated_at, now(), installation, database, true
FROM tasksched.live WHERE id = '$id'
EOT
open_gate($node, 'gate');
wait_value($node, "SELECT string_agg(status::text, ', ') FROM tasksched.tasks WHERE id = '$id'", 'complete',
	'a finished one that comes while it runs is replaced');
is(field_of($node, $id, 'launch'), '1', 'at once');
is(runs_of($id), '1', 'with its effects once');

# the same with a snapshot that is older than the row that is replaced
sql($node, <<'EOT');
CREATE ROLE repeatable LOGIN;
ALTER ROLE repeatable SET default_transaction_isolation = 'repeatable read';
SELECT tasksched.grant_usage('repeatable');
EOT
sql($node, <<'EOT');
CREATE PROCEDURE hold_twice(task tasksched.task, first_launch boolean) LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = 'first') LOOP
		COMMIT;
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	PERFORM count(*) FROM public.gates;
	PERFORM pg_advisory_lock(1);
	PERFORM public.leave_row(task, first_launch);
END $$;
SELECT tasksched.register_action('hold_twice', 'hold_twice');
EOT
$id = sql($node, q{SET SESSION AUTHORIZATION repeatable; SELECT tasksched.schedule_task('hold_twice')});
wait_for_running($node, $id, 'a REPEATABLE READ action runs');
my $locker = TaskschedSession->new($node);
$locker->query('SELECT pg_advisory_lock(1)');
open_gate($node, 'first');
wait_value($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, '1',
	'it has its snapshot');
sql($node, <<"EOT");
INSERT INTO tasksched.finished (id, action, status, run_at, owner, created_at, updated_at, finished_at, installation,
	database, finished)
SELECT id, action, 'failed', run_at, owner, created_at, updated_at, now(), installation, database, true
FROM tasksched.live WHERE id = '$id'
EOT
$locker->query('SELECT pg_advisory_unlock(1)');
wait_value($node, "SELECT string_agg(status::text, ', ') FROM tasksched.tasks WHERE id = '$id'", 'complete',
	'what it can not see is replaced as well');
is(runs_of($id), '1', 'with its effects once');
$locker->quit;

# old finished tasks are deleted, except for those that hold back a live one
restore_over_finished();
sql($node, "UPDATE tasksched.finished SET finished_at = '2020-01-01'");
sql($node, q{ALTER SYSTEM SET tasksched.keep_finished_tasks = '1 d'});
$node->reload;
wait_value($node, 'SELECT count(*) FROM tasksched.finished', '1', 'old finished tasks are deleted');
is(tables_of($id), 'tasksched.live scheduled, tasksched.finished complete', 'but for one that holds a live one');
is(sql($node, "SELECT tasksched.delete_task('$id')"), 't', 'which is deleted');
$node->reload;
wait_value($node, 'SELECT count(*) FROM tasksched.finished', '0', 'and then it goes as well');

# ---------------------------------------------------------------------------
# All rows are rewritten while a process waits for the lock
# ---------------------------------------------------------------------------
{
	my $alter = TaskschedSession->new($node);
	my $waiter = TaskschedSession->new($node);
	my $rewrite = 'BEGIN; ALTER TABLE tasksched.tasks ADD COLUMN extra uuid DEFAULT gen_random_uuid()';
	my @held = map { schedule($node, q{'hold', 'rewritten'}) } 1 .. 3;
	my $other = schedule($node, q{'note', delay => '1 day'});
	my $scheduler = scheduler_pid($node);

	wait_for_running($node, \@held, 'some tasks run');
	signal_process('STOP', $scheduler);
	is(sql($node, "SELECT tasksched.cancel_task('$other')"), 't', 'another one is cancelled');
	$other = schedule($node, q{'note', delay => '1 day'});
	$alter->query($rewrite);
	$waiter->begin("SELECT count(*) FROM tasksched.wait_for_task('$other', timeout => '10 min')");
	wait_value($node, 'SELECT pg_blocking_pids(' . $waiter->pid . ')', '{' . $alter->pid . '}',
		'a session waits for the table');
	signal_process('CONT', $scheduler);
	wait_value($node, "SELECT pg_blocking_pids($scheduler)", '{' . $alter->pid . '}', 'and so does the scheduler');
	$alter->query('COMMIT');
	wait_for_status($node, schedule($node, q{'note'}), 'complete', 'all goes on');
	open_gate($node, 'rewritten');
	wait_for_status($node, $_, 'complete', 'nobody takes a task that runs for one that was cancelled') foreach @held;
	sql($node, "SELECT tasksched.update_task('$other', run_at => now())");
	is($waiter->end, '1', 'nor one that waits for one that is finished');

	# a worker that is about to read its task
	signal_process('STOP', $_) foreach pids_of($node, 'tasksched worker');
	$id = schedule($node, q{'note'});
	wait_value($node, "SELECT state FROM tasksched.running_tasks WHERE task_id = '$id'", 'ready',
		'a task is handed over');
	my $worker = sql($node, "SELECT pid FROM tasksched.running_tasks WHERE task_id = '$id'");
	$alter->query($rewrite =~ s/extra/more/r);
	signal_process('CONT', $_) foreach pids_of($node, 'tasksched worker');
	wait_value($node, "SELECT pg_blocking_pids($worker)", '{' . $alter->pid . '}', 'its worker waits for the table');
	$alter->query('COMMIT');
	wait_for_status($node, $id, 'complete', 'and finds it all the same');
	sql($node, 'ALTER TABLE tasksched.tasks DROP COLUMN extra, DROP COLUMN more');
	$_->quit foreach $alter, $waiter;
}

# ---------------------------------------------------------------------------
# A due time that changes while a session waits for the row
# ---------------------------------------------------------------------------
my %calls = (
	update_task => q{tasksched.update_task('%s', result => '1')},
	cancel_task => q{tasksched.cancel_task('%s')},
	delete_task => q{tasksched.delete_task('%s')});

foreach my $name (sort keys %calls)
{
	foreach my $end ($name eq 'update_task' ? ('COMMIT', 'ROLLBACK') : 'ROLLBACK')
	{
		my ($first, $second) = map { TaskschedSession->new($node) } 1, 2;

		$id = schedule($node, q{'note', delay => '1 day'});
		# due a while after the COMMIT, or the scheduler could be faster than the waiting session
		$first->query("BEGIN; SELECT tasksched.update_task('$id', run_at => now() + interval '5 s')");
		$second->query('BEGIN');
		$second->begin('SELECT ' . sprintf($calls{$name}, $id));
		wait_value($node, 'SELECT pg_blocking_pids(' . $second->pid . ')', '{' . $first->pid . '}',
			"$name waits for an update_task that makes the task due sooner");
		$first->query('COMMIT');
		is($second->end, 't', "$name gets the row");
		wait_until($node, "SELECT clock_timestamp() > run_at FROM tasksched.tasks WHERE id = '$id'", 'it becomes due');
		wait_for_status($node, schedule($node, q{'note'}), 'complete', 'the scheduler passes it by');
		is(status_of($node, $id), 'scheduled', 'while it is locked');
		$second->query($end);
		wait_for_status($node, $id, 'complete', "$name, $end: the task runs at once");
		$_->quit foreach $first, $second;
	}
}

# ---------------------------------------------------------------------------
# Serializable actions do not conflict on tasksched's tables
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE ROLE strict LOGIN;
ALTER ROLE strict SET default_transaction_isolation = 'serializable';
SELECT tasksched.grant_usage('strict');
CREATE FUNCTION look_at_own(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.02);	-- the scenario: the action takes a while, to overlap with others
	RETURN to_jsonb((SELECT count(*) FROM tasksched.get_task(task.id)));
END $$;
CREATE FUNCTION change_others(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	other uuid := tasksched.schedule_task('note', delay => '1 day');
BEGIN
	PERFORM pg_sleep(0.02);	-- the same
	PERFORM tasksched.update_task(other, result => '1');
	RETURN to_jsonb(tasksched.cancel_task(other) AND tasksched.retry_task(other) AND tasksched.delete_task(other));
END $$;
SELECT tasksched.register_action(a, a) FROM unnest('{look_at_own,change_others}'::text[]) a;
EOT
foreach my $action ('look_at_own', 'change_others')
{
	sql($node, qq{SET SESSION AUTHORIZATION strict;
		SELECT count(tasksched.schedule_task('$action')) FROM generate_series(1, 100)});
	wait_value($node, "SELECT count(*) FROM tasksched.live WHERE action = '$action'", '0',
		"100 serializable actions: $action");
	is( sql($node, qq{SELECT string_agg(DISTINCT status || ' ' || coalesce(result::text, error), ', ')
			FROM tasksched.tasks WHERE action = '$action'}),
		$action eq 'look_at_own' ? 'complete 1' : 'complete true', 'all of them complete');
}

# in a session whose snapshot is older than a change
my $old = TaskschedSession->new($node);
$id = schedule($node, q{'note', delay => '1 day'});
$old->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM runs');
sql($node, "SELECT tasksched.update_task('$id', result => '\"new\"')");
is($old->query("SELECT result IS NULL FROM tasksched.get_task('$id')"),
	't', 'REPEATABLE READ: get_task shows what the snapshot sees');
my $late = schedule($node, q{'note', delay => '1 day'});
is($old->query("SELECT count(*) FROM tasksched.get_task('$late')"), '0', 'and nothing that came later');
is($old->query("SELECT tasksched.cancel_task('$late')"), 'f', 'nor does cancel_task find it');
$old->query("SELECT tasksched.cancel_task('$id')");
like($old->{stderr}, qr/could not serialize access due to concurrent update/,
	'what has changed since can not be changed');
$old->query('ROLLBACK');

# ---------------------------------------------------------------------------
# The order of locks
# ---------------------------------------------------------------------------
my $clients = "$PostgreSQL::Test::Utils::tmp_check/clients.sql";
append_to_file($clients, <<'EOT');
SELECT tasksched.schedule_task('note', delay => '1 day') AS id \gset
SELECT tasksched.update_task(':id', result => '1');
BEGIN;
SELECT count(*) FROM tasksched.get_task(':id');
SELECT tasksched.cancel_task(':id');
SELECT count(*) FROM tasksched.get_tasks(max_rows => 1);
SELECT tasksched.retry_task(':id');
SELECT tasksched.delete_task(':id');
COMMIT;
EOT
my $position = log_position($node);
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', '4', '-T', '600', '-f', $clients, $node->connstr('postgres') ],
	'>', \my $said, '2>', \my $errors);
wait_until($node, q{SELECT count(*) >= 6 FROM pg_stat_activity WHERE backend_type = 'client backend'},
	'sessions change tasks');
foreach my $n (1 .. 20)
{
	sql($node, 'ALTER TABLE tasksched.tasks ADD COLUMN extra int');
	sql($node, 'ALTER TABLE tasksched.tasks DROP COLUMN extra');
	sql($node, "SELECT count(tasksched.schedule_task('note')) FROM generate_series(1, 5)");
}
sql($node, 'TRUNCATE tasksched.tasks') foreach 1 .. 20;
$load->signal('TERM');
eval { $load->finish };
unlike(log_since($node, $position), qr/deadlock detected/, 'no deadlock with ALTER TABLE and TRUNCATE');

# REINDEX while an action runs that has read tasks
sql($node, <<'EOT');
CREATE FUNCTION read_and_hold(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.get_tasks(), tasksched.get_task(task.id);
	PERFORM public.hold(task, first_launch);
END $$;
SELECT tasksched.register_action('read_and_hold', 'read_and_hold');
EOT
$id = schedule($node, q{'read_and_hold', 'reindex'});
wait_for_running($node, $id, 'an action that has read tasks runs');
wait_value($node,
	q{SELECT count(*) FROM pg_locks WHERE relation = 'tasksched.live'::regclass AND mode = 'RowExclusiveLock'}, '1',
	'for certain');
$old->begin('REINDEX TABLE tasksched.live');
wait_value($node, 'SELECT cardinality(pg_blocking_pids(' . $old->pid . '))', '1', 'REINDEX waits for it');
open_gate($node, 'reindex');
$old->end;
wait_for_status($node, $id, 'complete', 'it completes');
is(field_of($node, $id, 'launch'), '1', 'in its first launch');

$node->stop;
check_log($node);
done_testing();
