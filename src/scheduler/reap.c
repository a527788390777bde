/*
 * reap.c
 *	  Reap: put back the tasks of workers that ended without an outcome, and
 *	  count crashes.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "scheduler/internal.h"

/*
 * Put back the tasks of workers that ended without an outcome.  Returns
 * whether a scan is needed, because such a launch no longer holds its task.
 *
 * If the row of a task that crashed is locked, its slot stays as it is, so
 * that the crash is counted even if this process ends before.
 */
bool
tasksched_reap(TimestampTz now, bool woken)
{
	bool		unclear = tasksched_put_back_locked(now, woken);

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		TaskSlot   *slot = &tasksched_round.slots[i];
		PutBack		done;

		if (slot->state != SLOT_DEAD)
			continue;
		done = tasksched_put_back(&slot->task, slot->end, false);
		if (done == PUT_BACK_LOCKED && slot->end == END_CRASHED)
			continue;
		if (slot->end == END_CRASHED)
			ereport(LOG,
					(errmsg("tasksched task %s (action \"%s\") ended its worker process",
							tasksched_uuid_out(&slot->task.id), slot->action)));
		/* the worker may have died between its next claim and telling of it */
		if (done == PUT_BACK_NOT_HELD)
			unclear = true;
		tasksched_slot_reaped(i, slot->generation);
		slot->state = SLOT_FREE;
	}
	return unclear;
}

/* Count the crashes of the launches that crashed the server */
void
tasksched_reap_suspects(void)
{
	int			n;
	Suspect    *suspects = tasksched_suspects_copy(MyDatabaseId, &n);

	for (int i = 0; i < n; i++)
	{
		if (tasksched_put_back(&suspects[i].task, END_CRASHED, true) == PUT_BACK_LOCKED)
			continue;
		ereport(LOG,
				(errmsg("tasksched task %s crashed the server",
						tasksched_uuid_out(&suspects[i].task.id))));
		tasksched_suspect_forget(&suspects[i]);
	}
}
