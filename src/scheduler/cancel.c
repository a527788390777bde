/*
 * cancel.c
 *	  Check: interrupt the actions of tasks that were cancelled.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "schedule/schedule.h"
#include "scheduler/internal.h"
#include "store/store.h"

/* A cancelled action that goes on: interrupt it again, and then terminate */
#define INTERRUPT_AGAIN_US USECS_PER_SEC
#define INTERRUPTS_BEFORE_TERMINATE 3

/* The interruption of the task in a slot */
typedef struct InterruptNote
{
	int			sent;			/* 0 = none is called for; else one more than were sent */
	TaskRef		task;
	TimestampTz next_at;		/* when to send the next */
} InterruptNote;

static InterruptNote *interrupts;	/* for each slot */

void
tasksched_cancel_init(void)
{
	interrupts = MemoryContextAllocZero(TopMemoryContext, tasksched_slot_count() * sizeof(InterruptNote));
}

/* Begin to interrupt the task in a slot, unless that is under way */
static void
call_for_interrupt(InterruptNote *note, const TaskRef *task)
{
	if (note->sent > 0 && tasksched_same_launch(&note->task, task))
		return;
	note->task = *task;
	note->sent = 1;
	note->next_at = 0;
}

/* Find running launches that no longer hold their tasks; interrupt them */
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

/* Interrupt the actions of cancelled tasks until they end */
void
tasksched_send_interrupts(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		InterruptNote *note = &interrupts[i];

		if (note->sent == 0 || tasksched_is_ahead(note->next_at, now, INTERRUPT_AGAIN_US))
			continue;
		if (!tasksched_slot_interrupt(i, &note->task,
									  note->sent > INTERRUPTS_BEFORE_TERMINATE ? SIGTERM : SIGINT))
			note->sent = 0;		/* it has ended */
		else
		{
			note->sent++;
			note->next_at = now + INTERRUPT_AGAIN_US;
		}
	}
}

/* When the next interrupt is to be sent; DT_NOEND = none is called for */
TimestampTz
tasksched_next_interrupt(void)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		if (interrupts[i].sent > 0)
			next = Min(next, interrupts[i].next_at);
	}
	return next;
}
