/*
 * outcome.c
 *	  What a launch comes to: the outcome that an action says, or an error.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "base/compat.h"

/*
 * So many bytes of each text of an error are kept, and so many as a dump has
 * them: the four texts of a task, its params and its result stay below 1 GB.
 */
#define MAX_ERROR_TEXT ((Size) 16 * 1024 * 1024)
#define MAX_ERROR_DUMP ((Size) 32 * 1024 * 1024)

static void
invalid_outcome(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid outcome of an action"),
			 errdetail_internal("%s", detail),
			 errhint("Use complete(), fail(), reschedule() or proceed() to make an outcome.")));
}

/* A copy of a result, if it can be stored */
Jsonb *
tasksched_checked_result(Datum value)
{
	Jsonb	   *result = (Jsonb *) PG_DETOAST_DATUM_COPY(value);

	tasksched_jsonb_check(result, "result");
	return result;
}

/* Read a value of type tasksched.outcome */
void
tasksched_outcome_from_datum(Datum datum, Outcome *outcome, MemoryContext cxt)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(datum);
	bool		status_null;
	bool		result_null;
	bool		error_null;
	bool		run_at_null;
	Datum		status = GetAttributeByName(header, "status", &status_null);
	Datum		result = GetAttributeByName(header, "result", &result_null);
	Datum		error = GetAttributeByName(header, "error", &error_null);
	Datum		run_at = GetAttributeByName(header, "run_at", &run_at_null);
	MemoryContext old;

	*outcome = tasksched_outcome(STATUS_NONE);

	/* a row of nulls is what a variable that was never set gives */
	if (status_null && result_null && error_null && run_at_null)
		return;
	if (status_null)
		invalid_outcome("The status is null.");
	outcome->status = tasksched_status_from_datum(status);
	if (outcome->status == STATUS_CANCELLED)
		invalid_outcome("An action cannot cancel its task.");
	if (!run_at_null && outcome->status != STATUS_SCHEDULED)
		invalid_outcome("A due time goes with the status scheduled only.");
	if (!run_at_null)
	{
		outcome->run_at = DatumGetTimestampTz(run_at);
		if (TIMESTAMP_NOT_FINITE(outcome->run_at))
			invalid_outcome("The due time is infinite.");
	}

	old = MemoryContextSwitchTo(cxt);
	if (!result_null)
		outcome->result = tasksched_checked_result(result);
	if (!error_null)
		outcome->error = tasksched_error_text(TextDatumGetCString(error));
	MemoryContextSwitchTo(old);
}

static void
push_pair(JsonbInState *state, const char *key, const char *value)
{
	JsonbValue	k = {.type = jbvString};
	JsonbValue	v = {.type = jbvString};

	if (value == NULL)
		return;
	k.val.string.val = unconstify(char *, key);
	k.val.string.len = strlen(key);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_KEY, &k);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/*
 * As much of a text of an error as is kept, and valid.  What can't be stored at
 * all would have the task launched again and again.
 */
char *
tasksched_error_text(char *text)
{
	Size		length;

	if (text == NULL)
		return NULL;
	length = tasksched_text_prefix(text, MAX_ERROR_TEXT, MAX_ERROR_DUMP);
	if (text[length] != '\0')
		text = pnstrdup(text, pg_mbcliplen(text, strlen(text), length));
	tasksched_text_mask(text);
	return text;
}

/* What is kept of an error beside its message */
Jsonb *
tasksched_error_details(ErrorData *edata)
{
	JsonbInState state = {0};

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_pair(&state, "sqlstate", unpack_sql_state(edata->sqlerrcode));
	push_pair(&state, "detail", tasksched_error_text(edata->detail));
	push_pair(&state, "hint", tasksched_error_text(edata->hint));
	push_pair(&state, "context", tasksched_error_text(edata->context));
	pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(state.result);
}
