/*
 * claim.c
 *	  The scheduler: which tasks to claim.
 *
 * Of each queue (the scheduled tasks of one priority, by due time) the
 * scheduler remembers the place up to which everything has been claimed or is
 * blocked, so that it never steps again over the dead index entries that claims
 * leave behind.  A commit that schedules a task before that place, or that had
 * locked one, brings its due time along and moves the place back.
 *
 * A task is claimed for a worker that waits for it, never for one that has yet
 * to come: so a lack of worker slots costs no attempt and needs no undoing, and
 * a task that is active is really being run.  A worker is started a little
 * ahead of the due time.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "scheduler.h"

/* A worker is started so long before the due time of its task */
#define LEAD_US INT64CONST(100000)

/* Tasks looked at in one query, and at the most in one round */
#define PEEK_ROWS 64
#define PEEK_ROUND_ROWS 10000

/* The scheduled tasks of one priority */
typedef struct Queue
{
	int16		priority;
	TimestampTz after_run_at;	/* everything up to here is claimed or blocked */
	pg_uuid_t	after_id;
	bool		due;			/* there may be tasks to launch or to start workers for */
	TimestampTz future;			/* no other is due before; DT_NOBEGIN = not known */
	TimestampTz soon;			/* first one seen that is only about to be due */
} Queue;

static Queue *queues;
static int	nqueues;
static MemoryContext queue_cxt;
static TimestampTz revisit_at = DT_NOEND;	/* when to look again at tasks that were passed by */

/* ----------
 * Queues
 * ----------
 */

void
tasksched_queues_init(void)
{
	queue_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched queues", ALLOCSET_SMALL_SIZES);
	tasksched_queues_reset(NULL, 0);
}

/* Forget what is known of the queues: read them from the start */
void
tasksched_queues_reset(const int16 *priorities, int n)
{
	MemoryContextReset(queue_cxt);
	queues = MemoryContextAllocZero(queue_cxt, (n + 1) * sizeof(Queue));
	nqueues = 0;
	for (int i = 0; i < n; i++)
		queues[nqueues++].priority = priorities[i];
	if (n == 0)
		nqueues = 1;			/* the usual priority, for what comes */
	for (int i = 0; i < nqueues; i++)
	{
		queues[i].after_run_at = DT_NOBEGIN;
		queues[i].due = true;
		queues[i].future = DT_NOBEGIN;
		queues[i].soon = DT_NOEND;
	}
}

/* Tasks have come that are due later; we have been told of the earliest one alone */
void
tasksched_queues_note_later(void)
{
	for (int i = 0; i < nqueues; i++)
		queues[i].future = DT_NOBEGIN;
}

/* If it is time to look again at tasks that were passed by, go back to the start of all queues */
void
tasksched_queues_revisit(TimestampTz now, TimestampTz at_the_latest)
{
	/* the clock may have gone back */
	if (revisit_at != DT_NOEND)
		revisit_at = Min(revisit_at, at_the_latest);
	if (now < revisit_at)
		return;
	revisit_at = DT_NOEND;
	for (int i = 0; i < nqueues; i++)
	{
		queues[i].after_run_at = DT_NOBEGIN;
		queues[i].due = true;
	}
}

/* A task with this due time has come, or was locked when we passed by */
void
tasksched_queues_note_due(TimestampTz run_at, TimestampTz now)
{
	for (int i = 0; i < nqueues; i++)
	{
		Queue	   *queue = &queues[i];

		if (run_at <= queue->after_run_at)
		{
			queue->after_run_at = run_at;
			memset(&queue->after_id, 0, sizeof(pg_uuid_t));
		}
		if (run_at <= now + LEAD_US)
			queue->due = true;
		else
			queue->future = Min(queue->future, run_at);
	}
}

/* The earliest due time that is still to come; DT_NOEND if there is none */
TimestampTz
tasksched_queues_next_due(void)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < nqueues; i++)
	{
		next = Min(next, queues[i].future);
		if (queues[i].due)
			next = Min(next, queues[i].soon);
	}
	return next;
}

bool
tasksched_queues_due(void)
{
	for (int i = 0; i < nqueues; i++)
	{
		if (queues[i].due)
			return true;
	}
	return false;
}

/* When there will be something to claim, or to start a worker for */
TimestampTz
tasksched_queues_next_reason(void)
{
	TimestampTz next = revisit_at;

	for (int i = 0; i < nqueues; i++)
	{
		/* first to start a worker, then to claim */
		if (!TIMESTAMP_NOT_FINITE(queues[i].future))
			next = Min(next, queues[i].future - LEAD_US);
		if (queues[i].due)
			next = Min(next, queues[i].soon);
	}
	return next;
}

/* ----------
 * Claim
 * ----------
 */

/* What is gathered in one round of claims */
typedef struct Claims
{
	int			capacity;		/* tasks that may still be claimed */
	int			nchosen;
	pg_uuid_t  *ids;			/* of the tasks to claim ... */
	const struct BlockedNote **notes;	/* ... what is known of their actions ... */
	int		   *slots;			/* ... and the slots of their workers */
	int			ndemands;
	Demand	   *demands;
	List	   *reasons;		/* BlockedNote */
} Claims;

/* Whether the tasks of an action and an owner can be launched */
typedef struct BlockedNote
{
	char		action[NAMEDATALEN];
	Oid			owner;
	bool		foreign;
	bool		blocked;
	Action		function;		/* what to call, unless blocked */
} BlockedNote;

/* Is a candidate blocked?  The answer is the same for all of its kind. */
static const BlockedNote *
look_up_blocked(Claims *claims, const Candidate *c)
{
	ListCell   *lc;
	BlockedNote *note;

	foreach(lc, claims->reasons)
	{
		note = lfirst(lc);
		if (note->owner == c->owner && note->foreign == c->foreign &&
			strcmp(note->action, c->action) == 0)
			return note;
	}
	note = palloc(sizeof(BlockedNote));
	strlcpy(note->action, c->action, NAMEDATALEN);
	note->owner = c->owner;
	note->foreign = c->foreign;
	note->blocked = tasksched_task_blocked(c->action, c->owner, c->foreign, &note->function) != NULL;
	claims->reasons = lcons(note, claims->reasons);
	return note;
}

/* An idle worker of the owner, in this round's view of the slots; or -1 */
static int
find_idle(Oid owner)
{
	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		const TaskSlot *slot = &tasksched_round.slots[i];

		if (slot->state == SLOT_IDLE && slot->owner == owner && !slot->quit)
			return i;
	}
	return -1;
}

static void
add_demand(Claims *claims, Oid owner)
{
	for (int i = 0; i < claims->ndemands; i++)
	{
		if (claims->demands[i].owner == owner)
		{
			claims->demands[i].wanted++;
			return;
		}
	}
	claims->demands[claims->ndemands].owner = owner;
	claims->demands[claims->ndemands++].wanted = 1;
}

/*
 * Deal with one candidate; returns whether it is done with, so that the place
 * in the queue may pass it.
 */
static bool
consider(Claims *claims, Queue *queue, const Candidate *c, TimestampTz now)
{
	const BlockedNote *note = look_up_blocked(claims, c);
	int			slot = find_idle(c->owner);
	TimestampTz until;

	if (note->blocked)
		return true;			/* the next scan looks again */
	if (slot < 0 && tasksched_owner_must_wait(c->owner, now, &until))
	{
		revisit_at = Min(revisit_at, until);
		return true;
	}
	claims->capacity--;
	if (slot >= 0 && c->run_at <= now)
	{
		claims->ids[claims->nchosen] = c->id;
		claims->notes[claims->nchosen] = note;
		claims->slots[claims->nchosen++] = slot;
		/* taken: nobody else's, nor to be dismissed */
		tasksched_round.slots[slot].state = SLOT_READY;
		return true;
	}
	if (c->run_at > now)
		queue->soon = Min(queue->soon, c->run_at);
	if (slot < 0)
		add_demand(claims, c->owner);
	return false;
}

/* Look through a queue for tasks to claim */
static void
look_through(Claims *claims, Queue *queue, TimestampTz now)
{
	Candidate  *candidates = palloc(PEEK_ROWS * sizeof(Candidate));
	TimestampTz from = queue->after_run_at;
	pg_uuid_t	from_id = queue->after_id;
	bool		all_passed = true;
	int			seen = 0;
	int			n;

	queue->soon = DT_NOEND;
	do
	{
		CHECK_FOR_INTERRUPTS();
		n = tasksched_store_peek(queue->priority, from, &from_id, now + LEAD_US,
								 PEEK_ROWS, candidates);
		for (int i = 0; i < n && claims->capacity > 0; i++)
		{
			if (!consider(claims, queue, &candidates[i], now))
				all_passed = false;
			else if (all_passed)
			{
				queue->after_run_at = candidates[i].run_at;
				queue->after_id = candidates[i].id;
			}
		}
		if (n > 0)
		{
			from = candidates[n - 1].run_at;
			from_id = candidates[n - 1].id;
		}
		seen += n;
	} while (n == PEEK_ROWS && claims->capacity > 0 && seen < PEEK_ROUND_ROWS);

	/* anything left, here or further on? */
	queue->due = !all_passed || n == PEEK_ROWS || claims->capacity <= 0;
	if (all_passed && claims->capacity > 0 && n == PEEK_ROWS)
		tasksched_retry_by(now);
	if (queue->future <= now + LEAD_US)
		queue->future = tasksched_store_next_due(queue->priority, now + LEAD_US);
}

static const TaskRef *
find_claimed(const TaskRef *claimed, int n, const pg_uuid_t *id)
{
	for (int i = 0; i < n; i++)
	{
		if (tasksched_same_task(&claimed[i].id, id))
			return &claimed[i];
	}
	return NULL;
}

/* Hand the claimed tasks to their workers */
static void
hand_over(const Claims *claims, const TaskRef *claimed, int n)
{
	for (int i = 0; i < claims->nchosen; i++)
	{
		int			slot = claims->slots[i];
		const TaskRef *task = find_claimed(claimed, n, &claims->ids[i]);

		if (task != NULL &&
			tasksched_slot_assign(slot, tasksched_round.slots[slot].generation, task,
								  claims->notes[i]->action, &claims->notes[i]->function))
			continue;
		tasksched_round.slots[slot].state = SLOT_IDLE;
		if (task != NULL)
			(void) tasksched_put_back(task, END_STALE, false);
	}
}

/* Claim what is due for the workers that wait, and start those that lack */
void
tasksched_claim_due(void)
{
	TimestampTz now = GetCurrentTimestamp();
	Claims		claims = {0};
	TaskRef    *claimed;
	int			nclaimed = 0;

	tasksched_round.lack = LACK_NOTHING;

	for (int i = 0; i < nqueues; i++)
	{
		if (queues[i].future <= now + LEAD_US)
			queues[i].due = true;
	}
	claims.capacity = tasksched_max_running_tasks -
		tasksched_count_slots(SLOT_READY) - tasksched_count_slots(SLOT_RUNNING);
	if (!tasksched_queues_due() || claims.capacity <= 0)
		return;

	claims.ids = palloc(claims.capacity * sizeof(pg_uuid_t));
	claims.notes = palloc(claims.capacity * sizeof(BlockedNote *));
	claims.slots = palloc(claims.capacity * sizeof(int));
	claims.demands = palloc(claims.capacity * sizeof(Demand));
	claimed = palloc(claims.capacity * sizeof(TaskRef));

	tasksched_begin();
	tasksched_store_lock(false);
	if (tasksched_database_is_paused())
	{
		/* since this round has begun; the next one has been asked for */
		tasksched_commit();
		return;
	}
	MemoryContextSwitchTo(tasksched_round.cxt);
	for (int i = 0; i < nqueues && claims.capacity > 0; i++)
	{
		if (queues[i].due)
			look_through(&claims, &queues[i], now);
	}
	if (claims.nchosen > 0)
		nclaimed = tasksched_store_claim(claims.ids, claims.nchosen, claimed);
	tasksched_start_workers(claims.demands, claims.ndemands);
	tasksched_commit();

	if (nclaimed > 0)
		TASKSCHED_FAULT_POINT("task claimed");
	hand_over(&claims, claimed, nclaimed);
}

