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

done_testing();
