# The seven cases that the tests of the original scheduler assert.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

my $node = new_node('contract', conf => "tasksched.max_running_tasks = 3\n");

# 1. A task due in a few seconds, its result, and its retention
sql($node, <<'EOT');
CREATE FUNCTION give_val(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome
LANGUAGE sql AS $$ SELECT tasksched.complete(jsonb_build_object('val', task.params->'val')) $$;
SELECT tasksched.register_action('give_val', 'give_val');
EOT
my $id = schedule($node, q{'give_val', params => '{"val": 1}', delay => '4 s'});
is(sql($node, "SELECT status, result IS NULL, launch, attempt FROM tasksched.get_task('$id')"),
	'scheduled|t|0|0', 'before it is due: scheduled, without a result');
wait_for_status($node, $id, 'complete', 'it completes');
is( sql($node, "SELECT result, started_at >= run_at, launch, attempt FROM tasksched.get_task('$id')"),
	'{"val": 1}|t|1|1', 'afterwards it has its result, and has not started too early');

my $kept = schedule($node, q{'give_val', params => '{"val": 2}'});
wait_for_status($node, $kept, 'complete', 'another one completes');
sql($node, <<"EOT");
UPDATE tasksched.finished SET finished_at = now() - interval '7 days 1 second' WHERE id = '$id';
UPDATE tasksched.finished SET finished_at = now() - interval '7 days' + interval '10 min' WHERE id = '$kept';
EOT
$node->reload;
wait_value($node, "SELECT count(*) FROM tasksched.get_task('$id')", 0,
	'after 7 days and 1 s it is gone');
is(sql($node, "SELECT count(*) FROM tasksched.get_task('$kept')"), 1, 'before 7 days it is not');

# 2. One task more than may run at the same time
my @ids = split /\n/,
  sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{4}'), resource_id => 'two')});
wait_value($node, "SELECT count(*) FROM tasksched.running_tasks WHERE state = 'running'",
	3, 'as many run as may');
is( sql($node, "SELECT string_agg(status::text, ' ' ORDER BY status) FROM tasksched.tasks WHERE resource_id = 'two'"),
	'scheduled active active active', 'the others are active and one is scheduled');
is(sql($node, 'SELECT running, max_running FROM tasksched.status'), '3|3', 'the gauge says so');
open_gate($node, 'two');
wait_value($node, "SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'two' AND status = 'complete'",
	4, 'then that one runs too, and all complete');
is(sql($node, "SELECT count(*), count(DISTINCT id), max(launch) FROM runs"),
	'4|4|1', 'each was launched once');

# 3. An action that raises
$id = schedule($node, q{'raising', params => '{"message": "raising"}'});
wait_for_status($node, $id, 'failed', 'a task whose action raises has failed');
is( field_of($node, $id, "error, error_details->>'sqlstate', result IS NULL, attempt, launch, crashes"),
	'raising|P0001|t|1|1|0', 'its error is the message');

# 4. A checkpoint, a restart of the server, and the resumed launch
sql($node, <<'EOT');
CREATE PROCEDURE checkpointing(task tasksched.task, first_launch boolean, INOUT outcome tasksched.outcome)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	IF first_launch THEN
		PERFORM tasksched.update_task(task.id, result => '{"in_progress": true}');
		COMMIT;
		PERFORM pg_sleep(1000);	-- the scenario: the action hangs
	END IF;
	outcome := tasksched.complete('{"success": true}');
END $$;
SELECT tasksched.register_action('checkpointing', 'checkpointing');
TRUNCATE runs;
EOT
$id = schedule($node, q{'checkpointing'});
wait_value($node, "SELECT status, result FROM tasksched.get_task('$id')",
	'active|{"in_progress": true}', 'the first launch has stored a checkpoint');
$node->restart;
wait_for_status($node, $id, 'complete', 'after a restart it completes');
is(field_of($node, $id, 'result, attempt, launch, crashes'),
	'{"success": true}|1|2|0', 'with the result of the second launch; nothing is counted');
is( sql($node, 'SELECT launch, first_launch, status, result FROM runs ORDER BY launch'),
	"1|t|active|\n2|f|active|{\"in_progress\": true}",
	'the second launch was not the first, and saw the checkpoint');

# 5. Cancel a running task that counts
sql($node, <<'EOT');
CREATE TABLE counter (n int);
CREATE PROCEDURE counting()
LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		INSERT INTO public.counter VALUES (1);
		COMMIT;
		PERFORM pg_sleep(0.1);	-- the scenario: the action counts in a loop
	END LOOP;
END $$;
SELECT tasksched.register_action('counting', 'counting');
EOT
$id = schedule($node, q{'counting'});
wait_until($node, 'SELECT count(*) >= 3 FROM counter', 'the task counts');
is(sql($node, "SELECT tasksched.task_is_running('$id')"), 't', 'it is running');
is(sql($node, "SELECT tasksched.cancel_task('$id')"), 't', 'it is cancelled');
is(status_of($node, $id), 'cancelled', 'its status says so at once');
wait_until($node, "SELECT NOT tasksched.task_is_running('$id')", 'it is no longer running');
my $count = sql($node, 'SELECT count(*) FROM counter');
sql($node, 'SELECT pg_sleep(1) /* several turns of the action */');
is(sql($node, 'SELECT count(*) FROM counter'), $count, 'the counter stands still');
is(field_of($node, $id, 'status, launch, finished_at IS NOT NULL'), 'cancelled|1|t', 'for good');
is(sql($node, "SELECT tasksched.cancel_task('$id')"), 'f', 'there is nothing more to cancel');

# 6. Cancel a task between two stages
sql($node, <<'EOT');
TRUNCATE counter;
CREATE FUNCTION counting_in_stages() RETURNS tasksched.outcome
LANGUAGE sql AS $$
	INSERT INTO public.counter VALUES (1);
	SELECT tasksched.reschedule(delay => '0.5 s')
$$;
SELECT tasksched.register_action('counting_in_stages', 'counting_in_stages');
EOT
$id = schedule($node, q{'counting_in_stages'});
wait_until($node, 'SELECT count(*) >= 2 FROM counter', 'a task counts in stages');
wait_until($node, <<"EOT", 'it is cancelled while it waits for its next stage');
SELECT status = 'scheduled' AND tasksched.cancel_task('$id') FROM tasksched.get_task('$id')
EOT
$count = sql($node, 'SELECT count(*) FROM counter');
is(sql($node, "SELECT tasksched.task_is_running('$id')"), 'f', 'it is not running');
sql($node, 'SELECT pg_sleep(1.5) /* several stages of the action */');
is(sql($node, 'SELECT count(*) FROM counter'), $count, 'the counter stands still');
is(status_of($node, $id), 'cancelled', 'for good');

# 7. Listing
sql($node, <<'EOT');
SELECT tasksched.delete_task(id) FROM tasksched.tasks;
CREATE ROLE nogrants LOGIN;
CREATE ROLE scheduling LOGIN;
SELECT tasksched.grant_usage('scheduling');
EOT
my $active = schedule($node, q{'hold', 'listed active'});
my $complete = schedule($node, q{'give_val', 'listed complete', params => '{"val": 1}'});
my $failed = schedule($node, q{'raising', 'listed failed', params => '{"message": "no"}'});
wait_for_running($node, $active, 'of three tasks, one is active');
wait_for_status($node, $complete, 'complete', 'one is complete');
wait_for_status($node, $failed, 'failed', 'and one has failed');
my %listed = (
	'' => "$active\n$complete\n$failed",
	q{statuses => '{active}'} => $active,
	q{statuses => '{complete}'} => $complete,
	q{statuses => '{failed}'} => $failed,
	q{actions => '{hold}'} => $active,
	q{actions => '{give_val}'} => $complete,
	q{resource_id => 'listed failed'} => $failed,
	q{max_timestamp => now() - interval '1 h'} => '',
	q{statuses => '{}'} => '');
foreach my $filter (sort keys %listed)
{
	is(sql($node, "SELECT id FROM tasksched.get_tasks($filter) ORDER BY id"),
		$listed{$filter}, "get_tasks($filter)");
}
sqlstate_is($node, 'SELECT * FROM tasksched.get_tasks()', '42501',
	'a role without grants may not list', user => 'nogrants');
sqlstate_is($node, 'SELECT * FROM tasksched.tasks', '42501', 'nor read the table', user => 'nogrants');
foreach my $query (
	'SELECT * FROM tasksched.get_tasks()',
	'SELECT id FROM tasksched.tasks',
	"SELECT * FROM tasksched.get_task('$failed')",
	'SELECT task_id FROM tasksched.running_tasks',
	"SELECT tasksched.cancel_task('$active') WHERE tasksched.cancel_task('$active')")
{
	is(join("\n", try_sql($node, $query, user => 'scheduling')),
		"\n", "a role that may schedule sees nothing of another's: $query");
}
open_gate($node, 'listed active');
wait_for_status($node, $active, 'complete', 'the active one completes');

$node->stop;
check_log($node);
done_testing();
