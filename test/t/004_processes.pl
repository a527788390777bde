# Databases, roles, settings and slots: which processes start and stop when, and
# under which role.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

my $node = new_node('processes');

sub worker_count { return scalar(pids_of($node, 'tasksched worker', @_)); }

# ---------------------------------------------------------------------------
# Another database, and the end of the extension
# ---------------------------------------------------------------------------
sql($node, 'CREATE DATABASE other');
is(scalar(pids_of($node, 'tasksched scheduler', 'other')), 0, 'no scheduler without the extension');
create_fixtures($node, 'other');
scheduler_pid($node, 'other');
my $id = schedule($node, q{'note'}, 'other');
wait_for_status($node, $id, 'complete', 'tasks run in another database without a restart', 'other');
my $held = schedule($node, q{'hold', 'gone'}, 'other');
wait_for_running($node, $held, 'one runs', 'other');
my ($out, $err) = try_sql($node, 'DROP EXTENSION tasksched', db => 'other');
like($err, qr/2BP01/, 'functions that take our types stop a plain DROP EXTENSION');
sql($node, 'BEGIN; DROP EXTENSION tasksched CASCADE; ROLLBACK', 'other');
is(sql($node, "SELECT tasksched.task_is_running('$held')", 'other'), 't', 'one that is rolled back stops nothing');
sql($node, 'DROP EXTENSION tasksched CASCADE', 'other');
wait_value($node, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other' AND backend_type ~ 'tasksched'",
	0, 'DROP EXTENSION ends its scheduler and its workers');
sql($node, 'DROP TABLE runs, gates; DROP FUNCTION nap, raising; CREATE EXTENSION tasksched; DROP EXTENSION tasksched',
	'other');
create_fixtures($node, 'other');
$id = schedule($node, q{'note'}, 'other');
wait_for_status($node, $id, 'complete', 'an extension that was dropped and created again works', 'other');
sql($node, 'ALTER DATABASE other RENAME TO another');
sql($node, 'DROP DATABASE another');
pass('nothing of ours is in the way of ALTER and DROP DATABASE');

# ---------------------------------------------------------------------------
# Roles without LOGIN, and with settings of their own, some of them meant for clients
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE ROLE nologin NOLOGIN;
SELECT tasksched.grant_usage('nologin');
ALTER ROLE nologin SET work_mem = '111kB';
CREATE FUNCTION timeouts() RETURNS TABLE (name text, setting text) LANGUAGE sql AS $$
	SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',
		'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')
$$;
DO $$
BEGIN
	EXECUTE (SELECT string_agg(format('ALTER ROLE nologin SET %I = ''100ms''', name), ';') FROM timeouts());
END $$;
CREATE TABLE seen (who name, auth name, work_mem text, timeouts text, super text);
GRANT INSERT ON seen TO nologin;
CREATE PROCEDURE look(task tasksched.task) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.update_task(task.id, result => '1');
	COMMIT;
	INSERT INTO public.seen VALUES (current_user, session_user, current_setting('work_mem'),
		(SELECT string_agg(DISTINCT setting, ' ') FROM public.timeouts()),
		current_setting('is_superuser'));
	PERFORM pg_sleep(0.3);	-- the scenario: longer than the role's timeouts
END $$;
SELECT tasksched.register_action('look', 'look');
EOT
$id = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('look')});
wait_for_status($node, $id, 'complete', 'a role without LOGIN runs a procedure that commits');
is(sql($node, 'SELECT * FROM seen'), 'nologin|nologin|111kB|0|off', 'as itself, with its settings but the timeouts');
sql($node, q{TRUNCATE seen; ALTER ROLE nologin SET work_mem = '222kB'});
$id = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('look')});
wait_for_status($node, $id, 'complete', 'its next task runs');
is(sql($node, 'SELECT work_mem FROM seen'), '222kB', 'with settings that were changed meanwhile');
is(field_of($node, $id, 'launch, attempt, crashes'), '1|1|0', 'in its first launch');
sql($node, q{TRUNCATE seen; ALTER ROLE nologin SUPERUSER});
$id = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('look')});
wait_for_status($node, $id, 'complete', 'it becomes a superuser');
is(sql($node, 'SELECT super FROM seen'), 'on', 'and its task runs as one');
sql($node, q{TRUNCATE seen; ALTER ROLE nologin NOSUPERUSER});
$id = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('look')});
wait_for_status($node, $id, 'complete', 'and an ordinary role again');
is(sql($node, 'SELECT super FROM seen'), 'off', 'and so does its task');

# the role's own transactions may be read-only or repeatable read; those of tasksched
# are not
sql($node, q{ALTER ROLE nologin SET default_transaction_read_only = on;
	ALTER ROLE nologin SET default_transaction_isolation = 'repeatable read'});
$id = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('nap', params => '{"s": 0}')});
wait_for_status($node, $id, 'complete', 'a role whose transactions are read-only runs a task');
$id = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('note')});
wait_for_status($node, $id, 'failed', 'which may not write');
is(field_of($node, $id, q{error_details ->> 'sqlstate'}), '25006', 'as the setting says');
sql($node,
	q{ALTER ROLE nologin RESET default_transaction_read_only; ALTER ROLE nologin RESET default_transaction_isolation});

# a role that may not connect, and one that has been dropped
sql($node, q{REVOKE CONNECT ON DATABASE postgres FROM PUBLIC});
my $blocked = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('note')});
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'a task of another role is not held up by');
is(sql($node, "SELECT id, reason FROM tasksched.blocked_tasks"),
	"$blocked|the role that owns the task may not connect to the database", 'a role that may not connect');
sql($node, q{GRANT CONNECT ON DATABASE postgres TO PUBLIC; SELECT tasksched.resume_scheduler()});
wait_for_status($node, $blocked, 'complete', 'and goes on when it may');

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', "tasksched.enabled = off\n");
$node->reload;
wait_value($node, 'SELECT state FROM tasksched.status', 'disabled', 'tasksched.enabled = off is seen');
$id = schedule($node, q{'note'});
wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'", 'tasksched.enabled is off',
	'nothing is launched');
$node->append_conf('postgresql.conf', "tasksched.enabled = on\ntasksched.worker_idle_timeout = 0\n");
$node->reload;
wait_for_status($node, $id, 'complete', 'on again: it runs');

# nor does a next stage start that would otherwise start at once
sql($node, <<'EOT');
CREATE FUNCTION proceeding(task tasksched.task) RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = task.resource_id) LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	RETURN CASE WHEN task.result IS NULL THEN tasksched.proceed('1') ELSE tasksched.complete() END;
END $$;
SELECT tasksched.register_action('proceeding', 'proceeding');
EOT
$id = schedule($node, q{'proceeding', 'stages'});
wait_for_running($node, $id, 'a task is in its first stage');
sql($node, 'SELECT tasksched.pause_scheduler()');
wait_value($node, 'SELECT state FROM tasksched.status', 'paused', 'the scheduler is paused');
open_gate($node, 'stages');
wait_value($node, "SELECT status, launch, result FROM tasksched.tasks WHERE id = '$id'", 'scheduled|1|1',
	'the next stage waits');
sql($node, 'SELECT tasksched.resume_scheduler()');
wait_for_status($node, $id, 'complete', 'and runs when it is resumed');
is(field_of($node, $id, 'launch, attempt'), '2|1', 'as the next launch');
sql($node, 'TRUNCATE runs');
my @ids = map { schedule($node, q{'note'}) } 1 .. 5;
wait_value($node, 'SELECT count(*), count(DISTINCT pid) FROM runs', '5|5',
	'worker_idle_timeout = 0: a process for each task');
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tasksched worker'}, 0, 'none is left');
$node->append_conf('postgresql.conf', "tasksched.worker_idle_timeout = '1min'\ntasksched.max_running_tasks = 2\n");
$node->reload;
wait_value($node, 'SELECT max_running FROM tasksched.status', 2, 'max_running_tasks = 2');

# a task that has been given an idle worker keeps it, even if another role needs room
@ids = map { schedule($node, q{'hold', 'pair'}) } 1 .. 2;
wait_for_running($node, \@ids, 'two workers');
open_gate($node, 'pair');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'pair' AND status = 'complete'}, 2,
	'are idle');
my $idle = join(',', pids_of($node, 'tasksched worker', 'postgres'));
sql($node, 'SELECT tasksched.pause_scheduler()');
wait_value($node, 'SELECT state FROM tasksched.status', 'paused', 'paused');
$id = schedule($node, q{'note'});
my $others = sql($node, q{SET ROLE nologin; SELECT tasksched.schedule_task('note')});
sql($node, 'SELECT tasksched.resume_scheduler()');
wait_for_status($node, $_, 'complete', 'two roles have a task each') foreach ($id, $others);
is(sql($node, "SELECT pid IN ($idle) FROM runs WHERE id = '$id'"), 't', 'the one with idle workers in one of them');
is(sql($node, "SELECT pid IN ($idle) FROM runs WHERE id = '$others'"), 'f', 'the other in place of one');

sql($node, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{5}'), resource_id => 'limit')});
wait_value($node, 'SELECT running FROM tasksched.status', 2, 'two run');
is(sql($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'active'}), 2, 'and no more are active');
$node->append_conf('postgresql.conf', "tasksched.max_running_tasks = 4\n");
$node->reload;
wait_value($node, 'SELECT running FROM tasksched.status', 4, 'four, after a reload');
open_gate($node, 'limit');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'limit' AND status = 'complete'}, 5,
	'all complete');

# ---------------------------------------------------------------------------
# An idle scheduler exits, and is started again for a commit and for a due time
# ---------------------------------------------------------------------------
$node->append_conf('postgresql.conf', "tasksched.scheduler_idle_timeout = 1\ntasksched.worker_idle_timeout = 100ms\n");
$node->reload;
my $later = schedule($node, q{'note', delay => '6 s'});
wait_value($node, 'SELECT state FROM tasksched.status', 'idle', 'an idle scheduler exits');
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'it comes back for a commit');
wait_for_status($node, $later, 'complete', 'and for a due time');
is(field_of($node, $later, q{started_at >= run_at AND started_at < run_at + interval '1 s'}), 't', 'which is met');

# a reload starts no scheduler
wait_value($node,
	"SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('tasksched worker', 'tasksched scheduler')", 0,
	'all have gone');
$node->append_conf('postgresql.conf', "tasksched.scheduler_idle_timeout = 600\n");
$node->reload;
sql($node, 'CREATE DATABASE fresh');
sql($node, 'CREATE EXTENSION tasksched', 'fresh');
scheduler_pid($node, 'fresh');
is(sql($node, q{SELECT state FROM tasksched.status WHERE database = 'postgres'}),
	'idle', 'a reload starts no scheduler for nothing');
$node->stop;
check_log($node);

# ---------------------------------------------------------------------------
# Very few worker slots, and more databases than slots
# ---------------------------------------------------------------------------
my $small = new_node('small', conf => "max_worker_processes = 4\n");
my @dbs = map { "db$_" } 1 .. 8;
sql($small, 'CREATE DATABASE db1');
create_fixtures($small, 'db1');
sql($small, "CREATE DATABASE db$_ TEMPLATE db1") foreach 2 .. 8;
sql($small, q{SELECT tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{3}'))}, $_) foreach @dbs;
wait_value($small, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'complete' AND attempt = 1}, 3,
	"max_worker_processes = 4: the tasks of $_ have their turn", $_) foreach @dbs;
my @seconds = sort { $a <=> $b }
  map { sql($small, q{SELECT extract(epoch FROM max(started_at)) FROM tasksched.tasks}, $_) } @dbs;
my $took = $seconds[-1] - $seconds[0];
note("the turns took $took s");
cmp_ok($took, '<', 1.5 * $#dbs, 'a turn ends before its 2 s if there is nothing left to do');
sql($small, q{SELECT tasksched.schedule_tasks('hold', array_fill(NULL::jsonb, '{5}'), resource_id => 'slots')});
wait_until($small, q{SELECT count(*) > 0 FROM tasksched.tasks WHERE resource_id = 'slots' AND status = 'active'},
	'some run');
wait_until($small, q{SELECT count(*) > 0 AND bool_and(attempt = 0) FROM tasksched.tasks
	WHERE resource_id = 'slots' AND status = 'scheduled'},
	'the others wait, no attempt is used up');
wait_for_log($small, qr/no free background worker slot.*\n.*HINT: .*max_worker_processes \(currently 4\)/, 0,
	'the log names the setting');
open_gate($small, 'slots');
wait_value($small,
	q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'slots' AND status = 'complete' AND attempt = 1},
	5, 'and run as soon as there is a slot');
$small->stop;
check_log($small);
done_testing();
