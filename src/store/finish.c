/*
 * finish.c
 *	  The end of a launch, and of a task.
 *
 * A task moves from "live" to "finished" (and back) by a DELETE and an INSERT
 * in one statement.  So a session that waits for the row finds it gone and
 * looks again, rather than failing.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "base/base.h"
#include "shared/shared.h"
#include "store/internal.h"
#include "store/store.h"

/*
 * Run a statement that changes the row of one live task, and takes the place
 * of that row as its last argument.  Returns the number of rows.  The caller
 * has called tasksched_store_lock().
 */
static uint64
change_live(StoreQuery q, const Args *args, const pg_uuid_t *id)
{
	Args		args_and_place = *args;
	TaskLookup	row = {0};
	ItemPointerData before;
	bool		first = true;
	uint64		n = 0;

	tasksched_add_pointer(&args_and_place, &row.place);
	while (n == 0 && tasksched_row_find_live(id, &row) &&
		   (first || !ItemPointerEquals(&row.place, &before)))
	{
		n = tasksched_execute(q, &args_and_place);
		before = row.place;		/* if the row has moved, try again */
		first = false;
	}
	return n;
}

/*
 * Remove the finished twin of a live task that is about to finish.  A restore
 * may have brought it back beside the live task.  Returns false if the launch
 * does not hold the live task.  The finished row is then no twin: the task may
 * have been cancelled meanwhile.
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

/*
 * Move a task to "finished".  Returns false if the launch does not hold it.
 * If launch is NULL, the state of the task does not matter.
 */
bool
tasksched_to_finished(const pg_uuid_t *id, const int32 *launch, const Outcome *outcome, int crashes)
{
	Args		args = {0};

	tasksched_add_pointer(&args, id);
	tasksched_add_int4_or_null(&args, launch);
	tasksched_add_text(&args, tasksched_status_name(outcome->status));
	tasksched_add_pointer(&args, outcome->result);
	tasksched_add_text(&args, outcome->error);
	tasksched_add_pointer(&args, outcome->error_details);
	tasksched_add_arg(&args, Int32GetDatum(crashes));
	tasksched_add_time(&args, GetCurrentTimestamp());
	if (!replace_twin(id, launch) || change_live(Q_TO_FINISHED, &args, id) == 0)
		return false;
	tasksched_tell_waiters_at_commit(id);
	return true;
}

/*
 * At a COMMIT inside a procedure: store what was staged so far.  Even if there
 * is nothing to store, this locks the row, checks the fence and updates
 * updated_at.  Returns false if the launch no longer holds the task.
 */
bool
tasksched_store_checkpoint(const TaskRef *task, const Outcome *change)
{
	Args		args = {0};

	tasksched_add_pointer(&args, &task->id);
	tasksched_add_arg(&args, Int32GetDatum(task->launch));
	tasksched_add_pointer(&args, change->result);
	tasksched_add_text(&args, change->error);
	tasksched_add_time(&args, GetCurrentTimestamp());
	return change_live(Q_CHECKPOINT, &args, &task->id) > 0;
}

/*
 * Store the outcome of a stage, after which the task goes on.  If it is
 * scheduled without a due time, or with a past one, it is due now.
 */
static bool
store_stage(const TaskRef *task, const Outcome *outcome)
{
	Args		args = {0};
	TimestampTz now = GetCurrentTimestamp();
	bool		proceed = outcome->status == STATUS_ACTIVE;
	TimestampTz run_at = outcome->run_at;

	if (!proceed && (run_at == DT_NOEND || run_at < now))
		run_at = now;
	tasksched_add_pointer(&args, &task->id);
	tasksched_add_arg(&args, Int32GetDatum(task->launch));
	tasksched_add_arg(&args, BoolGetDatum(proceed));
	tasksched_add_time(&args, run_at);
	tasksched_add_pointer(&args, outcome->result);
	tasksched_add_text(&args, outcome->error);
	tasksched_add_time(&args, now);
	if (change_live(Q_STAGE, &args, &task->id) == 0)
		return false;
	if (!proceed)
		tasksched_wake_at_commit(WAKE_DUE, run_at);
	return true;
}

/*
 * Store the outcome of a launch.  Returns false if the launch no longer holds
 * the task.
 */
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
			return tasksched_to_finished(&task->id, &task->launch, outcome, 0);
		default:
			elog(ERROR, "unexpected outcome %d", (int) outcome->status);
			return false;
	}
}
