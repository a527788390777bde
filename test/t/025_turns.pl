# The effect of one database, or of one open transaction, on the other databases: they
# start and run their tasks all the same.  All intervals are an hour, so that nothing
# runs merely because it was time to look again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedSession;
use TaskschedTest;
use Test::More;

my $hour = <<'EOT';
tasksched.reconcile_interval = 1h
tasksched.scheduler_idle_timeout = 1h
tasksched.worker_idle_timeout = 1h
max_prepared_transactions = 10
EOT
my $not_started = 'the scheduler of this database has not started yet';

sub new_database
{
	my ($node, @names) = @_;

	foreach my $name (@names)
	{
		sql($node, "CREATE DATABASE $name");
		create_fixtures($node, $name);
	}
	return;
}

sub state_of
{
	my ($node, $db, $state, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_value($node, "SELECT state FROM tasksched.status WHERE database = '$db'", $state, $name);
	return;
}

# ---------------------------------------------------------------------------
# By default the server's transactions are serializable, read-only and deferrable, and
# such a transaction waits for all that write
# ---------------------------------------------------------------------------
{
	my $node = new_node('defaults', extension => 0, conf => $hour);
	my $me = sql($node, 'SELECT current_user');

	sql($node, "ALTER ROLE \"$me\" SET default_transaction_read_only = off");
	$node->append_conf('postgresql.conf', <<'EOT');
default_transaction_isolation = serializable
default_transaction_read_only = on
default_transaction_deferrable = on
EOT
	$node->reload;
	create_fixtures($node);
	new_database($node, 'before');
	my $writer = TaskschedSession->new($node);
	$writer->query('BEGIN; CREATE TABLE written ()');
	is($writer->query('SHOW transaction_isolation'),
		'serializable', 'a serializable transaction writes, and stays open');

	new_database($node, 'fresh');
	wait_for_status($node, schedule($node, q{'note'}, 'fresh'), 'complete', 'a task in a new database runs', 'fresh');
	my $launcher = launcher_pid($node);
	my $later = schedule($node, q{'note', run_at => now() + interval '3 s'}, 'before');
	signal_process('TERM', $launcher);
	process_gone($launcher);
	wait_for_status($node, $later, 'complete', 'so does one under a new launcher', 'before');
	new_database($node, 'fresher');
	wait_for_status($node, schedule($node, q{'note'}, 'fresher'), 'complete', 'which finds new databases', 'fresher');
	$writer->query('ROLLBACK');
	$writer->quit;
	$node->stop;
	check_log($node);
}

# ---------------------------------------------------------------------------
# Databases in which a tasksched process waits as soon as it connects
# ---------------------------------------------------------------------------
{
	my $node = new_node('probes', conf => $hour);
	my $lock_catalog = 'LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE';
	my %task;

	# a database is renamed in a prepared transaction, so the lock survives a restart, after
	# which all databases are probed
	new_database($node, qw(locked later other));
	foreach my $db (qw(locked later other))
	{
		wait_for_status($node, schedule($node, q{'note'}, $db), 'complete', "a task runs in $db", $db);
	}
	$node->append_conf('postgresql.conf', 'tasksched.enabled = off');
	$node->reload;
	state_of($node, $_, 'disabled', "$_: nothing runs now") foreach qw(locked later);
	$task{$_} = schedule($node, q{'note'}, $_) foreach qw(locked later);
	sql($node, "BEGIN; ALTER DATABASE locked RENAME TO renamed; PREPARE TRANSACTION 'locked'");
	$node->append_conf('postgresql.conf', 'tasksched.enabled = on');
	$node->restart;
	wait_for_status($node, $task{later}, 'complete', 'a task runs in a database that is probed after that', 'later');
	state_of($node, 'other', 'running', 'all others have their schedulers');
	is(sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'locked'}),
		0, 'no process of ours waits for the lock');
	sql($node, q{ROLLBACK PREPARED 'locked'});
	wait_for_status($node, $task{locked}, 'complete', 'a task runs there when the lock is gone', 'locked');

	# a catalog is locked: the probe of a new launcher hangs
	sql($node, 'CREATE DATABASE closed');
	sql($node, 'CREATE DATABASE base');
	create_fixtures($node, 'base');
	wait_for_status($node, schedule($node, q{'note'}, 'base'), 'complete', 'a task runs in base', 'base');
	my $closed = TaskschedSession->new($node, 'closed');
	$closed->query("BEGIN; $lock_catalog");
	my $launcher = launcher_pid($node);
	signal_process('TERM', $launcher);
	process_gone($launcher);
	wait_value($node, q{SELECT count(*) FROM pg_stat_activity
		WHERE datname = 'closed' AND backend_type = 'tasksched scheduler' AND wait_event_type = 'Lock'}, 1,
		'a probe waits for a lock');
	new_database($node, 'fresh');
	wait_for_status($node, schedule($node, q{'note'}, 'fresh'), 'complete', 'a task runs in a new database', 'fresh');
	sql($node, 'CREATE DATABASE copy TEMPLATE base');
	state_of($node, 'copy', 'running', 'a copy, of which nobody tells that it has the extension, is probed');
	$closed->query('COMMIT');
	$closed->quit;
	create_fixtures($node, 'closed');
	wait_for_status($node, schedule($node, q{'note'}, 'closed'), 'complete',
		'a task runs in what was locked', 'closed');

	# for a database that is known, the status shows that it has no scheduler
	my $session = TaskschedSession->new($node);
	$session->query('BEGIN; ALTER DATABASE other RENAME TO renamed');
	state_of($node, 'other', 'starting', 'a database that is locked: the status says that its scheduler is starting');
	$session->query('ROLLBACK');
	$session->quit;
	state_of($node, 'other', 'running', 'then it is running');

	my $inside = TaskschedSession->new($node, 'other');
	$inside->query("BEGIN; $lock_catalog");
	signal_process('TERM', scheduler_pid($node, 'other'));
	my $waiting = $inside->query(q{SELECT tasksched.schedule_task('note')});
	state_of($node, 'other', 'starting', 'one whose scheduler waits as it comes: so does the status');
	is($inside->query("SELECT reason FROM tasksched.blocked_tasks WHERE id = '$waiting'"),
		$not_started, 'and blocked_tasks');
	$inside->query('COMMIT');
	$inside->quit;
	wait_for_status($node, $waiting, 'complete', 'then its task runs', 'other');

	# enabled again: the schedulers of known databases look, without a probe
	$node->append_conf('postgresql.conf', 'tasksched.enabled = off');
	$node->reload;
	state_of($node, 'later', 'disabled', 'disabled');
	$task{later} = schedule($node, q{'note'}, 'later');
	sql($node, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tasksched scheduler'});
	$node->append_conf('postgresql.conf', 'tasksched.enabled = on');
	$node->reload;
	wait_for_status($node, $task{later}, 'complete', 'and enabled again: what is due runs', 'later');
	$node->stop;
	check_log($node);
}

# ---------------------------------------------------------------------------
# A shortage of worker slots: the logical replication launcher and the one of tasksched
# leave three, one less than a scheduler and a worker for each of two databases need
# ---------------------------------------------------------------------------
{
	my $node = new_node('shortage', extension => 0, conf => <<"EOT");
$hour
max_worker_processes = 5
tasksched.max_running_tasks = 3
EOT

	new_database($node, qw(other greedy));
	wait_for_status($node, schedule($node, q{'note'}, 'greedy'), 'complete', 'a task has run', 'greedy');
	is(scalar(pids_of($node, 'tasksched worker', 'greedy')), 1, 'and its worker waits for more');
	my $session = TaskschedSession->new($node, 'greedy');
	$session->query('BEGIN; LOCK TABLE tasksched.live IN ACCESS EXCLUSIVE MODE');
	$session->query(q{SELECT count(tasksched.schedule_task('note')) FROM generate_series(1, 5)});
	my $scheduler = scheduler_pid($node, 'greedy');
	signal_process('TERM', $scheduler);
	process_gone($scheduler);
	wait_value($node, q{SELECT count(*) FROM pg_stat_activity
		WHERE datname = 'greedy' AND backend_type = 'tasksched scheduler' AND wait_event_type = 'Lock'}, 1,
		'its scheduler waits for a lock');
	my @tasks = map { schedule($node, q{'note'}, 'other') } 1 .. 5;
	wait_for_status($node, $_, 'complete', 'the tasks of another database run', 'other') foreach @tasks;
	$session->query('COMMIT');
	wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status <> 'complete'}, 0,
		'its own run when the lock is gone', 'greedy');
	is(sql($node, q{SELECT max(launch), max(attempt), sum(crashes) FROM tasksched.tasks}, 'greedy'),
		'1|1|0', 'and nothing has been counted');

	# running tasks go on, and the tasks of workers that end meanwhile are put back
	my $held = schedule($node, q{'hold', resource_id => 'gate'}, 'greedy');
	my $ended = schedule($node, q{'hold', resource_id => 'gate'}, 'greedy');
	my $pid = worker_pid($node, $held, 'greedy');
	my $pid_ended = worker_pid($node, $ended, 'greedy');
	$session->query('BEGIN; LOCK TABLE tasksched.live IN ACCESS EXCLUSIVE MODE');
	signal_process('TERM', $pid_ended);
	process_gone($pid_ended);
	@tasks = map { schedule($node, q{'note'}, 'other') } 1 .. 5;
	wait_for_status($node, $_, 'complete', 'again, while a task runs in the one that is locked', 'other')
	  foreach @tasks;
	is(worker_pid($node, $held, 'greedy'), $pid, 'which goes on');
	$session->query('COMMIT');
	$session->quit;
	open_gate($node, 'gate', 'greedy');
	wait_for_status($node, [ $held, $ended ]->[$_], 'complete', 'both complete', 'greedy') foreach 0 .. 1;
	is(field_of($node, $held, 'launch, attempt', 'greedy'), '1|1', 'one in its first launch');
	is(field_of($node, $ended, 'launch, attempt, crashes', 'greedy'), '2|1|0', 'the other resumed');

	# a catalog is locked, so that a scheduler hangs when it starts, while a task runs
	$held = schedule($node, q{'hold', resource_id => 'gate too'}, 'greedy');
	$pid = worker_pid($node, $held, 'greedy');
	my $catalog = TaskschedSession->new($node, 'greedy');
	$catalog->query('BEGIN; LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE');
	sql($node, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = 'greedy' AND backend_type = 'tasksched scheduler'});
	my $late = $catalog->query(q{SELECT tasksched.schedule_task('note')});
	@tasks = map { schedule($node, q{'note'}, 'other') } 1 .. 5;
	wait_for_status($node, $_, 'complete', 'the tasks of another database run', 'other') foreach @tasks;
	$catalog->query('COMMIT');
	$catalog->quit;
	wait_for_status($node, $late, 'complete', 'its own when the lock is gone', 'greedy');
	is(worker_pid($node, $held, 'greedy'), $pid, 'the task runs on');
	open_gate($node, 'gate too', 'greedy');
	wait_for_status($node, $held, 'complete', 'and completes', 'greedy');
	$node->stop;
	check_log($node);
}

# ---------------------------------------------------------------------------
# Dead workers whose tasks can't be put back
# ---------------------------------------------------------------------------

# Have tasks run, three at a time, and terminate their workers; $lock locks the rows
sub end_workers
{
	my ($node, $db, $n, $lock) = @_;
	my @ids;

	foreach my $batch (1 .. $n / 3)
	{
		my @batch = map { schedule($node, q{'hold', resource_id => 'gate'}, $db) } 1 .. 3;

		wait_for_running($node, \@batch, "three tasks run in $db ($batch)", $db);
		$lock->(@batch);
		foreach my $pid (map { worker_pid($node, $_, $db) } @batch)
		{
			signal_process('TERM', $pid);
			process_gone($pid);
		}
		push @ids, @batch;
	}
	return @ids;
}

# A session has locked the rows of as many tasks as there are slots
{
	my $node = new_node('rows', extension => 0, conf => <<"EOT");
$hour
max_worker_processes = 6
tasksched.max_running_tasks = 15
EOT

	new_database($node, qw(greedy other));
	my $session = TaskschedSession->new($node, 'greedy');
	$session->query('BEGIN');
	my @ids = end_workers($node, 'greedy', 12,
		sub { $session->query("SELECT tasksched.cancel_task('$_')") foreach @_; });
	wait_for_status($node, schedule($node, q{'note'}, 'other'), 'complete', 'a task of another database runs', 'other');
	is(sql($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'active'}, 'greedy'),
		12, 'the tasks are still active');

	# they count towards the limit: no more than three others are launched
	my @more = map { schedule($node, q{'hold', resource_id => 'more'}, 'greedy') } 1 .. 4;
	wait_for_running($node, [ @more[0 .. 2] ], 'three more fit in the limit', 'greedy');
	is(status_of($node, $more[3], 'greedy'), 'scheduled', 'a fourth one waits');
	wait_until($node, qq{SELECT reason ~ 'all places .*ended, but locked by other transactions: 12'
		FROM tasksched.blocked_tasks WHERE id = '$more[3]'},
		'with the reason', 'greedy');
	$session->query('ROLLBACK');
	open_gate($node, $_, 'greedy') foreach qw(gate more);
	wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status <> 'complete'}, 0,
		'rolled back: all go on', 'greedy');
	is(sql($node, 'SELECT max(attempt), sum(crashes), max(launch), sum(launch) FROM tasksched.tasks', 'greedy'),
		'1|0|2|28',
		'no attempt is used up, and each is launched once more');

	# the same with a commit
	sql($node, 'DELETE FROM gates', 'greedy');
	$session->query('BEGIN');
	@ids = end_workers($node, 'greedy', 3,
		sub { $session->query("SELECT tasksched.cancel_task('$_')") foreach @_; });
	$session->query('COMMIT');
	is(status_of($node, $_, 'greedy'), 'cancelled', 'committed: cancelled') foreach @ids;
	wait_for_status($node, schedule($node, q{'note'}, 'greedy'), 'complete', 'and all places are free', 'greedy');
	$session->quit;
	$node->stop;
	check_log($node);
}

# Sessions have locked the table in several databases, enough for as many dead workers
# as there are slots
{
	my $node = new_node('tables', extension => 0, conf => <<"EOT");
$hour
max_worker_processes = 6
tasksched.max_running_tasks = 3
EOT
	my @greedy = map { "greedy$_" } 1 .. 4;
	my @sessions;
	my @ids;

	new_database($node, @greedy, 'other');
	foreach my $db (@greedy)
	{
		my $session = TaskschedSession->new($node, $db);

		push @ids,
		  [
			$db,
			end_workers($node, $db, 3,
				sub { $session->query('BEGIN; LOCK TABLE tasksched.live IN ACCESS EXCLUSIVE MODE'); })
		  ];
		push @sessions, $session;
	}
	wait_for_status($node, schedule($node, q{'note'}, 'other'), 'complete',
		'a task of yet another database runs', 'other');
	# open all gates first: the tasks of one database may take all workers
	open_gate($node, 'gate', $_) foreach @greedy;
	$_->query('COMMIT') foreach @sessions;
	$_->quit foreach @sessions;
	foreach (@ids)
	{
		my ($db, @batch) = @$_;

		wait_for_status($node, $_, 'complete', "unlocked: the tasks of $db go on", $db) foreach @batch;
	}
	$node->stop;
	check_log($node);
}

done_testing();
