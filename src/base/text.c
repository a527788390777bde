/*
 * text.c
 *	  What a text must be like to be stored or shown: valid in the encoding of the
 *	  database, and short enough for a dump to carry it.
 *
 * The server checks what clients send, but not the texts it makes itself: a
 * message may be cut inside a character, and a name in a shared catalog is in the
 * encoding of the database it was made in.  COPY refuses such bytes, so one of
 * them in a column would keep a whole table from being restored.  In texts that
 * tell what has happened they are masked; values are refused.
 *
 * A dump has a row as one line of less than 1 GB, in which a byte of a value can
 * take seven.  So values are measured as they stand in a dump.
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

/* params and result may have so many bytes each, in a dump: see MAX_ERROR_DUMP */
#define MAX_JSONB_DUMP_MB 400
#define MAX_JSONB_DUMP ((uint64) MAX_JSONB_DUMP_MB * 1024 * 1024)

/* What no byte of a text, and no number, exceeds in a dump */
#define MAX_BYTE_WIDTH 7
#define MAX_NUMBER_WIDTH 150000

/* ----------
 * Encodings
 * ----------
 */

/* Replace what is not valid in the encoding of the database by question marks; is there anything? */
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
 * Replace what is not ASCII by question marks: the text comes from a database
 * of whatever encoding, and may be cut anywhere.
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

/* Raise the server's error unless a text is valid in the encoding of the database */
void
tasksched_text_check(const char *text, int length)
{
	(void) pg_verify_mbstr(GetDatabaseEncoding(), text, length, false);
}

/*
 * Is a name as long as one of 63 bytes can be?  In another encoding it may have
 * more bytes, but no more characters.  SQL_ASCII does not know characters.
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
 * The bytes that a byte takes in a dump: escaped in JSON, with the backslashes
 * doubled by COPY.
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
			/* the dump may be restored in UTF8, where a character has more bytes */
			return GetDatabaseEncoding() == PG_UTF8 ? 1 : 3;
	}
}

/*
 * So much of a text as has at most max_length bytes, and max_dump in a dump;
 * returns the length of that.
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

/* The length of a number: of one that is not huge, something that it does not exceed */
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
 * Walk through a value: check the encoding of its strings, and return its length
 * in a dump, or unless it is to be exact, something that this does not exceed.
 * Stops where the length is more than it may be.
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
		length += 2;			/* a bracket, or a comma or colon and the space behind */
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

/* Raise an error unless a value can be stored, dumped and restored; name is what it is */
void
tasksched_jsonb_check(Jsonb *jsonb, const char *name)
{
	/* most are so small that nothing needs to be measured */
	if (walk_jsonb(jsonb, false) <= MAX_JSONB_DUMP || walk_jsonb(jsonb, true) <= MAX_JSONB_DUMP)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("value for %s is too large", name),
			 errdetail("As text with its escapes, as a dump has it, the value exceeds the maximum of %d MB.",
					   MAX_JSONB_DUMP_MB),
			 errhint("Keep large data in a table, and refer to it by a key.")));
}
