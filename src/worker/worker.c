/*
 * worker.c
 *	  The worker: connects as the owner of tasks, and runs them one after the
 *	  other.
 */
#include "postgres.h"

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
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "base/base.h"
#include "base/settings.h"
#include "shared/shared.h"
#include "store/store.h"
#include "worker/internal.h"
#include "worker/worker.h"

/* A new worker waits at least this long for its first task */
#define FIRST_TASK_MS 5000

/*
 * Wait for the next task; false if the worker has to exit.  It has left its
 * slot then, so that no task can be handed to it any more.
 */
static bool
wait_for_next(bool first, TaskRef *task, Action *action)
{
	TimestampTz start = GetCurrentTimestamp();

	for (;;)
	{
		bool		quit;
		long		timeout;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (catchupInterruptPending)
			ProcessCatchupInterrupt();

		if (tasksched_slot_take(task, action, &quit))
			return true;
		timeout = first ? Max(tasksched_worker_idle_timeout, FIRST_TASK_MS) : tasksched_worker_idle_timeout;
		start = Min(start, GetCurrentTimestamp());	/* clock set back? */
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												  TimestampTzPlusMilliseconds(start, timeout));
		if ((quit || timeout <= 0 || tasksched_session_role_changed()) && tasksched_slot_leave())
			return false;

		(void) pgstat_report_stat(true);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(timeout, 0), PG_WAIT_EXTENSION);
	}
}

/*
 * Announce that we are ready for a task.  While the scheduler claims one, do
 * once what its launch begins with, so that the catalogs are in our caches.
 */
static void
announce(void)
{
	TaskRef		none = {0};
	TaskRow		row;

	tasksched_slot_announce();
	TASKSCHED_FAULT_POINT("worker announced");
	tasksched_begin();
	MemoryContextSwitchTo(tasksched_launch_cxt);
	(void) tasksched_row_read(&none, &row);
	tasksched_commit();
	MemoryContextReset(tasksched_launch_cxt);
}

void
tasksched_worker_main(Datum arg)
{
	WorkerArgs	args;
	TaskRef		task;
	Action		action;
	bool		first = true;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));

	TASKSCHED_FAULT_POINT("worker started");

	/*
	 * Attach to the slot first.  Exit callbacks run in the reverse order, so
	 * the slot is left after the transaction has been aborted and the
	 * database connection has been closed.
	 */
	if (!tasksched_slot_attach(args.slot, args.generation))
		proc_exit(0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, StatementCancelHandler);
	HOLD_CANCEL_INTERRUPTS();	/* except while an action runs */
	BackgroundWorkerUnblockSignals();
	TASKSCHED_FAULT_POINT("worker attached");

	tasksched_session_connect(&args);
	tasksched_launch_init();
	tasksched_commit_init();
	pgstat_report_activity(STATE_IDLE, NULL);
	announce();

	while (wait_for_next(first, &task, &action))
	{
		first = false;
		tasksched_run_task(&task, &action);
	}
	proc_exit(0);
}
