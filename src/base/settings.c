/*
 * settings.c
 *	  Our settings, and the settings of the server that our processes pin.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/settings.h"

bool		tasksched_enabled = true;
int			tasksched_max_running_tasks = 10;
int			tasksched_reconcile_interval = 60 * 1000;
int			tasksched_keep_finished_tasks = 7 * 24 * 3600;
int			tasksched_stuck_after = 24 * 3600;
int			tasksched_worker_idle_timeout = 60 * 1000;
int			tasksched_scheduler_idle_timeout = 600;
int			tasksched_max_crashes = 3;

void
tasksched_define_settings(void)
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
							"Sets the time between two scans of a database's tasks for changes that no wake-up reported.",
							NULL,
							&tasksched_reconcile_interval, 60 * 1000, 100, 24 * 3600 * 1000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("tasksched.keep_finished_tasks",
							"Sets how long finished tasks are kept before they are deleted.",
							"-1 keeps them forever.",
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
 * Disable the timeouts that are meant for clients, in a process of ours.  Not
 * even RESET brings them back.
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

/*
 * Set the defaults that our transactions rely on, in a process that runs no
 * code of users.  A deferrable transaction, for one, might wait for others to
 * end.
 */
void
tasksched_pin_transactions(void)
{
	static const char *const pinned[][2] = {
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"synchronous_commit", "off"},	/* work that a crash loses is done
										 * again */
	};

	tasksched_pin_timeouts();
	for (int i = 0; i < (int) lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}
