/*
 * cancel.c
 *	  Check: interrupt the actions of tasks that were cancelled or deleted.
 *
 * cancel_task() only changes the row, and asks for this check at its commit.
 * The tables say which launches no longer hold their tasks, whatever
 * savepoints, prepared transactions or direct changes have led to that.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "schedule/schedule.h"
#include "scheduler/internal.h"
#include "store/store.h"

/*
 * An action may catch the interrupt.  So it is repeated after this time, and
 * after so many interrupts the worker is terminated.
 */
#define INTERRUPT_AGAIN_US USECS_PER_SEC
#define INTERRUPTS_BEFORE_TERMINATE 3

/* The interruption of the task in a slot */
typedef struct InterruptNote
{
	int			next_number;	/* number of the next interrupt; 0 = none is
								 * to be sent */
	TaskRef		task;
	TimestampTz next_at;		/* when to send it */
} InterruptNote;

static InterruptNote *interrupts;	/* one for each slot */

void
tasksched_cancel_init(void)
{
	interrupts = MemoryContextAllocZero(TopMemoryContext, tasksched_slot_count() * sizeof(InterruptNote));
}

/* Begin to interrupt a launch, unless that is under way already */
static void
call_for_interrupt(InterruptNote *note, const TaskRef *task)
{
	if (note->next_number > 0 && tasksched_same_launch(&note->task, task))
		return;
	note->task = *task;
	note->next_number = 1;
	note->next_at = 0;
}

/* Find launches that no longer hold their tasks and begin to interrupt them */
void
tasksched_check_superseded(void)
{
	TaskRef    *running = palloc(tasksched_round.nslots * sizeof(TaskRef));
	TaskRef    *superseded = palloc(tasksched_round.nslots * sizeof(TaskRef));
	int			n = 0;

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		if (tasksched_slot_has_task(&tasksched_round.slots[i]))
			running[n++] = tasksched_round.slots[i].task;
	}
	if (n == 0)
		return;

	tasksched_begin();
	n = tasksched_store_superseded(running, n, superseded);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < tasksched_round.nslots; j++)
		{
			const TaskSlot *slot = &tasksched_round.slots[j];

			if (tasksched_slot_has_task(slot) && tasksched_same_task(&slot->task.id, &superseded[i].id))
				call_for_interrupt(&interrupts[j], &superseded[i]);
		}
	}
}

/*
 * Send the interrupts that are due.  Interrupts are repeated until the launch
 * has ended.  A launch that has not begun yet is kept from beginning instead.
 */
void
tasksched_send_interrupts(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		InterruptNote *note = &interrupts[i];

		if (note->next_number == 0 || tasksched_is_ahead(note->next_at, now, INTERRUPT_AGAIN_US))
			continue;
		if (!tasksched_slot_interrupt(i, &note->task,
									  note->next_number > INTERRUPTS_BEFORE_TERMINATE ? SIGTERM : SIGINT))
			note->next_number = 0;	/* it has ended, or will not begin */
		else
		{
			note->next_number++;
			note->next_at = now + INTERRUPT_AGAIN_US;
		}
	}
}

/* When to send the next interrupt; DT_NOEND if none is to be sent */
TimestampTz
tasksched_next_interrupt(void)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		if (interrupts[i].next_number > 0)
			next = Min(next, interrupts[i].next_at);
	}
	return next;
}
