# What comes after an action: its session is reset, its outcome meets other
# transactions, finished tasks are purged.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedSession;
use TaskschedTest;
use Test::More;

# no scan helps unless the test asks for one
my $node = new_node('aftermath', conf => <<'EOT');
tasksched.reconcile_interval = '1h'
tasksched.max_running_tasks = 1
EOT
sql($node, <<'EOT');
CREATE FUNCTION fault_arm(point text, action text) RETURNS void AS 'tasksched', 'tasksched_fault_arm' LANGUAGE C STRICT;
CREATE FUNCTION fault_pid(point text) RETURNS int AS 'tasksched', 'tasksched_fault_pid' LANGUAGE C STRICT;
CREATE FUNCTION fault_release(point text) RETURNS void AS 'tasksched', 'tasksched_fault_release' LANGUAGE C STRICT;
CREATE ROLE alice;
SELECT tasksched.grant_usage('alice');
EOT

# Wait until so many processes of a kind wait for a lock
sub wait_for_lock
{
	my ($condition, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_value($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND $condition",
		1, $name);
}

my $worker = "backend_type = 'tasksched worker'";

# ---------------------------------------------------------------------------
# A worker that can't drop its temporary objects keeps its place, and is seen
# ---------------------------------------------------------------------------
{
	sql($node, <<'EOT');
CREATE TABLE depends (n int);
ALTER TABLE depends OWNER TO alice;
CREATE FUNCTION depend() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'CREATE DOMAIN pg_temp.d AS int';
	EXECUTE 'ALTER TABLE depends ADD COLUMN d pg_temp.d';
END $$;
GRANT TEMPORARY ON DATABASE postgres TO alice;
SELECT tasksched.register_action('depend', 'depend');
SELECT fault_arm('outcome committed', 'stop');
EOT
	my $session = TaskschedSession->new($node);
	my $id = sql($node, "SET ROLE alice; SELECT tasksched.schedule_task('depend')");
	wait_until($node, "SELECT fault_pid('outcome committed') IS NOT NULL", 'the outcome is committed');
	$session->query('BEGIN');
	$session->query('LOCK TABLE depends IN ACCESS SHARE MODE');
	sql($node, "SELECT fault_release('outcome committed')");
	is(sql($node, "SELECT status FROM tasksched.wait_for_task('$id')"),
		'complete', 'a session that waits for the task learns of its end');
	wait_for_lock($worker, 'its worker waits for the lock');

	my $other = schedule($node, q{'note'});
	wait_until(
		$node,
		"SELECT reason ~ 'all places .* are taken \\(alice: 1\\)' FROM tasksched.blocked_tasks WHERE id = '$other'",
		'a task that waits for its place says so');
	is(sql($node, "SELECT task_id = '$id' FROM tasksched.running_tasks"),
		't', 'and the view running_tasks shows the worker');
	$session->query('ROLLBACK');
	$session->quit;
	wait_for_status($node, $other, 'complete', 'when the lock is let go, the task runs');
	is( sql($node, q{SELECT count(*) FROM pg_attribute
			WHERE attrelid = 'depends'::regclass AND attname = 'd' AND NOT attisdropped}),
		'0', 'and what depended on the temporary object is gone');
}

# ---------------------------------------------------------------------------
# An action that has read the tables itself meets REINDEX in a function of ours
# ---------------------------------------------------------------------------
{
	# the worker is the first to look for a deadlock
	sql($node, <<'EOT');
CREATE FUNCTION reads(task tasksched.task) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL deadlock_timeout = '10 ms';
	PERFORM count(*) FROM tasksched.tasks;
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = 'reads') LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	PERFORM FROM tasksched.get_task(task.id);
END $$;
SELECT tasksched.register_action('reads', 'reads');
EOT
	my $id = schedule($node, q{'reads'});
	my $session = TaskschedSession->new($node);
	wait_for_running($node, $id, 'an action has read the tables');
	$session->query("SET deadlock_timeout = '1h'");
	$session->begin('REINDEX TABLE tasksched.live');
	wait_for_lock("query ~ '^REINDEX'", 'REINDEX waits for it');
	open_gate($node, 'reads');
	$session->ended('REINDEX comes to its end');
	$session->quit;
	wait_for_status($node, $id, 'complete', 'and the action is launched again');
	is(field_of($node, $id, 'launch, attempt, error'), '2|1|', 'for the same attempt');
}

# ---------------------------------------------------------------------------
# The outcome finds a finished twin that somebody else is deleting
# ---------------------------------------------------------------------------
{
	my $id = schedule($node, q{'hold', 'twin'});
	my $session = TaskschedSession->new($node);

	wait_for_running($node, $id, 'a task runs');
	sql($node, <<"EOT");
INSERT INTO tasksched.finished (id, action, status, run_at, owner, created_at, updated_at, finished_at,
	installation, database, finished)
SELECT id, action, 'complete', run_at, owner, created_at, updated_at, now(), installation, database, true
FROM tasksched.live WHERE id = '$id'
EOT
	$session->query('BEGIN');
	$session->query("DELETE FROM tasksched.finished WHERE id = '$id'");
	open_gate($node, 'twin');
	wait_for_lock($worker, 'its worker waits for the deletion');
	$session->query('COMMIT');
	$session->quit;
	wait_value($node, "SELECT string_agg(status || ' ' || launch, ', ') FROM tasksched.tasks WHERE id = '$id'",
		'complete 1', 'and stores its outcome');
	is(sql($node, "SELECT count(*) FROM runs WHERE id = '$id'"), '1', 'of its only launch');
}

# ---------------------------------------------------------------------------
# Purging goes on behind finished tasks that hold live ones
# ---------------------------------------------------------------------------
{
	# more than a batch, which have finished at the same moment, and one after them
	sql($node, <<'EOT');
BEGIN;
SELECT count(*) FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{1500}'),
	run_at => 'tomorrow', resource_id => 'held');
INSERT INTO tasksched.finished (id, action, resource_id, status, run_at, owner, created_at, updated_at, finished_at,
	installation, database, finished)
SELECT id, action, resource_id, 'complete'::tasksched.task_status, run_at, owner, created_at, updated_at,
	'2020-01-01'::timestamptz, installation, database, true
FROM tasksched.live WHERE resource_id = 'held'
UNION ALL
SELECT gen_random_uuid(), action, 'last', 'complete'::tasksched.task_status, run_at, owner, created_at, updated_at,
	'2020-01-02'::timestamptz, installation, database, true
FROM (SELECT * FROM tasksched.live WHERE resource_id = 'held' LIMIT 1) one;
COMMIT;
ALTER SYSTEM SET tasksched.keep_finished_tasks = '1d';
SELECT pg_reload_conf();
EOT
	wait_value($node, q{SELECT count(*) FROM tasksched.finished WHERE resource_id = 'last'},
		0, 'an old task is purged behind 1,500 that have to stay');
	is(sql($node, q{SELECT count(*) FROM tasksched.finished WHERE resource_id = 'held'}), '1500', 'which stay');
}

$node->stop;
check_log($node);
done_testing();
