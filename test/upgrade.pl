# pg_upgrade from an older version of the server, whose installation OLD_INSTALL
# names: what was scheduled, active and finished before carries on by itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use TaskschedTest;
use Test::More;

my $old = new_node('old', install_path => $ENV{OLD_INSTALL}, checksums => 1, conf => "tasksched.max_running_tasks = 2\n");
my $new = new_node('new', checksums => 1, start => 0, conf => "tasksched.max_running_tasks = 2\n");

# ---------------------------------------------------------------------------
# The old server: tasks in every state, of a superuser and of a role without LOGIN
# ---------------------------------------------------------------------------
sql($old, <<'EOT');
CREATE ROLE "No Login" NOLOGIN;
SELECT tasksched.grant_usage('No Login');
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO "No Login";
CREATE FUNCTION two_stages(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	IF first_launch THEN
		RETURN tasksched.reschedule(result => '{"stage": 1}', delay => '1 day');
	END IF;
	RETURN tasksched.complete(task.result || '{"last": true}');
END $$;
SELECT tasksched.register_action('two_stages', 'two_stages');
EOT
my $as_owner = q{SET ROLE "No Login"; };

my $complete = sql($old, $as_owner . q{SELECT tasksched.schedule_task('note', 'a resource', params => '{"n": [1, null]}')});
my $failed = schedule($old, q{'raising', params => '{"message": "no luck"}'});
my $cancelled = schedule($old, q{'note', run_at => 'tomorrow'});
sql($old, "SELECT tasksched.cancel_task('$cancelled')");
my $staged = sql($old, $as_owner . q{SELECT tasksched.schedule_task('two_stages')});
wait_for_status($old, $complete, 'complete', 'one is complete');
wait_for_status($old, $failed, 'failed', 'one has failed');
wait_value($old, "SELECT launch, status FROM tasksched.get_task('$staged')", '1|scheduled', 'one waits for its second stage');

my @active = (schedule($old, q{'hold', 'gate'}), sql($old, $as_owner . q{SELECT tasksched.schedule_task('hold', 'gate')}));
wait_for_running($old, $_, 'one is active') foreach @active;
my $due = sql($old, $as_owner . q{SELECT tasksched.schedule_task('note')});
my $future = schedule($old, q{'note', run_at => '2100-01-01'});

# another database, paused, where a task is due
sql($old, 'CREATE DATABASE other');
create_fixtures($old, 'other');
sql($old, 'SELECT tasksched.pause_scheduler()', 'other');
my $paused = schedule($old, q{'note'}, 'other');

my $rows = q{SELECT t FROM tasksched.tasks t WHERE action <> 'hold' ORDER BY id};
my $before = sql($old, $rows);
my $registered = 'SELECT r FROM tasksched.registered_actions r ORDER BY action';
my $registered_before = sql($old, $registered);

# Later minor releases keep an option for each column that only they know: to a
# server from before, pg_upgrade fails for any table, whatever is installed.
my $option = 'pg_attver';
my $known = index(slurp_file($new->config_data('--bindir') . '/pg_dump'), $option) >= 0;
sql($old, <<EOT, $_) foreach $known ? () : ('postgres', 'other');
SET allow_system_table_mods = on;
UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '{$option=%}';
EOT
$old->stop;

# ---------------------------------------------------------------------------
# The upgrade
# ---------------------------------------------------------------------------
my @upgrade = ('pg_upgrade', '--no-sync',
	'-d', $old->data_dir, '-D', $new->data_dir,
	'-b', $old->config_data('--bindir'), '-B', $new->config_data('--bindir'),
	'-s', $new->host, '-p', $old->port, '-P', $new->port);
chdir($PostgreSQL::Test::Utils::tmp_check) or die "can't enter the folder of the test: $!";
command_ok([ @upgrade, '--check' ], 'pg_upgrade finds nothing that stops it');
command_ok(\@upgrade, 'pg_upgrade');

# ---------------------------------------------------------------------------
# The new server
# ---------------------------------------------------------------------------
# nothing shall run before it is compared
$new->append_conf('postgresql.conf', "tasksched.enabled = off\n");
$new->start;
is(sql($new, $rows), $before, 'tasks that were not active are unchanged');
is(sql($new, $registered), $registered_before, 'and so are the actions');
is(field_of($new, $complete, 'owner, status, launch, result IS NULL, params'), 'No Login|complete|1|t|{"n": [1, null]}',
	'a complete task can be read');
is(field_of($new, $failed, q{status, error, error_details ->> 'sqlstate'}), 'failed|no luck|P0001', 'a failed one, too');
is(status_of($new, $cancelled), 'cancelled', 'and a cancelled one');
is(sql($new, "SELECT count(*) FROM tasksched.blocked_tasks WHERE reason <> 'tasksched.enabled is off'"), 0, 'no task is held');

$new->append_conf('postgresql.conf', "tasksched.enabled = on\n");
$new->reload;
wait_for_running($new, $_, 'an active task is resumed') foreach @active;
is(status_of($new, $due), 'scheduled', 'a task that waited for the active ones still does');
open_gate($new, 'gate');
foreach my $id (@active)
{
	wait_for_status($new, $id, 'complete', 'a resumed task completes');
	is(sql($new, "SELECT first_launch, launch, attempt, crashes FROM runs WHERE id = '$id'"), 'f|2|1|0',
		'in its second launch, which counts nothing');
}
wait_for_status($new, $due, 'complete', 'a task that was scheduled runs');
is(sql($new, "SELECT first_launch, launch FROM runs WHERE id = '$due'"), 't|1', 'in its first launch');
is(field_of($new, $future, q{status, run_at = '2100-01-01'}), 'scheduled|t', 'a task for later waits for its time');
sql($new, "SELECT tasksched.update_task('$_', run_at => now()) ") foreach ($future, $staged);
wait_for_status($new, $future, 'complete', 'and runs when that has come');
wait_for_status($new, $staged, 'complete', 'a second stage follows the first one');
is(field_of($new, $staged, 'result, launch'), '{"last": true, "stage": 1}|2', 'with what that left');
is(sql($new, "SELECT tasksched.retry_task('$cancelled')"), 't', 'a finished task can be retried');
wait_for_status($new, $cancelled, 'complete', 'and runs');
is(sql($new, 'SELECT tasksched.adopt_tasks()'), 0, 'no task belongs to another installation');

wait_value($new, "SELECT state FROM tasksched.status WHERE database = 'other'", 'paused', 'a database that was paused still is');
is(status_of($new, $paused, 'other'), 'scheduled', 'so its tasks wait');
sql($new, 'SELECT tasksched.resume_scheduler()', 'other');
wait_for_status($new, $paused, 'complete', 'until it goes on', 'other');

my $later = sql($new, $as_owner . q{SELECT tasksched.schedule_task('note')});
wait_for_status($new, $later, 'complete', 'a new task runs');

$new->stop;
check_log($old);
check_log($new);
done_testing();
