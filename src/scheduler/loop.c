/*
 * loop.c
 *	  The scheduler of a database: the reconcile loop.
 *
 * Each round takes the reasons that have come up since the last one (commits,
 * workers, time), and does what they ask for, in this order:
 *
 *	start		see what has become of the workers that were started
 *	reap		put back the tasks of workers that ended without an outcome
 *	scan		compare what is remembered with the tables; at least every
 *				tasksched.reconcile_interval
 *	check		interrupt the actions of tasks that were cancelled; part of a
 *				scan, if there is one
 *	forward		after the clock was set back, make a batch of tasks due now
 *	claim		claim due tasks for workers that wait, and start workers
 *	purge		delete a batch of old finished tasks
 *	report		publish the scheduler's state in shared memory
 *
 * Tasks are put back before any are claimed.  Their places are free then, and
 * they can be claimed again in the same round.  After the round the scheduler
 * sleeps until the earliest reason to wake up.  It holds no transaction while
 * it sleeps, and an idle scheduler runs no query between two scans.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "schedule/schedule.h"
#include "scheduler/internal.h"
#include "scheduler/scheduler.h"
#include "store/store.h"

/* How many errors in a row increase the delay before a round is retried */
#define ERROR_RETRY_MAX 6

/*
 * After the second error in a row and each one that follows, commits do not
 * wake the scheduler within this time.  A reload does, and so does the
 * launcher if it needs the scheduler's place.
 */
#define ERROR_PAUSE_US USECS_PER_SEC

static Oid	extension;			/* the extension's OID at our start */

static TimestampTz next_scan = 0;
static TimestampTz round_at = 0;	/* when the last round began */
static TimestampTz latest = 0;	/* the latest time that the clock has shown */
static TimestampTz last_busy;
static bool look_only;			/* exit at once if there is nothing to do */

static void
exit_cleanly(void)
{
	tasksched_database_set_clean_exit();
	proc_exit(0);
}

/*
 * See whether the extension is the one that we started with.  If it was
 * dropped, or created anew, terminate its workers and exit.
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

/* Are there due tasks that may be launched? */
static bool
is_launching(void)
{
	return tasksched_enabled && !tasksched_scan_found_paused() && tasksched_queues_due();
}

/* Is there anything to do, or any worker that is not idle? */
static bool
is_busy(void)
{
	return is_launching() || tasksched_count_locked() > 0 ||
		tasksched_count_slots(SLOT_FREE) + tasksched_count_slots(SLOT_IDLE) < tasksched_round.nslots;
}

/*
 * Is there a due task that can't be launched now, and that only a scan can
 * find to be launchable?  While the scheduler is paused or disabled, no scan
 * is needed for that: resuming or enabling it wakes it.
 */
static bool
is_held(void)
{
	return tasksched_enabled && !tasksched_scan_found_paused() && tasksched_queues_held();
}

/* Publish the state of the scheduler */
static void
report(void)
{
	Oid			owners[MAX_FAILING_OWNERS] = {0};

	tasksched_failing_owners(owners, MAX_FAILING_OWNERS);
	tasksched_database_report(tasksched_enabled && !tasksched_scan_found_paused() ? tasksched_queues_next_due() : DT_NOEND,
							  tasksched_last_scan(), is_busy(), is_held(), tasksched_count_locked(), tasksched_round.lack, owners);
}

/* Do one round */
static void
scheduler_round(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz wake_run_at;
	int			wake = tasksched_database_take_wake(&wake_run_at);
	bool		afresh;

	/* the clock may have been set back */
	next_scan = Min(next_scan, TimestampTzPlusMilliseconds(now, tasksched_reconcile_interval));
	last_busy = Min(last_busy, now);
	if (now < round_at - SET_BACK_US)
		next_scan = now;
	round_at = now;
	latest = Max(latest, now);

	tasksched_round_begin();
	if (wake_run_at != DT_NOEND)
		tasksched_queues_note_due(wake_run_at, now);
	if (wake & WAKE_LATER)
		tasksched_queues_note_later();
	tasksched_queues_revisit(now, next_scan);

	tasksched_check_starting();
	afresh = now >= next_scan || (wake & WAKE_SCAN);
	if (afresh)
		check_extension();		/* first, since all else needs its tables */
	afresh |= tasksched_reap(now, wake != 0);
	tasksched_reap_suspects();
	if (afresh)
	{
		tasksched_scan(GetCurrentTimestamp() < latest - SET_BACK_US);
		next_scan = TimestampTzPlusMilliseconds(tasksched_last_scan(), tasksched_reconcile_interval);
	}
	else if (wake & WAKE_CHECK)
		tasksched_check_superseded();
	tasksched_send_interrupts();
	tasksched_bring_forward_batch(now);
	TASKSCHED_FAULT_POINT("tasks reaped");
	if (tasksched_enabled && !tasksched_scan_found_paused())
		tasksched_claim_due();
	tasksched_purge_batch();
	report();
}

/*
 * Exit if another database needs our place.  If busy, leave a reason behind,
 * so that the launcher starts a scheduler here again when it is this
 * database's turn.
 */
static void
check_yield(bool busy)
{
	if (!tasksched_database_must_yield())
		return;
	/* running tasks go on without us, and idle workers exit */
	tasksched_slots_quit(MyDatabaseId, false);
	if (busy)
		tasksched_database_put_wake(WAKE_SCAN, DT_NOEND);
	exit_cleanly();
}

/*
 * Exit if there has been nothing to do for long enough, or if another database
 * needs our place.  A scheduler with held tasks stays, but not if another
 * database needs its place: that one has tasks that can be launched.
 */
static void
check_exit(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (is_launching() || is_held() || tasksched_count_locked() > 0 ||
		tasksched_count_slots(SLOT_FREE) < tasksched_round.nslots)
	{
		last_busy = now;
		look_only = false;
	}

	check_yield(is_busy());
	if (last_busy == now || tasksched_has_batches())
		return;
	if (look_only || now - last_busy >= tasksched_scheduler_idle_timeout * USECS_PER_SEC)
		exit_cleanly();
}

/* When to begin the next round, unless a wake-up comes before */
static TimestampTz
next_reason(void)
{
	TimestampTz next = Min(next_scan, tasksched_round.retry_at);

	next = Min(next, tasksched_next_interrupt());
	if (tasksched_enabled && !tasksched_scan_found_paused() &&
		tasksched_count_active() < tasksched_max_running_tasks)
		next = Min(next, tasksched_queues_next_reason());
	return Min(next, last_busy + tasksched_scheduler_idle_timeout * USECS_PER_SEC);
}

/* The handler of the timer in sleep_until() */
static void
wake_self(void)
{
	SetLatch(MyLatch);
}

/*
 * Sleep until a time, or until the latch is set.  Do not wake up before
 * "earliest", unless there is a reload or the scheduler has to yield.
 *
 * A round that waits for a lock resets the latch.  So before we wait for the
 * latch, we look for the reasons for which it may have been set.
 *
 * WaitLatch keeps its timeout in whole milliseconds, and the kernel may
 * stretch it by 0.1 %.  That is not precise enough for a due time, so an
 * interval timer sets the latch.
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

/* Set what our transactions and statements rely on */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"plan_cache_mode", "force_generic_plan"},
		{"enable_sort", "off"}, /* queues are read in index order */
		{"enable_bitmapscan", "off"},
		{"enable_indexscan", "on"},
		{"enable_indexonlyscan", "on"},
		{"enable_tidscan", "on"},	/* tasks are claimed by ctid */
	};

	tasksched_pin_transactions();
	for (int i = 0; i < (int) lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Tell shared memory of the transactions that are prepared in this database,
 * unless it knows them already.  After a start of the server it does not, and
 * the end of these transactions would wake nothing.
 */
static void
learn_prepared(void)
{
	TransactionId *xids;
	int			n;

	if (!tasksched_prepared_wanted())
		return;
	n = tasksched_store_prepared_transactions(&xids);
	tasksched_learn_prepared(xids, n);
}

/* Set up what the loop needs; exits if the database lacks the extension */
static void
initialize(void)
{
	TimestampTz ignored;

	pin_settings();
	tasksched_round_init();
	tasksched_cancel_init();
	tasksched_scan_init();
	tasksched_queues_init();
	tasksched_start_init();
	last_busy = GetCurrentTimestamp();

	/*
	 * Drop the reasons that have come up so far, since the first round scans.
	 * Do so before we look for the extension: a reason that comes up later
	 * may be CREATE EXTENSION, and must not get lost.
	 */
	(void) tasksched_database_take_wake(&ignored);
	tasksched_begin();
	learn_prepared();
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
 * Could the error be due to a DROP EXTENSION during the round?  The next round
 * scans, and finds out.
 */
static bool
looks_dropped(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_UNDEFINED_TABLE || sqlerrcode == ERRCODE_UNDEFINED_SCHEMA ||
		sqlerrcode == ERRCODE_UNDEFINED_FUNCTION || sqlerrcode == ERRCODE_UNDEFINED_OBJECT;
}

/*
 * Clean up after an error, which ends the round but not the scheduler.  errors
 * is the number of errors in a row.
 */
static void
recover_from_error(int errors)
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
	next_scan = 0;				/* what the round had noted may be lost */
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
	look_only = args.look_only;
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
			recover_from_error(errors);
			then = tasksched_round.retry_at;
		}
		PG_END_TRY();

		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(tasksched_round.cxt);
		(void) pgstat_report_stat(true);
		if (errors > 0)
			check_yield(true);	/* the round did not reach check_exit() */
		/* if the error persists, commits must not make this a hot loop */
		sleep_until(then, errors > 1 ? GetCurrentTimestamp() + ERROR_PAUSE_US : 0, timer);
	}
}
