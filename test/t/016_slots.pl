# Other background workers leave few worker slots, then none; then the operating
# system refuses new processes.  Tasks wait, nothing is counted, and they go on as
# soon as that is over.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use IPC::Run;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Of 8 worker slots the launcher, the scheduler and the logical replication
# launcher take one each
my $node = new_node('slots', conf => <<EOT);
max_worker_processes = 8
max_parallel_workers = 8
max_parallel_workers_per_gather = 8
tasksched.reconcile_interval = 10min
EOT

# Queries whose parallel workers take slots until they are ended
sql($node, <<'EOT');
CREATE TABLE big AS SELECT n FROM generate_series(1, 1000) n;
ALTER TABLE big SET (parallel_workers = 8);
CREATE FUNCTION slow(n int) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	PERFORM pg_sleep(100);	-- until the query is terminated
	RETURN true;
END $$;
EOT

my @hogs;

sub start_hog
{
	my ($n) = @_;
	my $pid = fork() // die $!;

	push @hogs, $pid;
	return if $pid;
	exec('psql', '-XAtq', '-d', $node->connstr('postgres'),
		'-c', 'SET application_name = hog', '-c', 'SET parallel_setup_cost = 0',
		'-c', "SET max_parallel_workers_per_gather = $n", '-c', 'SELECT count(*) FROM big WHERE slow(n)')
	  or POSIX::_exit(1);
}

# Take slots until this many are taken; another process may hold one for a moment
sub hog
{
	my ($n) = @_;
	my $start = time;

	until ((my $taken = sql($node, q{SELECT count(*) FROM pg_stat_activity
			WHERE backend_type = 'parallel worker'})) >= $n)
	{
		die "$n slots can't be taken" if time - $start > $TaskschedTest::deadline_s;
		start_hog($n - $taken);
		Time::HiRes::usleep(500_000);	# polls
	}
	return;
}

sub end_hogs
{
	sql($node, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name = 'hog' AND backend_type = 'client backend'});
	waitpid($_, 0) foreach @hogs;
	@hogs = ();
	return;
}

sub schedule_some
{
	my ($name, $n) = @_;

	sql($node, qq{SELECT count(*)
		FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{$n}'), resource_id => '$name')});
	return;
}

sub all_complete
{
	my ($name, $n) = @_;

	my $took = wait_value($node, qq{SELECT count(*) FROM tasksched.tasks
		WHERE resource_id = '$name' AND status = 'complete' AND attempt = 1 AND launch = 1},
		$n, "$name: the tasks complete, in their first launch");
	return $took;
}

sub all_wait
{
	my ($name, $n, $state, $reason) = @_;

	wait_value($node, 'SELECT state FROM tasksched.status', $state, "$name: the status says so");
	wait_value($node, "SELECT count(*) FROM tasksched.blocked_tasks WHERE resource_id = '$name' AND reason = '$reason'",
		$n, "$name: so does blocked_tasks, of each task");
	is(sql($node, qq{SELECT count(*), max(attempt), max(launch), bool_and(run_at <= now()) FROM tasksched.tasks
			WHERE resource_id = '$name' AND status = 'scheduled'}),
		"$n|0|0|t", "$name: the tasks wait, with their due time, without an attempt");
	return;
}

# When the first of these tasks was started, in seconds after a moment
sub started_after
{
	my ($name, $moment) = @_;

	my $seconds = sql($node,
		"SELECT extract(epoch FROM min(started_at)) - $moment FROM tasksched.tasks WHERE resource_id = '$name'");

	note("$name: started after $seconds s");
	return $seconds;
}

my $slots = qr/tasksched has no free background worker slot.*\n.*HINT: .*max_worker_processes \(currently 8\)/;
my $no_slot = 'no background worker slot is free; see max_worker_processes';

# ---------------------------------------------------------------------------
# All slots but one are taken: the tasks take turns in the one worker
# ---------------------------------------------------------------------------
scheduler_pid($node);
hog(4);
schedule_some('one slot', 20);
all_complete('one slot', 20);
is(sql($node, 'SELECT count(DISTINCT pid) FROM runs'), 1, 'in one worker');
end_hogs();
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'}, 0,
	'slots are free again');

# ---------------------------------------------------------------------------
# No slot is left for a worker
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', 'tasksched.worker_idle_timeout = 0');
$node->restart;
scheduler_pid($node);
hog(5);
schedule_some('no slot', 5);
all_wait('no slot', 5, 'waiting for a worker slot', $no_slot);
wait_for_log($node, $slots, 0, 'the log names the setting');
my $freed = time;
end_hogs();
all_complete('no slot', 5);
cmp_ok(started_after('no slot', $freed), '<', 10, 'soon after a slot was free');

# ---------------------------------------------------------------------------
# No slot is left for the scheduler either
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', 'tasksched.scheduler_idle_timeout = 1');
$node->reload;
wait_value($node, 'SELECT state FROM tasksched.status', 'idle', 'the scheduler has left');
hog(6);
schedule_some('no scheduler', 5);
all_wait('no scheduler', 5, 'waiting for a worker slot', $no_slot);
$freed = time;
end_hogs();
all_complete('no scheduler', 5);
cmp_ok(started_after('no scheduler', $freed), '<', 10, 'soon after a slot was free');
is(scalar(() = slurp_file($node->logfile) =~ /$slots/g), 2, 'one line in the log for each start of the server');

# ---------------------------------------------------------------------------
# The operating system refuses new processes
# ---------------------------------------------------------------------------
SKIP:
{
	my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
	my $usual = `prlimit --pid=$postmaster --nproc --output=SOFT --noheadings` =~ s/\s//gr;
	# only the soft limit, so that it can be raised again; it counts all processes of the user
	my $limit = sub {
		return PostgreSQL::Test::Utils::run_log([ 'prlimit', "--pid=$postmaster", "--nproc=$_[0]:" ]);
	};

	skip 'the number of processes can not be limited', 1 if $usual eq '' || !$limit->($usual);

	# a connection that exists already, since no other can be made meanwhile
	my ($in, $out, $err) = ('', '', '');
	my $psql = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres') ],
		'<', \$in, '>', \$out, '2>', \$err,
		my $timer = IPC::Run::timeout($TaskschedTest::deadline_s));
	my $ask = sub {
		my ($sql) = @_;

		$out = '';
		$in .= "$sql;\n\\echo end\n";
		$psql->pump until $out =~ /end\n/;
		return $out =~ s/end\n//r =~ s/\n\z//r;
	};
	my $wait = sub {
		my ($sql, $expected, $name) = @_;
		my $start = time;
		my $last;

		until (($last = $ask->($sql)) eq $expected || time - $start > $TaskschedTest::deadline_s)
		{
			Time::HiRes::usleep(50_000);	# polls
		}
		is($last, $expected, $name);
	};
	my $blocked = q{SELECT count(*), min(reason) FROM tasksched.blocked_tasks};

	foreach my $who ('worker', 'scheduler')
	{
		my $position = log_position($node);

		if ($who eq 'worker')
		{
			$node->append_conf('postgresql.conf', 'tasksched.scheduler_idle_timeout = 600');
			$node->reload;
			schedule_some('warm', 1);
			all_complete('warm', 1);
			$wait->('SELECT state FROM tasksched.status', 'running', 'the scheduler is there');
			$wait->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched worker'}, 0, 'no worker');
		}
		else
		{
			$node->append_conf('postgresql.conf', 'tasksched.scheduler_idle_timeout = 1');
			$node->reload;
			$wait->('SELECT state FROM tasksched.status', 'idle', 'the scheduler has left');
		}
		$limit->(1);
		$ask->(qq{SELECT count(*)
			FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{5}'), resource_id => 'fork $who')});
		$wait->($blocked, '5|the server could not start a process; see the server log',
			"no process for a $who: blocked_tasks says so");
		$wait->('SELECT state FROM tasksched.status', 'waiting for a process', 'so does the status');
		my $start = time;
		wait_for_log($node, qr/(could not fork (background )?worker process.*){3}/s, $position,
			'it is tried again and again');
		cmp_ok(scalar(() = log_since($node, $position) =~ /could not fork (?:background )?worker process/g),
			'<=', 3 + 3 * (time - $start + 3), 'but not in a hot loop');
		$freed = time;
		$limit->($usual);
		all_complete("fork $who", 5);
		cmp_ok(started_after("fork $who", $freed), '<', 10, 'soon after processes could be started');
	}
	like(slurp_file($node->logfile), qr/tasksched could not have a process started.*\n.*HINT: .*ulimit/,
		'the log says what to look at');
	$in .= "\\q\n";
	$psql->finish;
}

# ---------------------------------------------------------------------------
# No slot for the launcher either: the logical replication launcher has the only one
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
$node->restart;
my $stranded = schedule($node, q{'note'});
is(sql($node, 'SELECT state, pid FROM tasksched.status'), 'no launcher|', 'without a launcher the status says so');
is(sql($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$stranded'"),
	'the launcher has not started; see the server log and max_worker_processes', 'and blocked_tasks');
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$node->restart;
wait_for_status($node, $stranded, 'complete', 'the task runs after a restart with more slots');

$node->stop;
check_log($node);
done_testing();
