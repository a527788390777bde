# The scheduler's queues: a task that is locked, blocked or held takes neither the
# place nor the time of other tasks, and is found again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use TaskschedSession;
use Test::More;

# no scan comes by itself
my $node = new_node('queue', conf => "tasksched.reconcile_interval = '1h'\ntasksched.worker_idle_timeout = '1h'\n");
my $session = TaskschedSession->new($node);

sub schedule_many
{
	my ($action, $n, $resource_id) = @_;

	sql($node, qq{SELECT count(*)
		FROM tasksched.schedule_tasks('$action', array_fill(NULL::jsonb, '{$n}'), resource_id => '$resource_id')});
	return;
}

sub setting
{
	my ($name, $value) = @_;

	sql($node, "ALTER SYSTEM SET tasksched.$name = '$value'; SELECT pg_reload_conf()");
	return;
}

sub reason_of
{
	my ($id, $role) = @_;

	return sql($node,
		($role ? "SET ROLE $role; " : '') . "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'");
}

# ---------------------------------------------------------------------------
# A session has locked more tasks than there are places and wake-ups
# ---------------------------------------------------------------------------
sql($node, 'SELECT tasksched.pause_scheduler()');
schedule_many('note', 400, 'locked');
$session->query(q{BEGIN;
	SELECT count(tasksched.update_task(id, result => '"mine"')) FROM tasksched.tasks WHERE resource_id = 'locked'});
sql($node, 'SELECT tasksched.resume_scheduler()');
my $id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'a task is launched although 400 older ones are locked');
is(sql($node,
		q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'locked' AND status = 'scheduled' AND launch = 0}),
	400, 'which are not');
$session->query('ROLLBACK');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'locked' AND status = 'complete'},
	400, 'they are when they are let go');

# ---------------------------------------------------------------------------
# A live task that also exists as a finished one, as a restore may leave it
# ---------------------------------------------------------------------------
sql($node, 'SELECT tasksched.pause_scheduler()');
my $twin = schedule($node, q{'note'});
sql($node, <<EOT);
INSERT INTO tasksched.finished
SELECT (jsonb_populate_record(NULL::tasksched.finished, to_jsonb(t) || '{"status": "complete", "finished": true}'
	|| jsonb_build_object('owner', t.owner::text, 'finished_at', now()))).* FROM tasksched.live t WHERE id = '$twin'
EOT
sql($node, 'SELECT tasksched.resume_scheduler()');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'a task is launched beside one that is finished as well');
is(sql($node, "SELECT status, launch FROM tasksched.live WHERE id = '$twin'"), 'scheduled|0', 'which is not');
is(sql($node, "SELECT count(*) FROM tasksched._claim('{$twin}')"), 0, 'and can not be claimed');
is(reason_of($twin), 'the task is finished as well, so it came from a dump; see adopt_tasks() and delete_task()',
	'blocked_tasks says so');
sql($node, "DELETE FROM tasksched.finished WHERE id = '$twin'; SELECT pg_reload_conf()");
wait_for_status($node, $twin, 'complete', 'it is launched when it is no longer finished');

# ---------------------------------------------------------------------------
# All places are taken
# ---------------------------------------------------------------------------
sql($node, q{CREATE ROLE alice; CREATE ROLE bob; SELECT tasksched.grant_usage(r) FROM unnest('{alice,bob}'::text[]) r});
setting('max_running_tasks', 2);
my @running = map { sql($node, q{SET ROLE alice; SELECT tasksched.schedule_task('hold', 'places')}) } 1 .. 2;
wait_for_running($node, \@running, 'two tasks run');
my $waiting = sql($node, q{SET ROLE bob; SELECT tasksched.schedule_task('note')});
my $taken = 'all places for running tasks are taken (%s); see running_tasks and tasksched.max_running_tasks';
is(reason_of($waiting), sprintf($taken, 'alice: 2'), 'all places are taken: an admin learns by whom');
is(reason_of($waiting, 'bob'), sprintf($taken, 'other roles: 2'), 'a role learns nothing of others');
setting('max_running_tasks', 0);
wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$waiting'",
	'tasksched.max_running_tasks is 0', 'there is no place at all');
sql($node, 'ALTER SYSTEM RESET tasksched.max_running_tasks; SELECT pg_reload_conf()');
open_gate($node, 'places');
wait_for_status($node, $_, 'complete', 'the tasks complete') foreach (@running, $waiting);

# ---------------------------------------------------------------------------
# A role has very many blocked tasks, and changes one of them again and again
# ---------------------------------------------------------------------------
sql($node, q{SELECT tasksched.pause_scheduler(), tasksched.register_action(a, 'note')
	FROM unnest('{unregistered,late}'::text[]) a});
schedule_many('unregistered', 200_000, 'blocked');
my $late = schedule($node, q{'late'});
sql($node, q{SELECT tasksched.unregister_action(a) FROM unnest('{unregistered,late}'::text[]) a;
	SELECT tasksched.resume_scheduler()});
sql($node, 'CREATE TABLE stop (yes boolean)');
$session->begin(<<'EOT');
DO $$
DECLARE
	oldest uuid := (SELECT id FROM tasksched.tasks WHERE resource_id = 'blocked' ORDER BY run_at, id LIMIT 1);
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		PERFORM tasksched.update_task(oldest, result => '1');
		COMMIT;
	END LOOP;
END $$
EOT
wait_until($node, q{SELECT EXISTS (SELECT FROM tasksched.tasks WHERE resource_id = 'blocked' AND result IS NOT NULL)},
	'it has begun');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'a task is launched meanwhile, behind all of these');
sql($node, q{SELECT tasksched.register_action('late', 'note')});
wait_for_status($node, $late, 'complete', 'so is one that was blocked like them, when it no longer is');
is($session->ended ? 1 : 0, 0, 'that role has not stopped');
sql($node, 'INSERT INTO stop VALUES (true)');
$session->end;
sql($node, q{DELETE FROM tasksched.live WHERE resource_id = 'blocked'});

# ---------------------------------------------------------------------------
# A scheduler stays while it knows of a blocked task that is due
# ---------------------------------------------------------------------------
sql($node, 'CREATE DATABASE other');
sql($node, q{CREATE EXTENSION tasksched; CREATE FUNCTION noop() RETURNS void LANGUAGE sql RETURN NULL;
	SELECT tasksched.register_action('noop', 'noop')}, 'other');
sql($node, q{CREATE FUNCTION gone() RETURNS void LANGUAGE sql RETURN NULL;
	SELECT tasksched.register_action('gone', 'gone'); DROP FUNCTION gone});
$node->append_conf('postgresql.conf', "tasksched.worker_idle_timeout = 0\n");
setting('scheduler_idle_timeout', 1);
$id = schedule($node, q{'gone'});
wait_until($node, "SELECT reason IS NOT NULL FROM tasksched.blocked_tasks WHERE id = '$id'", 'a task is blocked');
schedule($node, q{'noop'}, 'other');
my $state = q{SELECT state FROM tasksched.status WHERE database = current_database()};
wait_value($node, $state, 'idle', 'the scheduler of another database exits, having nothing to do', 'other');
is(sql($node, $state), 'running', 'the one with the blocked task does not');
setting('scheduler_idle_timeout', '1h');
setting('reconcile_interval', '1s');
sql($node, q{CREATE FUNCTION gone() RETURNS void LANGUAGE sql RETURN NULL});
wait_for_status($node, $id, 'complete', 'the next scan finds that it is not blocked any more');

# a task of another installation needs no scheduler: adopt_tasks() starts one
setting('reconcile_interval', '1h');
sql($node,
	q{BEGIN; SELECT tasksched.schedule_task('note', 'foreign'); UPDATE tasksched.live SET installation = 0; COMMIT});
setting('scheduler_idle_timeout', 1);
wait_value($node, $state, 'idle', 'a task that is held until adopt_tasks() keeps no scheduler');
sql($node, 'SELECT tasksched.adopt_tasks()');
wait_value($node, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'foreign'}, 'complete', 'which that wakes');

# ---------------------------------------------------------------------------
# A scheduler that was started only to have a look purges everything that is to be purged
# ---------------------------------------------------------------------------
wait_value($node, $state, 'idle', 'the scheduler exits');
sql($node, <<'EOT');
INSERT INTO tasksched.finished (id, action, status, run_at, owner, created_at, updated_at, finished_at, installation,
	database, finished)
SELECT gen_random_uuid(), 'old', 'complete', t, current_user::regrole, t, t, t, 1, 1, true
FROM generate_series(1, 50000) n, LATERAL (SELECT now() - interval '1 year' + n * interval '1 ms') l(t)
EOT
my $old = q{SELECT count(*) FROM tasksched.tasks WHERE action = 'old'};
wait_until($node, "SELECT ($old) < 50000", 'it has begun to purge');
setting('scheduler_idle_timeout', '1h');	# this scheduler is to do all of it
wait_value($node, $old, 0, 'it goes on until nothing is left');

$session->quit;
$node->stop;
check_log($node);
done_testing();
