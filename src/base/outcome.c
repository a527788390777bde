/*
 * outcome.c
 *	  The outcome of a launch: what the action returned, or an error.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "base/compat.h"

/*
 * Limits for each text of an error: its length, and its length in a dump.
 * With them, the four texts of an error, the params and the result of a task
 * stay below 1 GB in a dump.
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

/* Return a copy of a result.  Raises an error if it can't be stored. */
Jsonb *
tasksched_checked_result(Datum value)
{
	Jsonb	   *result = (Jsonb *) PG_DETOAST_DATUM_COPY(value);

	tasksched_jsonb_check(result, "result");
	return result;
}

/* Read a value of type tasksched.outcome; its parts are copied into cxt */
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

	/* a variable that was never set yields a row of nulls */
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
 * Return a text of an error in a form that can be stored: cut to the limits,
 * and with invalid bytes masked, in place if nothing is cut.  A text that
 * can't be stored would make the task be launched again and again.
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

/* The parts of an error that are stored besides its message */
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
