/*
 * tasks.c
 *	  SQL functions on tasks.
 *
 * Arguments are checked before anything is looked up.  A task that the caller
 * may not see is answered as an unknown one.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
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

/* A waiter looks again after this time, even if it was not woken */
#define WAIT_NET_MS 60000

/* ----------
 * Arguments
 * ----------
 */

static char *
text_arg(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static void
check_finite(TimestampTz run_at)
{
	if (TIMESTAMP_NOT_FINITE(run_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("run_at must be finite")));
}

static TimestampTz
add_interval(TimestampTz time, Interval *interval)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(time),
												   IntervalPGetDatum(interval)));
}

static void
check_not_both(bool a, bool b, const char *name_a, const char *name_b)
{
	if (a && b)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s and %s must not be given together", name_a, name_b)));
}

/* The due time that run_at or delay stands for; now, if that is later */
static TimestampTz
due_time(const TimestampTz *run_at, Interval *delay, TimestampTz now)
{
	check_not_both(run_at != NULL, delay != NULL, "run_at", "delay");
	if (run_at != NULL)
	{
		check_finite(*run_at);
		return Max(*run_at, now);
	}
	if (delay != NULL)
	{
		TimestampTz due = add_interval(now, delay);

		check_finite(due);
		return Max(due, now);
	}
	return now;
}

/* Raise an error unless both can be stored, dumped and restored; each may be NULL */
static void
check_values(const char *resource_id, Jsonb *params)
{
	if (resource_id != NULL)
		tasksched_text_check(resource_id, strlen(resource_id));
	if (params != NULL)
		tasksched_jsonb_check(params, "params");
}

/* ----------
 * Scheduling
 * ----------
 */

/* Raise an error unless an action of that name is registered */
static void
check_action_exists(const char *action)
{
	RegisteredAction registered;

	if (!tasksched_store_find_action(action, &registered))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("action \"%s\" does not exist", action),
				 errhint("Use tasksched.register_action() to register it.")));
}

PG_FUNCTION_INFO_V1(tasksched_schedule_task);
Datum
tasksched_schedule_task(PG_FUNCTION_ARGS)
{
	char	   *action = text_arg(fcinfo, 0);
	char	   *resource_id = text_arg(fcinfo, 1);
	Jsonb	   *params = PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz run_at;
	TimestampTz due;
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	tasksched_check_action_name(action);
	run_at = PG_ARGISNULL(2) ? 0 : PG_GETARG_TIMESTAMPTZ(2);
	due = due_time(PG_ARGISNULL(2) ? NULL : &run_at,
				   PG_ARGISNULL(4) ? NULL : PG_GETARG_INTERVAL_P(4), now);
	check_values(resource_id, params);
	check_action_exists(action);

	tasksched_uuid_generate(id);
	tasksched_store_insert_task(id, action, due, resource_id, params, now);
	tasksched_warn_if_not_preloaded();
	PG_RETURN_UUID_P(id);
}

/* The elements of an array argument; NULL if it is not given */
static Datum *
array_arg(FunctionCallInfo fcinfo, int arg, const char *name, int expected, bool **nulls)
{
	ArrayType  *array;
	Oid			type;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *elems;
	int			n;

	if (PG_ARGISNULL(arg))
		return NULL;
	array = PG_GETARG_ARRAYTYPE_P(arg);
	type = ARR_ELEMTYPE(array);
	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	deconstruct_array(array, type, typlen, typbyval, typalign, &elems, nulls, &n);
	if (expected >= 0 && n != expected)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must have as many elements as params", name),
				 errdetail("There are %d elements in %s and %d in params.", n, name, expected)));
	return elems;
}

static void
return_id(ReturnSetInfo *rsinfo, const pg_uuid_t *id)
{
	Datum		value = UUIDPGetDatum(id);
	bool		isnull = false;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
}

PG_FUNCTION_INFO_V1(tasksched_schedule_tasks);
Datum
tasksched_schedule_tasks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *action = text_arg(fcinfo, 0);
	char	   *resource_id = text_arg(fcinfo, 2);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz run_at;
	TimestampTz due;
	Datum	   *params;
	Datum	   *resource_ids;
	Datum	   *run_ats;
	bool	   *params_null;
	bool	   *resource_ids_null;
	bool	   *run_ats_null;
	int			n;

	tasksched_check_action_name(action);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("params must not be null"),
				 errhint("Give an array with an element, which may be null, for each task.")));
	check_not_both(!PG_ARGISNULL(2), !PG_ARGISNULL(5), "resource_id", "resource_ids");
	check_not_both(!PG_ARGISNULL(3), !PG_ARGISNULL(6), "run_at", "run_ats");
	check_not_both(!PG_ARGISNULL(4), !PG_ARGISNULL(6), "delay", "run_ats");
	run_at = PG_ARGISNULL(3) ? 0 : PG_GETARG_TIMESTAMPTZ(3);
	due = due_time(PG_ARGISNULL(3) ? NULL : &run_at,
				   PG_ARGISNULL(4) ? NULL : PG_GETARG_INTERVAL_P(4), now);
	params = array_arg(fcinfo, 1, "params", -1, &params_null);
	n = ArrayGetNItems(ARR_NDIM(PG_GETARG_ARRAYTYPE_P(1)), ARR_DIMS(PG_GETARG_ARRAYTYPE_P(1)));
	resource_ids = array_arg(fcinfo, 5, "resource_ids", n, &resource_ids_null);
	run_ats = array_arg(fcinfo, 6, "run_ats", n, &run_ats_null);
	for (int i = 0; run_ats != NULL && i < n; i++)
	{
		if (!run_ats_null[i])
			check_finite(DatumGetTimestampTz(run_ats[i]));
	}
	check_values(resource_id, NULL);
	for (int i = 0; resource_ids != NULL && i < n; i++)
	{
		if (!resource_ids_null[i])
			check_values(TextDatumGetCString(resource_ids[i]), NULL);
	}
	for (int i = 0; i < n; i++)
	{
		if (params_null[i])
			continue;
		params[i] = JsonbPGetDatum(DatumGetJsonbP(params[i]));
		check_values(NULL, DatumGetJsonbP(params[i]));
	}
	check_action_exists(action);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (int i = 0; i < n; i++)
	{
		pg_uuid_t	id;

		CHECK_FOR_INTERRUPTS();
		tasksched_uuid_generate(&id);
		tasksched_store_insert_task(&id, action,
									run_ats && !run_ats_null[i] ? Max(DatumGetTimestampTz(run_ats[i]), now) : due,
									!resource_ids ? resource_id :
									resource_ids_null[i] ? NULL : TextDatumGetCString(resource_ids[i]),
									params_null[i] ? NULL : DatumGetJsonbP(params[i]), now);
		return_id(rsinfo, &id);
	}
	tasksched_warn_if_not_preloaded();
	return (Datum) 0;
}

/* A task as one object of the array that schedule_tasks(jsonb) takes */
typedef struct TaskObject
{
	char	   *action;
	char	   *resource_id;
	char	   *run_at;
	char	   *delay;
	Jsonb	   *params;
} TaskObject;

static void
bad_object(int index, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid task at position %d of the array", index + 1),
			 errdetail_internal("%s", detail),
			 errhint("A task is an object with the keys action, resource_id, run_at, params and delay.")));
}

/* Read one object */
static void
read_object(JsonbContainer *container, int index, TaskObject *task)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	memset(task, 0, sizeof(TaskObject));
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		char	   *name;
		char	  **field;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(key.val.string.val, key.val.string.len);
		(void) JsonbIteratorNext(&it, &value, true);
		if (strcmp(name, "params") == 0)
		{
			task->params = JsonbValueToJsonb(&value);
			continue;
		}
		field = strcmp(name, "action") == 0 ? &task->action :
			strcmp(name, "resource_id") == 0 ? &task->resource_id :
			strcmp(name, "run_at") == 0 ? &task->run_at :
			strcmp(name, "delay") == 0 ? &task->delay : NULL;
		if (field == NULL)
			bad_object(index, psprintf("The key \"%s\" is not known.", name));
		if (value.type == jbvString)
			*field = pnstrdup(value.val.string.val, value.val.string.len);
		else if (value.type != jbvNull)
			bad_object(index, psprintf("The value of \"%s\" is not a string.", name));
	}
}

/* Check the arguments of one object; returns its due time */
static TimestampTz
check_object(const TaskObject *task, TimestampTz now)
{
	TimestampTz run_at = 0;
	Interval   *delay = NULL;

	tasksched_check_action_name(task->action);
	check_values(task->resource_id, task->params);
	if (task->run_at)
		run_at = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(task->run_at),
														 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	if (task->delay)
		delay = DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(task->delay),
													  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	return due_time(task->run_at ? &run_at : NULL, delay, now);
}

PG_FUNCTION_INFO_V1(tasksched_schedule_tasks_jsonb);
Datum
tasksched_schedule_tasks_jsonb(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TimestampTz now = GetCurrentTimestamp();
	Jsonb	   *array;
	TaskObject *tasks;
	TimestampTz *due;
	int			n;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("tasks must not be null")));
	array = PG_GETARG_JSONB_P(0);
	if (!JB_ROOT_IS_ARRAY(array) || JB_ROOT_IS_SCALAR(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tasks must be an array of objects")));

	n = JB_ROOT_COUNT(array);
	tasks = palloc(Max(n, 1) * sizeof(TaskObject));
	due = palloc(Max(n, 1) * sizeof(TimestampTz));
	for (int i = 0; i < n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(&array->root, i);

		if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
			bad_object(i, "The element is not an object.");
		read_object(value->val.binary.data, i, &tasks[i]);
		due[i] = check_object(&tasks[i], now);
	}

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (int i = 0; i < n; i++)
	{
		pg_uuid_t	id;

		CHECK_FOR_INTERRUPTS();
		check_action_exists(tasks[i].action);
		tasksched_uuid_generate(&id);
		tasksched_store_insert_task(&id, tasks[i].action, due[i], tasks[i].resource_id,
									tasks[i].params, now);
		return_id(rsinfo, &id);
	}
	tasksched_warn_if_not_preloaded();
	return (Datum) 0;
}

/* Columns of the type outcome */
enum
{
	OUTCOME_STATUS,
	OUTCOME_RESULT,
	OUTCOME_ERROR,
	OUTCOME_RUN_AT,
	NUM_OUTCOME
};

/* The outcome reschedule() makes */
PG_FUNCTION_INFO_V1(tasksched_reschedule);
Datum
tasksched_reschedule(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[NUM_OUTCOME] = {0};
	bool		nulls[NUM_OUTCOME] = {false, true, true, true};
	TimestampTz run_at = PG_ARGISNULL(0) ? 0 : PG_GETARG_TIMESTAMPTZ(0);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[OUTCOME_STATUS] = tasksched_status_datum(STATUS_SCHEDULED);
	if (!PG_ARGISNULL(1))
	{
		values[OUTCOME_RESULT] = PG_GETARG_DATUM(1);
		nulls[OUTCOME_RESULT] = false;
	}
	if (!PG_ARGISNULL(0) || !PG_ARGISNULL(2))
	{
		values[OUTCOME_RUN_AT] = TimestampTzGetDatum(due_time(PG_ARGISNULL(0) ? NULL : &run_at,
															  PG_ARGISNULL(2) ? NULL : PG_GETARG_INTERVAL_P(2),
															  GetCurrentTimestamp()));
		nulls[OUTCOME_RUN_AT] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* ----------
 * Changing tasks
 * ----------
 */

static void
task_is_active(const pg_uuid_t *id, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("task %s is active", tasksched_uuid_out(id)),
			 errhint("%s", hint)));
}

/*
 * The task has just changed its status, so look at it again.  That is pointless
 * if the snapshot of the transaction still shows the old status.
 */
static void
before_next_look(void)
{
	CHECK_FOR_INTERRUPTS();
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
}

/* Check the arguments of update_task() and read them */
static void
read_update(FunctionCallInfo fcinfo, bool own, Outcome *change)
{
	bool		has_run_at = !PG_ARGISNULL(1);

	memset(change, 0, sizeof(Outcome));
	change->status = PG_ARGISNULL(2) ? STATUS_NONE : tasksched_status_from_datum(PG_GETARG_DATUM(2));
	change->run_at = DT_NOEND;
	if (change->status != STATUS_NONE && change->status != STATUS_SCHEDULED &&
		change->status != STATUS_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("update_task can only set the status to scheduled or active"),
				 errhint("A task becomes complete or failed by what its action returns or raises, and cancelled by cancel_task().")));
	if (!own && change->status == STATUS_ACTIVE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("update_task can set the status to active only inside the task's own action")));
	if (own && has_run_at && change->status != STATUS_SCHEDULED)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("run_at of a running task can only be set together with status scheduled")));
	if (has_run_at)
	{
		check_finite(PG_GETARG_TIMESTAMPTZ(1));
		change->run_at = Max(PG_GETARG_TIMESTAMPTZ(1), GetCurrentTimestamp());
	}
	if (!PG_ARGISNULL(3))
	{
		change->result = PG_GETARG_JSONB_P(3);
		tasksched_jsonb_check(change->result, "result");
	}
	change->error = tasksched_error_text(text_arg(fcinfo, 4));
}

PG_FUNCTION_INFO_V1(tasksched_update_task);
Datum
tasksched_update_task(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0);
	bool		own = id != NULL && tasksched_is_current_task(id) && tasksched_current_task_is_own();
	Outcome		change;
	TaskLookup	task;

	read_update(fcinfo, own, &change);
	if (id == NULL)
		PG_RETURN_BOOL(false);
	if (own)
	{
		tasksched_stage_current_task(&change);
		PG_RETURN_BOOL(true);
	}

	PreventCommandIfReadOnly("update_task()");
	tasksched_store_lock(false);
	while (tasksched_row_find(id, false, &task))
	{
		if (task.status == STATUS_ACTIVE)
			task_is_active(id, "Use cancel_task() to stop it.");
		if (task.status != STATUS_SCHEDULED)
			break;
		if (tasksched_row_lock(&task, LockWaitBlock) == ROW_LOCKED && task.status == STATUS_SCHEDULED)
		{
			tasksched_store_update_scheduled(&task, &change);
			tasksched_wake_at_commit(WAKE_DUE, change.run_at == DT_NOEND ? task.run_at : change.run_at);
			PG_RETURN_BOOL(true);
		}
		before_next_look();
	}
	PG_RETURN_BOOL(false);
}

PG_FUNCTION_INFO_V1(tasksched_delete_task);
Datum
tasksched_delete_task(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0);
	TaskLookup	task;

	PreventCommandIfReadOnly("delete_task()");
	tasksched_store_lock(true);
	while (id != NULL && tasksched_row_find(id, false, &task))
	{
		if (task.status == STATUS_ACTIVE)
			task_is_active(id, "Use cancel_task() first.");
		if (tasksched_row_lock(&task, LockWaitBlock) == ROW_LOCKED && task.status != STATUS_ACTIVE)
		{
			tasksched_store_delete(&task);
			PG_RETURN_BOOL(true);
		}
		before_next_look();
	}
	PG_RETURN_BOOL(false);
}

PG_FUNCTION_INFO_V1(tasksched_cancel_task);
Datum
tasksched_cancel_task(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0);
	TaskLookup	task;

	/*
	 * An action that cancels its own task would wait for itself.  A user who
	 * may not see the task gets the same answer as for an unknown one.
	 */
	if (id != NULL && tasksched_is_current_task(id) &&
		(tasksched_current_task_is_own() || tasksched_caller_is_admin()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("an action cannot cancel its own task"),
				 errhint("Raise an exception, or return fail() or complete().")));

	PreventCommandIfReadOnly("cancel_task()");
	tasksched_store_lock(true);
	while (id != NULL && tasksched_row_find(id, false, &task) && !task.finished)
	{
		if (tasksched_row_lock(&task, LockWaitBlock) == ROW_LOCKED)
		{
			tasksched_store_cancel(&task);
			tasksched_wake_at_commit(WAKE_CHECK, DT_NOEND);
			PG_RETURN_BOOL(true);
		}
		before_next_look();
	}
	PG_RETURN_BOOL(false);
}

PG_FUNCTION_INFO_V1(tasksched_retry_task);
Datum
tasksched_retry_task(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0);
	TaskLookup	task;

	PreventCommandIfReadOnly("retry_task()");
	tasksched_store_lock(true);
	while (id != NULL && tasksched_row_find(id, false, &task) && task.finished)
	{
		if (tasksched_row_lock(&task, LockWaitBlock) == ROW_LOCKED)
		{
			tasksched_store_retry(&task);
			PG_RETURN_BOOL(true);
		}
		before_next_look();
	}
	PG_RETURN_BOOL(false);
}

/* ----------
 * Reading tasks
 * ----------
 */

/* A task as the only row of a function's result */
static void
return_task(FunctionCallInfo fcinfo, Datum task)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(task);
	HeapTupleData tuple = {
		.t_len = HeapTupleHeaderGetDatumLength(header),
		.t_data = header
	};

	tuplestore_puttuple(((ReturnSetInfo *) fcinfo->resultinfo)->setResult, &tuple);
}

PG_FUNCTION_INFO_V1(tasksched_get_task);
Datum
tasksched_get_task(PG_FUNCTION_ARGS)
{
	Datum		task;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	if (tasksched_row_get(PG_GETARG_UUID_P(0), false, &task))
		return_task(fcinfo, task);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(tasksched_get_tasks);
Datum
tasksched_get_tasks(PG_FUNCTION_ARGS)
{
	TimestampTz max_timestamp = PG_ARGISNULL(3) ? 0 : PG_GETARG_TIMESTAMPTZ(3);
	int32		max_rows = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);

	if (max_rows < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must not be negative")));
	InitMaterializedSRF(fcinfo, 0);
	tasksched_store_get_tasks(PG_ARGISNULL(0) ? NULL : PG_GETARG_ARRAYTYPE_P(0),
							  text_arg(fcinfo, 1),
							  PG_ARGISNULL(2) ? NULL : PG_GETARG_ARRAYTYPE_P(2),
							  PG_ARGISNULL(3) ? NULL : &max_timestamp,
							  PG_ARGISNULL(4) ? NULL : &max_rows,
							  (ReturnSetInfo *) fcinfo->resultinfo);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(tasksched_task_is_running);
Datum
tasksched_task_is_running(PG_FUNCTION_ARGS)
{
	TaskSlot   *slots;
	int			n;

	if (PG_ARGISNULL(0) || !tasksched_preloaded())
		PG_RETURN_BOOL(false);
	slots = tasksched_slots_copy(MyDatabaseId, &n);
	for (int i = 0; i < n; i++)
	{
		if (slots[i].state == SLOT_RUNNING &&
			tasksched_same_task(&slots[i].task.id, PG_GETARG_UUID_P(0)))
			PG_RETURN_BOOL(tasksched_role_visible(slots[i].owner));
	}
	PG_RETURN_BOOL(false);
}

/* Raise an error if a task that is not finished can't be waited for */
static void
check_waitable(const pg_uuid_t *id)
{
	if (tasksched_is_current_task(id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("an action cannot wait for its own task")));
	if (!tasksched_preloaded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for a task while tasksched is not loaded by the server"),
				 errhint("Add tasksched to shared_preload_libraries and restart the server.")));
}

/*
 * Look at a task, and release the locks on the tables at once.  A command such
 * as VACUUM FULL would otherwise wait for us, and the worker that we wait for
 * would wait behind that command.
 */
static bool
look_and_release(const pg_uuid_t *id, TaskLookup *task)
{
	ResourceOwner owner = CurrentResourceOwner;
	ResourceOwner looking = ResourceOwnerCreate(owner, "tasksched look");
	bool		found;

	CurrentResourceOwner = looking;
	found = tasksched_row_find(id, true, task);
	ResourceOwnerRelease(looking, RESOURCE_RELEASE_BEFORE_LOCKS, false, false);
	ResourceOwnerRelease(looking, RESOURCE_RELEASE_LOCKS, false, false);
	ResourceOwnerRelease(looking, RESOURCE_RELEASE_AFTER_LOCKS, false, false);
	CurrentResourceOwner = owner;
	ResourceOwnerDelete(looking);
	return found;
}

/*
 * Wait until a task is finished or unknown; false at the timeout (NULL = none).
 * The timeout does not depend on changes of the clock.  Every look takes a new
 * snapshot, whatever the isolation level is.
 */
static bool
wait_until_finished(const pg_uuid_t *id, const int64 *limit_us)
{
	instr_time	start;
	TaskLookup	task;
	bool		prepared = false;
	bool		finished;
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "tasksched wait", ALLOCSET_SMALL_SIZES);

	INSTR_TIME_SET_CURRENT(start);
	for (;;)
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);
		long		timeout = WAIT_NET_MS;

		task.own_write = false;
		finished = !look_and_release(id, &task) || task.finished;
		MemoryContextSwitchTo(old);
		MemoryContextReset(cxt);
		if (task.own_write)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot wait for task %s, which the current transaction has changed",
							tasksched_uuid_out(id)),
					 errhint("Commit the transaction before you wait.")));
		if (finished)
			break;
		if (!prepared)
		{
			/* no wake-up is lost from here on; look once more */
			check_waitable(id);
			tasksched_waiters_prepare(id);
			prepared = true;
			continue;
		}
		if (limit_us != NULL)
		{
			instr_time	waited;
			int64		left_us;

			INSTR_TIME_SET_CURRENT(waited);
			INSTR_TIME_SUBTRACT(waited, start);
			left_us = *limit_us - (int64) INSTR_TIME_GET_MICROSEC(waited);
			if (left_us <= 0)
				break;
			timeout = Min(timeout, (left_us + 999) / 1000);
		}
		(void) tasksched_waiters_sleep(id, timeout);
	}
	if (prepared)
		tasksched_waiters_leave();
	MemoryContextDelete(cxt);
	return finished;
}

PG_FUNCTION_INFO_V1(tasksched_wait_for_task);
Datum
tasksched_wait_for_task(PG_FUNCTION_ARGS)
{
	int64		limit_us = 0;
	Datum		task;

	if (!PG_ARGISNULL(1))
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz deadline = add_interval(now, PG_GETARG_INTERVAL_P(1));

		if (deadline < now)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("timeout must not be negative")));
		limit_us = deadline - now;
	}
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot wait for a task during recovery"),
				 errhint("Wait on the primary server.")));

	InitMaterializedSRF(fcinfo, 0);
	if (!PG_ARGISNULL(0) &&
		wait_until_finished(PG_GETARG_UUID_P(0), PG_ARGISNULL(1) ? NULL : &limit_us) &&
		tasksched_row_get(PG_GETARG_UUID_P(0), true, &task))
		return_task(fcinfo, task);
	return (Datum) 0;
}

/* ----------
 * Inside an action
 * ----------
 */

PG_FUNCTION_INFO_V1(tasksched_report_progress);
Datum
tasksched_report_progress(PG_FUNCTION_ARGS)
{
	int64		done = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0);
	int64		total = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	char	   *note = text_arg(fcinfo, 2);

	if (done < 0 || total < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("progress must not be negative")));
	if (!tasksched_in_action())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("report_progress can only be called inside an action that runs a task")));
	if (!tasksched_current_task_is_own())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("report_progress can only be called with the rights of the task's owner"),
				 errdetail("The current user is \"%s\".", GetUserNameFromId(GetUserId(), false))));
	if (note != NULL)
	{
		tasksched_text_mask(note);
		note[pg_mbcliplen(note, strlen(note), PROGRESS_NOTE_LEN - 1)] = '\0';
	}
	tasksched_slot_progress(PG_ARGISNULL(0) ? NULL : &done,
							PG_ARGISNULL(1) ? NULL : &total, note);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(tasksched_current_task);
Datum
tasksched_current_task(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	if (tasksched_current_task_is_own())
		return_task(fcinfo, tasksched_current_task_datum());
	return (Datum) 0;
}

/* ----------
 * The scheduler's and the worker's state changes, for tests
 * ----------
 */

PG_FUNCTION_INFO_V1(tasksched_claim);
Datum
tasksched_claim(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	pg_uuid_t  *ids;
	TaskRef    *claimed;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), UUIDOID, UUID_LEN, false, TYPALIGN_CHAR,
					  &elems, &nulls, &n);
	ids = palloc0(Max(n, 1) * sizeof(pg_uuid_t));
	claimed = palloc(Max(n, 1) * sizeof(TaskRef));
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			ids[i] = *DatumGetUUIDP(elems[i]);
	}
	InitMaterializedSRF(fcinfo, 0);
	n = tasksched_store_claim_ids(ids, n, claimed);
	for (int i = 0; i < n; i++)
	{
		Datum		values[2] = {UUIDPGetDatum(&claimed[i].id), Int32GetDatum(claimed[i].launch)};
		bool		isnull[2] = {false, false};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(tasksched_finish);
Datum
tasksched_finish(PG_FUNCTION_ARGS)
{
	TaskRef		task = {
		.id = *PG_GETARG_UUID_P(0),
		.launch = PG_GETARG_INT32(1)
	};
	Outcome		outcome;

	tasksched_outcome_from_datum(PG_GETARG_DATUM(2), &outcome, CurrentMemoryContext);
	if (outcome.status == STATUS_NONE)
		outcome.status = STATUS_COMPLETE;
	tasksched_store_lock(true);
	PG_RETURN_BOOL(tasksched_store_finish(&task, &outcome));
}
