/*
 * tasks.c
 *	  Tasks as their owners and admins see and change them.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "shared/shared.h"
#include "store/internal.h"
#include "store/store.h"

/* Store a new task of the current user */
void
tasksched_store_insert_task(const pg_uuid_t *id, const char *action, TimestampTz run_at,
							const char *resource_id, Jsonb *params, TimestampTz now)
{
	Args		args = {0};

	tasksched_add_pointer(&args, id);
	tasksched_add_text(&args, action);
	tasksched_add_time(&args, run_at);
	tasksched_add_text(&args, resource_id);
	tasksched_add_pointer(&args, params);
	tasksched_add_arg(&args, ObjectIdGetDatum(GetUserId()));
	tasksched_add_time(&args, now);
	tasksched_add_home(&args);
	tasksched_store_lock(false);
	(void) tasksched_execute(Q_INSERT, &args);
	tasksched_wake_at_commit(WAKE_DUE, run_at);
}

/* Run a statement that changes the one row that the caller has locked */
static void
change_locked(StoreQuery q, Args *args)
{
	if (tasksched_execute(q, args) != 1)
		elog(ERROR, "a task that was locked has not been changed");
}

void
tasksched_store_update_scheduled(const TaskLookup *row, const Outcome *change)
{
	Args		args = {0};

	tasksched_add_pointer(&args, &row->id);
	tasksched_add_time(&args, change->run_at);
	tasksched_add_pointer(&args, change->result);
	tasksched_add_text(&args, change->error);
	tasksched_add_time(&args, GetCurrentTimestamp());
	tasksched_add_pointer(&args, &row->place);
	change_locked(Q_UPDATE_SCHEDULED, &args);
}

void
tasksched_store_delete(const TaskLookup *row)
{
	Args		args = {0};

	tasksched_add_pointer(&args, &row->id);
	tasksched_add_pointer(&args, &row->place);
	change_locked(row->finished ? Q_DELETE_FINISHED : Q_DELETE_LIVE, &args);
	tasksched_tell_waiters_at_commit(&row->id);
}

void
tasksched_store_cancel(const TaskLookup *row)
{
	Outcome		cancelled = tasksched_outcome(STATUS_CANCELLED);

	if (!tasksched_to_finished(&row->id, NULL, &cancelled, 0))
		elog(ERROR, "a task that was locked has not been changed");
}

void
tasksched_store_retry(const TaskLookup *row)
{
	Args		args = {0};
	TimestampTz now = GetCurrentTimestamp();

	tasksched_add_pointer(&args, &row->id);
	tasksched_add_time(&args, now);
	tasksched_add_home(&args);
	tasksched_add_pointer(&args, &row->place);
	change_locked(Q_TO_LIVE, &args);
	tasksched_wake_at_commit(WAKE_DUE, now);
}

/*
 * Adopt the tasks that a restore or a copy has brought.  What they have become
 * elsewhere, their finished twins, is deleted.  Returns the number of adopted
 * tasks.
 */
int64
tasksched_store_adopt(void)
{
	Args		args = {0};
	Args		none = {0};
	int64		n;

	tasksched_store_lock(true);
	tasksched_add_home(&args);
	tasksched_add_time(&args, GetCurrentTimestamp());
	n = (int64) tasksched_execute(Q_ADOPT, &args);
	(void) tasksched_execute(Q_DELETE_TWINS, &none);
	tasksched_wake_at_commit(WAKE_SCAN, DT_NOEND);
	return n;
}

/*
 * Add the arguments for VISIBLE: the rights of the caller of our function
 * decide, not those of the owner of the extension
 */
static void
add_caller(Args *args, const Entered *saved, bool admin)
{
	tasksched_add_arg(args, BoolGetDatum(admin));
	tasksched_add_arg(args, ObjectIdGetDatum(saved->userid));
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
	tasksched_enter(&saved);
	tasksched_set_guc("enable_seqscan", "on");	/* the plan is for this call
												 * alone */
	add_caller(&args, &saved, admin);
	tasksched_add_pointer(&args, actions);
	tasksched_add_text(&args, resource_id);
	tasksched_add_pointer(&args, statuses);
	tasksched_add_time(&args, max_timestamp ? *max_timestamp : DT_NOEND);
	tasksched_add_int4_or_null(&args, max_rows);
	tasksched_run_into(tasksched_get_tasks_sql, &args, argtypes, rsinfo);
	tasksched_leave(&saved);
}
