/*
 * blocked.c
 *	  Why a due task can't run, as text for the view blocked_tasks.
 *
 * The scheduler makes the checks on the task itself before it claims the task.
 * An error in a worker before the action begins could only be reported in the
 * server log, whereas a task that is not claimed stays in the view with the
 * reason.
 *
 * One reason is not found here: a task with the same id may be finished.  The
 * view looks for that itself, and the scheduler finds it when it claims the
 * task.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "actions/actions.h"
#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "shared/shared.h"
#include "store/store.h"

static bool
database_allows_connections(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		result = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datallowconn;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/*
 * Return the reason in the task itself why it can't run.  If there is none,
 * return NULL, and *found describes the function to call.
 */
char *
tasksched_task_blocked(const char *action, Oid owner, bool foreign, Action *found)
{
	if (foreign)
		return pstrdup("the task comes from another installation; see adopt_tasks()");
	if (!tasksched_role_exists(owner))
		return pstrdup("the role that owns the task does not exist");
	if (!database_allows_connections())
		return pstrdup("the database does not allow connections");
	if (object_aclcheck(DatabaseRelationId, MyDatabaseId, owner, ACL_CONNECT) != ACLCHECK_OK)
		return pstrdup("the role that owns the task may not connect to the database");
	return tasksched_action_blocked(action, found);
}

/*
 * Return the reason why the scheduler does not run any task, or none of this
 * owner.  NULL if there is none.
 */
static const char *
scheduler_blocked(Oid owner)
{
	DatabaseInfo db;
	bool		known;

	if (RecoveryInProgress())
		return "the server is in recovery";
	if (!tasksched_enabled)
		return "tasksched.enabled is off";
	known = tasksched_database_copy(MyDatabaseId, &db);
	if ((!known || db.pid == 0) && !tasksched_launcher_is_there())
		return "the launcher has not started; see the server log and max_worker_processes";
	if (!known)
		return "the scheduler of this database has not started yet";
	if (db.paused)
		return "the scheduler of this database is paused; see resume_scheduler()";
	for (int i = 0; i < MAX_FAILING_OWNERS; i++)
	{
		if (db.failing_owners[i] == owner)
			return "workers of the role that owns the task fail to start; see the server log";
	}
	if (db.lack == LACK_SLOT)
		return "no background worker slot is free; see max_worker_processes";
	if (db.lack == LACK_PROCESS)
		return "the server could not start a process; see the server log";
	if (db.pid == 0 || tasksched_database_is_starting(&db))
		return "the scheduler of this database has not started yet";
	return NULL;
}

/* How many running tasks a role has */
typedef struct Share
{
	Oid			role;			/* InvalidOid = roles that the caller may not
								 * see */
	int			n;
} Share;

/* How many roles a reason names; the others are counted together */
#define NAMED_ROLES 3

/*
 * Sort by number of tasks, largest first, and the roles not to be named last
 */
static int
compare_shares(const void *a, const void *b)
{
	const Share *x = a;
	const Share *y = b;

	if (OidIsValid(x->role) != OidIsValid(y->role))
		return OidIsValid(x->role) ? -1 : 1;
	return x->n != y->n ? y->n - x->n : (int) (x->role > y->role) - (int) (x->role < y->role);
}

/* May the caller know that this role has a running task? */
static bool
may_know(Oid role)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR) || tasksched_role_visible(role);
}

static void
add_share(Share *shares, int *n, Oid role)
{
	int			i = 0;

	while (i < *n && shares[i].role != role)
		i++;
	if (i == *n)
	{
		shares[i].role = role;
		shares[i].n = 0;
		(*n)++;
	}
	shares[i].n++;
}

/* Add "who: how many" to a list */
static void
append_count(StringInfo list, const char *who, int n)
{
	if (n > 0)
		appendStringInfo(list, "%s%s: %d", list->len > 0 ? ", " : "", who, n);
}

/* List which roles have how many running tasks */
static char *
describe_shares(Share *shares, int n, int locked)
{
	StringInfoData list;
	int			others = 0;

	qsort(shares, n, sizeof(Share), compare_shares);
	initStringInfo(&list);
	for (int i = 0; i < n; i++)
	{
		char	   *name = i < NAMED_ROLES && OidIsValid(shares[i].role) ?
		GetUserNameFromId(shares[i].role, true) : NULL;

		if (name == NULL)
		{
			others += shares[i].n;
			continue;
		}
		tasksched_text_mask(name);
		append_count(&list, name, shares[i].n);
	}
	append_count(&list, "other roles", others);
	append_count(&list, "ended, but locked by other transactions", locked);
	return list.data;
}

/*
 * If all places for running tasks of this database are taken, return a reason
 * that says so and names the roles.  Otherwise return NULL.  A task that ended
 * without an outcome keeps its place until it has been put back.
 */
static char *
places_taken(void)
{
	int			nslots;
	TaskSlot   *slots;
	Share	   *shares;
	DatabaseInfo db;
	int			nshares = 0;
	int			running = 0;
	int			locked = tasksched_database_copy(MyDatabaseId, &db) ? db.nlocked : 0;

	if (tasksched_max_running_tasks == 0)
		return pstrdup("tasksched.max_running_tasks is 0");
	slots = tasksched_slots_copy(MyDatabaseId, &nslots);
	shares = palloc(nslots * sizeof(Share));
	for (int i = 0; i < nslots; i++)
	{
		locked += slots[i].state == SLOT_DEAD;
		if (!tasksched_slot_has_task(&slots[i]))
			continue;
		running++;
		add_share(shares, &nshares, may_know(slots[i].owner) ? slots[i].owner : InvalidOid);
	}
	if (running + locked < tasksched_max_running_tasks)
		return NULL;
	return psprintf("all places for running tasks are taken (%s); see running_tasks and tasksched.max_running_tasks",
					describe_shares(shares, nshares, locked));
}

/* The result of places_taken(), which is computed once for each statement */
typedef struct PlacesNote
{
	char	   *reason;
} PlacesNote;

static const char *
places_taken_once(FmgrInfo *flinfo)
{
	PlacesNote *note = flinfo->fn_extra;

	if (note == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(flinfo->fn_mcxt);

		note = palloc(sizeof(PlacesNote));
		note->reason = places_taken();
		flinfo->fn_extra = note;
		MemoryContextSwitchTo(old);
	}
	return note->reason;
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
		PG_RETURN_TEXT_P(cstring_to_text("tasksched is not in shared_preload_libraries"));

	action = text_to_cstring(PG_GETARG_TEXT_PP(0));
	owner = DatumGetObjectId(DirectFunctionCall1(tasksched_owner_oid, PG_GETARG_DATUM(1)));
	foreign = PG_GETARG_INT64(2) != tasksched_store_installation() ||
		PG_GETARG_OID(3) != MyDatabaseId;
	reason = tasksched_task_blocked(action, owner, foreign, &found);
	if (reason == NULL)
		reason = scheduler_blocked(owner);
	if (reason == NULL)
		reason = places_taken_once(fcinfo->flinfo);
	if (reason == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(reason));
}
