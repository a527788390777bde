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
 * like any other: the command then fails as it would for any session, and the
 * launcher starts the scheduler again.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "tasksched.h"

/* How long to wait for our processes to leave a database */
#define LEAVE_TIMEOUT_MS 5000
#define LEAVE_POLL_MS 10

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

/* May the current user give the command at all? */
static bool
may_command(Oid dboid, LOCKMODE mode)
{
	HeapTuple	tuple;
	bool		may_copy;

	if (object_ownercheck(DatabaseRelationId, dboid, GetUserId()))
		return true;
	if (mode != ShareLock)
		return false;

	/* a template may be copied by who may create databases */
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	may_copy = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (!may_copy)
		return false;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	may_copy = HeapTupleIsValid(tuple) && ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return may_copy;
}

/* Have our idle processes leave a database, and wait until they have */
static void
clear_database(Oid dboid, LOCKMODE mode)
{
	TimestampTz start = GetCurrentTimestamp();

	if (!tasksched_database_occupied(dboid))
		return;
	LockSharedObject(DatabaseRelationId, dboid, 0, mode);
	tasksched_database_clear(dboid);
	while (tasksched_database_occupied(dboid) &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), LEAVE_TIMEOUT_MS))
	{
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LEAVE_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

static bool
ends_prepared(Node *stmt)
{
	TransactionStmtKind kind;

	if (!IsA(stmt, TransactionStmt))
		return false;
	kind = castNode(TransactionStmt, stmt)->kind;
	return kind == TRANS_STMT_COMMIT_PREPARED || kind == TRANS_STMT_ROLLBACK_PREPARED;
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	bool		databases_change = IsA(stmt, CreatedbStmt) || IsA(stmt, DropdbStmt);
	bool		prepared = ends_prepared(stmt);
	LOCKMODE	mode;
	char	   *dbname = database_needed(stmt, &mode);

	if (dbname != NULL && context == PROCESS_UTILITY_TOPLEVEL)
	{
		Oid			dboid = get_database_oid(dbname, true);

		if (OidIsValid(dboid) && dboid != MyDatabaseId && may_command(dboid, mode))
			clear_database(dboid, mode);
	}

	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, queryString, readOnlyTree, context,
								  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	if (databases_change)
		tasksched_new_databases_at_commit();	/* a copy may have the extension */
	if (prepared)
		tasksched_prepared_ended();
}

void
tasksched_commands_init(void)
{
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
