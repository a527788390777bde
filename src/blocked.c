/*
 * blocked.c
 *	  Why a due task can't run, in words that a person can read.
 *
 * The scheduler asks before it claims a task, since what goes wrong in a worker
 * before the action begins can't be told anybody but the server log; the view
 * blocked_tasks shows the answers.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "tasksched.h"

static bool
database_allows_connections(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		result = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datallowconn;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* What is wrong with the task itself; NULL if nothing is, and then *found is what to call */
char *
tasksched_task_blocked(const char *action, Oid owner, bool foreign, Action *found)
{
	if (foreign)
		return pstrdup(_("the task comes from another installation; see adopt_tasks()"));
	if (!tasksched_role_exists(owner))
		return pstrdup(_("the role that owns the task does not exist"));
	if (!database_allows_connections())
		return pstrdup(_("the database does not allow connections"));
	if (object_aclcheck(DatabaseRelationId, MyDatabaseId, owner, ACL_CONNECT) != ACLCHECK_OK)
		return pstrdup(_("the role that owns the task may not connect to the database"));
	return tasksched_action_blocked(action, found);
}

/* What keeps the scheduler from running it; NULL if nothing does */
static const char *
scheduler_blocked(Oid owner)
{
	TaskDatabase db;
	bool		known;

	if (RecoveryInProgress())
		return _("the server is in recovery");
	if (!tasksched_enabled)
		return _("tasksched.enabled is off");
	known = tasksched_database_copy(MyDatabaseId, &db);
	if ((!known || db.pid == 0) && !tasksched_launcher_is_there())
		return _("the launcher has not started; see the server log and max_worker_processes");
	if (!known)
		return _("the scheduler of this database has not started yet");
	if (db.paused)
		return _("the scheduler of this database is paused; see resume_scheduler()");
	for (int i = 0; i < MAX_FAILING_OWNERS; i++)
	{
		if (db.failing_owners[i] == owner)
			return _("workers of the role that owns the task fail to start; see the server log");
	}
	if (db.lack == LACK_SLOT)
		return _("no background worker slot is free; see max_worker_processes");
	if (db.lack == LACK_PROCESS)
		return _("the server could not start a process; see the server log");
	if (db.pid == 0 || tasksched_database_is_starting(&db))
		return _("the scheduler of this database has not started yet");
	return NULL;
}

PG_FUNCTION_INFO_V1(tasksched_blocked_reason_sql);
Datum
tasksched_blocked_reason_sql(PG_FUNCTION_ARGS)
{
	char	   *action;
	Oid			owner;
	bool		foreign;
	Action		found;
	const char *reason;

	if (!tasksched_preloaded())
		PG_RETURN_TEXT_P(cstring_to_text(_("tasksched is not in shared_preload_libraries")));

	action = text_to_cstring(PG_GETARG_TEXT_PP(0));
	owner = DatumGetObjectId(DirectFunctionCall1(tasksched_owner_oid, PG_GETARG_DATUM(1)));
	foreign = PG_GETARG_INT64(2) != tasksched_store_installation() ||
		PG_GETARG_OID(3) != MyDatabaseId;
	reason = tasksched_task_blocked(action, owner, foreign, &found);
	if (reason == NULL)
		reason = scheduler_blocked(owner);
	if (reason == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(reason));
}
