/*
 * action.c
 *	  From the text of a signature to a call of the function and its outcome.
 *
 * An action takes (tasksched.task, boolean), (tasksched.task), (jsonb) or
 * nothing, and returns void, jsonb or tasksched.outcome; a procedure gives
 * jsonb or outcome through one more argument, INOUT, at the end.
 *
 * Functions are called through fmgr.  Procedures are called by CALL in a
 * portal, since what a procedure does after a COMMIT needs a portal to hold
 * its snapshots; everything that the call uses has to outlive the transaction
 * that it began in.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tstoreReceiver.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/params.h"
#include "pgstat.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "compat.h"
#include "tasksched.h"

#define SIGNATURES_HINT \
	"An action takes (tasksched.task, boolean), (tasksched.task), (jsonb) or no arguments, and returns void, jsonb or tasksched.outcome; a procedure returns jsonb or tasksched.outcome through an INOUT argument at the end."

/*
 * So many bytes of each text of an error are kept, and so many as a dump has
 * them: the four texts of a task, its params and its result stay below 1 GB.
 */
#define MAX_ERROR_TEXT ((Size) 16 * 1024 * 1024)
#define MAX_ERROR_DUMP ((Size) 32 * 1024 * 1024)

/* ----------
 * Which functions fit
 * ----------
 */

/* Read the argument types of an action; false if they do not fit */
static bool
classify_args(const Oid *types, int n, ActionArgs *args)
{
	Oid			task_type = tasksched_type_oid("task");

	if (n == 0)
		*args = ARGS_NONE;
	else if (n == 1 && types[0] == JSONBOID)
		*args = ARGS_PARAMS;
	else if (n == 1 && types[0] == task_type)
		*args = ARGS_TASK;
	else if (n == 2 && types[0] == task_type && types[1] == BOOLOID)
		*args = ARGS_TASK_FIRST_LAUNCH;
	else
		return false;
	return true;
}

static bool
classify_result(Oid type, ActionResult *result)
{
	if (type == VOIDOID)
		*result = RESULT_VOID;
	else if (type == JSONBOID)
		*result = RESULT_JSONB;
	else if (type == tasksched_type_oid("outcome"))
		*result = RESULT_OUTCOME;
	else
		return false;
	return true;
}

/* The modes of a function's arguments; NULL if all are IN */
static char *
argument_modes(HeapTuple tuple, int *n)
{
	bool		isnull;
	Datum		datum = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargmodes, &isnull);
	ArrayType  *array;

	if (isnull)
		return NULL;
	array = DatumGetArrayTypeP(datum);
	*n = ARR_DIMS(array)[0];
	return (char *) ARR_DATA_PTR(array);
}

/* Does the signature of a function or procedure fit? */
static bool
signature_fits(HeapTuple tuple, Action *action)
{
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	Oid		   *types = proc->proargtypes.values;
	int			nargs = proc->pronargs;
	int			nmodes = 0;
	char	   *modes = argument_modes(tuple, &nmodes);

	if (!action->is_procedure)
		return modes == NULL && classify_args(types, nargs, &action->args) &&
			classify_result(proc->prorettype, &action->result);

	action->result = RESULT_VOID;
	if (modes != NULL)
	{
		/* only the last may differ, and only be INOUT */
		if (nmodes != nargs || modes[nargs - 1] != PROARGMODE_INOUT)
			return false;
		for (int i = 0; i < nargs - 1; i++)
		{
			if (modes[i] != PROARGMODE_IN)
				return false;
		}
		nargs--;
		if (!classify_result(types[nargs], &action->result) || action->result == RESULT_VOID)
			return false;
	}
	return classify_args(types, nargs, &action->args);
}

/*
 * Why a function can't be an action, in words that go on after its name; NULL
 * if it can.
 */
const char *
tasksched_action_unfit(Oid function, Action *action)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	const char *reason = NULL;

	if (!HeapTupleIsValid(tuple))
		return "does not exist";
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	action->function = function;
	action->function_owner = proc->proowner;
	action->is_procedure = proc->prokind == PROKIND_PROCEDURE;
	action->strict = proc->proisstrict;
	action->security_definer = proc->prosecdef;

	if (proc->prokind == PROKIND_AGGREGATE)
		reason = "is an aggregate function";
	else if (proc->prokind == PROKIND_WINDOW)
		reason = "is a window function";
	else if (proc->proretset)
		reason = "returns a set";
	else if (proc->prorettype == TRIGGEROID || proc->prorettype == EVENT_TRIGGEROID)
		reason = "is a trigger function";
	else if (!signature_fits(tuple, action))
		reason = "has a signature that does not fit";
	ReleaseSysCache(tuple);
	return reason;
}

/* Does the function of an action still exist, in the hands of the same owner? */
bool
tasksched_action_is_there(const Action *action)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(action->function));
	bool		result = HeapTupleIsValid(tuple) &&
		((Form_pg_proc) GETSTRUCT(tuple))->proowner == action->function_owner;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* The signature of a function, qualified and quoted, as it is stored */
char *
tasksched_action_signature(Oid function)
{
	return format_procedure_extended(function, FORMAT_PROC_FORCE_QUALIFY);
}

/* Raise the error that tells why the only function of a name does not fit */
static void
report_unfit(const char *name, const char *reason)
{
	bool		signature = strstr(reason, "signature") != NULL;

	ereport(ERROR,
			(errcode(signature ? ERRCODE_INVALID_FUNCTION_DEFINITION : ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("function %s cannot be an action", name),
			 errdetail("The function %s.", reason),
			 errhint(SIGNATURES_HINT)));
}

/* Does it have argument types: a parenthesis that is no part of a quoted name? */
static bool
has_argument_types(const char *name)
{
	bool		quoted = false;

	for (; *name != '\0'; name++)
	{
		if (*name == '"')
			quoted = !quoted;
		else if (*name == '(' && !quoted)
			return true;
	}
	return false;
}

/*
 * Find the function that somebody means: by name and argument types, or by a
 * bare name, which stands for the one function of that name that fits.
 */
Oid
tasksched_action_find(const char *name)
{
	Action		action;
	const char *reason = NULL;
	FuncCandidateList candidates;
	int			fgc_flags;
	Oid			found = InvalidOid;
	int			nfound = 0;

	if (has_argument_types(name))
		found = DatumGetObjectId(DirectFunctionCall1(regprocedurein, CStringGetDatum(name)));
	else
	{
		candidates = FuncnameGetCandidates(stringToQualifiedNameList(name, NULL), -1, NIL,
										   false, false, false, true, &fgc_flags);
		if (candidates == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("function %s does not exist", name),
					 errhint("Create the function first, or qualify its name with its schema.")));
		for (; candidates != NULL; candidates = candidates->next)
		{
			const char *why_not = tasksched_action_unfit(candidates->oid, &action);

			if (why_not == NULL)
			{
				found = candidates->oid;
				nfound++;
			}
			else
				reason = why_not;
		}
		if (nfound == 0)
			report_unfit(name, reason);
		if (nfound > 1)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
					 errmsg("function name \"%s\" is not unique", name),
					 errdetail("%d functions of that name fit.", nfound),
					 errhint("Give the argument types, as in \"%s(jsonb)\".", name)));
	}

	tasksched_action_check(found, name);
	return found;
}

/* Raise an error unless a function can be an action */
void
tasksched_action_check(Oid function, const char *name)
{
	Action		action;
	const char *reason = tasksched_action_unfit(function, &action);

	if (reason != NULL)
		report_unfit(name, reason);
}

/* ----------
 * Why an action can't run
 * ----------
 */

/*
 * Why tasks of an action can't be launched, in words; NULL if they can, and
 * then *found is what to call.
 */
char *
tasksched_action_blocked(const char *action, Action *found)
{
	char	   *signature;
	Oid			registered_owner;
	Oid			oid;
	const char *reason;

	if (!tasksched_store_find_action(action, &signature, &registered_owner, &oid))
		return psprintf(_("no action \"%s\" is registered"), action);
	if (!OidIsValid(oid))
		return psprintf(_("the action's function %s does not exist"), signature);
	reason = tasksched_action_unfit(oid, found);
	if (reason != NULL)
		return psprintf(_("the action's function %s %s"), signature, reason);
	if (found->function_owner != registered_owner)
		return psprintf(_("the action's function %s has got another owner since it was registered"), signature);
	return NULL;
}

/* ----------
 * Outcomes
 * ----------
 */

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
static Jsonb *
checked_result(Datum value)
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

	memset(outcome, 0, sizeof(Outcome));
	outcome->status = STATUS_NONE;
	outcome->run_at = DT_NOEND;

	/* a row of nulls is what a variable that was never set gives */
	if (status_null && result_null && error_null && run_at_null)
		return;
	if (status_null)
		invalid_outcome(_("The status is null."));
	outcome->status = tasksched_status_from_datum(status);
	if (outcome->status == STATUS_CANCELLED)
		invalid_outcome(_("An action cannot cancel its task."));
	if (!run_at_null && outcome->status != STATUS_SCHEDULED)
		invalid_outcome(_("A due time goes with the status scheduled only."));
	if (!run_at_null)
	{
		outcome->run_at = DatumGetTimestampTz(run_at);
		if (TIMESTAMP_NOT_FINITE(outcome->run_at))
			invalid_outcome(_("The due time is infinite."));
	}

	old = MemoryContextSwitchTo(cxt);
	if (!result_null)
		outcome->result = checked_result(result);
	if (!error_null)
		outcome->error = tasksched_error_text(TextDatumGetCString(error));
	MemoryContextSwitchTo(old);
}

/* What the returned value says, if anything */
static void
read_result(const Action *action, Datum value, bool isnull, Outcome *outcome, MemoryContext cxt)
{
	memset(outcome, 0, sizeof(Outcome));
	outcome->status = STATUS_NONE;
	outcome->run_at = DT_NOEND;
	if (isnull || action->result == RESULT_VOID)
		return;
	if (action->result == RESULT_OUTCOME)
		tasksched_outcome_from_datum(value, outcome, cxt);
	else
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		outcome->status = STATUS_COMPLETE;
		outcome->result = checked_result(value);
		MemoryContextSwitchTo(old);
	}
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

/* ----------
 * Calling
 * ----------
 */

/* The arguments, in order; returns their number */
static int
make_args(const Action *action, Datum task, Datum params, bool params_null, bool first_launch,
		  NullableDatum *args)
{
	switch (action->args)
	{
		case ARGS_NONE:
			return 0;
		case ARGS_PARAMS:
			args[0].value = params;
			args[0].isnull = params_null;
			return 1;
		case ARGS_TASK:
		case ARGS_TASK_FIRST_LAUNCH:
			args[0].value = task;
			args[0].isnull = false;
			args[1].value = BoolGetDatum(first_launch);
			args[1].isnull = false;
			return action->args == ARGS_TASK ? 1 : 2;
	}
	return 0;					/* keep compiler quiet */
}

static void
call_function(const Action *action, NullableDatum *args, int nargs, Outcome *outcome, MemoryContext cxt)
{
	LOCAL_FCINFO(fcinfo, 2);
	FmgrInfo	flinfo;
	PgStat_FunctionCallUsage usage;
	Datum		value = (Datum) 0;
	bool		isnull = true;
	bool		skip = false;
	AclResult	aclresult = object_aclcheck(ProcedureRelationId, action->function, GetUserId(), ACL_EXECUTE);

	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FUNCTION, get_func_name(action->function));

	PushActiveSnapshot(GetTransactionSnapshot());
	fmgr_info(action->function, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, nargs, InvalidOid, NULL, NULL);
	for (int i = 0; i < nargs; i++)
	{
		fcinfo->args[i] = args[i];
		if (action->strict && args[i].isnull)
			skip = true;		/* as for any strict function, NULL is the result */
	}
	if (!skip)
	{
		pgstat_init_function_usage(fcinfo, &usage);
		value = FunctionCallInvoke(fcinfo);
		isnull = fcinfo->isnull;
		pgstat_end_function_usage(&usage, true);
	}
	read_result(action, value, isnull, outcome, cxt);
	PopActiveSnapshot();
}

/* The text of the CALL, for people to read */
static char *
call_text(const Action *action, int nargs)
{
	StringInfoData buf;
	char	   *schema = get_namespace_name(get_func_namespace(action->function));
	char	   *name = get_func_name(action->function);

	if (schema == NULL || name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", action->function)));
	initStringInfo(&buf);
	appendStringInfo(&buf, "CALL %s(", quote_qualified_identifier(schema, name));
	for (int i = 0; i < nargs; i++)
		appendStringInfo(&buf, "%s$%d", i > 0 ? ", " : "", i + 1);
	if (action->result != RESULT_VOID)
		appendStringInfo(&buf, "%sNULL", nargs > 0 ? ", " : "");
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

static Oid
arg_type(const Action *action, int i)
{
	if (i == 1)
		return BOOLOID;
	return action->args == ARGS_PARAMS ? JSONBOID : tasksched_type_oid("task");
}

/*
 * Make the CALL, in the current memory context.  It is not parsed: a name may stand
 * for many procedures, and the owner of the task may lack the right to look up names
 * in the procedure's schema or in ours.  As with a function, all that it needs is
 * EXECUTE, which the server checks.
 */
static List *
plan_call(const Action *action, const char *sql, int nargs)
{
	CallStmt   *call = makeNode(CallStmt);
	Query	   *query = makeNode(Query);
	List	   *args = NIL;

	for (int i = 0; i < nargs; i++)
	{
		Param	   *param = makeNode(Param);

		param->paramkind = PARAM_EXTERN;
		param->paramid = i + 1;
		param->paramtype = arg_type(action, i);
		param->paramtypmod = -1;
		param->location = -1;
		args = lappend(args, param);
	}
	if (action->result != RESULT_VOID)
	{
		Oid			type = action->result == RESULT_JSONB ? JSONBOID : tasksched_type_oid("outcome");

		args = lappend(args, makeNullConst(type, -1, InvalidOid));
		call->outargs = list_make1(makeNullConst(type, -1, InvalidOid));
	}
	call->funcexpr = makeFuncExpr(action->function,
								  action->result == RESULT_VOID ? VOIDOID : RECORDOID,
								  args, InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);

	query->commandType = CMD_UTILITY;
	query->querySource = QSRC_ORIGINAL;
	query->canSetTag = true;
	query->utilityStmt = (Node *) call;
	/* so that pg_stat_statements counts it, as it does any CALL */
	query->queryId = hash_bytes_extended((const unsigned char *) sql, strlen(sql), 0);
	return pg_plan_queries(list_make1(query), sql, 0, NULL);
}

static void
call_procedure(const Action *action, NullableDatum *args, int nargs, Outcome *outcome, MemoryContext cxt)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	char	   *sql = call_text(action, nargs);
	ParamListInfo params = makeParamList(nargs);
	Tuplestorestate *store;
	DestReceiver *dest = CreateTuplestoreDestReceiver();
	Portal		portal;
	QueryCompletion qc;

	for (int i = 0; i < nargs; i++)
	{
		params->params[i].value = args[i].value;
		params->params[i].isnull = args[i].isnull;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = arg_type(action, i);
	}
	/* all in memory: a file would be owned by a transaction that may have ended */
	store = tuplestore_begin_heap(false, false, MAX_KILOBYTES);
	SetTuplestoreDestReceiverParams(dest, store, cxt, true, NULL, NULL);

	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, sql, CMDTAG_CALL,
					  plan_call(action, sql, nargs), NULL);
	PortalStart(portal, params, 0, InvalidSnapshot);
	(void) PortalRun(portal, FETCH_ALL, true, dest, dest, &qc);

	read_result(action, (Datum) 0, true, outcome, cxt);
	if (action->result != RESULT_VOID)
	{
		TupleTableSlot *slot = MakeSingleTupleTableSlot(portal->tupDesc, &TTSOpsMinimalTuple);

		if (tuplestore_gettupleslot(store, true, false, slot))
		{
			bool		isnull;
			Datum		value = slot_getattr(slot, 1, &isnull);

			read_result(action, value, isnull, outcome, cxt);
		}
		ExecDropSingleTupleTableSlot(slot);
	}
	PortalDrop(portal, false);
	MemoryContextSwitchTo(old);
}

/*
 * Call the action, as the current user, in the current transaction.  What it
 * says about its outcome is stored in *outcome, allocated in cxt, which must
 * outlive the transaction.
 */
void
tasksched_action_call(const Action *action, Datum task, Datum params, bool params_null,
					  bool first_launch, Outcome *outcome, MemoryContext cxt)
{
	NullableDatum args[2];
	int			nargs = make_args(action, task, params, params_null, first_launch, args);

	if (action->is_procedure)
		call_procedure(action, args, nargs, outcome, cxt);
	else
		call_function(action, args, nargs, outcome, cxt);
}
