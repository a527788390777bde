# Errors of all kinds, and what an action leaves in its session.  The task fails as
# it should, the worker survives, and the next task in that worker sees nothing of
# the one before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use TaskschedSession;
use TaskschedTest;
use Test::More;

# one worker at a time, which does not exit when idle, so that all tasks run in it,
# one after the other
my $node = new_node('errors', conf => <<'EOT');
wal_level = logical
tasksched.max_running_tasks = 1
tasksched.worker_idle_timeout = '1h'
EOT
my $wait = ($ENV{PG_TEST_TIMEOUT_DEFAULT} || 180) . ' s';

# outcome() runs SQL in a task and returns "status|sqlstate"; $last is the id of the
# task
my $last;

my $super = sql($node, 'SELECT current_user');

sub outcome
{
	my ($sql, %opt) = @_;
	my $out = sql($node, <<"EOT", $opt{db});
SELECT tasksched.schedule_task('run_sql', params => jsonb_build_object('sql', \$sql\$$sql\$sql\$)) AS id \\gset
SELECT status, error_details->>'sqlstate', id FROM tasksched.wait_for_task(:'id', '$wait');
EOT
	(my $status, $last) = $out =~ /^(.*)\|(.*?)$/;
	return $status;
}

# The process that ran the last task
sub pid_of_last { return sql($node, "SELECT pid FROM runs WHERE id = '$last'", $_[0]); }

# The same worker runs another task, and its session is clean
sub next_is_fine
{
	my ($pid, $name, %opt) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(outcome('SELECT 1', %opt), 'complete|', "$name: the next task is fine");
	is(pid_of_last($opt{db}), $pid, "$name: in the same worker");
	return;
}

sub fails_with
{
	my ($pid, $sql, $sqlstate, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(outcome($sql), "failed|$sqlstate", $name);
	my $failed = $last;
	next_is_fine($pid, $name);
	$last = $failed;
	return;
}

sql($node, <<'EOT');
CREATE ROLE other;
GRANT ALL ON SCHEMA public TO other;
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE stock (item int PRIMARY KEY, n int);
INSERT INTO stock VALUES (1, 0), (2, 0);
CREATE SEQUENCE numbers;
CREATE TABLE seen (what text);
GRANT ALL ON runs, seen, stock, numbers TO other;
CREATE FUNCTION deeper(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN deeper($1 + 1); END $$;
CREATE FUNCTION number_is_known() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM lastval();
	RETURN true;
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	RETURN false;
END $$;
CREATE FUNCTION wait_for_gate(text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	-- sees the gate at any isolation level
	PERFORM pg_advisory_xact_lock_shared(hashtext($1));
END $$;
EOT

is(outcome('SELECT 1'), 'complete|', 'a task runs');
my $pid = pid_of_last();

# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------
fails_with($pid, 'SELECT 1/0', '22012', 'an error');
fails_with($pid, 'SELECT deeper(1)', '54001', 'stack depth');
cmp_ok(field_of($node, $last, q{length(error_details->>'context')}), '>', 1000, 'with its context');
fails_with($pid, 'INSERT INTO children VALUES (7)', '23503', 'a deferred constraint, at the commit');
fails_with($pid, q{DECLARE c CURSOR WITH HOLD FOR SELECT 1 / (5 - g) FROM generate_series(1, 9) g},
	'22012', 'a cursor that is held fails at the commit');
fails_with($pid, 'LISTEN news', '0A000', 'LISTEN');
fails_with($pid, q{DO $$ BEGIN ASSERT false; END $$}, 'P0004', 'ASSERT');
fails_with($pid, <<'EOT', '22012', 'an error in an exception handler of a nested block');
DO $$
BEGIN
	INSERT INTO public.seen VALUES ('never');
	BEGIN
		BEGIN
			PERFORM 'x'::int;
		EXCEPTION WHEN invalid_text_representation THEN
			PERFORM 1/0;
		END;
	EXCEPTION WHEN undefined_table THEN
		NULL;
	END;
END $$
EOT
is(sql($node, 'SELECT count(*) FROM seen'), 0, 'its effects are rolled back');
is(outcome(q{DO $$ BEGIN PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END $$}),
	'complete|', 'an error that is caught is none');

# a message of a megabyte, and one that is far too large
fails_with($pid,
	q{DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = repeat('m', 1200000), DETAIL = repeat('d', 600000); END $$},
	'P0001', 'a long message');
is(field_of($node, $last, q{error = repeat('m', 1200000) AND error_details->>'detail' = repeat('d', 600000)}),
	't', 'is kept');
sql($node, q{ALTER SYSTEM SET log_min_messages = fatal});
$node->reload;
wait_value($node, 'SHOW log_min_messages', 'fatal', 'what follows is not logged');
next_is_fine($pid, 'a reload');
fails_with($pid, q{DO $$ BEGIN RAISE EXCEPTION USING
		MESSAGE = repeat('m', 20000000), DETAIL = repeat('d', 20000000), HINT = repeat('h', 20000000); END $$},
	'P0001', 'an endless message');
is(field_of($node, $last,
		q{length(error) BETWEEN 1200000 AND 16777216 AND octet_length(error_details::text) < 34000000}), 't', 'is cut');
sql($node, q{ALTER SYSTEM RESET log_min_messages});
$node->reload;
wait_value($node, 'SHOW log_min_messages', 'warning', 'and so on');
sql($node, <<'EOT');
CREATE FUNCTION long_error(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
BEGIN
	IF first_launch THEN
		PERFORM tasksched.update_task(task.id, error => repeat('m', 20000000));
		RETURN tasksched.reschedule();
	END IF;
	RETURN tasksched.fail(length(task.error) || task.error);
END $$;
SELECT tasksched.register_action('long_error', 'long_error');
EOT
my $long = schedule($node, q{'long_error'});
wait_for_status($node, $long, 'failed', 'an endless error of update_task() and of fail()');
is(field_of($node, $long, q{error = '16777216' || repeat('m', 16777208)}), 't', 'is cut each time');

# locks
my $session = TaskschedSession->new($node);
$session->query('BEGIN; LOCK TABLE parents');
fails_with($pid, q{SET lock_timeout = '50ms'; LOCK TABLE parents}, '55P03', 'lock_timeout');
$session->query('ROLLBACK');

# A deadlock between an action and update_task.  The action is the last one to wait, so
# it detects the deadlock.
my $gate = TaskschedSession->new($node);
$gate->query(q{SELECT pg_advisory_lock(hashtext('far'))});
my $far = schedule($node, q{'note', delay => '1 day'});
$session->query(qq{SET deadlock_timeout = '1h'; BEGIN; SELECT tasksched.update_task('$far', result => '1')});
my $id = schedule($node, sprintf(q{'run_sql', params => jsonb_build_object('sql', $s$%s$s$)},
	qq{UPDATE stock SET n = 1 WHERE item = 1; SELECT pg_advisory_lock(7); SELECT wait_for_gate('far');
		SELECT tasksched.update_task('$far', result => '2')}));
wait_value($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND granted}, 1,
	'an action holds a row');
$session->begin('UPDATE stock SET n = 2 WHERE item = 1; COMMIT');
wait_value($node, 'SELECT cardinality(pg_blocking_pids(' . $session->pid . '))', 1,
	'a session that has changed a task waits for that row');
$gate->query('SELECT pg_advisory_unlock_all()');
wait_for_status($node, $id, 'failed', 'a deadlock between an action and update_task fails the one that finds it');
is(field_of($node, $id, q{error_details->>'sqlstate'}), '40P01', 'as a deadlock');
$session->end;
is(field_of($node, $far, 'result') . sql($node, 'SELECT n FROM stock WHERE item = 1'), '12', 'and the other goes on');
next_is_fine($pid, 'a deadlock');

# A session cancels a task and then waits for a row that the task's action has locked:
# the worker detects the deadlock when it stores the outcome
$gate->query(q{SELECT pg_advisory_lock(hashtext('deadlock'))});
$id = schedule($node, sprintf(q{'run_sql', params => jsonb_build_object('sql', $s$%s$s$)},
	q{UPDATE stock SET n = 3 WHERE item = 1; SELECT pg_advisory_lock(7); SELECT wait_for_gate('deadlock')}));
wait_for_running($node, $id, 'an action holds a row');
wait_value($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND granted}, 1,
	'for certain');
$session->query("BEGIN; SELECT tasksched.cancel_task('$id')");
$session->begin('UPDATE stock SET n = 4 WHERE item = 1; COMMIT');
wait_value($node, 'SELECT cardinality(pg_blocking_pids(' . $session->pid . '))', 1,
	'a session that has cancelled it waits for that row');
$gate->query('SELECT pg_advisory_unlock_all()');
$session->end;
wait_for_status($node, $id, 'cancelled', 'a deadlock of the final update: the cancel stands');
is(sql($node, 'SELECT n FROM stock WHERE item = 1'), '4', 'and the effects are those of its session');
next_is_fine($pid, 'a deadlock of the final update');

# serialization failures, in a statement and at the commit
foreach my $case (
	[   'repeatable read',
		'UPDATE stock SET n = n + 1 WHERE item = 2',
		'UPDATE stock SET n = n + 1 WHERE item = 2' ],
	[   'serializable',
		'INSERT INTO stock SELECT 100 + count(*), 0 FROM stock',
		'INSERT INTO stock SELECT 200 + count(*), 0 FROM stock' ])
{
	my ($level, $theirs, $ours) = @$case;

	$gate->query(qq{SELECT pg_advisory_lock(hashtext('$level'))});
	$id = sql($node, qq{ALTER ROLE other SET default_transaction_isolation = '$level';
		SELECT tasksched.grant_usage('other'); SET ROLE other;
		SELECT tasksched.schedule_task('run_sql', params => jsonb_build_object('sql',
			\$s\$SELECT count(*) FROM stock; SELECT wait_for_gate('$level'); $ours\$s\$))});
	$id =~ s/\s//g;
	wait_value($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, 1,
		"$level: an action has its snapshot");
	$session->query("BEGIN ISOLATION LEVEL SERIALIZABLE; $theirs; COMMIT");
	$gate->query('SELECT pg_advisory_unlock_all()');
	wait_for_status($node, $id, 'failed', "$level: it fails");
	is(field_of($node, $id, q{error_details->>'sqlstate'}), '40001', "$level: with a serialization failure");
}

# ---------------------------------------------------------------------------
# Roles with settings for transactions
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE PROCEDURE stages(task tasksched.task, INOUT outcome tasksched.outcome) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.update_task(task.id, result => to_jsonb(task.launch));
	COMMIT;
	PERFORM tasksched.update_task(task.id, error => 'step');
	COMMIT;
	outcome := CASE task.launch
		WHEN 1 THEN tasksched.proceed() WHEN 2 THEN tasksched.reschedule() ELSE tasksched.complete() END;
END $$;
SELECT tasksched.register_action('stages', 'stages');
EOT
foreach my $settings (
	[ 'default_transaction_read_only = on' ],
	[ q{default_transaction_isolation = 'repeatable read'} ],
	[ q{default_transaction_isolation = 'serializable'} ],
	[ q{default_transaction_isolation = 'serializable'}, 'default_transaction_read_only = on',
		'default_transaction_deferrable = on' ],
	[ 'max_stack_depth = 100', 'row_security = off', 'enable_indexscan = off', 'enable_bitmapscan = off' ],
	[ q{search_path = ''}, q{DateStyle = 'German'}, q{IntervalStyle = 'sql_standard'}, 'quote_all_identifiers = on',
		'transform_null_equals = on' ],
	[ q{client_encoding = 'SJIS'}, 'session_replication_role = replica', 'lock_timeout = 1', 'statement_timeout = 1' ])
{
	my $name = join(', ', @$settings);

	sql($node, join('; ', 'ALTER ROLE other RESET ALL', map { "ALTER ROLE other SET $_" } @$settings));
	$id = sql($node, q{SET ROLE other; SELECT tasksched.schedule_task('stages')});
	wait_for_status($node, $id, 'complete', "$name: stages and checkpoints are stored");
	is(field_of($node, $id, 'result, launch, attempt, crashes, setbacks'), '3|3|1|0|0', "$name: each at once");
	$id = sql($node, q{SET ROLE other; SELECT tasksched.schedule_task('raising', params => '{"message": "no"}')});
	wait_for_status($node, $id, 'failed', "$name: an error is stored");
	is(field_of($node, $id, 'error, launch, setbacks'), 'no|1|0', "$name: at once");
}
sql($node, 'ALTER ROLE other RESET ALL');

# A task that has been launched so often that the counter is at its maximum: at a
# claim, and at a stage
sql($node, <<'EOT');
CREATE FUNCTION go_on(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE sql AS $$
	SELECT CASE WHEN first_launch THEN tasksched.proceed() ELSE tasksched.complete() END
$$;
SELECT tasksched.register_action('go_on', 'go_on');
EOT
foreach my $case ([ 2147483647, 2 ], [ 2147483646, 1 ])
{
	my ($before, $after) = @$case;

	$id = schedule($node, q{'go_on', delay => '1 day'});
	sql($node, qq{UPDATE tasksched.live SET launch = $before WHERE id = '$id';
		SELECT tasksched.update_task('$id', run_at => now())});
	wait_for_status($node, $id, 'complete', "two launches after number $before");
	is(field_of($node, $id, 'launch, attempt, setbacks'), "$after|1|0", 'the count has begun anew');
}

# An action leaves such transaction settings behind: the reset between two tasks does
# not wait for other transactions
is(outcome('SELECT 1'), 'complete|', 'back to the first role');
$pid = pid_of_last();
$session->query('BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO seen SELECT count(*) FROM seen');
is(outcome('SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE'),
	'complete|', 'an action leaves its session in a state that waits for others');
next_is_fine($pid, 'while a serializable transaction is open');
$session->query('ROLLBACK');

# ---------------------------------------------------------------------------
# pg_cancel_backend, which the action catches
# ---------------------------------------------------------------------------
$id = schedule($node, sprintf(q{'run_sql', params => jsonb_build_object('sql', $s$%s$s$)},
	'DO $$ BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN NULL; END $$ /* polls */'));
wait_for_running($node, $id, 'an action sleeps');
wait_value($node, "SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'PgSleep', 'for certain');
sql($node, "SELECT pg_cancel_backend($pid)");
wait_for_status($node, $id, 'complete', 'an action that catches query_canceled goes on');
next_is_fine($pid, 'a cancel that was caught');

# ---------------------------------------------------------------------------
# What an action leaves behind
# ---------------------------------------------------------------------------
# Name, what one action does, the expression that it and the next one evaluate, and
# what each of them sees
my @leftovers = (
	[ 'a cursor WITH HOLD', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1',
		'(SELECT count(*) FROM pg_cursors WHERE is_holdable)', 1, 0 ],
	[ 'a cursor', 'SELECT 1', q{(SELECT count(*) FROM pg_cursors WHERE name = 'c')}, 0, 0 ],
	[ 'a temporary table', 'CREATE TEMP TABLE left_over (a int)', q{to_regclass('left_over') IS NOT NULL},
		'true', 'false' ],
	[ 'an advisory lock', 'SELECT pg_advisory_lock(42), pg_advisory_lock(42), pg_advisory_lock_shared(43)',
		q{(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())}, 2, 0 ],
	[ 'SET', q{SET work_mem = '77kB'}, q{current_setting('work_mem')}, '77kB', '4MB' ],
	[ 'SET LOCAL', q{SET LOCAL work_mem = '77kB'}, q{current_setting('work_mem')}, '77kB', '4MB' ],
	[ 'a timeout', q{SET lock_timeout = '9s'; SET statement_timeout = '9s'},
		q{current_setting('lock_timeout') || current_setting('statement_timeout')}, '9s9s', '00' ],
	[ 'search_path', 'SET search_path = pg_catalog', q{current_setting('search_path')}, 'pg_catalog',
		'"$user", public' ],
	[ 'client_encoding', 'SET client_encoding = LATIN1', q{current_setting('client_encoding')}, 'LATIN1',
		sql($node, 'SHOW server_encoding') ],
	[ 'a setting of its own', q{SET my.setting = 'mine'}, q{coalesce(current_setting('my.setting', true), '')},
		'mine', '' ],
	[ 'SET SESSION CHARACTERISTICS',
		'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY',
		q{current_setting('default_transaction_isolation') || current_setting('default_transaction_read_only')},
		'serializableon', 'read committedoff' ],
	[ 'SET ROLE', 'SET ROLE other', 'current_user', 'other', $super ],
	[ 'SET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION other', 'session_user || current_user', 'otherother',
		$super x 2 ],
	[ 'PREPARE', 'PREPARE p AS SELECT 1', '(SELECT count(*) FROM pg_prepared_statements WHERE from_sql)', 1, 0 ],
	[ 'a sequence', q{SELECT nextval('numbers')}, 'public.number_is_known()', 'true', 'false' ],
	[ 'a temporary replication slot', q{SELECT pg_create_physical_replication_slot('temp', true, true)},
		'(SELECT count(*) FROM pg_replication_slots)', 1, 0 ],
);
foreach my $leftover (@leftovers)
{
	my ($name, $leave, $look, $before, $after) = @$leftover;

	sql($node, 'TRUNCATE seen');
	is(outcome("$leave; INSERT INTO public.seen VALUES (($look)::text)"), 'complete|', "$name is left behind");
	is(sql($node, 'SELECT what FROM seen'), $before, "$name: seen in the task");
	is(outcome("TRUNCATE public.seen; INSERT INTO public.seen VALUES (($look)::text)"),
		'complete|', "$name: the next task is fine");
	is(sql($node, 'SELECT what FROM seen'), $after, "$name: not seen in it");
	is(pid_of_last(), $pid, "$name: in the same worker");
}

# the seed of random()
sql($node, 'TRUNCATE seen');
foreach (1 .. 2)
{
	is(outcome('SELECT setseed(0.5)'), 'complete|', 'setseed()');
	is(outcome('INSERT INTO seen VALUES (random())'), 'complete|', 'and the next task');
}
is(pid_of_last(), $pid, 'setseed(): in the same worker');
is(sql($node, 'SELECT count(DISTINCT what) FROM seen'), 2, 'which sees nothing of the seed');

# settings that a procedure commits before it fails
sql($node, <<'EOT');
CREATE PROCEDURE leave_and_fail() LANGUAGE plpgsql AS $$
BEGIN
	SET work_mem = '77kB';
	SET search_path = nowhere;
	SET lock_timeout = 1;
	CREATE TEMP TABLE left_over (a int);
	PERFORM pg_catalog.pg_advisory_lock(42);
	SET SESSION AUTHORIZATION other;
	COMMIT;
	PERFORM 1/0;
END $$;
SELECT tasksched.register_action('leave_and_fail', 'leave_and_fail');
EOT
$id = schedule($node, q{'leave_and_fail'});
wait_for_status($node, $id, 'failed', 'a procedure that fails after a COMMIT');
is(field_of($node, $id, q{error_details->>'sqlstate', setbacks}), '22012|0', 'with its own error');
is(outcome(q{TRUNCATE seen; INSERT INTO public.seen
		SELECT current_setting('work_mem') || current_setting('search_path') || current_setting('lock_timeout')
			|| (to_regclass('pg_temp.left_over') IS NULL) || session_user
			|| (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')}),
	'complete|', 'the next task is fine');
is(sql($node, 'SELECT what FROM seen'),
	'4MB"$user", public0true' . $super . '0', 'and sees nothing of what it had committed');
is(pid_of_last(), $pid, 'in the same worker');

# an error inside logical decoding: the slot is released
sql($node, q{SELECT pg_create_logical_replication_slot('decoded', 'pgoutput')});
is(outcome(q{SELECT pg_logical_slot_get_changes('decoded', NULL, NULL)}) =~ /^failed/,
	1, 'an error in logical decoding');
wait_value($node, q{SELECT active FROM pg_replication_slots}, 'f', 'does not keep its slot');
is(outcome('SELECT 1'), 'complete|', 'the next task is fine');
$pid = pid_of_last();
sql($node, q{SELECT pg_drop_replication_slot('decoded')});

# ---------------------------------------------------------------------------
# What C code can do: leave a subtransaction open, and catch an error in a COMMIT
# ---------------------------------------------------------------------------
SKIP:
{
	my $name = "$PostgreSQL::Test::Utils::tmp_check/c_actions";
	my $include = $node->config_data('--includedir-server');

	append_to_file("$name.c", <<'EOT');
#include "postgres.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(leave_open);
Datum
leave_open(PG_FUNCTION_ARGS)
{
	BeginInternalSubTransaction(NULL);
	BeginInternalSubTransaction(NULL);
	PG_RETURN_VOID();
}
PG_FUNCTION_INFO_V1(fail_inside);
Datum
fail_inside(PG_FUNCTION_ARGS)
{
	leave_open(fcinfo);
	ereport(ERROR, (errcode(ERRCODE_DIVISION_BY_ZERO), errmsg("in a subtransaction")));
}
PG_FUNCTION_INFO_V1(commit_anyhow);
Datum
commit_anyhow(PG_FUNCTION_ARGS)
{
	MemoryContext cxt = CurrentMemoryContext;

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	PG_TRY();
	{
		SPI_commit();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		FlushErrorState();
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_VOID();
}
PG_FUNCTION_INFO_V1(commit_reworded);
Datum
commit_reworded(PG_FUNCTION_ARGS)
{
	MemoryContext cxt = CurrentMemoryContext;

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	PG_TRY();
	{
		SPI_commit();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(cxt);
		edata = CopyErrorData();
		FlushErrorState();
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION), errmsg("it said: %s", edata->message)));
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_VOID();
}
EOT
	skip 'no C compiler', 1
	  if system_log('cc', '-w', '-shared', '-fPIC', "-I$include", '-o', "$name.so", "$name.c") != 0;
	sql($node, <<"EOT");
TRUNCATE seen;
CREATE FUNCTION leave_open() RETURNS void LANGUAGE c AS '$name.so';
CREATE FUNCTION fail_inside() RETURNS void LANGUAGE c AS '$name.so';
CREATE FUNCTION insert_and_fail() RETURNS void LANGUAGE sql AS 'INSERT INTO seen VALUES (1); SELECT fail_inside()';
SELECT tasksched.register_action(a, 'public.' || a) FROM unnest('{leave_open,fail_inside,insert_and_fail}'::text[]) a;
EOT
	foreach my $case ([ 'leave_open', '2D000' ], [ 'fail_inside', '22012' ], [ 'insert_and_fail', '22012' ])
	{
		my ($action, $sqlstate) = @$case;

		$id = schedule($node, "'$action'");
		wait_for_status($node, $id, 'failed', "$action: subtransactions are left open");
		is(field_of($node, $id, q{error_details->>'sqlstate'}), $sqlstate, "$action: its error, or one that says so");
		is(outcome('SELECT 1'), 'complete|', "$action: the next task is fine");
	}
	is(sql($node, 'SELECT count(*) FROM seen'), 0, 'nothing is left of it');
	is(pid_of_last(), $pid, 'all in the same worker');

	# storing the checkpoint of a COMMIT fails; the procedure catches that error, and then
	# fails for another reason
	sql($node, <<"EOT");
CREATE FUNCTION fault_arm(point text, action text) RETURNS void AS 'tasksched', 'tasksched_fault_arm' LANGUAGE C STRICT;
CREATE PROCEDURE commit_anyhow() LANGUAGE c AS '$name.so';
CREATE PROCEDURE fail_later() LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO public.seen VALUES ('before');
	CALL public.commit_anyhow();
	PERFORM 1/0;
END \$\$;
SELECT tasksched.register_action('fail_later', 'public.fail_later'), fault_arm('outcome written', 'error');
EOT
	$id = schedule($node, q{'fail_later'});
	wait_for_status($node, $id, 'failed', 'a COMMIT that fails is caught, and the procedure fails later');
	is(field_of($node, $id, q{launch, error_details->>'sqlstate'}), '1|22012', 'for its own reason');
	is(sql($node, 'SELECT count(*) FROM seen'), 0, 'and nothing is left of it');
	next_is_fine($pid, 'an error that was caught in a COMMIT');

	# an error of tasksched that is raised again with another message still counts as one
	# of tasksched
	sql($node, <<"EOT");
CREATE PROCEDURE commit_reworded() LANGUAGE c AS '$name.so';
CREATE PROCEDURE reworded() LANGUAGE plpgsql AS 'BEGIN CALL public.commit_reworded(); END';
SELECT tasksched.register_action('reworded', 'public.reworded'), fault_arm('outcome written', 'error');
EOT
	$id = schedule($node, q{'reworded'});
	wait_for_status($node, $id, 'complete',
		'an error of ours that is raised again in other words does not fail the task');
	is(field_of($node, $id, 'launch, attempt'), '2|1', 'it was launched again');
	is(outcome('SELECT 1'), 'complete|', 'the next task is fine');
	$pid = pid_of_last();
}

# ---------------------------------------------------------------------------
# What can't be reset requires a new process
# ---------------------------------------------------------------------------
my %available = map { $_ => 1 } split /\n/, sql($node, 'SELECT name FROM pg_available_extensions');

SKIP:
{
	skip 'dblink is not installed', 1 unless $available{dblink};
	sql($node, 'CREATE EXTENSION dblink');
	my $connect = sprintf(q{dblink_connect('mine', $c$%s$c$)}, $node->connstr('postgres') . " user=$super");

	foreach my $open ("SELECT $connect", "DO \$\$ BEGIN PERFORM $connect; PERFORM 1/0; END \$\$")
	{
		is(outcome($open) =~ s/\|.*//r,
			$open =~ /^DO/ ? 'failed' : 'complete', 'an action opens a connection of dblink');
		is(outcome(qq{TRUNCATE seen;
				INSERT INTO seen VALUES (coalesce(dblink_get_connections()::text, 'none') || $connect)}),
			'complete|', 'so does the next one');
		is(sql($node, 'SELECT what FROM seen'), 'noneOK', 'which sees nothing of it');
	}
	is(outcome('SELECT 1'), 'complete|', 'and another');
	is(outcome('SELECT 1'), 'complete|', 'and one more');
	$pid = pid_of_last();
	next_is_fine($pid, 'a task without dblink');
}

SKIP:
{
	skip 'PL/Perl is not installed', 1 unless $available{plperl};
	sql($node, <<'EOT');
CREATE EXTENSION plperl;
CREATE FUNCTION count_up() RETURNS int LANGUAGE plperl AS $$ return ++$_SHARED{n}; $$;
EOT
	foreach (1 .. 2)
	{
		is(outcome('TRUNCATE seen; INSERT INTO seen VALUES (count_up() + 10 * count_up())'),
			'complete|', 'an action uses a global variable of PL/Perl');
		is(sql($node, 'SELECT what FROM seen'), '21', 'which the next one does not see');
	}
}

# ---------------------------------------------------------------------------
# Other encodings
# ---------------------------------------------------------------------------
foreach my $case ([ 'UTF8', 'chr(8364)' ], [ 'LATIN1', 'chr(233)' ], [ 'SQL_ASCII', q{E'\\351'} ])
{
	my ($encoding, $letter) = @$case;
	my $db = lc $encoding;

	sql($node, "CREATE DATABASE $db ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	create_fixtures($node, $db);
	is(outcome('SELECT 1', db => $db), 'complete|', "$encoding: a task runs");
	my $worker = pid_of_last($db);
	is(outcome(qq{DO \$\$ BEGIN PERFORM tasksched.report_progress(note => repeat($letter, 200));
			RAISE EXCEPTION USING MESSAGE = repeat($letter, 300000), DETAIL = $letter; END \$\$},
		db => $db), 'failed|P0001', "$encoding: an error beyond ASCII");
	is(field_of($node, $last, "error = repeat($letter, 300000) AND error_details->>'detail' = $letter", $db),
		't', "$encoding: is kept as it is");
	next_is_fine($worker, $encoding, db => $db);
}

# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------
sql($node, <<'EOT');
CREATE FUNCTION memory_of(part text) RETURNS bigint LANGUAGE sql AS $$
	SELECT coalesce(sum(total_bytes), 0)::bigint FROM pg_backend_memory_contexts WHERE name LIKE part $$;
CREATE FUNCTION staging(task tasksched.task) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 300 LOOP
		PERFORM tasksched.update_task(task.id, result => to_jsonb(repeat('x', 1000000)), error => repeat('y', 1000000));
		BEGIN
			PERFORM tasksched.update_task(task.id, result => to_jsonb(repeat('z', 1000000)));
			IF i % 2 = 0 THEN PERFORM 1/0; END IF;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
	RETURN to_jsonb(public.memory_of('tasksched launch'));
END $$;
CREATE PROCEDURE checkpoints(task tasksched.task, INOUT result jsonb) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 100 LOOP
		PERFORM tasksched.update_task(task.id, result => to_jsonb(repeat('x', 1000000)));
		IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
	END LOOP;
	result := to_jsonb(public.memory_of('tasksched launch'));
END $$;
SELECT tasksched.register_action(a, 'public.' || a) FROM unnest('{staging,checkpoints}'::text[]) a;
EOT
foreach my $action ('staging', 'checkpoints')
{
	$id = schedule($node, "'$action'");
	wait_for_status($node, $id, 'complete', "$action: a megabyte, hundreds of times");
	cmp_ok(field_of($node, $id, 'result'), '<', 8_000_000, "$action: takes a few megabytes of memory");
}

# what a procedure returns after a COMMIT belongs to no transaction, however large it is
sql($node, <<'EOT');
CREATE PROCEDURE commit_and_return(INOUT result jsonb) LANGUAGE plpgsql AS $$
BEGIN
	COMMIT;
	result := to_jsonb(repeat('x', 10000000));
END $$;
SELECT tasksched.register_action('commit_and_return', 'public.commit_and_return');
EOT
my $position = log_position($node);
$id = schedule($node, q{'commit_and_return'});
wait_for_status($node, $id, 'complete', 'a procedure that returns ten megabytes after a COMMIT');
is(field_of($node, $id, 'length(result::text)'), 10000002, 'which are stored');
unlike(log_since($node, $position), qr/WARNING/, 'and nothing leaks');
# a deferred trigger belongs to the action
sql($node, <<'EOT');
CREATE TABLE deferred (id uuid);
CREATE FUNCTION stage_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tasksched.update_task(NEW.id, result => '"late"');
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
	EXECUTE FUNCTION stage_late();
EOT
is(outcome(q{INSERT INTO deferred SELECT id FROM tasksched.current_task();
		SELECT tasksched.update_task(id, result => '"early"') FROM tasksched.current_task()}),
	'complete|', 'a deferred trigger stages a result');
is(field_of($node, $last, 'result'), '"late"', 'which is stored');

sub memory
{
	is(outcome(q{TRUNCATE seen; INSERT INTO seen VALUES (memory_of('%'))}), 'complete|', 'the memory of the worker');
	return sql($node, 'SELECT what FROM seen');
}
memory();
my $before = memory();
$pid = pid_of_last();
sql($node, q{SELECT tasksched.schedule_tasks('raising',
	array_fill(jsonb_build_object('message', repeat('x', 10000)), '{300}'))});
wait_value($node,
	q{SELECT count(*) FROM tasksched.tasks WHERE action = 'raising' AND status = 'failed' AND length(error) = 10000},
	300, 'hundreds of errors');
my $after = memory();
is(pid_of_last(), $pid, 'are all of one worker');
cmp_ok($after, '<', $before + 500_000, 'which does not grow by them');

# ---------------------------------------------------------------------------
# No memory, and no room for the tables.  Limits of the processes, which can be set
# and lifted from outside, simulate a machine that is full: a file that may not grow
# any more gives the same error as a full disk.
# ---------------------------------------------------------------------------
SKIP:
{
	skip 'no prlimit', 1 if system_log('prlimit', '--version') != 0;

	sub limit
	{
		my ($process, $what, $bytes) = @_;

		system_or_bail('prlimit', '--pid', $process, "--$what=$bytes:");
		return;
	}

	my ($kilobytes) = slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+) kB/m;
	# a sanitizer reserves terabytes of addresses
	if ($kilobytes < 1_000_000_000)
	{
		limit($pid, 'as', $kilobytes * 1024 + 100_000_000);
		fails_with($pid, q{SELECT length(repeat('x', 300000000))}, '53200', 'out of memory');
		fails_with($pid, q{DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 1000000); END $$}, 'P0001',
			'a long message while memory is short');
		limit($pid, 'as', 'unlimited');
	}

	# a full disk, for results and parameters that are large
	sql($node, <<'EOT');
ALTER TABLE tasksched.finished ALTER result SET STORAGE EXTERNAL;
ALTER TABLE tasksched.live ALTER params SET STORAGE EXTERNAL;
CREATE FUNCTION large(task tasksched.task, first_launch boolean) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.leave_row(task, first_launch);
	RETURN to_jsonb(repeat('x', 30000000));
END $$;
SELECT tasksched.register_action('large', 'large');
EOT
	my $full = 24 * 1024 * 1024 + 4096;
	my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	my @processes = ($postmaster, scheduler_pid($node), pids_of($node, 'tasksched worker'));
	my $position = log_position($node);

	limit($_, 'fsize', $full) foreach @processes;
	# the server has an SQLSTATE for a full disk; for the limit it has none from 17 on
	my (undef, $no_room) = try_sql($node,
		q{SELECT tasksched.schedule_task('note', params => to_jsonb(repeat('x', 30000000)))});
	like($no_room, qr/ERROR:  53100:|ERROR:  XX000: could not extend file .*: File too large/,
		'disk full: schedule_task fails');
	$id = schedule($node, q{'large'});
	wait_for_log($node, qr/(53100 ERROR|File too large).*could not store the outcome of task \Q$id\E/s, $position,
		'disk full: the outcome of a task cannot be stored');
	is(outcome('SELECT 1'), 'complete|', 'tasks for which there is room run');
	wait_value($node, "SELECT status, setbacks > 0, finished_at FROM tasksched.tasks WHERE id = '$id'", 'scheduled|t|',
		'it is to be launched again');
	limit($_, 'fsize', 'unlimited') foreach ($postmaster, scheduler_pid($node), pids_of($node, 'tasksched worker'));
	wait_for_status($node, $id, 'complete', 'and completes as soon as there is room');
	is(field_of($node, $id, 'length(result::text), attempt, crashes'),
		'30000002|1|0', 'with its result, and no attempt or crash counted');
	is(sql($node, "SELECT count(*) FROM runs WHERE id = '$id'"), 1, 'and its effects once');

	# This comes after the limit on the size of files, since it makes the server's log
	# long.  Some of these errors are too long for the action, some only for the log,
	# and some for tasksched's own statements.  In that last case the task is launched
	# again.
	my $limited = 0;
	for (my $length = 1_000_000; $kilobytes < 1_000_000_000 && $length < 5_000_000; $length += 500_000)
	{
		is(outcome('SELECT 1'), 'complete|', 'a worker is there');
		my $worker = pid_of_last();
		if ($worker != $limited)
		{
			my ($size) = slurp_file("/proc/$worker/status") =~ /^VmSize:\s+(\d+) kB/m;

			limit($worker, 'as', $size * 1024 + 30_000_000);
			$limited = $worker;
		}
		like(outcome(qq{DO \$\$ BEGIN RAISE EXCEPTION USING
				MESSAGE = repeat('m', $length), DETAIL = repeat('d', $length), HINT = repeat('h', $length); END \$\$}),
			qr/^failed\|(P0001|53200)$/, "an error of three times $length bytes while there are 30 megabytes");
		is(field_of($node, $last, 'crashes'), 0, 'is no crash');
	}
}

$session->quit;
$gate->quit;
$node->stop;
check_log($node, except => qr/could not extend file .*: File too large/);
done_testing();
