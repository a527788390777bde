# Attacks that need running workers, or databases of their own: by roles that may
# schedule tasks, that own what an action calls, that own the database, or that may
# read and write all tables.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;

my $node = new_node('security', conf => "tasksched.reconcile_interval = 500ms\n");

sql($node, <<'EOT');
CREATE ROLE boss SUPERUSER;
CREATE ROLE mallory LOGIN;		-- attackers: may schedule
CREATE ROLE shade NOLOGIN;
CREATE ROLE friends NOLOGIN;	-- a role that both are members of
CREATE ROLE victim NOLOGIN;		-- may schedule, too
CREATE ROLE operator LOGIN;		-- an admin
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE signaller LOGIN IN ROLE pg_signal_backend;
CREATE ROLE everything LOGIN IN ROLE pg_read_all_data, pg_write_all_data;
CREATE ROLE dbo LOGIN;			-- owns databases
GRANT friends TO mallory, shade;
EOT

# What the tests need in a database in addition to the fixtures
sub create_actions
{
	my ($db) = @_;

	sql($node, <<'EOT', $db);
SELECT tasksched.grant_usage(r) FROM unnest('{mallory,shade,victim,dbo}'::text[]) r;
SELECT tasksched.grant_admin('operator');
CREATE FUNCTION who(params jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT to_jsonb(concat_ws(' ', current_user, session_user, current_setting('is_superuser'))) $$;
SELECT tasksched.register_action('who', 'public.who');

-- the SQLSTATE that a statement ends with
CREATE FUNCTION state_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
EOT
	return;
}
create_actions('postgres');

sub schedule_as
{
	my ($role, $arguments, $db) = @_;

	return sql($node, "SET ROLE $role; SELECT tasksched.schedule_task($arguments)", $db);
}

# Schedule as a role, and wait until the task has this status; returns its id
sub run_as
{
	my ($role, $arguments, $status, $name, $db) = @_;
	my $id = schedule_as($role, $arguments, $db);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_status($node, $id, $status, $name, $db);
	return $id;
}

# The same for an action that executes SQL
sub execute_as
{
	my ($role, $sql, $status, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return run_as($role, "'run_sql', params => jsonb_build_object('sql', \$q\$$sql\$q\$)", $status, $name);
}

# Run a query as a role
sub as
{
	my ($role, $query, $db) = @_;

	return sql($node, "SET ROLE $role; $query", $db);
}

# ---------------------------------------------------------------------------
# CREATE EXTENSION where another role has already created objects
# ---------------------------------------------------------------------------
sql($node, 'CREATE DATABASE shop OWNER dbo');
sqlstate_is($node, 'CREATE EXTENSION tasksched', '42501', 'the owner of a database cannot create the extension',
	db => 'shop', user => 'dbo');
as('dbo', 'CREATE SCHEMA tasksched', 'shop');
sqlstate_is($node, 'CREATE EXTENSION tasksched', '42501', 'nor can a superuser in a schema of theirs', db => 'shop');

# a function that matches a call better than the server's own one of the same name would
# run as a superuser
sql($node, <<'EOT', 'shop');
DROP SCHEMA tasksched;
CREATE SCHEMA tasksched;
GRANT ALL ON SCHEMA tasksched TO mallory;
SET ROLE mallory;
CREATE FUNCTION tasksched.format(text, text, text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'ALTER ROLE mallory SUPERUSER';
	RETURN pg_catalog.format($1, $2, $3);
END $$;
EOT
sqlstate_is($node, 'CREATE EXTENSION tasksched', '55000', 'nor in a schema that has something in it', db => 'shop');
sql($node, <<'EOT', 'shop');
DROP FUNCTION tasksched.format;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO mallory;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO mallory;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO mallory;
EOT
my $granted_to_others = q{
	SELECT count(*) FROM (
		SELECT nspacl FROM pg_namespace WHERE nspname = 'tasksched'
		UNION ALL SELECT proacl FROM pg_proc WHERE pronamespace = 'tasksched'::regnamespace
		UNION ALL SELECT relacl FROM pg_class WHERE relnamespace = 'tasksched'::regnamespace) o(acl),
		aclexplode(acl) a JOIN pg_roles r ON r.oid = grantee OR grantee = 0
		WHERE grantee = 0 OR NOT (rolsuper OR rolname = 'pg_monitor')};
sql($node, 'CREATE EXTENSION tasksched', 'shop');
is(sql($node, $granted_to_others, 'shop'), '0', 'an empty one is taken, and what others may do there is taken away');
sql($node, 'DROP EXTENSION tasksched; DROP SCHEMA tasksched; CREATE EXTENSION tasksched', 'shop');
is(sql($node, $granted_to_others, 'shop'), '0', 'and so is what default privileges give in a new one');
sql($node, <<'EOT', 'shop');
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM mallory;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM mallory;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM mallory;
DROP EXTENSION tasksched;
EOT
create_fixtures($node, 'shop');
create_actions('shop');

# ---------------------------------------------------------------------------
# The rights to read and to write all tables
# ---------------------------------------------------------------------------
my $secret = schedule_as('victim', q{'who', 'secret', delay => '1 day', params => '"secret"'});
run_as('victim', q{'raising', params => '{"message": "secret"}'}, 'failed', 'a task of the victim fails');
my $new_row = q{(id, action, status, run_at, owner, created_at, updated_at, installation, database, finished)
	SELECT gen_random_uuid(), 'who', 'scheduled', now(), 'boss', now(), now(), last_value, d.oid, false
	FROM tasksched.installation, pg_database d WHERE datname = current_database()};
foreach my $table (qw(live finished registered_actions scheduler_state))
{
	is(as('everything', "SELECT count(*) FROM tasksched.$table"), '0', "they see nothing of $table");
}
sqlstate_is($node, 'SELECT * FROM tasksched.tasks', '42501', 'nor of tasks', user => 'everything');
sqlstate_is($node, "INSERT INTO tasksched.$_ $new_row", '42501', "they add no task of a superuser's to $_",
	user => 'everything')
  foreach qw(live tasks);
sqlstate_is($node, q{INSERT INTO tasksched.registered_actions VALUES ('a', 'b()', 'boss', 'boss', now())},
	'42501', 'and no action', user => 'everything');
is( as('everything', q{
		WITH live AS (UPDATE tasksched.live SET owner = 'boss' RETURNING 1),
			gone AS (DELETE FROM tasksched.finished RETURNING 1),
			actions AS (UPDATE tasksched.registered_actions SET function = 'b()' RETURNING 1),
			paused AS (UPDATE tasksched.scheduler_state SET paused = true RETURNING 1)
		SELECT (SELECT count(*) FROM live) + (SELECT count(*) FROM gone) +
			(SELECT count(*) FROM actions) + (SELECT count(*) FROM paused)}),
	'0', 'and change nothing');
sqlstate_is($node, "UPDATE tasksched.tasks SET owner = 'boss' WHERE owner IS NOT NULL", '42501',
	'in tasks neither', user => 'everything');

# ---------------------------------------------------------------------------
# Becoming another role than the owner
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE TABLE ledger (
	n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	place text, what text, state text, who name DEFAULT current_user, auth name DEFAULT session_user,
	super text DEFAULT current_setting('is_superuser'), pid integer DEFAULT pg_backend_pid());
GRANT INSERT ON ledger TO PUBLIC;
CREATE FUNCTION as_boss() RETURNS name LANGUAGE sql SET role = 'boss' AS 'SELECT current_user';
CREATE FUNCTION auth_boss() RETURNS name LANGUAGE sql SET session_authorization = 'boss' AS 'SELECT session_user';
CREATE PROCEDURE attack(place text) LANGUAGE plpgsql AS $$
DECLARE
	what text;
	state text;
BEGIN
	FOREACH what IN ARRAY ARRAY[
		'SET ROLE boss', 'SET LOCAL ROLE boss', 'SET ROLE victim', 'RESET ROLE', 'SET ROLE NONE', 'SET role TO DEFAULT',
		'SET ROLE friends',
		'SET SESSION AUTHORIZATION boss', 'SET LOCAL SESSION AUTHORIZATION boss', 'SET SESSION AUTHORIZATION friends',
		'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION DEFAULT', 'RESET ALL',
		'SELECT set_config(''role'', ''boss'', false)', 'SELECT set_config(''role'', ''none'', false)',
		'SELECT set_config(''session_authorization'', ''boss'', false)',
		'SELECT set_config(''session_authorization'', ''boss'', true)',
		'SELECT set_config(''is_superuser'', ''on'', false)',
		'DO ''BEGIN SET ROLE boss; END''', 'DO ''BEGIN EXECUTE $x$SET SESSION AUTHORIZATION boss$x$; END''',
		'SELECT as_boss()', 'SELECT auth_boss()',
		'ALTER ROLE CURRENT_USER SUPERUSER', 'GRANT boss TO CURRENT_USER',
		'ALTER FUNCTION as_boss() OWNER TO CURRENT_USER',
		'COPY ledger TO PROGRAM ''id''', 'COPY ledger TO ''/tmp/ledger''',
		'SELECT pg_read_file(''/etc/passwd'')', 'SELECT lo_import(''/etc/passwd'')',
		'LOAD ''/tmp/x''', 'CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE c AS ''x'', ''y''',
		'SET session_replication_role = replica',
		'SELECT pg_reload_conf()', 'SET tasksched.max_crashes = 1000', 'SET LOCAL tasksched.enabled = off']
	LOOP
		BEGIN
			EXECUTE what;
			INSERT INTO public.ledger (place, what, state) VALUES (place, what, '00000');
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO public.ledger (place, what, state) VALUES (place, what, SQLSTATE);
		END;
		IF what <> 'SET ROLE friends' THEN
			CONTINUE;
		END IF;
		RESET ROLE;
	END LOOP;
END $$;
CREATE FUNCTION attack_function() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	CALL public.attack('function');
	SET ROLE friends;
END $$;
CREATE PROCEDURE attack_procedure() LANGUAGE plpgsql AS $$
BEGIN
	CALL public.attack('before COMMIT');
	COMMIT;
	CALL public.attack('after COMMIT');
	COMMIT;
	ROLLBACK;
	CALL public.attack('after ROLLBACK');
	SET ROLE friends;
	COMMIT;
END $$;
CREATE FUNCTION attack_next() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ledger (place, what) VALUES ('next', 'nothing');
	CALL public.attack('next');
END $$;
SELECT tasksched.register_action(a, 'public.' || a)
FROM unnest('{attack_function,attack_procedure,attack_next}'::text[]) a;
EOT

# what does no harm; everything else is refused
my @harmless = ('RESET ROLE', 'SET ROLE NONE', 'SET role TO DEFAULT', 'SET ROLE friends', 'RESET SESSION AUTHORIZATION',
	'SET SESSION AUTHORIZATION DEFAULT', 'RESET ALL', "SELECT set_config('role', 'none', false)");
foreach my $role (qw(mallory shade))
{
	foreach my $action (qw(attack_function attack_next attack_procedure attack_next))
	{
		run_as($role, "'$action'", 'complete', "$role runs $action");
	}
	is( sql($node, q{SELECT string_agg(DISTINCT place, ', ' ORDER BY place) FROM ledger}),
		'after COMMIT, after ROLLBACK, before COMMIT, function, next', 'all of it was tried');
	is( sql($node, qq{SELECT DISTINCT place, what, state, who, auth, super FROM ledger
			WHERE auth <> '$role' OR super <> 'off'
				OR who <> CASE WHEN what = 'SET ROLE friends' AND state = '00000' THEN 'friends' ELSE '$role' END}),
		'', "$role stays who it is");
	is(sql($node, "SELECT string_agg(DISTINCT what, ';' ORDER BY what) FROM ledger WHERE state = '00000'"),
		join(';', sort @harmless), 'what is not refused does no harm');
	is(sql($node, "SELECT string_agg(DISTINCT state, ',' ORDER BY state) FROM ledger WHERE state <> '00000'"),
		'42501,55P02', 'the rest is');
	is(sql($node, 'SELECT count(DISTINCT pid) FROM ledger'), '1', 'all of them in one worker');
	sql($node, 'TRUNCATE ledger');
}

# the same by settings that a session starts with
foreach my $setting ("role = 'boss'", "session_authorization = 'boss'", "role = 'friends'")
{
	foreach my $role (qw(mallory shade))
	{
		sql($node, "ALTER ROLE $role SET $setting");
		my $id = run_as($role, q{'who'}, 'complete', "ALTER ROLE $role SET $setting");
		is(field_of($node, $id, 'result'), qq{"$role $role off"}, 'which does not make it another');
		sql($node, "ALTER ROLE $role RESET ALL");
	}
}

# nor does a parallel worker of an action's query become another role
sql($node, <<'EOT');
CREATE FUNCTION where_and_who() RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	RETURN concat_ws(' ', current_user, session_user, current_setting('is_superuser'), pg_backend_pid());
END $$;
CREATE FUNCTION in_parallel(params jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	PERFORM set_config(name, 'on', true) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
	EXECUTE 'SELECT public.where_and_who()' INTO said;	-- the other ways to SELECT INTO are never parallel
	RETURN to_jsonb(replace(said, pg_backend_pid()::text, 'leader'));
END $$;
SELECT tasksched.register_action('in_parallel', 'public.in_parallel');
EOT
foreach my $role (qw(mallory shade))
{
	my $id = run_as($role, q{'in_parallel'}, 'complete', "a parallel query of $role");
	like(field_of($node, $id, 'result'), qr/^"$role $role off \d+"$/, 'runs as the same role');
}

# a superuser's task may become another role; its worker does not keep it
execute_as('boss', 'SET SESSION AUTHORIZATION mallory', 'complete', 'a superuser becomes another');
my $id = run_as('boss', q{'who'}, 'complete', "the superuser's next task");
is(field_of($node, $id, 'result'), '"boss boss on"', 'is not that any more');

# ---------------------------------------------------------------------------
# SECURITY DEFINER
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
GRANT CREATE ON SCHEMA public TO victim, mallory;
SET ROLE victim;
CREATE FUNCTION public.definer() RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN jsonb_build_object('who', public.who(NULL), 'mine', (SELECT count(*) FROM tasksched.current_task()),
		'escape', public.state_of('SET ROLE boss'), 'reset', public.state_of('RESET ROLE'),
		'scheduled', tasksched.schedule_task('who'));
END $$;
CREATE FUNCTION public.wrapper() RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT tasksched.schedule_task('who') $$;
RESET ROLE;
SET ROLE operator;
SELECT tasksched.register_action('definer', 'public.definer');
EOT
$id = run_as('mallory', q{'definer'}, 'complete', 'an action with SECURITY DEFINER');
is(field_of($node, $id, q{owner, result - 'scheduled'}),
	'mallory|{"who": "victim mallory off", "mine": 1, "reset": "42501", "escape": "42501"}',
	'has the rights of its owner, and no more');
$id = field_of($node, $id, q{result ->> 'scheduled'});
wait_for_status($node, $id, 'complete', 'what it schedules');
is(field_of($node, $id, 'owner, result'), 'victim|"victim victim off"', "is the definer's");
$id = as('mallory', 'SELECT wrapper()');
wait_for_status($node, $id, 'complete', 'and so is what a function with SECURITY DEFINER schedules');
is(field_of($node, $id, 'owner, result'), 'victim|"victim victim off"', 'outside of a task');
is(as('mallory', "SELECT count(*) FROM tasksched.get_task('$id')"), '0', 'its caller does not see it');

# ---------------------------------------------------------------------------
# The owner of what an action calls
# ---------------------------------------------------------------------------
sql($node, q{SET ROLE mallory; CREATE FUNCTION tool() RETURNS jsonb LANGUAGE sql AS $$ SELECT '"old"'::jsonb $$});
as('operator', q{SELECT tasksched.register_action('tool', 'public.tool')});
sqlstate_is($node, q{SET ROLE victim; SELECT tasksched.register_action('tool', 'public.who')}, '42501',
	'a user cannot take over the name of an action');
as('mallory', q{CREATE OR REPLACE FUNCTION tool() RETURNS jsonb LANGUAGE sql AS $$ SELECT who(NULL) $$});
$id = run_as('victim', q{'tool'}, 'complete', "an action's function can be replaced by its owner");
is(field_of($node, $id, 'result'),
	'"victim victim off"', 'who so acts for those who schedule it: they have to trust him');
sql($node, q{
	SET ROLE mallory; DROP FUNCTION tool(); RESET ROLE;
	SET ROLE victim; CREATE FUNCTION tool() RETURNS jsonb LANGUAGE sql AS $$ SELECT who(NULL) $$});
$id = schedule_as('boss', q{'tool'});
wait_value($node, "SELECT reason FROM tasksched.blocked_tasks WHERE id = '$id'",
	"the action's function public.tool() has got another owner since it was registered", 'but not by anybody else');
ok(sql($node, "SELECT tasksched.cancel_task('$id')"), 'it does not run');

# ---------------------------------------------------------------------------
# Tasks of other roles
# ---------------------------------------------------------------------------
my $running = schedule_as('victim', q{'hold', 'gate', params => '"secret"'});
wait_for_running($node, $running, 'the victim has a task that runs');
my $finished = run_as('victim', q{'who', params => '"secret"'}, 'complete', 'and one that is finished');
my $before = sql($node, "SELECT * FROM tasksched.tasks WHERE owner = 'victim' ORDER BY id");
my $unknown = sql($node, 'SELECT gen_random_uuid()');
my @ids = ($unknown, $secret, $running, $finished);
foreach my $call (
	"tasksched.update_task('ID', run_at => now())", "tasksched.update_task('ID', result => '1')",
	"tasksched.update_task('ID', status => 'active')",
	"tasksched.cancel_task('ID')", "tasksched.delete_task('ID')", "tasksched.retry_task('ID')",
	"tasksched.task_is_running('ID')",
	"count(*) FROM tasksched.get_task('ID')", "count(*) FROM tasksched.wait_for_task('ID')",
	"count(*) FROM tasksched.tasks WHERE id = 'ID'", "count(*) FROM tasksched.get_tasks() WHERE id = 'ID'",
	"count(*) FROM tasksched.running_tasks WHERE task_id = 'ID'", "count(*) FROM tasksched.stuck_tasks WHERE id = 'ID'",
	"count(*) FROM tasksched.blocked_tasks WHERE id = 'ID'")
{
	my @answers = map {
		my ($out, $err) = try_sql($node, 'SELECT ' . $call =~ s/ID/$_/r, user => 'mallory');
		"$out$err" =~ s/$_/ID/gr
	} @ids;

	is_deeply(\@answers, [ ($answers[0]) x 4 ], "$call answers as for an unknown task");
}
execute_as('mallory', <<"EOT", 'complete', 'likewise inside an action');
	DO \$\$
	DECLARE id uuid;
	BEGIN
		FOREACH id IN ARRAY '{$secret,$running,$finished}'::uuid[] LOOP
			ASSERT NOT (tasksched.update_task(id, result => '1') OR tasksched.cancel_task(id)
				OR tasksched.delete_task(id) OR tasksched.retry_task(id) OR tasksched.task_is_running(id));
			ASSERT NOT EXISTS (SELECT FROM tasksched.get_task(id))
				AND NOT EXISTS (SELECT FROM tasksched.wait_for_task(id));
		END LOOP;
	END \$\$
EOT
is(sql($node, "SELECT * FROM tasksched.tasks WHERE owner = 'victim' ORDER BY id"),
	$before, 'none of that has changed anything');

# what other roles see of a running task
my $worker = worker_pid($node, $running);
is(as('mallory', "SELECT query FROM pg_stat_activity WHERE pid = $worker"),
	'<insufficient privilege>', 'pg_stat_activity tells a user nothing');
is(as('monitor', "SELECT query FROM pg_stat_activity WHERE pid = $worker"),
	"tasksched: hold $running", 'and pg_monitor the action and the id');
is(sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'secret' AND pid <> pg_backend_pid()}),
	'0', 'nobody the params');
sql($node, 'ANALYZE');
is( sql($node, q{SELECT DISTINCT tablename FROM pg_stats
		WHERE schemaname = 'tasksched' AND attname = 'resource_id' ORDER BY 1}),
	"finished\nlive\ntasks", 'there are statistics');
is(as($_,
		q{SELECT count(*) FROM pg_stats WHERE schemaname = 'tasksched' AND tablename IN ('tasks', 'live', 'finished')}),
	'0', "not for $_")
  foreach qw(mallory operator monitor everything dbo);
my $log = log_position($node);
run_as('victim', q{'raising', params => '{"message": "overt", "x": "secret"}'}, 'failed', 'an error is logged');
wait_for_log($node, qr/overt.*STATEMENT:  tasksched: raising /s, $log, 'with the action and the id');
unlike(log_since($node, $log), qr/secret/, 'without the params');

# signals
sqlstate_is($node, "SELECT pg_cancel_backend($worker)", '42501', 'a user cannot interrupt the worker of another',
	user => 'mallory');
sqlstate_is($node, "SELECT pg_terminate_backend($worker)", '42501', 'nor end it', user => 'mallory');
my $super = schedule_as('boss', q{'hold', 'gate'});
foreach my $pid (worker_pid($node, $super), scheduler_pid($node), launcher_pid($node))
{
	sqlstate_is($node, "SELECT pg_terminate_backend($pid)", '42501', 'pg_signal_backend ends nothing of a superuser',
		user => 'signaller');
}
is(as('signaller', "SELECT pg_cancel_backend($worker)"), 't', 'but interrupts what others run');
wait_for_status($node, $running, 'failed', 'which then fails');
is(field_of($node, $running, "error_details ->> 'sqlstate'"), '57014', 'as interrupted');
open_gate($node, 'gate');
wait_for_status($node, $super, 'complete', "the superuser's goes on");

# ---------------------------------------------------------------------------
# The names of tasksched's objects in other schemas, inside a worker
# ---------------------------------------------------------------------------
execute_as('mallory', <<'EOT', 'complete', 'temporary objects of our names deceive nobody');
	CREATE TEMP TABLE tasks AS SELECT * FROM tasksched.tasks WITH NO DATA;
	CREATE TEMP TABLE live (LIKE tasksched.tasks);
	CREATE TEMP TABLE finished (LIKE tasksched.tasks);
	CREATE TEMP TABLE registered_actions (action text, function text);
	CREATE TEMP TABLE scheduler_state (paused boolean);
	CREATE TYPE pg_temp.task AS (id uuid);
	CREATE TYPE pg_temp.regrole AS ENUM ('postgres');
	CREATE DOMAIN pg_temp.task_status AS text;
	CREATE FUNCTION pg_temp.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
	SET search_path = pg_temp, tasksched, public;
	DO $$ BEGIN
		ASSERT NOT EXISTS (SELECT FROM tasksched.get_tasks() WHERE owner <> 'mallory'::pg_catalog.regrole);
	END $$;
	SELECT tasksched.schedule_task('who');
EOT
wait_value($node,
	q{SELECT status, result FROM tasksched.tasks WHERE owner = 'mallory' AND action = 'who' ORDER BY id DESC LIMIT 1},
	'complete|"mallory mallory off"', 'nor the next task');

# ---------------------------------------------------------------------------
# Rights that are revoked between scheduling and running
# ---------------------------------------------------------------------------
sql($node, 'SELECT tasksched.pause_scheduler()');
my $plain = schedule_as('victim', q{'note'});
my $calls = schedule_as('victim', q{'run_sql', params => '{"sql": "SELECT tasksched.get_tasks()"}'});
my $tool = schedule_as('victim', q{'who'});
my $login = schedule_as('mallory', q{'note'});
sql($node, q{
	SELECT tasksched.revoke_usage('victim');
	REVOKE EXECUTE ON FUNCTION who FROM PUBLIC;
	ALTER ROLE mallory NOLOGIN;
	SELECT tasksched.resume_scheduler()});
wait_for_status($node, $plain, 'complete', 'what was scheduled runs without the right to schedule');
wait_for_status($node, $calls, 'failed', 'but may not use our functions then');
wait_for_status($node, $tool, 'failed', 'nor what EXECUTE was revoked on');
is(field_of($node, $_, "error_details ->> 'sqlstate'"), '42501', 'for lack of privilege') foreach $calls, $tool;
wait_for_status($node, $login, 'complete', 'LOGIN is not needed');
sql($node, q{ALTER ROLE mallory LOGIN; SELECT tasksched.grant_usage('victim')});

# ---------------------------------------------------------------------------
# The owner of the database
# ---------------------------------------------------------------------------
my $own = q{SET ROLE NONE; SET default_transaction_read_only = off; SET lock_timeout = 0; SET row_security = on;};
foreach my $setting (
	"role = 'dbo'", "session_authorization = 'dbo'", 'search_path = evil, public, pg_catalog', 'lock_timeout = 1',
	'default_transaction_read_only = on', "default_transaction_isolation = 'serializable'", 'row_security = off',
	'transform_null_equals = on', 'quote_all_identifiers = on',
	# the server no longer accepts off
	sql($node, 'SHOW server_version_num') < 190000 ? 'standard_conforming_strings = off' : (),
	"datestyle = 'German'", "timezone = 'Asia/Kathmandu'", 'array_nulls = off', 'enable_indexscan = off',
	"work_mem = '64kB'")
{
	sqlstate_is($node, "ALTER DATABASE shop SET $setting; DO 'BEGIN RAISE USING ERRCODE = ''TS000''; END'", 'TS000',
		"the owner may say ALTER DATABASE SET $setting", user => 'dbo');
}
sqlstate_is($node, 'ALTER DATABASE shop SET tasksched.max_crashes = 1', '55P02', 'but not for our settings',
	user => 'dbo');
sql($node, <<'EOT');
\c shop
SET ROLE NONE;
SET default_transaction_read_only = off;
CREATE SCHEMA evil AUTHORIZATION dbo;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
SET ROLE dbo;
CREATE FUNCTION evil.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT timestamptz 'epoch' $$;
CREATE TYPE evil.regrole AS (x integer);
EOT
foreach my $pid (pids_of($node, 'tasksched scheduler', 'shop'))
{
	sql($node, "SELECT pg_terminate_backend($pid)");
}
foreach my $role (qw(mallory shade))
{
	$id = sql($node, "$own SET ROLE $role; SELECT tasksched.schedule_task('who')", 'shop');
	wait_value($node, "$own SELECT status, result FROM tasksched.tasks WHERE id = '$id'",
		qq{complete|"$role $role off"},
		'with all of that, tasks run as they should', 'shop');
	is(sql($node, "$own SET ROLE dbo; SELECT count(*) FROM tasksched.get_tasks()", 'shop'),
		'0', 'and the owner does not see them');
}
sql($node, 'ALTER DATABASE shop RESET ALL');
foreach my $attack (
	'SELECT * FROM tasksched.live', 'ALTER TABLE tasksched.tasks DISABLE ROW LEVEL SECURITY',
	'ALTER TABLE tasksched.live OWNER TO dbo',
	'CREATE TRIGGER t BEFORE INSERT ON tasksched.live FOR EACH ROW '
	  . 'EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'CREATE RULE r AS ON INSERT TO tasksched.live DO INSTEAD NOTHING',
	'CREATE POLICY p ON tasksched.tasks USING (true)',
	'TRUNCATE tasksched.finished', 'DROP SCHEMA tasksched CASCADE',
	'ALTER SCHEMA tasksched OWNER TO dbo', 'ALTER SCHEMA tasksched RENAME TO x',
	'CREATE FUNCTION tasksched.f() RETURNS void LANGUAGE sql AS \'\'',
	'DROP EXTENSION tasksched CASCADE', 'ALTER EXTENSION tasksched UPDATE',
	'ALTER EXTENSION tasksched DROP TABLE tasksched.live',
	'GRANT ALL ON tasksched.live TO dbo', 'REASSIGN OWNED BY boss TO dbo',
	'SELECT tasksched.grant_admin(\'dbo\')', 'SELECT tasksched.pause_scheduler()',
	'CREATE PUBLICATION p FOR TABLE tasksched.live')
{
	my $state = as('dbo', "SELECT state_of(\$a\$$attack\$a\$)", 'shop');

	ok($state eq '42501' || ($attack =~ /^GRANT/ && $state eq '01007'),
		"refused to the owner of the database: $attack")
	  or diag($state);
}

check_log($node);
done_testing();
