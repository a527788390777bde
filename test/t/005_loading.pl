# The library is not preloaded, or has another version than the extension.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

# ---------------------------------------------------------------------------
# Not preloaded
# ---------------------------------------------------------------------------
my $node = new_node('loading', preload => 0, extension => 0);
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
# Together with another library that sees all statements, loaded before or after it
# ---------------------------------------------------------------------------
SKIP:
{
	skip 'pg_stat_statements is not installed here', 1
	  if sql($node, q{SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'}) eq '0';

	foreach my $libraries ('pg_stat_statements, tasksched', 'tasksched, pg_stat_statements')
	{
		$node->append_conf('postgresql.conf',
			"shared_preload_libraries = '$libraries'\npg_stat_statements.track = all\n");
		$node->restart;
		sql($node, 'CREATE EXTENSION IF NOT EXISTS pg_stat_statements; SELECT pg_stat_statements_reset()');
		$id = schedule($node, q{'note'});
		wait_for_status($node, $id, 'complete', "$libraries: a task runs");
		sql($node, 'CREATE DATABASE beside');
		sql($node, 'DROP DATABASE beside');
		is(sql($node, q{SELECT count(*) FILTER (WHERE query ~ 'INSERT INTO public.runs'),
				count(*) FILTER (WHERE query ~ '^(CREATE|DROP) DATABASE beside') FROM pg_stat_statements}),
			'1|2', "$libraries: the other one sees all statements");
	}
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'tasksched'\n");
}

# ---------------------------------------------------------------------------
# A library and an extension whose versions do not match
# ---------------------------------------------------------------------------
sql($node, q{UPDATE pg_extension SET extversion = '0.0' WHERE extname = 'tasksched'});
my $stderr = sqlstate_is($node, q{SELECT tasksched.schedule_task('note')}, '55000',
	'another version of the extension is an error');
like($stderr, qr/HINT:.*ALTER EXTENSION tasksched UPDATE/, 'with a hint');
sqlstate_is($node, 'SELECT * FROM tasksched.get_tasks()', '55000', 'in every function');
$node->restart;
wait_until($node, q{SELECT last_error ~ 'does not fit' FROM tasksched.status}, 'the scheduler tells');
sql($node, q{UPDATE pg_extension
	SET extversion = (SELECT default_version FROM pg_available_extensions WHERE name = 'tasksched')
	WHERE extname = 'tasksched'});
$node->reload;
$id = schedule($node, q{'note'});
wait_for_status($node, $id, 'complete', 'and goes on when they fit again');

$node->stop;
check_log($node);
done_testing();
