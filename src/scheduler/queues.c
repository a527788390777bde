/*
 * queues.c
 *	  The queues: where to look for due tasks, and when.
 *
 * A queue is the scheduled tasks of one priority, in the order of their due
 * times.  For each queue the scheduler remembers its frontier: the place up to
 * which everything has been claimed or passed by.  Looking for more starts
 * there.  Each claim leaves a dead index entry behind, which stays while an
 * old snapshot may need it.  A look from the start of the index would have to
 * step over all of these.  The frontier only goes forward, unless the clock is
 * set back.
 *
 * Tasks before the frontier may have to be looked at again.  A commit may have
 * scheduled a task there, or released the lock of one that was passed by.
 * Such a commit brings the due time along.  It may also be time to see whether
 * a blocked task still is blocked.  A second cursor looks at these tasks.  It
 * makes a pass, from the earliest of their places up to the frontier.  Tasks
 * that are added behind the second cursor wait for the next pass.  If the pass
 * under way went back for them, a session that kept changing old tasks could
 * prevent it from ever ending.
 *
 * Each round has a limit for either cursor, so neither waits for the other:
 * see claim.c.
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

/* When to retry the tasks of failing owners, and their earliest due time */
static TimestampTz failing_retry_at = DT_NOEND;
static TimestampTz failing_due_from = DT_NOEND;

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

/*
 * Ask for a pass that begins at this due time, unless the frontier or the pass
 * under way has yet to get there.
 */
static void
ask_for_pass(Queue *queue, TimestampTz run_at)
{
	if (run_at > queue->frontier.run_at ||
		(queue->in_pass && run_at > queue->pass_place.run_at))
		return;
	queue->next_pass_from = Min(queue->next_pass_from, run_at);
}

/*
 * Add the queue of a priority, keeping what is known of it.  *old points into
 * the old queues, and advances with the priorities.
 */
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
		queue->next_pass_from = DT_NOEND;
		queue->soon_due = DT_NOEND;
	}
	queue->more_beyond = true;
	queue->later_due = DT_NOBEGIN;
	ask_for_pass(queue, DT_NOBEGIN);
}

/*
 * Set the queues to those of the given priorities, which are in ascending
 * order, and look through each from the start.
 */
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
			add_queue(0, &old, old_end);	/* priority 0 always has one */
		add_queue(priorities[i], &old, old_end);
		last = priorities[i];
	}
	if (last < 0)
		add_queue(0, &old, old_end);
	if (before != NULL)
		pfree(before);
}

/*
 * Tasks that are due later were added, and only the earliest due time is
 * known.  So look up the next due times in the table.
 */
void
tasksched_queues_note_later(void)
{
	for (int i = 0; i < tasksched_nqueues; i++)
		tasksched_queues[i].later_due = DT_NOBEGIN;
}

/*
 * If it is time to retry the tasks of failing owners, ask for a pass over them
 */
void
tasksched_queues_revisit(TimestampTz now, TimestampTz at_the_latest)
{
	/* the clock may have been set back */
	if (failing_retry_at != DT_NOEND)
		failing_retry_at = Min(failing_retry_at, at_the_latest);
	if (now < failing_retry_at)
		return;
	for (int i = 0; i < tasksched_nqueues; i++)
		ask_for_pass(&tasksched_queues[i], failing_due_from);
	failing_retry_at = DT_NOEND;
	failing_due_from = DT_NOEND;
}

/*
 * A task with this due time was passed by, because its owner's workers fail.
 * Retry it at the time "until".
 */
void
tasksched_queues_note_failing(TimestampTz until, TimestampTz run_at)
{
	failing_retry_at = Min(failing_retry_at, until);
	failing_due_from = Min(failing_due_from, run_at);
}

/* A task with this due time was added, or was passed by while it was locked */
void
tasksched_queues_note_due(TimestampTz run_at, TimestampTz now)
{
	for (int i = 0; i < tasksched_nqueues; i++)
	{
		Queue	   *queue = &tasksched_queues[i];

		ask_for_pass(queue, run_at);
		if (run_at <= now + LEAD_US)
			queue->more_beyond = true;
		else
			queue->later_due = Min(queue->later_due, run_at);
	}
}

/*
 * If the clock was set back, move the frontier back too: the tasks between now
 * and the frontier are no longer due.
 */
void
tasksched_queue_see_time(Queue *queue, TimestampTz now)
{
	if (queue->frontier.run_at <= now + LEAD_US)
		return;
	memset(&queue->frontier, 0, sizeof(QueuePlace));
	queue->frontier.run_at = now;
	queue->in_pass = queue->in_pass && tasksched_compare_places(&queue->pass_place, &queue->frontier) < 0;
	queue->more_beyond = true;
	queue->later_due = DT_NOBEGIN;
}

/*
 * No more tasks can be claimed in this round.  The due times of this queue are
 * then no reason to wake up.
 */
void
tasksched_queue_put_off(Queue *queue, TimestampTz now)
{
	queue->soon_due = DT_NOEND;
	if (queue->later_due <= now + LEAD_US)
		queue->later_due = DT_NOBEGIN;
}

/* Is there anything to look at in this queue now? */
bool
tasksched_queue_has_more(const Queue *queue)
{
	return queue->more_beyond || queue->in_pass || queue->next_pass_from != DT_NOEND;
}

/*
 * The earliest due time that is still to come.  DT_NOEND means that there is
 * none, DT_NOBEGIN that it is not known.
 */
TimestampTz
tasksched_queues_next_due(void)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < tasksched_nqueues; i++)
	{
		next = Min(next, tasksched_queues[i].later_due);
		if (tasksched_queue_has_more(&tasksched_queues[i]))
			next = Min(next, tasksched_queues[i].soon_due);
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

/* Was a due task passed by that may become launchable without a wake-up? */
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

/*
 * When there will be a task to claim or to start a worker for.  DT_NOEND means
 * never.
 */
TimestampTz
tasksched_queues_next_reason(void)
{
	TimestampTz next = failing_retry_at;

	for (int i = 0; i < tasksched_nqueues; i++)
	{
		/*
		 * a worker is started ahead of the due time, and claims are made at
		 * it
		 */
		if (!TIMESTAMP_NOT_FINITE(tasksched_queues[i].later_due))
			next = Min(next, tasksched_queues[i].later_due - LEAD_US);
		if (tasksched_queue_has_more(&tasksched_queues[i]))
			next = Min(next, tasksched_queues[i].soon_due);
	}
	return next;
}

/* Begin the pass that was asked for */
void
tasksched_queue_begin_pass(Queue *queue)
{
	if (queue->next_pass_from == DT_NOBEGIN)
		queue->held = false;	/* the pass will find out anew */
	memset(&queue->pass_place, 0, sizeof(QueuePlace));
	queue->pass_place.run_at = queue->next_pass_from;
	queue->next_pass_from = DT_NOEND;
	queue->in_pass = tasksched_compare_places(&queue->pass_place, &queue->frontier) < 0;
	queue->pass_waits = false;
}
