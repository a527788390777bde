# Two-phase commit; hot standbys, failover to a standby, and the return of the old
# primary; synchronous replication.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# wal_log_hints is for pg_rewind; scans are too rare to make up for a lost wake-up
my $old = new_node('old', streaming => 1, conf => <<'EOT');
max_prepared_transactions = 10
wal_log_hints = on
wal_keep_size = '256MB'
tasksched.reconcile_interval = '10min'
EOT
my $unknown = '00000000-0000-7000-8000-000000000000';
my $id;

# ---------------------------------------------------------------------------
# Two-phase commit, from another session
# ---------------------------------------------------------------------------
sql($old, q{BEGIN; SELECT tasksched.schedule_task('note', 'prepared'); PREPARE TRANSACTION 'schedule'});
sql($old, q{BEGIN; SELECT tasksched.schedule_task('note', 'undone'); PREPARE TRANSACTION 'undone'});
$id = schedule($old, q{'note', delay => '1 h'});
sql($old, "BEGIN; SELECT tasksched.update_task('$id', run_at => now()); PREPARE TRANSACTION 'update'");
my $other = schedule($old, q{'note'});
wait_for_status($old, $other, 'complete', 'other tasks run meanwhile');
is(sql($old, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'prepared'}), 0, 'a prepared one is not there');
sql($old, q{COMMIT PREPARED 'schedule'});
wait_value($old, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'prepared'}, 'complete',
	'until COMMIT PREPARED');
is(status_of($old, $id), 'scheduled', 'a prepared update has not happened');
sql($old, q{COMMIT PREPARED 'update'});
wait_for_status($old, $id, 'complete', 'before COMMIT PREPARED');
sql($old, q{ROLLBACK PREPARED 'undone'});
is(sql($old, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'undone'}),
	0, 'ROLLBACK PREPARED leaves no task');

$id = schedule($old, q{'hold', 'never'});
wait_for_running($old, $id, 'a task runs');
sql($old, "BEGIN; SELECT tasksched.cancel_task('$id'); PREPARE TRANSACTION 'cancel'");
is(sql($old, "SELECT tasksched.task_is_running('$id')"), 't', 'a prepared cancel does not stop it');
sql($old, q{COMMIT PREPARED 'cancel'});
wait_until($old, "SELECT NOT tasksched.task_is_running('$id')", 'COMMIT PREPARED does');
is(status_of($old, $id), 'cancelled', 'it is cancelled');

$id = schedule($old, q{'hold', 'locked'});
wait_for_running($old, $id, 'another runs');
sql($old, "BEGIN; SELECT tasksched.cancel_task('$id'); PREPARE TRANSACTION 'cancel'");
open_gate($old, 'locked');
wait_value($old,
	q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched worker' AND wait_event_type = 'Lock'}, 1,
	'its worker waits for a prepared cancel');
sql($old, q{ROLLBACK PREPARED 'cancel'});
wait_for_status($old, $id, 'complete', 'it completes at ROLLBACK PREPARED');

sql($old, <<'EOT');
CREATE PROCEDURE preparing() LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'PREPARE TRANSACTION ''own''';
END $$;
SELECT tasksched.register_action('preparing', 'preparing');
EOT
$id = schedule($old, q{'preparing'});
wait_for_status($old, $id, 'failed', 'an action cannot prepare its transaction');
is(field_of($old, $id, q{error_details->>'sqlstate'}), '0A000', 'it fails with the error that the server raises');

# The extension itself is in a prepared transaction: neither PREPARE nor anything else
# starts a scheduler over and over to look for it
sql($old, 'CREATE DATABASE late');
my $oid = sql($old, q{SELECT oid FROM pg_database WHERE datname = 'late'});
sql($old, 'ALTER SYSTEM SET log_min_messages = debug1');
$old->reload;
wait_value($old, 'SHOW log_min_messages', 'debug1', 'each start of a scheduler is logged');
my $position = log_position($old);
sql($old, <<'EOT', 'late');
BEGIN;
CREATE EXTENSION tasksched;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS 'SELECT';
SELECT tasksched.register_action('nothing', 'nothing');
SELECT tasksched.schedule_task('nothing');
PREPARE TRANSACTION 'extension';
EOT
my $started = qr/ registering background worker "tasksched scheduler for database $oid"/;
sql($old, 'SELECT pg_sleep(1) /* the time that is looked at */');
my @starts = log_since($old, $position) =~ /$started/g;
cmp_ok(scalar(@starts), '<=', 1, 'but for the first look at a new database');

# A restart in between
sql($old, q{BEGIN; SELECT tasksched.schedule_task('note', 'restart'); PREPARE TRANSACTION 'schedule'});
$id = schedule($old, q{'hold', 'never'});
wait_for_running($old, $id, 'a task runs');
sql($old, "BEGIN; SELECT tasksched.cancel_task('$id'); PREPARE TRANSACTION 'cancel'");
sql($old, 'ALTER SYSTEM RESET log_min_messages');
$old->restart;
wait_value($old, q{SELECT state FROM tasksched.status WHERE database = 'postgres'}, 'running',
	'the server was restarted');
is(sql($old, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'restart'}), 0, 'no task has come of it');
sql($old, q{COMMIT PREPARED 'schedule'});
wait_value($old, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'restart'}, 'complete',
	'COMMIT PREPARED after a restart: the task runs');
sql($old, q{COMMIT PREPARED 'cancel'});
wait_for_status($old, $id, 'cancelled', 'another is cancelled');
wait_value($old, 'SELECT count(*) FROM tasksched.running_tasks', 0, 'and does not run');
sql($old, q{COMMIT PREPARED 'extension'}, 'late');
wait_value($old, 'SELECT status FROM tasksched.tasks', 'complete', 'and one that came with its extension runs', 'late');

# ---------------------------------------------------------------------------
# Standbys can be read, but not written to
# ---------------------------------------------------------------------------
$old->backup('backup');
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init_from_backup($old, 'backup', has_streaming => 1);
$new->start;
my $cascade = PostgreSQL::Test::Cluster->new('cascade');
$cascade->init_from_backup($old, 'backup');
$cascade->enable_streaming($new);
$cascade->set_standby_mode;
$cascade->start;

# walk() commits three steps, and waits at the gate before the second
sql($old, <<'EOT');
CREATE TABLE steps (id uuid, step int);
CREATE PROCEDURE walk(task tasksched.task, first_launch boolean) LANGUAGE plpgsql AS $$
BEGIN
	FOR step IN coalesce(task.result::int, 0) + 1 .. 3 LOOP
		WHILE step = 2 AND NOT EXISTS (SELECT FROM gates WHERE gate = task.resource_id) LOOP
			PERFORM pg_sleep(0.05);	-- polls inside the action
		END LOOP;
		INSERT INTO steps VALUES (task.id, step);
		PERFORM tasksched.update_task(task.id, result => to_jsonb(step));
		COMMIT;
	END LOOP;
END $$;
SELECT tasksched.register_action('walk', 'walk');
EOT
my $held = schedule($old, q{'hold', 'failover'});
my $walk = schedule($old, q{'walk', 'failover'});
my $later = schedule($old, q{'note', delay => '3 s'});
sql($old, q{BEGIN; SELECT tasksched.schedule_task('note', 'carried'); PREPARE TRANSACTION 'failover'});
wait_for_running($old, [ $held, $walk ], 'tasks run on the primary');
wait_value($old, 'SELECT count(*) FROM steps', 1, 'one has come to its first checkpoint');
flush_wal($old);
my $lsn = $old->lsn('flush');
$old->wait_for_catchup($new, 'replay', $lsn);
$new->wait_for_catchup($cascade, 'replay', $lsn);

foreach my $standby ($new, $cascade)
{
	my $name = $standby->name;

	foreach my $view (qw(tasks actions running_tasks status stuck_tasks blocked_tasks))
	{
		my (undef, $stderr) = try_sql($standby, "SELECT * FROM tasksched.$view");
		is($stderr, '', "$name: $view can be read");
	}
	is(sql($standby, "SELECT status, launch FROM tasksched.get_task('$held')"), 'active|1', "$name: get_task works");
	is(sql($standby, q{SELECT count(*) FROM tasksched.get_tasks(statuses => '{active}')}), 2, "$name: get_tasks works");
	is(sql($standby, 'SELECT state FROM tasksched.status'), 'in recovery', "$name: its status says what it is");
	is(sql($standby, 'SELECT count(*) FROM tasksched.running_tasks'), 0, "$name: nothing runs there");
	is(sql($standby, "SELECT tasksched.task_is_running('$held')"), 'f', "$name: task_is_running says so");
	is(sql($standby, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'tasksched'}),
		0, "$name: none of our processes is there");
	is(sql($standby, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$held'"),
		'the server is in recovery', "$name: blocked_tasks says why");
}
sqlstate_is($new, "SELECT * FROM tasksched.wait_for_task('$held')", '0A000', 'wait_for_task does not work there');
foreach my $call (
	q{schedule_task('note')}, q{schedule_tasks('note', '{null}')}, q{schedule_tasks('[{"action": "note"}]')},
	"update_task('$held')", "update_task('$later')", "update_task('$unknown')",
	"delete_task('$held')", "delete_task('$later')", "delete_task('$unknown')",
	"cancel_task('$held')", "cancel_task('$unknown')", "retry_task('$id')", "retry_task('$unknown')",
	q{register_action('other', 'note')}, q{unregister_action('note')}, 'adopt_tasks()',
	'pause_scheduler()', 'resume_scheduler()', 'grant_usage(current_user)', 'grant_admin(current_user)',
	'revoke_usage(current_user)', 'revoke_admin(current_user)')
{
	sqlstate_is($new, "SELECT tasksched.$call", '25006', "$call fails on a standby");
}

# A session that stays connected during the promotion
my ($output, $errors) = ('', '');
my $session = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $new->connstr('postgres'),
	'-c', "SELECT status FROM tasksched.get_task('$held')",
	'-c', 'DO $$ BEGIN WHILE pg_is_in_recovery() LOOP PERFORM pg_sleep(0.05); END LOOP; END $$',	# polls
	'-c', q{SELECT tasksched.schedule_task('note', 'over') IS NOT NULL},
	'-c', q{SELECT status FROM tasksched.wait_for_task((SELECT id FROM tasksched.tasks WHERE resource_id = 'over'))} ],
	'>', \$output, '2>', \$errors);
wait_value($new, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^DO' AND state = 'active'}, 1,
	'a session waits on the standby');

# ---------------------------------------------------------------------------
# The machine of the primary fails: failover
# ---------------------------------------------------------------------------
my $postmaster = (split /\n/, slurp_file($old->data_dir . '/postmaster.pid'))[0];
my @children = split /\n/, sql($old, 'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
$old->kill9;
kill('KILL', @children);
process_gone($_) foreach ($postmaster, @children);
remove_lock_files($old);
my $start = time;
$new->promote;
my $promoted = time - $start;
wait_for_running($new, [ $held, $walk ], 'after the promotion the active tasks are resumed');
my $resumed = sql($new,
	'SELECT extract(epoch FROM max(since) - ' . ready_since($new)
	  . ") FROM tasksched.running_tasks WHERE task_id IN ('$held', '$walk')");
cmp_ok($resumed, '<', 5, 'within 5 s');
diag(sprintf('promoted in %.2f s; tasks resumed %.2f s after the server was ready', $promoted, $resumed));
open_gate($new, 'failover');
wait_for_status($new, $_, 'complete', 'they complete') foreach ($held, $walk);
is(sql($new, "SELECT first_launch, launch, crashes FROM runs WHERE id = '$held'"),
	'f|2|0', 'in a launch that is not the first');
is(sql($new, "SELECT string_agg(step::text, ' ' ORDER BY step) FROM steps WHERE id = '$walk'"),
	'1 2 3', 'a procedure goes on from its last checkpoint');
wait_for_status($new, $later, 'complete', 'the scheduled one runs');
sql($new, q{COMMIT PREPARED 'failover'});
wait_value($new, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'carried'}, 'complete',
	'so does one that was prepared on the old primary');
$session->finish;
is($output . $errors, "active\nt\ncomplete\n", 'a session that was there schedules and waits');
$new->wait_for_catchup($cascade, 'replay', $new->lsn('flush'));
is(sql($cascade, "SELECT status, launch FROM tasksched.get_task('$held')"), 'complete|2', 'the other standby follows');

# ---------------------------------------------------------------------------
# The old primary starts again: as long as it is a primary, it runs its tasks as well
# ---------------------------------------------------------------------------
$old->start;
wait_for_running($old, $held, 'started as it is, the old primary runs its tasks, too');
$old->stop;
sql($new, 'CHECKPOINT');
command_ok([ 'pg_rewind', '--source-server', $new->connstr('postgres'), '--target-pgdata', $old->data_dir ],
	'pg_rewind');
$old->append_conf('postgresql.conf', 'port = ' . $old->port . "\n");
$old->enable_streaming($new);
$old->set_standby_mode;
$old->start;
$id = schedule($new, q{'note'});
wait_for_status($new, $id, 'complete', 'a task runs on the new primary');
wait_for_status($old, $id, 'complete', 'the old one is its standby');
is(sql($old, "SELECT status, launch FROM tasksched.get_task('$held')"), 'complete|2', 'and has its tasks');

# ---------------------------------------------------------------------------
# Synchronous replication: workers wait for the standby at their commits
# ---------------------------------------------------------------------------
$new->append_conf('postgresql.conf', "synchronous_standby_names = 'old'\n");
$new->reload;
wait_value($new, q{SELECT sync_state FROM pg_stat_replication WHERE application_name = 'old'}, 'sync',
	'a synchronous standby');
$id = schedule($new, q{'note'});
wait_for_status($new, $id, 'complete', 'with it, tasks run');
$old->stop;
wait_value($new, q{SELECT count(*) FROM pg_stat_replication WHERE application_name = 'old'}, 0, 'it stops');

# Schedule a task without waiting for the standby
sub schedule_local
{
	my ($arguments) = @_;

	return sql($new, "SET synchronous_commit = local; SELECT tasksched.schedule_task($arguments)");
}
my $waiting =
  q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched worker' AND wait_event = 'SyncRep'};
my @ids = map { schedule_local(q{'note'}) } 1 .. 3;
my $failing = schedule_local(q{'raising', params => '{"message": "no"}'});
$walk = schedule_local(q{'walk', 'failover'});
wait_value($new, $waiting, 5, 'workers wait for it to confirm');
is(sql($new, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'active'}),
	5, 'their tasks are not finished before');
sqlstate_is($new, "SET lock_timeout = '0.1 s'; SELECT tasksched.cancel_task('$ids[2]')", '55P03',
	'cancel_task waits for them, too');
($output, $errors) = ('', '');
$session = IPC::Run::start([ 'psql', '-XAtq', '-d', $new->connstr('postgres'), '-c',
		q{SELECT tasksched.schedule_task('note', 'unconfirmed')} ],
	'>', \$output, '2>', \$errors);
my $client = q{FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'SyncRep'};
wait_value($new, "SELECT count(*) $client", 1, 'so does a session that schedules a task');
is(sql($new, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'unconfirmed'}), 0, 'which nobody sees yet');
sql($new, "SELECT pg_cancel_backend(pid) $client");
$session->finish;
wait_value($new, $waiting, 6, 'it runs when the session no longer waits');
my $worker = worker_pid($new, $ids[0]);
sql($new, "SELECT pg_cancel_backend($worker)");
wait_for_status($new, $ids[0], 'complete', 'one is cancelled: it waits no longer, what it did is committed');
is(kill(0, $worker), 1, 'its process stays');
$worker = worker_pid($new, $ids[1]);
sql($new, "SELECT pg_terminate_backend($worker)");
process_gone($worker);
wait_for_status($new, $ids[1], 'complete', 'another is terminated: likewise');
$id = schedule_local(q{'run_sql', params => '{"sql": "CREATE TEMP TABLE own ()"}'});
wait_value($new, $waiting, 5, 'one with a temporary table waits');
$worker = worker_pid($new, $id);
sql($new, "SELECT pg_cancel_backend($worker)");
wait_value($new, "SELECT state FROM pg_stat_activity WHERE pid = $worker", 'idle',
	'cancelled, it drops that without waiting again');
$worker = worker_pid($new, $walk);
sql($new, "SELECT pg_cancel_backend($worker)");
wait_value($new, "SELECT count(*) FROM steps WHERE id = '$walk'", 1, 'a procedure that waits in a COMMIT goes on');
wait_value($new, $waiting, 4, 'to the next');
$start = time;
$new->stop('fast');
cmp_ok(time - $start, '<', 60, 'the server can be shut down');
$new->start;
wait_for_status($new, $ids[2], 'complete', 'after a restart, what was committed is there');
wait_for_status($new, $failing, 'failed', 'also a failure');
wait_value($new, $waiting, 1, 'and the procedure goes on, and waits again');
$old->start;
wait_for_status($new, $walk, 'complete', 'until the standby is there');
is(sql($new, "SELECT string_agg(step::text, ' ' ORDER BY step) FROM steps WHERE id = '$walk'"),
	'1 2 3', 'each of its steps was done once');
my $list = join(', ', map { "'$_'" } @ids);
is(sql($new, "SELECT count(*), count(DISTINCT id), max(launch) FROM runs WHERE id IN ($list)"),
	'3|3|1', 'and so were the other tasks');
is(sql($new, "SELECT max(crashes), max(launch) FROM tasksched.tasks WHERE id IN ('$failing', $list)"),
	'0|1', 'in one launch');
wait_for_status($old, $walk, 'complete', 'all of that arrives at the standby');

$old->stop;
$cascade->stop;
$new->stop;
check_log($_) foreach ($old, $new, $cascade);
done_testing();
