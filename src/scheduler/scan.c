/*
 * scan.c
 *	  Scan: compare what the scheduler remembers with the tables.
 *
 * The tables are the only truth.  A scan finds what no wake-up has told of,
 * such as tasks that are active after a restart of the server and have no
 * worker.  It also begins two jobs that go on in batches, one in each round:
 * purging old finished tasks, and bringing due times forward after the clock
 * was set back.
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

/* A task that has been reported as stuck */
typedef struct StuckNote
{
	pg_uuid_t	id;				/* hash key */
	TimestampTz warned_at;
} StuckNote;

static HTAB *stuck;
static TimestampTz last_scan = 0;
static bool paused;				/* what the last scan read */
static bool purging;
static TimestampTz purge_from;	/* where the next batch begins */
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

/*
 * Put back the tasks that are active and have no worker.  Leave those whose
 * end is known: a slot, a suspect or a remembered task says more than the
 * table.
 */
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
 * Delete a batch of old finished tasks.  It begins where the last batch ended,
 * because the index may still have entries of all that was deleted.
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
 * After the clock was set back, tasks that were due when they were last
 * written have due times in the future.  Make a batch of them due now.  Each
 * scan repeats this until the clock has passed its latest time.
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

/* Warn of active tasks that have seen no update, once a day for each */
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

/* Scan.  set_back is whether the clock is behind its latest time. */
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

/* When the last scan was made; 0 if there was none */
TimestampTz
tasksched_last_scan(void)
{
	return last_scan;
}

/* Did the last scan find the scheduler paused? */
bool
tasksched_scan_found_paused(void)
{
	return paused;
}

/* Are there batches left of what a scan has begun? */
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
