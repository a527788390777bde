# Workers end in many ways.  A crash is counted only for a task that ended its own
# worker, and everything else goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

my $node = new_node('worker_death');
my $crashes = 0;

# Wait until the server has restarted and these tasks run again
sub wait_for_resume
{
	my ($ids, $launch, $name) = @_;
	my $list = join(', ', map { "'$_'" } @$ids);

	wait_value(
		$node,
		qq{SELECT count(*) FROM tasksched.running_tasks
			WHERE state = 'running' AND launch = $launch AND task_id IN ($list)},
		scalar(@$ids), $name);
	my $ready = ready_since($node);
	is( sql($node, qq{SELECT count(*) FROM tasksched.running_tasks
			WHERE task_id IN ($list) AND since > $ready + interval '5 s'}),
		0, "$name: within 5 s");
	return;
}

# ---------------------------------------------------------------------------
# kill -9 of the worker of the same task, again and again
# ---------------------------------------------------------------------------
my @neighbours = split /\n/,
  sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{3}'), resource_id => 'gate')});
my $victim = schedule($node, q{'hold', 'victim'});
my $later = schedule($node, q{'note', delay => '1 h'});
foreach my $n (1 .. 3)
{
	if ($n == 1)
	{
		wait_for_running($node, [ @neighbours, $victim ], 'four tasks run');
	}
	else
	{
		wait_for_resume([ @neighbours, $victim ], $n, "after crash " . ($n - 1) . ' all are resumed');
		is( sql($node, "SELECT count(*), sum(attempt), sum(crashes) FROM tasksched.tasks WHERE resource_id = 'gate'"),
			'3|3|0', 'the neighbours count no crash and no attempt');
		is(field_of($node, $victim, 'attempt, crashes'), '1|' . ($n - 1), 'the victim does');
	}
	flush_wal($node);
	signal_process('KILL', worker_pid($node, $victim));
	$crashes++;
	wait_until($node, "SELECT crashes = $n FROM tasksched.tasks WHERE id = '$victim'", "crash $n is counted");
}
wait_for_status($node, $victim, 'failed', 'after max_crashes the victim has failed');
is(field_of($node, $victim, 'crashes, attempt, launch, error'),
	'3|1|3|task crashed its worker process 3 times', 'and its error says why');
wait_for_resume(\@neighbours, 4, 'the neighbours are resumed once more');
open_gate($node, 'gate');
wait_value($node, "SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'gate' AND status = 'complete'",
	3, 'the neighbours complete');
is(sql($node, "SELECT count(*), sum(attempt), sum(crashes) FROM tasksched.tasks WHERE resource_id = 'gate'"),
	'3|3|0', 'and have counted nothing');
is(sql($node, 'SELECT count(*), count(DISTINCT id), bool_or(first_launch) FROM runs'),
	'3|3|f', 'each committed once, in a resumed launch');
is(field_of($node, $later, 'status, launch, attempt, run_at > now()'), 'scheduled|0|0|t',
	'a task that is not due has not been touched');

# a task that failed like this can be retried; its crashes are reset
is(sql($node, "SELECT tasksched.retry_task('$victim')"), 't', 'the failed one is retried');
open_gate($node, 'victim');
wait_for_status($node, $victim, 'complete', 'and completes');
is(sql($node, "SELECT launch, attempt, crashes, first_launch FROM runs WHERE id = '$victim'"),
	'4|1|0|t', 'as if it were new, except that launches go on');

# ---------------------------------------------------------------------------
# Other signals that a broken action may die from
# ---------------------------------------------------------------------------
foreach my $signal ('ABRT', 'SEGV')
{
	my $neighbour = schedule($node, "'hold', 'n$signal'");
	my $task = schedule($node, "'hold', '$signal'");

	wait_for_running($node, [ $neighbour, $task ], 'two tasks run');
	flush_wal($node);
	signal_process($signal, worker_pid($node, $task));
	$crashes++;
	wait_for_resume([ $neighbour, $task ], 2, "both are resumed after SIG$signal");
	is(field_of($node, $task, 'crashes, attempt'), '1|1', "SIG$signal counts as a crash of its task");
	is(field_of($node, $neighbour, 'crashes, attempt'), '0|1', 'and not of its neighbour');
	open_gate($node, $signal);
	open_gate($node, "n$signal");
	wait_for_status($node, $task, 'complete', 'the task completes');
	wait_for_status($node, $neighbour, 'complete', 'the neighbour too');
	is(field_of($node, $task, 'crashes'), 1, 'the count is kept');
}

# ---------------------------------------------------------------------------
# A parallel worker of an action's query crashes: the crash counts as the action's
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE TABLE numbers AS SELECT n FROM generate_series(1, 10000) n;
ANALYZE numbers;
ALTER TABLE numbers SET (parallel_workers = 2);
CREATE FUNCTION slow(n int) RETURNS int LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	PERFORM pg_sleep(0.05);	-- the scenario: a query that takes a while
	RETURN n;
END $$;
CREATE FUNCTION in_parallel() RETURNS void LANGUAGE plpgsql
SET parallel_setup_cost = 0 SET parallel_tuple_cost = 0 SET min_parallel_table_scan_size = 0
SET parallel_leader_participation = off
AS $$ BEGIN PERFORM sum(slow(n)) FROM numbers; END $$;
SELECT tasksched.register_action('in_parallel', 'in_parallel');
EOT
my $beside = schedule($node, q{'hold', 'parallel'});
my $parallel = schedule($node, q{'in_parallel'});
wait_for_running($node, [ $beside, $parallel ], 'a task with a parallel query runs beside another');
my $helper = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'parallel worker' AND wait_event = 'PgSleep'};
wait_until($node, "SELECT count(*) = 2 FROM ($helper) p", 'it has two parallel workers');
flush_wal($node);
signal_process('KILL', (split /\n/, sql($node, $helper))[0]);
$crashes++;
wait_for_resume([ $beside, $parallel ], 2, 'both are resumed');
is(field_of($node, $parallel, 'crashes'), 1, 'the crash of its parallel worker counts');
is(field_of($node, $beside, 'crashes'), 0, 'and not for the neighbour');
sql($node, "SELECT tasksched.cancel_task('$parallel')");
open_gate($node, 'parallel');
wait_for_status($node, $beside, 'complete', 'which completes');

# ---------------------------------------------------------------------------
# FATAL that nobody asked for: the server does not restart
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION fatal(task tasksched.task) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	IF task.launch <= (task.params->>'times')::int THEN
		SET exit_on_error = on;
		RAISE EXCEPTION 'this ends the process';
	END IF;
END $$;
SELECT tasksched.register_action('fatal', 'fatal');
EOT
my $neighbour = schedule($node, q{'hold', 'fatal'});
wait_for_running($node, $neighbour, 'a neighbour runs');
my $task = schedule($node, q{'fatal', params => '{"times": 2}'});
wait_for_status($node, $task, 'complete', 'a task that ends its process by FATAL twice completes at last');
is(field_of($node, $task, 'crashes, attempt, launch'), '2|1|3', 'with two crashes');
$task = schedule($node, q{'fatal', params => '{"times": 100}'});
wait_for_status($node, $task, 'failed', 'one that always does has failed');
is(field_of($node, $task, 'crashes, attempt, launch, error'),
	'3|1|3|task crashed its worker process 3 times', 'after max_crashes');
is(sql($node, "SELECT launch FROM tasksched.running_tasks WHERE task_id = '$neighbour'"),
	1, 'the neighbour was not disturbed');
open_gate($node, 'fatal');
wait_for_status($node, $neighbour, 'complete', 'and completes');

# ---------------------------------------------------------------------------
# pg_terminate_backend, more often than max_crashes
# ---------------------------------------------------------------------------
$task = schedule($node, q{'hold', 'terminated'});
foreach my $n (1 .. 5)
{
	wait_until($node, "SELECT launch = $n FROM tasksched.running_tasks WHERE task_id = '$task' AND state = 'running'",
		"launch $n runs");
	sql($node, 'SELECT pg_terminate_backend(' . worker_pid($node, $task) . ')');
}
wait_until($node, "SELECT launch = 6 FROM tasksched.running_tasks WHERE task_id = '$task' AND state = 'running'",
	'the task is resumed each time');
is(field_of($node, $task, 'status, attempt, launch, crashes, error IS NULL'), 'active|1|6|0|t',
	'and nothing is counted');
open_gate($node, 'terminated');
wait_for_status($node, $task, 'complete', 'it completes');
is(sql($node, "SELECT launch, first_launch FROM runs WHERE id = '$task'"), '6|f', 'in one launch, not the first');

# ---------------------------------------------------------------------------
# An action terminates its own worker: no hot loop
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION end_itself() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_terminate_backend(pg_backend_pid());
	PERFORM pg_sleep(60);	-- the action ends here
END $$;
SELECT tasksched.register_action('end_itself', 'end_itself');
EOT
$task = schedule($node, q{'end_itself'});
wait_until($node, "SELECT launch >= 3 FROM tasksched.tasks WHERE id = '$task'",
	'an action that terminates its worker is launched again');
is(field_of($node, $task, q{clock_timestamp() - started_at >= (launch - 1) * interval '1 s', crashes}),
	't|0', 'a second later each time');
is(sql($node, "SELECT tasksched.cancel_task('$task')"), 't', 'it can be cancelled');

# ---------------------------------------------------------------------------
# A worker is terminated at the action's commit.  On exit the server drops the
# temporary tables, in a transaction that is not the action's.
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE TABLE entries (id uuid);
CREATE FUNCTION wait_at_commit() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM gates WHERE gate = 'commit') LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT ON entries
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
CREATE PROCEDURE enter(task tasksched.task)
LANGUAGE plpgsql AS $$
BEGIN
	CREATE TEMPORARY TABLE IF NOT EXISTS work ();
	COMMIT;
	INSERT INTO entries VALUES (task.id);
END $$;
SELECT tasksched.register_action('enter', 'enter');
EOT
$task = schedule($node, q{'enter'});
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^tasksched: enter' AND wait_event = 'PgSleep'},
	1, 'an action waits in a deferred trigger');
my $ended = worker_pid($node, $task);
sql($node, "SELECT pg_terminate_backend($ended)");
process_gone($ended);
open_gate($node, 'commit');
wait_for_status($node, $task, 'complete', 'terminated there, it is resumed');
is(sql($node, "SELECT launch, (SELECT count(*) FROM entries) FROM tasksched.get_task('$task')"),
	'2|1', 'and its effects and its outcome come together');

# ---------------------------------------------------------------------------
# pg_cancel_backend
# ---------------------------------------------------------------------------
$task = schedule($node, q{'hold', 'interrupted'});
sql($node, 'SELECT pg_cancel_backend(' . worker_pid($node, $task) . ')');
wait_for_status($node, $task, 'failed', 'after pg_cancel_backend the task has failed');
is(field_of($node, $task, "attempt, launch, crashes, error_details->>'sqlstate'"), '1|1|0|57014', 'with 57014');

# ---------------------------------------------------------------------------
# The same for idle workers
# ---------------------------------------------------------------------------
foreach my $function ('pg_terminate_backend', 'pg_cancel_backend')
{
	wait_until($node,
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'tasksched worker' AND state = 'idle'",
		'there is an idle worker');
	sql($node, "SELECT $function(pid) FROM pg_stat_activity WHERE backend_type = 'tasksched worker'");
	my $next = schedule($node, q{'note'});
	wait_for_status($node, $next, 'complete', "a task completes after $function of an idle worker");
	is(sql($node, "SELECT crashes, attempt, first_launch FROM runs WHERE id = '$next'"), '0|1|t',
		'and has counted nothing');
}

# no slot has been lost on the way
is(sql($node, 'SELECT running FROM tasksched.status'), 0, 'nothing runs any more');
my @all = split /\n/,
  sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{10}'), resource_id => 'all')});
wait_for_running($node, \@all, 'ten tasks run at once');
open_gate($node, 'all');
wait_value($node, "SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'all' AND status = 'complete'",
	10, 'and complete');

$node->stop;
check_log($node, signals => $crashes);
done_testing();
