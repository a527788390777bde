/*
 * process.c
 *	  Common code of our background processes.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#include "base/base.h"
#include "base/compat.h"

/*
 * Fill in the fields that are the same for all our processes. kind is
 * "launcher", "scheduler" or "worker".
 */
void
tasksched_describe_process(BackgroundWorker *worker, const char *kind)
{
	memset(worker, 0, sizeof(BackgroundWorker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, "tasksched", BGW_MAXLEN);
	snprintf(worker->bgw_function_name, BGW_MAXLEN, "tasksched_%s_main", kind);
	snprintf(worker->bgw_type, BGW_MAXLEN, "tasksched %s", kind);
}

/*
 * Have the postmaster start a background worker, and notify this process when
 * it starts and when it ends.  Returns false if there is no free background
 * worker slot; otherwise the caller frees the handle.
 */
bool
tasksched_register_process(BackgroundWorker *worker, BackgroundWorkerHandle **handle)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	bool		ok;

	*handle = NULL;
	worker->bgw_notify_pid = MyProcPid;
	ok = RegisterDynamicBackgroundWorker(worker, handle);
	MemoryContextSwitchTo(old);
	return ok;
}

static volatile sig_atomic_t terminated = false;	/* SIGTERM has been
													 * received */

/*
 * SIGTERM in a scheduler or a worker.  Note that another process asked for the
 * end.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	terminated = true;
	die(PASS_SIGNAL_ARGS);
}

void
tasksched_watch_sigterm(void)
{
	pqsignal(SIGTERM, handle_sigterm);
}

bool
tasksched_was_terminated(void)
{
	return terminated;
}
