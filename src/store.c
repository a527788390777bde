/*
 * store.c
 *	  The only SQL on our tables.
 *
 * Every function here works as the owner of the extension, in a
 * security-restricted context and with a pinned search_path, whoever calls it;
 * what the caller may see or change is decided by the queries themselves.
 *
 * A task moves from "live" to "finished" (and back) by a DELETE and an INSERT
 * in one statement, so that whoever waits for the row finds it gone rather
 * than fails, and looks again.  The row of a task is found by row.c; statements
 * that change it are given its place.  Those that the scheduler runs skip locked
 * rows: it never waits for anybody.
 *
 * Statements are prepared once for each session.  Seq scans are disabled while
 * they are planned: a plan that was made while a table was small must not be
 * used when it is large.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "tasksched.h"

/* ----------
 * The statements
 * ----------
 */

/* The columns of the row type tasksched.task, in its order */
#define TASK_COLUMNS \
	"t.id, t.action, t.status, t.run_at, t.resource_id, t.params, t.result, t.error, " \
	"t.error_details, t.owner::pg_catalog.regrole, t.priority, t.attempt, t.launch, t.crashes, " \
	"t.created_at, t.started_at, t.updated_at, t.finished_at"

/* What a task keeps when it moves between live and finished */
#define KEPT_COLUMNS \
	"id, action, resource_id, params, owner, priority, launch, created_at, "

/*
 * The status of a task that is looked up by its id or its place, in a form that no
 * index can serve: while the table is small, to walk through all tasks of a
 * status looks as cheap as the look-up, and the plan would stay.
 */
#define IS_SCHEDULED "status::text = 'scheduled'"
#define IS_ACTIVE "status::text = 'active'"

/* See tasksched_next_launch() */
#define NEXT_LAUNCH "launch % 2147483647 + 1"

/* Whether the role $2 may see a task; $1 is whether it is an admin */
#define VISIBLE "($1 OR pg_catalog.pg_has_role($2, t.owner::oid, 'USAGE'))"

typedef enum StoreQuery
{
	Q_INSTALLATION,
	Q_SET_INSTALLATION,
	Q_FIND_ACTION,
	Q_REGISTER_ACTION,
	Q_UNREGISTER_ACTION,
	Q_INSERT,
	Q_UPDATE_SCHEDULED,
	Q_DELETE_LIVE,
	Q_DELETE_FINISHED,
	Q_TO_FINISHED,
	Q_TO_LIVE,
	Q_ADOPT,
	Q_DELETE_TWINS,
	Q_SET_PAUSED,
	Q_GET_PAUSED,
	Q_PRIORITIES,
	Q_PEEK,
	Q_NEXT_DUE,
	Q_CLAIM,
	Q_PUT_BACK,
	Q_ACTIVE,
	Q_BRING_FORWARD,
	Q_STUCK,
	Q_OLD_FINISHED,
	Q_PURGE,
	Q_CHECKPOINT,
	Q_STAGE,
	NUM_QUERIES
} StoreQuery;

#define MAX_ARGS 10

typedef struct QueryText
{
	const char *sql;
	Oid			argtypes[MAX_ARGS + 1]; /* 0-terminated */
} QueryText;

static const QueryText queries[NUM_QUERIES] = {
	[Q_INSTALLATION] = {
		"SELECT last_value FROM tasksched.installation",
		{0}
	},
	[Q_SET_INSTALLATION] = {
		"SELECT pg_catalog.setval('tasksched.installation', $1)",
		{INT8OID}
	},
	[Q_FIND_ACTION] = {
		"SELECT function, function_owner::oid, coalesce(pg_catalog.to_regprocedure(function)::oid, 0::oid) "
		"FROM tasksched.registered_actions WHERE action = $1",
		{TEXTOID}
	},
	[Q_REGISTER_ACTION] = {
		"INSERT INTO tasksched.registered_actions AS a (action, function, function_owner, registered_by, registered_at) "
		"VALUES ($1, $2, $3::regrole, $4::regrole, $5) "
		"ON CONFLICT (action) DO UPDATE SET function = EXCLUDED.function, function_owner = EXCLUDED.function_owner, "
		"registered_by = EXCLUDED.registered_by, registered_at = EXCLUDED.registered_at",
		{TEXTOID, TEXTOID, OIDOID, OIDOID, TIMESTAMPTZOID}
	},
	[Q_UNREGISTER_ACTION] = {
		"DELETE FROM tasksched.registered_actions WHERE action = $1",
		{TEXTOID}
	},
	[Q_INSERT] = {
		"INSERT INTO tasksched.live (id, action, status, run_at, resource_id, params, owner, "
		"created_at, updated_at, installation, database, finished) "
		"VALUES ($1, $2, 'scheduled', $3, $4, $5, $6::regrole, $7, $7, $8, $9, false)",
		{UUIDOID, TEXTOID, TIMESTAMPTZOID, TEXTOID, JSONBOID, OIDOID, TIMESTAMPTZOID, INT8OID, OIDOID}
	},
	[Q_UPDATE_SCHEDULED] = {
		"UPDATE tasksched.live SET run_at = coalesce($2, run_at), result = coalesce($3, result), "
		"error = coalesce($4, error), updated_at = $5 WHERE ctid = $6 AND id = $1",
		{UUIDOID, TIMESTAMPTZOID, JSONBOID, TEXTOID, TIMESTAMPTZOID, TIDOID}
	},
	[Q_DELETE_LIVE] = {
		"DELETE FROM tasksched.live WHERE ctid = $2 AND id = $1",
		{UUIDOID, TIDOID}
	},
	[Q_DELETE_FINISHED] = {
		"DELETE FROM tasksched.finished WHERE ctid = $2 AND id = $1",
		{UUIDOID, TIDOID}
	},
	[Q_TO_FINISHED] = {
		/* $2: the launch that must hold the task, or NULL for whatever it is; $9: see change_live() */
		"WITH gone AS (DELETE FROM tasksched.live WHERE ctid = $9 AND id = $1 "
		"AND ($2 IS NULL OR launch = $2 AND " IS_ACTIVE ") RETURNING *) "
		"INSERT INTO tasksched.finished (" KEPT_COLUMNS "run_at, attempt, started_at, first_launch, setbacks, "
		"installation, database, finished, status, result, error, error_details, crashes, updated_at, finished_at) "
		"SELECT " KEPT_COLUMNS "run_at, CASE $3 WHEN 'failed' THEN greatest(attempt, 1) ELSE attempt END, "
		"started_at, false, 0, installation, database, true, "
		"$3::tasksched.task_status, coalesce($4, result), "
		/* what an earlier stage said is over */
		"CASE WHEN $3 = 'complete' AND NOT first_launch THEN $5 ELSE coalesce($5, error) END, "
		"CASE WHEN $3 = 'complete' AND NOT first_launch THEN $6 ELSE coalesce($6, error_details) END, "
		"crashes + $7, $8, $8 FROM gone",
		{UUIDOID, INT4OID, TEXTOID, JSONBOID, TEXTOID, JSONBOID, INT4OID, TIMESTAMPTZOID, TIDOID}
	},
	[Q_TO_LIVE] = {
		"WITH gone AS (DELETE FROM tasksched.finished WHERE ctid = $5 AND id = $1 RETURNING *) "
		"INSERT INTO tasksched.live (" KEPT_COLUMNS "result, run_at, status, updated_at, installation, database, finished) "
		"SELECT " KEPT_COLUMNS "result, $2, 'scheduled', $2, $3, $4, false FROM gone",
		{UUIDOID, TIMESTAMPTZOID, INT8OID, OIDOID, TIDOID}
	},
	[Q_ADOPT] = {
		"UPDATE tasksched.live SET installation = $1, database = $2, updated_at = $3, "
		"owner = CASE WHEN tasksched._name_only(owner) THEN owner::text::tasksched.task_owner ELSE owner END, "
		"status = 'scheduled', first_launch = first_launch AND status = 'scheduled' "
		"WHERE (installation, database) IS DISTINCT FROM ($1, $2) "
		"OR (status = 'scheduled' AND (EXISTS (SELECT FROM tasksched.finished f WHERE f.id = live.id) "
		"OR tasksched._name_only(owner) AND owner::text::tasksched.task_owner::oid <> 0))",
		{INT8OID, OIDOID, TIMESTAMPTZOID}
	},
	[Q_DELETE_TWINS] = {
		"DELETE FROM tasksched.finished f USING tasksched.live l WHERE l.id = f.id",
		{0}
	},
	[Q_SET_PAUSED] = {
		"INSERT INTO tasksched.scheduler_state AS s (installation, database, paused) VALUES ($1, $2, $3) "
		"ON CONFLICT (installation, database) DO UPDATE SET paused = $3 WHERE s.paused <> $3",
		{INT8OID, OIDOID, BOOLOID}
	},
	[Q_GET_PAUSED] = {
		"SELECT FROM tasksched.scheduler_state WHERE installation = $1 AND database = $2 AND paused",
		{INT8OID, OIDOID}
	},
	[Q_PRIORITIES] = {
		/* one index look-up for each */
		"WITH RECURSIVE p AS ("
		"(SELECT priority FROM tasksched.live WHERE status = 'scheduled' ORDER BY priority LIMIT 1) "
		"UNION ALL SELECT (SELECT l.priority FROM tasksched.live l WHERE l.status = 'scheduled' "
		"AND l.priority > p.priority ORDER BY l.priority LIMIT 1) FROM p WHERE p.priority IS NOT NULL) "
		"SELECT priority FROM p WHERE priority IS NOT NULL ORDER BY priority",
		{0}
	},
	[Q_PEEK] = {
		"SELECT id, run_at, owner::oid, action, (installation, database) IS DISTINCT FROM ($6, $7), ctid "
		"FROM tasksched.live WHERE status = 'scheduled' AND priority = $1 AND (run_at, id) > ($2, $3) "
		"AND run_at <= $4 ORDER BY run_at, id LIMIT $5",
		{INT2OID, TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID, INT8OID, INT8OID, OIDOID}
	},
	[Q_NEXT_DUE] = {
		"SELECT run_at FROM tasksched.live WHERE status = 'scheduled' AND priority = $1 AND run_at > $2 "
		"ORDER BY run_at LIMIT 1",
		{INT2OID, TIMESTAMPTZOID}
	},
	[Q_CLAIM] = {
		/*
		 * $1: their places; greatest(): due at $2, in a form that no index can serve
		 * either; the last one is no EXISTS, which could become a join that walks
		 */
		"UPDATE tasksched.live SET status = 'active', launch = " NEXT_LAUNCH ", attempt = greatest(attempt, 1), "
		"started_at = coalesce(started_at, $3), updated_at = $3 "
		"WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM tasksched.live l "
		"WHERE l.ctid = ANY ($1) AND l." IS_SCHEDULED " AND greatest(l.run_at, $2) = $2 "
		"AND (SELECT f.id FROM tasksched.finished f WHERE f.id = l.id) IS NULL "
		"FOR NO KEY UPDATE OF l SKIP LOCKED)) AND " IS_SCHEDULED " RETURNING id, launch",
		{TIDARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID}
	},
	[Q_PUT_BACK] = {
		/* $2: undo the claim; $3: delay in us, or NULL; $4: crashes to add; $6: no launch has happened; $7: the launch */
		"UPDATE tasksched.live SET status = 'scheduled', "
		"first_launch = first_launch AND $6, "
		"launch = $7 - $2::int, "
		"attempt = CASE WHEN $2 AND first_launch THEN 0 ELSE attempt END, "
		"started_at = CASE WHEN $2 AND first_launch THEN NULL ELSE started_at END, "
		"run_at = CASE WHEN $3 IS NULL THEN run_at ELSE $5 + $3 * interval '1 microsecond' END, "
		"setbacks = setbacks + ($3 IS NOT NULL)::int, "
		"crashes = crashes + $4, updated_at = $5 WHERE ctid = $8 AND id = $1 RETURNING run_at",
		{UUIDOID, BOOLOID, INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID, INT4OID, TIDOID}
	},
	[Q_ACTIVE] = {
		"SELECT id, launch FROM tasksched.live WHERE status = 'active' AND installation = $1 AND database = $2",
		{INT8OID, OIDOID}
	},
	[Q_BRING_FORWARD] = {
		"UPDATE tasksched.live SET run_at = $1, updated_at = $1 WHERE ctid = ANY (ARRAY("
		"SELECT ctid FROM tasksched.live WHERE status = 'scheduled' AND run_at > $1 AND run_at <= updated_at "
		"LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED))",
		{TIMESTAMPTZOID, INT8OID}
	},
	[Q_STUCK] = {
		"SELECT id, action FROM tasksched.live WHERE status = 'active' AND updated_at < $1 "
		"AND installation = $2 AND database = $3",
		{TIMESTAMPTZOID, INT8OID, OIDOID}
	},
	[Q_OLD_FINISHED] = {
		/* $2: where the last batch ended */
		"SELECT ctid, id, finished_at FROM tasksched.finished WHERE finished_at < $1 AND finished_at >= $2 "
		"ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED",
		{TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
	},
	[Q_PURGE] = {
		"DELETE FROM tasksched.finished WHERE ctid = ANY ($1)",
		{TIDARRAYOID}
	},
	[Q_CHECKPOINT] = {
		"UPDATE tasksched.live SET result = coalesce($3, result), error = coalesce($4, error), updated_at = $5 "
		"WHERE ctid = $6 AND id = $1 AND launch = $2 AND " IS_ACTIVE,
		{UUIDOID, INT4OID, JSONBOID, TEXTOID, TIMESTAMPTZOID, TIDOID}
	},
	[Q_STAGE] = {
		/* $3: go on at once, as the next launch */
		"UPDATE tasksched.live SET status = CASE WHEN $3 THEN status ELSE 'scheduled' END, "
		"launch = CASE WHEN $3 THEN " NEXT_LAUNCH " ELSE launch END, "
		"run_at = coalesce($4, run_at), result = coalesce($5, result), "
		"error = coalesce($6, error), first_launch = false, setbacks = 0, updated_at = $7 "
		"WHERE ctid = $8 AND id = $1 AND launch = $2 AND " IS_ACTIVE,
		{UUIDOID, INT4OID, BOOLOID, TIMESTAMPTZOID, JSONBOID, TEXTOID, TIMESTAMPTZOID, TIDOID}
	},
};

/* Not prepared: which of the filters are given decides the plan */
static const char *const get_tasks_sql =
	"SELECT " TASK_COLUMNS " FROM tasksched.tasks t WHERE " VISIBLE " "
	"AND ($3 IS NULL OR t.action = ANY ($3)) "
	"AND ($4 IS NULL OR t.resource_id = $4) "
	"AND ($5 IS NULL OR t.status = ANY ($5::tasksched.task_status[])) "
	"AND ($6 IS NULL OR CASE t.status WHEN 'scheduled' THEN t.run_at ELSE t.updated_at END <= $6) "
	"ORDER BY CASE t.status WHEN 'scheduled' THEN t.run_at ELSE t.updated_at END, t.id LIMIT $7";

/* ----------
 * Transactions of our own processes
 * ----------
 */

static MemoryContext context_before;	/* what the next commit comes back to */

/* Begin one, whatever settings the role or the database has */
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
 * Entering and leaving, and running a statement
 * ----------
 */

/* What to restore; after an error, the (sub)transaction's abort does it */
typedef struct Entered
{
	Oid			userid;
	int			sec_context;
	int			guc_nest_level;
} Entered;

static void
set_guc(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

static void
enter(Entered *saved)
{
	Oid			relid;
	HeapTuple	tuple;
	Oid			owner;

	/* in a worker too: the extension may have been updated since it began */
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
	set_guc("search_path", "pg_catalog, pg_temp");
	set_guc("enable_seqscan", "off");
	set_guc("jit", "off");

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
leave(const Entered *saved)
{
	SPI_finish();
	AtEOXact_GUC(true, saved->guc_nest_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}

static int
query_nargs(StoreQuery q)
{
	int			n = 0;

	while (n < MAX_ARGS && queries[q].argtypes[n] != 0)
		n++;
	return n;
}

static SPIPlanPtr
prepared(StoreQuery q)
{
	static SPIPlanPtr plans[NUM_QUERIES];

	if (plans[q] == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(queries[q].sql, query_nargs(q),
									   (Oid *) queries[q].argtypes);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare statement: %s", SPI_result_code_string(SPI_result));
		plans[q] = plan;
	}
	return plans[q];
}

/* The arguments of a statement; NULL pointers become SQL nulls */
typedef struct Args
{
	int			n;
	Datum		values[MAX_ARGS];
	char		nulls[MAX_ARGS];
} Args;

static void
add_arg(Args *args, Datum value)
{
	args->values[args->n] = value;
	args->nulls[args->n++] = ' ';
}

static void
add_pointer(Args *args, const void *pointer)
{
	args->values[args->n] = PointerGetDatum(pointer);
	args->nulls[args->n++] = pointer ? ' ' : 'n';
}

static void
add_text(Args *args, const char *string)
{
	add_pointer(args, string ? cstring_to_text(string) : NULL);
}

static void
add_time(Args *args, TimestampTz time)
{
	args->values[args->n] = TimestampTzGetDatum(time);
	args->nulls[args->n++] = time == DT_NOEND ? 'n' : ' ';
}

static void
add_int4_or_null(Args *args, const int32 *value)
{
	args->values[args->n] = value ? Int32GetDatum(*value) : (Datum) 0;
	args->nulls[args->n++] = value ? ' ' : 'n';
}

/* Whose rights decide what is visible: those of the caller of our function */
static void
add_caller(Args *args, const Entered *saved, bool admin)
{
	add_arg(args, BoolGetDatum(admin));
	add_arg(args, ObjectIdGetDatum(saved->userid));
}

/* Run a statement; returns the number of rows */
static uint64
run(StoreQuery q, Args *args)
{
	int			rc;

	Assert(args->n == query_nargs(q));
	rc = SPI_execute_plan(prepared(q), args->values, args->nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

static Datum
result(uint64 row, int column, bool *isnull)
{
	bool		dummy;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column,
						 isnull ? isnull : &dummy);
}

/* Run a statement that does nothing but say how many rows it has changed */
static uint64
execute(StoreQuery q, Args *args)
{
	Entered		saved;
	uint64		n;

	enter(&saved);
	n = run(q, args);
	leave(&saved);
	return n;
}

/* Lock one of our tables, until the end of the transaction */
static void
lock_table(const char *table, LOCKMODE mode)
{
	LockRelationOid(get_relname_relid(table, tasksched_schema_oid()), mode);
}

/*
 * To be called before anything else by what changes tasks, and in an action also by
 * what reads them, since its end changes one: REINDEX would wait for the lock of
 * the reader, and keep the reader from the lock of a writer.  The order is that
 * of ALTER TABLE and TRUNCATE on tasks.
 *
 * Each statement looks at the extension's version after this: what was altered
 * while we waited for a lock is seen.
 */
void
tasksched_store_lock(bool finished_too)
{
	tasksched_extension_check();
	lock_table("tasks", AccessShareLock);
	lock_table("live", RowExclusiveLock);
	if (finished_too)
		lock_table("finished", RowExclusiveLock);
}

/* The same for what reads tasks */
void
tasksched_store_lock_to_read(void)
{
	if (tasksched_in_action())
	{
		tasksched_store_lock(true);
		return;
	}
	tasksched_extension_check();
	lock_table("tasks", AccessShareLock);
	lock_table("live", AccessShareLock);
	lock_table("finished", AccessShareLock);
}

/*
 * Run a statement that changes the row of one live task, which takes the place
 * of that row as its last argument; returns the number of rows.
 * tasksched_store_lock() is to be called before.
 */
static uint64
change_live(StoreQuery q, const Args *args, const pg_uuid_t *id)
{
	Args		with_place = *args;
	TaskLookup	row = {0};
	ItemPointerData before;
	bool		first = true;
	uint64		n = 0;

	add_pointer(&with_place, &row.place);
	while (n == 0 && tasksched_row_find_live(id, &row) &&
		   (first || !ItemPointerEquals(&row.place, &before)))
	{
		n = execute(q, &with_place);
		before = row.place;		/* if it has moved meanwhile, look again */
		first = false;
	}
	return n;
}

/* Run a query into the result set of a function, under the active snapshot */
static void
run_into(const char *sql, Args *args, const Oid *argtypes, ReturnSetInfo *rsinfo)
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

/* ----------
 * This installation
 * ----------
 */

/* This installation's identity, which never changes while the sequence exists */
int64
tasksched_store_installation(void)
{
	static Oid	cached_relid = InvalidOid;
	static int64 cached;
	Oid			relid = get_relname_relid("installation", tasksched_schema_oid());

	if (relid != cached_relid)
	{
		Args		args = {0};
		Entered		saved;

		enter(&saved);
		if (run(Q_INSTALLATION, &args) != 1)
			elog(ERROR, "sequence tasksched.installation is empty");
		cached = DatumGetInt64(result(0, 1, NULL));
		leave(&saved);
		cached_relid = relid;
	}
	return cached;
}

/* What tells tasks and schedulers of this database from those of another one */
static void
add_home(Args *args)
{
	add_arg(args, Int64GetDatum(tasksched_store_installation()));
	add_arg(args, ObjectIdGetDatum(MyDatabaseId));
}

void
tasksched_store_set_installation(void)
{
	Args		args = {0};
	uint64		id;

	if (!pg_strong_random(&id, sizeof(id)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	add_arg(&args, Int64GetDatum((int64) (id >> 2) + 1));
	(void) execute(Q_SET_INSTALLATION, &args);
}

/* ----------
 * Actions
 * ----------
 */

/*
 * Look up an action, its function as it was registered, and the function's
 * OID, InvalidOid if it is gone.  The signature is in the caller's memory
 * context.
 */
bool
tasksched_store_find_action(const char *action, char **signature, Oid *registered_owner, Oid *function)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	bool		found;

	enter(&saved);
	add_text(&args, action);
	found = run(Q_FIND_ACTION, &args) == 1;
	if (found)
	{
		*signature = MemoryContextStrdup(cxt, TextDatumGetCString(result(0, 1, NULL)));
		*registered_owner = DatumGetObjectId(result(0, 2, NULL));
		*function = DatumGetObjectId(result(0, 3, NULL));
	}
	leave(&saved);
	return found;
}

void
tasksched_store_register_action(const char *action, const char *function, Oid function_owner)
{
	Args		args = {0};

	add_text(&args, action);
	add_text(&args, function);
	add_arg(&args, ObjectIdGetDatum(function_owner));
	add_arg(&args, ObjectIdGetDatum(GetUserId()));
	add_time(&args, GetCurrentTimestamp());
	(void) execute(Q_REGISTER_ACTION, &args);
	tasksched_wake_at_commit(WAKE_SCAN, DT_NOEND);
}

bool
tasksched_store_unregister_action(const char *action)
{
	Args		args = {0};

	add_text(&args, action);
	return execute(Q_UNREGISTER_ACTION, &args) > 0;
}

/* ----------
 * The API: tasks as their owners and admins see and change them
 * ----------
 */

/* Store a task of the current user */
void
tasksched_store_insert_task(const pg_uuid_t *id, const char *action, TimestampTz run_at,
							const char *resource_id, Jsonb *params, TimestampTz now)
{
	Args		args = {0};

	add_pointer(&args, id);
	add_text(&args, action);
	add_time(&args, run_at);
	add_text(&args, resource_id);
	add_pointer(&args, params);
	add_arg(&args, ObjectIdGetDatum(GetUserId()));
	add_time(&args, now);
	add_home(&args);
	tasksched_store_lock(false);
	(void) execute(Q_INSERT, &args);
	tasksched_wake_at_commit(WAKE_DUE, run_at);
}

/* Change the one row that the caller has locked */
static void
change_locked(StoreQuery q, Args *args)
{
	if (execute(q, args) != 1)
		elog(ERROR, "a task that was locked has not been changed");
}

void
tasksched_store_update_scheduled(const TaskLookup *row, const Outcome *change)
{
	Args		args = {0};

	add_pointer(&args, &row->id);
	add_time(&args, change->run_at);
	add_pointer(&args, change->result);
	add_text(&args, change->error);
	add_time(&args, GetCurrentTimestamp());
	add_pointer(&args, &row->place);
	change_locked(Q_UPDATE_SCHEDULED, &args);
}

void
tasksched_store_delete(const TaskLookup *row)
{
	Args		args = {0};

	add_pointer(&args, &row->id);
	add_pointer(&args, &row->place);
	change_locked(row->finished ? Q_DELETE_FINISHED : Q_DELETE_LIVE, &args);
	tasksched_tell_waiters_at_commit(&row->id);
}

/*
 * A restore may have brought a finished task back beside the live one that is moved
 * now.  It makes room, if the launch holds the live one.  (A cancelled task that
 * its worker finds here is no twin.)
 */
static bool
replace_twin(const pg_uuid_t *id, const int32 *launch)
{
	TaskLookup	twin;
	TaskLookup	live;

	if (!tasksched_row_find_finished(id, &twin))
		return true;
	if (!tasksched_row_find_live(id, &live) ||
		tasksched_row_lock(&live, LockWaitBlock) != ROW_LOCKED ||
		(launch != NULL && (live.status != STATUS_ACTIVE || live.launch != *launch)))
		return false;
	tasksched_row_delete_finished(&twin);
	return true;
}

/* Move a task to the finished ones */
static bool
to_finished(const pg_uuid_t *id, const int32 *launch, const Outcome *outcome, int crashes)
{
	Args		args = {0};

	add_pointer(&args, id);
	add_int4_or_null(&args, launch);
	add_text(&args, tasksched_status_name(outcome->status));
	add_pointer(&args, outcome->result);
	add_text(&args, outcome->error);
	add_pointer(&args, outcome->error_details);
	add_arg(&args, Int32GetDatum(crashes));
	add_time(&args, GetCurrentTimestamp());
	if (!replace_twin(id, launch) || change_live(Q_TO_FINISHED, &args, id) == 0)
		return false;
	tasksched_tell_waiters_at_commit(id);
	return true;
}

void
tasksched_store_cancel(const TaskLookup *row)
{
	Outcome		cancelled = {.status = STATUS_CANCELLED};

	if (!to_finished(&row->id, NULL, &cancelled, 0))
		elog(ERROR, "a task that was locked has not been changed");
}

void
tasksched_store_retry(const TaskLookup *row)
{
	Args		args = {0};
	TimestampTz now = GetCurrentTimestamp();

	add_pointer(&args, &row->id);
	add_time(&args, now);
	add_home(&args);
	add_pointer(&args, &row->place);
	change_locked(Q_TO_LIVE, &args);
	tasksched_wake_at_commit(WAKE_DUE, now);
}

/* Returns how many tasks were adopted; what they had become elsewhere is forgotten */
int64
tasksched_store_adopt(void)
{
	Args		args = {0};
	Args		none = {0};
	int64		n;

	tasksched_store_lock(true);
	add_home(&args);
	add_time(&args, GetCurrentTimestamp());
	n = (int64) execute(Q_ADOPT, &args);
	(void) execute(Q_DELETE_TWINS, &none);
	tasksched_wake_at_commit(WAKE_SCAN, DT_NOEND);
	return n;
}

void
tasksched_store_set_paused(bool paused)
{
	Args		args = {0};

	add_home(&args);
	add_arg(&args, BoolGetDatum(paused));
	(void) execute(Q_SET_PAUSED, &args);
	/* to pause is to have nothing launched from the commit on */
	tasksched_wake_at_commit(paused ? WAKE_SCAN | WAKE_PAUSE : WAKE_SCAN, DT_NOEND);
}

bool
tasksched_store_get_paused(void)
{
	Args		args = {0};

	add_home(&args);
	return execute(Q_GET_PAUSED, &args) > 0;
}

void
tasksched_store_get_tasks(ArrayType *actions, const char *resource_id, ArrayType *statuses,
						  const TimestampTz *max_timestamp, const int32 *max_rows,
						  ReturnSetInfo *rsinfo)
{
	const Oid	argtypes[] = {BOOLOID, OIDOID, TEXTARRAYOID, TEXTOID,
		get_array_type(tasksched_type_oid("task_status")), TIMESTAMPTZOID, INT4OID};
	Args		args = {0};
	Entered		saved;
	bool		admin = tasksched_caller_is_admin();

	tasksched_store_lock_to_read();
	enter(&saved);
	set_guc("enable_seqscan", "on");	/* planned for this call alone */
	add_caller(&args, &saved, admin);
	add_pointer(&args, actions);
	add_text(&args, resource_id);
	add_pointer(&args, statuses);
	add_time(&args, max_timestamp ? *max_timestamp : DT_NOEND);
	add_int4_or_null(&args, max_rows);
	run_into(get_tasks_sql, &args, argtypes, rsinfo);
	leave(&saved);
}

/* ----------
 * The scheduler
 * ----------
 */

/* The priorities that scheduled tasks have, ascending */
int
tasksched_store_priorities(int16 **priorities)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	int			n;

	enter(&saved);
	n = (int) run(Q_PRIORITIES, &args);
	*priorities = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(int16));
	for (int i = 0; i < n; i++)
		(*priorities)[i] = DatumGetInt16(result(i, 1, NULL));
	leave(&saved);
	return n;
}

/* The next scheduled tasks of a priority after a place in its queue */
int
tasksched_store_peek(int16 priority, const QueuePlace *after, TimestampTz horizon, int limit,
					 Candidate *candidates)
{
	Args		args = {0};
	Entered		saved;
	int			n;

	add_arg(&args, Int16GetDatum(priority));
	add_arg(&args, TimestampTzGetDatum(after->run_at));
	add_pointer(&args, &after->id);
	add_arg(&args, TimestampTzGetDatum(horizon));
	add_arg(&args, Int64GetDatum(limit));
	add_home(&args);
	enter(&saved);
	n = (int) run(Q_PEEK, &args);
	for (int i = 0; i < n; i++)
	{
		Candidate  *c = &candidates[i];

		c->id = *DatumGetUUIDP(result(i, 1, NULL));
		c->run_at = DatumGetTimestampTz(result(i, 2, NULL));
		c->owner = DatumGetObjectId(result(i, 3, NULL));
		strlcpy(c->action, TextDatumGetCString(result(i, 4, NULL)), sizeof(c->action));
		c->foreign = DatumGetBool(result(i, 5, NULL));
		c->place = *(ItemPointer) DatumGetPointer(result(i, 6, NULL));
	}
	leave(&saved);
	return n;
}

/* The earliest due time of a priority after some time; DT_NOEND if there is none */
TimestampTz
tasksched_store_next_due(int16 priority, TimestampTz after)
{
	Args		args = {0};
	Entered		saved;
	TimestampTz next = DT_NOEND;

	enter(&saved);
	add_arg(&args, Int16GetDatum(priority));
	add_arg(&args, TimestampTzGetDatum(after));
	if (run(Q_NEXT_DUE, &args) == 1)
		next = DatumGetTimestampTz(result(0, 1, NULL));
	leave(&saved);
	return next;
}

/* Copy (id, launch) rows */
static void
copy_refs(TaskRef *refs, int n)
{
	for (int i = 0; i < n; i++)
	{
		refs[i].id = *DatumGetUUIDP(result(i, 1, NULL));
		refs[i].launch = DatumGetInt32(result(i, 2, NULL));
	}
}

/*
 * Claim those of the tasks at these places that were due at the time of the look,
 * that nobody holds, and that are not finished as well: status active, the next
 * launch.
 */
int
tasksched_store_claim(const ItemPointerData *places, int n, TimestampTz due, TaskRef *claimed)
{
	Args		args = {0};
	Entered		saved;
	Datum	   *elems = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elems[i] = PointerGetDatum(&places[i]);
	enter(&saved);
	add_pointer(&args, construct_array(elems, n, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	add_time(&args, due);
	add_time(&args, GetCurrentTimestamp());
	n = (int) run(Q_CLAIM, &args);
	copy_refs(claimed, n);
	leave(&saved);
	return n;
}

/* Claim tasks by their ids */
int
tasksched_store_claim_ids(const pg_uuid_t *ids, int n, TaskRef *claimed)
{
	ItemPointerData *places = palloc(Max(n, 1) * sizeof(ItemPointerData));
	int			nplaces = 0;

	tasksched_store_lock(false);
	for (int i = 0; i < n; i++)
	{
		TaskLookup	row;

		if (tasksched_row_find_live(&ids[i], &row))
			places[nplaces++] = row.place;
	}
	return tasksched_store_claim(places, nplaces, GetCurrentTimestamp(), claimed);
}

/* The task has crashed as often as it may */
static void
fail_crashed(const pg_uuid_t *id, int crashes)
{
	Outcome		failed = {.status = STATUS_FAILED};
	ErrorData	edata = {.sqlerrcode = ERRCODE_CRASH_SHUTDOWN};

	failed.error = psprintf(ngettext("task crashed its worker process %d time",
									 "task crashed its worker process %d times", crashes), crashes);
	edata.hint = pstrdup("The server log says how the worker process ended.");
	failed.error_details = tasksched_error_details(&edata);
	(void) to_finished(id, NULL, &failed, 1);
}

/*
 * Put back a task whose launch ended without an outcome, so that it is claimed
 * again.  After a crash of the server (server_crashed), the claim may have been
 * lost: then the row still stands as it did before, and gets the launch's number,
 * so that the crash is not counted a second time if we are called again.
 */
PutBack
tasksched_store_put_back(const TaskRef *task, SlotEnd end, bool server_crashed)
{
	Args		args = {0};
	Entered		saved;
	TaskLookup	row;
	RowLock		locked;
	bool		claimed;
	bool		claim_lost;
	bool		undo = end == END_NOT_BEGUN || end == END_STALE;
	bool		crashed = end == END_CRASHED;

	tasksched_store_lock(false);
	if (!tasksched_row_find_live(&task->id, &row))
		return PUT_BACK_NOT_HELD;
	locked = tasksched_row_lock(&row, LockWaitSkip);
	if (locked != ROW_LOCKED)
		return locked == ROW_BUSY ? PUT_BACK_LOCKED : PUT_BACK_NOT_HELD;

	claimed = row.status == STATUS_ACTIVE && row.launch == task->launch;
	claim_lost = server_crashed && task->launch == tasksched_next_launch(row.launch);
	if (!claimed && !claim_lost)
		return PUT_BACK_NOT_HELD;	/* it has an outcome, or passed on to another launch */

	if (crashed && row.crashes + 1 >= tasksched_max_crashes)
	{
		fail_crashed(&task->id, row.crashes + 1);
		return PUT_BACK_DONE;
	}
	add_pointer(&args, &task->id);
	add_arg(&args, BoolGetDatum(undo));
	if (end == END_CUT_SHORT)
		add_arg(&args, Int64GetDatum(tasksched_setback_delay(1)));
	else if (end == END_NOT_BEGUN || end == END_BOOKKEEPING)
		add_arg(&args, Int64GetDatum(tasksched_setback_delay(row.setbacks + 1)));
	else
		add_pointer(&args, NULL);
	add_arg(&args, Int32GetDatum(crashed ? 1 : 0));
	add_time(&args, GetCurrentTimestamp());
	add_arg(&args, BoolGetDatum(undo || row.status == STATUS_SCHEDULED));
	add_arg(&args, Int32GetDatum(task->launch));
	add_pointer(&args, &row.place);
	enter(&saved);
	if (run(Q_PUT_BACK, &args) != 1)
		elog(ERROR, "task %s could not be put back", tasksched_uuid_out(&task->id));
	tasksched_wake_at_commit(WAKE_DUE, DatumGetTimestampTz(result(0, 1, NULL)));
	leave(&saved);
	return PUT_BACK_DONE;
}

/* The active tasks of this installation */
int
tasksched_store_active(TaskRef **tasks)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	int			n;

	add_home(&args);
	enter(&saved);
	n = (int) run(Q_ACTIVE, &args);
	*tasks = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(TaskRef));
	copy_refs(*tasks, n);
	leave(&saved);
	return n;
}

/*
 * After the clock was set back: what was due already when it was last written is
 * due now, up to a limit; returns how many.
 */
int
tasksched_store_bring_forward(int limit)
{
	Args		args = {0};

	add_time(&args, GetCurrentTimestamp());
	add_arg(&args, Int64GetDatum(limit));
	return (int) execute(Q_BRING_FORWARD, &args);
}

/* Which of these launches no longer hold their tasks */
int
tasksched_store_superseded(const TaskRef *tasks, int n, TaskRef *superseded)
{
	int			nsuperseded = 0;

	tasksched_extension_check();
	for (int i = 0; i < n; i++)
	{
		if (!tasksched_row_holds(&tasks[i]))
			superseded[nsuperseded++] = tasks[i];
	}
	return nsuperseded;
}

/* The tasks that have seen no update for longer than tasksched.stuck_after */
int
tasksched_store_stuck(pg_uuid_t **ids, char ***actions)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	int			n;

	add_time(&args, GetCurrentTimestamp() - tasksched_stuck_after * USECS_PER_SEC);
	add_home(&args);
	enter(&saved);
	n = (int) run(Q_STUCK, &args);
	*ids = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(pg_uuid_t));
	*actions = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
	{
		(*ids)[i] = *DatumGetUUIDP(result(i, 1, NULL));
		(*actions)[i] = MemoryContextStrdup(cxt, TextDatumGetCString(result(i, 2, NULL)));
	}
	leave(&saved);
	return n;
}

/*
 * Delete finished tasks that are old enough.  Looks at up to so many; returns at
 * how many, or 0 if none could be deleted.  It begins at a time that it moves on, so
 * that it does not step again over those that it has deleted already.
 */
int
tasksched_store_purge(TimestampTz *from, int limit)
{
	Args		args = {0};
	Args		places = {0};
	Entered		saved;
	Datum	   *old;
	int			n;
	int			nold = 0;

	if (tasksched_keep_finished_tasks < 0)
		return 0;
	add_time(&args, GetCurrentTimestamp() - tasksched_keep_finished_tasks * USECS_PER_SEC);
	add_time(&args, *from);
	add_arg(&args, Int64GetDatum(limit));
	tasksched_store_lock(true);
	enter(&saved);
	n = (int) run(Q_OLD_FINISHED, &args);
	old = palloc(Max(n, 1) * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		TaskLookup	live;

		*from = Max(*from, DatumGetTimestampTz(result(i, 3, NULL)));
		/* one that holds a live task has to stay */
		if (!tasksched_row_find_live(DatumGetUUIDP(result(i, 2, NULL)), &live))
			old[nold++] = result(i, 1, NULL);
	}
	add_pointer(&places, construct_array(old, nold, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	if (nold > 0)
		(void) run(Q_PURGE, &places);
	leave(&saved);
	return nold > 0 ? n : 0;
}

/* ----------
 * The worker
 * ----------
 */

/*
 * At a COMMIT inside a procedure: store what was staged so far.  Even with
 * nothing to store it locks the row, checks the fence and moves updated_at.
 */
bool
tasksched_store_checkpoint(const TaskRef *task, const Outcome *change)
{
	Args		args = {0};

	add_pointer(&args, &task->id);
	add_arg(&args, Int32GetDatum(task->launch));
	add_pointer(&args, change->result);
	add_text(&args, change->error);
	add_time(&args, GetCurrentTimestamp());
	return change_live(Q_CHECKPOINT, &args, &task->id) > 0;
}

static bool
store_stage(const TaskRef *task, const Outcome *outcome)
{
	Args		args = {0};
	TimestampTz now = GetCurrentTimestamp();
	bool		proceed = outcome->status == STATUS_ACTIVE;
	TimestampTz run_at = outcome->run_at;

	if (!proceed && (run_at == DT_NOEND || run_at < now))
		run_at = now;
	add_pointer(&args, &task->id);
	add_arg(&args, Int32GetDatum(task->launch));
	add_arg(&args, BoolGetDatum(proceed));
	add_time(&args, run_at);
	add_pointer(&args, outcome->result);
	add_text(&args, outcome->error);
	add_time(&args, now);
	if (change_live(Q_STAGE, &args, &task->id) == 0)
		return false;
	if (!proceed)
		tasksched_wake_at_commit(WAKE_DUE, run_at);
	return true;
}

/* Store the outcome of a launch; false if the launch no longer holds the task */
bool
tasksched_store_finish(const TaskRef *task, const Outcome *outcome)
{
	switch (outcome->status)
	{
		case STATUS_SCHEDULED:
		case STATUS_ACTIVE:
			return store_stage(task, outcome);
		case STATUS_COMPLETE:
		case STATUS_FAILED:
			return to_finished(&task->id, &task->launch, outcome, 0);
		default:
			elog(ERROR, "unexpected outcome %d", (int) outcome->status);
			return false;
	}
}
