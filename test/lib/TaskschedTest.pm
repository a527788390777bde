# What the TAP tests of tasksched share: a server with the library, waiting by
# polling, signals to processes of the server, and checks of its log.
#
# All waits poll up to a deadline.  A wait that reaches the deadline ends the test
# file, since what follows would wait for the same thing.

package TaskschedTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(
  new_node create_fixtures sql try_sql sqlstate_is warning_like
  wait_until wait_value wait_for_status wait_for_running wait_for_log
  schedule status_of field_of
  open_gate flush_wal
  pids_of scheduler_pid launcher_pid worker_pid signal_process process_gone
  kill_postmaster remove_lock_files
  log_position log_since check_log ready_since
);

our $deadline_s = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------

# Create a server that preloads the library, start it, and create the extension and
# the fixtures in the database "postgres".  Options: preload, start, extension (all
# true unless given), conf (more settings), streaming, checksums, utf8, install_path
# (of another version of the server).
sub new_node
{
	my ($name, %opt) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, $opt{install_path} ? (install_path => $opt{install_path}) : ());

	%opt = (preload => 1, start => 1, extension => 1, conf => '', %opt);
	$node->init(allows_streaming => $opt{streaming} ? 1 : 0,
		extra => [ $opt{checksums} ? '--data-checksums' : (), $opt{utf8} ? ('-E', 'UTF8') : () ]);
	$node->append_conf('postgresql.conf', <<EOT);
restart_after_crash = on
log_statement = none
log_line_prefix = '%m [%p] %b %e '
max_worker_processes = 20
autovacuum_naptime = 1h
max_connections = 50
EOT
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'tasksched'\n")
	  if $opt{preload};
	$node->append_conf('postgresql.conf', $opt{conf});
	if ($opt{start})
	{
		$node->start;
		create_fixtures($node) if $opt{extension};
	}
	return $node;
}

# Create the extension, and the actions and tables of the tests:
#	runs		a ledger, in which each launch leaves a row when it commits
#	note		leaves its row at once
#	hold		waits until the gate named by its resource_id is open, then
#				leaves its row
#	nap			sleeps for params.s seconds
#	raising		raises params.message
#	run_sql		executes params.sql, then leaves its row
sub create_fixtures
{
	my ($node, $db) = @_;

	sql($node, <<'EOT', $db);
CREATE EXTENSION tasksched;
CREATE TABLE runs (
	id uuid, launch int, attempt int, crashes int, first_launch boolean, status tasksched.task_status,
	result jsonb, pid int DEFAULT pg_backend_pid(), at timestamptz DEFAULT clock_timestamp());
CREATE TABLE gates (gate text PRIMARY KEY);
GRANT SELECT, INSERT ON runs, gates TO PUBLIC;

CREATE FUNCTION leave_row(task tasksched.task, first_launch boolean) RETURNS void
LANGUAGE sql AS $$
	INSERT INTO public.runs (id, launch, attempt, crashes, first_launch, status, result)
	VALUES (task.id, task.launch, task.attempt, task.crashes, first_launch, task.status, task.result)
$$;
CREATE FUNCTION note(task tasksched.task, first_launch boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
END $$;
CREATE FUNCTION hold(task tasksched.task, first_launch boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	-- the scenario: an action that runs until the test lets it go
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = task.resource_id) LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	PERFORM public.leave_row(task, first_launch);
END $$;
CREATE FUNCTION nap(params jsonb) RETURNS void
LANGUAGE sql AS $$ SELECT pg_sleep((params->>'s')::float8) $$;
CREATE FUNCTION raising(params jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION '%', params->>'message';
END $$;
CREATE FUNCTION run_sql(task tasksched.task, first_launch boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE task.params->>'sql';
	PERFORM public.leave_row(task, first_launch);
END $$;

SELECT tasksched.register_action(a, 'public.' || a)
FROM unnest('{note,hold,nap,raising,run_sql}'::text[]) a;
EOT
	return;
}

# ---------------------------------------------------------------------------
# SQL
# ---------------------------------------------------------------------------

# Run SQL that must succeed; returns its output
sub sql
{
	my ($node, $sql, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $node->safe_psql($db // 'postgres', $sql);
}

# Run SQL that may fail; returns its output and its stderr, with SQLSTATEs
sub try_sql
{
	my ($node, $sql, %opt) = @_;
	my ($stdout, $stderr) = ('', '');

	$node->psql(
		$opt{db} // 'postgres',
		"\\set VERBOSITY verbose\n$sql",
		on_error_stop => 1,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => $opt{user} ? [ '-U', $opt{user} ] : []);
	return ($stdout, $stderr);
}

# Run SQL that must fail with this SQLSTATE
sub sqlstate_is
{
	my ($node, $sql, $sqlstate, $name, %opt) = @_;
	my (undef, $stderr) = try_sql($node, $sql, %opt);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($stderr, qr/(ERROR|FATAL):  \Q$sqlstate\E:/, $name);
	return $stderr;
}

# Run SQL that must succeed with a warning that matches
sub warning_like
{
	my ($node, $sql, $regexp, $name, %opt) = @_;
	my ($stdout, $stderr) = try_sql($node, $sql, %opt);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	unlike($stderr, qr/(ERROR|FATAL):/, "$name: no error");
	like($stderr, qr/WARNING:.*$regexp/s, $name);
	return $stdout;
}

# ---------------------------------------------------------------------------
# Waiting
# ---------------------------------------------------------------------------

# Poll until a function returns true, up to the deadline; returns the seconds
# that it took
sub poll
{
	my ($what, $done, $on_timeout) = @_;
	my $start = time;

	until ($done->())
	{
		if (time - $start > $deadline_s)
		{
			$on_timeout->() if $on_timeout;
			die "timed out waiting: $what\n";
		}
		usleep(50_000);
	}
	return time - $start;
}

# Print everything about the tasks, after a failure
sub tell_state
{
	my ($node, $db) = @_;

	foreach my $query (
		q{SELECT id, action, status, run_at, owner, attempt, launch, crashes, setbacks, first_launch, error
			FROM tasksched.tasks ORDER BY id DESC LIMIT 30},
		'SELECT * FROM tasksched.running_tasks',
		'SELECT * FROM tasksched.blocked_tasks LIMIT 20',
		'SELECT * FROM tasksched.status',
		qq{SELECT pid, datname, usename, backend_type, state, wait_event, query FROM pg_stat_activity
			WHERE backend_type ~ '^(tasksched|client)'})
	{
		# the reason for the failure may be that another session has locked the tables
		my ($stdout, $stderr) = try_sql($node, "SET lock_timeout = '2s'; $query", db => $db);

		diag("$query;\n$stdout$stderr");
	}
	diag("end of the log:\n" . substr(slurp_file($node->logfile), -4000));
	return;
}

# Wait until a query returns a value; the server may be down meanwhile.  Counts
# as a test; returns the seconds that it took.
sub wait_value
{
	my ($node, $query, $expected, $name, $db) = @_;
	my ($stdout, $stderr) = ('', '');

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $took = poll(
		$name,
		sub {
			# a failure to connect counts as an answer like any other here, even one so early
			# that psql has not read the query
			my $asked = eval {
				$node->psql($db // 'postgres', $query, stdout => \$stdout, stderr => \$stderr);
				1;
			};
			return $asked && $stderr eq '' && $stdout eq $expected;
		},
		sub {
			diag("query: $query\nexpected: $expected\nlast: $stdout\nstderr: $stderr");
			tell_state($node, $db);
		});
	pass($name);
	return $took;
}

# Wait until a boolean query is true
sub wait_until
{
	my ($node, $query, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_value($node, $query, 't', $name, $db);
}

# Wait until a task has a status
sub wait_for_status
{
	my ($node, $id, $status, $name, $db) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_value($node, "SELECT status FROM tasksched.tasks WHERE id = '$id'",
		$status, $name, $db);
}

# Wait until a worker executes all of these tasks
sub wait_for_running
{
	my ($node, $ids, $name, $db) = @_;
	my @ids = ref $ids ? @$ids : ($ids);
	my $list = join(', ', map { "'$_'" } @ids);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_value(
		$node,
		"SELECT count(*) FROM tasksched.running_tasks WHERE state = 'running' AND task_id IN ($list)",
		scalar(@ids), $name, $db);
}

# Wait until the log matches, from a position on
sub wait_for_log
{
	my ($node, $regexp, $position, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $took = poll(
		$name,
		sub { return log_since($node, $position) =~ $regexp },
		sub { diag("the log does not match $regexp:\n" . log_since($node, $position)) });
	pass($name);
	return $took;
}

# ---------------------------------------------------------------------------
# Tasks
# ---------------------------------------------------------------------------

# Schedule a task, given the arguments as SQL; returns its id
sub schedule
{
	my ($node, $arguments, $db) = @_;

	return sql($node, "SELECT tasksched.schedule_task($arguments)", $db);
}

sub field_of
{
	my ($node, $id, $fields, $db) = @_;

	return sql($node, "SELECT $fields FROM tasksched.tasks WHERE id = '$id'", $db);
}

sub status_of
{
	my ($node, $id, $db) = @_;

	return field_of($node, $id, 'status', $db);
}

# Open a gate: the tasks that wait at it in hold() go on
sub open_gate
{
	my ($node, $gate, $db) = @_;

	sql($node, "INSERT INTO gates VALUES ('$gate')", $db);
	return;
}

# Make sure that everything committed so far survives a crash, including claims
sub flush_wal
{
	my ($node, $db) = @_;

	sql($node, "SELECT pg_logical_emit_message(true, 'test', 'flush')", $db);
	return;
}

# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------

# The pids of a backend_type, in a database if that is given
sub pids_of
{
	my ($node, $type, $db) = @_;
	my $where = defined $db ? "AND datname = '$db'" : '';

	return split /\n/,
	  sql($node, "SELECT pid FROM pg_stat_activity WHERE backend_type = '$type' $where ORDER BY pid");
}

# The pid of a backend_type that has only one process; waits for it
sub only_pid
{
	my ($node, $type, $db) = @_;
	my @pids;

	poll("one $type",
		sub { @pids = pids_of($node, $type, $db); return @pids == 1 },
		sub { tell_state($node, $db) });
	return $pids[0];
}

sub launcher_pid
{
	my ($node) = @_;

	return only_pid($node, 'tasksched launcher');
}

sub scheduler_pid
{
	my ($node, $db) = @_;

	return only_pid($node, 'tasksched scheduler', $db // 'postgres');
}

# The pid of the worker that executes a task; waits for it
sub worker_pid
{
	my ($node, $id, $db) = @_;
	my $pid = '';

	poll(
		"a worker for $id",
		sub {
			$pid = sql($node,
				"SELECT pid FROM tasksched.running_tasks WHERE state = 'running' AND task_id = '$id'", $db);
			return $pid ne '';
		},
		sub { tell_state($node, $db) });
	return $pid;
}

# Send a signal to one process of the server
sub signal_process
{
	my ($signal, $pid) = @_;

	die "not a process: \"$pid\"" unless $pid =~ /^\d+$/ && $pid > 1;
	kill($signal, $pid) == 1 or die "could not send SIG$signal to $pid: $!";
	return;
}

# What the kernel says about a process; empty if there is none
sub process_stat
{
	my ($pid) = @_;

	return eval { slurp_file("/proc/$pid/stat") } // '';
}

# Wait until a process is gone or a zombie, whose parent has not noticed yet; returns
# the seconds that it took
sub process_gone
{
	my ($pid) = @_;

	return poll("process $pid goes", sub { return process_stat($pid) !~ /\) [^Z] / });
}

# Kill the postmaster with SIGKILL, and start it again once its children have noticed
sub kill_postmaster
{
	my ($node) = @_;
	my $pid = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
	# pg_stat_activity lacks processes that have only just started
	my @children = grep { process_stat($_) =~ /\) \S $pid / } map { /(\d+)/ } glob('/proc/[0-9]*');

	$node->kill9;
	process_gone($_) foreach ($pid, @children);
	remove_lock_files($node);
	$node->start;
	return;
}

# Remove the lock files after SIGKILL of the postmaster: the next one would take those
# of a zombie for those of a running postmaster
sub remove_lock_files
{
	my ($node) = @_;

	unlink($node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock');
	return;
}

# ---------------------------------------------------------------------------
# The log
# ---------------------------------------------------------------------------

sub log_position
{
	my ($node) = @_;

	return -s $node->logfile;
}

sub log_since
{
	my ($node, $position) = @_;

	return substr(slurp_file($node->logfile), $position);
}

# When the server last began to accept connections, as SQL
sub ready_since
{
	my ($node) = @_;
	my @times = slurp_file($node->logfile) =~
	  /^(\S+ \S+ \S+) .*database system is ready to accept (?:read-only )?connections/mg;

	return "timestamptz '$times[-1]'";
}

# At the end of a test: check that the server's log has nothing that must never be
# there.  Options: signals, how many processes were killed by signals on purpose;
# except, a pattern of lines that the server causes itself.
sub check_log
{
	my ($node, %opt) = @_;
	my $log = slurp_file($node->logfile);
	my @bad = grep
	{
		/PANIC|TRAP:|internal error| XX\d\d\d (ERROR|FATAL|WARNING|LOG):/
		  || /WARNING: .*( leak|problem in alloc set|write past chunk)/
	} grep { !$opt{except} || $_ !~ $opt{except} } split /\n/, $log;
	my @signals = $log =~ /^(.*was terminated by signal.*)$/mg;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join("\n", @bad), '', 'no internal errors in the log of ' . $node->name);
	is(scalar(@signals), $opt{signals} // 0, 'processes killed in ' . $node->name)
	  or diag(join("\n", @signals));
	return;
}

1;
