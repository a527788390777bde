/*
 * start.c
 *	  Starting workers, and watching them start.
 *
 * A worker may not start because the server has no free slot or can't create a
 * process.  No owner is to blame for that, so the start is retried soon.  If a
 * worker ends before it is ready, its owner is to blame.  The next worker of
 * this owner is delayed, by 1 s, and by more after each failure in a row, up
 * to 1 min.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "schedule/schedule.h"
#include "scheduler/internal.h"
#include "worker/worker.h"

/* How often to try again while no worker slot is free */
#define SLOT_RETRY_US INT64CONST(250000)

/* How often to try again while the server can't start a process */
#define PROCESS_RETRY_US USECS_PER_SEC

/* How long an earlier scheduler's reservation is kept for its worker */
#define START_TIMEOUT_US (60 * USECS_PER_SEC)

/* How long a failing owner is remembered after its delay has passed */
#define FAILING_KEPT_US USECS_PER_HOUR

/* The last worker that this scheduler has started for a slot */
typedef struct StartNote
{
	BackgroundWorkerHandle *handle; /* until the worker is ready or has failed */
	uint32		generation;		/* of our last reservation */
} StartNote;

/* An owner whose workers fail to start */
typedef struct FailingOwner
{
	Oid			owner;			/* hash key */
	int			failures;
	TimestampTz not_before;
} FailingOwner;

static StartNote *notes;		/* one for each slot */
static HTAB *failing;
static bool no_process;			/* the server could not start the last worker */
static TimestampTz process_retry_at;	/* if so, when to retry */

void
tasksched_start_init(void)
{
	HASHCTL		ctl = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(FailingOwner)
	};

	notes = MemoryContextAllocZero(TopMemoryContext, tasksched_slot_count() * sizeof(StartNote));
	failing = hash_create("tasksched failing owners", 16, &ctl, HASH_ELEM | HASH_BLOBS);
}

/* ----------
 * Owners whose workers fail
 * ----------
 */

static FailingOwner *
find_failing(Oid owner)
{
	return hash_search(failing, &owner, HASH_FIND, NULL);
}

/* Is the owner's delay still running? */
static bool
must_wait(const FailingOwner *entry, TimestampTz now)
{
	return tasksched_is_ahead(entry->not_before, now, tasksched_setback_delay(entry->failures));
}

/* A worker of this owner is ready, or has ended before it was */
static void
note_start(Oid owner, bool success)
{
	TimestampTz now = GetCurrentTimestamp();
	FailingOwner *entry;
	bool		found;

	if (success)
	{
		(void) hash_search(failing, &owner, HASH_REMOVE, NULL);
		return;
	}
	entry = hash_search(failing, &owner, HASH_ENTER, &found);
	if (!found)
		entry->failures = 0;
	else if (must_wait(entry, now))
		return;					/* they were started together: one failure */
	entry->failures++;
	entry->not_before = now + tasksched_setback_delay(entry->failures);
}

/*
 * Is it too early to start another worker of this owner?  If so, *until is the
 * end of the delay.
 */
bool
tasksched_owner_must_wait(Oid owner, TimestampTz now, TimestampTz *until)
{
	FailingOwner *entry = find_failing(owner);

	if (entry == NULL || !must_wait(entry, now))
		return false;
	*until = entry->not_before;
	return true;
}

/* Store some of the failing owners, up to max */
void
tasksched_failing_owners(Oid *owners, int max)
{
	HASH_SEQ_STATUS seq;
	FailingOwner *entry;
	int			n = 0;

	hash_seq_init(&seq, failing);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (n < max)
			owners[n++] = entry->owner;
	}
}

/*
 * Forget the owners for which no worker has been started for long.  They have
 * no due tasks.
 */
void
tasksched_forget_failing(TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	FailingOwner *entry;

	hash_seq_init(&seq, failing);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (now - entry->not_before > FAILING_KEPT_US)
			(void) hash_search(failing, &entry->owner, HASH_REMOVE, NULL);
	}
}

/* ----------
 * Workers
 * ----------
 */

static void
forget_handle(StartNote *note)
{
	pfree(note->handle);
	note->handle = NULL;
}

/* Ask an idle worker of another owner to exit, to make room */
static void
dismiss_idle_worker(Oid owner)
{
	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		TaskSlot   *slot = &tasksched_round.slots[i];

		if (slot->state == SLOT_IDLE && slot->owner != owner && !slot->quit)
		{
			tasksched_slot_quit(i);
			slot->quit = true;
			return;
		}
	}
}

/*
 * The server could not start a process.  The worker's owner is not to blame.
 */
static void
note_no_process(Oid owner)
{
	no_process = true;
	process_retry_at = GetCurrentTimestamp() + PROCESS_RETRY_US;
	dismiss_idle_worker(owner);
	tasksched_log_no_process();
}

/* See what has become of the workers that were started */
void
tasksched_check_starting(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		TaskSlot   *slot = &tasksched_round.slots[i];
		StartNote  *note = &notes[i];
		bool		starting = slot->state == SLOT_STARTING &&
		(note->handle == NULL || slot->generation == note->generation);
		pid_t		pid;

		if (note->handle != NULL && !starting)
		{
			if (slot->generation == note->generation)
			{
				if (slot->pid != 0 && !slot->ready)
					continue;	/* connected, but it may still fail */
				note_start(slot->owner, slot->ready);
			}
			no_process = false;
			forget_handle(note);
		}
		else if (note->handle != NULL)
		{
			if (GetBackgroundWorkerPid(note->handle, &pid) != BGWH_STOPPED)
				continue;
			if (!tasksched_slot_release(i, note->generation))
				continue;		/* the worker came after all, and has ended */
			note_no_process(slot->owner);
			forget_handle(note);
			slot->state = SLOT_FREE;
		}
		else if (starting && slot->pid == 0 &&
				 (slot->generation == note->generation ||
				  !tasksched_is_ahead(slot->since + START_TIMEOUT_US, now, START_TIMEOUT_US)))
		{
			/*
			 * An error kept us from registering the worker, or the slot was
			 * reserved by an earlier scheduler.
			 */
			(void) tasksched_slot_release(i, slot->generation);
			slot->state = SLOT_FREE;
		}
	}
}

/*
 * No slot is free, of ours or of the server's.  That is normal and temporary.
 */
static void
note_no_slot(Oid owner)
{
	tasksched_round.lack = LACK_SLOT;
	tasksched_retry_by(GetCurrentTimestamp() + SLOT_RETRY_US);
	dismiss_idle_worker(owner);
	tasksched_shortage_begin();
}

/* Read whether an owner is a superuser; false if the role does not exist */
static bool
owner_is_superuser(Oid owner, bool *superuser)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));

	if (!HeapTupleIsValid(tuple))
		return false;
	*superuser = ((Form_pg_authid) GETSTRUCT(tuple))->rolsuper;
	ReleaseSysCache(tuple);
	return true;
}

/* Start a worker, within a transaction; false if none can be started now */
static bool
start_worker(Oid owner)
{
	WorkerArgs	args = {
		.dboid = MyDatabaseId,
		.owner = owner
	};
	BackgroundWorker worker;
	StartNote  *note;

	if (!owner_is_superuser(owner, &args.superuser))
		return true;

	/*
	 * any change after this makes the worker outdated, even before it
	 * connects
	 */
	args.settings = tasksched_settings_fingerprint(owner);
	args.slot = tasksched_slot_reserve(owner, &args.generation);
	if (args.slot < 0)
	{
		note_no_slot(owner);
		return false;
	}

	note = &notes[args.slot];
	if (note->handle != NULL)
		forget_handle(note);
	note->generation = args.generation;
	TASKSCHED_FAULT_POINT("slot reserved");

	tasksched_describe_process(&worker, "worker");
	snprintf(worker.bgw_name, BGW_MAXLEN, "tasksched worker for role %u in database %u",
			 owner, MyDatabaseId);
	StaticAssertStmt(sizeof(WorkerArgs) <= BGW_EXTRALEN, "WorkerArgs too large");
	memcpy(worker.bgw_extra, &args, sizeof(args));

	if (!tasksched_register_process(&worker, &note->handle))
	{
		(void) tasksched_slot_release(args.slot, args.generation);
		note_no_slot(owner);
		return false;
	}
	TASKSCHED_FAULT_POINT("worker registered");
	return true;
}

/* Count the workers of an owner that are starting */
static int
count_starting(Oid owner)
{
	int			n = 0;

	for (int i = 0; i < tasksched_round.nslots; i++)
		n += tasksched_round.slots[i].state == SLOT_STARTING && tasksched_round.slots[i].owner == owner;
	return n;
}

/* Start the workers that are needed, as far as max_running_tasks allows */
void
tasksched_start_workers(const Demand *demands, int n)
{
	/* slots of dead workers count too, or one database could take all slots */
	int			taken = tasksched_round.nslots - tasksched_count_slots(SLOT_FREE);

	if (no_process && n > 0)
	{
		tasksched_round.lack = LACK_PROCESS;
		if (tasksched_is_ahead(process_retry_at, GetCurrentTimestamp(), PROCESS_RETRY_US))
		{
			tasksched_retry_by(process_retry_at);
			return;
		}
	}
	for (int i = 0; i < n; i++)
	{
		const Demand *demand = &demands[i];

		/* if the last worker failed, start one to see whether it does too */
		int			missing = find_failing(demand->owner) ? 1 : demand->wanted;

		missing -= count_starting(demand->owner);
		for (; missing > 0; missing--)
		{
			if (taken >= tasksched_max_running_tasks)
			{
				dismiss_idle_worker(demand->owner);
				break;
			}
			if (!start_worker(demand->owner))
				return;
			taken++;
			if (no_process)
			{
				/* one is enough to see whether the server can start it */
				process_retry_at = GetCurrentTimestamp() + PROCESS_RETRY_US;
				return;
			}
		}
	}
}
