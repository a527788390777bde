# What happens around the call of an action: which code inside acts for the task, what
# commits elsewhere, functions that are replaced at that very moment, stages that may
# not go on, and what the worker loads.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use TaskschedSession;
use TaskschedTest;
use Test::More;

# no scan comes for as long as this test takes
my $node = new_node('actions', conf => <<'CONF');
deadlock_timeout = 50ms
tasksched.reconcile_interval = '1h'
CONF
my $super = sql($node, 'SELECT current_user');

sql($node, <<'SQL');
CREATE FUNCTION fault_arm(point text, action text) RETURNS void AS 'tasksched', 'tasksched_fault_arm' LANGUAGE C STRICT;
CREATE FUNCTION fault_pid(point text) RETURNS int AS 'tasksched', 'tasksched_fault_pid' LANGUAGE C STRICT;
CREATE FUNCTION fault_release(point text) RETURNS void AS 'tasksched', 'tasksched_fault_release' LANGUAGE C STRICT;

CREATE ROLE owner;
CREATE ROLE mallory;
CREATE ROLE helper;
CREATE ROLE operator;
CREATE ROLE team;
GRANT team TO owner;
GRANT CREATE ON SCHEMA public TO owner, mallory, helper, operator;
SELECT tasksched.grant_usage(r) FROM unnest('{owner,mallory,helper,team}'::text[]) r;
SELECT tasksched.grant_admin('operator');
CREATE TABLE seen (what text, value text);
GRANT ALL ON seen TO PUBLIC;
SQL

# Schedule a task as a role
sub schedule_as
{
	my ($role, $arguments) = @_;

	return sql($node, "SET ROLE $role; SELECT tasksched.schedule_task($arguments)");
}

# The argument params that makes run_sql execute this
sub to_run
{
	my ($sql) = @_;

	return "params => jsonb_build_object('sql', \$to_run\$$sql\$to_run\$)";
}

# What was seen, in the order of its names
sub seen
{
	return sql($node, q{SELECT string_agg(what || '=' || coalesce(value, 'null'), ' ' ORDER BY what COLLATE "C")
		FROM (SELECT DISTINCT * FROM seen) s});
}

# Stop the next process that passes a point
sub stop_at { my ($point) = @_; return sql($node, "SELECT fault_arm('$point', 'stop')"); }

sub wait_at
{
	my ($point, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_until($node, "SELECT fault_pid('$point') IS NOT NULL", $name);
}

sub release { my ($point) = @_; return sql($node, "SELECT fault_release('$point')"); }

# ---------------------------------------------------------------------------
# Which code inside an action acts for its task
# ---------------------------------------------------------------------------
sql($node, <<'SQL');
-- records what the functions that are meant for an action return to the caller
CREATE FUNCTION probe(id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	call text;
	value text;
BEGIN
	FOREACH call IN ARRAY ARRAY[
		'current_task: (SELECT count(*) FROM tasksched.current_task())',
		'update: tasksched.update_task($1, status => ''scheduled'', run_at => ''2100-01-01'', '
			|| 'result => ''"by probe"'')',
		'progress: tasksched.report_progress(7)',
		'cancel: tasksched.cancel_task($1)',
		'wait: (SELECT count(*) FROM tasksched.wait_for_task($1, ''1 s''))']
	LOOP
		BEGIN
			EXECUTE 'SELECT ' || split_part(call, ': ', 2) INTO value USING id;
		EXCEPTION WHEN OTHERS THEN
			value := SQLSTATE;
		END;
		INSERT INTO public.seen VALUES (split_part(call, ': ', 1), value);
	END LOOP;
END $$;

-- in an action, the text in pg_stat_activity has the id of the task
CREATE FUNCTION spy(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.probe(pg_catalog.substring(pg_catalog.current_query(), '[0-9a-f-]{36}')::uuid)
	WHERE pg_catalog.current_query() LIKE 'tasksched: %';
	RETURN $1;
END $$;
CREATE TABLE bait (a int);
INSERT INTO bait VALUES (1);
CREATE INDEX ON bait (spy(a));
SQL

my %outside = (
	mallory => 'cancel=false current_task=0 progress=55000 update=false wait=0',
	operator => 'cancel=55000 current_task=0 progress=55000 update=55006 wait=55000');
foreach my $role (sort keys %outside)
{
	sql($node, "TRUNCATE seen; ALTER TABLE bait OWNER TO $role");
	my $id = schedule($node, "'run_sql', " . to_run('ANALYZE public.bait'));
	wait_for_status($node, $id, 'complete', "a superuser's action analyzes a table of $role");
	is(seen(), $outside{$role}, "an expression of its index that runs as $role is not inside of the task");
	is(field_of($node, $id, 'result, launch'), '|1', 'and has changed nothing');
}

# helpers with SECURITY DEFINER, and roles that an action assumes
sql($node, <<'SQL');
CREATE FUNCTION helper_probe(id uuid) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'SELECT public.probe(id)';
ALTER FUNCTION helper_probe OWNER TO helper;
CREATE FUNCTION call_helper(task tasksched.task) RETURNS void LANGUAGE sql AS 'SELECT public.helper_probe((task).id)';
CREATE FUNCTION change_role(task tasksched.task) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL ROLE team;
	PERFORM public.probe(task.id);
	RESET ROLE;
	INSERT INTO public.seen SELECT 'reset', count(*) FROM tasksched.current_task();
END $$;
CREATE FUNCTION definer(task tasksched.task) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO public.seen VALUES ('who', current_user);
	PERFORM public.probe(task.id), tasksched.update_task(task.id, status => 'active', result => '"by its definer"');
END $$;
ALTER FUNCTION definer OWNER TO helper;
SELECT tasksched.register_action(a, 'public.' || a) FROM unnest('{call_helper,change_role,definer}'::text[]) a;
SQL
my $inside = 'cancel=55000 current_task=1 progress= update=true wait=';
my $id;
foreach my $case (
	[ 'call_helper', '', $outside{mallory}, 'complete', 'a helper of a third role is not inside of the task' ],
	[ 'call_helper', 'GRANT owner TO helper', "${inside}55000", 'scheduled',
		'but one that has the rights of its owner' ],
	[ 'change_role', 'REVOKE owner FROM helper',
		"$outside{mallory} reset=1" =~ s/(progress=\S+) (.*) (reset=1)/$1 $3 $2/r, 'complete',
		'nor is who it has become by SET ROLE' ],
	[ 'definer', '', "${inside}0 who=helper" =~ s/(wait=0) (who=helper)/$1 $2/r, 'complete',
		'the definer of the action itself is' ])
{
	my ($action, $before, $expected, $status, $name) = @$case;

	sql($node, "TRUNCATE seen; $before");
	$id = schedule_as('owner', "'$action'");
	wait_for_status($node, $id, $status, "$action runs");
	is(seen(), $expected, $name);
}
is(field_of($node, $id, 'result'), '"by its definer"', 'and what it stages is kept');

# ---------------------------------------------------------------------------
# What commits elsewhere does so after the fence, or not at all
# ---------------------------------------------------------------------------
my %available = map { $_ => 1 } split /\n/, sql($node, 'SELECT name FROM pg_available_extensions');

SKIP:
{
	skip 'postgres_fdw is not installed', 1 unless $available{postgres_fdw};

	sql($node, 'CREATE DATABASE far');
	sql($node, 'CREATE TABLE rows_there (what text)', 'far');
	sql($node, sprintf(<<'SQL', $node->host, $node->port, $super));
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'far');
CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user '%s');
CREATE FOREIGN TABLE rows_there (what text) SERVER far;
CREATE TABLE rows_here (what text);
CREATE FUNCTION send() RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.rows_here VALUES ('sent'); INSERT INTO public.rows_there VALUES ('sent') $$;
CREATE PROCEDURE send_and_commit() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.send();
	COMMIT;
	PERFORM public.send();
END $$;
CREATE PROCEDURE commit_and_send() LANGUAGE plpgsql AS $$
BEGIN
	COMMIT;
	PERFORM public.send();
END $$;
-- the first connection is made by a deferred trigger
CREATE TABLE outbox (what text);
CREATE FUNCTION send_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM public.send(); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER send_row AFTER INSERT ON outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
	EXECUTE FUNCTION send_row();
CREATE FUNCTION send_later() RETURNS void LANGUAGE sql AS $$ INSERT INTO public.outbox VALUES ('later') $$;
-- the first connection is made by a utility command
CREATE PROCEDURE look_and_commit() LANGUAGE plpgsql AS $$
BEGIN
	ANALYZE public.rows_there;
	PERFORM public.send();
	COMMIT;
END $$;
SELECT tasksched.register_action(a, 'public.' || a)
FROM unnest('{send,send_and_commit,commit_and_send,send_later,look_and_commit}'::text[]) a;
SQL
	my $sent = sub {
		return join(' ',
			sql($node, 'SELECT count(*) FROM rows_here'),
			sql($node, 'SELECT count(*) FROM rows_there', 'far'));
	};
	my $clear = sub { sql($node, 'TRUNCATE rows_here'); sql($node, 'TRUNCATE rows_there', 'far'); return; };

	foreach my $case ([ 'send', 1 ], [ 'send_and_commit', 2 ], [ 'commit_and_send', 1 ], [ 'send_later', 1 ],
		[ 'look_and_commit', 1 ])
	{
		my ($action, $rows) = @$case;

		$clear->();
		$id = schedule($node, "'$action'");
		wait_for_status($node, $id, 'complete', "$action runs");
		is($sent->(), "$rows $rows", "$action: rows are here and there");
	}

	# the fence fails; each case names the commit that is stopped
	foreach my $case ([ 'send', 1, 0 ], [ 'send_and_commit', 1, 0 ], [ 'send_and_commit', 2, 1 ],
		[ 'commit_and_send', 2, 0 ], [ 'send_later', 1, 0 ], [ 'look_and_commit', 1, 0 ])
	{
		my ($action, $commit, $rows) = @$case;

		$clear->();
		stop_at('action returned');
		$id = schedule($node, "'$action'");
		wait_at('action returned', "$action is at its commit");
		if ($commit == 2)
		{
			stop_at('outcome written');
			release('action returned');
			wait_at('outcome written', 'has written its checkpoint');
			stop_at('action returned');
			release('outcome written');
			wait_at('action returned', 'and is at its second commit');
		}
		my $worker = worker_pid($node, $id);
		is(sql($node, "SELECT tasksched.cancel_task('$id')"), 't', "$action is cancelled right before commit $commit");
		release('action returned');
		process_gone($worker);	# the worker ends, since postgres_fdw can't be kept for the next task
		is($sent->(), "$rows $rows", "$action: nothing of that is here or there");
		is(status_of($node, $id), 'cancelled', 'it is cancelled');
	}

	# the worker is terminated while it waits for the row of its task
	foreach my $action ('send', 'send_later')
	{
		my $session = TaskschedSession->new($node);

		$clear->();
		stop_at('action returned');
		$id = schedule($node, "'$action'");
		wait_at('action returned', "$action is at its commit");
		my $worker = worker_pid($node, $id);
		$session->query("BEGIN; SELECT tasksched.cancel_task('$id')");
		release('action returned');
		wait_value($node, "SELECT pg_blocking_pids($worker)", '{' . $session->pid . '}',
			'and waits for a session that has cancelled it');
		is(sql($node, "SELECT pg_terminate_backend($worker)"), 't', 'terminated there');
		process_gone($worker);
		$session->query('ROLLBACK');
		wait_for_status($node, $id, 'complete', 'it is launched again');
		is($sent->(), '1 1', "$action: its row is here and there once");
		$session->quit;
	}
}

# ---------------------------------------------------------------------------
# A function that is replaced right before its call
# ---------------------------------------------------------------------------
my $redeploy = 'DROP ROUTINE %s; '
  . q{CREATE %s LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES ('new'); END $$};
foreach my $case (
	[ 'FUNCTION deployed() RETURNS void', 'task read' ], [ 'PROCEDURE deployed()', 'task read' ],
	[ 'FUNCTION deployed() RETURNS void', 'slot begun' ], [ 'PROCEDURE deployed()', 'slot begun' ])
{
	my ($declaration, $point) = @$case;
	my ($kind) = $declaration =~ /^(\w+)/;

	sql($node, qq{
		TRUNCATE seen;
		DROP ROUTINE IF EXISTS deployed;
		CREATE $declaration LANGUAGE plpgsql AS \$\$ BEGIN INSERT INTO public.seen VALUES ('old'); END \$\$;
		SELECT tasksched.register_action('deployed', 'public.deployed')});
	my $log = log_position($node);
	stop_at($point);
	$id = schedule($node, q{'deployed'});
	wait_at($point, "$kind: a worker is right before the call");
	sql($node, sprintf($redeploy, 'deployed', $declaration));
	release($point);
	wait_for_status($node, $id, 'complete', "$kind: replaced at '$point'");
	is(seen(), 'new=null', 'the new one has run');
	is(sql($node, "SELECT launch, attempt, setbacks FROM tasksched.tasks WHERE id = '$id'"),
		'1|1|0', 'as if nothing had happened');
	is(scalar(() = log_since($node, $log) =~ /could not launch task $id/g), 1, 'which is logged');

	# a function that another role creates in its place is not called
	sql($node, qq{TRUNCATE seen; ALTER ROUTINE deployed OWNER TO owner;
		SELECT tasksched.register_action('deployed', 'public.deployed')});
	$log = log_position($node);
	stop_at($point);
	$id = schedule($node, q{'deployed'});
	wait_at($point, "$kind: once more");
	sql($node, 'DROP ROUTINE deployed; SET ROLE mallory; ' . sprintf($redeploy =~ s/^.*?; //r =~ s/%s/$declaration/r));
	release($point);
	wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'",
		"the action's function public.deployed() has got another owner since it was registered",
		"$kind: replaced by somebody else");
	is(seen(), '', 'that one does not run');
	sql($node, 'DROP ROUTINE deployed');
	wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'",
		"the action's function public.deployed() does not exist", "$kind: dropped");
	is(sql($node, "SELECT launch, setbacks FROM tasksched.tasks WHERE id = '$id'"), '0|0', 'its claim is undone');
	is(scalar(() = log_since($node, $log) =~ /could not launch task $id/g), 1, 'once');
	sql($node, "SELECT tasksched.cancel_task('$id')");
}

# the function is dropped while it runs: if it then raises undefined_function itself,
# that counts as a missing function, unless it has committed
sql($node, q{CREATE FUNCTION at_gate() RETURNS void
	LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); END $$});
my $gate = TaskschedSession->new($node);
foreach my $case ([ 'FUNCTION deployed() RETURNS void', '', 'complete' ], [ 'PROCEDURE deployed()', '', 'complete' ],
	[ 'PROCEDURE deployed()', 'COMMIT;', 'failed' ])
{
	my ($declaration, $commit, $status) = @$case;

	sql($node, qq{
		TRUNCATE seen;
		DROP ROUTINE IF EXISTS deployed;
		CREATE $declaration LANGUAGE plpgsql AS \$\$
		BEGIN
			INSERT INTO public.seen VALUES ('old');
			$commit
			PERFORM public.at_gate();
			RAISE undefined_function;
		END \$\$;
		SELECT tasksched.register_action('deployed', 'public.deployed')});
	$gate->query('SELECT pg_advisory_lock(1)');
	$id = schedule($node, q{'deployed'});
	wait_value($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, 1,
		'an action is at its gate');
	sql($node, sprintf($redeploy, 'deployed', $declaration));
	$gate->query('SELECT pg_advisory_unlock(1)');
	wait_for_status($node, $id, $status, "$declaration, replaced as it runs, $commit");
	is(seen(), $commit ? 'old=null' : 'new=null', 'no effect of the old one is left but what it has committed');
}
sql($node, q{DROP ROUTINE deployed;
	CREATE FUNCTION deployed() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE undefined_function; END $$});
$id = schedule($node, q{'deployed'});
wait_for_status($node, $id, 'failed', 'such an error of a function that is there fails the task');

# ---------------------------------------------------------------------------
# Procedures are called by their OIDs, not by their names
# ---------------------------------------------------------------------------
sql($node, <<'SQL');
CREATE SCHEMA "odd "".schema$1";
CREATE PROCEDURE "odd "".schema$1"."odd ""(name"(IN params jsonb, INOUT o tasksched.outcome) LANGUAGE plpgsql AS $$
BEGIN
	COMMIT;
	o.status := 'complete'; o.result := params;
END $$;
CREATE PROCEDURE "odd "".schema$1".plain(IN task tasksched.task, IN first_launch boolean, INOUT o jsonb)
LANGUAGE plpgsql AS $$
BEGIN COMMIT; o := to_jsonb(task.action || first_launch); END $$;
CREATE PROCEDURE "odd "".schema$1".plain(IN params jsonb) LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
-- the same CALL fits both
CREATE PROCEDURE "odd "".schema$1".twice(IN params jsonb, INOUT o jsonb) LANGUAGE plpgsql AS $$
BEGIN o := '"inout"'; END $$;
CREATE PROCEDURE "odd "".schema$1".twice(IN params jsonb, OUT o jsonb) LANGUAGE plpgsql AS $$
BEGIN o := '"out"'; END $$;
SELECT tasksched.register_action('odd', '"odd "".schema$1"."odd ""(name"(jsonb, tasksched.outcome)');
SELECT tasksched.register_action('plain_jsonb', '"odd "".schema$1".plain(tasksched.task, boolean, jsonb)');
SELECT tasksched.register_action('plain_params', '"odd "".schema$1".twice(jsonb, jsonb)');
SELECT tasksched.pause_scheduler();
SQL
my %procedures = (odd => '{"a": 1}', plain_jsonb => '"plain_jsonbtrue"', plain_params => '"inout"');
my %ids = map { $_ => schedule_as('owner', "'$_', params => '{\"a\": 1}'") } keys %procedures;
sql($node, q{SELECT tasksched.revoke_usage('owner'); SELECT tasksched.resume_scheduler()});
foreach my $action (sort keys %procedures)
{
	wait_for_status($node, $ids{$action}, 'complete',
		"$action runs without the right to schedule, or to use its schema");
	is(field_of($node, $ids{$action}, 'result'), $procedures{$action}, 'and gives its result');
}
sql($node,
	q{REVOKE EXECUTE ON PROCEDURE "odd "".schema$1"."odd ""(name" FROM PUBLIC; SELECT tasksched.grant_usage('owner')});
$id = schedule_as('owner', q{'odd'});
wait_for_status($node, $id, 'failed', 'but not without EXECUTE');
is(field_of($node, $id, q{error_details->>'sqlstate'}), '42501', 'for lack of privilege');

# ---------------------------------------------------------------------------
# Stages that may not go on
# ---------------------------------------------------------------------------
sql($node, <<'SQL');
CREATE FUNCTION stage() RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
BEGIN
	-- the scenario: stage after stage, until the test ends it
	PERFORM pg_sleep(0.02);	-- gives way to other processes
	IF (SELECT count(*) > 0 FROM public.gates WHERE gate = 'stage') THEN
		RETURN tasksched.complete();
	END IF;
	RETURN tasksched.proceed();
END $$;
ALTER FUNCTION stage OWNER TO helper;
SELECT tasksched.register_action('stage', 'public.stage');
SQL
foreach my $isolation ('read committed', 'serializable')
{
	sql($node, "ALTER ROLE owner SET default_transaction_isolation = '$isolation'");
	$id = schedule_as('owner', q{'stage'});
	foreach my $case (
		[ 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC',
			'the role that owns the task may not connect to the database' ],
		[ q{SELECT tasksched.unregister_action('stage')}, q{SELECT tasksched.register_action('stage', 'public.stage')},
			'no action "stage" is registered' ],
		[ 'ALTER FUNCTION stage RENAME TO stage2', 'ALTER FUNCTION stage2 RENAME TO stage',
			"the action's function public.stage() does not exist" ],
		[ 'ALTER FUNCTION stage OWNER TO mallory', 'ALTER FUNCTION stage OWNER TO helper',
			"the action's function public.stage() has got another owner since it was registered" ],
		[ q{SELECT tasksched.pause_scheduler()}, q{SELECT tasksched.resume_scheduler()},
			'the scheduler of this database is paused; see resume_scheduler()' ])
	{
		my ($break, $mend, $reason) = @$case;

		wait_for_running($node, $id, "a chain of stages runs, $isolation");
		sql($node, $break);
		wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'", $reason, "held: $break");
		sql($node, "$mend; SELECT tasksched.resume_scheduler()");
	}
	wait_for_running($node, $id, 'it goes on');
	open_gate($node, 'stage');
	wait_for_status($node, $id, 'complete', 'to its end');
	is(field_of($node, $id, 'attempt, crashes'), '1|0', 'in one attempt');
	sql($node, 'DELETE FROM gates');
}

# tasks that go on from stage to stage respect a limit that is lowered
my @chains = map { schedule_as('owner', q{'stage'}) } 1 .. 3;
wait_for_running($node, \@chains, 'three chains run');
sql($node, 'ALTER SYSTEM SET tasksched.max_running_tasks = 1');
$node->reload;
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'active'}, 1,
	'one is left after the limit was lowered');
open_gate($node, 'stage');
wait_for_status($node, $_, 'complete', 'each comes to its end') foreach @chains;
sql($node, 'ALTER SYSTEM RESET tasksched.max_running_tasks');
$node->reload;
sql($node, 'ALTER ROLE owner RESET ALL');

# ---------------------------------------------------------------------------
# What a worker loads
# ---------------------------------------------------------------------------
SKIP:
{
	skip 'auto_explain is not installed', 1 unless -e $node->config_data('--pkglibdir') . '/auto_explain.so';
	sql($node, <<'SQL');
ALTER ROLE owner SET session_preload_libraries = 'auto_explain';
ALTER ROLE owner SET auto_explain.log_min_duration = 0;
SQL
	my $log = log_position($node);
	$id = schedule_as('owner', q{'run_sql', } . to_run(q{SELECT count(*) AS seen_by_a_library FROM pg_class}));
	wait_for_status($node, $id, 'complete', 'a task of a role with session_preload_libraries');
	like(log_since($node, $log), qr/duration: .*seen_by_a_library/s, 'the library sees what it does');
}
my $log = log_position($node);
sql($node, q{ALTER ROLE owner SET session_preload_libraries = 'no_such_library'});
$id = schedule_as('owner', q{'note'});
wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'",
	'workers of the role that owns the task fail to start; see the server log', 'a library that is not there');
like(log_since($node, $log), qr/could not access file "no_such_library"/, 'is told in the log');
sql($node, 'ALTER ROLE owner RESET ALL');
wait_for_status($node, $id, 'complete', 'without it, the task runs');
is(field_of($node, $id, 'launch, attempt, crashes'), '1|1|0', 'and nothing was counted');

# ---------------------------------------------------------------------------
# A deadlock on tasksched's tables is not an error of the action
# ---------------------------------------------------------------------------
# Errors are not crashes, even if exit_on_error turns them into FATAL
sql($node, q{ALTER DATABASE postgres SET exit_on_error = on});
$id = schedule($node, q{'raising', params => '{"message": "no crash"}'});
wait_for_status($node, $id, 'failed', 'exit_on_error: the task fails');
is(field_of($node, $id, 'error, crashes'), 'no crash|0', 'with its error, and no crash is counted');
sql($node, q{ALTER DATABASE postgres RESET exit_on_error});

my $reindex = TaskschedSession->new($node);
sql($node, <<'SQL');
CREATE FUNCTION read_tasks() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM tasksched.tasks;
	INSERT INTO public.seen VALUES ('read');
	PERFORM public.at_gate();
END $$;
SELECT tasksched.register_action('read_tasks', 'public.read_tasks');
TRUNCATE seen;
SQL
$gate->query('SELECT pg_advisory_lock(1)');
$id = schedule($node, q{'read_tasks'});
wait_value($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, 1,
	'an action has read tasks');
$reindex->query(q{SET deadlock_timeout = '1h'});
$reindex->begin('REINDEX TABLE tasksched.live');
wait_value($node, 'SELECT cardinality(pg_blocking_pids(' . $reindex->pid . '))', 1, 'REINDEX waits for it');
$log = log_position($node);
$gate->query('SELECT pg_advisory_unlock(1)');
wait_for_log($node, qr/could not store the outcome of task $id/, $log, 'so does it, with its outcome, for REINDEX');
wait_for_status($node, $id, 'complete', 'it is launched again');
is(field_of($node, $id, 'attempt, error'), '1|', 'and has not failed');
is(sql($node, q{SELECT count(*) FROM seen}), 1, 'its effects are there once');
$reindex->end;
$reindex->quit;
$gate->quit;

check_log($node);
done_testing();
