/*
 * queues.c
 *	  The queues: what there is to claim, and when.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "scheduler/internal.h"
#include "store/store.h"

Queue	   *tasksched_queues;
int			tasksched_nqueues;
static MemoryContext queue_cxt;

/* When to look again at tasks that were passed by, and the first of their due times */
static TimestampTz revisit_at = DT_NOEND;
static TimestampTz revisit_from = DT_NOEND;

void
tasksched_queues_init(void)
{
	queue_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched queues", ALLOCSET_SMALL_SIZES);
	tasksched_queues_scan(NULL, 0);
}

int
tasksched_compare_places(const QueuePlace *a, const QueuePlace *b)
{
	if (a->run_at != b->run_at)
		return a->run_at < b->run_at ? -1 : 1;
	return memcmp(&a->id, &b->id, sizeof(pg_uuid_t));
}

/* Look again at what was passed by from a due time on, unless the pass that is under way will come there */
static void
look_again(Queue *queue, TimestampTz run_at)
{
	if (run_at > queue->frontier.run_at ||
		(queue->revisiting && run_at > queue->revisit.run_at))
		return;
	queue->again = Min(queue->again, run_at);
}

/* Add the queue of a priority; old is where it would be among those there were */
static void
add_queue(int16 priority, const Queue **old, const Queue *old_end)
{
	Queue	   *queue = &tasksched_queues[tasksched_nqueues++];

	while (*old < old_end && (*old)->priority < priority)
		(*old)++;
	if (*old < old_end && (*old)->priority == priority)
		*queue = **old;
	else
	{
		queue->priority = priority;
		queue->frontier.run_at = DT_NOBEGIN;
		queue->again = DT_NOEND;
		queue->soon = DT_NOEND;
	}
	queue->due = true;
	queue->future = DT_NOBEGIN;
	look_again(queue, DT_NOBEGIN);
}

/* These are the priorities, ascending; read their tasksched_queues from the start */
void
tasksched_queues_scan(const int16 *priorities, int n)
{
	Queue	   *before = tasksched_queues;
	const Queue *old = before;
	const Queue *old_end = before != NULL ? before + tasksched_nqueues : NULL;
	int16		last = PG_INT16_MIN;

	tasksched_queues = MemoryContextAllocZero(queue_cxt, (n + 1) * sizeof(Queue));
	tasksched_nqueues = 0;
	for (int i = 0; i < n; i++)
	{
		if (priorities[i] > 0 && last < 0)
			add_queue(0, &old, old_end);	/* the usual priority, for what comes */
		add_queue(priorities[i], &old, old_end);
		last = priorities[i];
	}
	if (last < 0)
		add_queue(0, &old, old_end);
	if (before != NULL)
		pfree(before);
}

/* Tasks have come that are due later; we have been told of the earliest one alone */
void
tasksched_queues_note_later(void)
{
	for (int i = 0; i < tasksched_nqueues; i++)
		tasksched_queues[i].future = DT_NOBEGIN;
}

/* Is it time to look again at tasks that were passed by? */
void
tasksched_queues_revisit(TimestampTz now, TimestampTz at_the_latest)
{
	/* the clock may have gone back */
	if (revisit_at != DT_NOEND)
		revisit_at = Min(revisit_at, at_the_latest);
	if (now < revisit_at)
		return;
	for (int i = 0; i < tasksched_nqueues; i++)
		look_again(&tasksched_queues[i], revisit_from);
	revisit_at = DT_NOEND;
	revisit_from = DT_NOEND;
}

/* The workers of a task's owner fail: look again at the task then */
void
tasksched_queues_note_failing(TimestampTz until, TimestampTz run_at)
{
	revisit_at = Min(revisit_at, until);
	revisit_from = Min(revisit_from, run_at);
}

/* A task with this due time has come, or was locked when we passed by */
void
tasksched_queues_note_due(TimestampTz run_at, TimestampTz now)
{
	for (int i = 0; i < tasksched_nqueues; i++)
	{
		Queue	   *queue = &tasksched_queues[i];

		look_again(queue, run_at);
		if (run_at <= now + LEAD_US)
			queue->due = true;
		else
			queue->future = Min(queue->future, run_at);
	}
}

/* The clock has gone back: what lies between now and the frontier is not due any more */
void
tasksched_queue_see_time(Queue *queue, TimestampTz now)
{
	if (queue->frontier.run_at <= now + LEAD_US)
		return;
	memset(&queue->frontier, 0, sizeof(QueuePlace));
	queue->frontier.run_at = now;
	queue->revisiting = queue->revisiting && tasksched_compare_places(&queue->revisit, &queue->frontier) < 0;
	queue->due = true;
	queue->future = DT_NOBEGIN;
}

/* There is no place for tasks of this queue now: their due times are no reason to wake up */
void
tasksched_queue_put_off(Queue *queue, TimestampTz now)
{
	queue->soon = DT_NOEND;
	if (queue->future <= now + LEAD_US)
		queue->future = DT_NOBEGIN;
}

/* Is there anything to look at now? */
bool
tasksched_queue_has_more(const Queue *queue)
{
	return queue->due || queue->revisiting || queue->again != DT_NOEND;
}

/* The earliest due time that is still to come; DT_NOEND if there is none */
TimestampTz
tasksched_queues_next_due(void)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < tasksched_nqueues; i++)
	{
		next = Min(next, tasksched_queues[i].future);
		if (tasksched_queue_has_more(&tasksched_queues[i]))
			next = Min(next, tasksched_queues[i].soon);
	}
	return next;
}

bool
tasksched_queues_due(void)
{
	for (int i = 0; i < tasksched_nqueues; i++)
	{
		if (tasksched_queue_has_more(&tasksched_queues[i]))
			return true;
	}
	return false;
}

/* Is there a due task that was passed by, and that may be launched without anybody telling us? */
bool
tasksched_queues_held(void)
{
	for (int i = 0; i < tasksched_nqueues; i++)
	{
		if (tasksched_queues[i].held)
			return true;
	}
	return false;
}

/* When there will be something to claim, or to start a worker for */
TimestampTz
tasksched_queues_next_reason(void)
{
	TimestampTz next = revisit_at;

	for (int i = 0; i < tasksched_nqueues; i++)
	{
		/* first to start a worker, then to claim */
		if (!TIMESTAMP_NOT_FINITE(tasksched_queues[i].future))
			next = Min(next, tasksched_queues[i].future - LEAD_US);
		if (tasksched_queue_has_more(&tasksched_queues[i]))
			next = Min(next, tasksched_queues[i].soon);
	}
	return next;
}

/* Begin a pass over what lies before the frontier */
void
tasksched_queue_begin_pass(Queue *queue)
{
	if (queue->again == DT_NOBEGIN)
		queue->held = false;	/* it will see */
	memset(&queue->revisit, 0, sizeof(QueuePlace));
	queue->revisit.run_at = queue->again;
	queue->again = DT_NOEND;
	queue->revisiting = tasksched_compare_places(&queue->revisit, &queue->frontier) < 0;
	queue->stuck = false;
}
