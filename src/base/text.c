/*
 * text.c
 *	  Whether a text can be stored and shown: it must be valid in the
 *	  encoding of the database, and short enough for a dump.
 *
 * The server checks the texts that clients send, but not those that it makes
 * itself.  A message may be cut inside a character, and a name in a shared
 * catalog is in the encoding of the database in which it was made.  COPY
 * refuses invalid bytes, so a single one in a column would prevent the restore
 * of a whole table.  We mask them in texts that report something, and refuse
 * them in values.
 *
 * A dump contains a row as one line of less than 1 GB, in which one byte of a
 * value can take up to seven.  So we measure values by the length that they
 * have in a dump.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "base/base.h"

/* The maximum length in a dump of params and of result: see MAX_ERROR_DUMP */
#define MAX_JSONB_DUMP_MB 400
#define MAX_JSONB_DUMP ((uint64) MAX_JSONB_DUMP_MB * 1024 * 1024)

/*
 * Upper bounds for the length in a dump of one byte of a text, and of a number
 */
#define MAX_BYTE_WIDTH 7
#define MAX_NUMBER_WIDTH 150000

/* ----------
 * Encodings
 * ----------
 */

/*
 * Replace bytes that are invalid in the encoding of the database by question
 * marks.  Returns true if there were any.
 */
bool
tasksched_text_mask(char *text)
{
	int			encoding = GetDatabaseEncoding();
	int			length = strlen(text);

	if (pg_verify_mbstr(encoding, text, length, true))
		return false;
	while (length > 0)
	{
		int			width = pg_encoding_verifymbchar(encoding, text, length);

		if (width <= 0)
		{
			*text = '?';
			width = 1;
		}
		text += width;
		length -= width;
	}
	return true;
}

/*
 * Replace bytes that are not ASCII by question marks.  The text comes from a
 * database of any encoding, and may be cut inside a character.
 */
void
tasksched_text_mask_beyond_ascii(char *text)
{
	for (; *text != '\0'; text++)
	{
		if (IS_HIGHBIT_SET(*text))
			*text = '?';
	}
}

/*
 * Raise the server's error if a text is invalid in the encoding of the
 * database
 */
void
tasksched_text_check(const char *text, int length)
{
	(void) pg_verify_mbstr(GetDatabaseEncoding(), text, length, false);
}

/*
 * Is this name no longer than a name of 63 bytes can become in the encoding of
 * the database?  A conversion may add bytes, but no characters.  SQL_ASCII
 * knows no characters, so only the room counts there.
 */
bool
tasksched_name_fits(const char *name)
{
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return strlen(name) < TASKSCHED_NAME_SIZE;
	return strlen(name) < NAMEDATALEN ||
		(strlen(name) < TASKSCHED_NAME_SIZE && pg_mbstrlen(name) < NAMEDATALEN);
}

/* ----------
 * Lengths
 * ----------
 */

/*
 * The length of a byte in a dump: JSON escapes it, and COPY doubles the
 * backslashes.
 */
static inline int
dump_width(unsigned char c)
{
	if (c >= ' ' && c != '"' && c != '\\' && !IS_HIGHBIT_SET(c))
		return 1;
	switch (c)
	{
		case '\\':
			return 4;
		case '"':
		case '\b':
		case '\f':
		case '\n':
		case '\r':
		case '\t':
			return 3;
		default:
			if (c < ' ')
				return MAX_BYTE_WIDTH;
			/* the dump may be restored as UTF8, where it may take more bytes */
			return GetDatabaseEncoding() == PG_UTF8 ? 1 : 3;
	}
}

/*
 * Return the length of the longest prefix of a text that has at most
 * max_length bytes, and at most max_dump bytes in a dump.  It may end inside a
 * character.
 */
Size
tasksched_text_prefix(const char *text, Size max_length, Size max_dump)
{
	Size		dump = 0;
	Size		length;

	for (length = 0; length < max_length && text[length] != '\0'; length++)
	{
		dump += dump_width(text[length]);
		if (dump > max_dump)
			break;
	}
	return length;
}

static uint64
string_dump_length(const char *string, int length)
{
	uint64		dump = 0;

	for (int i = 0; i < length; i++)
		dump += dump_width(string[i]);
	return dump;
}

/*
 * The length of a number in a dump, or an upper bound if it fits the range of
 * bigint
 */
static uint64
number_dump_length(Numeric number)
{
	static Numeric lowest = NULL;
	static Numeric highest = NULL;
	Datum		value = NumericGetDatum(number);
	char	   *text;
	uint64		length;

	if (lowest == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		highest = int64_to_numeric(PG_INT64_MAX);
		lowest = int64_to_numeric(PG_INT64_MIN);
		MemoryContextSwitchTo(old);
	}
	if (DatumGetBool(DirectFunctionCall2(numeric_lt, value, NumericGetDatum(highest))) &&
		DatumGetBool(DirectFunctionCall2(numeric_gt, value, NumericGetDatum(lowest))))
		return strlen("-9223372036854775808.") + DatumGetInt32(DirectFunctionCall1(numeric_scale, value));
	text = DatumGetCString(DirectFunctionCall1(numeric_out, value));
	length = strlen(text);
	pfree(text);
	return length;
}

/*
 * Check the encoding of the strings in a value, and return its length in a
 * dump.  Unless "exact", the result is an upper bound.  The walk stops as soon
 * as the length exceeds the maximum.
 */
static uint64
walk_jsonb(Jsonb *jsonb, bool exact)
{
	JsonbIterator *it = JsonbIteratorInit(&jsonb->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	uint64		length = 0;

	while (length <= MAX_JSONB_DUMP && (token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		length += 2;			/* a bracket, or a comma or colon with a space */
		if (token != WJB_KEY && token != WJB_VALUE && token != WJB_ELEM)
			continue;
		if (value.type == jbvString)
		{
			tasksched_text_check(value.val.string.val, value.val.string.len);
			length += 2;		/* quotes */
			length += exact ? string_dump_length(value.val.string.val, value.val.string.len) :
				(uint64) value.val.string.len * MAX_BYTE_WIDTH;
		}
		else if (value.type == jbvNumeric)
			length += exact ? number_dump_length(value.val.numeric) : MAX_NUMBER_WIDTH;
		else
			length += strlen("false");
	}
	return length;
}

/*
 * Raise an error unless a value can be stored, dumped and restored.  The error
 * calls the value by this name.
 */
void
tasksched_jsonb_check(Jsonb *jsonb, const char *name)
{
	/* most values are so small that the upper bound settles it */
	if (walk_jsonb(jsonb, false) <= MAX_JSONB_DUMP || walk_jsonb(jsonb, true) <= MAX_JSONB_DUMP)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("value for %s is too large", name),
			 errdetail("As text with its escapes, as a dump has it, the value exceeds the maximum of %d MB.",
					   MAX_JSONB_DUMP_MB),
			 errhint("Keep large data in a table, and refer to it by a key.")));
}
