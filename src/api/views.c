/*
 * views.c
 *	  SQL functions behind the views, which read shared memory, and who may see
 *	  what.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "actions/actions.h"
#include "api/api.h"
#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "shared/shared.h"
#include "store/store.h"
#include "worker/worker.h"

static bool
caller_is_monitor(void)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

static Oid
owner_arg(FunctionCallInfo fcinfo)
{
	return DatumGetObjectId(DirectFunctionCall1(tasksched_owner_oid, PG_GETARG_DATUM(0)));
}

PG_FUNCTION_INFO_V1(tasksched_may_see);
Datum
tasksched_may_see(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(tasksched_role_visible(owner_arg(fcinfo)));
}

PG_FUNCTION_INFO_V1(tasksched_may_monitor);
Datum
tasksched_may_monitor(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(caller_is_monitor() || tasksched_role_visible(owner_arg(fcinfo)));
}

PG_FUNCTION_INFO_V1(tasksched_function_exists);
Datum
tasksched_function_exists(PG_FUNCTION_ARGS)
{
	RegisteredAction registered;

	PG_RETURN_BOOL(tasksched_store_find_action(text_to_cstring(PG_GETARG_TEXT_PP(0)), &registered) &&
				   OidIsValid(registered.function));
}

PG_FUNCTION_INFO_V1(tasksched_stuck_before);
Datum
tasksched_stuck_before(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(GetCurrentTimestamp() - tasksched_stuck_after * USECS_PER_SEC);
}

static void
push_number(JsonbInState *state, const char *key, int64 number)
{
	JsonbValue	k = {.type = jbvString};
	JsonbValue	v = {.type = jbvNumeric};

	if (number < 0)
		return;
	k.val.string.val = unconstify(char *, key);
	k.val.string.len = strlen(key);
	v.val.numeric = DatumGetNumeric(DirectFunctionCall1(int8_numeric, Int64GetDatum(number)));
	pushJsonbValue(state, WJB_KEY, &k);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static Jsonb *
progress_of(const TaskSlot *slot)
{
	JsonbInState state = {0};

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_number(&state, "done", slot->done);
	push_number(&state, "total", slot->total);
	if (slot->note[0] != '\0')
	{
		JsonbValue	k = {.type = jbvString};
		JsonbValue	v = {.type = jbvString};

		k.val.string.val = "note";
		k.val.string.len = 4;
		v.val.string.val = (char *) slot->note;
		v.val.string.len = strlen(slot->note);
		pushJsonbValue(&state, WJB_KEY, &k);
		pushJsonbValue(&state, WJB_VALUE, &v);
	}
	pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(state.result);
}

/* Columns of the view running_tasks */
enum
{
	RUNNING_TASK_ID,
	RUNNING_ACTION,
	RUNNING_OWNER,
	RUNNING_PID,
	RUNNING_LAUNCH,
	RUNNING_STATE,
	RUNNING_SINCE,
	RUNNING_PROGRESS,
	NUM_RUNNING
};

PG_FUNCTION_INFO_V1(tasksched_running_tasks);
Datum
tasksched_running_tasks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TaskSlot   *slots;
	int			n;
	bool		monitor = caller_is_monitor();

	InitMaterializedSRF(fcinfo, 0);
	if (!tasksched_preloaded())
		return (Datum) 0;
	slots = tasksched_slots_copy(MyDatabaseId, &n);
	for (int i = 0; i < n; i++)
	{
		TaskSlot   *slot = &slots[i];
		Datum		values[NUM_RUNNING];
		bool		nulls[NUM_RUNNING] = {false};

		if (slot->state != SLOT_READY && slot->state != SLOT_RUNNING)
			continue;
		if (!monitor && !tasksched_role_visible(slot->owner))
			continue;
		values[RUNNING_TASK_ID] = UUIDPGetDatum(&slot->task.id);
		values[RUNNING_ACTION] = CStringGetTextDatum(slot->action);
		values[RUNNING_OWNER] = ObjectIdGetDatum(slot->owner);
		values[RUNNING_PID] = Int32GetDatum(slot->pid);
		values[RUNNING_LAUNCH] = Int32GetDatum(slot->task.launch);
		values[RUNNING_STATE] = CStringGetTextDatum(slot->state == SLOT_READY ? "ready" : "running");
		values[RUNNING_SINCE] = TimestampTzGetDatum(slot->since);
		nulls[RUNNING_PROGRESS] = slot->state != SLOT_RUNNING || !slot->has_progress;
		values[RUNNING_PROGRESS] = nulls[RUNNING_PROGRESS] ? (Datum) 0 : JsonbPGetDatum(progress_of(slot));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* The state of a scheduler, in a word or two; db is NULL for an unknown database */
static const char *
scheduler_state(const DatabaseInfo *db)
{
	if (!tasksched_preloaded())
		return "not preloaded";
	if (RecoveryInProgress())
		return "in recovery";
	if (!tasksched_enabled)
		return "disabled";
	if ((db == NULL || db->pid == 0) && !tasksched_launcher_is_there())
		return "no launcher";
	if (db == NULL)
		return "starting";
	if (db->paused)
		return "paused";
	if (db->lack == LACK_SLOT)
		return "waiting for a worker slot";
	if (db->lack == LACK_PROCESS)
		return "waiting for a process";
	if (tasksched_database_is_starting(db))
		return "starting";
	return db->pid != 0 ? "running" : "idle";
}

/* Columns of the view status */
enum
{
	VIEW_DATABASE,
	VIEW_STATE,
	VIEW_PID,
	VIEW_RUNNING,
	VIEW_MAX_RUNNING,
	VIEW_NEXT_DUE,
	VIEW_LAST_SCAN,
	VIEW_LAST_ERROR,
	NUM_VIEW
};

/* One row of the view status */
static void
put_status(ReturnSetInfo *rsinfo, Oid dboid, const DatabaseInfo *db, int running)
{
	char	   *name = get_database_name(dboid);
	NameData	database;
	Datum		values[NUM_VIEW];
	bool		nulls[NUM_VIEW] = {false};
	bool		see_error = caller_is_monitor() || tasksched_caller_is_admin();

	if (name == NULL)
		return;					/* just dropped */
	tasksched_text_mask(name);
	namestrcpy(&database, name);
	values[VIEW_DATABASE] = NameGetDatum(&database);
	values[VIEW_STATE] = CStringGetTextDatum(scheduler_state(db));
	nulls[VIEW_PID] = db == NULL || db->pid == 0;
	values[VIEW_PID] = Int32GetDatum(db ? db->pid : 0);
	values[VIEW_RUNNING] = Int32GetDatum(running);
	values[VIEW_MAX_RUNNING] = Int32GetDatum(tasksched_max_running_tasks);
	nulls[VIEW_NEXT_DUE] = db == NULL || TIMESTAMP_NOT_FINITE(db->next_due);
	values[VIEW_NEXT_DUE] = TimestampTzGetDatum(db ? db->next_due : 0);
	nulls[VIEW_LAST_SCAN] = db == NULL || db->last_scan == 0;
	values[VIEW_LAST_SCAN] = TimestampTzGetDatum(db ? db->last_scan : 0);
	nulls[VIEW_LAST_ERROR] = db == NULL || db->last_error[0] == '\0' || !see_error;
	values[VIEW_LAST_ERROR] = nulls[VIEW_LAST_ERROR] ? (Datum) 0 : CStringGetTextDatum(db->last_error);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

static int
count_running(const TaskSlot *slots, int n, Oid dboid)
{
	int			running = 0;

	for (int i = 0; i < n; i++)
		running += slots[i].dboid == dboid &&
			(slots[i].state == SLOT_READY || slots[i].state == SLOT_RUNNING);
	return running;
}

PG_FUNCTION_INFO_V1(tasksched_status);
Datum
tasksched_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		monitor = caller_is_monitor();
	bool		seen_mine = false;
	DatabaseInfo *databases;
	TaskSlot   *slots;
	int			ndatabases;
	int			nslots;

	InitMaterializedSRF(fcinfo, 0);
	if (!tasksched_preloaded() || RecoveryInProgress())
	{
		put_status(rsinfo, MyDatabaseId, NULL, 0);
		return (Datum) 0;
	}

	databases = tasksched_databases_copy(&ndatabases);
	slots = tasksched_slots_copy(InvalidOid, &nslots);
	for (int i = 0; i < ndatabases; i++)
	{
		DatabaseInfo *db = &databases[i];

		if (db->dboid != MyDatabaseId && (!db->known || !monitor))
			continue;
		seen_mine |= db->dboid == MyDatabaseId;
		put_status(rsinfo, db->dboid, db, count_running(slots, nslots, db->dboid));
	}
	if (!seen_mine)
		put_status(rsinfo, MyDatabaseId, NULL, 0);
	return (Datum) 0;
}
