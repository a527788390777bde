/*
 * tasksched.c
 *	  Entry point: settings, hooks, and what happens at the end of a
 *	  transaction that changed tasks.
 *
 * The functions that change tasks note in the statement what the scheduler has
 * to hear of; it is told once the commit is wholly visible.  A callback at
 * XACT_EVENT_COMMIT would be too early: the rows are visible then, but the
 * other sessions have not heard yet of catalogue changes in the same
 * transaction, such as a GRANT.  A resource release callback after the release
 * of the locks comes after both.
 *
 * A transaction that held a task's row also speaks up when it (or the
 * subtransaction) aborts: the scheduler may have passed the row by because it
 * was locked.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/resowner.h"

#include "compat.h"
#include "tasksched.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

bool		tasksched_enabled = true;
int			tasksched_max_running_tasks = 10;
int			tasksched_reconcile_interval = 60 * 1000;
int			tasksched_keep_finished_tasks = 7 * 24 * 3600;
int			tasksched_stuck_after = 24 * 3600;
int			tasksched_worker_idle_timeout = 60 * 1000;
int			tasksched_scheduler_idle_timeout = 600;
int			tasksched_max_crashes = 3;

static object_access_hook_type prev_object_access_hook = NULL;
static ExecutorStart_hook_type prev_executor_start_hook = NULL;

/* What to tell at the end of the current transaction */
static struct
{
	int			flags;			/* at commit */
	TimestampTz run_at;
	int			abort_flags;	/* also if it aborts */
	bool		create;			/* the database surely has the extension */
	bool		new_databases;
	uint64		waiters;
}			pending = {.run_at = DT_NOEND};

/* The scheduler shall hear of this if the current transaction commits */
void
tasksched_wake_at_commit(int flags, TimestampTz run_at)
{
	pending.flags |= flags;
	if (run_at != DT_NOEND && run_at > GetCurrentTimestamp())
		pending.flags |= WAKE_LATER;
	pending.run_at = Min(pending.run_at, run_at);
	pending.create = true;
}

/* Likewise, and also if it aborts, since it has locked a row */
void
tasksched_wake_at_end(int flags, TimestampTz run_at)
{
	tasksched_wake_at_commit(flags, run_at);
	pending.abort_flags |= WAKE_DUE | (pending.flags & WAKE_LATER);
}

/*
 * Those who wait for this task shall look again if we commit.  The worker that
 * runs it tells them itself, a little later, when it no longer looks running.
 */
void
tasksched_tell_waiters_at_commit(const pg_uuid_t *id)
{
	if (tasksched_worker_holds(id))
		return;
	pending.waiters |= tasksched_waiters_bit(id);
}

/* A database was created or dropped */
void
tasksched_new_databases_at_commit(void)
{
	pending.new_databases = true;
}

/*
 * A prepared transaction was committed or rolled back.  No callback tells what
 * it did: it may have changed any task, or created the extension.
 */
void
tasksched_prepared_ended(void)
{
	pending.flags |= WAKE_SCAN | WAKE_CHECK;
	pending.create = pending.create || OidIsValid(tasksched_extension_oid());
	pending.waiters = PG_UINT64_MAX;
}

static void
tell(int flags)
{
	if (flags != 0)
		tasksched_database_wake(MyDatabaseId, pending.create, flags, pending.run_at);
}

static void
release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !tasksched_preloaded())
		return;

	if (!isCommit)
		tell(pending.abort_flags);
	else if (isTopLevel)
	{
		tell(pending.flags);
		if (pending.waiters != 0)
			tasksched_waiters_tell(pending.waiters);
		if (pending.new_databases)
			tasksched_launcher_wake(true);
	}
	if (isTopLevel)
	{
		memset(&pending, 0, sizeof(pending));
		pending.run_at = DT_NOEND;
	}
}

/*
 * DROP EXTENSION, however it comes about, and ALTER EXTENSION: let the
 * scheduler and those who wait for a task see for themselves.
 */
static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);

	if (classId == ExtensionRelationId &&
		(access == OAT_DROP || access == OAT_POST_ALTER) &&
		objectId == get_extension_oid("tasksched", true))
	{
		pending.flags |= WAKE_SCAN | WAKE_CHECK;
		pending.waiters = PG_UINT64_MAX;
	}
}

/* A parallel worker that runs a part of an action's query, for its first time */
static void
executor_start(QueryDesc *queryDesc, int eflags)
{
	static bool attached = false;

	if (IsParallelWorker() && !attached)
	{
		attached = true;
		tasksched_crash_join_leader();
	}
	if (prev_executor_start_hook)
		prev_executor_start_hook(queryDesc, eflags);
	else
		standard_ExecutorStart(queryDesc, eflags);
}

static void
define_settings(void)
{
	DefineCustomBoolVariable("tasksched.enabled",
							 "Launches tasks in the background.",
							 "When off, no task is launched; scheduling and reading tasks still work.",
							 &tasksched_enabled, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.max_running_tasks",
							"Sets the maximum number of tasks that run at the same time in each database.",
							NULL,
							&tasksched_max_running_tasks, 10, 0, 1024,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.reconcile_interval",
							"Sets the time between two scans of a database's tasks for what no wake-up told of.",
							NULL,
							&tasksched_reconcile_interval, 60 * 1000, 100, 24 * 3600 * 1000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.keep_finished_tasks",
							"Sets how long finished tasks are kept before they are deleted.",
							"-1 keeps them for ever.",
							&tasksched_keep_finished_tasks, 7 * 24 * 3600, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.stuck_after",
							"Sets the time without an update after which an active task is reported as stuck.",
							NULL,
							&tasksched_stuck_after, 24 * 3600, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.worker_idle_timeout",
							"Sets how long a worker waits for another task of its role before it exits.",
							"0 starts a new process for each task.",
							&tasksched_worker_idle_timeout, 60 * 1000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.scheduler_idle_timeout",
							"Sets how long a database's scheduler waits for something to do before it exits.",
							"It is started again when a task is scheduled or becomes due.",
							&tasksched_scheduler_idle_timeout, 600, 1, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.max_crashes",
							"Sets how many times a task may crash its worker process before it fails.",
							NULL,
							&tasksched_max_crashes, 3, 1, 1000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("tasksched");
}

/*
 * Lift the limits that are meant for clients, in a process of ours.  Not even
 * RESET brings them back.
 */
void
tasksched_pin_timeouts(void)
{
	static const char *const timeouts[] = {
		"statement_timeout",
		"lock_timeout",
		"idle_in_transaction_session_timeout",
		"idle_session_timeout",
		"transaction_timeout"	/* since PostgreSQL 17 */
	};

	for (int i = 0; i < (int) lengthof(timeouts); i++)
	{
		if (GetConfigOption(timeouts[i], true, false) != NULL)
			SetConfigOption(timeouts[i], "0", PGC_SUSET, PGC_S_OVERRIDE);
	}
}

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

void
_PG_init(void)
{
	/* pg_upgrade wants nobody else in its databases */
	if (IsBinaryUpgrade)
		return;

	/* how a worker connects as a role without LOGIN needs its later fixes */
	if (!tasksched_server_is_fit(atoi(GetConfigOption("server_version_num", false, false))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("tasksched requires PostgreSQL 15.9, 16.5, 17 or later")));

	define_settings();

	if (!process_shared_preload_libraries_in_progress)
		return;

	tasksched_shmem_init();
#ifdef TASKSCHED_FAULT_POINTS
	tasksched_fault_init();
#endif
	tasksched_launcher_register();
	RegisterResourceReleaseCallback(release_callback, NULL);
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
	prev_executor_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	tasksched_commands_init();
}
