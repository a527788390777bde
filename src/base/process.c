/*
 * process.c
 *	  What our background processes have in common.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#include "base/base.h"
#include "base/compat.h"

/* What our processes have in common; kind is the word that tells them apart */
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
 * Have the server start one, and tell us as it does and as it ends.  False if there
 * is no free slot; else the handle is to be freed.
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

static volatile sig_atomic_t terminated = false;	/* SIGTERM came */

/* SIGTERM in a scheduler or a worker: remember that the end is not its doing */
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
