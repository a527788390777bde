# A fault at each step on the way of a task, from its claim to the end of its
# slot.  A process stops at a named point (src/fault.c) and
#	TERM		gets SIGTERM, and goes on
#	ERROR		does not stop, but raises an error
#	KILL		gets SIGKILL
#	immediate	is stopped there during an immediate shutdown of the server
#	postmaster	is stopped there when the postmaster gets SIGKILL
# while three innocent tasks, the neighbours, run as well.  Afterwards the task has
# finished, its counters are as they should be, and it has left its rows exactly
# once; the neighbours still run.  The limit is four tasks, so a slot that is lost
# stops the next cycle.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my @faults = qw(TERM ERROR KILL immediate postmaster);

# Each step has the point, the action of the task, and the result for each of the
# faults, or one result for all of them.  A result gives the task's launches, crashes
# and rows.  The task completes, unless the result begins with "failed".  "First
# again" means that a later launch was told that it is the first one.  A bar
# separates alternatives.
# Options:
#	lost		the claim is not flushed
#	before		an earlier fault, which ends the worker in the action; the scheduler
#				then stops at the point of this step while it clears up
my @steps = (
	[ 'launcher round', 'once', '1 0 1' ],
	[ 'tasks reaped', 'once', '1 0 1' ],
	[ 'slot reserved', 'once', '1 0 1' ],
	[ 'worker registered', 'once', '1 0 1' ],
	[ 'worker started', 'once', '1 0 1' ],
	[ 'worker attached', 'once', '1 0 1' ],
	[ 'worker announced', 'once', [ '1 0 1', '1 0 1', ('1 0 1|2 0 1') x 3 ] ],
	[ 'task claimed', 'once', [ '1 0 1', '2 0 1', '2 0 1', '2 0 1', '1 0 1|2 0 1' ] ],
	[ 'task taken', 'once', [ '1 0 1', '1 0 1', '2 0 1', '2 0 1', '1 0 1' ] ],
	[ 'task read', 'once', [ '2 0 1', '1 0 1', '2 0 1', '2 0 1', '1 0 1' ] ],
	[ 'in action', 'once', [ '2 0 1', 'failed 1 0 0', '2 1 1', '2 0 1', '1 0 1' ] ],
	[ 'in action', 'once', [ undef, undef, '2 1 1 first again', '1 0 1' ], lost => 1 ],
	[ 'action failed', 'failing', [ 'failed 2 0 0', 'failed 2 0 0', 'failed 2 0 0', 'failed 2 0 0', 'failed 1 0 0' ] ],
	[ 'action returned', 'once', [ '2 0 1', '2 0 1', '2 1 1', '2 0 1', '1 0 1' ] ],
	[ 'outcome written', 'once', [ '1 0 1', '2 0 1', '2 1 1', '2 0 1', '1 0 1' ] ],
	[ 'outcome committed', 'once', '1 0 1' ],
	[ 'slot settled', 'once', '1 0 1' ],

	# two stages, and the fault between them
	[ 'outcome committed', 'staged', [ '2 0 2', '3 0 2', '3 0 2', '3 0 2', '2 0 2' ] ],
	[ 'slot settled', 'staged', [ '2 0 2', '2 0 2', '3 0 2', '3 0 2', '2 0 2' ] ],

	# a procedure with a COMMIT, and the fault before and after it
	[ 'outcome written', 'with_commit', [ '2 0 2', '2 0 2', '2 1 2', '2 0 2', '1 0 2' ] ],
	[ 'in action', 'with_commit', [ '2 0 2', 'failed 1 0 1', '2 1 2', '2 0 2', '1 0 2' ] ],

	# the cleanup after a worker that is gone
	[ 'task put back', 'once', '2 0 1', before => 'TERM' ],
	[ 'task put back', 'once', '2 1 1', before => 'KILL' ],
	[ 'task put back', 'once', [ undef, ('2 1 1 first again') x 2 ], before => 'KILL', lost => 1 ],
);

my $node = new_node('faults', start => 0, conf => <<'EOT');
tasksched.max_running_tasks = 4
tasksched.worker_idle_timeout = 0	# a new process for each task
tasksched.reconcile_interval = 1h	# no cure but the right one
wal_writer_delay = 10s				# what nobody flushes is lost
EOT
$node->start;
my ($out, $err) = try_sql($node, <<'EOT');
CREATE FUNCTION fault_arm(point text, action text) RETURNS void AS 'tasksched', 'tasksched_fault_arm' LANGUAGE C STRICT;
CREATE FUNCTION fault_pid(point text) RETURNS int AS 'tasksched', 'tasksched_fault_pid' LANGUAGE C STRICT;
CREATE FUNCTION fault_release(point text) RETURNS void AS 'tasksched', 'tasksched_fault_release' LANGUAGE C STRICT;
CREATE FUNCTION fault_pass(point text) RETURNS void AS 'tasksched', 'tasksched_fault_pass' LANGUAGE C STRICT;
EOT
if ($err =~ /could not find function/)
{
	$node->stop;
	plan skip_all => 'the library was built without FAULT_POINTS=1';
}

# The tasks.  Each leaves a row as often as it commits.
create_fixtures($node);
sql($node, <<'EOT');
CREATE FUNCTION once(task tasksched.task, first_launch boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	PERFORM public.fault_pass('in action');
END $$;
CREATE FUNCTION failing(task tasksched.task, first_launch boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	RAISE EXCEPTION 'this task fails';
END $$;
CREATE FUNCTION staged(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	RETURN CASE WHEN task.result IS NULL THEN tasksched.proceed('1') ELSE tasksched.complete('2') END;
END $$;
CREATE PROCEDURE with_commit(task tasksched.task, first_launch boolean)
LANGUAGE plpgsql AS $$
BEGIN
	IF task.result IS NULL THEN
		PERFORM public.leave_row(task, first_launch);
		PERFORM tasksched.update_task(task.id, result => '1');
		COMMIT;
	END IF;
	PERFORM public.leave_row(task, first_launch);
	PERFORM public.fault_pass('in action');
END $$;
SELECT tasksched.register_action(a, 'public.' || a)
FROM unnest('{once,failing,staged,with_commit}'::text[]) a;
EOT

my $killed = 0;
my $launch = 1;	# the neighbours' launch: one more after each restart of the server
my @neighbours = split /\n/,
  sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{3}'), resource_id => 'gate')});

# SQL that is true if only the neighbours run, each in this launch
sub neighbours_run
{
	return sprintf(qq{(SELECT count(*) = 3 AND bool_and(state = 'running' AND action = 'hold' AND launch = %d)
		FROM tasksched.running_tasks)},
		$launch);
}

# Wait for a process that stops at a point; returns its pid.  Flushes earlier claims
# if asked to.
sub wait_for_stop
{
	my ($point, $flush) = @_;

	wait_until($node, "SELECT fault_pid('$point') IS NOT NULL", "a process stops at \"$point\"");
	return sql($node,
		"SELECT fault_pid('$point')" . ($flush ? " FROM pg_logical_emit_message(true, 'test', 'flush')" : ''));
}

# The rest of the fault, for the process that is stopped at the point
sub inject
{
	my ($fault, $point, $pid) = @_;

	if ($fault eq 'TERM')
	{
		signal_process('TERM', $pid);
		sql($node, "SELECT fault_release('$point')");
		return;
	}
	$launch++;
	if ($fault eq 'KILL')
	{
		signal_process('KILL', $pid);
		$killed++;
	}
	elsif ($fault eq 'immediate')
	{
		$node->stop('immediate');
		$node->start;
	}
	else
	{
		kill_postmaster($node);
	}
	return;
}

# What became of a task, as in the table above
sub outcome_of
{
	my ($task) = @_;

	return sql($node, <<"EOT");
SELECT concat_ws(' ', nullif(t.status, 'complete'), t.launch, t.crashes, r.n, r.again,
	nullif('attempt ' || attempt, 'attempt 1'))
FROM tasksched.tasks t,
	(SELECT count(*) AS n, max('first again') FILTER (WHERE first_launch AND launch > 1) AS again
		FROM runs WHERE id = '$task') r
WHERE t.id = '$task'
EOT
}

sub cycle
{
	my ($fault, $point, $action, $expected, %opt) = @_;
	my $position = log_position($node);
	my $stopped = $opt{before} ? 'in action' : $point;
	my $name = "$point, $action, " . join('', map { "$_ $opt{$_}, " } sort keys %opt) . $fault;
	my $start;

	my $task = sql($node, sprintf(q{SELECT tasksched.schedule_task('%s') FROM fault_arm('%s', '%s')},
		$action, $stopped, $fault eq 'ERROR' && !$opt{before} ? 'error' : 'stop'));
	sql($node, 'SELECT pg_reload_conf()') if $point eq 'launcher round';
	wait_for_status($node, $task, 'complete', "$name: no launcher is needed") if $point eq 'launcher round';

	if ($opt{before})
	{
		my $pid = wait_for_stop($stopped, !$opt{lost});

		sql($node, sprintf(q{SELECT fault_arm('%s', '%s')}, $point, $fault eq 'ERROR' ? 'error' : 'stop'));
		inject($opt{before}, $stopped, $pid);
	}
	if ($fault eq 'ERROR')
	{
		wait_for_log($node, qr/ERROR: .*fault at point "$point"/, $position, "$name: the error is raised");
		$start = time;
	}
	else
	{
		my $pid = wait_for_stop($point, !$opt{lost});

		$start = time;
		inject($fault, $point, $pid);
		# after two restarts in a row the neighbours are resumed once
		$launch-- if ($opt{before} // '') eq 'KILL' && $fault ne 'TERM';
	}

	wait_until($node,
		"SELECT status IN ('complete', 'failed') AND " . neighbours_run() . " FROM tasksched.tasks WHERE id = '$task'",
		"$name: the task has finished, its neighbours run");
	my $took = time - $start;
	like(outcome_of($task), qr/^($expected)$/, $name);
	cmp_ok($took, '<', 30, "$name: soon");
	return;
}

wait_until($node, 'SELECT ' . neighbours_run(), 'three neighbours run');
foreach my $step (@steps)
{
	my ($point, $action, $expected, %opt) = @$step;

	foreach my $i (0 .. $#faults)
	{
		my $outcome = ref $expected ? $expected->[$i] : $expected;

		cycle($faults[$i], $point, $action, $outcome, %opt) if defined $outcome;
	}
}

# ---------------------------------------------------------------------------
# More fast restarts than max_crashes.  And a scheduler that is terminated again and
# again is started again after a second each time.
# ---------------------------------------------------------------------------
foreach my $n (1 .. 4)
{
	$node->restart;
	$launch++;
	wait_until($node, 'SELECT ' . neighbours_run(), "fast restart $n: the neighbours are resumed");
}
my $start = time;
foreach my $n (1 .. 7)
{
	my $task = schedule($node, q{'once'});

	wait_for_status($node, $task, 'complete', "scheduler $n works");
	signal_process('TERM', scheduler_pid($node));
}
# with delays that double, this would take 127 s
cmp_ok(time - $start, '<', 60, 'schedulers are started again at once');

# ---------------------------------------------------------------------------
# A session locks the rows of tasks before the scheduler can resume them after a crash
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION wait_for_scan() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM tasksched.status WHERE database = current_database() AND last_scan IS NOT NULL) LOOP
		PERFORM pg_sleep(0.05);	-- polls
	END LOOP;
END $$;
EOT
my $locked = schedule($node, q{'hold', 'locked'});
wait_for_running($node, $locked, 'one more task runs');
flush_wal($node);
sql($node, q{SELECT fault_arm('launcher round', 'stop')});
signal_process('KILL', worker_pid($node, $locked));
$killed++;
wait_for_stop('launcher round');
sql($node, <<"EOT");
BEGIN;
SELECT tasksched.cancel_task(id) FROM unnest('{$locked, $neighbours[0]}'::uuid[]) id;
SELECT fault_release('launcher round');
SELECT wait_for_scan();
ROLLBACK;
EOT
$launch++;
open_gate($node, 'locked');
wait_for_status($node, $locked, 'complete', 'the culprit completes once its row is free');
is(field_of($node, $locked, 'launch, crashes, attempt'), '2|1|1', 'and its crash is counted');
wait_until($node, 'SELECT ' . neighbours_run(), 'the neighbours run, the locked one too');

# ---------------------------------------------------------------------------
# The workers of a role fail to start, again and again: its task waits,
# blocked_tasks gives the reason, and the tasks of other roles run
# ---------------------------------------------------------------------------
sql($node, q{CREATE ROLE unlucky; SELECT tasksched.grant_usage('unlucky')});
my $position = log_position($node);
my $unlucky = sql($node, q{SELECT fault_arm('worker attached', 'error'); SET ROLE unlucky;
	SELECT tasksched.schedule_task('note')}) =~ s/\s//gr;
wait_for_log($node, qr/fault at point "worker attached"/, $position, 'a worker fails to start');
wait_value($node,
	"SELECT reason FROM fault_arm('worker attached', 'error'), tasksched.blocked_tasks WHERE id = '$unlucky'",
	'workers of the role that owns the task fail to start; see the server log', 'blocked_tasks says so');
wait_for_log($node, qr/(fault at point "worker attached".*){2}/s, $position, 'so does the next one');
sql($node, q{SELECT fault_release('worker attached')});
wait_for_status($node, schedule($node, q{'note'}), 'complete', 'the task of another role runs');
wait_for_status($node, $unlucky, 'complete', 'as soon as a worker can start, the task runs');
is(field_of($node, $unlucky, 'launch, attempt, crashes'), '1|1|0', 'in its first launch');
is(sql($node, 'SELECT count(*) FROM tasksched.blocked_tasks'), 0, 'nothing is held up any more');

# ---------------------------------------------------------------------------
# A task is cancelled, or deleted by a superuser, while the scheduler is stopped, so
# no interrupt arrives: the action's next commit finds out, including a COMMIT inside
# a procedure
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE PROCEDURE with_commits(task tasksched.task, first_launch boolean)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	PERFORM tasksched.update_task(task.id, result => '1');
	COMMIT;
	PERFORM public.leave_row(task, first_launch);
	PERFORM tasksched.update_task(task.id, result => '2');
	PERFORM public.fault_pass('in action');
	COMMIT;
	PERFORM public.leave_row(task, first_launch);
END $$;
SELECT tasksched.register_action('with_commits', 'public.with_commits');
EOT
my $cancel = q{SELECT tasksched.cancel_task('%s')};
my $delete = q{DELETE FROM tasksched.live WHERE id = '%s'};

foreach my $case (
	[ 'once', $cancel, 'cancelled|1|', 0 ],
	[ 'once', $delete, '', 0 ],
	[ 'with_commits', $cancel, 'cancelled|1|1', 1 ],
	[ 'with_commits', $delete, '', 1 ])
{
	my ($action, $how, $expected, $rows) = @$case;
	my $name = "$action, " . sprintf($how, '...');
	my $position = log_position($node);

	my $task = sql($node, "SELECT tasksched.schedule_task('$action') FROM fault_arm('in action', 'stop')");
	wait_for_stop('in action');
	sql($node, q{SELECT tasksched.resume_scheduler() FROM fault_arm('tasks reaped', 'stop')});
	wait_for_stop('tasks reaped');
	sql($node, sprintf($how, $task));
	sql($node, q{SELECT fault_release('in action')});
	wait_for_log($node, qr/57014 ERROR: .*task $task was cancelled or deleted while its action ran/, $position,
		"$name: a commit finds out");
	sql($node, q{SELECT fault_release('tasks reaped')});
	wait_until($node, 'SELECT ' . neighbours_run(), "$name: nothing but the neighbours runs");
	is(field_of($node, $task, 'status, launch, result'), $expected, "$name: that is how it stays");
	is(sql($node, "SELECT count(*) FROM runs WHERE id = '$task'"),
		$rows, "$name: no effects but those of commits before");
}

# ---------------------------------------------------------------------------
# Something happens between the claim of a task and the call of its action: the task
# is cancelled or deleted, its owner becomes a superuser, its function is dropped, its
# database is renamed
# ---------------------------------------------------------------------------
foreach my $case ([ 'task taken', $cancel, 'cancelled|1' ], [ 'task taken', $delete, '' ],
	[ 'task read', $cancel, 'cancelled|1' ])
{
	my ($point, $how, $expected) = @$case;
	my $name = "$point, " . sprintf($how, '...');

	my $task = sql($node, "SELECT tasksched.schedule_task('once') FROM fault_arm('$point', 'stop')");
	wait_for_stop($point);
	# a scheduler that stops at this point has looked for changes
	sql($node, q{SELECT fault_arm('tasks reaped', 'stop')});
	sql($node, sprintf($how, $task) . '; SELECT tasksched.resume_scheduler()');
	wait_for_stop('tasks reaped');
	sql($node, "SELECT fault_release('tasks reaped'), fault_release('$point')");
	wait_until($node, 'SELECT ' . neighbours_run(), "$name: nothing but the neighbours runs");
	is(field_of($node, $task, 'status, launch'), $expected, "$name: that is how it stays");
	is(sql($node, "SELECT count(*) FROM runs WHERE id = '$task'"), 0, "$name: it has no effects");
}

$unlucky = sql($node, q{SELECT fault_arm('worker attached', 'stop'); SET ROLE unlucky;
	SELECT tasksched.schedule_task('note')}) =~ s/\s//gr;
wait_for_stop('worker attached');
sql($node, q{ALTER ROLE unlucky SUPERUSER; SELECT fault_release('worker attached')});
wait_for_status($node, $unlucky, 'complete', 'its owner becomes a superuser: the task runs');
is(field_of($node, $unlucky, 'launch, attempt'), '1|1', 'in its first launch');

sql($node, q{CREATE FUNCTION fleeting() RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1)';
	SELECT tasksched.register_action('fleeting', 'fleeting')});
$position = log_position($node);
my $fleeting = sql($node, q{SELECT tasksched.schedule_task('fleeting') FROM fault_arm('task taken', 'stop')});
wait_for_stop('task taken');
sql($node, q{DROP FUNCTION fleeting(); SELECT fault_release('task taken')});
wait_for_log($node, qr/could not launch task $fleeting: the action's function \S*fleeting\(\) does not exist/,
	$position, 'its function is dropped: the log says so');
wait_value($node, "SELECT status, launch, attempt FROM tasksched.tasks WHERE id = '$fleeting'", 'scheduled|0|0',
	'nothing is counted');
sql($node, q{CREATE FUNCTION fleeting() RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(2)';
	SELECT tasksched.register_action('fleeting', 'fleeting')});
wait_for_status($node, $fleeting, 'complete', 'it runs when there is one again');
is(field_of($node, $fleeting, 'launch, attempt, result'), '1|1|2', 'in its first launch');

sql($node, q{CREATE PROCEDURE fleeting_procedure() LANGUAGE sql AS 'SELECT 1';
	SELECT tasksched.register_action('fleeting_procedure', 'fleeting_procedure')});
$fleeting = sql($node, q{SELECT tasksched.schedule_task('fleeting_procedure') FROM fault_arm('task read', 'stop')});
wait_for_stop('task read');
sql($node, q{DROP PROCEDURE fleeting_procedure(); SELECT fault_release('task read')});
wait_value($node, "SELECT status, launch, attempt FROM tasksched.tasks WHERE id = '$fleeting'", 'scheduled|0|0',
	'its procedure is dropped when its worker has looked for it: the task has not begun');
wait_until($node, "SELECT reason ~ 'does not exist' FROM tasksched.blocked_tasks WHERE id = '$fleeting'",
	'and is held');

sql($node, 'CREATE DATABASE moving');
create_fixtures($node, 'moving');
sql($node, q{SELECT fault_arm('worker started', 'stop')});
my $moving = schedule($node, q{'note'}, 'moving');
wait_for_stop('worker started');
sql($node, q{ALTER DATABASE moving RENAME TO moved; SELECT fault_release('worker started')});
wait_for_status($node, $moving, 'complete', 'its database is renamed: the task runs', 'moved');
is(field_of($node, $moving, 'launch, attempt', 'moved'), '1|1', 'in its first launch');

# ---------------------------------------------------------------------------
# The neighbours have lived through all of that, and nothing is counted for them
# ---------------------------------------------------------------------------
open_gate($node, 'gate');
wait_value($node, "SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'gate' AND status = 'complete'",
	3, 'they complete');
is(sql($node, qq{SELECT count(*), min(launch), max(launch), max(attempt), max(crashes) FROM tasksched.tasks
		WHERE resource_id = 'gate'}),
	"3|$launch|$launch|1|0", 'with neither attempts nor crashes counted');
is(sql($node, qq{SELECT count(*), count(DISTINCT r.id), bool_or(r.first_launch)
		FROM runs r JOIN tasksched.tasks t USING (id) WHERE resource_id = 'gate'}),
	'3|3|f', 'each exactly once');

# no slot has been lost on the way
wait_value($node, 'SELECT count(*) FROM tasksched.running_tasks', 0, 'nothing runs any more');
my @all = split /\n/,
  sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{4}'), resource_id => 'all')});
wait_for_running($node, \@all, 'as many tasks as the limit allows run at once');
open_gate($node, 'all');
wait_value($node, "SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'all' AND status = 'complete'",
	4, 'and complete');

$node->stop;
check_log($node, signals => $killed);
done_testing();
