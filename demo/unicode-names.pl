# All characters that have a name, as stanzas like those of Debian's package
# index: input of another kind, for machines that have no such index.
use strict;
use warnings;
use Unicode::UCD;

my $version = Unicode::UCD::UnicodeVersion();
my ($starts, $names) = Unicode::UCD::prop_invmap('Name');
for my $range (0 .. $#$starts)
{
	my $pattern = $names->[$range] or next;
	for my $code ($starts->[$range] .. ($starts->[$range + 1] // 0x110000) - 1)
	{
		my $hex = sprintf '%04X', $code;
		my $name = $pattern =~ s/<(code point|hangul syllable)>/$hex/r;
		my $character = chr $code;
		utf8::encode($character);
		printf "Package: U+%s\nVersion: %s\nSection: plane %d\nSize: %d\nDescription: %s\n\n",
			$hex, $version, $code >> 16, length $character, $name;
	}
}
