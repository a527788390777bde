/*
 * start.c
 *	  The scheduler: starting workers, and what becomes of them on their way.
 *
 * That no worker can be had for lack of slots or processes is nobody's doing, and
 * is tried again soon.  If the workers of an owner fail before they are ready,
 * others of that owner wait longer and longer.
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

/* A slot that an earlier scheduler reserved, and whose worker has not come */
#define START_TIMEOUT_US (60 * USECS_PER_SEC)

/* An owner whose workers failed is remembered for so long after it might be tried again */
#define FAILING_KEPT_US USECS_PER_HOUR

/* The worker that this scheduler has started for a slot */
typedef struct StartNote
{
	BackgroundWorkerHandle *handle; /* until it is ready, or has failed */
	uint32		generation;		/* of our last reservation */
} StartNote;

/* An owner whose workers fail to start */
typedef struct FailingOwner
{
	Oid			owner;			/* hash key */
	int			failures;
	TimestampTz not_before;
} FailingOwner;

static StartNote *notes;		/* for each slot */
static HTAB *failing;
static bool no_process;			/* the server could not start the last worker ... */
static TimestampTz process_retry_at;	/* ... and this is when to try again */

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

/* Is it too early to try again? */
static bool
must_wait(const FailingOwner *entry, TimestampTz now)
{
	return tasksched_is_ahead(entry->not_before, now, tasksched_setback_delay(entry->failures));
}

/* A worker of this owner is there, or has ended before it was */
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
		return;					/* several were started at once: they failed once */
	entry->failures++;
	entry->not_before = now + tasksched_setback_delay(entry->failures);
}

/* Is it too early to try this owner again? */
bool
tasksched_owner_must_wait(Oid owner, TimestampTz now, TimestampTz *until)
{
	FailingOwner *entry = find_failing(owner);

	if (entry == NULL || !must_wait(entry, now))
		return false;
	*until = entry->not_before;
	return true;
}

/* Some of them, up to max */
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

/* Forget the owners that have not been tried again for long: they have no tasks */
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

/* Tell an idle worker of another owner to make room */
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

/* The server could not start a process for a worker: that is not its owner's doing */
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
				continue;		/* it has come and gone since we looked */
			note_no_process(slot->owner);
			forget_handle(note);
			slot->state = SLOT_FREE;
		}
		else if (starting && slot->pid == 0 &&
				 (slot->generation == note->generation ||
				  !tasksched_is_ahead(slot->since + START_TIMEOUT_US, now, START_TIMEOUT_US)))
		{
			/* an error kept us from registering it; or it was an earlier scheduler's */
			(void) tasksched_slot_release(i, slot->generation);
			slot->state = SLOT_FREE;
		}
	}
}

/* No background worker could be registered: that is normal, and temporary */
static void
note_no_slot(Oid owner)
{
	tasksched_round.lack = LACK_SLOT;
	tasksched_retry_by(GetCurrentTimestamp() + SLOT_RETRY_US);
	dismiss_idle_worker(owner);
	tasksched_shortage_begin();
}

/* Read what a worker has to know of its owner; false if the role is gone */
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

/* Start a worker; in a transaction; false if none can be started now */
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
	/* a change after this, even before the worker has connected, makes it outdated */
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

/* The workers of an owner that are on their way */
static int
count_starting(Oid owner)
{
	int			n = 0;

	for (int i = 0; i < tasksched_round.nslots; i++)
		n += tasksched_round.slots[i].state == SLOT_STARTING && tasksched_round.slots[i].owner == owner;
	return n;
}

/* Start the workers that are wanted, as far as the limit allows */
void
tasksched_start_workers(const Demand *demands, int n)
{
	/* dead ones too, or one database could have all slots */
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
		/* if the last one has failed, one will do to find out */
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
				/* one will do to find out */
				process_retry_at = GetCurrentTimestamp() + PROCESS_RETRY_US;
				return;
			}
		}
	}
}

