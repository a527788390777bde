/*
 * spi.c
 *	  Entering the store, running statements and leaving it.
 *
 * Every statement runs as the owner of the extension, in a security-restricted
 * context and with a pinned search_path, for all callers.  The statements
 * themselves decide what the caller may see or change.
 *
 * Statements are prepared once in each session.  Sequential scans are disabled
 * while a statement is planned, because a plan made while a table was small
 * must not be used when it is large.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "store/internal.h"
#include "store/store.h"

/* ----------
 * Transactions of our own processes
 * ----------
 */

static MemoryContext context_before;	/* to switch back to at the commit */

/*
 * Begin a transaction, read committed and read-write whatever settings the
 * role or the database has
 */
void
tasksched_begin(void)
{
	context_before = CurrentMemoryContext;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
tasksched_commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context_before);
}

/* ----------
 * Entering and leaving
 * ----------
 */

void
tasksched_set_guc(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Become the owner of the extension, apply the settings that our statements
 * need, and connect to SPI
 */
void
tasksched_enter(Entered *saved)
{
	Oid			relid;
	HeapTuple	tuple;
	Oid			owner;

	/*
	 * also in our processes: the extension may have been updated since they
	 * started
	 */
	tasksched_extension_check();

	relid = get_relname_relid("tasks", tasksched_schema_oid());
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "table tasksched.tasks does not exist");
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&saved->userid, &saved->sec_context);
	SetUserIdAndSecContext(owner, saved->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	saved->guc_nest_level = NewGUCNestLevel();
	tasksched_set_guc("search_path", "pg_catalog, pg_temp");
	tasksched_set_guc("enable_seqscan", "off");
	tasksched_set_guc("jit", "off");

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
tasksched_leave(const Entered *saved)
{
	SPI_finish();
	AtEOXact_GUC(true, saved->guc_nest_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}

/* ----------
 * Arguments
 * ----------
 */

void
tasksched_add_arg(Args *args, Datum value)
{
	args->values[args->n] = value;
	args->nulls[args->n++] = ' ';
}

void
tasksched_add_pointer(Args *args, const void *pointer)
{
	args->values[args->n] = PointerGetDatum(pointer);
	args->nulls[args->n++] = pointer ? ' ' : 'n';
}

void
tasksched_add_text(Args *args, const char *string)
{
	tasksched_add_pointer(args, string ? cstring_to_text(string) : NULL);
}

void
tasksched_add_time(Args *args, TimestampTz time)
{
	args->values[args->n] = TimestampTzGetDatum(time);
	args->nulls[args->n++] = time == DT_NOEND ? 'n' : ' ';
}

void
tasksched_add_int4_or_null(Args *args, const int32 *value)
{
	args->values[args->n] = value ? Int32GetDatum(*value) : (Datum) 0;
	args->nulls[args->n++] = value ? ' ' : 'n';
}

/* ----------
 * Running a statement
 * ----------
 */

static int
query_nargs(StoreQuery q)
{
	int			n = 0;

	while (n < MAX_ARGS && tasksched_queries[q].argtypes[n] != 0)
		n++;
	return n;
}

/* The plan of a statement, prepared at its first use in the session */
static SPIPlanPtr
get_plan(StoreQuery q)
{
	static SPIPlanPtr plans[NUM_QUERIES];

	if (plans[q] == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(tasksched_queries[q].sql, query_nargs(q),
									   (Oid *) tasksched_queries[q].argtypes);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare statement: %s", SPI_result_code_string(SPI_result));
		plans[q] = plan;
	}
	return plans[q];
}

/*
 * Run a statement between tasksched_enter() and tasksched_leave().  Returns
 * the number of rows.
 */
uint64
tasksched_run(StoreQuery q, Args *args)
{
	int			rc;

	Assert(args->n == query_nargs(q));
	rc = SPI_execute_plan(get_plan(q), args->values, args->nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/* A column of a row of the result, which is never null */
Datum
tasksched_result(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	Assert(!isnull);
	return value;
}

/*
 * Enter the store, run a statement whose result is only the number of rows,
 * and leave
 */
uint64
tasksched_execute(StoreQuery q, Args *args)
{
	Entered		saved;
	uint64		n;

	tasksched_enter(&saved);
	n = tasksched_run(q, args);
	tasksched_leave(&saved);
	return n;
}

/*
 * Run a query into the result set of a function.  SPI takes a new snapshot for
 * it.
 */
void
tasksched_run_into(const char *sql, Args *args, const Oid *argtypes, ReturnSetInfo *rsinfo)
{
	ParamListInfo params = makeParamList(args->n);
	SPIExecuteOptions options = {0};
	DestReceiver *dest = CreateTuplestoreDestReceiver();
	int			rc;

	for (int i = 0; i < args->n; i++)
	{
		params->params[i].value = args->values[i];
		params->params[i].isnull = args->nulls[i] == 'n';
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = argtypes[i];
	}
	SetTuplestoreDestReceiverParams(dest, rsinfo->setResult,
									rsinfo->econtext->ecxt_per_query_memory,
									true, NULL, NULL);
	options.params = params;
	options.dest = dest;
	rc = SPI_execute_extended(sql, &options);
	if (rc < 0)
		elog(ERROR, "could not execute query: %s", SPI_result_code_string(rc));
}

/* Columns of the query on pg_prepared_xact() */
enum
{
	PREPARED_XID = 1,
	PREPARED_DATABASE
};

/*
 * The transactions that are prepared in this database, in the caller's memory
 * context.  Returns their number.
 */
int
tasksched_store_prepared_transactions(TransactionId **xids)
{
	MemoryContext cxt = CurrentMemoryContext;
	int			n = 0;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute("SELECT p.transaction, p.dbid FROM pg_catalog.pg_prepared_xact() p", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the prepared transactions");
	*xids = MemoryContextAlloc(cxt, Max(SPI_processed, 1) * sizeof(TransactionId));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		if (DatumGetObjectId(tasksched_result(i, PREPARED_DATABASE)) == MyDatabaseId)
			(*xids)[n++] = DatumGetTransactionId(tasksched_result(i, PREPARED_XID));
	}
	SPI_finish();
	return n;
}
