/*
 * commands.c
 *	  Commands that need a database to themselves, and others that the launcher
 *	  has to know of.
 *
 * Some commands fail if any session is connected to a database: DROP DATABASE,
 * ALTER DATABASE ... RENAME and SET TABLESPACE, and CREATE DATABASE with the
 * database as its template.  Before such a command, our idle processes exit.
 * We take the command's lock on the database first, so that any process of
 * ours that is started meanwhile waits before it is connected.
 *
 * A worker that runs a task stays.  The command then fails as it does for any
 * other session, with a hint that names the task, and the launcher starts the
 * scheduler again.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/base.h"
#include "base/compat.h"
#include "launcher/launcher.h"
#include "shared/shared.h"

/* How long to wait for our processes to leave a database */
#define LEAVE_TIMEOUT_MS 5000
#define LEAVE_POLL_MS 10

/* How many running tasks a hint names */
#define MAX_NAMED_TASKS 5

static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/* The template database of a CREATE DATABASE command */
static char *
template_name(CreatedbStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, "template") == 0 && option->arg)
			return defGetString(option);
	}
	return "template1";
}

static bool
moves_tablespace(AlterDatabaseStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		if (strcmp(lfirst_node(DefElem, lc)->defname, "tablespace") == 0)
			return true;
	}
	return false;
}

/*
 * Return the name of the database that a command needs to itself, and the lock
 * that it takes on it; NULL if it needs none.
 */
static char *
database_needed(Node *stmt, LOCKMODE *mode)
{
	*mode = AccessExclusiveLock;
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			return castNode(DropdbStmt, stmt)->dbname;
		case T_RenameStmt:
			return castNode(RenameStmt, stmt)->renameType == OBJECT_DATABASE ?
				castNode(RenameStmt, stmt)->subname : NULL;
		case T_AlterDatabaseStmt:
			return moves_tablespace(castNode(AlterDatabaseStmt, stmt)) ?
				castNode(AlterDatabaseStmt, stmt)->dbname : NULL;
		case T_CreatedbStmt:
			*mode = ShareLock;
			return template_name(castNode(CreatedbStmt, stmt));
		default:
			return NULL;
	}
}

/* have_createdb_privilege() is exported by the latest minor releases only */
static bool
may_create_databases(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool		result = superuser();

	if (HeapTupleIsValid(tuple))
	{
		result |= ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

static bool
is_template(Oid dboid)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	bool		result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * May the current user execute the command, here and now?  Only those who may
 * are to make our processes exit, and the server checks that too late for us.
 * If the server refuses the command for a reason that is not checked here, our
 * processes exit and are started again.
 */
static bool
may_command(Node *stmt, Oid dboid, ProcessUtilityContext context)
{
	bool		owner = object_ownercheck(DatabaseRelationId, dboid, GetUserId());

	/* the current database can be copied, but not dropped or altered */
	if ((dboid == MyDatabaseId && !IsA(stmt, CreatedbStmt)) || XactReadOnly)
		return false;
	/* all these commands but RENAME refuse to run in a transaction block */
	if (!IsA(stmt, RenameStmt) && IsInTransactionBlock(context == PROCESS_UTILITY_TOPLEVEL))
		return false;
	switch (nodeTag(stmt))
	{
		case T_CreatedbStmt:
			return may_create_databases() && (owner || is_template(dboid));
		case T_RenameStmt:
			return may_create_databases() && owner;
		default:
			return owner;
	}
}

/* Make our idle processes exit from a database, and wait until they have */
static void
clear_database(Oid dboid, LOCKMODE mode)
{
	TimestampTz start;

	/* before all else, so that no other process can connect */
	LockSharedObject(DatabaseRelationId, dboid, 0, mode);
	start = GetCurrentTimestamp();
	while (tasksched_database_clear(dboid) &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), LEAVE_TIMEOUT_MS))
	{
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LEAVE_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/*
 * List the tasks that run in a database; NULL if there are none.  The database
 * may have another encoding, so only ASCII characters are shown.
 */
static char *
list_running_tasks(Oid dboid)
{
	StringInfoData list;
	int			nslots;
	TaskSlot   *slots = tasksched_slots_copy(dboid, &nslots);
	int			n = 0;

	initStringInfo(&list);
	for (int i = 0; i < nslots; i++)
	{
		if (!tasksched_slot_has_task(&slots[i]))
			continue;
		if (n++ >= MAX_NAMED_TASKS)
			continue;
		tasksched_text_mask_beyond_ascii(slots[i].action);
		appendStringInfo(&list, "%stask %s (action \"%s\", PID %d)", n > 1 ? ", " : "",
						 tasksched_uuid_out(&slots[i].task.id), slots[i].action, slots[i].pid);
	}
	if (n > MAX_NAMED_TASKS)
		appendStringInfo(&list, ", and %d more", n - MAX_NAMED_TASKS);
	return n > 0 ? list.data : NULL;
}

/*
 * Return a hint about the tasks that keep a database in use, or NULL if there
 * are none.
 */
static char *
running_tasks_hint(Oid dboid, bool drop)
{
	char	   *tasks = list_running_tasks(dboid);

	if (tasks == NULL)
		return NULL;
	if (drop)
		return psprintf("tasksched runs %s there. Use cancel_task() in that database, or DROP DATABASE ... WITH (FORCE).", tasks);
	return psprintf("tasksched runs %s there. Use cancel_task() in that database, or wait.", tasks);
}

static void
next_process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
					 ProcessUtilityContext context, ParamListInfo params,
					 QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, queryString, readOnlyTree, context,
								  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
}

/*
 * Execute a command that needs a database to itself.  If it fails because the
 * database is in use, or because FORCE may not terminate the sessions there,
 * add a hint that names the running tasks.
 */
static void
process_needing_database(Oid dboid, PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
						 ProcessUtilityContext context, ParamListInfo params,
						 QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	MemoryContext cxt = CurrentMemoryContext;
	bool		drop = IsA(pstmt->utilityStmt, DropdbStmt);

	PG_TRY();
	{
		next_process_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	PG_CATCH();
	{
		bool		in_use = geterrcode() == ERRCODE_OBJECT_IN_USE;
		ErrorData  *edata;

		if (!in_use && !(drop && geterrcode() == ERRCODE_INSUFFICIENT_PRIVILEGE))
			PG_RE_THROW();
		MemoryContextSwitchTo(cxt);
		edata = CopyErrorData();
		FlushErrorState();
		if (edata->hint == NULL)
			edata->hint = running_tasks_hint(dboid, drop && in_use);
		ReThrowError(edata);
	}
	PG_END_TRY();
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;

	/*
	 * a new database may have the extension, an altered one may allow
	 * connections
	 */
	bool		databases_change = IsA(stmt, CreatedbStmt) || IsA(stmt, DropdbStmt) ||
	IsA(stmt, AlterDatabaseStmt);
	LOCKMODE	mode;
	char	   *dbname = database_needed(stmt, &mode);
	Oid			dboid = dbname ? get_database_oid(dbname, true) : InvalidOid;

	tasksched_guard_command(stmt);
	if (OidIsValid(dboid) && may_command(stmt, dboid, context))
	{
		clear_database(dboid, mode);
		process_needing_database(dboid, pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	}
	else
		next_process_utility(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);

	if (databases_change)
		tasksched_new_databases_at_commit();
}

void
tasksched_commands_init(void)
{
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
