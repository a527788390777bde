# What goes on around the call of an action: whose the task is inside, what commits
# elsewhere, functions that are replaced at that very moment, stages that may not go
# on, and what the worker loads.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use TaskschedSession;
use TaskschedTest;
use Test::More;

# nothing here is found by a scan
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

# The argument params that has run_sql execute this
sub to_run
{
	my ($sql) = @_;

	return "params => jsonb_build_object('sql', \$to_run\$$sql\$to_run\$)";
}

# What was seen, in order of its names
sub seen { return sql($node, q{SELECT string_agg(what || '=' || coalesce(value, 'null'), ' ' ORDER BY what COLLATE "C") FROM (SELECT DISTINCT * FROM seen) s}); }

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
# Whose the task is inside of its action
# ---------------------------------------------------------------------------
sql($node, <<'SQL');
-- notes what the functions that are meant for an action give its caller
CREATE FUNCTION probe(id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	call text;
	value text;
BEGIN
	FOREACH call IN ARRAY ARRAY[
		'current_task: (SELECT count(*) FROM tasksched.current_task())',
		'update: tasksched.update_task($1, status => ''scheduled'', run_at => ''2100-01-01'', result => ''"by probe"'')',
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

-- in an action: the text of pg_stat_activity has its id
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

# helpers with SECURITY DEFINER, and roles that an action takes
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
	[ 'call_helper', 'GRANT owner TO helper', "${inside}55000", 'scheduled', 'but one that has the rights of its owner' ],
	[ 'change_role', 'REVOKE owner FROM helper', "$outside{mallory} reset=1" =~ s/(progress=\S+) (.*) (reset=1)/$1 $3 $2/r, 'complete', 'nor is who it has become by SET ROLE' ],
	[ 'definer', '', "${inside}0 who=helper" =~ s/(wait=0) (who=helper)/$1 $2/r, 'complete', 'the definer of the action itself is' ])
{
	my ($action, $before, $expected, $status, $name) = @$case;

	sql($node, "TRUNCATE seen; $before");
	$id = schedule_as('owner', "'$action'");
	wait_for_status($node, $id, $status, "$action runs");
	is(seen(), $expected, $name);
}
is(field_of($node, $id, 'result'), '"by its definer"', 'and what it stages is kept');


check_log($node);
done_testing();
