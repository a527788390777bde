# Without the library preloaded, on a standby, with another version, and after a
# dump and restore.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# ---------------------------------------------------------------------------
# Not preloaded
# ---------------------------------------------------------------------------
my $node = new_node('loading', preload => 0, extension => 0, streaming => 1);
my $hint = 'shared_preload_libraries';
warning_like($node, 'CREATE EXTENSION tasksched', $hint, 'CREATE EXTENSION warns');
sql($node, 'DROP EXTENSION tasksched');
create_fixtures($node);
my $id = warning_like($node, q{SELECT tasksched.schedule_task('note')}, $hint, 'schedule_task warns');
chomp $id;
is(sql($node, 'SELECT id, reason FROM tasksched.blocked_tasks'),
	"$id|tasksched is not in shared_preload_libraries", 'the task is held, with the reason');
is(sql($node, 'SELECT state FROM tasksched.status'), 'not preloaded', 'the status says so');
is(sql($node, 'SELECT count(*) FROM tasksched.running_tasks'), 0, 'nothing runs');
sqlstate_is($node, "SELECT * FROM tasksched.wait_for_task('$id')", '55000', 'it cannot be waited for');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'tasksched'\n");
$node->restart;
wait_for_status($node, $id, 'complete', 'preloaded, it runs');

# ---------------------------------------------------------------------------
# A standby, and its promotion
# ---------------------------------------------------------------------------
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
my $held = schedule($node, q{'hold', 'promotion'});
my $later = schedule($node, q{'note', delay => '2 s'});
wait_for_running($node, $held, 'a task runs on the primary');
flush_wal($node);
$node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
is(sql($standby, "SELECT status FROM tasksched.get_task('$held')"), 'active', 'the standby can read tasks');
is(sql($standby, 'SELECT state FROM tasksched.status'), 'in recovery', 'its status says what it is');
is(sql($standby, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'tasksched'}), 0, 'none of our processes is there');
sqlstate_is($standby, "SELECT * FROM tasksched.wait_for_task('$held')", '0A000', 'wait_for_task does not work there');
sqlstate_is($standby, q{SELECT tasksched.schedule_task('note')}, '25006', 'nor does schedule_task');
$node->stop('immediate');
$standby->promote;
wait_for_running($standby, $held, 'after the promotion the active task is resumed');
open_gate($standby, 'promotion');
wait_for_status($standby, $held, 'complete', 'and completes');
is(sql($standby, "SELECT first_launch, launch, crashes FROM runs WHERE id = '$held'"), 'f|2|0', 'in a launch that is not the first');
wait_for_status($standby, $later, 'complete', 'the scheduled one runs as well');

# ---------------------------------------------------------------------------
# A library and an extension that do not fit
# ---------------------------------------------------------------------------
sql($standby, q{UPDATE pg_extension SET extversion = '0.0' WHERE extname = 'tasksched'});
my $stderr = sqlstate_is($standby, q{SELECT tasksched.schedule_task('note')}, '55000', 'another version of the extension is an error');
like($stderr, qr/HINT:.*ALTER EXTENSION tasksched UPDATE/, 'with a hint');
sqlstate_is($standby, 'SELECT * FROM tasksched.get_tasks()', '55000', 'in every function');
$standby->restart;
wait_until($standby, q{SELECT last_error ~ 'does not fit' FROM tasksched.status}, 'the scheduler tells');
sql($standby, q{UPDATE pg_extension SET extversion = (SELECT default_version FROM pg_available_extensions WHERE name = 'tasksched') WHERE extname = 'tasksched'});
$standby->reload;
$id = schedule($standby, q{'note'});
wait_for_status($standby, $id, 'complete', 'and goes on when they fit again');

# ---------------------------------------------------------------------------
# Dump and restore, where a role is missing
# ---------------------------------------------------------------------------
sql($standby, <<'EOT');
CREATE ROLE missing;
SELECT tasksched.grant_usage('missing');
SET ROLE missing;
SELECT tasksched.schedule_task('note', 'missing', '2100-01-01');
RESET ROLE;
SELECT tasksched.schedule_task('note', 'moved', '2100-01-01');
SELECT tasksched.schedule_task('note', 'finished');
EOT
wait_value($standby, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'finished'}, 'complete', 'one is finished');
my $dump = $standby->data_dir . '/tasks.sql';
command_ok([ 'pg_dump', '-f', $dump, $standby->connstr('postgres') ], 'a dump');
sql($standby, q{SELECT tasksched.revoke_usage('missing')});
sql($standby, 'CREATE DATABASE restored; ALTER ROLE missing RENAME TO renamed');
$standby->psql('restored', "\\i $dump");
is(sql($standby, q{SELECT resource_id, owner::text = 'missing', owner::oid = 0, status FROM tasksched.tasks WHERE resource_id IN ('missing', 'moved', 'finished') ORDER BY resource_id}, 'restored'),
	"finished|f|f|complete\nmissing|t|t|scheduled\nmoved|f|f|scheduled", 'no row is lost, an unknown owner keeps its name');
sql($standby, q{SELECT tasksched.update_task(id, run_at => now()) FROM tasksched.tasks WHERE NOT finished}, 'restored');
my $here = schedule($standby, q{'note', 'here'}, 'restored');
wait_for_status($standby, $here, 'complete', 'a task that is scheduled here runs', 'restored');
is(sql($standby, q{SELECT resource_id, reason FROM tasksched.blocked_tasks ORDER BY resource_id}, 'restored'),
	"missing|the task comes from another installation; see adopt_tasks()\nmoved|the task comes from another installation; see adopt_tasks()",
	'those that were restored are held');
is(sql($standby, 'SELECT tasksched.adopt_tasks()', 'restored'), 2, 'until they are adopted');
wait_value($standby, q{SELECT status FROM tasksched.tasks WHERE resource_id = 'moved'}, 'complete', 'then they run', 'restored');
is(sql($standby, q{SELECT reason FROM tasksched.blocked_tasks}, 'restored'),
	'the role that owns the task does not exist', 'if their role is there');

$standby->stop;
check_log($standby);
done_testing();
