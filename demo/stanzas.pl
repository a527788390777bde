# Read stanzas ("Package: ...", "Version: ..."), separated by empty lines, and
# write them as rows (number, stanza) for COPY.
#
# Usage: perl stanzas.pl ROWS < INPUT
#
# Prints what the import must arrive at, found without PostgreSQL: number of
# stanzas, sum of their sizes, fingerprint of their names and versions.
use strict;
use warnings;
use Digest::MD5;

my ($path) = @ARGV;
open my $rows, '>', $path or die "$path: $!\n";

my $size = 0;
my $names = Digest::MD5->new;
local $/ = '';
while (my $stanza = <STDIN>)
{
	chomp $stanza;
	my %field = $stanza =~ /^(Package|Version|Size): (.*)$/mg;
	$size += $field{Size} // 0;
	$names->add("$field{Package} $field{Version}\n");

	$stanza =~ s/\\/\\\\/g;
	$stanza =~ s/\n/\\n/g;
	$stanza =~ s/\t/\\t/g;
	print $rows "$.\t$stanza\n";
}
close $rows or die "$path: $!\n";
print "$. $size ", $names->hexdigest, "\n";
