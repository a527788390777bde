# When tasks start and stop: due times, wake-ups that do not come from the commit
# of a session, an idle scheduler, and cancel_task.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

my $node = new_node('wakeup', conf => "max_prepared_transactions = 5\ntasksched.reconcile_interval = '10min'\n");
my $id;

# ---------------------------------------------------------------------------
# A claim reads only what it claims, not the whole queue, even with plans that were
# made while the queue was empty
# ---------------------------------------------------------------------------
$id = schedule($node, q{'nap', params => '{"s": 0}'});
wait_for_status($node, $id, 'complete', 'a first task');
sql($node, q{SELECT count(*) FROM tasksched.schedule_tasks('nap', array_fill('{"s": 0}'::jsonb, '{3000}'))});
wait_value($node, 'SELECT count(*) FROM tasksched.live', 0, '3,000 more');
wait_until($node, q{SELECT n_tup_del >= 3001 FROM pg_stat_all_tables WHERE relid = 'tasksched.live'::regclass},
	'the statistics have arrived');
cmp_ok(sql($node, q{SELECT sum(idx_tup_read) / 3001 FROM pg_stat_all_indexes WHERE relid = 'tasksched.live'::regclass}),
	'<', 100, 'index entries read for each');

# ---------------------------------------------------------------------------
# Due times
# ---------------------------------------------------------------------------
my @ids = map { schedule($node, "'note', delay => '$_ s'") } (0.2, 0.7, 1.5, 2);
foreach my $one (@ids)
{
	wait_for_status($node, $one, 'complete', 'a task runs at its due time');
	is(field_of($node, $one, q{started_at >= run_at AND started_at < run_at + interval '1 s'}),
		't', 'neither before nor long after');
}
# tasks that are scheduled together with one that is due at once
@ids = split /\n/,
  sql($node, q{SELECT tasksched.schedule_task('note', delay => d) FROM unnest('{0 s,0.8 s,1.5 s}'::interval[]) d});
foreach my $one (@ids)
{
	wait_for_status($node, $one, 'complete', 'a task that was scheduled with an earlier one runs at its due time');
	is(field_of($node, $one, q{started_at >= run_at AND started_at < run_at + interval '1 s'}),
		't', 'neither before nor long after');
}
my $tomorrow = schedule($node, q{'note', delay => '1 day'});
my $moved = schedule($node, q{'note', delay => '1 day'});
sql($node,
	"SELECT tasksched.schedule_task('note'), tasksched.update_task('$moved', run_at => now() + interval '0.8 s')");
wait_for_status($node, $moved, 'complete', 'one that gets an earlier due time beside it, too');
is(field_of($node, $moved, q{started_at >= run_at AND started_at < run_at + interval '1 s'}),
	't', 'neither before nor long after');
sql($node, "SELECT tasksched.update_task('$tomorrow', result => '1')");
is(field_of($node, $tomorrow, 'status, launch'), 'scheduled|0', 'an update does not make a task run');
sql($node, "SELECT tasksched.update_task('$tomorrow', run_at => now())");
wait_for_status($node, $tomorrow, 'complete', 'but an earlier due time does');

# ---------------------------------------------------------------------------
# A warm worker stays when other roles change
# ---------------------------------------------------------------------------
wait_for_status($node, schedule($node, q{'note'}), 'complete', 'there is a worker');
my $moment = sql($node, 'SELECT clock_timestamp()');
sql($node, 'CREATE ROLE someone; ALTER ROLE someone SUPERUSER; ALTER ROLE someone RENAME TO somebody');
wait_for_status($node, schedule($node, q{'note'}), 'complete', 'after a change of another role');
is(sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched worker' AND backend_start > '$moment'"),
	0, 'it runs the next task');

# ---------------------------------------------------------------------------
# An idle scheduler runs no query
# ---------------------------------------------------------------------------
my $far = schedule($node, q{'note', delay => '2 h'});
wait_value($node, 'SELECT count(*) FROM tasksched.running_tasks', 0, 'nothing runs');
my $scans = q{SELECT idx_scan + seq_scan FROM pg_stat_all_tables WHERE relid = 'tasksched.live'::regclass};
wait_until($node, qq{SELECT backend_xmin IS NULL AND xact_start IS NULL FROM pg_stat_activity
	WHERE backend_type = 'tasksched scheduler'},
	'an idle scheduler is in no transaction');
sql($node, 'SELECT pg_sleep(1) /* whatever it still has to report */');
my $before = sql($node, $scans);
sql($node, 'SELECT pg_sleep(2) /* the time that is looked at */');
is(sql($node, $scans), $before, 'and reads nothing');

# ---------------------------------------------------------------------------
# The scan finds what no commit announces
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', "tasksched.reconcile_interval = '1s'\n");
$node->reload;
sql($node, "UPDATE tasksched.live SET run_at = now() WHERE id = '$far'");
wait_for_status($node, $far, 'complete', 'a row that a superuser changed is found by the scan');

# stuck tasks are reported once
$node->append_conf('postgresql.conf', "tasksched.stuck_after = '1s'\n");
$node->reload;
my $position = log_position($node);
my $stuck = schedule($node, q{'hold', 'stuck'});
wait_until($node, "SELECT count(*) = 1 FROM tasksched.stuck_tasks WHERE id = '$stuck'",
	'a task without an update is stuck');
wait_for_log($node, qr/WARNING: .*task \Q$stuck\E \(action "hold"\) is active/, $position, 'and warned of');
my $scan = sql($node, 'SELECT last_scan FROM tasksched.status');
wait_until($node, "SELECT last_scan > '$scan'::timestamptz + interval '2 s' FROM tasksched.status", 'some scans later');
my @warnings = log_since($node, $position) =~ /may be stuck/g;
is(scalar(@warnings), 1, 'it was warned of once');
open_gate($node, 'stuck');
wait_for_status($node, $stuck, 'complete', 'it completes');

# retention applies to cancelled tasks as well
$node->append_conf('postgresql.conf', "tasksched.keep_finished_tasks = '1s'\n");
$node->reload;
wait_value($node, 'SELECT count(*) FROM tasksched.finished', 0,
	'old finished tasks are deleted, whatever their status');

# ---------------------------------------------------------------------------
# Cancel
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', "tasksched.keep_finished_tasks = '1h'\n");
$node->reload;
sql($node, <<'EOT');
CREATE FUNCTION stubborn(task tasksched.task) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.update_task(task.id, result => '"under way"');
	LOOP
		BEGIN
			PERFORM pg_sleep(1000);	-- the scenario: the action hangs
		EXCEPTION WHEN query_canceled THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT tasksched.register_action('stubborn', 'stubborn');
EOT
$id = schedule($node, q{'stubborn'});
wait_for_running($node, $id, 'an action that catches query_canceled runs, and has called update_task');
my $worker = worker_pid($node, $id);
is(sql($node, qq{SET lock_timeout = '10s'; BEGIN; SELECT tasksched.cancel_task('$id'); ROLLBACK;
		SELECT status FROM tasksched.get_task('$id')}),
	"t\nactive", 'a cancel that is rolled back does not wait and changes nothing');
is(sql($node, "SELECT tasksched.task_is_running('$id')"), 't', 'it goes on');
sql($node, "BEGIN; SAVEPOINT s; SELECT tasksched.cancel_task('$id'); ROLLBACK TO s; COMMIT");
is(field_of($node, $id, 'status'), 'active', 'nor does one whose savepoint is rolled back');
sql($node, "SET lock_timeout = '10s'; SELECT tasksched.cancel_task('$id')");
is(field_of($node, $id, 'status, result IS NULL'), 'cancelled|t', 'at the commit it is cancelled');
process_gone($worker);
pass('it was interrupted again and at last terminated');
is(field_of($node, $id, 'status, crashes, launch'), 'cancelled|0|1', 'and stays cancelled');

# A locked row holds up no other task.  It is found when the lock is released: at the
# end of a prepared transaction, and at the abort of a subtransaction whose session
# goes on.
$node->append_conf('postgresql.conf', "tasksched.reconcile_interval = '10min'\n");
$node->reload;
sql($node, <<'EOT');
CREATE FUNCTION lock_for_a_while(task tasksched.task) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM tasksched.cancel_task((task.params ->> 'id')::uuid);
		PERFORM tasksched.report_progress(1);
		WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = 'let go') LOOP
			PERFORM pg_sleep(0.05);	-- polls inside the action
		END LOOP;
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = 'end') LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
END $$;
SELECT tasksched.register_action('lock_for_a_while', 'lock_for_a_while');
EOT
my $locked = schedule($node, q{'note', delay => '1 h'});
sql($node, qq{UPDATE tasksched.live SET run_at = now() + interval '4 s' WHERE id = '$locked';
	SELECT tasksched.resume_scheduler()});
my $locker = schedule($node, "'lock_for_a_while', params => '{\"id\": \"$locked\"}'");
wait_until($node, "SELECT count(*) = 1 FROM tasksched.running_tasks WHERE task_id = '$locker' AND progress IS NOT NULL",
	'an action has cancelled a task in a subtransaction');
wait_until($node, "SELECT now() > run_at + interval '0.5 s' FROM tasksched.tasks WHERE id = '$locked'",
	'the task becomes due');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'one whose row is locked holds up no other');
is(status_of($node, $locked), 'scheduled', 'it waits');
open_gate($node, 'let go');
wait_for_status($node, $locked, 'complete', 'and runs when the subtransaction is rolled back');
is(sql($node, "SELECT tasksched.task_is_running('$locker')"), 't', 'while the transaction goes on');
open_gate($node, 'end');
wait_for_status($node, $locker, 'complete', 'it completes');

$locked = schedule($node, q{'note', delay => '2 s'});
sql($node, "BEGIN; SELECT tasksched.cancel_task('$locked'); PREPARE TRANSACTION 'p3'");
wait_until($node, "SELECT now() > run_at + interval '0.5 s' FROM tasksched.tasks WHERE id = '$locked'",
	'another becomes due, locked');
is(status_of($node, $locked), 'scheduled', 'it waits');
sql($node, q{ROLLBACK PREPARED 'p3'});
wait_for_status($node, $locked, 'complete', 'and runs when the prepared cancel is rolled back');

# ---------------------------------------------------------------------------
# A persistent error in the scheduler: commits do not turn it into a hot loop
# ---------------------------------------------------------------------------
sql($node, 'ALTER TABLE tasksched.tasks RENAME started_at TO renamed');	# claims fail
$position = log_position($node);
my $since = time;
my @waiting;
do { push @waiting, schedule($node, q{'note'}) foreach 1 .. 20 } while (time - $since < 4);
my $errors = () = log_since($node, $position) =~ /tasksched scheduler \w* *ERROR: /g;
cmp_ok($errors, '>=', 2, 'the scheduler tries again');
cmp_ok($errors, '<=', 3 + time - $since, 'once a second, whatever is committed');
sql($node, 'ALTER TABLE tasksched.tasks RENAME renamed TO started_at');
wait_for_status($node, $_, 'complete', 'then it goes on') foreach $waiting[0], $waiting[-1];

$node->stop;
check_log($node);
done_testing();
