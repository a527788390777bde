# A transaction has used tasksched and stays open.  A role without the right to do so
# issues a command that would lock tasksched's objects.  The command is refused at
# once, so that no session queues behind it.  Roles with the right are not refused.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedSession;
use TaskschedTest;
use Test::More;

# no scan comes for as long as this test takes
my $node = new_node('strangers', conf => "tasksched.reconcile_interval = '1h'\ntasksched.worker_idle_timeout = '1h'\n");

# planner may schedule tasks, passerby may do nothing, helper has rights on the tables
# of tasksched.  Each has objects of its own, in a schema of its name.
my @roles = ('planner', 'passerby', 'helper');
foreach my $role (@roles)
{
	sql($node, <<"EOT");
CREATE ROLE $role LOGIN;
CREATE SCHEMA $role AUTHORIZATION $role;
GRANT CREATE ON DATABASE postgres TO $role;
SET ROLE $role;
CREATE TABLE $role.mine (id uuid PRIMARY KEY, action text);
CREATE TABLE $role.parted (id uuid PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE $role.part PARTITION OF $role.parted DEFAULT;
CREATE MATERIALIZED VIEW $role.seen AS SELECT 1 AS one;
CREATE FUNCTION $role.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE $role.p() LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION $role.changed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER changed BEFORE INSERT ON $role.mine FOR EACH ROW EXECUTE FUNCTION $role.changed();
CREATE PUBLICATION $role FOR TABLE $role.mine;
EOT
}
sql($node, <<'EOT');
CREATE ROLE boss SUPERUSER;
SELECT tasksched.grant_usage('planner');
SELECT tasksched.grant_usage('helper');
GRANT TRIGGER, REFERENCES (id) ON tasksched.live TO helper;
SET ROLE planner;
CREATE EXTENSION hstore;
EOT

# a session whose transaction has used everything, and stays open
my $idle = TaskschedSession->new($node);
my $finished = schedule($node, q{'note'});
wait_for_status($node, $finished, 'complete', 'a task is finished');

sub hold_locks
{
	my $id = $idle->query(q{BEGIN; SELECT tasksched.schedule_task('note', delay => '1 day')});

	like($idle->query(<<"EOT"), qr/t\nt$/, 'a transaction uses tasksched and stays open');
SELECT
FROM tasksched.actions, tasksched.status, tasksched.running_tasks, tasksched.blocked_tasks, tasksched.stuck_tasks;
SELECT tasksched.register_action('another', 'note'), tasksched.pause_scheduler();
SELECT tasksched.cancel_task('$id');
SELECT tasksched.retry_task('$id');
EOT
	return;
}

sub others_run
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# if this has to wait, it is for a lock that should not exist
	my ($id, $stderr) = try_sql($node, q{SET lock_timeout = '10s'; SELECT tasksched.schedule_task('note')});
	is($stderr, '', "$name: a task can be scheduled") or return;
	chomp $id;
	wait_for_status($node, $id, 'complete', "$name: and runs");
	return;
}

# The errors that a role gets for commands, one for each, '' if there is none.  Each
# command is followed by a ROLLBACK.
sub errors_of
{
	my ($role, $lock_timeout, @commands) = @_;
	my $sql = "\\set VERBOSITY verbose\nSET lock_timeout = '$lock_timeout';\n";
	my $stderr = '';

	$sql .= "\\warn next\n$_;\nROLLBACK; RESET search_path;\n" foreach @commands;
	$node->psql('postgres', $sql, on_error_stop => 0, stderr => \$stderr, extra_params => [ '-U', $role ]);
	my ($before, @said) = split /^next$/m, $stderr, -1;
	return map { /(?:ERROR|FATAL):  (.*)/ ? $1 : '' } @said;
}

# A command that is refused waits for no lock, whatever its mode.  A case is a command,
# the message (a pattern), and the SQLSTATE unless it is 42501.
sub are_refused
{
	my ($role, @cases) = @_;
	my @commands = map { $_->[0] =~ s/\bown\b/$role/gr } @cases;
	my @errors = errors_of($role, '1s', @commands);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $i (0 .. $#cases)
	{
		my ($command, $message, $sqlstate) = @{ $cases[$i] };
		$sqlstate //= '42501';
		like($errors[$i], qr/^$sqlstate: $message$/, "$role: $commands[$i]");
	}
	return;
}

sub are_allowed
{
	my ($role, @commands) = map { s/\bown\b/$_[0]/gr } @_;
	my @errors = errors_of($role, '10s', map { "BEGIN; $_" } @commands);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($errors[$_], '', "$role may: $commands[$_]") foreach (0 .. $#commands);
	return;
}

# ---------------------------------------------------------------------------
# The extension
# ---------------------------------------------------------------------------
my $not_owner = 'must be owner of extension tasksched';
my $not_schema = 'must be owner of schema tasksched';
my @extension_commands = (
	[ 'DROP EXTENSION tasksched', $not_owner ],
	[ 'DROP EXTENSION IF EXISTS missing, tasksched CASCADE', $not_owner ],
	[ 'DROP EXTENSION plpgsql CASCADE', 'must be owner of extension plpgsql' ],
	[ 'DROP EXTENSION plpgsql, tasksched', $not_owner ],
	[ 'DROP OWNED BY boss', 'permission denied to drop objects' ],
	[ 'ALTER EXTENSION tasksched UPDATE', $not_owner ],
	[ q{ALTER EXTENSION tasksched UPDATE TO '0.1'}, $not_owner ],
	[ 'ALTER EXTENSION tasksched SET SCHEMA public', $not_owner ],
	[ 'ALTER EXTENSION tasksched ADD FUNCTION own.f()', $not_owner ],
	[ 'ALTER EXTENSION tasksched DROP TABLE own.mine', $not_owner ],
	[ 'COMMENT ON EXTENSION tasksched IS NULL', $not_owner ],
	[ 'SECURITY LABEL ON EXTENSION tasksched IS NULL', $not_owner ],
	[ 'DO $$ BEGIN DROP EXTENSION tasksched; END $$', $not_owner ],
	[ 'DROP SCHEMA tasksched CASCADE', $not_schema ],
	[ 'ALTER SCHEMA tasksched RENAME TO another', $not_schema ],
	[ 'ALTER SCHEMA tasksched OWNER TO CURRENT_USER', $not_schema ],
	[ 'COMMENT ON SCHEMA tasksched IS NULL', $not_schema ],
	[ 'SECURITY LABEL ON SCHEMA tasksched IS NULL', $not_schema ]);
foreach my $object ('FUNCTION own.f()', 'PROCEDURE own.p()', 'ROUTINE own.f()', 'TRIGGER changed ON own.mine',
	'INDEX own.mine_pkey', 'MATERIALIZED VIEW own.seen')
{
	push @extension_commands, [ "ALTER $object $_ EXTENSION tasksched", $not_owner ]
	  foreach ('DEPENDS ON', 'NO DEPENDS ON');
}

hold_locks();
foreach my $role ('planner', 'passerby')
{
	are_refused($role, @extension_commands);
}
others_run('the extension');

# a stranger's transaction stays open, with all the locks that it can get
my $stranger = TaskschedSession->new($node);
$stranger->query(<<'EOT');
SET ROLE passerby;
BEGIN;
CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
SAVEPOINT s;
EOT
$stranger->begin('ALTER FUNCTION pg_temp.f() DEPENDS ON EXTENSION tasksched; ROLLBACK TO s');
$stranger->end;
others_run(q{a stranger's transaction});
$stranger->query('ROLLBACK');

# and that of a role that has the right
$stranger->query(q{RESET ROLE; SET lock_timeout = '10s'; BEGIN; ALTER FUNCTION note DEPENDS ON EXTENSION tasksched});
is(sql($node, q{SELECT count(*) FROM pg_locks
		WHERE locktype = 'object' AND classid = 'pg_extension'::regclass AND mode = 'AccessExclusiveLock'}),
	1, 'somebody has locked the extension');
others_run('the locked extension');
$stranger->query('ROLLBACK');

# ---------------------------------------------------------------------------
# Relations
# ---------------------------------------------------------------------------
# since 17, maintenance is a privilege of its own
my $not_maintainer = '(must be owner of|permission denied for)';
my @commands = (
	# the server checks the right after it has locked the relation
	[ 'CREATE TRIGGER t AFTER INSERT ON tasksched.live EXECUTE FUNCTION own.changed()',
		'permission denied for table live' ],
	[ 'CREATE OR REPLACE TRIGGER t BEFORE DELETE ON tasksched.finished FOR EACH ROW EXECUTE FUNCTION own.changed()',
		'permission denied for table finished' ],
	[ 'CREATE CONSTRAINT TRIGGER t AFTER INSERT ON tasksched.tasks FOR EACH ROW EXECUTE FUNCTION own.changed()',
		'permission denied for table tasks' ],
	[ 'CREATE CONSTRAINT TRIGGER t AFTER INSERT ON own.mine FROM tasksched.live '
		  . 'FOR EACH ROW EXECUTE FUNCTION own.changed()',
		'permission denied for table live' ],
	[ 'CREATE TRIGGER t INSTEAD OF INSERT ON tasksched.status FOR EACH ROW EXECUTE FUNCTION own.changed()',
		'permission denied for view status' ],
	[ 'SET search_path = tasksched; CREATE TRIGGER t AFTER INSERT ON live EXECUTE FUNCTION own.changed()',
		'permission denied for table live' ],
	[ 'CREATE TEMP TABLE x (id uuid REFERENCES tasksched.live)', 'permission denied for table live' ],
	[ 'CREATE TEMP TABLE x (id uuid, FOREIGN KEY (id) REFERENCES tasksched.finished (id))',
		'permission denied for table finished' ],
	[ 'CREATE TABLE own.x (a text REFERENCES tasksched.registered_actions)',
		'permission denied for table registered_actions' ],
	[ 'CREATE TABLE own.x PARTITION OF own.parted (FOREIGN KEY (id) REFERENCES tasksched.live) DEFAULT',
		'permission denied for table live' ],
	[ 'CREATE SCHEMA x CREATE TABLE x.x (id uuid REFERENCES tasksched.live)', 'permission denied for table live' ],
	[ 'DO $$ BEGIN CREATE TEMP TABLE x (id uuid REFERENCES tasksched.live); END $$',
		'permission denied for table live' ],
	[ q{DO $$ BEGIN EXECUTE 'ALTER TABLE own.mine ADD FOREIGN KEY (id) REFERENCES tasksched.live'; END $$},
		'permission denied for table live' ],
	[ 'ALTER TABLE own.mine ADD a int, ADD b uuid REFERENCES tasksched.live', 'permission denied for table live' ],
	[ 'ALTER TABLE own.mine ADD CONSTRAINT c FOREIGN KEY (id) REFERENCES tasksched.live NOT VALID',
		'permission denied for table live' ],
	[ 'CREATE TEMP TABLE x () INHERITS (tasksched.tasks)', 'must be owner of table tasks' ],
	[ 'CREATE TABLE own.x PARTITION OF tasksched.live DEFAULT', 'must be owner of table live' ],
	[ 'ALTER TABLE own.mine INHERIT tasksched.live', 'must be owner of table live' ],
	[ 'ALTER TABLE own.parted ATTACH PARTITION tasksched.live DEFAULT', 'must be owner of table live' ],
	[ 'ALTER TABLE own.parted DETACH PARTITION tasksched.live', 'must be owner of table live' ],
	[ 'ALTER TABLE own.parted DETACH PARTITION tasksched.live CONCURRENTLY', 'must be owner of table live' ],
	[ 'ALTER TABLE own.parted DETACH PARTITION tasksched.live FINALIZE', 'must be owner of table live' ],
	[ 'ALTER INDEX own.parted_pkey ATTACH PARTITION tasksched.live_pkey', 'must be owner of index live_pkey' ],
	[ 'CREATE RULE r AS ON DELETE TO tasksched.live DO ALSO NOTHING', 'must be owner of table live' ],
	[ 'CREATE RULE r AS ON INSERT TO tasksched.status DO INSTEAD NOTHING', 'must be owner of view status' ],
	[ 'CREATE STATISTICS own.s ON action, status FROM tasksched.live', 'must be owner of table live' ],
	[ 'CREATE PUBLICATION p FOR TABLE own.mine, tasksched.live', 'must be owner of table live' ],
	[ 'ALTER PUBLICATION own ADD TABLE tasksched.finished', 'must be owner of table finished' ],
	[ 'ALTER PUBLICATION own SET TABLE ONLY tasksched.tasks', 'must be owner of table tasks' ],
	[ 'COMMENT ON TABLE tasksched.live IS NULL', 'must be owner of table live' ],
	[ 'COMMENT ON VIEW tasksched.live IS NULL', 'must be owner of table live' ],
	[ 'COMMENT ON VIEW tasksched.status IS NULL', 'must be owner of view status' ],
	[ 'COMMENT ON INDEX tasksched.live_queue IS NULL', 'must be owner of index live_queue' ],
	[ 'COMMENT ON SEQUENCE tasksched.installation IS NULL', 'must be owner of sequence installation' ],
	[ 'COMMENT ON COLUMN tasksched.live.id IS NULL', 'must be owner of table live' ],
	[ 'SECURITY LABEL ON TABLE tasksched.live IS NULL', 'must be owner of table live' ],
	[ 'SECURITY LABEL ON COLUMN tasksched.live.id IS NULL', 'must be owner of table live' ],
	[ 'ALTER EXTENSION hstore ADD TABLE tasksched.live', 'must be owner of table live' ],
	[ 'ALTER EXTENSION hstore DROP VIEW tasksched.status', 'must be owner of view status' ],
	[ 'ALTER INDEX tasksched.live_queue DEPENDS ON EXTENSION plpgsql', 'must be owner of index live_queue' ],
	[ 'ALTER MATERIALIZED VIEW tasksched.live NO DEPENDS ON EXTENSION plpgsql', 'must be owner of table live' ],
	[ 'ALTER TRIGGER t ON tasksched.live DEPENDS ON EXTENSION plpgsql', 'must be owner of table live' ],
	# the server checks the right first, or its lock blocks no other session
	[ 'BEGIN; LOCK TABLE tasksched.tasks', 'permission denied for table tasks' ],
	[ 'BEGIN; LOCK TABLE tasksched.live IN ACCESS SHARE MODE', 'permission denied for table live' ],
	[ 'BEGIN; LOCK TABLE tasksched.tasks IN ROW EXCLUSIVE MODE', 'permission denied for table tasks' ],
	[ 'BEGIN; LOCK TABLE tasksched.status IN SHARE MODE', 'permission denied for view status' ],
	[ 'ALTER TABLE tasksched.live ADD x int', 'must be owner of table live' ],
	[ 'ALTER TABLE tasksched.live NO INHERIT tasksched.tasks', 'must be owner of table live' ],
	[ 'ALTER TABLE tasksched.live RENAME TO x', 'must be owner of table live' ],
	[ 'ALTER TABLE tasksched.live RENAME id TO x', 'must be owner of table live' ],
	[ 'ALTER TABLE tasksched.live SET SCHEMA public', 'must be owner of table live' ],
	[ 'ALTER TABLE tasksched.live OWNER TO CURRENT_USER', 'must be owner of table live' ],
	[ 'ALTER INDEX tasksched.live_queue RENAME TO x', 'must be owner of index live_queue' ],
	[ 'ALTER VIEW tasksched.status RENAME TO x', 'must be owner of view status' ],
	[ 'ALTER SEQUENCE tasksched.installation RESTART', 'must be owner of sequence installation' ],
	[ 'ALTER TYPE tasksched.task ADD ATTRIBUTE x int', 'must be owner of (table|type) task' ],
	[ 'ALTER TRIGGER t ON tasksched.live RENAME TO x', 'must be owner of table live' ],
	[ 'CREATE INDEX ON tasksched.live (action)', 'must be owner of table live' ],
	[ 'CREATE POLICY p ON tasksched.live', 'must be owner of table live' ],
	[ 'ALTER POLICY owner_or_admin ON tasksched.tasks USING (true)', 'must be owner of table tasks' ],
	[ 'DROP POLICY owner_or_admin ON tasksched.tasks', 'must be owner of relation tasks' ],
	[ 'COMMENT ON POLICY owner_or_admin ON tasksched.tasks IS NULL', 'must be owner of relation tasks' ],
	[ 'COMMENT ON CONSTRAINT live_pkey ON tasksched.live IS NULL', 'must be owner of relation live' ],
	[ 'DROP TRIGGER t ON tasksched.live', 'trigger "t" for table "live" does not exist', '42704' ],
	[ 'DROP RULE "_RETURN" ON tasksched.status', 'must be owner of relation status' ],
	[ 'DROP TABLE tasksched.live', 'must be owner of table live' ],
	[ 'DROP INDEX tasksched.live_queue', 'must be owner of index live_queue' ],
	[ 'DROP VIEW tasksched.status', 'must be owner of view status' ],
	[ 'DROP FUNCTION tasksched.delete_task', 'must be owner of function tasksched.delete_task' ],
	[ 'DROP TYPE tasksched.task CASCADE', 'must be owner of type tasksched.task' ],
	[ 'CREATE OR REPLACE VIEW tasksched.status AS SELECT 1', 'permission denied for schema tasksched' ],
	[ 'TRUNCATE tasksched.tasks', 'permission denied for table tasks' ],
	[ 'REINDEX TABLE tasksched.live', "$not_maintainer table live" ],
	[ 'REINDEX INDEX tasksched.live_queue', "$not_maintainer index live_queue" ],
	[ 'REINDEX SCHEMA tasksched', 'must be owner of schema tasksched' ],
	[ 'CLUSTER tasksched.live USING live_pkey', "$not_maintainer table live" ],
	[ 'REFRESH MATERIALIZED VIEW tasksched.live', "$not_maintainer table live" ],
	[ 'GRANT ALL ON tasksched.live TO CURRENT_USER', 'permission denied for table live' ],
	[ 'CREATE TEMP TABLE x (LIKE tasksched.live)', 'permission denied for table live' ],
	[ 'CREATE SEQUENCE own.s OWNED BY tasksched.live.id',
		'sequence must have same owner as table it is linked to', '55000' ],
	[ 'UPDATE tasksched.live SET id = id', 'permission denied for table live' ],
	# must be the last one, since psql takes what follows for data
	[ 'COPY tasksched.live FROM STDIN', 'permission denied for table live' ]);
are_refused('planner', @commands);
# a role that can't even use the schema
are_refused('passerby', map { [ $_->[0], 'permission denied for schema tasksched' ] }
	  grep { $_->[0] !~ /hstore|^SET search_path|^REINDEX SCHEMA/ } @commands);
foreach my $command ('VACUUM tasksched.live', 'ANALYZE tasksched.tasks', 'VACUUM FULL tasksched.live',
	'CLUSTER', 'VACUUM')
{
	my ($stdout, $stderr) = try_sql($node, "SET lock_timeout = '1s'; $command", user => 'planner');
	unlike($stderr, qr/ERROR/, "planner: $command passes by what is not its own");
}
others_run('relations');

# ---------------------------------------------------------------------------
# What the server permits is permitted
# ---------------------------------------------------------------------------
$idle->query('ROLLBACK');

are_allowed('planner',
	'LOCK TABLE tasksched.tasks IN ACCESS SHARE MODE',
	'COPY (SELECT * FROM tasksched.tasks) TO STDOUT',
	'CREATE TEMP TABLE x (LIKE tasksched.tasks INCLUDING ALL)',
	'CREATE TEMP TABLE x AS SELECT * FROM tasksched.tasks',
	'CREATE VIEW own.x AS SELECT t.id, s.state FROM tasksched.tasks t, tasksched.status s',
	'DECLARE c CURSOR FOR SELECT * FROM tasksched.tasks',
	'EXPLAIN SELECT * FROM tasksched.tasks',
	'CREATE TABLE own.x OF tasksched.task',
	'COMMENT ON TABLE own.mine IS NULL',
	# objects with tasksched's names in another schema
	'CREATE TABLE own.live (id uuid PRIMARY KEY); SET search_path = own, tasksched; COMMENT ON TABLE live IS NULL; '
	  . 'CREATE TABLE x (id uuid REFERENCES live); CREATE TABLE y () INHERITS (live); '
	  . 'CREATE RULE r AS ON DELETE TO live DO ALSO NOTHING; '
	  . 'CREATE TRIGGER t AFTER INSERT ON live EXECUTE FUNCTION changed()',
	'ALTER FUNCTION own.f() DEPENDS ON EXTENSION plpgsql',
	'COMMENT ON EXTENSION hstore IS NULL',
	'DROP EXTENSION hstore CASCADE',
	'DROP OWNED BY CURRENT_USER CASCADE');
are_allowed('helper',
	'CREATE TRIGGER t AFTER INSERT ON tasksched.live EXECUTE FUNCTION own.changed()',
	'CREATE CONSTRAINT TRIGGER t AFTER INSERT ON own.mine FROM tasksched.live '
	  . 'FOR EACH ROW EXECUTE FUNCTION own.changed()',
	'CREATE TABLE own.x (id uuid REFERENCES tasksched.live)',
	'ALTER TABLE own.mine ADD FOREIGN KEY (id) REFERENCES tasksched.live (id)');
are_refused('helper',
	[ 'CREATE TABLE own.x (id uuid REFERENCES tasksched.finished)', 'permission denied for table finished' ]);
my $owner = sql($node, 'SELECT current_user');
are_allowed($owner,
	'CREATE TRIGGER t BEFORE INSERT ON tasksched.live FOR EACH ROW EXECUTE FUNCTION planner.changed()',
	'CREATE TABLE x (id uuid REFERENCES tasksched.live)',
	'CREATE TABLE x () INHERITS (tasksched.tasks)',
	'CREATE RULE r AS ON DELETE TO tasksched.live DO ALSO NOTHING',
	'CREATE STATISTICS tasksched.s ON action, status FROM tasksched.live',
	'CREATE PUBLICATION p FOR TABLE tasksched.tasks',
	'COMMENT ON EXTENSION tasksched IS NULL; COMMENT ON TABLE tasksched.live IS NULL; '
	  . 'COMMENT ON COLUMN tasksched.live.id IS NULL',
	'ALTER FUNCTION planner.f() DEPENDS ON EXTENSION tasksched',
	'ALTER INDEX tasksched.live_queue DEPENDS ON EXTENSION plpgsql',
	'ALTER EXTENSION tasksched ADD FUNCTION planner.f(); ALTER EXTENSION tasksched DROP FUNCTION planner.f()',
	'ALTER EXTENSION tasksched UPDATE',
	'ALTER SCHEMA tasksched RENAME TO x; ALTER SCHEMA x RENAME TO tasksched',
	'CREATE FUNCTION f(tasksched.task) RETURNS int LANGUAGE sql AS $$SELECT 1$$; '
	  . 'DROP EXTENSION tasksched CASCADE; CREATE EXTENSION tasksched');
sql($node, 'CREATE ROLE keeper LOGIN; CREATE DATABASE kept OWNER keeper');
create_fixtures($node, 'kept');
sql($node, "VACUUM; ANALYZE; REINDEX DATABASE kept", 'kept');
foreach my $command ('VACUUM tasksched.live', 'ANALYZE tasksched.finished', 'REINDEX TABLE tasksched.live')
{
	# the owner of a database may maintain its tables, but only if it can name them
	my ($stdout, $stderr) = try_sql($node, $command, db => 'kept', user => 'keeper');
	like($stderr, qr/42501: permission denied for schema tasksched/, "the owner of a database: $command");
}
my (undef, $errors) = try_sql($node, "SET lock_timeout = '10s'; VACUUM; ANALYZE; REINDEX DATABASE kept",
	db => 'kept', user => 'keeper');
unlike($errors, qr/ERROR|(live|finished|tasks)"/, 'the owner of a database maintains all of it');

# without the extension, a schema of its name is like any other
sql($node, 'CREATE DATABASE bare');
sql($node, <<'EOT', 'bare');
CREATE SCHEMA tasksched;
CREATE TABLE tasksched.live (id uuid PRIMARY KEY);
GRANT USAGE ON SCHEMA tasksched TO planner;
GRANT REFERENCES, TRIGGER ON tasksched.live TO planner;
CREATE SCHEMA own AUTHORIZATION planner;
SET ROLE planner;
CREATE TABLE own.x (id uuid REFERENCES tasksched.live);
RESET ROLE;
ALTER SCHEMA tasksched RENAME TO t;
DROP SCHEMA t CASCADE;
EOT
sqlstate_is($node, 'DROP EXTENSION tasksched', '42704', 'there is none to drop', db => 'bare', user => 'planner');

# ---------------------------------------------------------------------------
# A change of the extension waits for the transactions that use it, before it takes any
# other lock
# ---------------------------------------------------------------------------
my $waits = q{SELECT count(*) FROM pg_locks
	WHERE NOT granted AND locktype = 'object' AND classid = 'pg_extension'::regclass AND objsubid <> 0};
my $changer = TaskschedSession->new($node);

foreach my $command (
	'DROP EXTENSION tasksched CASCADE',
	'ALTER EXTENSION tasksched UPDATE',
	'ALTER EXTENSION tasksched ADD FUNCTION planner.f()',
	'DROP SCHEMA tasksched CASCADE',
	'ALTER SCHEMA tasksched RENAME TO x',
	'DROP EXTENSION plpgsql CASCADE',
	'DROP OWNED BY boss')
{
	$idle->query(qq{BEGIN; SELECT tasksched.cancel_task('$finished')});
	$changer->begin("BEGIN; $command");
	wait_value($node, $waits, 1, "$command waits for the guard");
	is( sql($node,
			'SELECT count(*) FROM pg_locks WHERE pid = ' . $changer->pid
			  . q{ AND locktype IN ('relation', 'object') AND granted AND mode ~ 'Exclusive'}),
		0, 'and holds no lock meanwhile');
	like($idle->query(q{SELECT tasksched.schedule_task('note');
			SELECT tasksched.register_action('third', 'note'); COMMIT}),
		qr/^[-0-9a-f]{36}$/m, 'who is there already goes on');
	$changer->end;
	$changer->query('ROLLBACK');
	others_run("$command, rolled back");
}

# a session that comes while the extension is changed sees the result
my $version = sql($node, q{SELECT extversion FROM pg_extension WHERE extname = 'tasksched'});
foreach my $call (q{tasksched.schedule_task('note')}, 'tasksched.adopt_tasks()', "tasksched.get_task('$finished')")
{
	$changer->query(q{BEGIN; ALTER EXTENSION tasksched UPDATE;
		UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'tasksched'});
	my $caller = TaskschedSession->new($node);
	$caller->begin("SELECT $call");
	wait_value($node, $waits, 1, "$call waits for the change");
	$changer->query('COMMIT');
	is($caller->end, '', 'it does nothing');
	$caller->quit;
	like($caller->{stderr}, qr/ERROR:  version \Q$version\E of the tasksched library does not fit version 9\.9/,
		'since the version has changed');
	sql($node, "UPDATE pg_extension SET extversion = '$version' WHERE extname = 'tasksched'");
}

# drop and create it once more: afterwards everything works as before
sql($node, 'DROP EXTENSION tasksched CASCADE; DROP TABLE runs, gates; DROP FUNCTION nap, raising');
create_fixtures($node);
others_run('dropped and created again');

$_->quit foreach ($idle, $stranger, $changer);
$node->stop;
check_log($node);
done_testing();
