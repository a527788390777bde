/*
 * call.c
 *	  Calling the function of an action, and reading what it returns.
 *
 * Functions are called through fmgr.  Procedures are called by CALL in a
 * portal, because statements after a COMMIT need a portal that holds their
 * snapshots.  A procedure may commit, so everything that its call uses must be
 * allocated in a memory context that outlives the transaction.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/params.h"
#include "pgstat.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "actions/actions.h"
#include "base/base.h"
#include "base/compat.h"

/* Convert the returned value to an outcome */
static void
read_result(const Action *action, Datum value, bool isnull, Outcome *outcome, MemoryContext cxt)
{
	*outcome = tasksched_outcome(STATUS_NONE);
	if (isnull || action->result == RESULT_VOID)
		return;
	if (action->result == RESULT_OUTCOME)
		tasksched_outcome_from_datum(value, outcome, cxt);
	else
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		outcome->status = STATUS_COMPLETE;
		outcome->result = tasksched_checked_result(value);
		MemoryContextSwitchTo(old);
	}
}

/* Fill in the arguments, and return their number */
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
			skip = true;		/* a strict function: the result is NULL */
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

/* Return the text of the CALL, which is displayed but not parsed */
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
 * Build the plan of the CALL, in the current memory context.  The parse tree
 * is made here rather than from a text, for two reasons: several procedures
 * may have the same name, and the task's owner may lack USAGE on the
 * procedure's schema or on ours.  As with a function, the only privilege
 * needed is EXECUTE, which the server checks.
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
	/* without a query ID, pg_stat_statements would not count the CALL */
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

	/*
	 * Keep all rows in memory.  A temporary file would belong to a
	 * transaction that may have ended.
	 */
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
 * Call the action as the current user, in the current transaction.  The
 * outcome that it returns is stored in *outcome.  It is allocated in cxt,
 * which must outlive the transaction.
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
