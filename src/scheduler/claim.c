/*
 * claim.c
 *	  Claiming due tasks.
 *
 * A task is claimed only for a worker that already waits for it, never for one
 * that has yet to start.  So a lack of worker slots uses up no launch and no
 * attempt, and leaves nothing to undo.  It also means that an active task has
 * a process.  A worker is started a little ahead of the due time, so that it
 * is ready by then.
 *
 * A candidate is a due task that a look through a queue has found.  It is
 * passed by if it is blocked, if the workers of its owner fail, or if it
 * cannot be claimed.  A candidate that needs a worker, or that is not due yet,
 * holds back the cursor that met it.  Tasks are claimed by the places (ctid)
 * of their rows, in the transaction that has looked.
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

/* How many tasks one query looks at, at least and at most */
#define PEEK_ROWS_MIN 8
#define PEEK_ROWS 64

/*
 * What each cursor of a queue may cost in one round, in tasks looked at.  The
 * limits keep the cursors from waiting for each other, however many tasks are
 * blocked.
 */
#define FRONTIER_ROWS 10000
#define REVISIT_ROWS 1000

/* The cost of the first task of an action and an owner in a round */
#define KIND_ROWS 16

/* The additional cost of a task that was chosen and could not be claimed */
#define FAILED_CLAIM_ROWS 16

/* Whether the tasks of one action and one owner can be launched */
typedef struct BlockedNote
{
	struct
	{
		Oid			owner;
		uint32		foreign;
		char		action[TASKSCHED_NAME_SIZE];
	}			kind;			/* hash key; must have no padding */
	bool		blocked;
	Action		function;		/* the function to call, unless blocked */
} BlockedNote;

/* A task that is chosen to be claimed, or that has been claimed */
typedef struct Chosen
{
	int			candidate;		/* index into the candidates */
	TaskRef		task;			/* set when it is claimed */
	const BlockedNote *note;	/* its action and function */
	int			slot;			/* the slot of its worker */
} Chosen;

/* The claims of one round */
typedef struct Claims
{
	TimestampTz now;			/* the time that counts in the whole round */
	int			capacity;		/* how many tasks may still be claimed */
	int			nlaunches;		/* how many are claimed */
	int			nchosen;		/* how many are chosen, and not claimed yet */
	Chosen	   *launches;		/* the claimed ones, then the chosen ones */
	int			ndemands;
	Demand	   *demands;
	int			cost;			/* so far; see FRONTIER_ROWS */
	BlockedNote *last_note;		/* of the latest candidate */
	HTAB	   *notes;			/* BlockedNote */
} Claims;

/* What has been decided about a candidate */
typedef enum Verdict
{
	VERDICT_NONE,
	VERDICT_WAITS,				/* not due yet, or it needs a worker */
	VERDICT_CHOSEN,
	VERDICT_DONE				/* claimed or passed by */
} Verdict;

/*
 * Is a candidate blocked?  All tasks of the same action and owner have the
 * same answer, so it is found once in a round.
 */
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
		note->blocked = true;	/* in case of an error, which ends the round */
		note->blocked = tasksched_task_blocked(c->action, c->owner, c->foreign, &note->function) != NULL;
		claims->cost += KIND_ROWS;
	}
	claims->last_note = note;
	return note;
}

/* Find the slot of an idle worker of the owner; -1 if there is none */
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

/* Decide about one candidate */
static Verdict
consider(Claims *claims, Queue *queue, const Candidate *candidates, int i)
{
	const Candidate *c = &candidates[i];
	const BlockedNote *note = look_up_blocked(claims, c);
	int			slot;
	TimestampTz until;

	if (note->blocked)
	{
		/*
		 * The next scan looks again, but need not for tasks of another
		 * installation: adopt_tasks() wakes us.
		 */
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
		/* no other task may take this worker, and it must not be dismissed */
		tasksched_round.slots[slot].state = SLOT_READY;
		return VERDICT_CHOSEN;
	}
	if (c->run_at > claims->now)
		queue->soon_due = Min(queue->soon_due, c->run_at);
	return VERDICT_WAITS;
}

/*
 * Claim the chosen candidates.  Those that can't be claimed are passed by, and
 * release their places and workers.  Returns whether there were any such.
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

		/*
		 * The row is locked, and the end of the lock will wake us; or it has
		 * been changed since the look; or the task is finished as well.
		 */
		tasksched_round.slots[launch.slot].state = SLOT_IDLE;
		claims->capacity++;
		claims->cost += FAILED_CLAIM_ROWS;
		queue->held = true;
	}
	return nclaimed < nchosen;
}

/*
 * Decide about candidates, and claim those that can be claimed.  Returns how
 * many, counted from the first one, need not be looked at again.
 */
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
		/* the released places and workers may serve the other candidates */
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

/* How far a cursor has got through its queue in this round */
typedef struct Look
{
	bool		all_done;		/* no candidate holds the cursor back */
	bool		beyond;			/* the look has reached the frontier */
	bool		to_the_end;		/* the look has seen all due tasks */
} Look;

/* Look for tasks to claim, from one of the two cursors on, and move it */
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

	/* the limit was reached: the next round goes on at once */
	if (look.all_done && !look.to_the_end && claims->capacity > 0)
		tasksched_retry_by(claims->now);
	return look;
}

/* Continue the pass that is under way */
static Look
go_on_with_pass(Claims *claims, Queue *queue)
{
	Look		look = look_on(claims, queue, &queue->pass_place, REVISIT_ROWS);

	if ((look.to_the_end && look.all_done) || tasksched_compare_places(&queue->pass_place, &queue->frontier) >= 0)
		queue->in_pass = false;
	queue->pass_waits = !look.all_done && claims->capacity > 0;
	if (tasksched_compare_places(&queue->frontier, &queue->pass_place) < 0)
		queue->frontier = queue->pass_place;
	return look;
}

/*
 * Look through a queue for tasks to claim.  The pass comes first, since its
 * tasks are older than those beyond the frontier.
 */
static void
look_through(Claims *claims, Queue *queue)
{
	Look		look = {.beyond = false};
	TimestampTz horizon = claims->now + LEAD_US;

	queue->soon_due = DT_NOEND;
	/* a pass that waits for a task has nothing more to do */
	if (queue->next_pass_from != DT_NOEND && (!queue->in_pass || queue->pass_waits))
		tasksched_queue_begin_pass(queue);
	if (queue->in_pass)
		look = go_on_with_pass(claims, queue);
	if (!look.beyond && !look.to_the_end && queue->more_beyond && claims->capacity > 0)
	{
		look = look_on(claims, queue, &queue->frontier, 0);
		look.beyond = true;
	}
	/* are due tasks left, among those seen or beyond? */
	if (look.beyond || look.to_the_end)
		queue->more_beyond = !look.all_done || !look.to_the_end;
	if (queue->next_pass_from != DT_NOEND && !queue->in_pass && claims->capacity > 0)
		tasksched_retry_by(claims->now);
	if (queue->later_due <= horizon)
		queue->later_due = tasksched_store_next_due(queue->priority, horizon);
}

/*
 * Hand the claimed tasks to their workers.  If a worker has gone away, or the
 * database was paused, undo the claim.
 */
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

/* Claim due tasks for workers that wait, and start workers for the others */
void
tasksched_claim_due(void)
{
	Claims		claims = {.now = GetCurrentTimestamp()};

	tasksched_round.lack = LACK_NOTHING;

	for (int i = 0; i < tasksched_nqueues; i++)
	{
		tasksched_queue_see_time(&tasksched_queues[i], claims.now);
		if (tasksched_queues[i].later_due <= claims.now + LEAD_US)
			tasksched_queues[i].more_beyond = true;
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
		/* the commit of the pause has asked for another round */
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
