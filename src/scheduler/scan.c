/*
 * scan.c
 *	  Scan: read everything afresh, now and then, and what goes on in batches
 *	  from there.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "base/settings.h"
#include "scheduler/internal.h"
#include "store/store.h"

#define PURGE_ROWS 1000
#define BRING_FORWARD_ROWS 1000

/* A task that was reported as stuck */
typedef struct StuckNote
{
	pg_uuid_t	id;				/* hash key */
	TimestampTz warned_at;
} StuckNote;

static HTAB *stuck;
static TimestampTz last_scan = 0;
static bool paused;
static bool purging;
static TimestampTz purge_from;	/* what finished before has been purged */
static bool bringing_forward;

void
tasksched_scan_init(void)
{
	HASHCTL		ctl = {
		.keysize = sizeof(pg_uuid_t),
		.entrysize = sizeof(StuckNote)
	};

	stuck = hash_create("tasksched stuck tasks", 16, &ctl, HASH_ELEM | HASH_BLOBS);
}

static bool
is_suspect(const Suspect *suspects, int n, const pg_uuid_t *id)
{
	for (int i = 0; i < n; i++)
	{
		if (tasksched_same_task(&suspects[i].task.id, id))
			return true;
	}
	return false;
}

/* Put back what is active but runs nowhere, unless more is known of its end */
static void
resume_orphans(void)
{
	int			nsuspects;
	Suspect    *suspects = tasksched_suspects_copy(MyDatabaseId, &nsuspects);
	TaskRef    *tasks;
	int			n;

	tasksched_begin();
	MemoryContextSwitchTo(tasksched_round.cxt);
	n = tasksched_store_active(&tasks);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		bool		held = tasksched_is_remembered(&tasks[i]) || is_suspect(suspects, nsuspects, &tasks[i].id);

		for (int j = 0; j < tasksched_round.nslots && !held; j++)
			held = tasksched_round.slots[j].state >= SLOT_READY &&
				tasksched_same_task(&tasksched_round.slots[j].task.id, &tasks[i].id);
		if (!held)
			(void) tasksched_put_back(&tasks[i], END_TERMINATED, false);
	}
}

/*
 * Delete old finished tasks, a batch in each round until there are no more.  Each
 * begins where the last one ended: the index may still have all that was deleted.
 */
static void
purge(void)
{
	tasksched_begin();
	purging = tasksched_store_purge(&purge_from, PURGE_ROWS) == PURGE_ROWS;
	tasksched_commit();
	if (purging)
		tasksched_retry_by(GetCurrentTimestamp());
}

/*
 * The clock was set back, so what was scheduled for now or had to wait has a due
 * time to come.  A batch in each round, again with each scan until the clock
 * shows its latest time again.
 */
static void
bring_forward(TimestampTz now)
{
	int			n;

	tasksched_begin();
	n = tasksched_store_bring_forward(BRING_FORWARD_ROWS);
	tasksched_commit();
	bringing_forward = n == BRING_FORWARD_ROWS;
	if (bringing_forward)
		tasksched_retry_by(now);
	if (n > 0)
		tasksched_queues_note_due(now, now);
}

/* Warn of tasks that are active without an update, once a day for each */
static void
warn_of_stuck(void)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS seq;
	StuckNote  *note;
	StuckTask  *tasks;
	int			n;

	tasksched_begin();
	MemoryContextSwitchTo(tasksched_round.cxt);
	n = tasksched_store_stuck(&tasks);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		bool		found;

		note = hash_search(stuck, &tasks[i].id, HASH_ENTER, &found);
		if (found && now - note->warned_at < USECS_PER_DAY)
			continue;
		note->warned_at = now;
		ereport(WARNING,
				(errmsg("task %s (action \"%s\") is active and has seen no update for more than %d s, and may be stuck",
						tasksched_uuid_out(&tasks[i].id), tasks[i].action, tasksched_stuck_after),
				 errhint("See the view tasksched.stuck_tasks, and cancel_task().")));
	}

	hash_seq_init(&seq, stuck);
	while ((note = hash_seq_search(&seq)) != NULL)
	{
		if (now - note->warned_at >= 2 * USECS_PER_DAY)
			(void) hash_search(stuck, &note->id, HASH_REMOVE, NULL);
	}
}

/* Read everything afresh.  set_back: the clock shows less than it did */
void
tasksched_scan(bool set_back)
{
	int16	   *priorities;
	int			n;

	resume_orphans();
	tasksched_check_superseded();
	warn_of_stuck();
	tasksched_forget_failing(GetCurrentTimestamp());

	tasksched_begin();
	MemoryContextSwitchTo(tasksched_round.cxt);
	paused = tasksched_store_get_paused();
	n = tasksched_store_priorities(&priorities);
	tasksched_commit();
	tasksched_database_set_paused(paused);
	tasksched_queues_scan(priorities, n);

	last_scan = GetCurrentTimestamp();
	purging = true;
	purge_from = DT_NOBEGIN;
	bringing_forward = set_back;
}

/* When the last scan was; 0 = none yet */
TimestampTz
tasksched_last_scan(void)
{
	return last_scan;
}

/* Has the last scan found the scheduler paused? */
bool
tasksched_scan_found_paused(void)
{
	return paused;
}

/* Is there a batch left of what a scan has begun? */
bool
tasksched_has_batches(void)
{
	return purging || bringing_forward;
}

void
tasksched_bring_forward_batch(TimestampTz now)
{
	if (bringing_forward)
		bring_forward(now);
}

void
tasksched_purge_batch(void)
{
	if (purging)
		purge();
}
