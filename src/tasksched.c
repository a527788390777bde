/*
 * tasksched.c
 *	  Entry point: what the library does when it is loaded.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/guc.h"

#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "launcher/launcher.h"
#include "shared/shared.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static ExecutorStart_hook_type prev_executor_start_hook = NULL;

/*
 * Called in a parallel worker.  If its leader runs an action, join the
 * leader's place on the crash board: a crash of this process is the action's.
 */
static void
join_leader(void)
{
	PGPROC	   *leader = MyProc->lockGroupLeader;
	int			slot = leader != NULL ? tasksched_slot_of(leader->pid) : -1;

	if (slot >= 0)
		tasksched_crash_join(slot);
}

static void
executor_start(QueryDesc *queryDesc, int eflags)
{
	static bool attached = false;

	if (IsParallelWorker() && !attached)
	{
		attached = true;
		join_leader();
	}
	if (prev_executor_start_hook)
		prev_executor_start_hook(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
}

void
_PG_init(void)
{
	/* during pg_upgrade, no process may connect to the databases */
	if (IsBinaryUpgrade)
		return;

	/*
	 * connecting a worker as a role without LOGIN relies on fixes of these
	 * releases
	 */
	if (!tasksched_server_is_fit(atoi(GetConfigOption("server_version_num", false, false))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("tasksched requires PostgreSQL 15.9, 16.5, 17 or later")));

	tasksched_define_settings();

	if (!process_shared_preload_libraries_in_progress)
		return;

	tasksched_shmem_init();
#ifdef TASKSCHED_FAULT_POINTS
	tasksched_fault_init();
#endif
	tasksched_launcher_register();
	tasksched_wakeup_init();
	prev_executor_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	tasksched_commands_init();
}
