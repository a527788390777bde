# Load on a small scale: many tasks that become due at once after the table was
# nearly empty, many sessions that schedule at once, and parameters and results of
# 100 MB.  test/load does the same with far more.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('load', conf => "max_connections = 250\nshared_buffers = 64MB\nmax_wal_size = 4GB\n");

# ---------------------------------------------------------------------------
# Statistics of a nearly empty table, as autovacuum usually finds it
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE TABLE counted (n int);
GRANT INSERT ON counted TO PUBLIC;
CREATE FUNCTION count_one() RETURNS void LANGUAGE sql AS $$ INSERT INTO public.counted VALUES (1) $$;
SELECT tasksched.register_action('count_one', 'count_one');
SELECT tasksched.pause_scheduler();
SELECT tasksched.schedule_task('count_one');
ANALYZE tasksched.live;
ANALYZE tasksched.finished;
SELECT count(*) FROM tasksched.schedule_tasks('count_one', array_fill(NULL::jsonb, '{5000}'));
EOT
sql($node, 'SELECT tasksched.resume_scheduler()');
my $took = wait_value($node, 'SELECT count(*) FROM tasksched.live', 0, '5,000 tasks that are due at once complete');
cmp_ok($took, '<', 60, 'in reasonable time, whatever plans their statements have got');
is(sql($node, 'SELECT count(*) FROM counted'), 5001, 'each of them once');

# ---------------------------------------------------------------------------
# 200 sessions
# ---------------------------------------------------------------------------
my $script = PostgreSQL::Test::Utils::tempdir . '/schedule.sql';
append_to_file($script, "SELECT tasksched.schedule_task('count_one');\n");
$node->run_log([ 'pgbench', '-n', '-c', '200', '-j', '2', '-t', '5', '-f', $script, $node->connstr('postgres') ]);
wait_value($node, q{SELECT count(*) FILTER (WHERE status = 'complete'), count(*) FROM tasksched.tasks}, '6001|6001',
	'what 200 sessions have scheduled at once completes');
is(sql($node, 'SELECT count(*) FROM counted'), 6001, 'each of them once');

# ---------------------------------------------------------------------------
# 100 MB in, 100 MB out
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION echo(params jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT params $$;
SELECT tasksched.register_action('echo', 'echo');
EOT
my $id = schedule($node, q{'echo', params => to_jsonb(repeat('x', 100 * 1024 * 1024))});
wait_for_status($node, $id, 'complete', 'a task with params of 100 MB completes');
is(field_of($node, $id, 'length(result::text), params = result'), '104857602|t', 'and returns them');

$node->stop;
check_log($node);
done_testing();
