# However wrong the statistics are, no statement that is run for each task gets a plan
# that walks through a table or an index.  The plans are read from the log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use TaskschedSession;
use JSON::PP;
use Test::More;

my $node = new_node('plans', preload => 0, conf => <<'EOT');
shared_preload_libraries = 'tasksched, auto_explain'
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
auto_explain.log_analyze = on
auto_explain.log_timing = off
auto_explain.log_buffers = on
auto_explain.log_format = json
tasksched.reconcile_interval = '1h'
tasksched.worker_idle_timeout = '1h'
tasksched.keep_finished_tasks = '1d'
autovacuum = off
EOT

# The number of rows that a statement may read without using them
my $handful = 20;

my $finished_columns =
  '(id, action, status, run_at, owner, created_at, updated_at, finished_at, installation, database, finished)';

# Insert finished tasks that are to be purged
sub insert_old
{
	my ($n) = @_;

	sql($node, <<EOT);
INSERT INTO tasksched.finished $finished_columns
SELECT gen_random_uuid(), 'old', 'complete', t, current_user::regrole, t, t, t, 1, 1, true
FROM generate_series(1, $n) n, LATERAL (SELECT now() - interval '1 year' + n * interval '1 ms') l(t)
EOT
	return;
}

# Other rows in the tables: to come, active elsewhere, and finished
sql($node, <<EOT);
CREATE FUNCTION stages(task tasksched.task) RETURNS tasksched.outcome LANGUAGE sql AS
	\$\$ SELECT CASE task.launch
		WHEN 1 THEN tasksched.reschedule() WHEN 2 THEN tasksched.proceed() ELSE tasksched.complete() END \$\$;
CREATE PROCEDURE steps(task tasksched.task) LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM tasksched.update_task(task.id, result => '1');
	COMMIT;
END \$\$;
SELECT tasksched.register_action(a, a) FROM unnest('{stages,steps}'::text[]) a;
BEGIN;
SELECT count(*)
FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{3000}'), resource_id => 'active elsewhere');
UPDATE tasksched.live SET status = 'active', installation = 0;
COMMIT;
SELECT count(*) FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{5000}'), run_at => 'tomorrow');
INSERT INTO tasksched.finished $finished_columns
SELECT gen_random_uuid(), 'note', 'complete', now(), current_user::regrole, now(), now(), now(), 1, 1, true
FROM generate_series(1, 5000);
EOT

# ---------------------------------------------------------------------------
# What is checked
# ---------------------------------------------------------------------------

# All plans in the log since a position, each with its query
sub plans_since
{
	my ($position) = @_;
	my @plans;

	foreach my $text (log_since($node, $position) =~ /duration: \S+ ms  plan:\n((?:\t.*\n)+)/g)
	{
		$text =~ s/^\t//mg;
		my $explained = eval { JSON::PP->new->utf8(0)->decode($text) };
		push @plans, $explained if $explained;
	}
	return @plans;
}

# What is wrong with a node of a plan and with those below it
sub faults_of
{
	my ($plan) = @_;
	my @faults;
	my $relation = $plan->{'Relation Name'} // '';

	if ($relation =~ /^(live|finished|tasks)$/)
	{
		my $type = $plan->{'Node Type'};
		my $index = $plan->{'Index Name'} // '';
		my $removed = ($plan->{'Rows Removed by Filter'} // 0) + ($plan->{'Rows Removed by Index Recheck'} // 0);

		push @faults, "$type on $relation" if $type eq 'Seq Scan';
		push @faults, "$type using $index without a condition" if $type =~ /^Index/ && !$plan->{'Index Cond'};
		push @faults, "$type using $index from its start"
		  if $index eq 'live_queue' && ($plan->{'Index Cond'} // '') !~ /\bstatus = /;
		push @faults, "$type on $relation $index: $removed rows removed" if $removed > $handful;
	}
	return (@faults, map { faults_of($_) } @{ $plan->{Plans} // [] });
}

# Check that no plan since a position is bad; returns the plans
sub check_plans
{
	my ($position, $name) = @_;
	my @plans = plans_since($position);
	my %faults;

	foreach my $explained (@plans)
	{
		my $query = $explained->{'Query Text'} // '';

		next if $query !~ /\btasksched\.(live|finished|tasks)\b/ || $query =~ /the test's own/;
		# a scan reads all that is active, once
		next if $query =~ /^SELECT id, \w+ FROM tasksched\.live WHERE status = 'active' AND/;
		$faults{"$_: $query"}++ foreach faults_of($explained->{Plan});
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(join("\n", map { "$faults{$_} times $_" } sort keys %faults), '', "$name: no plan walks");
	return @plans;
}

# ---------------------------------------------------------------------------
# What is done
# ---------------------------------------------------------------------------

# Wait with queries that the check ignores
sub wait_for_count
{
	my ($where, $n, $name) = @_;

	wait_value($node, "/* the test's own */ SELECT count(*) FROM tasksched.tasks WHERE $where", $n, $name);
	return;
}

# Everything that is done for each task
sub do_everything
{
	my ($name) = @_;
	my $resource = $name =~ s/\W/_/gr;

	my $id = schedule($node, "'note', '$resource', run_at => 'tomorrow'");
	is(sql($node, "SELECT status FROM tasksched.get_task('$id')"), 'scheduled', "$name: get_task");
	is(sql($node, "SELECT tasksched.update_task('$id', result => '1')"), 't', "$name: update_task");
	is(sql($node, "SELECT tasksched.cancel_task('$id')"), 't', "$name: cancel_task");
	is(sql($node, "SELECT tasksched.retry_task('$id')"), 't', "$name: retry_task");
	is(sql($node, "SELECT status FROM tasksched.wait_for_task('$id')"), 'complete', "$name: wait_for_task");
	is(sql($node, "SELECT tasksched.delete_task('$id')"), 't', "$name: delete_task of a finished task");
	$id = schedule($node, "'note', run_at => 'tomorrow'");
	is(sql($node, "SELECT tasksched.delete_task('$id')"), 't', "$name: and of a scheduled one");

	schedule($node, "'$_', '$resource'") foreach qw(note stages steps raising);
	wait_for_count("resource_id = '$resource' AND status IN ('complete', 'failed')", 4,
		"$name: a function, stages, checkpoints and an error");

	my $held = schedule($node, "'hold', '$resource held'");
	my $pid = worker_pid($node, $held);
	is(sql($node, "SELECT pg_terminate_backend($pid)"), 't', "$name: its worker is terminated");
	wait_for_count("id = '$held' AND launch = 2 AND status = 'active'", 1, "$name: the task is put back");
	open_gate($node, "$resource held");
	wait_for_count("id = '$held' AND status = 'complete'", 1, "$name: and completes");

	my $cancelled = schedule($node, "'hold', 'for ever'");
	wait_for_running($node, $cancelled, "$name: a task runs");
	is(sql($node, "SELECT tasksched.cancel_task('$cancelled')"), 't', "$name: and is cancelled");
	wait_until($node, "SELECT NOT EXISTS (SELECT FROM tasksched.running_tasks WHERE task_id = '$cancelled')",
		"$name: and is interrupted");

	insert_old(1);
	sql($node, 'SELECT pg_reload_conf()');	# causes a scan
	wait_for_count("action = 'old'", 0, "$name: an old one is purged");
	return;
}

# Pretend that the tables have this many rows
sub set_statistics
{
	my ($rows, $pages) = @_;

	sql($node, <<EOT);
UPDATE pg_class SET reltuples = $rows, relpages = $pages
WHERE oid IN ('tasksched.live'::regclass, 'tasksched.finished'::regclass)
	OR oid IN (SELECT indexrelid FROM pg_index
		WHERE indrelid IN ('tasksched.live'::regclass, 'tasksched.finished'::regclass));
DELETE FROM pg_statistic WHERE starelid IN ('tasksched.live'::regclass, 'tasksched.finished'::regclass);
EOT
	return;
}

my $actual_pages = 'greatest(pg_relation_size(oid) / 8192, 1)';

foreach my $statistics (
	[ 'never analyzed', -1, 0 ],
	[ 'no rows', 0, $actual_pages ],
	[ 'one row', 1, $actual_pages ],
	[ 'ten million rows', 1e7, $actual_pages ])
{
	my ($name, $rows, $pages) = @$statistics;

	set_statistics($rows, $pages);
	my $position = log_position($node);
	do_everything($name);
	my @plans = check_plans($position, $name);
	foreach my $statement (
		'UPDATE tasksched.live SET status = \'active\'', 'SELECT id, run_at, owner::oid',
		'DELETE FROM tasksched.finished WHERE ctid', 'DELETE FROM tasksched.live WHERE',
		'INSERT INTO tasksched.finished')
	{
		ok(scalar(grep { index($_->{'Query Text'}, $statement) >= 0 } @plans), "$name: there is a plan of $statement");
	}
}

# The statistics that ANALYZE gathers from the tables after a burst
sql($node, q{SELECT count(*) FROM tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{20000}'),
	resource_id => 'burst', run_at => 'tomorrow')});
sql($node, q{CREATE TABLE kept AS SELECT * FROM tasksched.live WHERE resource_id IS DISTINCT FROM 'burst';
	DELETE FROM tasksched.live; ANALYZE tasksched.live; INSERT INTO tasksched.live SELECT * FROM kept});
my $position = log_position($node);
do_everything('after a burst');
check_plans($position, 'after a burst');

# ---------------------------------------------------------------------------
# A purge does not read again what it has deleted, even if a snapshot still sees it
# ---------------------------------------------------------------------------
my $session = TaskschedSession->new($node);
insert_old(10_000);
$session->query(q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tasksched.tasks WHERE action = 'old'});
$position = log_position($node);
sql($node, 'SELECT pg_reload_conf()');
wait_for_count("action = 'old'", 0, 'ten thousand tasks are purged');
my @index_scans = map { $_->{Plan}{Plans}[0]{Plans}[0]{Plans}[0] }
  grep { $_->{'Query Text'} =~ /^DELETE FROM tasksched\.finished/ } plans_since($position);
my ($most) = sort { $b <=> $a } map { $_->{'Shared Hit Blocks'} + $_->{'Shared Read Blocks'} } @index_scans;
cmp_ok(scalar(@index_scans), '>=', 10, 'in batches');
cmp_ok($most, '<', 5_000, 'and each looks at its own');
$session->quit;

$node->stop;
check_log($node);
done_testing();
