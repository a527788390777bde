/*
 * slots.c
 *	  The slots of workers.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "schedule/schedule.h"
#include "shared/internal.h"
#include "shared/shared.h"

/*
 * A launch that is terminated within this time after it began is not resumed
 * at once
 */
#define CUT_SHORT_US USECS_PER_SEC

static TaskSlot *my_slot = NULL;	/* in a worker */

/* ----------
 * States
 * ----------
 */

/*
 * The states that may follow each state, as bits.  The transitions:
 *
 *	FREE -> STARTING	the scheduler reserves the slot
 *	STARTING -> IDLE	the worker is connected
 *	IDLE -> READY		the scheduler hands over a task that it has claimed
 *	READY -> RUNNING	the worker is about to call the action
 *	READY -> IDLE		the task was superseded before it began
 *	RUNNING -> READY	the next launch of the same task follows (proceed)
 *	RUNNING -> IDLE		the outcome is committed
 *	READY, RUNNING -> DEAD	the worker exits without an outcome; "end" says why
 *	STARTING, IDLE -> FREE	the worker exits, or never came
 *	DEAD -> FREE		the scheduler has dealt with the task, or can't
 */
#define BIT(state) (1 << (state))

PG_USED_FOR_ASSERTS_ONLY static const int may_follow[] = {
	[SLOT_FREE] = BIT(SLOT_STARTING),
	[SLOT_STARTING] = BIT(SLOT_IDLE) | BIT(SLOT_FREE),
	[SLOT_IDLE] = BIT(SLOT_READY) | BIT(SLOT_FREE),
	[SLOT_READY] = BIT(SLOT_RUNNING) | BIT(SLOT_IDLE) | BIT(SLOT_DEAD),
	[SLOT_RUNNING] = BIT(SLOT_READY) | BIT(SLOT_IDLE) | BIT(SLOT_DEAD),
	[SLOT_DEAD] = BIT(SLOT_FREE)
};

/* Move a slot to another state.  Nothing else changes the state. */
static void
set_slot_state(TaskSlot *slot, SlotState state)
{
	Assert(LWLockHeldByMeInMode(tasksched_shared->lock, LW_EXCLUSIVE));
	Assert(may_follow[slot->state] & BIT(state));
	slot->state = state;
	slot->since = GetCurrentTimestamp();
	if (state == SLOT_FREE || state == SLOT_DEAD)
	{
		slot->pid = 0;
		slot->latch = NULL;
	}
	if (state == SLOT_FREE)
		slot->dboid = InvalidOid;
}

/* Does the slot have this state, in the same reservation? */
static bool
slot_is(TaskSlot *slot, uint32 generation, SlotState state)
{
	return slot->generation == generation && slot->state == state;
}

static void
wake_slot_scheduler(TaskSlot *slot)
{
	TaskDatabase *db = tasksched_find_database(slot->dboid);

	if (db != NULL)
	{
		tasksched_add_wake(db, WAKE_DUE, DT_NOEND);
		tasksched_set_scheduler_latch(db);
	}
}

/* ----------
 * The scheduler
 * ----------
 */

/*
 * If no slot is free, free the oldest slot of a dead worker of another
 * database, whose scheduler can't put the task back.  The next scan of that
 * scheduler will find the task and resume it, without knowing how its launch
 * ended.
 */
static void
make_slot_free(void)
{
	TaskSlot   *oldest = NULL;
	TaskDatabase *db;

	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &tasksched_shared->slots[i];

		if (slot->state == SLOT_FREE)
			return;
		if (slot->state == SLOT_DEAD && slot->dboid != MyDatabaseId &&
			(oldest == NULL || slot->since < oldest->since))
			oldest = slot;
	}
	if (oldest == NULL)
		return;
	db = tasksched_find_database(oldest->dboid);
	if (db != NULL)
	{
		tasksched_add_wake(db, WAKE_SCAN, DT_NOEND);
		tasksched_set_scheduler_latch(db);
	}
	set_slot_state(oldest, SLOT_FREE);
}

/*
 * Reserve a slot for a worker of this database and owner.  Returns -1 if there
 * is none.
 */
int
tasksched_slot_reserve(Oid owner, uint32 *generation)
{
	int			result = -1;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	make_slot_free();
	for (int i = 0; i < tasksched_slot_count() && result < 0; i++)
	{
		TaskSlot   *slot = &tasksched_shared->slots[i];

		if (slot->state != SLOT_FREE)
			continue;
		set_slot_state(slot, SLOT_STARTING);
		*generation = ++slot->generation;
		slot->dboid = MyDatabaseId;
		slot->owner = owner;
		slot->ready = false;
		slot->quit = false;
		result = i;
	}
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/*
 * Release a reservation whose worker has not come.  Returns false if the
 * worker has come after all.
 */
bool
tasksched_slot_release(int i, uint32 generation)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	result = slot_is(&tasksched_shared->slots[i], generation, SLOT_STARTING);
	if (result)
		set_slot_state(&tasksched_shared->slots[i], SLOT_FREE);
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/*
 * Hand a claimed task to an idle worker.  Returns false if the worker leaves
 * or has left, or the database is paused.
 */
bool
tasksched_slot_assign(int i, uint32 generation, const TaskRef *task,
					  const char *action, const Action *function)
{
	TaskSlot   *slot = &tasksched_shared->slots[i];
	bool		result = false;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (slot_is(slot, generation, SLOT_IDLE) && !slot->quit && !tasksched_is_paused(tasksched_my_database))
	{
		set_slot_state(slot, SLOT_READY);
		slot->task = *task;
		strlcpy(slot->action, action, sizeof(slot->action));
		slot->function = *function;
		slot->superseded = false;
		slot->end = END_NOT_BEGUN;
		SetLatch(slot->latch);
		result = true;
	}
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/*
 * Free the slot of a dead worker.  Its task is put back, or the scheduler has
 * noted it because its row is locked.
 */
void
tasksched_slot_reaped(int i, uint32 generation)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (slot_is(&tasksched_shared->slots[i], generation, SLOT_DEAD))
		set_slot_state(&tasksched_shared->slots[i], SLOT_FREE);
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Signal the worker that runs this very launch, or prevent the launch if it
 * has not begun.  Returns true if the launch runs, and may need another
 * signal.
 */
bool
tasksched_slot_interrupt(int i, const TaskRef *task, int signo)
{
	TaskSlot   *slot = &tasksched_shared->slots[i];
	bool		result = false;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (tasksched_slot_has_task(slot) && tasksched_same_launch(&slot->task, task))
	{
		if (slot->state == SLOT_READY)
			slot->superseded = true;
		else
			kill(slot->pid, signo);
		result = slot->state == SLOT_RUNNING;
	}
	LWLockRelease(tasksched_shared->lock);
	return result;
}

static void
quit_slot(TaskSlot *slot)
{
	if (slot->quit)
		return;
	slot->quit = true;
	if (slot->latch != NULL)
		SetLatch(slot->latch);
}

/* Make a worker exit as soon as it is idle */
void
tasksched_slot_quit(int i)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	quit_slot(&tasksched_shared->slots[i]);
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Make the workers of a database exit as soon as they are idle.  With
 * "terminate", terminate them at once, and free the slots of dead workers,
 * whose tasks can't be put back.
 */
void
tasksched_slots_quit(Oid dboid, bool terminate)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &tasksched_shared->slots[i];

		if (slot->state == SLOT_FREE || slot->dboid != dboid)
			continue;
		if (terminate && slot->state == SLOT_DEAD)
		{
			set_slot_state(slot, SLOT_FREE);
			continue;
		}
		quit_slot(slot);
		if (terminate && slot->pid != 0)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Terminate the idle and the starting workers of a database.  The others exit
 * as soon as they are idle.  Returns true if there were any to terminate.
 */
bool
tasksched_end_idle_workers(Oid dboid)
{
	bool		occupied = false;

	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &tasksched_shared->slots[i];

		if (slot->dboid != dboid)
			continue;
		slot->quit = true;
		if (slot->state == SLOT_STARTING && slot->pid == 0)
			set_slot_state(slot, SLOT_FREE);	/* the worker will see that
												 * when it comes */
		else if (slot->state == SLOT_STARTING || slot->state == SLOT_IDLE)
		{
			kill(slot->pid, SIGTERM);
			occupied = true;
		}
	}
	return occupied;
}

/* The same, for callers that do not hold the lock */
void
tasksched_slots_end_idle(Oid dboid)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	(void) tasksched_end_idle_workers(dboid);
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Free the slots of a database that only its scheduler could free, because no
 * scheduler will come.  A worker that is starting will see that its slot is
 * gone.
 */
void
tasksched_free_abandoned_slots(Oid dboid)
{
	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &tasksched_shared->slots[i];

		if (slot->dboid == dboid &&
			(slot->state == SLOT_DEAD || (slot->state == SLOT_STARTING && slot->pid == 0)))
			set_slot_state(slot, SLOT_FREE);
	}
}

/* ----------
 * Any process
 * ----------
 */

/*
 * Copy all slots.  Those of other databases look free, unless dboid is
 * InvalidOid.
 */
TaskSlot *
tasksched_slots_copy(Oid dboid, int *n)
{
	TaskSlot   *copy = palloc(tasksched_slot_count() * sizeof(TaskSlot));

	*n = tasksched_slot_count();
	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	memcpy(copy, tasksched_shared->slots, *n * sizeof(TaskSlot));
	LWLockRelease(tasksched_shared->lock);
	if (OidIsValid(dboid))
	{
		for (int i = 0; i < *n; i++)
		{
			if (copy[i].dboid != dboid)
				copy[i].state = SLOT_FREE;
		}
	}
	return copy;
}

/* Return the slot of a process whose action runs; -1 if there is none */
int
tasksched_slot_of(int pid)
{
	int			found = -1;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	for (int i = 0; i < tasksched_slot_count() && found < 0; i++)
	{
		if (tasksched_shared->slots[i].state == SLOT_RUNNING && tasksched_shared->slots[i].pid == pid)
			found = i;
	}
	LWLockRelease(tasksched_shared->lock);
	return found;
}

/* ----------
 * The worker
 * ----------
 */

/*
 * Find out how a worker that is in its action has ended.  An end that no other
 * process asked for (FATAL, exit()) counts as a crash of the task.  It does
 * not count if the postmaster has died: then all processes end, and a
 * scheduler that has not noticed yet would count the crash.  A launch that is
 * terminated soon after it began is resumed with a delay.  Otherwise an action
 * that terminates its own worker would be launched in a hot loop.
 */
static SlotEnd
end_in_action(const TaskSlot *slot)
{
	if (!tasksched_was_terminated() && PostmasterIsAlive())
		return END_CRASHED;
	return tasksched_is_ahead(slot->since + CUT_SHORT_US, GetCurrentTimestamp(), CUT_SHORT_US) ?
		END_CUT_SHORT : END_TERMINATED;
}

/* Leave the slot as the process exits */
static void
slot_detach(int code, Datum arg)
{
	TaskSlot   *slot = my_slot;
	uint64		waiters = 0;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (slot != NULL)
	{
		/* the outcome may be committed, and the waiters not woken yet */
		if (tasksched_slot_has_task(slot))
			waiters = tasksched_waiters_bit(&slot->task.id);
		if (slot->state == SLOT_RUNNING && slot->end == END_CRASHED)
			slot->end = end_in_action(slot);
		wake_slot_scheduler(slot);
		if (tasksched_slot_has_task(slot))
			set_slot_state(slot, SLOT_DEAD);

		/*
		 * if the database or the extension is gone, no scheduler will put the
		 * task back
		 */
		if (slot->state != SLOT_DEAD || tasksched_find_database(slot->dboid) == NULL)
			set_slot_state(slot, SLOT_FREE);
		tasksched_crash_detach();
	}
	LWLockRelease(tasksched_shared->lock);
	if (waiters != 0)
		tasksched_waiters_tell(waiters);

	/* a background worker slot becomes free: a database may wait for it */
	if (tasksched_shortage())
		tasksched_launcher_wake(false);
}

/*
 * Take the reserved slot.  Returns false if the reservation is no longer
 * valid.
 */
bool
tasksched_slot_attach(int i, uint32 generation)
{
	TaskSlot   *slot = &tasksched_shared->slots[i];
	bool		result = false;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (slot_is(slot, generation, SLOT_STARTING))
	{
		/* not IDLE until tasksched_slot_announce() */
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		my_slot = slot;
		result = true;
	}
	LWLockRelease(tasksched_shared->lock);
	if (result)
	{
		tasksched_crash_attach(i);
		tasksched_watch_sigterm();
		on_shmem_exit(slot_detach, 0);	/* see tasksched_database_attach() */
	}
	return result;
}

/* The worker is connected, and can be given a task */
void
tasksched_slot_announce(void)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	set_slot_state(my_slot, SLOT_IDLE);
	wake_slot_scheduler(my_slot);
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Return true and the task if there is one to run. *quit is set if the worker
 * must exit when it is idle.
 */
bool
tasksched_slot_take(TaskRef *task, Action *function, bool *quit)
{
	bool		result = false;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	my_slot->ready = true;
	if (my_slot->state == SLOT_READY)
	{
		*task = my_slot->task;
		*function = my_slot->function;
		result = true;
	}
	*quit = my_slot->quit;
	LWLockRelease(tasksched_shared->lock);
	return result;
}

bool
tasksched_slot_must_quit(void)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	result = my_slot->quit;
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/*
 * The action of this launch is about to be called.  Returns false if it must
 * not be called: the task was cancelled after it was read, or the database is
 * paused.  In the latter case *paused is set, and the task must be put back.
 */
bool
tasksched_slot_begin(const TaskRef *task, bool *paused)
{
	TaskDatabase *db;
	bool		begun = false;

	tasksched_crash_arm(task);
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_database(my_slot->dboid);
	*paused = !my_slot->superseded && db != NULL && tasksched_is_paused(db);
	if (!my_slot->superseded && !*paused)
	{
		set_slot_state(my_slot, SLOT_RUNNING);
		my_slot->task = *task;
		my_slot->end = END_CRASHED;
		my_slot->has_progress = false;
		my_slot->done = my_slot->total = -1;
		my_slot->note[0] = '\0';
		begun = true;
	}
	LWLockRelease(tasksched_shared->lock);
	if (!begun)
		tasksched_crash_disarm();
	return begun;
}

/*
 * The outcome of this launch is committed, and with it the claim of the next
 * launch
 */
void
tasksched_slot_proceed(const TaskRef *next)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	set_slot_state(my_slot, SLOT_READY);
	my_slot->task = *next;
	my_slot->superseded = false;
	my_slot->end = END_NOT_BEGUN;
	LWLockRelease(tasksched_shared->lock);
	tasksched_crash_disarm();
}

/*
 * The worker no longer has the task: its outcome is committed, or it was
 * superseded.  With "last", the worker takes no other task.
 */
void
tasksched_slot_settle(bool last)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	set_slot_state(my_slot, SLOT_IDLE);
	if (last)
		my_slot->quit = true;
	wake_slot_scheduler(my_slot);
	LWLockRelease(tasksched_shared->lock);
	tasksched_crash_disarm();
}

/*
 * Leave the slot of an idle worker.  Returns false if a task was handed over
 * meanwhile.
 */
bool
tasksched_slot_leave(void)
{
	TaskSlot   *slot = my_slot;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (slot->state == SLOT_IDLE)
	{
		wake_slot_scheduler(slot);
		set_slot_state(slot, SLOT_FREE);
		tasksched_crash_detach();
		my_slot = NULL;
	}
	LWLockRelease(tasksched_shared->lock);
	return my_slot == NULL;
}

/* Note what it means if the worker ends from here on */
void
tasksched_slot_end(SlotEnd end)
{
	my_slot->end = end;			/* no other process reads it before DEAD */
	if (end != END_CRASHED)
		tasksched_crash_disarm();
}

/*
 * Does this process run an action, or is it just about to begin or to end one?
 * No other process moves the slot on then, so no lock is needed.
 */
bool
tasksched_slot_is_running(void)
{
	return my_slot != NULL && my_slot->state == SLOT_RUNNING;
}

/* Does this process hold the task, while its action runs, before or after? */
bool
tasksched_slot_holds(const pg_uuid_t *id)
{
	return my_slot != NULL && tasksched_slot_has_task(my_slot) &&
		tasksched_same_task(&my_slot->task.id, id);
}

/* Publish the progress of the task that this process runs */
void
tasksched_slot_progress(const int64 *done, const int64 *total, const char *note)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	my_slot->has_progress = true;
	if (done)
		my_slot->done = *done;
	if (total)
		my_slot->total = *total;
	if (note)
		strlcpy(my_slot->note, note, PROGRESS_NOTE_LEN);
	LWLockRelease(tasksched_shared->lock);
}
