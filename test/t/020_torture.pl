# Torture: for some minutes, several clients schedule, cancel, update, delete and
# retry tasks of many kinds in two databases.  Meanwhile tasksched's processes are
# terminated, cancelled and killed, the server is restarted, crashed and replaced by
# its standby, functions are dropped and settings changed.  At the end all tasks are
# left to finish.  Then the tables must agree with what every client was told, and
# with what the actions left in a ledger in their own transactions.
#
#	TORTURE_MINUTES (1), TORTURE_SEED (1), TORTURE_CLIENTS (3)
#
# The seed determines what is done in which order, not when.
#
# Replication is synchronous, so a promotion must not lose anything that a client was
# told.  A client that was not told whether its transaction committed (the connection
# was lost) accepts both outcomes, but nothing in between.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use IPC::Run;
use List::Util qw(sum0 shuffle);
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $minutes = $ENV{TORTURE_MINUTES} || 1;
my $seed = $ENV{TORTURE_SEED} || 1;
my $clients = $ENV{TORTURE_CLIENTS} || 3;
my $end = 0;	# when the faults end

my @databases = ('postgres', 'other');
my @roles = ('boss', 'clerk', 'guest');	# a superuser, one with and one without LOGIN
my $max_crashes = 3;

my $dir = $PostgreSQL::Test::Utils::log_path . '/torture';	# with the logs, to be looked at
mkdir $dir or die $!;
my %count;	# how often each thing was done, by its name
my ($primary, $standby);
my $nnodes = 0;
my @logs;

# ---------------------------------------------------------------------------
# Choices
# ---------------------------------------------------------------------------

sub one_of { return $_[ int(rand(@_)) ]; }

# Choose one of the keys of a hash whose values are weights
sub weighted
{
	my (%weights) = @_;
	my $at = rand(sum0(values %weights));

	foreach my $name (sort keys %weights)
	{
		return $name if ($at -= $weights{$name}) < 0;
	}
	die;
}

# ---------------------------------------------------------------------------
# Talking to the current primary
# ---------------------------------------------------------------------------

sub set_current
{
	my ($node) = @_;

	append_to_file("$dir/current.new", $node->connstr);
	rename("$dir/current.new", "$dir/current") or die $!;
	return;
}

# Run SQL.  Returns whether it was carried out (yes, no, unknown if the connection
# was lost, or hung), its output, and the error.
sub ask
{
	my ($db, $sql) = @_;
	my $connstr = slurp_file("$dir/current");
	my ($out, $err) = ('', '');
	my $done = eval {
		IPC::Run::run(
			[
				'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-F', "\t",
				'-d', "$connstr dbname=$db options='-c statement_timeout=100s'"
			],
			'<', \$sql, '>', \$out, '2>', \$err, IPC::Run::timeout(200));
		1;
	};
	my $status = $done ? $? >> 8 : -1;

	chomp $out;
	return ('hung', '', "hung: $sql") if !$done && $@ =~ /timeout/;
	return ('yes', $out, $err) if $status == 0 && $err !~ /canceling (the )?wait/;
	return ('no', '', $err) if $err =~ /^psql: error: connection to server/;
	return ('no', '', $err) if $status == 3 && $err !~ /server closed|connection to server was lost|FATAL/;
	return ('unknown', '', $err);
}

# Run SQL that must succeed eventually; it may be repeated
sub must
{
	my ($db, $sql) = @_;
	my $start = time;

	for (;;)
	{
		my ($done, $out, $err) = ask($db, $sql);

		return $out if $done eq 'yes';
		die "could not do \"$sql\": $err" if time - $start > $TaskschedTest::deadline_s;
		usleep(100_000);
	}
}

# ---------------------------------------------------------------------------
# A client: a process that keeps a log of what it tries and what it is told
# ---------------------------------------------------------------------------
#
# Lines of the log, separated by tabs:
#	intent KEY KIND N DB	a task will be scheduled
#	exists KEY yes|no		it was, or was not
#	try WHAT KEY			something will be done to a task
#	did WHAT KEY STATUS		it was; with the status before
#	count WHAT
#	bad MESSAGE				something that must not happen

my ($log, $client_name, $serial, %own);

sub note_down
{
	print $log join("\t", @_), "\n";
	return;
}

# The SQL of a new task's arguments; notes the intent
sub new_task
{
	my ($db, $kind, $n) = @_;
	my $key = "$client_name-" . ++$serial;
	my $delay = one_of(0, 0, 0, 0.1, 0.5, 2);
	my $params = sprintf('{"key": "%s", "n": %d, "s": %.2f}', $key, $n, rand(0.4));

	note_down('intent', $key, $kind, $n, $db);
	push @{ $own{$db} }, $key;
	return ($key, "'$kind', '$key', params => '$params', delay => '$delay s'");
}

sub new_kind
{
	my $kind = weighted(note => 20, nap => 10, steps => 12, stages => 12, raise => 6, self_term => 4,
		self_cancel => 3, child => 8, swap => 8, by_params => 8, long => 2);

	return ($kind, 1 + int(rand(6)));
}

sub note_outcome
{
	my ($done, @keys) = @_;

	note_down('bad', "a statement hung") if $done eq 'hung';
	if ($done eq 'yes' || $done eq 'no')
	{
		note_down('exists', $_, $done) foreach @keys;
	}
	else
	{
		note_down('count', 'outcome unknown');
	}
	return;
}

my @prepared;	# [gid, db, COMMIT or ROLLBACK, whether PREPARE was confirmed, what follows]

# Run a statement in a prepared transaction, to be ended later.  $then is called with
# whether it was carried out, once that is known.
sub prepare
{
	my ($db, $role, $sql, $end, $then) = @_;
	my $gid = "$client_name-gid-" . ++$serial;
	my ($done) = ask($db, "SET ROLE $role; BEGIN; $sql; PREPARE TRANSACTION '$gid';");

	note_down('count', '2PC');
	return $then->('no') if $done eq 'no';
	push @prepared, [ $gid, $db, $end, $done, $then ];
	return;
}

# End a prepared transaction; false if that could not be done yet
sub end_prepared
{
	my ($gid, $db, $end, $confirmed, $then) = @_;
	my ($done, undef, $err) = ask($db, "$end PREPARED '$gid';");

	if ($done eq 'no' && $err =~ /does not exist/)
	{
		# ended earlier, when the client was not told, or never prepared
		$then->($end eq 'ROLLBACK' ? 'no' : $confirmed eq 'yes' ? 'yes' : 'unknown');
		return 1;
	}
	return 0 if $done ne 'yes';
	$then->($end eq 'COMMIT' ? 'yes' : 'no');
	return 1;
}

# The id and the key of an existing task, no matter which client scheduled it
sub any_task
{
	my ($db, $where) = @_;
	my $salt = int(rand(1_000_000));
	my (undef, $out) = ask($db, <<EOT);
SELECT id, resource_id FROM tasksched.tasks WHERE $where AND resource_id IS NOT NULL
ORDER BY hashtext(id::text || '$salt') LIMIT 1;
EOT

	return split /\t/, $out;
}

# What a client may do; each gets a database and a role
my %ops = (
	schedule => sub {
		my ($db, $role) = @_;
		my ($key, $args) = new_task($db, new_kind());
		my ($done) = ask($db, "SET ROLE $role; SELECT tasksched.schedule_task($args);");

		note_outcome($done, $key);
	},
	batch => sub {
		my ($db, $role) = @_;
		my ($kind, $n) = new_kind();
		my @keys = map { (new_task($db, $kind, $n))[0] } 1 .. 2 + int(rand(20));
		my $params = join(', ', map { qq('{"key": "$_", "n": $n, "s": 0.02}') } @keys);
		my $ids = join(', ', map { "'$_'" } @keys);
		my ($done) = ask($db,
			"SET ROLE $role; "
			  . "SELECT tasksched.schedule_tasks('$kind', ARRAY[$params]::jsonb[], resource_ids => ARRAY[$ids]);");

		note_outcome($done, @keys);
		note_down('count', 'tasks in batches') foreach @keys;
	},
	batch_of_objects => sub {
		my ($db, $role) = @_;
		my (@keys, @objects);

		foreach (1 .. 2 + int(rand(6)))
		{
			my ($kind, $n) = new_kind();
			my ($key) = new_task($db, $kind, $n);

			push @keys, $key;
			push @objects,
				qq({"action": "$kind", "resource_id": "$key", "params": {"key": "$key", "n": $n, "s": 0.02}});
		}
		my ($done) = ask($db,
			"SET ROLE $role; SELECT tasksched.schedule_tasks('[" . join(', ', @objects) . "]'::jsonb);");

		note_outcome($done, @keys);
		note_down('count', 'tasks in batches') foreach @keys;
	},
	roll_back => sub {
		my ($db, $role) = @_;
		my ($key, $args) = new_task($db, new_kind());

		ask($db, "SET ROLE $role; BEGIN; SELECT tasksched.schedule_task($args); ROLLBACK;");
		note_outcome('no', $key);
	},
	savepoint => sub {
		my ($db, $role) = @_;
		my ($key1, $args1) = new_task($db, new_kind());
		my ($key2, $args2) = new_task($db, new_kind());
		my ($key3, $args3) = new_task($db, new_kind());
		my ($done) = ask($db, <<EOT);
SET ROLE $role; BEGIN; SELECT tasksched.schedule_task($args1);
SAVEPOINT a; SELECT tasksched.schedule_task($args2); ROLLBACK TO a;
SAVEPOINT b; SELECT tasksched.schedule_task($args3); RELEASE b; COMMIT;
EOT

		note_outcome($done, $key1, $key3);
		note_outcome('no', $key2);
	},
	schedule_2pc => sub {
		my ($db, $role) = @_;
		my ($key, $args) = new_task($db, new_kind());

		prepare($db, $role, "SELECT tasksched.schedule_task($args)", one_of('COMMIT', 'COMMIT', 'ROLLBACK'),
			sub { note_outcome($_[0], $key) });
	},
	cancel => sub {
		my ($db) = @_;
		my $how = one_of('at once', 'at once', 'commit later', 'roll back', '2PC', '2PC rolled back');
		my ($id, $key) = any_task($db, q{status IN ('scheduled', 'active')});
		my $sql = "SELECT tasksched.cancel_task('" . ($id // '') . "')";
		my $then = sub {
			my ($done, $answer) = @_;

			note_down('did', 'cancel', $key) if $done eq 'yes' && ($answer // '') eq 't';
			note_down('bad', 'a cancel hung') if $done eq 'hung';
		};

		return unless defined $key;
		note_down('try', 'cancel', $key) unless $how =~ /roll/;
		if ($how =~ /2PC/)
		{
			# the answer is in the first half, so it is not known here
			prepare($db, 'boss', $sql, $how eq '2PC' ? 'COMMIT' : 'ROLLBACK', sub { });
			return;
		}
		$sql = "BEGIN; $sql; SELECT pg_sleep(0.2)::text FROM generate_series(1, 0); "
		  . "DO 'BEGIN PERFORM pg_sleep(0.2); END'; "
		  . ($how eq 'roll back' ? 'ROLLBACK' : 'COMMIT')
		  unless $how eq 'at once';
		my ($done, $answer) = ask($db, "$sql;");

		$then->($done, $answer) unless $how eq 'roll back';
	},
	update => sub {
		my ($db) = @_;
		my $delay = one_of(0, 0.2, 1);
		my ($id, $key) = any_task($db, q{status = 'scheduled'});

		ask($db, "SELECT tasksched.update_task('$id', run_at => now() + '$delay s');") if defined $key;
	},
	delete => sub {
		my ($db) = @_;
		my ($id, $key) = any_task($db, q{status <> 'active'});

		return unless defined $key;
		note_down('try', 'delete', $key);
		my ($done, $answer) = ask($db, "SELECT tasksched.delete_task('$id');");
		note_down('did', 'delete', $key) if $done eq 'yes' && $answer eq 't';
	},
	# only the client's own tasks, so that the status read before is the one that is retried
	retry => sub {
		my ($db) = @_;
		my $key = $own{$db} && one_of(@{ $own{$db} });

		return unless defined $key;
		note_down('try', 'retry', $key);
		my ($done, $answer) = ask($db, <<EOT);
SELECT t.status, tasksched.retry_task(t.id) FROM tasksched.tasks t
WHERE resource_id = '$key' AND status IN ('complete', 'failed', 'cancelled');
EOT
		note_down('did', 'retry', $key, $answer =~ /^(\w+)\tt$/ ? $1 : 'none') if $done eq 'yes' || $done eq 'no';
	},
	wait => sub {
		my ($db) = @_;
		my ($id) = any_task($db, 'true');

		ask($db, "SELECT status FROM tasksched.wait_for_task('$id', '0.2 s');") if defined $id;
	},
	look => sub {
		my ($db, $role) = @_;

		ask($db, <<EOT);
SET ROLE $role;
SELECT count(*) FROM tasksched.get_tasks(statuses => '{active,failed}', max_rows => 50);
SELECT * FROM tasksched.running_tasks; SELECT * FROM tasksched.status;
SELECT * FROM tasksched.blocked_tasks LIMIT 10; SELECT * FROM tasksched.stuck_tasks;
EOT
	});

my %op_weights = (schedule => 40, batch => 6, batch_of_objects => 4, roll_back => 5, savepoint => 5, schedule_2pc => 5,
	cancel => 14, update => 6, delete => 6, retry => 8, wait => 4, look => 3);

sub run_client
{
	my ($number, $parent) = @_;

	srand($seed * 1000 + $number);
	$client_name = "c$number";
	$serial = 0;
	open $log, '>>', "$dir/client$number" or die $!;
	$log->autoflush(1);
	until (-e "$dir/stop" || getppid() != $parent)
	{
		my $op = weighted(%op_weights);

		$ops{$op}->(one_of(@databases), one_of(@roles));
		note_down('count', $op);
		end_prepared(@{ $prepared[0] }) && shift @prepared if @prepared > int(rand(4));

		# let the workers catch up
		my (undef, $live) = ask($databases[0], 'SELECT count(*) FROM tasksched.live;') if rand() < 0.1;
		usleep(($live || 0) > 400 ? 1_000_000 : rand(60_000));	# the pace of the scenario
	}
	my $deadline = time + $TaskschedTest::deadline_s;
	while (@prepared && getppid() == $parent)
	{
		end_prepared(@{ $prepared[0] }) && shift @prepared;
		die 'prepared transactions can not be ended' if time > $deadline;
	}
	return;
}

sub start_client
{
	my ($number) = @_;
	my $parent = $$;
	my $pid = fork() // die $!;

	return $pid if $pid;
	eval { run_client($number, $parent); 1 } or note_down('bad', "client $number: $@");
	close $log;
	POSIX::_exit(0);	# skips the END blocks, which stop the servers
}

# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------

my $fixtures = <<'EOT';
CREATE EXTENSION tasksched;
CREATE TABLE ledger (
	n bigserial PRIMARY KEY, key text NOT NULL, task uuid NOT NULL, launch int NOT NULL, step int NOT NULL,
	role name DEFAULT current_user);	-- step 0: the action has returned
GRANT SELECT, INSERT ON ledger TO PUBLIC;
GRANT USAGE ON SEQUENCE ledger_n_seq TO PUBLIC;

CREATE FUNCTION enter(task tasksched.task, step int DEFAULT 0) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ledger (key, task, launch, step) VALUES (task.resource_id, task.id, task.launch, step);
END $$;
CREATE FUNCTION note(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
END $$;
CREATE FUNCTION nap(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	PERFORM pg_sleep((task.params ->> 's')::float8);	-- the action naps
END $$;
CREATE FUNCTION long(task tasksched.task) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	PERFORM pg_sleep(2);	-- the action naps
END $$;
-- a procedure of n steps, each with its checkpoint
CREATE PROCEDURE steps(task tasksched.task, first_launch boolean) LANGUAGE plpgsql AS $$
DECLARE
	done int := coalesce((task.result ->> 'step')::int, 0);
BEGIN
	FOR step IN done + 1 .. (task.params ->> 'n')::int LOOP
		PERFORM public.enter(task, step);
		PERFORM tasksched.update_task(task.id, result => jsonb_build_object('step', step));
		COMMIT;
		PERFORM pg_sleep((task.params ->> 's')::float8 / 5);	-- the action naps
	END LOOP;
	PERFORM public.enter(task);
END $$;
-- a function of n stages, which go on in different ways
CREATE FUNCTION stages(task tasksched.task, first_launch boolean) RETURNS tasksched.outcome LANGUAGE plpgsql AS $$
DECLARE
	step int := coalesce((task.result ->> 'step')::int, 0) + 1;
	result jsonb := jsonb_build_object('step', step);
	n int := (task.params ->> 'n')::int;
BEGIN
	IF step > n THEN
		PERFORM public.enter(task);
		RETURN tasksched.complete();
	END IF;
	PERFORM public.enter(task, step);
	IF step % 3 = 0 THEN
		RETURN tasksched.proceed(result);
	ELSIF step % 3 = 1 THEN
		RETURN tasksched.reschedule(result => result, delay => '0.1 s');
	END IF;
	PERFORM tasksched.update_task(task.id, status => 'scheduled', result => result);
	RETURN NULL;
END $$;
CREATE FUNCTION raise(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	RAISE EXCEPTION 'as it should be';
END $$;
-- these end their processes, in the first launch or in as many launches as n says
CREATE FUNCTION self_term(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	IF first_launch THEN
		PERFORM pg_terminate_backend(pg_backend_pid());
	END IF;
END $$;
CREATE FUNCTION self_cancel(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	PERFORM pg_cancel_backend(pg_backend_pid());
	PERFORM pg_sleep(10);	-- the action is cancelled here
END $$;
CREATE FUNCTION self_kill(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	IF task.crashes < (task.params ->> 'n')::int THEN
		EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -KILL ' || pg_backend_pid());
	END IF;
END $$;
-- schedules another task
CREATE FUNCTION child(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
	PERFORM tasksched.schedule_task('note', format('child:%s:%s', task.id, task.launch));
END $$;
CREATE FUNCTION by_params(params jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	task tasksched.task;
BEGIN
	SELECT * INTO task FROM tasksched.current_task();
	PERFORM public.enter(task);
	RETURN params;
END $$;
EOT

# This function is dropped and created again while the test runs
my $swap = <<'EOT';
CREATE OR REPLACE FUNCTION swap(task tasksched.task, first_launch boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.enter(task);
END $$;
EOT

my @kinds = qw(note nap long steps stages raise self_term self_cancel self_kill child by_params swap);

sub create_primary
{
	$primary = new_node('n' . ++$nnodes, streaming => 1, extension => 0, conf => <<EOT);
max_connections = 60
max_worker_processes = 24
max_prepared_transactions = 60
wal_keep_size = 512MB
max_wal_size = 1GB
shared_buffers = 64MB
wal_retrieve_retry_interval = 100ms
log_min_messages = warning
tasksched.keep_finished_tasks = -1
tasksched.reconcile_interval = 2s
tasksched.max_crashes = $max_crashes
EOT
	push @logs, $primary;
	set_current($primary);
	sql($primary, 'CREATE DATABASE other');
	sql($primary, 'CREATE ROLE boss SUPERUSER LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE guest NOLOGIN');
	foreach my $db (@databases)
	{
		my $list = join(',', @kinds);

		sql($primary, $fixtures . $swap, $db);
		sql($primary, "SELECT tasksched.register_action(a, 'public.' || a) FROM unnest('{$list}'::text[]) a;", $db);
		sql($primary, "SELECT tasksched.grant_usage(r) FROM unnest('{boss,clerk,guest}'::text[]) r;", $db);
	}
	return;
}

# Create a new standby, which is a synchronous one from now on
sub create_standby
{
	my $name = 'n' . ++$nnodes;
	my $backup = $primary->backup_dir . "/$name";
	my $start = time;

	# the server may crash meanwhile
	until (PostgreSQL::Test::Utils::run_log(
			[ 'pg_basebackup', '-D', $backup, '-d', $primary->connstr('postgres'), '--checkpoint=fast', '--no-sync' ]))
	{
		PostgreSQL::Test::Utils::system_log('rm', '-rf', $backup);
		die 'no base backup can be made' if time - $start > $TaskschedTest::deadline_s;
		usleep(200_000);
	}
	$standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	PostgreSQL::Test::Utils::system_log('rm', '-rf', $backup);
	$standby->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
	$standby->start;
	push @logs, $standby;

	$primary->append_conf('postgresql.conf', "synchronous_standby_names = '$name'\n");
	$primary->reload;
	return;
}

# Wait until the standby has everything that a client was told, and will have it from
# then on
sub standby_is_synchronous
{
	my $start = time;

	# the checkpointer makes the setting effective
	ask('postgres', 'CHECKPOINT;');
	my $lsn = must('postgres', 'SELECT pg_current_wal_insert_lsn();');

	until ((ask('postgres', qq{SELECT count(*) FROM pg_stat_replication
					WHERE sync_state = 'sync' AND replay_lsn >= '$lsn';}))[1] eq '1')
	{
		die 'the standby does not follow' if time - $start > $TaskschedTest::deadline_s;
		usleep(100_000);
	}
	return;
}

# ---------------------------------------------------------------------------
# Faults
# ---------------------------------------------------------------------------

# The processes of tasksched: [pid, backend_type]
sub our_processes
{
	my (undef, $out) = ask('postgres',
		q{SELECT pid, backend_type FROM pg_stat_activity WHERE backend_type LIKE 'tasksched%' ORDER BY pid;});

	return map { [ split /\t/ ] } split /\n/, $out;
}

# Hit one of them, of a random kind
sub hit
{
	my ($verb, $how) = @_;
	my $type = one_of('launcher', 'scheduler', 'worker', 'worker', 'worker');
	my $number = rand();
	my @processes = grep { $_->[1] eq "tasksched $type" } our_processes();
	my $process = $processes[ $number * @processes ];

	return unless $process;
	$how->($process->[0]);
	$count{"$verb of a $type"}++;
	return;
}

sub sql_hit
{
	my ($function) = @_;

	hit($function, sub { ask('postgres', "SELECT $function($_[0]);") });
	return;
}

sub kill_primary
{
	$primary->kill9;
	my $start = time;

	# its children hold the shared memory until they notice its death
	until ($primary->start(fail_ok => 1))
	{
		$primary->{_pid} = undef;	# start() has read the old file
		die 'the server does not start' if time - $start > $TaskschedTest::deadline_s;
		usleep(100_000);
	}
	return;
}

sub promote
{
	my $old = $primary;

	standby_is_synchronous();
	$old->stop(one_of('immediate', 'fast'));
	$standby->promote;
	$primary = $standby;
	set_current($primary);
	PostgreSQL::Test::Utils::system_log('rm', '-rf', $old->data_dir);
	create_standby();
	return;
}

# Restart the server; other faults wait meanwhile
sub restart
{
	my ($mode) = @_;

	$primary->stop($mode);
	$primary->start;
	return;
}

sub set_for_a_while
{
	my ($setting, $value, $normal) = @_;

	$primary->append_conf('postgresql.conf', "$setting = $value\n");
	$primary->reload;
	usleep(rand(1_000_000)) if defined $normal;	# the scenario
	return unless defined $normal;
	$primary->append_conf('postgresql.conf', "$setting = $normal\n");
	$primary->reload;
	return;
}

sub swap_function
{
	my $db = one_of(@databases);

	must($db, 'DROP FUNCTION IF EXISTS swap(tasksched.task, boolean);');
	usleep(rand(800_000));	# the scenario
	must($db, $swap);
	return;
}

# A task that kills its process, up to as often as makes it fail
sub poison
{
	my $db = one_of(@databases);
	my ($key, $args) = new_task($db, 'self_kill', one_of(1, 2, $max_crashes));
	my ($done) = ask($db, "SELECT tasksched.schedule_task($args);");

	note_outcome($done, $key);
	return;
}

my %faults = (
	terminate => [ 8, sub { sql_hit('pg_terminate_backend') } ],
	cancel => [ 4, sub { sql_hit('pg_cancel_backend') } ],
	kill => [ 2, sub { hit('SIGKILL', sub { kill('KILL', $_[0]) }) } ],
	poison => [ 2, \&poison ],
	'restart (fast)' => [ 1, sub { restart('fast') } ],
	'restart (immediate)' => [ 1, sub { restart('immediate') } ],
	'kill of the postmaster' => [ 1, \&kill_primary ],
	promotion => [ 1, \&promote ],
	'DROP/CREATE FUNCTION' => [ 3, \&swap_function ],
	'replace function' => [ 1, sub { must(one_of(@databases), $swap) } ],
	'max_running_tasks' => [ 2, sub { set_for_a_while('tasksched.max_running_tasks', one_of(1, 2, 5, 10)) } ],
	'worker_idle_timeout' => [ 2,
		sub { set_for_a_while('tasksched.worker_idle_timeout', one_of(q{0}, q{'50ms'}, q{'1min'})) } ],
	'scheduler_idle_timeout' => [ 1, sub { set_for_a_while('tasksched.scheduler_idle_timeout', one_of(1, 600)) } ],
	'reconcile_interval' => [ 1, sub { set_for_a_while('tasksched.reconcile_interval', one_of(q{'300ms'}, q{'3s'})) } ],
	'enabled = off' => [ 1, sub { set_for_a_while('tasksched.enabled', 'off', 'on') } ],
	pause => [ 1, sub {
			my $db = one_of(@databases);

			ask($db, 'SELECT tasksched.pause_scheduler();');
			usleep(rand(800_000));	# the scenario
			must($db, 'SELECT tasksched.resume_scheduler();');
		} ],
	'VACUUM FULL' => [ 1, sub { ask(one_of(@databases), 'VACUUM FULL tasksched.live;') } ],
	'lock of the table' => [ 1, sub {
			ask(one_of(@databases), q{BEGIN; LOCK TABLE tasksched.live;
				DO 'BEGIN PERFORM pg_sleep(0.5); END'; COMMIT;});
		} ]);

# All faults in a random order, again and again
sub run_faults
{
	my @deck;

	while (time < $end)
	{
		@deck = shuffle(map { ($_) x $faults{$_}->[0] } sort keys %faults) unless @deck;
		my $fault = shift @deck;

		note("fault: $fault");
		$faults{$fault}->[1]->();
		$count{"fault: $fault"}++;
		usleep(rand(1_200_000));	# the pace of the scenario
		must('postgres', 'SELECT 1;');
	}
	return;
}

# ---------------------------------------------------------------------------
# The results
# ---------------------------------------------------------------------------

my (%model, @bad);

sub bad
{
	my ($message) = @_;

	push @bad, $message;
	return;
}

sub read_logs
{
	my @lines = map { [ split /\t/ ] } map { split /\n/, slurp_file($_) } @_;

	# one client changes the tasks of another, so the intents come first
	foreach ((grep { $_->[0] eq 'intent' } @lines), (grep { $_->[0] ne 'intent' } @lines))
	{
		my ($what, @f) = @$_;

		if ($what eq 'intent')
		{
			$model{ $f[0] } = { key => $f[0], kind => $f[1], n => $f[2], db => $f[3], min => 0, max => 1,
				completions_min => 0, completions_max => 0 };
		}
		elsif ($what eq 'exists')
		{
			$model{ $f[0] }->{min} = $model{ $f[0] }->{max} = $f[1] eq 'yes' ? 1 : 0;
		}
		elsif ($what eq 'try' || $what eq 'did')
		{
			read_deed($what, @f);
		}
		elsif ($what eq 'count') { $count{ $f[0] }++ }
		elsif ($what eq 'bad') { bad($f[0]) }
		else { die "what is $what?" }
	}
	return;
}

sub read_deed
{
	my ($what, $deed, $key, $status) = @_;
	my $m = $model{$key} //= { key => $key, completions_min => 0, completions_max => 0 };

	$m->{"${deed}_$what"}++;
	$count{"$deed done"}++ if $what eq 'did';
	if ($deed eq 'retry')
	{
		# one more completion that must, or may, be in the ledger
		$m->{completions_max}++ if $what eq 'try';
		$m->{completions_max}-- if $what eq 'did' && $status ne 'complete';
		$m->{completions_min}++ if $what eq 'did' && $status eq 'complete';
		$m->{retried} = 1 if $what eq 'try';
		delete $m->{retried} if $what eq 'did' && $status eq 'none' && $m->{retry_try} == 1;
	}
	return;
}

# The steps of a task in the ledger are 1, 2, ..., each once and in order
sub check_steps
{
	my ($m, $status, $rows) = @_;
	my @steps = map { $_->{step} } grep { $_->{step} > 0 } @$rows;
	my $expected = join(',', 1 .. @steps);
	my $launch = 0;

	bad("$m->{key}: steps @steps") if join(',', @steps) ne $expected;
	bad("$m->{key}: is complete after " . @steps . " of $m->{n} steps") if $status eq 'complete' && @steps != $m->{n};
	foreach (@$rows)
	{
		bad("$m->{key}: launch $_->{launch} after $launch") if $_->{launch} < $launch;
		$launch = $_->{launch};
	}
	return;
}

# The statuses that a kind of task may end with, in addition to cancelled
sub check_end
{
	my ($m, $t) = @_;
	my $kind = $t->{action};
	my $failure = $t->{sqlstate} || '';

	bad("$m->{key}: $t->{status}") if $t->{status} eq 'scheduled' || $t->{status} eq 'active';
	if ($t->{status} eq 'cancelled')
	{
		bad("$m->{key}: cancelled by nobody") unless $m->{cancel_try};
	}
	elsif ($t->{status} eq 'failed')
	{
		my $why = "$kind failed with $failure";

		$count{$why}++;
		bad("$m->{key}: $why: $t->{error}")
		  unless $failure eq '57014'
		  || $kind eq 'raise' && $failure eq 'P0001'
		  || $failure eq '57P02' && $t->{crashes} == $max_crashes;
	}
	else
	{
		$count{"$kind completed"}++;
		bad("$m->{key}: $kind should have failed") if $kind =~ /^(raise|self_cancel)$/;
	}
	bad("$m->{key}: was cancelled, but is $t->{status}")
	  if $m->{cancel_did} && !$m->{retried} && $t->{status} ne 'cancelled';
	return;
}

sub check_task
{
	my ($m, $t, $rows) = @_;
	my $done = grep { $_->{step} == 0 } @$rows;
	my $complete = $t->{status} eq 'complete' ? 1 : 0;

	check_end($m, $t);
	check_steps($m, $t->{status}, $rows) if $t->{action} =~ /^(steps|stages)$/;
	bad("$m->{key} ($t->{action}, $t->{status}): completed $done times in the ledger, "
		  . "not $m->{completions_min} to $m->{completions_max} + $complete")
	  if $done < $m->{completions_min} + $complete || $done > $m->{completions_max} + $complete;
	foreach (@$rows)
	{
		bad("$m->{key}: ran as $_->{role}, not $t->{owner}") if $_->{role} ne $t->{owner};
		bad("$m->{key}: the ledger has another id") if $_->{task} ne $t->{id};
	}
	return;
}

# Rows of a query, as hashes
sub rows_of
{
	my ($db, $columns, $rest) = @_;
	my @names = split /, /, $columns;
	my @rows;

	foreach (split /\n/, must($db, "COPY (SELECT $rest) TO STDOUT;"))
	{
		my %row;

		@row{@names} = map { $_ eq '\N' ? undef : $_ } split /\t/, $_, -1;
		push @rows, \%row;
	}
	return @rows;
}

sub check_database
{
	my ($db) = @_;
	my (%tasks, %ledger, %ids);

	push @{ $tasks{ $_->{key} } }, $_ foreach rows_of($db,
		'key, id, action, status, owner, crashes, sqlstate, error',
		q{resource_id, id, action, status, owner, crashes, error_details ->> 'sqlstate', error FROM tasksched.tasks});
	push @{ $ledger{ $_->{key} } }, $_
	  foreach rows_of($db, 'key, task, launch, step, role', q{key, task, launch, step, role FROM ledger ORDER BY n});

	# children exist if, and only if, their parents' launches have completed
	my %born = map { ("child:$_->{task}:$_->{launch}" => 1) }
	  grep { $model{ $_->{key} } && ($model{ $_->{key} }->{kind} // '') eq 'child' } map { @$_ } values %ledger;
	foreach my $key (keys %born, grep { /^child:/ } keys %tasks)
	{
		my $m = $model{$key} //= { key => $key, completions_min => 0, completions_max => 0 };

		@$m{qw(kind db min max)} = ('note', $db, ($born{$key} ? 1 : 0) x 2);
	}

	foreach my $m (grep { ($_->{db} // '') eq $db } values %model)
	{
		my @found = @{ $tasks{ $m->{key} } // [] };
		my $rows = $ledger{ $m->{key} } // [];
		my $at_most = $m->{delete_did} ? 0 : $m->{max};

		$count{'tasks known to exist'}++ if $m->{min};
		$count{'tasks known not to exist'}++ if !$m->{max};
		bad("$m->{key}: exists " . @found . " times") if @found > $at_most;
		bad("$m->{key}: is lost") if @found < $m->{min} && !$m->{delete_try};
		bad("$m->{key}: never existed but has a row in the ledger") if !$m->{max} && @$rows;
		check_task($m, $found[0], $rows) if @found == 1;
		check_steps($m, 'deleted', $rows) if !@found && ($m->{kind} // '') =~ /^(steps|stages)$/;
	}
	foreach my $key (keys %tasks, keys %ledger)
	{
		bad("$key: nobody scheduled it") unless $model{$key} && ($model{$key}->{db} // '') eq $db;
	}
	$count{'rows in the ledgers'} += @$_ foreach values %ledger;

	# crashes belong to tasks that killed their process or whose process was killed
	$count{'crashes of innocents'} +=
	  sum0(map { $_->{action} eq 'self_kill' ? 0 : $_->{crashes} } map { @$_ } values %tasks);
	$count{'cancels of innocents'} +=
	  grep { $_->{action} ne 'self_cancel' && ($_->{sqlstate} // '') eq '57014' } map { @$_ } values %tasks;
	return;
}

# ---------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------

diag("seed $seed, $minutes minutes, $clients clients");
srand($seed);
create_primary();
create_standby();
$end = time + 60 * $minutes;

my @pids = map { start_client($_) } 1 .. $clients;
$client_name = 'c0';
$serial = 0;
open $log, '>>', "$dir/client0" or die $!;
$log->autoflush(1);
run_faults();

# undo what the faults have set, and let all tasks finish
must($_, $swap . 'SELECT tasksched.resume_scheduler();') foreach @databases;
$primary->append_conf('postgresql.conf', <<EOT);
tasksched.enabled = on
tasksched.max_running_tasks = 10
tasksched.worker_idle_timeout = 100ms
tasksched.scheduler_idle_timeout = 1
tasksched.reconcile_interval = 2s
EOT
$primary->reload;
append_to_file("$dir/stop", '');
waitpid($_, 0) foreach @pids;
close $log;

foreach my $db (@databases)
{
	wait_value($primary, 'SELECT count(*) FROM tasksched.live', 0, "all tasks of $db are finished", $db);
	wait_value($primary, 'SELECT count(*) FROM tasksched.running_tasks', 0, 'none runs', $db);
	# the state would not be idle if a slot were taken
	wait_value($primary, 'SELECT state, running FROM tasksched.status WHERE database = current_database()', 'idle|0',
		'no slot is taken', $db);
}
wait_value($primary,
	q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('tasksched worker', 'tasksched scheduler')},
	0, 'and no process is left');
is(sql($primary, 'SELECT count(*) FROM pg_prepared_xacts'), 0, 'no prepared transaction either');

read_logs(map { "$dir/client$_" } 0 .. $clients);
check_database($_) foreach @databases;
bad("innocents have crashed $count{'crashes of innocents'} times")
  if $count{'crashes of innocents'} > ($count{'SIGKILL of a worker'} // 0);
bad("innocents were interrupted $count{'cancels of innocents'} times")
  if $count{'cancels of innocents'} > ($count{'pg_cancel_backend of a worker'} // 0);
is(join("\n", @bad[ 0 .. ($#bad > 40 ? 40 : $#bad) ]), '', 'ledger, tables and what clients were told fit together');
diag(join("\n", map { "$_: $count{$_}" } sort keys %count));

$_->stop foreach $primary, $standby;
foreach my $node (@logs)
{
	my @internal = grep { /PANIC|TRAP:|internal error| XX\d\d\d / } split /\n/, slurp_file($node->logfile);

	is(join("\n", @internal), '', 'no internal errors in the log of ' . $node->name);
}
done_testing();
