# No process keeps memory for what it has done.  After thousands of tasks this is
# checked for a worker, the scheduler and a session that schedules.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use TaskschedTest;
use Test::More;

my $node = new_node('memory', conf => "tasksched.max_running_tasks = 1\nfsync = off\n");

sql($node, <<'EOT');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION big_error() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION '%', repeat('x', 1000);
END $$;
CREATE PROCEDURE committing(task tasksched.task, first_launch boolean, INOUT outcome tasksched.outcome)
LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..3 LOOP
		PERFORM tasksched.update_task(task.id, result => to_jsonb(repeat('x', 1000)));
		COMMIT;
	END LOOP;
	outcome := tasksched.complete(to_jsonb(repeat('x', 1000)));
END $$;
CREATE FUNCTION staged(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome
LANGUAGE sql AS $$
	SELECT CASE WHEN first_launch THEN tasksched.proceed(to_jsonb(repeat('x', 1000)))
		ELSE tasksched.complete() END
$$;
SELECT tasksched.register_action(a, a) FROM unnest('{nothing,big_error,committing,staged}'::text[]) a;
EOT

# The bytes that a process uses, as it logs them itself
sub used_bytes
{
	my ($pid) = @_;
	my $position = log_position($node);

	sql($node, "SELECT pg_log_backend_memory_contexts($pid)");
	wait_for_log($node, qr/\[$pid\] .*Grand total: .* \d+ used/, $position, "process $pid tells");
	log_since($node, $position) =~ /\[$pid\] .*Grand total: .* (\d+) used/;
	return $1;
}

# Run this many tasks of each kind in one worker
sub run_tasks
{
	my ($n) = @_;

	sql($node, <<"EOT");
SELECT count(tasksched.schedule_task(a, params => to_jsonb(repeat('x', 1000))))
FROM generate_series(1, $n), unnest('{nothing,big_error,committing,staged}'::text[]) a
EOT
	wait_value($node, "SELECT count(*) FROM tasksched.live", 0, "4 times $n tasks finish");
	return;
}

run_tasks(100);
my ($worker) = pids_of($node, 'tasksched worker');
my $scheduler = scheduler_pid($node);
my %before = map { $_ => used_bytes($_) } $worker, $scheduler;
run_tasks(500);
is_deeply([ pids_of($node, 'tasksched worker'), scheduler_pid($node) ],
	[ $worker, $scheduler ], 'the same processes did it all');
foreach my $pid ($worker, $scheduler)
{
	my $after = used_bytes($pid);

	# 2,000 tasks: 50 bytes for each would be more
	cmp_ok($after - $before{$pid}, '<', 100_000,
		($pid == $worker ? 'worker' : 'scheduler') . ": $before{$pid} bytes before, $after after");
}

# A session
my $calls = <<'EOT';
		id := tasksched.schedule_task('nothing', params => to_jsonb(repeat('x', 1000)));
		PERFORM tasksched.update_task(id, result => to_jsonb(repeat('x', 1000)));
		PERFORM FROM tasksched.get_task(id);
		PERFORM FROM tasksched.get_tasks(resource_id => 'nobody''s');
		PERFORM tasksched.cancel_task(id);
		PERFORM tasksched.retry_task(id);
		PERFORM tasksched.delete_task(id);
EOT
my %bodies = (
	'in one transaction' => $calls,
	'in a transaction for each task' => "$calls\t\tCOMMIT;\n",
	'that waits' => "PERFORM FROM tasksched.wait_for_task((SELECT t.id FROM tasksched.tasks t LIMIT 1));\n");

sql($node, 'SELECT tasksched.pause_scheduler()');
foreach my $what (sort keys %bodies)
{
	my $used = 'SELECT sum(used_bytes) FROM pg_backend_memory_contexts';
	my (undef, $before, $after) = split /\n/, sql($node, <<"EOT");
CREATE OR REPLACE PROCEDURE use_api(n int) LANGUAGE plpgsql AS \$\$
DECLARE
	id uuid;
BEGIN
	FOR i IN 1..n LOOP
$bodies{$what}
	END LOOP;
END \$\$;
CALL use_api(20);
$used;
$used;
CALL use_api(500);
$used;
EOT
	cmp_ok($after - $before, '<', 100_000,
		"a session $what: $before bytes before, $after after");
}

check_log($node);
done_testing();
