# The system's clock is set an hour forward and back while tasks wait and run.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedSession;
use TaskschedTest;
use IPC::Run;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# A clock that the test can set (see lib/clock.c), in the server and all its processes
my $dir = PostgreSQL::Test::Utils::tempdir;
my $messages;
my $cc = (split ' ', `pg_config --cc`)[0] || 'cc';
IPC::Run::run([ $cc, '-shared', '-fPIC', '-o', "$dir/clock.so", "$FindBin::RealBin/../lib/clock.c" ],
	'>&', \$messages)
  or plan skip_all => "the clock can't be built here: $messages";
append_to_file("$dir/offset", pack('q', 0));

my $hours = 0;

sub set_clock
{
	my ($by) = @_;

	$hours += $by;
	open my $file, '+<', "$dir/offset" or die $!;
	syswrite($file, pack('q', 3600 * $hours)) == 8 or die $!;
	close $file;
	return;
}

my $node = new_node('clock', start => 0, conf => "max_worker_processes = 8\ntasksched.reconcile_interval = 3s\n");
{
	local $ENV{LD_PRELOAD} = "$dir/clock.so";
	local $ENV{CLOCK_FILE} = "$dir/offset";
	$node->start;
}
create_fixtures($node);
my $position = log_position($node);

# CPU time of tasksched's processes, in seconds
sub cpu_time
{
	my $ticks = 0;

	foreach my $pid (split /\n/, sql($node, q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'tasksched%'}))
	{
		my @stat = split / /, (eval { slurp_file("/proc/$pid/stat") } // '') =~ s/^.*\) //r;
		$ticks += $stat[11] + $stat[12] if @stat > 12;
	}
	return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

sub runs_promptly
{
	my ($name) = @_;

	my $id = schedule($node, q{'note'});
	cmp_ok(wait_for_status($node, $id, 'complete', "$name: a task for now runs"), '<', 30, "$name: soon");
	return;
}

# Wait for a scan, so that the scheduler has seen the clock
sub wait_for_scan
{
	my $seen = sql($node, 'SELECT last_scan FROM tasksched.status');

	wait_until($node, "SELECT last_scan <> '$seen' FROM tasksched.status", 'the scheduler has seen the clock');
	return;
}

# What must be true after each change of the clock
sub check_all
{
	my ($name) = @_;

	runs_promptly($name);
	$node->append_conf('postgresql.conf', 'tasksched.worker_idle_timeout = 0');	# include what waits for a time
	$node->reload;
	runs_promptly("$name, in a new worker");

	my $before = cpu_time();
	my $start = time;
	sql($node, q{SELECT pg_sleep(1.5)});	# polls: what do tasksched's processes do meanwhile?
	cmp_ok(cpu_time() - $before, '<', 0.3 * (time - $start), "$name: no busy loop");
	$node->append_conf('postgresql.conf', q{tasksched.worker_idle_timeout = '1min'});
	$node->reload;
	return;
}

ok(abs(sql($node, 'SELECT extract(epoch FROM clock_timestamp())') - time) < 100, 'the clock is right');
set_clock(1);
cmp_ok(sql($node, 'SELECT extract(epoch FROM clock_timestamp())') - time, '>', 3000, 'and can be set');
set_clock(-1);

# ---------------------------------------------------------------------------
# Forward, while a task runs and others are due within the hour and after it
# ---------------------------------------------------------------------------
# not with pg_sleep(), which the server measures by the clock
my ($in, $locked, $errors) = ("SELECT pg_advisory_lock(1);\n", '', '');
my $locker = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ],
	'<', \$in, '>', \$locked, '2>', \$errors);
$locker->pump until $locked =~ /\n/;
my $held = schedule($node, q{'run_sql', params => '{"sql": "SELECT pg_advisory_xact_lock(1)"}'});
my $soon = schedule($node, q{'note', delay => '30 min'});
my $later = schedule($node, q{'note', delay => '61 min 5 s'});
my $much_later = schedule($node, q{'note', delay => '3 h'});
wait_for_running($node, $held, 'a task runs');
set_clock(1);
wait_for_status($node, $soon, 'complete', 'forward: what has become due runs');
is(status_of($node, $later), 'scheduled', 'forward: nothing else');
check_all('forward');
set_clock(1 / 60);
wait_for_status($node, $later, 'complete', 'forward, by a minute: the next one runs when it is due');
is(field_of($node, $later, q{started_at >= run_at}), 't', 'not before');

# ---------------------------------------------------------------------------
# Back, while the task still runs
# ---------------------------------------------------------------------------
my $due = schedule($node, q{'note', delay => '10 min'});
my $session = TaskschedSession->new($node);
my $id_before = $session->query(q{BEGIN; SELECT tasksched.schedule_task('note'); ROLLBACK});
set_clock(-1);
cmp_ok($session->query(q{BEGIN; SELECT tasksched.schedule_task('note'); ROLLBACK}),
	'gt', $id_before, 'back: the ids of a session still ascend');
$session->quit;
check_all('back');
is(field_of($node, $held, 'status, launch'), 'active|1', 'back: the task that runs goes on');
is(status_of($node, $due), 'scheduled', 'back: what is not due any more waits');
my $short = schedule($node, q{'note', delay => '2 s'});
wait_for_status($node, $short, 'complete', 'back: a task with a delay runs');
is(field_of($node, $short, q{started_at >= run_at AND started_at < run_at + interval '20 s'}), 't', 'back: in time');
my ($out) = try_sql($node, qq{SELECT count(*) FROM tasksched.wait_for_task('$held', '1 s')});
is($out, '0', 'back: wait_for_task gives up in time');

# a task that was due before, but could not be launched yet, does not wait for another hour
set_clock(1);
sql($node, 'SELECT tasksched.pause_scheduler()');
sql($node, q{SELECT tasksched.schedule_tasks('note', array_fill(NULL::jsonb, '{2500}'), resource_id => 'paused')});
my $in_time = schedule($node, q{'note', delay => '30 s'});
wait_for_scan();
set_clock(-1);
sql($node, 'SELECT tasksched.resume_scheduler()');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE resource_id = 'paused' AND status = 'complete'}, 2500,
	'back: what was due before runs at once');
is(status_of($node, $in_time), 'scheduled', 'back: what has a time of its own waits for it');
set_clock(2);
wait_for_status($node, $due, 'complete', 'forward again: what was not due any more runs');

# ---------------------------------------------------------------------------
# Back, while a session waits for a task, and while tasksched delays an attempt: the
# workers of a role can't start, there is no slot, the scheduler was killed
# ---------------------------------------------------------------------------
my ($stdout, $stderr) = ('', '');
my $waiting = IPC::Run::start(
	[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
		"SELECT count(*) FROM tasksched.wait_for_task('$held', '6 s')" ],
	'>', \$stdout, '2>', \$stderr, IPC::Run::timeout($TaskschedTest::deadline_s));
wait_until($node, q{SELECT count(*) = 1 FROM pg_stat_activity
	WHERE query LIKE 'SELECT count(*) FROM tasksched.wait_for_task%' AND wait_event_type = 'Extension'},
	'a session waits');
signal_process('TERM', scheduler_pid($node));
set_clock(-1);
check_all('back, after the scheduler has ended');
set_clock(-1);
check_all('back again');
$waiting->finish;
is("$stdout$stderr", "0\n", 'its time is up nevertheless');

$in .= "\\q\n";
$locker->finish;
wait_for_status($node, $held, 'complete', 'the task that ran all the time completes');
is(field_of($node, $held, 'launch, attempt, crashes'), '1|1|0', 'in its first launch');
is(sql($node, 'SELECT count(*) - count(DISTINCT id) FROM runs'), 0, 'no task has run twice');
is(sql($node, q{SELECT count(*) FROM tasksched.tasks WHERE status <> 'complete'}),
	1, 'none is left but that for much later');
unlike(log_since($node, $position), qr/tasksched could not launch|ended its worker/, 'nothing went wrong');
is(status_of($node, $much_later), 'scheduled', 'which waits');
$node->stop;
check_log($node);
done_testing();
