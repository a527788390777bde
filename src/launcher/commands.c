/*
 * commands.c
 *	  Commands that need a database to themselves, and others that the
 *	  scheduler or the launcher has to hear of.
 *
 * DROP DATABASE, ALTER DATABASE ... RENAME and SET TABLESPACE, and CREATE
 * DATABASE with the database as its template fail if anybody is connected to
 * it, so our processes that are idle there have to go first.  The command's own
 * lock on the database is taken before that: whatever is started meanwhile
 * waits for it at its connection.  A worker that runs a task stays, a session
 * like any other: the command then fails as it would for any session, with a
 * hint that names the task, and the launcher starts the scheduler again.
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

/* So many running tasks are named in a hint */
#define MAX_NAMED_TASKS 5

static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/* The template of a CREATE DATABASE */
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

/* The database that a command needs to itself, and the lock it takes on it */
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
 * Will the server let the current user give the command, here and now?  It finds
 * that out only as it waits for our processes to leave, so the questions that
 * decide who may send them away are asked here as well.  If the server comes to
 * refuse more than that, our processes leave in vain, and come back.
 */
static bool
may_command(Node *stmt, Oid dboid, ProcessUtilityContext context)
{
	bool		owner = object_ownercheck(DatabaseRelationId, dboid, GetUserId());

	/* one can copy the database that one is connected to, but not drop it */
	if ((dboid == MyDatabaseId && !IsA(stmt, CreatedbStmt)) || XactReadOnly)
		return false;
	/* all but RENAME refuse to run in a transaction block */
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

/* Have our idle processes leave a database, and wait until they have */
static void
clear_database(Oid dboid, LOCKMODE mode)
{
	TimestampTz start;

	/* first: one that is just about to connect must not slip in */
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
 * The tasks that run in a database, as a list; NULL if there are none.  That
 * database may have another encoding.
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

/* What to do about the tasks that keep a database in use; NULL if there are none */
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
 * Execute a command that needs a database to itself.  If it fails since the
 * database is in use, or FORCE may not end what runs there, add which tasks do.
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
	/* a copy may have the extension, another may take connections now */
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
