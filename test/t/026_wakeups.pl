# Wake-ups that do not come from the session that began the change: prepared
# transactions, whichever process ends them and after any restart; pause_scheduler(),
# in every state of a launch; a worker that ends between its commit and its wake-up.
# All of them take effect at once.
#
# Scans are an hour apart, so they do not make up for a wake-up that is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use TaskschedSession;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = <<'EOT';
wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
max_prepared_transactions = 5
tasksched.reconcile_interval = '1h'
EOT
my $node = new_node('wakeups', conf => $conf);
my $id;

sub last_scan
{
	return sql($node, q{SELECT last_scan FROM tasksched.status WHERE database = 'postgres'});
}

# Wait for two rounds of the scheduler; then the first has been published
sub two_rounds
{
	wait_for_status($node, schedule($node, q{'note'}), 'complete', $_) foreach ('a round', 'another one');
	return;
}

# ---------------------------------------------------------------------------
# Prepared transactions
# ---------------------------------------------------------------------------
two_rounds();
my $scanned = last_scan();
sql($node, 'CREATE TABLE other (i int)');
foreach my $end (qw(COMMIT ROLLBACK))
{
	sql($node, q{BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'other'});
	sql($node, "$end PREPARED 'other'");
}
two_rounds();
is(last_scan(), $scanned, 'the end of a prepared transaction that is not ours asks for no scan');

# the end of a transaction that has used tasksched takes effect at once, whichever
# session ends it, while other prepared transactions stay
sql($node, q{BEGIN; SELECT tasksched.schedule_task('note', 'stays'); PREPARE TRANSACTION 'stays'});
sql($node, q{BEGIN; SELECT tasksched.schedule_task('note', 'scheduled'); PREPARE TRANSACTION 'p'});
sql($node, q{COMMIT PREPARED 'p'});
wait_value($node, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'scheduled'}, 'complete',
	'a task that was scheduled runs');

my $moved = schedule($node, q{'note', delay => '1 day'});
sql($node, "BEGIN; SELECT tasksched.update_task('$moved', run_at => now()); PREPARE TRANSACTION 'p'");
sql($node, q{COMMIT PREPARED 'p'});
wait_for_status($node, $moved, 'complete', 'one that was updated too');

my $failed = schedule($node, q{'raising', params => '{"message": "no"}'});
wait_for_status($node, $failed, 'failed', 'a task fails');
sql($node, "BEGIN; SELECT tasksched.retry_task('$failed'); PREPARE TRANSACTION 'p'");
sql($node, q{COMMIT PREPARED 'p'});
wait_until($node, "SELECT status = 'failed' AND launch = 2 FROM tasksched.tasks WHERE id = '$failed'",
	'one that was retried runs once more');

# A session locks a due task before it can run, so the task waits
sub lock_due
{
	my ($session, $locking) = @_;

	sql($node, 'SELECT tasksched.pause_scheduler()');
	$id = schedule($node, q{'note'});
	$session->query('BEGIN; SELECT tasksched.' . sprintf($locking, $id));
	return;
}

my $waiter = TaskschedSession->new($node);
foreach my $locking (q{cancel_task('%s')}, q{delete_task('%s')},
	q{update_task('%s', run_at => now() + interval '1 day')})
{
	lock_due($waiter, $locking);
	$waiter->query(q{PREPARE TRANSACTION 'p'});
	sql($node, 'SELECT tasksched.resume_scheduler()');
	two_rounds();
	is(status_of($node, $id), 'scheduled', 'a due task that is locked waits');
	sql($node, q{ROLLBACK PREPARED 'p'});
	wait_for_status($node, $id, 'complete', "and runs after the rollback of $locking");
}

$id = schedule($node, q{'hold', 'never'});
wait_for_running($node, $id, 'a task runs');
$waiter->begin("SELECT status FROM tasksched.wait_for_task('$id')");
wait_value($node,
	'SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Extension\' AND pid = ' . $waiter->pid, 1,
	'a session waits for it');
sql($node, "BEGIN; SELECT tasksched.cancel_task('$id'); PREPARE TRANSACTION 'p'");
my $start = time;
sql($node, q{COMMIT PREPARED 'p'});
is($waiter->end, 'cancelled', 'the session hears of a prepared cancel');
cmp_ok(time - $start, '<', 45, 'before it would have looked for itself');
wait_until($node, "SELECT NOT tasksched.task_is_running('$id')", 'and the action is interrupted');

$id = schedule($node, q{'note', delay => '1 day'});
$waiter->begin("SELECT count(*) FROM tasksched.wait_for_task('$id')");
wait_value($node,
	'SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Extension\' AND pid = ' . $waiter->pid, 1,
	'it waits for another');
sql($node, "BEGIN; SELECT tasksched.delete_task('$id'); PREPARE TRANSACTION 'p'");
$start = time;
sql($node, q{COMMIT PREPARED 'p'});
is($waiter->end, '0', 'and hears of a prepared delete');
cmp_ok(time - $start, '<', 45, 'before it would have looked for itself');

# the end of a prepared transaction is noticed even if a session waits for its rows
sql($node,
	q{BEGIN; UPDATE other SET i = 2; SELECT tasksched.schedule_task('note', 'waited for'); PREPARE TRANSACTION 'p'});
$waiter->query('BEGIN');
$waiter->begin('UPDATE other SET i = 3');
wait_value($node, 'SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Lock\' AND pid = ' . $waiter->pid, 1,
	'a session waits for a prepared transaction');
sql($node, q{COMMIT PREPARED 'p'});
$waiter->end;
wait_value($node, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'waited for'}, 'complete', 'its task runs');
$waiter->query('ROLLBACK');

# PREPARE that fails leaves nothing behind, however often it fails
lock_due($waiter, q{cancel_task('%s')});
sql($node, 'SELECT tasksched.resume_scheduler()');
two_rounds();
is(status_of($node, $id), 'scheduled', 'a due task that is locked waits');
$waiter->query(q{CREATE TEMP TABLE t (); PREPARE TRANSACTION 'p'});
wait_for_status($node, $id, 'complete', 'and runs when PREPARE fails');
my ($out, $err) = ('', '');
$node->psql('postgres',
	q{BEGIN; CREATE TEMP TABLE t (); SELECT tasksched.schedule_task('note'); PREPARE TRANSACTION 'p';} x 150,
	stdout => \$out, stderr => \$err, on_error_stop => 0);
my @refused = $err =~ /cannot PREPARE/g;
is(scalar(@refused), 150, 'PREPARE fails again and again');
sql($node, "BEGIN; SELECT tasksched.schedule_task('note', 'full $_'); PREPARE TRANSACTION 'full $_'") foreach (1 .. 4);
sqlstate_is($node, q{BEGIN; SELECT tasksched.schedule_task('note', 'full 5'); PREPARE TRANSACTION 'full 5'}, '53200',
	'the server allows for no more');
sql($node, "COMMIT PREPARED 'full $_'") foreach (1 .. 4);
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id ~ 'full' AND status = 'complete'}, 4,
	'all of them run');

# the extension is dropped and created again
sql($node, 'CREATE DATABASE other');
create_fixtures($node, 'other');
wait_for_status($node, schedule($node, q{'note'}, 'other'), 'complete', 'a database has its scheduler', 'other');
my $pid = scheduler_pid($node, 'other');
sql($node, q{BEGIN; DROP EXTENSION tasksched CASCADE; PREPARE TRANSACTION 'p'}, 'other');
sql($node, q{COMMIT PREPARED 'p'}, 'other');
process_gone($pid);
pass('DROP EXTENSION in a prepared transaction: it ends');
sql($node, 'DROP TABLE runs, gates', 'other');
sql($node, <<'EOT', 'other');
BEGIN;
CREATE EXTENSION tasksched;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS 'SELECT';
SELECT tasksched.register_action('nothing', 'nothing');
SELECT tasksched.schedule_task('nothing');
PREPARE TRANSACTION 'p';
EOT
sql($node, q{COMMIT PREPARED 'p'}, 'other');
wait_value($node, 'SELECT status FROM tasksched.tasks', 'complete',
	'CREATE EXTENSION and a task in one: the task runs', 'other');

# a process of the server is killed: what tasksched knew of prepared transactions is lost
sql($node, q{BEGIN; SELECT tasksched.schedule_task('note', 'crash'); PREPARE TRANSACTION 'crash'});
lock_due($waiter, q{cancel_task('%s')});
$waiter->query(q{PREPARE TRANSACTION 'locks'});
signal_process('KILL', $waiter->pid);
$waiter->gone;
wait_value($node, q{SELECT state FROM tasksched.status WHERE database = 'postgres' AND last_scan IS NOT NULL}, 'paused',
	'after a crash of the server the scheduler is there again');
sql($node, 'SELECT tasksched.resume_scheduler()');
two_rounds();
is(status_of($node, $id), 'scheduled', 'a due task that is locked waits');
sql($node, q{ROLLBACK PREPARED 'locks'});
wait_for_status($node, $id, 'complete', 'and runs when the transaction is rolled back');
foreach my $gid (qw(crash stays))
{
	sql($node, "COMMIT PREPARED '$gid'");
	wait_value($node, "SELECT status FROM tasksched.tasks WHERE resource_id = '$gid'", 'complete',
		"and a task is, when '$gid' is committed");
}
two_rounds();
$scanned = last_scan();
sql($node, q{BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'other'});
sql($node, q{COMMIT PREPARED 'other'});
two_rounds();
is(last_scan(), $scanned, 'from then on none that is not ours asks for a scan');

# ---------------------------------------------------------------------------
# A session that waits and is woken again and again needs no more memory for that
# ---------------------------------------------------------------------------
sub memory_used
{
	my ($session) = @_;
	my $position = log_position($node);

	sql($node, 'SELECT pg_log_backend_memory_contexts(' . $session->pid . ')');
	wait_for_log($node, qr/Grand total: .* \d+ used/, $position, 'a session tells of its memory');
	return log_since($node, $position) =~ /Grand total: .* (\d+) used/ ? $1 : undef;
}

# each cancel_task wakes the sessions that wait for a task whose id has the same last byte
sub wake_again_and_again
{
	my ($task, $times) = @_;

	sql($node, <<"EOT");
DO \$\$
BEGIN
	FOR i IN 1 .. $times LOOP
		PERFORM tasksched.cancel_task('$task');
		COMMIT;
		PERFORM tasksched.retry_task('$task');
		COMMIT;
	END LOOP;
END \$\$
EOT
	return;
}

sql($node, 'SELECT tasksched.pause_scheduler()');
my ($awaited, $other) = split /\n/, sql($node, <<'EOT');
WITH t AS (
	SELECT id, get_byte(uuid_send(id), 15) % 64 AS k
	FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{200}'), delay => '1 day') id)
SELECT id FROM t JOIN (SELECT k FROM t GROUP BY k ORDER BY count(*) DESC LIMIT 1) most USING (k) LIMIT 2
EOT
$waiter = TaskschedSession->new($node);
$waiter->begin("SELECT status FROM tasksched.wait_for_task('$awaited')");
wait_value($node,
	'SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Extension\' AND pid = ' . $waiter->pid, 1,
	'a session waits');
wake_again_and_again($other, 100);
my $used = memory_used($waiter);
wake_again_and_again($other, 1000);
cmp_ok(memory_used($waiter) - $used, '<', 10_000, 'it needs no more memory');
sql($node, "SELECT tasksched.cancel_task('$awaited'), tasksched.cancel_task('$other'), tasksched.resume_scheduler()");
is($waiter->end, 'cancelled', 'it hears of its task');
$waiter->quit;

# ---------------------------------------------------------------------------
# A subscription with two_phase: a worker of logical replication prepares and commits
# ---------------------------------------------------------------------------
my $subscriber = new_node('subscriber', conf => $conf);
sql($_, 'CREATE TABLE orders (i int PRIMARY KEY)') foreach ($node, $subscriber);
sql($subscriber, <<'EOT');
CREATE FUNCTION on_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.schedule_task('note', 'order ' || NEW.i);
	RETURN NEW;
END $$;
CREATE TRIGGER on_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION on_order();
ALTER TABLE orders ENABLE ALWAYS TRIGGER on_order;
EOT
sql($node, 'CREATE PUBLICATION orders FOR TABLE orders');
my $connstr = $node->connstr('postgres');
sql($subscriber, "CREATE SUBSCRIPTION orders CONNECTION \$c\$$connstr\$c\$ PUBLICATION orders WITH (two_phase = on)");
wait_value($subscriber, 'SELECT subtwophasestate FROM pg_subscription', 'e', 'a subscription has two_phase enabled');
sql($node, 'INSERT INTO orders VALUES (1)');
wait_value($subscriber, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'order 1'}, 'complete',
	'a trigger schedules a task');
sql($node, q{BEGIN; INSERT INTO orders VALUES (2); PREPARE TRANSACTION 'order'});
wait_value($subscriber, 'SELECT count(*) FROM pg_prepared_xacts', 1, 'a transaction is prepared on the subscriber too');
is(sql($subscriber, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'order 2'}), 0, 'its task is not there');
sql($node, q{COMMIT PREPARED 'order'});
wait_value($subscriber, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'order 2'}, 'complete',
	'it runs when that is committed');
sql($subscriber, 'DROP SUBSCRIPTION orders');
$subscriber->stop;
check_log($subscriber);

# ---------------------------------------------------------------------------
# The rest needs points at which a process can be stopped
# ---------------------------------------------------------------------------
(undef, $err) = try_sql($node, <<'EOT');
CREATE FUNCTION fault_arm(point text, action text) RETURNS void AS 'tasksched', 'tasksched_fault_arm' LANGUAGE C STRICT;
CREATE FUNCTION fault_pid(point text) RETURNS int AS 'tasksched', 'tasksched_fault_pid' LANGUAGE C STRICT;
CREATE FUNCTION fault_release(point text) RETURNS void AS 'tasksched', 'tasksched_fault_release' LANGUAGE C STRICT;
EOT
if ($err =~ /could not find function/)
{
	$node->stop;
	check_log($node, signals => 1);
	done_testing();
	exit;
}

sub wait_for_stop
{
	my ($point) = @_;

	wait_until($node, "SELECT fault_pid('$point') IS NOT NULL", "a process stops at \"$point\"");
	return sql($node, "SELECT fault_pid('$point')");
}

# ---------------------------------------------------------------------------
# pause_scheduler(): once the commit has returned, nothing is launched
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION stages(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	RETURN CASE WHEN task.result IS NULL THEN tasksched.proceed('1') ELSE tasksched.complete('2') END;
END $$;
SELECT tasksched.register_action('stages', 'stages');
EOT

# A process stops at a point during the launch of a task, the scheduler is paused, and
# the process goes on: the task is as it was before
sub pause_at
{
	my ($point, $pause) = @_;

	wait_for_status($node, schedule($node, q{'note'}), 'complete', 'a worker is there');
	my $task = sql($node, "SELECT tasksched.schedule_task('note') FROM fault_arm('$point', 'stop')");

	wait_for_stop($point);
	sql($node, $_) foreach @$pause;
	sql($node, "SELECT fault_release('$point')");
	wait_until($node, qq{SELECT status = 'scheduled' AND launch = 0 AND attempt = 0 AND first_launch
		AND started_at IS NULL FROM tasksched.live WHERE id = '$task'},
		"$point: the task is as it was before");
	return $task;
}

my $pause = 'SELECT tasksched.pause_scheduler()';
foreach my $point ('tasks reaped', 'task claimed', 'task taken', 'task read')
{
	my @tasks = (pause_at($point, [$pause]));

	wait_until($node, q{SELECT state = 'paused' AND pid IS NOT NULL FROM tasksched.status WHERE database = 'postgres'},
		'status says so');
	push @tasks, schedule($node, q{'note'});
	# a registration causes a scan
	$scanned = last_scan();
	sql($node, q{SELECT tasksched.register_action('note', 'note')});
	wait_until($node, "SELECT last_scan > '$scanned' FROM tasksched.status WHERE database = 'postgres'",
		'a scan later');
	is(field_of($node, $_, 'status, launch, attempt'), 'scheduled|0|0', 'nothing is launched') foreach @tasks;
	sql($node, 'SELECT tasksched.resume_scheduler()');
	wait_for_status($node, $_, 'complete', 'when it is resumed, it runs') foreach @tasks;
	is(sql($node, "SELECT string_agg(launch::text, ' ') FROM runs WHERE id = '$_'"), 1, 'in its first launch')
	  foreach @tasks;
}

# this holds even if the scheduler has not seen the pause yet
wait_for_status($node, schedule($node, q{'note'}), 'complete', 'a worker is there');
my @held = (sql($node, q{SELECT tasksched.schedule_task('note') FROM fault_arm('task read', 'stop')}));
$pid = wait_for_stop('task read');
push @held, sql($node, q{SELECT tasksched.schedule_task('note') FROM fault_arm('tasks reaped', 'stop')});
wait_for_stop('tasks reaped');
sql($node, $pause);
is(sql($node, q{SELECT state FROM tasksched.status WHERE database = 'postgres'}),
	'paused', 'status says so before the scheduler has seen it');
sql($node, q{SELECT fault_release('task read')});
process_gone($pid);
is(sql($node, q{SELECT count(*) FROM runs WHERE id = '} . $held[0] . q{'}), 0, 'a worker does not begin its task');
sql($node, q{SELECT fault_release('tasks reaped')});
wait_value($node,
	'SELECT count(*) FROM tasksched.live WHERE status = \'scheduled\' AND launch = 0 AND id IN ('
	  . join(', ', map { "'$_'" } @held) . ')',
	2, 'both tasks are as they were before');
sql($node, 'SELECT tasksched.resume_scheduler()');
wait_for_status($node, $_, 'complete', 'when it is resumed, it runs') foreach @held;

# a pause in a prepared transaction; one that is taken back
$id = pause_at('task read', [ "BEGIN; $pause; PREPARE TRANSACTION 'p'", q{COMMIT PREPARED 'p'} ]);
sql($node, 'SELECT tasksched.resume_scheduler()');
wait_for_status($node, $id, 'complete', 'after a pause by COMMIT PREPARED');
foreach my $undone (
	"BEGIN; $pause; ROLLBACK", "BEGIN; SAVEPOINT s; $pause; ROLLBACK TO s; COMMIT",
	"BEGIN; $pause; PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'",
	"BEGIN; $pause; SELECT tasksched.resume_scheduler(); COMMIT")
{
	$id = sql($node, q{SELECT tasksched.schedule_task('note') FROM fault_arm('task read', 'stop')});
	wait_for_stop('task read');
	sql($node, $undone);
	sql($node, q{SELECT fault_release('task read')});
	wait_for_status($node, $id, 'complete', "not paused: $undone");
	is(field_of($node, $id, 'launch, attempt'), '1|1', 'it counts one launch');
}

# a pause between the stages of a task
$id = sql($node, q{SELECT tasksched.schedule_task('stages') FROM fault_arm('outcome committed', 'stop')});
wait_for_stop('outcome committed');
sql($node, $pause);
sql($node, q{SELECT fault_release('outcome committed')});
wait_until($node, "SELECT status = 'scheduled' AND launch = 1 FROM tasksched.tasks WHERE id = '$id'",
	'the next stage is not launched');
is(sql($node, "SELECT count(*) FROM runs WHERE id = '$id'"), 1, 'it has left no row');
sql($node, 'SELECT tasksched.resume_scheduler()');
wait_for_status($node, $id, 'complete', 'but it is when the scheduler is resumed');
is(sql($node, "SELECT string_agg(launch::text, ' ' ORDER BY launch) FROM runs WHERE id = '$id'"),
	'1 2', 'each stage once');

# ---------------------------------------------------------------------------
# A worker is terminated after the commit of the outcome, before it has woken the
# sessions that wait: at that point it finds out which library was loaded
# ---------------------------------------------------------------------------
SKIP:
{
	skip 'postgres_fdw is not installed', 1
	  if sql($node, q{SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'}) == 0;
	sql($node, 'CREATE EXTENSION postgres_fdw');
	$id = sql($node,
		q{SELECT tasksched.schedule_task('run_sql', delay => '1 s', params => '{"sql": "LOAD ''postgres_fdw''"}')
			FROM fault_arm('outcome committed', 'stop')});
	$waiter = TaskschedSession->new($node);
	$waiter->begin("SELECT status FROM tasksched.wait_for_task('$id')");
	$pid = wait_for_stop('outcome committed');
	$start = time;
	signal_process('TERM', $pid);
	sql($node, q{SELECT fault_release('outcome committed')});
	is($waiter->end, 'complete', 'who waits for the task of a worker that was terminated hears of it');
	cmp_ok(time - $start, '<', 45, 'before it would have looked for itself');
	process_gone($pid);
	is(field_of($node, $id, 'status, launch'), 'complete|1', 'it stays complete');
	$waiter->quit;
}

$node->stop;
check_log($node, signals => 1);
done_testing();
