# What one database, or one open transaction, does to the others: they start and
# run their tasks all the same.  All intervals are an hour, so that what runs does
# so for a better reason than that it was time to look again.

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
# The server's default transactions are serializable, read-only and deferrable,
# and such a one waits for all who write
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
	is($writer->query('SHOW transaction_isolation'), 'serializable', 'a serializable transaction writes, and stays open');

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
# Dead workers whose tasks can't be put back
# ---------------------------------------------------------------------------

# Have tasks run, three at a time, and end their workers; $lock keeps the row of each
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

# Somebody holds the rows, of as many tasks as there are slots
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
	is(sql($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'active'}, 'greedy'), 12, 'the tasks are still active');

	# they count: no more than three others are launched
	my @more = map { schedule($node, q{'hold', resource_id => 'more'}, 'greedy') } 1 .. 4;
	wait_for_running($node, [ @more[0 .. 2] ], 'three more fit in the limit', 'greedy');
	is(status_of($node, $more[3], 'greedy'), 'scheduled', 'a fourth one waits');
	$session->query('ROLLBACK');
	open_gate($node, $_, 'greedy') foreach qw(gate more);
	wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status <> 'complete'}, 0, 'rolled back: all go on', 'greedy');
	is(sql($node, 'SELECT max(attempt), sum(crashes), max(launch), sum(launch) FROM tasksched.tasks', 'greedy'), '1|0|2|28',
		'no attempt is used up, and each is launched once more');

	# likewise with commit
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

done_testing();
