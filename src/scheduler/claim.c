/*
 * claim.c
 *	  Which due tasks to claim.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "actions/actions.h"
#include "base/base.h"
#include "base/settings.h"
#include "scheduler/internal.h"
#include "store/store.h"

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
typedef struct Chosen
{
	int			candidate;		/* its number among those that were looked at with it */
	TaskRef		task;			/* once it is claimed */
	const BlockedNote *note;	/* what is known of its action */
	int			slot;			/* of its worker */
} Chosen;

/* What is gathered in one round of claims */
typedef struct Claims
{
	TimestampTz now;			/* what is due, in the whole round */
	int			capacity;		/* tasks that may still be claimed */
	int			nlaunches;		/* those that are ... */
	int			nchosen;		/* ... and, after them, those that will be */
	Chosen	   *launches;
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
		HASHCTL		ctl = {
			.keysize = sizeof(wanted.kind),
			.entrysize = sizeof(BlockedNote),
			.hcxt = tasksched_round.cxt
		};

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
		tasksched_queues_note_failing(until, c->run_at);
		queue->held = true;
		return VERDICT_DONE;
	}
	claims->capacity--;
	if (slot >= 0 && c->run_at <= claims->now)
	{
		Chosen	   *launch = &claims->launches[claims->nlaunches + claims->nchosen++];

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

/*
 * Claim the chosen candidates.  Those that can't be claimed are passed by, and give
 * back what they had taken; returns whether there were any.
 */
static bool
claim_chosen(Claims *claims, Queue *queue, const Candidate *candidates, Verdict *verdicts)
{
	ItemPointerData places[PEEK_ROWS];
	pg_uuid_t	ids[PEEK_ROWS];
	int32		launches[PEEK_ROWS];
	Chosen	   *chosen = &claims->launches[claims->nlaunches];
	int			nchosen = claims->nchosen;
	int			nclaimed;

	if (nchosen == 0)
		return false;
	for (int i = 0; i < nchosen; i++)
	{
		ids[i] = candidates[chosen[i].candidate].id;
		places[i] = candidates[chosen[i].candidate].place;
	}
	nclaimed = tasksched_store_claim(ids, places, nchosen, claims->now, launches);

	claims->nchosen = 0;
	for (int i = 0; i < nchosen; i++)
	{
		Chosen		launch = chosen[i];

		verdicts[launch.candidate] = VERDICT_DONE;
		if (launches[i] != 0)
		{
			launch.task.id = ids[i];
			launch.task.launch = launches[i];
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

static QueuePlace
place_of(const Candidate *c)
{
	QueuePlace	place = {c->run_at, c->id};

	return place;
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
			*cursor = place_of(&candidates[done - 1]);
		if (done < n)
			look.all_done = false;
		if (n > 0)
			from = place_of(&candidates[n - 1]);
		if (!look.beyond && tasksched_compare_places(&from, &queue->frontier) >= 0)
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

/* Go on with the pass that is under way */
static Look
go_on_with_pass(Claims *claims, Queue *queue)
{
	Look		look = look_on(claims, queue, &queue->revisit, REVISIT_ROWS);

	if ((look.to_the_end && look.all_done) || tasksched_compare_places(&queue->revisit, &queue->frontier) >= 0)
		queue->revisiting = false;
	queue->stuck = !look.all_done && claims->capacity > 0;
	if (tasksched_compare_places(&queue->frontier, &queue->revisit) < 0)
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
		tasksched_queue_begin_pass(queue);
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
		const Chosen *launch = &claims->launches[i];
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

	for (int i = 0; i < tasksched_nqueues; i++)
	{
		tasksched_queue_see_time(&tasksched_queues[i], claims.now);
		if (tasksched_queues[i].future <= claims.now + LEAD_US)
			tasksched_queues[i].due = true;
	}
	claims.capacity = tasksched_max_running_tasks - tasksched_count_active();
	if (!tasksched_queues_due() || claims.capacity <= 0)
		return;

	claims.launches = palloc(claims.capacity * sizeof(Chosen));
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
	for (int i = 0; i < tasksched_nqueues; i++)
	{
		if (claims.capacity <= 0)
			tasksched_queue_put_off(&tasksched_queues[i], claims.now);
		else if (tasksched_queue_has_more(&tasksched_queues[i]))
			look_through(&claims, &tasksched_queues[i]);
	}
	tasksched_start_workers(claims.demands, claims.ndemands);
	tasksched_commit();

	if (claims.nlaunches > 0)
		TASKSCHED_FAULT_POINT("task claimed");
	hand_over(&claims);
}
