# A session of psql that stays connected, for tests that leave a transaction open.

package TaskschedSession;

use strict;
use warnings;

use IPC::Run ();
use PostgreSQL::Test::Utils;

# Connect to a database of a node
sub new
{
	my ($class, $node, $db) = @_;
	my $self = bless { stdin => '', stdout => '', stderr => '', marks => 0 }, $class;

	$self->{timer} = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$self->{psql} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr($db // 'postgres') ],
		'<', \$self->{stdin}, '>', \$self->{stdout}, '2>', \$self->{stderr}, $self->{timer});
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

# The pid of the session's server process
sub pid { return $_[0]->{pid}; }

# Run SQL and wait until it has finished; returns its output
sub query
{
	my ($self, $sql) = @_;

	$self->begin($sql);
	return $self->end;
}

# Start SQL in the background
sub begin
{
	my ($self, $sql) = @_;

	$self->{marks}++;
	$self->{stdout} = $self->{stderr} = '';
	$self->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	$self->{stdin} .= "$sql\n;\n\\echo mark $self->{marks}\n";
	$self->{psql}->pump_nb;
	return;
}

# Has it finished?
sub ended
{
	my ($self) = @_;

	$self->{psql}->pump_nb;
	return $self->{stdout} =~ /^mark $self->{marks}$/m;
}

# Wait until it has finished; returns its output
sub end
{
	my ($self) = @_;

	$self->{psql}->pump until $self->{stdout} =~ /^mark $self->{marks}$/m;
	my $output = $self->{stdout};
	$output =~ s/^mark \d+\n//m;
	chomp $output;
	return $output;
}

# The server has terminated the session: have psql notice, and exit
sub gone
{
	my ($self) = @_;

	$self->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	$self->{stdin} .= "SELECT 1;\n";
	$self->{psql}->finish;
	return;
}

sub quit
{
	my ($self) = @_;

	$self->{timer}->start($PostgreSQL::Test::Utils::timeout_default);
	$self->{stdin} .= "\\q\n";
	$self->{psql}->finish;
	return;
}

1;
