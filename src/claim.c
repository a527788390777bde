/*
 * claim.c
 *	  The scheduler: which tasks to claim.
 *
 * Of each queue (the scheduled tasks of one priority, by due time) the
 * scheduler remembers the frontier: the place up to which everything has been
 * claimed or passed by, so that it never steps again over the dead index entries
 * that claims leave behind.  The frontier only goes forward.
 *
 * What lies before it may have to be looked at once more: a commit has scheduled
 * a task there, or has let go of one that was locked, which brings its due time
 * along; or it is time to see whether what was blocked still is.  That is a
 * second cursor, a pass from an earlier place up to the frontier.  What comes
 * meanwhile from before that cursor waits for the next pass, so that nobody
 * can keep a pass from its end.  Each round has a share for either cursor.
 *
 * A task is claimed for a worker that waits for it, never for one that has yet
 * to come: so a lack of worker slots costs no attempt and needs no undoing, and
 * a task that is active is really being run.  A worker is started a little
 * ahead of the due time.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "scheduler.h"

/* A worker is started so long before the due time of its task */
#define LEAD_US INT64CONST(100000)

/* Tasks looked at in one query, at the least and at the most */
#define PEEK_ROWS_MIN 8
#define PEEK_ROWS 64

/*
 * What either cursor of a queue may cost in one round, in tasks looked at.  A look
 * at an action and an owner that are new in the round, and a claim in vain, count as
 * so many.
 */
#define FRONTIER_ROWS 10000
#define REVISIT_ROWS 1000
#define KIND_ROWS 16
#define IN_VAIN_ROWS 16

/* The scheduled tasks of one priority */
typedef struct Queue
{
	int16		priority;
	QueuePlace	frontier;		/* everything up to here is claimed or was passed by */
	bool		revisiting;		/* is a pass over that under way? */
	QueuePlace	revisit;		/* if so, how far it is ... */
	bool		stuck;			/* ... and whether it waits for something */
	TimestampTz again;			/* where the next pass begins; DT_NOEND = none is called for */
	bool		held;			/* a due task was passed by that may be launched one day */
	bool		due;			/* there may be tasks beyond the frontier to launch or to start workers for */
	TimestampTz future;			/* no other is due before; DT_NOBEGIN = not known */
	TimestampTz soon;			/* first one seen that is only about to be due */
} Queue;

static Queue *queues;
static int	nqueues;
static MemoryContext queue_cxt;

/* When to look again at tasks that were passed by, and the first of their due times */
static TimestampTz revisit_at = DT_NOEND;
static TimestampTz revisit_from = DT_NOEND;

/* ----------
 * Queues
 * ----------
 */

void
tasksched_queues_init(void)
{
	queue_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched queues", ALLOCSET_SMALL_SIZES);
	tasksched_queues_scan(NULL, 0);
}

static int
compare_places(const QueuePlace *a, const QueuePlace *b)
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
	Queue	   *queue = &queues[nqueues++];

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

/* These are the priorities, ascending; read their queues from the start */
void
tasksched_queues_scan(const int16 *priorities, int n)
{
	Queue	   *before = queues;
	const Queue *old = before;
	const Queue *old_end = before != NULL ? before + nqueues : NULL;
	int16		last = PG_INT16_MIN;

	queues = MemoryContextAllocZero(queue_cxt, (n + 1) * sizeof(Queue));
	nqueues = 0;
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
	for (int i = 0; i < nqueues; i++)
		queues[i].future = DT_NOBEGIN;
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
	for (int i = 0; i < nqueues; i++)
		look_again(&queues[i], revisit_from);
	revisit_at = DT_NOEND;
	revisit_from = DT_NOEND;
}

/* A task with this due time has come, or was locked when we passed by */
void
tasksched_queues_note_due(TimestampTz run_at, TimestampTz now)
{
	for (int i = 0; i < nqueues; i++)
	{
		Queue	   *queue = &queues[i];

		look_again(queue, run_at);
		if (run_at <= now + LEAD_US)
			queue->due = true;
		else
			queue->future = Min(queue->future, run_at);
	}
}

/* The clock has gone back: what lies between now and the frontier is not due any more */
static void
take_back_frontier(Queue *queue, TimestampTz now)
{
	if (queue->frontier.run_at <= now + LEAD_US)
		return;
	memset(&queue->frontier, 0, sizeof(QueuePlace));
	queue->frontier.run_at = now;
	queue->revisiting = queue->revisiting && compare_places(&queue->revisit, &queue->frontier) < 0;
	queue->due = true;
	queue->future = DT_NOBEGIN;
}

/* There is no place for tasks of this queue now: their due times are no reason to wake up */
static void
put_off(Queue *queue, TimestampTz now)
{
	queue->soon = DT_NOEND;
	if (queue->future <= now + LEAD_US)
		queue->future = DT_NOBEGIN;
}

/* Is there anything to look at now? */
static bool
has_more(const Queue *queue)
{
	return queue->due || queue->revisiting || queue->again != DT_NOEND;
}

/* The earliest due time that is still to come; DT_NOEND if there is none */
TimestampTz
tasksched_queues_next_due(void)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < nqueues; i++)
	{
		next = Min(next, queues[i].future);
		if (has_more(&queues[i]))
			next = Min(next, queues[i].soon);
	}
	return next;
}

bool
tasksched_queues_due(void)
{
	for (int i = 0; i < nqueues; i++)
	{
		if (has_more(&queues[i]))
			return true;
	}
	return false;
}

/* Is there a due task that was passed by, and that may be launched without anybody telling us? */
bool
tasksched_queues_held(void)
{
	for (int i = 0; i < nqueues; i++)
	{
		if (queues[i].held)
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
		if (has_more(&queues[i]))
			next = Min(next, queues[i].soon);
	}
	return next;
}

/* ----------
 * Claim
 * ----------
 */

/* Whether the tasks of an action and an owner can be launched */
typedef struct BlockedNote
{
	struct
	{
		Oid			owner;
		uint32		foreign;
		char		action[TASKSCHED_NAME_SIZE];
	}			kind;			/* hash key, without padding */
	bool		blocked;
	Action		function;		/* what to call, unless blocked */
} BlockedNote;

/* A task that is chosen, and then claimed */
typedef struct Launch
{
	int			candidate;		/* its number among those that were looked at with it */
	TaskRef		task;			/* once it is claimed */
	const BlockedNote *note;	/* what is known of its action */
	int			slot;			/* of its worker */
} Launch;

/* What is gathered in one round of claims */
typedef struct Claims
{
	TimestampTz now;			/* what is due, in the whole round */
	int			capacity;		/* tasks that may still be claimed */
	int			nlaunches;		/* those that are ... */
	int			nchosen;		/* ... and, after them, those that will be */
	Launch	   *launches;
	int			ndemands;
	Demand	   *demands;
	int			cost;			/* see FRONTIER_ROWS */
	BlockedNote *last_note;
	HTAB	   *notes;			/* BlockedNote */
} Claims;

/* What becomes of a candidate */
typedef enum Verdict
{
	VERDICT_NONE,
	VERDICT_WAITS,				/* not due yet, or a worker has to be started */
	VERDICT_CHOSEN,
	VERDICT_DONE				/* claimed or passed by */
} Verdict;

/* Is a candidate blocked?  The answer is the same for all of its kind. */
static const BlockedNote *
look_up_blocked(Claims *claims, const Candidate *c)
{
	BlockedNote *note = claims->last_note;
	BlockedNote wanted;
	bool		found;

	if (note != NULL && note->kind.owner == c->owner && note->kind.foreign == c->foreign &&
		strcmp(note->kind.action, c->action) == 0)
		return note;

	if (claims->notes == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(wanted.kind), .entrysize = sizeof(BlockedNote), .hcxt = tasksched_round.cxt};

		claims->notes = hash_create("tasksched kinds of tasks", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	memset(&wanted.kind, 0, sizeof(wanted.kind));
	wanted.kind.owner = c->owner;
	wanted.kind.foreign = c->foreign;
	strlcpy(wanted.kind.action, c->action, sizeof(wanted.kind.action));
	note = hash_search(claims->notes, &wanted.kind, HASH_ENTER, &found);
	if (!found)
	{
		note->blocked = true;	/* should the look fail, the round ends */
		note->blocked = tasksched_task_blocked(c->action, c->owner, c->foreign, &note->function) != NULL;
		claims->cost += KIND_ROWS;
	}
	claims->last_note = note;
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

/* Deal with one candidate */
static Verdict
consider(Claims *claims, Queue *queue, const Candidate *candidates, int i)
{
	const Candidate *c = &candidates[i];
	const BlockedNote *note = look_up_blocked(claims, c);
	int			slot;
	TimestampTz until;

	if (note->blocked)
	{
		/* the next scan looks again; adopt_tasks() would wake us */
		queue->held |= !c->foreign;
		return VERDICT_DONE;
	}
	slot = find_idle(c->owner);
	if (slot < 0 && tasksched_owner_must_wait(c->owner, claims->now, &until))
	{
		revisit_at = Min(revisit_at, until);
		revisit_from = Min(revisit_from, c->run_at);
		queue->held = true;
		return VERDICT_DONE;
	}
	claims->capacity--;
	if (slot >= 0 && c->run_at <= claims->now)
	{
		Launch	   *launch = &claims->launches[claims->nlaunches + claims->nchosen++];

		launch->candidate = i;
		launch->note = note;
		launch->slot = slot;
		/* taken: nobody else's, nor to be dismissed */
		tasksched_round.slots[slot].state = SLOT_READY;
		return VERDICT_CHOSEN;
	}
	if (c->run_at > claims->now)
		queue->soon = Min(queue->soon, c->run_at);
	return VERDICT_WAITS;
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

/*
 * Claim the chosen candidates.  Those that can't be claimed are passed by, and give
 * back what they had taken; returns whether there were any.
 */
static bool
claim_chosen(Claims *claims, Queue *queue, const Candidate *candidates, Verdict *verdicts)
{
	ItemPointerData places[PEEK_ROWS];
	TaskRef		claimed[PEEK_ROWS];
	Launch	   *chosen = &claims->launches[claims->nlaunches];
	int			nchosen = claims->nchosen;
	int			nclaimed;

	if (nchosen == 0)
		return false;
	for (int i = 0; i < nchosen; i++)
		places[i] = candidates[chosen[i].candidate].place;
	nclaimed = tasksched_store_claim(places, nchosen, claims->now, claimed);

	claims->nchosen = 0;
	for (int i = 0; i < nchosen; i++)
	{
		Launch		launch = chosen[i];
		const TaskRef *task = find_claimed(claimed, nclaimed, &candidates[launch.candidate].id);

		verdicts[launch.candidate] = VERDICT_DONE;
		if (task != NULL)
		{
			launch.task = *task;
			claims->launches[claims->nlaunches++] = launch;
			continue;
		}
		/* locked, which its end tells of; changed since; or finished as well */
		tasksched_round.slots[launch.slot].state = SLOT_IDLE;
		claims->capacity++;
		claims->cost += IN_VAIN_ROWS;
		queue->held = true;
	}
	return nclaimed < nchosen;
}

/* Deal with candidates; returns how many, from the first on, are done with */
static int
deal_with(Claims *claims, Queue *queue, const Candidate *candidates, int n)
{
	Verdict		verdicts[PEEK_ROWS] = {VERDICT_NONE};
	int			done = 0;

	for (;;)
	{
		for (int i = 0; i < n && claims->capacity > 0; i++)
		{
			if (verdicts[i] == VERDICT_NONE)
				verdicts[i] = consider(claims, queue, candidates, i);
		}
		if (!claim_chosen(claims, queue, candidates, verdicts))
			break;
		/* there are places, and perhaps workers, for those that come next */
		for (int i = 0; i < n; i++)
		{
			if (verdicts[i] == VERDICT_WAITS)
			{
				verdicts[i] = VERDICT_NONE;
				claims->capacity++;
			}
		}
	}
	for (int i = 0; i < n; i++)
	{
		if (verdicts[i] == VERDICT_WAITS && find_idle(candidates[i].owner) < 0)
			add_demand(claims, candidates[i].owner);
	}
	while (done < n && verdicts[done] == VERDICT_DONE)
		done++;
	return done;
}

/* How far a look through a queue has come in this round */
typedef struct Look
{
	bool		all_done;		/* all that was looked at */
	bool		beyond;			/* it has come beyond the frontier */
	bool		to_the_end;		/* there is no more that is due, or soon */
} Look;

/* Look through a queue for tasks to claim, from one of its two cursors on, and move that */
static Look
look_on(Claims *claims, Queue *queue, QueuePlace *cursor, int max_cost)
{
	Candidate  *candidates = palloc(PEEK_ROWS * sizeof(Candidate));
	QueuePlace	from = *cursor;
	Look		look = {.all_done = true};
	int			wanted = Min(Max(2 * claims->capacity, PEEK_ROWS_MIN), PEEK_ROWS);

	max_cost += claims->cost;
	do
	{
		int			n;
		int			done;

		CHECK_FOR_INTERRUPTS();
		n = tasksched_store_peek(queue->priority, &from, claims->now + LEAD_US, wanted, candidates);
		look.to_the_end = n < wanted;
		wanted = PEEK_ROWS;
		claims->cost += n;
		done = deal_with(claims, queue, candidates, n);
		if (look.all_done && done > 0)
			*cursor = (QueuePlace) {candidates[done - 1].run_at, candidates[done - 1].id};
		if (done < n)
			look.all_done = false;
		if (n > 0)
			from = (QueuePlace) {candidates[n - 1].run_at, candidates[n - 1].id};
		if (!look.beyond && compare_places(&from, &queue->frontier) >= 0)
		{
			look.beyond = true;
			max_cost += FRONTIER_ROWS;
		}
	} while (!look.to_the_end && claims->capacity > 0 && claims->cost < max_cost);
	look.to_the_end &= claims->capacity > 0;
	pfree(candidates);

	/* what there is further on can be looked at at once */
	if (look.all_done && !look.to_the_end && claims->capacity > 0)
		tasksched_retry_by(claims->now);
	return look;
}

/* Begin a pass over what lies before the frontier */
static void
begin_pass(Queue *queue)
{
	if (queue->again == DT_NOBEGIN)
		queue->held = false;	/* it will see */
	memset(&queue->revisit, 0, sizeof(QueuePlace));
	queue->revisit.run_at = queue->again;
	queue->again = DT_NOEND;
	queue->revisiting = compare_places(&queue->revisit, &queue->frontier) < 0;
	queue->stuck = false;
}

/* Go on with the pass that is under way */
static Look
go_on_with_pass(Claims *claims, Queue *queue)
{
	Look		look = look_on(claims, queue, &queue->revisit, REVISIT_ROWS);

	if ((look.to_the_end && look.all_done) || compare_places(&queue->revisit, &queue->frontier) >= 0)
		queue->revisiting = false;
	queue->stuck = !look.all_done && claims->capacity > 0;
	if (compare_places(&queue->frontier, &queue->revisit) < 0)
		queue->frontier = queue->revisit;
	return look;
}

/* Look through a queue for tasks to claim: first the pass, since its tasks are older, then on from the frontier */
static void
look_through(Claims *claims, Queue *queue)
{
	Look		look = {.beyond = false};
	TimestampTz horizon = claims->now + LEAD_US;

	queue->soon = DT_NOEND;
	/* one that has come to a task that waits has nothing more to do before the next begins */
	if (queue->again != DT_NOEND && (!queue->revisiting || queue->stuck))
		begin_pass(queue);
	if (queue->revisiting)
		look = go_on_with_pass(claims, queue);
	if (!look.beyond && !look.to_the_end && queue->due && claims->capacity > 0)
	{
		look = look_on(claims, queue, &queue->frontier, 0);
		look.beyond = true;
	}
	/* anything left, here or further on? */
	if (look.beyond || look.to_the_end)
		queue->due = !look.all_done || !look.to_the_end;
	if (queue->again != DT_NOEND && !queue->revisiting && claims->capacity > 0)
		tasksched_retry_by(claims->now);
	if (queue->future <= horizon)
		queue->future = tasksched_store_next_due(queue->priority, horizon);
}

/* Hand the claimed tasks to their workers */
static void
hand_over(const Claims *claims)
{
	for (int i = 0; i < claims->nlaunches; i++)
	{
		const Launch *launch = &claims->launches[i];
		TaskSlot   *slot = &tasksched_round.slots[launch->slot];

		if (tasksched_slot_assign(launch->slot, slot->generation, &launch->task,
								  launch->note->kind.action, &launch->note->function))
			continue;
		slot->state = SLOT_IDLE;
		(void) tasksched_put_back(&launch->task, END_STALE, false);
	}
}

/* Claim what is due for the workers that wait, and start those that lack */
void
tasksched_claim_due(void)
{
	Claims		claims = {.now = GetCurrentTimestamp()};

	tasksched_round.lack = LACK_NOTHING;

	for (int i = 0; i < nqueues; i++)
	{
		take_back_frontier(&queues[i], claims.now);
		if (queues[i].future <= claims.now + LEAD_US)
			queues[i].due = true;
	}
	claims.capacity = tasksched_max_running_tasks - tasksched_count_active();
	if (!tasksched_queues_due() || claims.capacity <= 0)
		return;

	claims.launches = palloc(claims.capacity * sizeof(Launch));
	claims.demands = palloc(claims.capacity * sizeof(Demand));

	tasksched_begin();
	tasksched_store_lock(false);
	if (tasksched_database_is_paused())
	{
		/* since this round has begun; the next one has been asked for */
		tasksched_commit();
		return;
	}
	MemoryContextSwitchTo(tasksched_round.cxt);
	for (int i = 0; i < nqueues; i++)
	{
		if (claims.capacity <= 0)
			put_off(&queues[i], claims.now);
		else if (has_more(&queues[i]))
			look_through(&claims, &queues[i]);
	}
	tasksched_start_workers(claims.demands, claims.ndemands);
	tasksched_commit();

	if (claims.nlaunches > 0)
		TASKSCHED_FAULT_POINT("task claimed");
	hand_over(&claims);
}
