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
 */
#include "postgres.h"

#include "access/xact.h"
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
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "scheduler.h"

#define PURGE_ROWS 1000

/* The clock was set back if it shows so much less than before */
#define SET_BACK_US USECS_PER_SEC
#define BRING_FORWARD_ROWS 1000

/* A cancelled action that goes on: interrupt it again, and then terminate */
#define INTERRUPT_AGAIN_US USECS_PER_SEC
#define INTERRUPTS_BEFORE_TERMINATE 3

/* Retry after an error, and how long nothing but that wakes us; or of a row that somebody holds */
#define ERROR_RETRY_MAX 6
#define ERROR_PAUSE_US USECS_PER_SEC
#define LOCKED_RETRY_US USECS_PER_SEC

/* The same if we are woken, since the row may have been let go */
#define LOCKED_WOKEN_US INT64CONST(100000)

/* A task that could not be put back, since somebody holds its row */
typedef struct LockedTask
{
	TaskRef		task;
	SlotEnd		end;
} LockedTask;

/* A task that was reported as stuck */
typedef struct StuckNote
{
	pg_uuid_t	id;				/* hash key */
	TimestampTz warned_at;
} StuckNote;

/* The interruption of the task in a slot */
typedef struct InterruptNote
{
	int			sent;			/* 0 = none is called for; else one more than were sent */
	TaskRef		task;
	TimestampTz next_at;		/* when to send the next */
} InterruptNote;

static Oid	extension;			/* its OID when we started */

static InterruptNote *interrupts;	/* for each slot */
static LockedTask *locked;		/* no more than max_running_tasks: they count among those */
static int	nlocked = 0;
static int	max_locked = 0;
static TimestampTz locked_tried_at = 0;
static TimestampTz locked_retry_at = 0;
static HTAB *stuck;

static TimestampTz last_scan = 0;
static TimestampTz next_scan = 0;
static TimestampTz round_at = 0;	/* when the last round began */
static TimestampTz latest = 0;	/* the latest time that the clock has shown */
static TimestampTz last_busy;
static bool for_net;			/* started only to have a look */
static bool paused;
static bool purging;
static TimestampTz purge_from;	/* what finished before has been purged */
static bool bringing_forward;

Round		tasksched_round;

static void
refresh_slots(void)
{
	MemoryContext old = MemoryContextSwitchTo(tasksched_round.cxt);

	tasksched_round.slots = tasksched_slots_copy(MyDatabaseId, &tasksched_round.nslots);
	MemoryContextSwitchTo(old);
}

int
tasksched_count_slots(SlotState state)
{
	int			n = 0;

	for (int i = 0; i < tasksched_round.nslots; i++)
		n += tasksched_round.slots[i].state == state;
	return n;
}

/* The tasks that are active, as far as we know: they have a slot, or are to be put back */
int
tasksched_count_active(void)
{
	return tasksched_count_slots(SLOT_READY) + tasksched_count_slots(SLOT_RUNNING) +
		tasksched_count_slots(SLOT_DEAD) + nlocked;
}

void
tasksched_retry_by(TimestampTz at)
{
	tasksched_round.retry_at = Min(tasksched_round.retry_at, at);
}

/* ----------
 * Reap
 * ----------
 */

static bool
is_remembered(const TaskRef *task)
{
	for (int i = 0; i < nlocked; i++)
	{
		if (locked[i].task.launch == task->launch &&
			tasksched_same_task(&locked[i].task.id, &task->id))
			return true;
	}
	return false;
}

static void
remember_locked(const TaskRef *task, SlotEnd end)
{
	if (is_remembered(task))
		return;
	if (nlocked == max_locked)
	{
		max_locked = max_locked + 16;
		locked = locked ? repalloc(locked, max_locked * sizeof(LockedTask)) :
			MemoryContextAlloc(TopMemoryContext, max_locked * sizeof(LockedTask));
	}
	locked[nlocked].task = *task;
	locked[nlocked++].end = end;
	locked_tried_at = GetCurrentTimestamp();
	locked_retry_at = locked_tried_at + LOCKED_RETRY_US;
}

/*
 * Put a task back; a transaction of its own.  If somebody holds its row, it is
 * remembered, and tried again later: it needs no slot for that, of which there
 * would be none left for others.  A crash is not remembered here, since its count
 * would be lost if this process ended.
 */
PutBack
tasksched_put_back(const TaskRef *task, SlotEnd end, bool server_crashed)
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
	{
		tasksched_retry_by(GetCurrentTimestamp() + LOCKED_RETRY_US);
		if (end != END_CRASHED)
			remember_locked(task, end);
	}
	return done;
}

/* Try again what could not be put back; returns what reap() does */
static bool
put_back_locked(TimestampTz now, bool woken)
{
	bool		unclear = false;

	if (nlocked == 0)
		return false;
	locked_tried_at = Min(locked_tried_at, now);	/* the clock may have gone back */
	locked_retry_at = Min(locked_retry_at, locked_tried_at + (woken ? LOCKED_WOKEN_US : LOCKED_RETRY_US));
	if (now < locked_retry_at)
	{
		tasksched_retry_by(locked_retry_at);
		return false;
	}
	locked_tried_at = now;
	locked_retry_at = now + LOCKED_RETRY_US;
	for (int i = nlocked - 1; i >= 0; i--)
	{
		LockedTask	try = locked[i];
		PutBack		done = tasksched_put_back(&try.task, try.end, false);

		if (done == PUT_BACK_LOCKED)
			continue;
		unclear |= done == PUT_BACK_NOT_HELD;
		locked[i] = locked[--nlocked];
	}
	return unclear;
}

/*
 * Put back the tasks of workers that ended without an outcome; returns whether
 * a scan has to see what has become of one.
 */
static bool
reap(TimestampTz now, bool woken)
{
	bool		unclear = put_back_locked(now, woken);

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		TaskSlot   *slot = &tasksched_round.slots[i];
		PutBack		done;

		if (slot->state != SLOT_DEAD)
			continue;
		done = tasksched_put_back(&slot->task, slot->end, false);
		if (done == PUT_BACK_LOCKED && slot->end == END_CRASHED)
			continue;
		if (slot->end == END_CRASHED)
			ereport(LOG,
					(errmsg("tasksched task %s (action \"%s\") ended its worker process",
							tasksched_uuid_out(&slot->task.id), slot->action)));
		if (done == PUT_BACK_NOT_HELD)
			unclear = true;		/* perhaps the next stage was claimed already */
		tasksched_slot_reaped(i, slot->generation);
		slot->state = SLOT_FREE;
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
		if (tasksched_put_back(&suspects[i].task, END_CRASHED, true) == PUT_BACK_LOCKED)
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

static bool
has_task(const TaskSlot *slot)
{
	return slot->state == SLOT_READY || slot->state == SLOT_RUNNING;
}

/* Begin to interrupt the task in a slot, unless that is under way */
static void
call_for_interrupt(InterruptNote *note, const TaskRef *task)
{
	if (note->sent > 0 && note->task.launch == task->launch &&
		tasksched_same_task(&note->task.id, &task->id))
		return;
	note->task = *task;
	note->sent = 1;
	note->next_at = 0;
}

/* Find running launches that no longer hold their tasks; interrupt them */
static void
check_superseded(void)
{
	TaskRef    *running = palloc(tasksched_round.nslots * sizeof(TaskRef));
	TaskRef    *superseded = palloc(tasksched_round.nslots * sizeof(TaskRef));
	int			n = 0;

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		if (has_task(&tasksched_round.slots[i]))
			running[n++] = tasksched_round.slots[i].task;
	}
	if (n == 0)
		return;

	tasksched_begin();
	n = tasksched_store_superseded(running, n, superseded);
	tasksched_commit();

	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < tasksched_round.nslots; j++)
		{
			const TaskSlot *slot = &tasksched_round.slots[j];

			if (has_task(slot) && tasksched_same_task(&slot->task.id, &superseded[i].id))
				call_for_interrupt(&interrupts[j], &superseded[i]);
		}
	}
}

/* Interrupt the actions of cancelled tasks until they end */
static void
send_interrupts(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		InterruptNote *note = &interrupts[i];

		if (note->sent == 0 || tasksched_is_ahead(note->next_at, now, INTERRUPT_AGAIN_US))
			continue;
		if (!tasksched_slot_interrupt(i, &note->task,
									  note->sent > INTERRUPTS_BEFORE_TERMINATE ? SIGTERM : SIGINT))
			note->sent = 0;		/* it has ended */
		else
		{
			note->sent++;
			note->next_at = now + INTERRUPT_AGAIN_US;
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
		bool		held = is_remembered(&tasks[i]) || is_suspect(suspects, nsuspects, &tasks[i].id);

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
	pg_uuid_t  *ids;
	char	  **actions;
	int			n;

	tasksched_begin();
	MemoryContextSwitchTo(tasksched_round.cxt);
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
	int16	   *priorities;
	int			n;

	resume_orphans();
	check_superseded();
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
	next_scan = TimestampTzPlusMilliseconds(last_scan, tasksched_reconcile_interval);
	purging = true;
	purge_from = DT_NOBEGIN;
	bringing_forward = last_scan < latest - SET_BACK_US;
}

/* ----------
 * The loop
 * ----------
 */

static bool
is_launching(void)
{
	return tasksched_enabled && !paused && tasksched_queues_due();
}

/* Is there more than idle workers? */
static bool
is_busy(void)
{
	return is_launching() || nlocked > 0 ||
		tasksched_count_slots(SLOT_FREE) + tasksched_count_slots(SLOT_IDLE) < tasksched_round.nslots;
}

/*
 * Is there a due task that can't be launched now?  Nobody may tell when it can
 * be, so the scans have to find out.  If nothing is to be launched at all, whoever
 * changes that tells.
 */
static bool
is_held(void)
{
	return tasksched_enabled && !paused && tasksched_queues_held();
}

static void
report(void)
{
	Oid			owners[MAX_FAILING_OWNERS] = {0};

	tasksched_failing_owners(owners, MAX_FAILING_OWNERS);
	tasksched_database_report(tasksched_enabled && !paused ? tasksched_queues_next_due() : DT_NOEND,
							  last_scan, is_busy(), is_held(), nlocked, tasksched_round.lack, owners);
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
	last_busy = Min(last_busy, now);
	if (now < round_at - SET_BACK_US)
		next_scan = now;
	round_at = now;
	latest = Max(latest, now);

	tasksched_round.retry_at = DT_NOEND;
	refresh_slots();
	if (wake_run_at != DT_NOEND)
		tasksched_queues_note_due(wake_run_at, now);
	if (wake & WAKE_LATER)
		tasksched_queues_note_later();
	tasksched_queues_revisit(now, next_scan);

	tasksched_check_starting();
	afresh = now >= next_scan || (wake & WAKE_SCAN);
	if (afresh)
		check_extension();		/* before all else: it may not be there any more */
	afresh |= reap(now, wake != 0);
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
		tasksched_claim_due();
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

/*
 * Exit if there has been nothing to do for long enough, or another needs us.  Held
 * tasks keep us, but not from making room: whoever waits for a place has more
 * to do.
 */
static void
check_exit(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_launching() || is_held() || nlocked > 0 ||
		tasksched_count_slots(SLOT_FREE) < tasksched_round.nslots)
	{
		last_busy = now;
		for_net = false;
	}

	check_yield(is_busy());
	if (last_busy == now || purging || bringing_forward)
		return;
	if (for_net || now - last_busy >= tasksched_scheduler_idle_timeout * USECS_PER_SEC)
		exit_cleanly();
}

/* When something has to be done next, if nobody wakes us before */
static TimestampTz
next_reason(void)
{
	TimestampTz next = Min(next_scan, tasksched_round.retry_at);

	for (int i = 0; i < tasksched_round.nslots; i++)
	{
		if (interrupts[i].sent > 0)
			next = Min(next, interrupts[i].next_at);
	}
	if (tasksched_enabled && !paused &&
		tasksched_count_active() < tasksched_max_running_tasks)
		next = Min(next, tasksched_queues_next_reason());
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

/* Settings that our transactions and statements rely on */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"plan_cache_mode", "force_generic_plan"},
		{"enable_sort", "off"},	/* queues are read in the order of their index */
		{"enable_bitmapscan", "off"},
		{"enable_indexscan", "on"},
		{"enable_indexonlyscan", "on"},
		{"enable_tidscan", "on"},	/* claims go by place */
	};

	tasksched_pin_transactions();
	for (int i = 0; i < (int) lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/* Set up what the loop needs; exits if the database lacks the extension */
static void
initialize(void)
{
	HASHCTL		stuck_ctl = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(StuckNote)};
	TimestampTz ignored;

	pin_settings();
	tasksched_round.cxt = AllocSetContextCreate(TopMemoryContext, "tasksched round", ALLOCSET_DEFAULT_SIZES);
	interrupts = MemoryContextAllocZero(TopMemoryContext, tasksched_slot_count() * sizeof(InterruptNote));
	stuck = hash_create("tasksched stuck tasks", 16, &stuck_ctl, HASH_ELEM | HASH_BLOBS);
	tasksched_queues_init();
	tasksched_start_init();
	last_busy = GetCurrentTimestamp();

	/*
	 * The first round scans, which answers all reasons that came before.  One
	 * that comes from here on may be CREATE EXTENSION.
	 */
	(void) tasksched_database_take_wake(&ignored);
	tasksched_begin();
	tasksched_learn_prepared();
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
	MemoryContextSwitchTo(tasksched_round.cxt);
	edata = CopyErrorData();
	if (errors > 1 || !looks_dropped(edata->sqlerrcode))
		EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	tasksched_database_report_error(edata->message);
	next_scan = 0;				/* whatever was noted may be lost */
	tasksched_round.retry_at = GetCurrentTimestamp() + tasksched_setback_delay(errors);
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
			MemoryContextSwitchTo(tasksched_round.cxt);
			scheduler_round();
			check_exit();
			then = next_reason();
			errors = 0;
		}
		PG_CATCH();
		{
			errors = Min(errors + 1, ERROR_RETRY_MAX);
			recover(errors);
			then = tasksched_round.retry_at;
		}
		PG_END_TRY();

		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(tasksched_round.cxt);
		(void) pgstat_report_stat(true);
		if (errors > 0)
			check_yield(true);	/* the round did not come so far */
		/* commits must not make an error that stays a hot loop */
		sleep_until(then, errors > 1 ? GetCurrentTimestamp() + ERROR_PAUSE_US : 0, timer);
	}
}
