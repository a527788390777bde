/*
 * round.c
 *	  The state of one round of the loop, and putting tasks back.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "schedule/schedule.h"
#include "scheduler/internal.h"
#include "store/store.h"

/* How often to retry putting back a task whose row is locked */
#define LOCKED_RETRY_US USECS_PER_SEC

/* The same if a wake-up has come, since the row may have been unlocked */
#define LOCKED_WOKEN_US INT64CONST(100000)

/* A task that could not be put back, because its row was locked */
typedef struct LockedTask
{
	TaskRef		task;
	SlotEnd		end;
} LockedTask;

Round		tasksched_round;

static LockedTask *locked;		/* each counts as a running task */
static int	nlocked = 0;
static int	max_locked = 0;
static TimestampTz locked_tried_at = 0;
static TimestampTz locked_retry_at = 0;

void
tasksched_round_init(void)
{
	tasksched_round.cxt = AllocSetContextCreate(TopMemoryContext, "tasksched round", ALLOCSET_DEFAULT_SIZES);
}

/* Begin a round with a copy of the slots as they are now */
void
tasksched_round_begin(void)
{
	MemoryContext old = MemoryContextSwitchTo(tasksched_round.cxt);

	tasksched_round.retry_at = DT_NOEND;
	tasksched_round.slots = tasksched_slots_copy(MyDatabaseId, &tasksched_round.nslots);
	MemoryContextSwitchTo(old);
}

int
tasksched_count_slots(SlotState state)
{
	int			n = 0;

	for (int i = 0; i < tasksched_round.nslots; i++)
		n += tasksched_round.slots[i].state == state;
	return n;
}

/* Count the active tasks that we know of: in a slot, or to be put back */
int
tasksched_count_active(void)
{
	return tasksched_count_slots(SLOT_READY) + tasksched_count_slots(SLOT_RUNNING) +
		tasksched_count_slots(SLOT_DEAD) + nlocked;
}

/* Count the tasks without a slot that are to be put back */
int
tasksched_count_locked(void)
{
	return nlocked;
}

/* Have the next round begin at this time or earlier */
void
tasksched_retry_by(TimestampTz at)
{
	tasksched_round.retry_at = Min(tasksched_round.retry_at, at);
}

/* Is this launch already among those to be put back? */
bool
tasksched_is_remembered(const TaskRef *task)
{
	for (int i = 0; i < nlocked; i++)
	{
		if (tasksched_same_launch(&locked[i].task, task))
			return true;
	}
	return false;
}

static void
remember_locked(const TaskRef *task, SlotEnd end)
{
	if (tasksched_is_remembered(task))
		return;
	if (nlocked == max_locked)
	{
		max_locked = max_locked + 16;
		locked = locked ? repalloc(locked, max_locked * sizeof(LockedTask)) :
			MemoryContextAlloc(TopMemoryContext, max_locked * sizeof(LockedTask));
	}
	locked[nlocked].task = *task;
	locked[nlocked++].end = end;
	locked_tried_at = GetCurrentTimestamp();
	locked_retry_at = locked_tried_at + LOCKED_RETRY_US;
}

/*
 * Put a task back, in a transaction of its own.
 *
 * If its row is locked, the task is remembered here and retried later.  It
 * does not keep its slot meanwhile, or a session could take all slots by
 * locking the rows of ended tasks.  A task that crashed is not remembered
 * here: the crash would not be counted if this process ended.
 */
PutBack
tasksched_put_back(const TaskRef *task, SlotEnd end, bool server_crashed)
{
	PutBack		done;

	tasksched_begin();
	/* if the count could be lost, a task could crash the server endlessly */
	if (end == END_CRASHED)
		ForceSyncCommit();
	done = tasksched_store_put_back(task, end, server_crashed);
	tasksched_commit();
	TASKSCHED_FAULT_POINT("task put back");
	if (done == PUT_BACK_LOCKED)
	{
		tasksched_retry_by(GetCurrentTimestamp() + LOCKED_RETRY_US);
		if (end != END_CRASHED)
			remember_locked(task, end);
	}
	return done;
}

/*
 * Retry the tasks that could not be put back.  Returns the same as
 * tasksched_reap().
 */
bool
tasksched_put_back_locked(TimestampTz now, bool woken)
{
	bool		unclear = false;

	if (nlocked == 0)
		return false;
	locked_tried_at = Min(locked_tried_at, now);	/* the clock may have gone
													 * back */
	locked_retry_at = Min(locked_retry_at, locked_tried_at + (woken ? LOCKED_WOKEN_US : LOCKED_RETRY_US));
	if (now < locked_retry_at)
	{
		tasksched_retry_by(locked_retry_at);
		return false;
	}
	locked_tried_at = now;
	locked_retry_at = now + LOCKED_RETRY_US;
	for (int i = nlocked - 1; i >= 0; i--)
	{
		LockedTask	try = locked[i];
		PutBack		done = tasksched_put_back(&try.task, try.end, false);

		if (done == PUT_BACK_LOCKED)
			continue;
		unclear |= done == PUT_BACK_NOT_HELD;
		locked[i] = locked[--nlocked];
	}
	return unclear;
}
