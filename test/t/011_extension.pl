# CREATE, DROP and ALTER EXTENSION while tasks run.  An extension that is created
# again starts empty.  An upgrade loses nothing, whether the library or the extension
# comes first.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use PostgreSQL::Test::Utils;
use Test::More;

# few slots, so that a lost one shows
my $node = new_node('extension', conf => <<'EOT');
max_worker_processes = 8
tasksched.max_running_tasks = 4
EOT

# A session that runs these commands in the background, and the errors that it gets
sub start_session
{
	my $session = { err => '' };

	$session->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), map { ('-c', $_) } @_ ],
		'>', '/dev/null', '2>', \$session->{err});
	return $session;
}

sub errors_of
{
	my ($session) = @_;

	$session->{run}->finish;
	return join("\n", $session->{err} =~ /^.*ERROR:.*$/mg);
}

# ---------------------------------------------------------------------------
# DROP EXTENSION and CREATE EXTENSION
# ---------------------------------------------------------------------------

# DROP ... CASCADE drops the functions that take tasksched's types
my $again = 'DROP EXTENSION tasksched CASCADE; CREATE EXTENSION tasksched';
my $register = <<'EOT';
CREATE FUNCTION wait_for_gate(params jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM public.gates WHERE gate = params ->> 'gate') LOOP
		PERFORM pg_sleep(0.05);	-- polls inside the action
	END LOOP;
	INSERT INTO public.ended VALUES (params ->> 'gate');
END $$;
CREATE TABLE ended (gate text);
EOT
sql($node, $register);

sub hold_some
{
	my ($gate, $n) = @_;

	sql($node, q{SELECT tasksched.register_action('wait_for_gate', 'wait_for_gate')});
	my @ids = map { schedule($node, "'wait_for_gate', params => '{\"gate\": \"$gate\"}'") } 1 .. $n;
	wait_for_running($node, \@ids, "$n tasks run");
	return @ids;
}

foreach my $n (1 .. 5)
{
	my @ids = hold_some("round$n", 4);
	sql($node, $n % 2 ? "BEGIN; $again; COMMIT" : $again);
	is(sql($node, 'SELECT count(*) FROM tasksched.tasks'),
		0, $n % 2 ? 'created again in the same transaction: new' : 'or in the next one');
	open_gate($node, "round$n");
}
hold_some('last', 4);
open_gate($node, 'last');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'complete'}, 4,
	'after all that, as many tasks run as ever');
is(sql($node, q{SELECT count(*) FROM ended WHERE gate <> 'last'}),
	0, 'and what ran for an extension that was dropped has left nothing');

# an action ends before DROP EXTENSION is committed: it waits for that
foreach my $end ('ROLLBACK', 'COMMIT')
{
	my ($id) = hold_some($end, 1);
	my $pid = worker_pid($node, $id);
	my $waiter = start_session("SELECT FROM tasksched.wait_for_task('$id')");
	wait_value($node, q{SELECT count(*) FROM pg_stat_activity
		WHERE query ~ '^SELECT FROM tasksched.wait' AND wait_event = 'Extension'}, 1, 'a session waits for a task');
	my $drop = start_session('BEGIN', 'DROP EXTENSION tasksched CASCADE',
		qq{SELECT wait_for_gate('{"gate": "end $end"}')}, $end);
	wait_value($node, q{SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		WHERE relname = 'live' AND mode = 'AccessExclusiveLock' AND granted},
		1, 'DROP EXTENSION has its locks');
	open_gate($node, $end);
	wait_value($node, "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", 1,
		'the end of an action waits');
	open_gate($node, "end $end");
	is(errors_of($drop), '', $end);
	my $start = time;
	like(errors_of($waiter), $end eq 'COMMIT' ? qr/does not exist/ : qr/^$/, 'the waiter hears of it');
	cmp_ok(time - $start, '<', 30, 'and does not wait on');
	if ($end eq 'ROLLBACK')
	{
		wait_for_status($node, $id, 'complete', 'then it completes');
		is(sql($node, "SELECT count(*) FROM ended WHERE gate = '$end'"), 1, 'once');
	}
	else
	{
		wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^tasksched (scheduler|worker)'},
			0, 'then all go');
		is(sql($node, "SELECT count(*) FROM ended WHERE gate = '$end'"), 0, 'and its effects are rolled back');
	}
}

# CREATE EXTENSION that is rolled back, and in two sessions at once
sql($node, 'BEGIN; CREATE EXTENSION tasksched; ROLLBACK');
sql($node, 'BEGIN; SAVEPOINT s; CREATE EXTENSION tasksched; ROLLBACK TO s; COMMIT');
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^tasksched (scheduler|worker)'}, 0,
	'rolled back: nobody is there');
my $first = start_session('BEGIN', 'CREATE EXTENSION tasksched', q{SELECT wait_for_gate('{"gate": "two"}')}, 'COMMIT');
wait_value($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT wait_for_gate' AND state = 'active'},
	1, 'one session has created it');
my $second = start_session('CREATE EXTENSION tasksched');
wait_value($node, q{SELECT count(*) FROM pg_locks WHERE NOT granted}, 1, 'another waits for it');
open_gate($node, 'two');
is(errors_of($first), '', 'the first succeeds');
like(errors_of($second), qr/already exists|duplicate key/, 'the other gets the error of the server');
hold_some('three', 1);
open_gate($node, 'three');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'complete'}, 1, 'and a task runs');

# ---------------------------------------------------------------------------
# An upgrade
# ---------------------------------------------------------------------------
my $tree = "$FindBin::RealBin/../..";
my $extensions = `pg_config --sharedir` =~ s/\n//r . '/extension';
my $libraries = `pg_config --pkglibdir` =~ s/\n//r;
my ($old) = slurp_file("$tree/tasksched.control") =~ /default_version = '(.*)'/;
my $new = "$old.1";
my $upgrade = "tasksched--$old--$new.sql";
my $make = 'make -s with_llvm=no PG_CONFIG=pg_config';
my $installed = 0;

# install the tested version again
END
{
	my $status = $?;
	if ($installed)
	{
		unlink "$extensions/$upgrade";
		system("$make -C $tree install >&2") == 0 or diag('the original version could not be installed again');
	}
	$? = $status;
}

sub write_file
{
	my ($path, $content) = @_;

	open(my $file, '>', $path) or die "$path: $!";
	print $file $content;
	close $file or die "$path: $!";
	return;
}

# Make a newer version of everything, in which tasks have one more column
sub make_new_version
{
	my $copy = PostgreSQL::Test::Utils::tempdir;
	system("cp -Rp $tree/. $copy") == 0 or die 'could not copy the tree';

	my $control = slurp_file("$copy/tasksched.control");
	$control =~ s/default_version = '.*'/default_version = '$new'/ or die;
	write_file("$copy/tasksched.control", $control);
	# for make: only extension.c is compiled with the version
	utime(0, 0, "$copy/tasksched.control");
	utime(undef, undef, "$copy/src/base/extension.c");

	my $queries = slurp_file("$copy/src/store/queries.c");
	$queries =~ s/t\.updated_at, t\.finished_at"/t.updated_at, t.finished_at, t.remark"/ or die;
	$queries =~ s/(define KEPT_COLUMNS.*?"id, action, )/$1remark, /s or die;
	write_file("$copy/src/store/queries.c", $queries);

	write_file("$copy/sql/$upgrade", <<'EOT');
ALTER TYPE @extschema@.task ADD ATTRIBUTE remark text;
ALTER TABLE @extschema@.tasks ADD COLUMN remark text;
UPDATE @extschema@.tasks SET remark = 'was there before';
EOT
	return $copy;
}

SKIP:
{
	skip 'the server that is tested is not a private copy', 1 unless -w $extensions && -w $libraries && -w $tree;

	my $copy = make_new_version();
	# when the server shuts down, a task that ran may be put back, or resumed once more
	my $columns = q{id, action, params, owner, attempt, crashes, created_at,
		CASE WHEN action <> 'hold' THEN (status, run_at, launch)::text END};
	my %held;
	my %later;

	# two databases: in "early" the extension is updated first, in "late" the library
	sql($node,
		'DROP EXTENSION tasksched CASCADE; DROP TABLE runs, gates, ended; DROP FUNCTION nap, raising, wait_for_gate');
	foreach my $db ('early', 'late')
	{
		sql($node, "CREATE DATABASE $db");
		create_fixtures($node, $db);
		sql($node, <<'EOT', $db);
CREATE FUNCTION remark(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN to_jsonb(task) -> 'remark';
END $$;
SELECT tasksched.register_action('remark', 'remark');
EOT
		wait_for_status($node, schedule($node, q{'note', 'finished'}, $db), 'complete', "$db: a task is finished", $db);
		$later{$db} = schedule($node, q{'remark', run_at => '2100-01-01', params => '{"a": 1}'}, $db);
		$held{$db} = schedule($node, q{'hold', 'gate'}, $db);
		wait_for_running($node, $held{$db}, "one runs", $db);
	}
	my %before = map { $_ => sql($node, "SELECT $columns FROM tasksched.tasks ORDER BY id", $_) } 'early', 'late';

	# the new files are installed, the old library is still loaded
	$installed = 1;
	is(system("$make -C $copy install >&2"), 0, 'a new version is installed');
	wait_for_status($node, schedule($node, q{'note'}, 'late'), 'complete', 'all goes on', 'late');
	sql($node, 'DELETE FROM tasksched.tasks WHERE id = (SELECT max(id::text)::uuid FROM tasksched.tasks)', 'late');

	# "early": update the extension first
	my $position = log_position($node);
	sql($node, 'ALTER EXTENSION tasksched UPDATE', 'early');
	is(sql($node, "SELECT $columns FROM tasksched.tasks ORDER BY id", 'early'),
		$before{early}, 'the extension is updated, all data are kept');
	my $stderr = sqlstate_is($node, q{SELECT tasksched.schedule_task('note')}, '55000',
		'the old library does not touch it', db => 'early');
	like($stderr, qr/version \Q$old\E of the tasksched library.*version \Q$new\E.*HINT:.*restart the server/s,
		'and says what to do');
	wait_until($node, q{SELECT last_error ~ 'does not fit' FROM tasksched.status WHERE database = current_database()},
		'nor does its scheduler', 'early');
	open_gate($node, 'gate', 'early');
	wait_for_log($node, qr/could not store the outcome of task $held{early}/, $position,
		'nor a worker that comes to its end');
	is( status_of($node, $held{early}, 'early') . '|'
		  . sql($node, "SELECT count(*) FROM runs WHERE id = '$held{early}'", 'early'),
		'active|0', 'whose task is to be resumed, without effects yet');
	is(sql($node, "SELECT tasksched.task_is_running('$held{late}')", 'late'), 't', 'the other database goes on');

	# "early": then the library
	$node->restart;
	wait_for_status($node, $held{early}, 'complete', 'after a restart the task completes', 'early');
	is(sql($node, "SELECT launch > 1, attempt, crashes, first_launch FROM runs WHERE id = '$held{early}'", 'early'),
		't|1|0|f', 'resumed, once');

	# "late": the library is already new
	$stderr = sqlstate_is($node, q{SELECT tasksched.schedule_task('note')}, '55000',
		'the new library does not touch the old extension', db => 'late');
	like($stderr,
		qr/version \Q$new\E of the tasksched library.*version \Q$old\E.*HINT:.*ALTER EXTENSION tasksched UPDATE/s,
		'and says what to do');
	wait_until($node, q{SELECT last_error ~ 'does not fit' FROM tasksched.status WHERE database = current_database()},
		'nor does its scheduler', 'late');
	is(sql($node, "SELECT $columns FROM tasksched.tasks ORDER BY id", 'late'),
		$before{late}, 'nothing has been changed');
	sql($node, 'ALTER EXTENSION tasksched UPDATE', 'late');
	wait_for_running($node, $held{late}, 'after the update the active task is resumed', 'late');
	open_gate($node, 'gate', 'late');
	wait_for_status($node, $held{late}, 'complete', 'and completes', 'late');
	is(sql($node, "SELECT launch > 1, attempt, crashes, first_launch FROM runs WHERE id = '$held{late}'", 'late'),
		't|1|0|f', 'once');

	# users' functions see the new column without being changed
	foreach my $db ('early', 'late')
	{
		sql($node, "SELECT tasksched.update_task('$later{$db}', run_at => now())", $db);
		wait_for_status($node, $later{$db}, 'complete', "$db: the scheduled task runs", $db);
		is(sql($node, "SELECT result, params, remark FROM tasksched.get_task('$later{$db}')", $db),
			'"was there before"|{"a": 1}|was there before', 'with what the upgrade has added');
		wait_for_status($node, schedule($node, q{'note'}, $db), 'complete', 'and so does a new one', $db);
	}
	sql($node, 'CREATE DATABASE fresh');
	create_fixtures($node, 'fresh');
	wait_for_status($node, schedule($node, q{'note'}, 'fresh'), 'complete',
		'and one in a database where the new version is created', 'fresh');
}

$node->stop;
check_log($node);
done_testing();
