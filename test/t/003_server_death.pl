# The death of the server, of the scheduler and of the launcher.  And 10,000 tasks,
# each of which leaves exactly one row behind, whatever happens in the meantime.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('server_death');
my $killed = 0;

# ---------------------------------------------------------------------------
# Two tasks run while the server or one of its processes ends: both are resumed,
# and nothing is counted for either
# ---------------------------------------------------------------------------
my %ends = (
	'a fast shutdown' => sub { $node->stop('fast'); $node->start; },
	'an immediate shutdown' => sub { $node->stop('immediate'); $node->start; },
	'SIGKILL of the postmaster' => sub { kill_postmaster($node); },
	'SIGTERM of the scheduler' => sub { signal_process('TERM', scheduler_pid($node)); },
	'SIGTERM of the launcher' => sub { signal_process('TERM', launcher_pid($node)); },
	'SIGKILL of the scheduler' => sub { signal_process('KILL', scheduler_pid($node)); $killed++; },
	'SIGKILL of the launcher' => sub { signal_process('KILL', launcher_pid($node)); $killed++; });
foreach my $end (sort keys %ends)
{
	my $gate = $end =~ s/\W/_/gr;
	my @ids = split /\n/,
	  sql($node, "SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{2}'), resource_id => '$gate')");
	my $launch = $end =~ /TERM/ ? 1 : 2;	# workers go on without the scheduler and the launcher

	wait_for_running($node, \@ids, "$end: two tasks run");
	flush_wal($node);
	my $before = time;
	$ends{$end}->();
	cmp_ok(time - $before, '<', 60, "$end is prompt");
	wait_value($node, "SELECT count(*) FROM tasksched.running_tasks WHERE state = 'running' AND launch = $launch",
		2, "$end: both run");
	is(sql($node, 'SELECT max(since) < ' . ready_since($node) . " + interval '5 s' FROM tasksched.running_tasks"),
		't', "$end: within 5 s of the server's start")
	  if $launch == 2;
	open_gate($node, $gate);
	wait_value($node, "SELECT count(*) FROM tasksched.tasks WHERE resource_id = '$gate' AND status = 'complete'",
		2, "$end: both complete");
	is(sql($node, "SELECT sum(crashes), sum(attempt), max(launch) FROM tasksched.tasks WHERE resource_id = '$gate'"),
		"0|2|$launch", "$end: nothing is counted");
	my $next = schedule($node, q{'note'});
	cmp_ok(wait_for_status($node, $next, 'complete', "$end: the next task runs"), '<', 30, "$end: soon");
}

# ---------------------------------------------------------------------------
# A task that kills its process at once, so that even its claim is lost
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION poison() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -KILL ' || pg_backend_pid());
END $$;
SELECT tasksched.register_action('poison', 'poison');
EOT
# with a delay: otherwise the session that schedules it would be hit as well
my $poison = schedule($node, q{'poison', delay => '1 s'});
wait_for_status($node, $poison, 'failed', 'a task that always crashes the server at once has failed');
is(field_of($node, $poison, 'crashes, attempt, error'),
	'3|1|task crashed its worker process 3 times', 'for that reason');
$killed += 3;

# ---------------------------------------------------------------------------
# 10,000 small tasks
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE TABLE ledger (n int NOT NULL);
CREATE FUNCTION enter(params jsonb) RETURNS void
LANGUAGE sql AS $$ INSERT INTO public.ledger VALUES ((params ->> 'n')::int) $$;
SELECT tasksched.register_action('enter', 'enter');
SELECT count(*)
FROM tasksched.schedule_tasks('enter', ARRAY(SELECT jsonb_build_object('n', n) FROM generate_series(1, 10000) n));
EOT
my $done = q{SELECT count(*) FROM tasksched.tasks WHERE action = 'enter' AND status = 'complete'};
wait_until($node, "SELECT ($done) > 1000", '1,000 of 10,000 are done');
my @workers = pids_of($node, 'tasksched worker');
signal_process('KILL', $workers[0]);
$killed++;
wait_until($node, "SELECT ($done) > 4000", '4,000 are done, after a crash');
$node->stop('immediate');
$node->start;
wait_until($node, "SELECT ($done) > 7000", '7,000 are done, after an immediate restart');
signal_process('TERM', scheduler_pid($node));
wait_value($node, $done, 10000, 'all are done');
is(sql($node, 'SELECT count(*), count(DISTINCT n), min(n), max(n) FROM ledger'),
	'10000|10000|1|10000', 'each exactly once');
is(sql($node, q{SELECT count(*) FROM tasksched.tasks WHERE action = 'enter' AND crashes > 1}),
	0, 'at most one crash is counted for any');

$node->stop;
check_log($node, signals => $killed);
done_testing();
