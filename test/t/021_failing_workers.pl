# Workers of many roles fail to start at the same time.  Each role is tried again
# after 1 s, which doubles each time, however many roles there are and however many
# tasks each has.  They go on soon after the reason is gone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use TaskschedTest;
use Test::More;
use Time::HiRes qw(time);

use constant ROLES => 12;
use constant TASKS => 8;	# of the first role; the others have one

my $node = new_node('failing', conf => <<'EOT');
max_worker_processes = 40
tasksched.max_running_tasks = 30
tasksched.reconcile_interval = 10min
EOT

sql($node, join(';', map { "CREATE ROLE role$_; SELECT tasksched.grant_usage('role$_')" } 1 .. ROLES));
scheduler_pid($node);
sql($node, 'SELECT tasksched.pause_scheduler()');
sql($node,
	"SET ROLE role$_; SELECT tasksched.schedule_task('note') FROM generate_series(1, " . ($_ == 1 ? TASKS : 1) . ')')
  foreach 1 .. ROLES;

# without this file nobody can connect to the database any more
my $file = $node->data_dir . '/' . sql($node, q{SELECT pg_relation_filepath('pg_class')});
$file =~ s/[^\/]*$/PG_VERSION/;
my $position = log_position($node);

sub failures
{
	my $n = () = log_since($node, $position) =~ /\] tasksched worker \w* *FATAL: .*not a valid data directory/g;
	return $n;
}

my $start = time;
sql($node, "\\! mv '$file' '$file.away'\nSELECT tasksched.resume_scheduler()");

# the first attempt of all tasks, and two more of each role
my $first = ROLES - 1 + TASKS;
my $n = 0;
while (($n = failures()) < $first + 2 * ROLES && time - $start < $TaskschedTest::deadline_s)
{
	Time::HiRes::usleep(50_000);	# polls
}
my $elapsed = time - $start;
# one more, since a worker of a role may be starting while others of it have just failed
my $doublings = int(log($elapsed + 1) / log(2)) + 1;
cmp_ok($n, '>=', $first + 2 * ROLES, 'the workers of all roles fail to start, again and again');
cmp_ok($n, '<=', $first + $doublings * ROLES, "but only after 1 s, doubling, in $elapsed s");

rename("$file.away", $file) or die "could not rename $file.away: $!";
my $repaired = sql($node, 'SELECT clock_timestamp()');
wait_value($node, q{SELECT count(*) FROM tasksched.tasks WHERE status = 'complete' AND attempt = 1 AND launch = 1},
	$first, 'once they can start, all tasks run');
is(sql($node, "SELECT max(started_at) < '$repaired'::timestamptz + interval '30 s' FROM tasksched.tasks"), 't', 'soon');

$node->stop;
check_log($node);
done_testing();
