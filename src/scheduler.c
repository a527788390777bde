/*
 * scheduler.c
 *	  The scheduler of a database: the reconcile loop.
 *
 * Each round takes the reasons that have come up (commits, workers, time) and
 * does what they ask for:
 *
 *	reap		put back the tasks of workers that ended without an outcome
 *	check		interrupt the actions of tasks that were cancelled
 *	scan		from scratch, now and then: resume what is active and runs
 *				nowhere, purge, warn, forget what was remembered of the queues
 *	claim		what is due, for workers that are there; start workers
 *
 * and then sleeps until the earliest reason.  An idle scheduler holds no
 * transaction and runs no query between two scans.
 *
 * A task is claimed for a worker that waits for it, never for one that has yet
 * to come: so a lack of worker slots costs no attempt and needs no undoing, and
 * a task that is active is really being run.  A worker is started a little
 * ahead of the due time.
 *
 * Of each queue (the scheduled tasks of one priority, by due time) the
 * scheduler remembers the place up to which everything has been claimed or is
 * blocked, so that it never steps again over the dead index entries that claims
 * leave behind.  A commit that schedules a task before that place, or that had
 * locked one, brings its due time along and moves the place back.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "tasksched.h"

/* A worker is started so long before the due time of its task */
#define LEAD_US INT64CONST(100000)

/* Tasks looked at in one query, and at the most in one round */
#define PEEK_ROWS 64
#define PEEK_ROUND_ROWS 10000

#define PURGE_ROWS 1000

/* The clock was set back if it shows so much less than before */
#define SET_BACK_US USECS_PER_SEC
#define BRING_FORWARD_ROWS 1000

/* How often to try again while no worker slot is free */
#define SLOT_RETRY_US INT64CONST(250000)

/* How often to try again while the server can't start a process */
#define PROCESS_RETRY_US USECS_PER_SEC

/* A slot that an earlier scheduler reserved, and whose worker has not come */
#define START_TIMEOUT_US (60 * USECS_PER_SEC)

/* A cancelled action that goes on: interrupt it again, and then terminate */
#define INTERRUPT_AGAIN_US USECS_PER_SEC
#define INTERRUPTS_BEFORE_TERMINATE 3

/* An owner whose workers failed is remembered for so long after it might be tried again */
#define FAILING_KEPT_US USECS_PER_HOUR

/* Retry after an error, and how long nothing but that wakes us; or of a row that somebody holds */
#define ERROR_RETRY_MAX 6
#define ERROR_PAUSE_US USECS_PER_SEC
#define LOCKED_RETRY_US USECS_PER_SEC

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

/* What this scheduler knows of a slot, beside what the slot says */
typedef struct SlotNote
{
	BackgroundWorkerHandle *handle; /* until the worker has attached */
	uint32		generation;		/* of our last reservation */
	int			interrupts;		/* sent to the task in the slot */
	TaskRef		interrupted;
	TimestampTz interrupt_at;	/* when to send the next */
} SlotNote;

/* An owner whose workers fail to start */
typedef struct FailingOwner
{
	Oid			owner;			/* hash key */
	int			failures;
	TimestampTz not_before;
} FailingOwner;

/* A task that was reported as stuck */
typedef struct StuckNote
{
	pg_uuid_t	id;				/* hash key */
	TimestampTz warned_at;
} StuckNote;

static Oid	extension;			/* its OID when we started */

static Queue *queues;
static int	nqueues;
static SlotNote *notes;
static HTAB *failing;
static HTAB *stuck;

static TimestampTz last_scan = 0;
static TimestampTz next_scan = 0;
static TimestampTz retry_at = DT_NOEND; /* of something that could not be done */
static TimestampTz revisit_at = DT_NOEND;	/* when to look again at tasks that were passed by */
static TimestampTz round_at = 0;	/* when the last round began */
static TimestampTz latest = 0;	/* the latest time that the clock has shown */
static TimestampTz last_busy;
static bool for_net;			/* started only to have a look */
static bool paused;
static bool purging;
static bool bringing_forward;
static Lack lack;				/* what due tasks wait for */
static bool no_process;			/* the server could not start the last worker ... */
static TimestampTz process_retry_at;	/* ... and this is when to try again */

static MemoryContext queue_cxt;
static MemoryContext round_cxt;

/* this round's view of the slots */
static TaskSlot *slots;
static int	nslots;

static void
refresh_slots(void)
{
	MemoryContext old = MemoryContextSwitchTo(round_cxt);

	slots = tasksched_slots_copy(MyDatabaseId, &nslots);
	MemoryContextSwitchTo(old);
}

static int
count_slots(SlotState state)
{
	int			n = 0;

	for (int i = 0; i < nslots; i++)
		n += slots[i].state == state;
	return n;
}

static bool
same_task(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a, b, sizeof(pg_uuid_t)) == 0;
}

static void
retry_by(TimestampTz at)
{
	retry_at = Min(retry_at, at);
}

/* ----------
 * Queues
 * ----------
 */

/* Forget what is known of the queues: read them from the start */
static void
reset_queues(const int16 *priorities, int n)
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

/* Go back to the start of all queues */
static void
rewind_queues(void)
{
	for (int i = 0; i < nqueues; i++)
	{
		queues[i].after_run_at = DT_NOBEGIN;
		queues[i].due = true;
	}
}

/* A task with this due time has come, or was locked when we passed by */
static void
note_due(TimestampTz run_at, TimestampTz now)
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
static TimestampTz
next_due(void)
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

static bool
anything_due(void)
{
	for (int i = 0; i < nqueues; i++)
	{
		if (queues[i].due)
			return true;
	}
	return false;
}

/* ----------
 * Workers
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

/* Forget the owners that have not been tried again for long: they have no tasks */
static void
forget_failing(TimestampTz now)
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

static void
forget_handle(SlotNote *note)
{
	pfree(note->handle);
	note->handle = NULL;
}

/* Tell an idle worker of another owner to make room */
static void
dismiss_idle_worker(Oid owner)
{
	for (int i = 0; i < nslots; i++)
	{
		if (slots[i].state == SLOT_IDLE && slots[i].owner != owner && !slots[i].quit)
		{
			tasksched_slot_quit(i);
			slots[i].quit = true;
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
static void
check_starting(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < nslots; i++)
	{
		SlotNote   *note = &notes[i];
		bool		starting = slots[i].state == SLOT_STARTING &&
			(note->handle == NULL || slots[i].generation == note->generation);
		pid_t		pid;

		if (note->handle != NULL && !starting)
		{
			if (slots[i].generation == note->generation)
			{
				if (slots[i].pid != 0 && !slots[i].came)
					continue;	/* connected, but it may still fail */
				note_start(slots[i].owner, slots[i].came);
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
			note_no_process(slots[i].owner);
			forget_handle(note);
			slots[i].state = SLOT_FREE;
		}
		else if (starting && slots[i].pid == 0 &&
				 (slots[i].generation == note->generation ||
				  !tasksched_is_ahead(slots[i].since + START_TIMEOUT_US, now, START_TIMEOUT_US)))
		{
			/* an error kept us from registering it; or it was an earlier scheduler's */
			(void) tasksched_slot_release(i, slots[i].generation);
			slots[i].state = SLOT_FREE;
		}
	}
}

/* No background worker could be registered: that is normal, and temporary */
static void
note_no_slot(Oid owner)
{
	lack = LACK_SLOT;
	retry_by(GetCurrentTimestamp() + SLOT_RETRY_US);
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
	WorkerArgs	args = {.dboid = MyDatabaseId, .owner = owner};
	BackgroundWorker worker = {0};
	SlotNote   *note;
	MemoryContext old;
	bool		ok;

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

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "tasksched", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "tasksched_worker_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "tasksched worker for role %u in database %u",
			 owner, MyDatabaseId);
	strlcpy(worker.bgw_type, "tasksched worker", BGW_MAXLEN);
	worker.bgw_notify_pid = MyProcPid;
	StaticAssertStmt(sizeof(WorkerArgs) <= BGW_EXTRALEN, "WorkerArgs too large");
	memcpy(worker.bgw_extra, &args, sizeof(args));

	old = MemoryContextSwitchTo(TopMemoryContext);
	ok = RegisterDynamicBackgroundWorker(&worker, &note->handle);
	MemoryContextSwitchTo(old);
	if (!ok)
	{
		note->handle = NULL;
		(void) tasksched_slot_release(args.slot, args.generation);
		note_no_slot(owner);
		return false;
	}
	TASKSCHED_FAULT_POINT("worker registered");
	return true;
}

/* ----------
 * Reap
 * ----------
 */

/* Put a task back; a transaction of its own */
static PutBack
put_back(const TaskRef *task, SlotEnd end, bool server_crashed)
{
	PutBack		done;

	tasksched_begin();
	/* a lost count would let a task crash the server for ever */
	if (end == END_CRASHED)
		ForceSyncCommit();
	done = tasksched_store_put_back(task, end, server_crashed);
	tasksched_commit();
	TASKSCHED_FAULT_POINT("task put back");
	if (done == PUT_BACK_LOCKED)
		retry_by(GetCurrentTimestamp() + LOCKED_RETRY_US);
	return done;
}

/*
 * Put back the tasks of workers that ended without an outcome; returns whether
 * a scan has to see what has become of one.
 */
static bool
reap(void)
{
	bool		unclear = false;

	for (int i = 0; i < nslots; i++)
	{
		PutBack		done;

		if (slots[i].state != SLOT_DEAD)
			continue;
		done = put_back(&slots[i].task, slots[i].end, false);
		if (done == PUT_BACK_LOCKED)
			continue;
		if (slots[i].end == END_CRASHED)
			ereport(LOG,
					(errmsg("tasksched task %s (action \"%s\") ended its worker process",
							tasksched_uuid_out(&slots[i].task.id), slots[i].action)));
		if (done == PUT_BACK_NOT_HELD)
			unclear = true;		/* perhaps the next stage was claimed already */
		tasksched_slot_reaped(i);
		slots[i].state = SLOT_FREE;
	}
	return unclear;
}

/* Count the crashes of those who crashed the server */
static void
reap_suspects(void)
{
	int			n;
	Suspect    *suspects = tasksched_suspects_copy(MyDatabaseId, &n);

	for (int i = 0; i < n; i++)
	{
		if (put_back(&suspects[i].task, END_CRASHED, true) == PUT_BACK_LOCKED)
			continue;
		ereport(LOG,
				(errmsg("tasksched task %s crashed the server",
						tasksched_uuid_out(&suspects[i].task.id))));
		tasksched_suspect_forget(&suspects[i]);
	}
}

/* ----------
 * Check
 * ----------
 */

/* Find running launches that no longer hold their tasks; interrupt them */
static void
check_superseded(void)
{
	TaskRef    *running = palloc(nslots * sizeof(TaskRef));
	TaskRef    *superseded = palloc(nslots * sizeof(TaskRef));
	int			n = 0;

	for (int i = 0; i < nslots; i++)
	{
		if (slots[i].state == SLOT_READY || slots[i].state == SLOT_RUNNING)
			running[n++] = slots[i].task;
	}
	if (n == 0)
		return;

	tasksched_begin();
	n = tasksched_store_superseded(running, n, superseded);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < nslots; j++)
		{
			SlotNote   *note = &notes[j];

			if ((slots[j].state != SLOT_READY && slots[j].state != SLOT_RUNNING) ||
				!same_task(&slots[j].task.id, &superseded[i].id))
				continue;
			if (note->interrupts > 0 && note->interrupted.launch == superseded[i].launch &&
				same_task(&note->interrupted.id, &superseded[i].id))
				continue;		/* under way */
			note->interrupted = superseded[i];
			note->interrupts = 1;
			note->interrupt_at = 0;
		}
	}
}

/* Interrupt the actions of cancelled tasks until they end */
static void
send_interrupts(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < nslots; i++)
	{
		SlotNote   *note = &notes[i];

		if (note->interrupts == 0 ||
			tasksched_is_ahead(note->interrupt_at, now, INTERRUPT_AGAIN_US))
			continue;
		if (!tasksched_slot_interrupt(i, &note->interrupted,
									  note->interrupts > INTERRUPTS_BEFORE_TERMINATE ? SIGTERM : SIGINT))
			note->interrupts = 0;	/* it has ended */
		else
		{
			note->interrupts++;
			note->interrupt_at = now + INTERRUPT_AGAIN_US;
		}
	}
}

/* ----------
 * Scan
 * ----------
 */

static void
exit_cleanly(void)
{
	tasksched_database_set_clean_exit();
	proc_exit(0);
}

/*
 * The extension may be gone, or another one.  Then its workers have to go at
 * once, and so do we.
 */
static void
check_extension(void)
{
	Oid			now_there;

	tasksched_begin();
	now_there = tasksched_extension_oid();
	if (now_there == extension)
		tasksched_extension_check();
	tasksched_commit();
	if (now_there == extension)
		return;

	tasksched_slots_quit(MyDatabaseId, true);
	if (OidIsValid(now_there))
		tasksched_database_put_wake(WAKE_SCAN, DT_NOEND);
	else
		tasksched_database_forget(MyDatabaseId, true);
	exit_cleanly();
}

/* Put back what is active but runs nowhere; false if somebody holds a row */
static bool
resume_orphans(void)
{
	bool		all = true;
	TaskRef    *tasks;
	int			n;

	tasksched_begin();
	MemoryContextSwitchTo(round_cxt);
	n = tasksched_store_active(&tasks);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		bool		held = false;

		for (int j = 0; j < nslots && !held; j++)
			held = slots[j].state >= SLOT_READY && same_task(&slots[j].task.id, &tasks[i].id);
		if (!held && put_back(&tasks[i], END_TERMINATED, false) == PUT_BACK_LOCKED)
			all = false;
	}
	return all;
}

/* Delete old finished tasks, a batch in each round until there are no more */
static void
purge(void)
{
	tasksched_begin();
	purging = tasksched_store_purge(PURGE_ROWS) == PURGE_ROWS;
	tasksched_commit();
	if (purging)
		retry_by(GetCurrentTimestamp());
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
		retry_by(now);
	if (n > 0)
		note_due(now, now);
}

/* Warn of tasks that are active without an update, once a day for each */
static void
warn_of_stuck(void)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS seq;
	StuckNote  *note;
	pg_uuid_t  *ids;
	char	  **actions;
	int			n;

	tasksched_begin();
	MemoryContextSwitchTo(round_cxt);
	n = tasksched_store_stuck(&ids, &actions);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		bool		found;

		note = hash_search(stuck, &ids[i], HASH_ENTER, &found);
		if (found && now - note->warned_at < USECS_PER_DAY)
			continue;
		note->warned_at = now;
		ereport(WARNING,
				(errmsg("task %s (action \"%s\") is active and has seen no update for more than %d s, and may be stuck",
						tasksched_uuid_out(&ids[i]), actions[i], tasksched_stuck_after),
				 errhint("See the view tasksched.stuck_tasks, and cancel_task().")));
	}

	hash_seq_init(&seq, stuck);
	while ((note = hash_seq_search(&seq)) != NULL)
	{
		if (now - note->warned_at >= 2 * USECS_PER_DAY)
			(void) hash_search(stuck, &note->id, HASH_REMOVE, NULL);
	}
}

/* Read everything afresh */
static void
scan(void)
{
	bool		all_resumed = resume_orphans();
	int16	   *priorities;
	int			n;

	check_superseded();
	warn_of_stuck();
	forget_failing(GetCurrentTimestamp());

	tasksched_begin();
	MemoryContextSwitchTo(round_cxt);
	paused = tasksched_store_get_paused();
	n = tasksched_store_priorities(&priorities);
	tasksched_commit();
	reset_queues(priorities, n);

	last_scan = GetCurrentTimestamp();
	next_scan = all_resumed ? TimestampTzPlusMilliseconds(last_scan, tasksched_reconcile_interval) :
		last_scan + LOCKED_RETRY_US;
	purging = true;
	bringing_forward = last_scan < latest - SET_BACK_US;
}

/* ----------
 * Claim
 * ----------
 */

/* How many workers an owner lacks in this round */
typedef struct Demand
{
	Oid			owner;
	int			wanted;
} Demand;

/* What is gathered in one round of claims */
typedef struct Round
{
	int			capacity;		/* tasks that may still be claimed */
	int			nchosen;
	pg_uuid_t  *ids;			/* of the tasks to claim ... */
	const struct BlockedNote **notes;	/* ... what is known of their actions ... */
	int		   *slots;			/* ... and the slots of their workers */
	int			ndemands;
	Demand	   *demands;
	List	   *reasons;		/* BlockedNote */
} Round;

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
look_up_blocked(Round *round, const Candidate *c)
{
	ListCell   *lc;
	BlockedNote *note;

	foreach(lc, round->reasons)
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
	round->reasons = lcons(note, round->reasons);
	return note;
}

/* An idle worker of the owner, in this round's view of the slots; or -1 */
static int
find_idle(Oid owner)
{
	for (int i = 0; i < nslots; i++)
	{
		if (slots[i].state == SLOT_IDLE && slots[i].owner == owner && !slots[i].quit)
			return i;
	}
	return -1;
}

static void
add_demand(Round *round, Oid owner)
{
	for (int i = 0; i < round->ndemands; i++)
	{
		if (round->demands[i].owner == owner)
		{
			round->demands[i].wanted++;
			return;
		}
	}
	round->demands[round->ndemands].owner = owner;
	round->demands[round->ndemands++].wanted = 1;
}

/*
 * Deal with one candidate; returns whether it is done with, so that the place
 * in the queue may pass it.
 */
static bool
consider(Round *round, Queue *queue, const Candidate *c, TimestampTz now)
{
	const BlockedNote *note = look_up_blocked(round, c);
	FailingOwner *fails = find_failing(c->owner);
	int			slot = find_idle(c->owner);

	if (note->blocked)
		return true;			/* the next scan looks again */
	if (slot < 0 && fails != NULL && must_wait(fails, now))
	{
		revisit_at = Min(revisit_at, fails->not_before);
		return true;
	}
	round->capacity--;
	if (slot >= 0 && c->run_at <= now)
	{
		round->ids[round->nchosen] = c->id;
		round->notes[round->nchosen] = note;
		round->slots[round->nchosen++] = slot;
		slots[slot].state = SLOT_READY; /* taken: nobody else's, nor to be dismissed */
		return true;
	}
	if (c->run_at > now)
		queue->soon = Min(queue->soon, c->run_at);
	if (slot < 0)
		add_demand(round, c->owner);
	return false;
}

/* Look through a queue for tasks to claim */
static void
look_through(Round *round, Queue *queue, TimestampTz now)
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
		for (int i = 0; i < n && round->capacity > 0; i++)
		{
			if (!consider(round, queue, &candidates[i], now))
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
	} while (n == PEEK_ROWS && round->capacity > 0 && seen < PEEK_ROUND_ROWS);

	/* anything left, here or further on? */
	queue->due = !all_passed || n == PEEK_ROWS || round->capacity <= 0;
	if (all_passed && round->capacity > 0 && n == PEEK_ROWS)
		retry_by(now);
	if (queue->future <= now + LEAD_US)
		queue->future = tasksched_store_next_due(queue->priority, now + LEAD_US);
}

static const TaskRef *
find_claimed(const TaskRef *claimed, int n, const pg_uuid_t *id)
{
	for (int i = 0; i < n; i++)
	{
		if (same_task(&claimed[i].id, id))
			return &claimed[i];
	}
	return NULL;
}

/* Hand the claimed tasks to their workers */
static void
hand_over(const Round *round, const TaskRef *claimed, int n)
{
	for (int i = 0; i < round->nchosen; i++)
	{
		int			slot = round->slots[i];
		const TaskRef *task = find_claimed(claimed, n, &round->ids[i]);

		if (task != NULL &&
			tasksched_slot_assign(slot, slots[slot].generation, task,
								  round->notes[i]->action, &round->notes[i]->function))
			continue;
		slots[slot].state = SLOT_IDLE;
		if (task != NULL)
			(void) put_back(task, END_STALE, false);
	}
}

/* Start the workers that are wanted, as far as the limit allows */
static void
start_workers(const Round *round)
{
	int			alive = count_slots(SLOT_STARTING) + count_slots(SLOT_IDLE) +
		count_slots(SLOT_READY) + count_slots(SLOT_RUNNING);

	if (no_process && round->ndemands > 0)
	{
		lack = LACK_PROCESS;
		if (tasksched_is_ahead(process_retry_at, GetCurrentTimestamp(), PROCESS_RETRY_US))
		{
			retry_by(process_retry_at);
			return;
		}
	}
	for (int i = 0; i < round->ndemands; i++)
	{
		Demand	   *demand = &round->demands[i];
		/* if the last one has failed, one will do to find out */
		int			missing = find_failing(demand->owner) ? 1 : demand->wanted;

		for (int j = 0; j < nslots; j++)
			missing -= slots[j].state == SLOT_STARTING && slots[j].owner == demand->owner;
		for (; missing > 0; missing--)
		{
			if (alive >= tasksched_max_running_tasks)
			{
				dismiss_idle_worker(demand->owner);
				break;
			}
			if (!start_worker(demand->owner))
				return;
			alive++;
			if (no_process)
			{
				/* one will do to find out */
				process_retry_at = GetCurrentTimestamp() + PROCESS_RETRY_US;
				return;
			}
		}
	}
}

/* Claim what is due for the workers that wait, and start those that lack */
static void
claim(void)
{
	TimestampTz now = GetCurrentTimestamp();
	Round		round = {0};
	TaskRef    *claimed;
	int			nclaimed = 0;

	lack = LACK_NOTHING;

	for (int i = 0; i < nqueues; i++)
	{
		if (queues[i].future <= now + LEAD_US)
			queues[i].due = true;
	}
	round.capacity = tasksched_max_running_tasks - count_slots(SLOT_READY) - count_slots(SLOT_RUNNING);
	if (!anything_due() || round.capacity <= 0)
		return;

	round.ids = palloc(round.capacity * sizeof(pg_uuid_t));
	round.notes = palloc(round.capacity * sizeof(BlockedNote *));
	round.slots = palloc(round.capacity * sizeof(int));
	round.demands = palloc(round.capacity * sizeof(Demand));
	claimed = palloc(round.capacity * sizeof(TaskRef));

	tasksched_begin();
	MemoryContextSwitchTo(round_cxt);
	for (int i = 0; i < nqueues && round.capacity > 0; i++)
	{
		if (queues[i].due)
			look_through(&round, &queues[i], now);
	}
	if (round.nchosen > 0)
		nclaimed = tasksched_store_claim(round.ids, round.nchosen, claimed);
	start_workers(&round);
	tasksched_commit();

	if (nclaimed > 0)
		TASKSCHED_FAULT_POINT("task claimed");
	hand_over(&round, claimed, nclaimed);
}

/* ----------
 * The loop
 * ----------
 */

static bool
is_launching(void)
{
	return tasksched_enabled && !paused && anything_due();
}

/* Is there more than idle workers? */
static bool
is_busy(void)
{
	return is_launching() || count_slots(SLOT_FREE) + count_slots(SLOT_IDLE) < nslots;
}

static void
report(void)
{
	Oid			owners[MAX_FAILING_OWNERS] = {0};
	int			n = 0;
	HASH_SEQ_STATUS seq;
	FailingOwner *entry;

	hash_seq_init(&seq, failing);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		if (n < MAX_FAILING_OWNERS)
			owners[n++] = entry->owner;
	}
	tasksched_database_report(tasksched_enabled && !paused ? next_due() : DT_NOEND, last_scan,
							  is_busy(), paused, lack, owners);
}

/* One round */
static void
scheduler_round(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz wake_run_at;
	int			wake = tasksched_database_take_wake(&wake_run_at);
	bool		afresh;

	/* the clock may have gone back */
	next_scan = Min(next_scan, TimestampTzPlusMilliseconds(now, tasksched_reconcile_interval));
	if (revisit_at != DT_NOEND)
		revisit_at = Min(revisit_at, next_scan);
	last_busy = Min(last_busy, now);
	if (now < round_at - SET_BACK_US)
		next_scan = now;
	round_at = now;
	latest = Max(latest, now);

	retry_at = DT_NOEND;
	refresh_slots();
	if (wake_run_at != DT_NOEND)
		note_due(wake_run_at, now);
	if (now >= revisit_at)
	{
		revisit_at = DT_NOEND;
		rewind_queues();
	}

	check_starting();
	afresh = now >= next_scan || (wake & WAKE_SCAN);
	if (afresh)
		check_extension();		/* before all else: it may not be there any more */
	afresh |= reap();
	reap_suspects();
	if (afresh)
		scan();
	else if (wake & WAKE_CHECK)
		check_superseded();
	send_interrupts();
	if (bringing_forward)
		bring_forward(now);
	TASKSCHED_FAULT_POINT("tasks reaped");
	if (tasksched_enabled && !paused)
		claim();
	if (purging)
		purge();
	report();
}

/* Exit if another database needs our place; busy: we shall get it back */
static void
check_yield(bool busy)
{
	if (!tasksched_database_must_yield())
		return;
	/* running tasks go on without us, but no worker waits for more */
	tasksched_slots_quit(MyDatabaseId, false);
	if (busy)
		tasksched_database_put_wake(WAKE_SCAN, DT_NOEND);
	exit_cleanly();
}

/* Exit if there has been nothing to do for long enough, or another needs us */
static void
check_exit(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_launching() || count_slots(SLOT_FREE) < nslots)
		last_busy = now;

	check_yield(is_busy());
	if (for_net || now - last_busy >= tasksched_scheduler_idle_timeout * USECS_PER_SEC)
	{
		if (last_busy != now)
			exit_cleanly();
		for_net = false;
	}
}

/* When something has to be done next, if nobody wakes us before */
static TimestampTz
next_reason(void)
{
	TimestampTz next = Min(next_scan, Min(retry_at, revisit_at));

	for (int i = 0; i < nslots; i++)
	{
		if (notes[i].interrupts > 0)
			next = Min(next, notes[i].interrupt_at);
	}
	if (tasksched_enabled && !paused &&
		count_slots(SLOT_READY) + count_slots(SLOT_RUNNING) < tasksched_max_running_tasks)
	{
		for (int i = 0; i < nqueues; i++)
		{
			/* first to start a worker, then to claim */
			if (!TIMESTAMP_NOT_FINITE(queues[i].future))
				next = Min(next, queues[i].future - LEAD_US);
			if (queues[i].due)
				next = Min(next, queues[i].soon);
		}
	}
	return Min(next, last_busy + tasksched_scheduler_idle_timeout * USECS_PER_SEC);
}

static void
wake_self(void)
{
	SetLatch(MyLatch);
}

/*
 * Sleep until then, or until somebody sets the latch, but not before earliest.  A
 * round that has waited for a lock has reset the latch on its way, so look for
 * what it stood for.
 *
 * The timeout of WaitLatch is kept in whole ms and stretched by up to 0.1 % by
 * the kernel, so an interval timer does the waking.
 */
static void
sleep_until(TimestampTz then, TimestampTz earliest, TimeoutId timer)
{
	bool		paused_for_error;

	do
	{
		TimestampTz now = GetCurrentTimestamp();
		bool		wanted = ConfigReloadPending || tasksched_database_must_yield();

		paused_for_error = !wanted && tasksched_is_ahead(earliest, now, ERROR_PAUSE_US);
		if (paused_for_error || (!wanted && then > now && !tasksched_database_is_woken()))
		{
			enable_timeout_at(timer, paused_for_error ? earliest : then);
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Max(tasksched_reconcile_interval, 1000), PG_WAIT_EXTENSION);
			disable_timeout(timer, false);
		}
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	} while (paused_for_error);
}

/* Settings that our statements and transactions rely on */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"synchronous_commit", "off"},	/* what a crash loses is done again */
		{"plan_cache_mode", "force_generic_plan"},
		{"enable_sort", "off"},	/* queues are read in the order of their index */
		{"enable_bitmapscan", "off"},
	};

	tasksched_pin_timeouts();
	for (int i = 0; i < (int) lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/* Set up what the loop needs; exits if the database lacks the extension */
static void
initialize(void)
{
	HASHCTL		stuck_ctl = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(StuckNote)};
	HASHCTL		failing_ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(FailingOwner)};
	TimestampTz ignored;

	pin_settings();
	queue_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched queues", ALLOCSET_SMALL_SIZES);
	round_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched round", ALLOCSET_DEFAULT_SIZES);
	notes = MemoryContextAllocZero(TopMemoryContext, tasksched_slot_count() * sizeof(SlotNote));
	stuck = hash_create("tasksched stuck tasks", 16, &stuck_ctl, HASH_ELEM | HASH_BLOBS);
	failing = hash_create("tasksched failing owners", 16, &failing_ctl, HASH_ELEM | HASH_BLOBS);
	reset_queues(NULL, 0);
	last_busy = GetCurrentTimestamp();

	/*
	 * The first round scans, which answers all reasons that came before.  One
	 * that comes from here on may be CREATE EXTENSION.
	 */
	(void) tasksched_database_take_wake(&ignored);
	tasksched_begin();
	extension = tasksched_extension_oid();
	tasksched_commit();
	if (!OidIsValid(extension))
	{
		tasksched_slots_quit(MyDatabaseId, true);
		tasksched_database_forget(MyDatabaseId, true);
		exit_cleanly();
	}
	tasksched_database_set_known();
}

/*
 * Is the error what DROP EXTENSION under our feet looks like?  The next round
 * begins with a scan, which finds out.
 */
static bool
looks_dropped(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_UNDEFINED_TABLE || sqlerrcode == ERRCODE_UNDEFINED_SCHEMA ||
		sqlerrcode == ERRCODE_UNDEFINED_FUNCTION || sqlerrcode == ERRCODE_UNDEFINED_OBJECT;
}

/* An error ends the round, not the scheduler; errors counts those in a row */
static void
recover(int errors)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	MemoryContextSwitchTo(round_cxt);
	edata = CopyErrorData();
	if (errors > 1 || !looks_dropped(edata->sqlerrcode))
		EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	tasksched_database_report_error(edata->message);
	next_scan = 0;				/* whatever was noted may be lost */
	retry_at = GetCurrentTimestamp() + tasksched_setback_delay(errors);
	RESUME_INTERRUPTS();
}

void
tasksched_scheduler_main(Datum arg)
{
	SchedulerArgs args;
	TimeoutId	timer;
	volatile int errors = 0;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	if (!tasksched_database_attach(args.dboid))
		proc_exit(0);
	for_net = args.net;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, PG_SIG_IGN);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(args.dboid, InvalidOid, 0);
	timer = RegisterTimeout(USER_TIMEOUT, wake_self);
	initialize();
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		TimestampTz then;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			next_scan = 0;
		}

		if (catchupInterruptPending)
			ProcessCatchupInterrupt();

		PG_TRY();
		{
			MemoryContextSwitchTo(round_cxt);
			scheduler_round();
			check_exit();
			then = next_reason();
			errors = 0;
		}
		PG_CATCH();
		{
			errors = Min(errors + 1, ERROR_RETRY_MAX);
			recover(errors);
			then = retry_at;
		}
		PG_END_TRY();

		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(round_cxt);
		(void) pgstat_report_stat(true);
		if (errors > 0)
			check_yield(true);	/* the round did not come so far */
		/* commits must not make an error that stays a hot loop */
		sleep_until(then, errors > 1 ? GetCurrentTimestamp() + ERROR_PAUSE_US : 0, timer);
	}
}
