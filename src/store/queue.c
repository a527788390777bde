/*
 * queue.c
 *	  What the scheduler reads and changes: the queues of due tasks, claims,
 *	  launches that ended without an outcome, and old finished tasks.
 *
 * The scheduler never waits for other transactions, so its statements skip
 * locked rows.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "catalog/pg_type.h"

#include "base/base.h"
#include "base/settings.h"
#include "schedule/schedule.h"
#include "shared/shared.h"
#include "store/internal.h"
#include "store/store.h"

/* ----------
 * Queues
 * ----------
 */

/*
 * The priorities of the scheduled tasks, ascending, in the caller's memory
 * context
 */
int
tasksched_store_priorities(int16 **priorities)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	int			n;

	tasksched_enter(&saved);
	n = (int) tasksched_run(Q_PRIORITIES, &args);
	*priorities = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(int16));
	for (int i = 0; i < n; i++)
		(*priorities)[i] = DatumGetInt16(tasksched_result(i, 1));
	tasksched_leave(&saved);
	return n;
}

/* Columns of Q_PEEK */
enum
{
	PEEK_ID = 1,
	PEEK_RUN_AT,
	PEEK_OWNER,
	PEEK_ACTION,
	PEEK_FOREIGN,
	PEEK_PLACE
};

/* Read the next scheduled tasks of a priority, after a place in its queue */
int
tasksched_store_peek(int16 priority, const QueuePlace *after, TimestampTz horizon, int limit,
					 Candidate *candidates)
{
	Args		args = {0};
	Entered		saved;
	int			n;

	tasksched_add_arg(&args, Int16GetDatum(priority));
	tasksched_add_arg(&args, TimestampTzGetDatum(after->run_at));
	tasksched_add_pointer(&args, &after->id);
	tasksched_add_arg(&args, TimestampTzGetDatum(horizon));
	tasksched_add_arg(&args, Int64GetDatum(limit));
	tasksched_add_home(&args);
	tasksched_enter(&saved);
	n = (int) tasksched_run(Q_PEEK, &args);
	for (int i = 0; i < n; i++)
	{
		Candidate  *c = &candidates[i];

		c->id = *DatumGetUUIDP(tasksched_result(i, PEEK_ID));
		c->run_at = DatumGetTimestampTz(tasksched_result(i, PEEK_RUN_AT));
		c->owner = DatumGetObjectId(tasksched_result(i, PEEK_OWNER));
		strlcpy(c->action, TextDatumGetCString(tasksched_result(i, PEEK_ACTION)), sizeof(c->action));
		c->foreign = DatumGetBool(tasksched_result(i, PEEK_FOREIGN));
		c->place = *(ItemPointer) DatumGetPointer(tasksched_result(i, PEEK_PLACE));
	}
	tasksched_leave(&saved);
	return n;
}

/*
 * The earliest due time of a priority after a given time; DT_NOEND if there is
 * none
 */
TimestampTz
tasksched_store_next_due(int16 priority, TimestampTz after)
{
	Args		args = {0};
	Entered		saved;
	TimestampTz next = DT_NOEND;

	tasksched_enter(&saved);
	tasksched_add_arg(&args, Int16GetDatum(priority));
	tasksched_add_arg(&args, TimestampTzGetDatum(after));
	if (tasksched_run(Q_NEXT_DUE, &args) == 1)
		next = DatumGetTimestampTz(tasksched_result(0, 1));
	tasksched_leave(&saved);
	return next;
}

/*
 * After the clock was set back: make tasks due now that were due already when
 * their rows were last written, up to a limit.  Returns the number of tasks.
 */
int
tasksched_store_bring_forward(int limit)
{
	Args		args = {0};

	tasksched_add_time(&args, GetCurrentTimestamp());
	tasksched_add_arg(&args, Int64GetDatum(limit));
	return (int) tasksched_execute(Q_BRING_FORWARD, &args);
}

/* ----------
 * Claims
 * ----------
 */

/* Columns of Q_CLAIM */
enum
{
	CLAIM_ORDINAL = 1,
	CLAIM_LAUNCH
};

/*
 * Claim tasks: they become active, with the next launch number.  Claims those
 * of the tasks at these places that were due at the time of the look, that no
 * other transaction has locked, and that are not in "finished" as well.
 * Stores the launch of each task, or 0 if it was not claimed.  Returns the
 * number of tasks claimed.
 */
int
tasksched_store_claim(const pg_uuid_t *ids, const ItemPointerData *places, int n,
					  TimestampTz due, int32 *launches)
{
	Args		args = {0};
	Entered		saved;
	Datum	   *place_elems = palloc(Max(n, 1) * sizeof(Datum));
	Datum	   *id_elems = palloc(Max(n, 1) * sizeof(Datum));
	int			nclaimed;

	for (int i = 0; i < n; i++)
	{
		place_elems[i] = PointerGetDatum(&places[i]);
		id_elems[i] = UUIDPGetDatum(&ids[i]);
		launches[i] = 0;
	}
	tasksched_enter(&saved);
	tasksched_add_pointer(&args, construct_array(place_elems, n, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	tasksched_add_time(&args, due);
	tasksched_add_time(&args, GetCurrentTimestamp());
	tasksched_add_pointer(&args, construct_array(id_elems, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	nclaimed = (int) tasksched_run(Q_CLAIM, &args);
	for (int i = 0; i < nclaimed; i++)
		launches[DatumGetInt32(tasksched_result(i, CLAIM_ORDINAL)) - 1] = DatumGetInt32(tasksched_result(i, CLAIM_LAUNCH));
	tasksched_leave(&saved);
	return nclaimed;
}

/*
 * Claim tasks by their ids, each given once.  Returns the number of tasks
 * claimed.
 */
int
tasksched_store_claim_ids(const pg_uuid_t *ids, int n, TaskRef *claimed)
{
	pg_uuid_t  *found = palloc(Max(n, 1) * sizeof(pg_uuid_t));
	ItemPointerData *places = palloc(Max(n, 1) * sizeof(ItemPointerData));
	int32	   *launches = palloc(Max(n, 1) * sizeof(int32));
	int			nfound = 0;
	int			nclaimed = 0;

	tasksched_store_lock(false);
	for (int i = 0; i < n; i++)
	{
		TaskLookup	row;

		if (!tasksched_row_find_live(&ids[i], &row))
			continue;
		found[nfound] = ids[i];
		places[nfound++] = row.place;
	}
	(void) tasksched_store_claim(found, places, nfound, GetCurrentTimestamp(), launches);
	for (int i = 0; i < nfound; i++)
	{
		if (launches[i] == 0)
			continue;
		claimed[nclaimed].id = found[i];
		claimed[nclaimed++].launch = launches[i];
	}
	return nclaimed;
}

/* ----------
 * Launches
 * ----------
 */

/* Fail a task that has crashed as often as tasksched.max_crashes allows */
static void
fail_crashed(const pg_uuid_t *id, int crashes)
{
	Outcome		failed = tasksched_outcome(STATUS_FAILED);
	ErrorData	edata = {.sqlerrcode = ERRCODE_CRASH_SHUTDOWN};

	failed.error = crashes == 1 ? pstrdup("task crashed its worker process 1 time") :
		psprintf("task crashed its worker process %d times", crashes);
	edata.hint = pstrdup("The server log says how the worker process ended.");
	failed.error_details = tasksched_error_details(&edata);
	(void) tasksched_to_finished(id, NULL, &failed, 1);
}

/*
 * Put back a task whose launch ended without an outcome, so that it is claimed
 * again.  After a crash of the server (server_crashed), the claim may have
 * been lost, and the row is as it was before.  The row then gets the number of
 * the launch, so that the crash is not counted again if this is called again.
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
		return PUT_BACK_NOT_HELD;	/* it has an outcome, or another launch
									 * holds it */

	if (crashed && row.crashes + 1 >= tasksched_max_crashes)
	{
		fail_crashed(&task->id, row.crashes + 1);
		return PUT_BACK_DONE;
	}
	tasksched_add_pointer(&args, &task->id);
	tasksched_add_arg(&args, BoolGetDatum(undo));
	if (end == END_CUT_SHORT)
		tasksched_add_arg(&args, Int64GetDatum(tasksched_setback_delay(1)));
	else if (end == END_NOT_BEGUN || end == END_BOOKKEEPING)
		tasksched_add_arg(&args, Int64GetDatum(tasksched_setback_delay(row.setbacks + 1)));
	else
		tasksched_add_pointer(&args, NULL);
	tasksched_add_arg(&args, Int32GetDatum(crashed ? 1 : 0));
	tasksched_add_time(&args, GetCurrentTimestamp());
	tasksched_add_arg(&args, BoolGetDatum(undo || row.status == STATUS_SCHEDULED));
	tasksched_add_arg(&args, Int32GetDatum(task->launch));
	tasksched_add_pointer(&args, &row.place);
	tasksched_enter(&saved);
	if (tasksched_run(Q_PUT_BACK, &args) != 1)
		elog(ERROR, "task %s could not be put back", tasksched_uuid_out(&task->id));
	tasksched_wake_at_commit(WAKE_DUE, DatumGetTimestampTz(tasksched_result(0, 1)));
	tasksched_leave(&saved);
	return PUT_BACK_DONE;
}

/* Columns of Q_ACTIVE */
enum
{
	ACTIVE_ID = 1,
	ACTIVE_LAUNCH
};

/* The active tasks of this installation, in the caller's memory context */
int
tasksched_store_active(TaskRef **tasks)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	int			n;

	tasksched_add_home(&args);
	tasksched_enter(&saved);
	n = (int) tasksched_run(Q_ACTIVE, &args);
	*tasks = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(TaskRef));
	for (int i = 0; i < n; i++)
	{
		(*tasks)[i].id = *DatumGetUUIDP(tasksched_result(i, ACTIVE_ID));
		(*tasks)[i].launch = DatumGetInt32(tasksched_result(i, ACTIVE_LAUNCH));
	}
	tasksched_leave(&saved);
	return n;
}

/* Find those of these launches that no longer hold their tasks */
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

/* Columns of Q_STUCK */
enum
{
	STUCK_ID = 1,
	STUCK_ACTION
};

/*
 * The active tasks that have had no update for longer than
 * tasksched.stuck_after, in the caller's memory context
 */
int
tasksched_store_stuck(StuckTask **tasks)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	int			n;

	tasksched_add_time(&args, GetCurrentTimestamp() - tasksched_stuck_after * USECS_PER_SEC);
	tasksched_add_home(&args);
	tasksched_enter(&saved);
	n = (int) tasksched_run(Q_STUCK, &args);
	*tasks = MemoryContextAlloc(cxt, Max(n, 1) * sizeof(StuckTask));
	for (int i = 0; i < n; i++)
	{
		(*tasks)[i].id = *DatumGetUUIDP(tasksched_result(i, STUCK_ID));
		(*tasks)[i].action = MemoryContextStrdup(cxt, TextDatumGetCString(tasksched_result(i, STUCK_ACTION)));
	}
	tasksched_leave(&saved);
	return n;
}

/* ----------
 * Finished tasks
 * ----------
 */

/* Columns of Q_OLD_FINISHED */
enum
{
	OLD_PLACE = 1,
	OLD_ID,
	OLD_FINISHED_AT
};

/*
 * Delete a batch of finished tasks that are old enough.  Looks at up to limit
 * tasks that finished at *from or later, and moves *from on, so that the next
 * batch does not step over the deleted rows again.  Returns the number of
 * tasks looked at.
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
	TimestampTz before = *from;

	if (tasksched_keep_finished_tasks < 0)
		return 0;
	tasksched_add_time(&args, GetCurrentTimestamp() - tasksched_keep_finished_tasks * USECS_PER_SEC);
	tasksched_add_time(&args, *from);
	tasksched_add_arg(&args, Int64GetDatum(limit));
	tasksched_store_lock(true);
	tasksched_enter(&saved);
	n = (int) tasksched_run(Q_OLD_FINISHED, &args);
	old = palloc(Max(n, 1) * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		TaskLookup	live;

		*from = Max(*from, DatumGetTimestampTz(tasksched_result(i, OLD_FINISHED_AT)));

		/*
		 * a twin of a live task has to stay: it prevents the launch of that
		 * task
		 */
		if (!tasksched_row_find_live(DatumGetUUIDP(tasksched_result(i, OLD_ID)), &live))
			old[nold++] = tasksched_result(i, OLD_PLACE);
	}
	tasksched_add_pointer(&places, construct_array(old, nold, TIDOID, sizeof(ItemPointerData), false, TYPALIGN_SHORT));
	if (nold > 0)
		(void) tasksched_run(Q_PURGE, &places);
	tasksched_leave(&saved);
	/* all of this moment have to stay: go on behind it */
	if (nold == 0 && n == limit && *from == before)
		(*from)++;
	return n;
}
