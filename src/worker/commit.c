/*
 * commit.c
 *	  Storing the outcome of a launch in the action's own transaction.
 *
 * The outcome is written at the very end: in a callback right before the commit,
 * after deferred triggers and whatever else of the user's might fail.  That
 * write is conditional on the fence (id, launch) and status active; if the task
 * was cancelled, deleted or superseded, it raises an error, which takes all
 * effects of the action with it.  A procedure that commits on its way passes the
 * same callback each time.
 *
 * What commits elsewhere at the same time, such as postgres_fdw on a foreign
 * server, does so in callbacks of its own, so ours has to be the first of them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "actions/actions.h"
#include "base/base.h"
#include "base/settings.h"
#include "shared/shared.h"
#include "store/store.h"
#include "worker/internal.h"
#include "worker/worker.h"

static ExecutorEnd_hook_type prev_executor_end_hook = NULL;
static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/*
 * May a stage go on at once in this worker?  Ask what the scheduler asks before a
 * claim.  It is the scheduler, too, who sees to a lower limit: that comes by a reload.
 */
static bool
may_proceed(void)
{
	Action		action;

	if (!tasksched_enabled || tasksched_slot_must_quit() || ConfigReloadPending ||
		tasksched_database_is_paused())
		return false;

	/* the snapshot of the action may be an old one: leave it to prepare_launch() then */
	if (IsolationUsesXactSnapshot())
		return true;
	AcceptInvalidationMessages();
	return tasksched_task_blocked(tasksched_launch.row.action, tasksched_session_owner(), false, &action) == NULL;
}

/* What the launch comes to, from what the action returned and what it staged */
static void
decide_outcome(void)
{
	Staged	   *staged = tasksched_staged_now();

	tasksched_launch.outcome = tasksched_launch.returned;
	if (tasksched_launch.returned.status == STATUS_NONE)
	{
		tasksched_launch.outcome.status = staged->scheduled ? STATUS_SCHEDULED : STATUS_COMPLETE;
		tasksched_launch.outcome.run_at = staged->run_at;
	}
	if (tasksched_launch.outcome.status == STATUS_ACTIVE && !may_proceed())
		tasksched_launch.outcome.status = STATUS_SCHEDULED;
	if (staged->dirty && tasksched_launch.outcome.result == NULL)
		tasksched_launch.outcome.result = staged->result;
	/* also one that is stored: what complete does not repeat is an earlier stage's */
	if (tasksched_launch.outcome.error == NULL)
		tasksched_launch.outcome.error = staged->error;
}

/*
 * Let our statements wait for locks as long as it takes, whatever the action has
 * set.  Returns the nest level to leave.
 */
int
tasksched_lift_lock_timeout(void)
{
	int			nest_level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", "0", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	/* since PostgreSQL 17 */
	if (GetConfigOption("transaction_timeout", true, false) != NULL)
		(void) set_config_option("transaction_timeout", "0", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nest_level;
}

/*
 * Store the outcome, or at a COMMIT inside a procedure what it staged so far;
 * false if the launch no longer holds the task.
 */
static bool
store_in_action(void)
{
	Staged	   *staged = tasksched_staged_now();
	bool		read_only = XactReadOnly;
	MemoryContext old;
	int			nest_level;
	bool		held;

	old = MemoryContextSwitchTo(CurTransactionContext);
	HOLD_CANCEL_INTERRUPTS();
	XactReadOnly = false;		/* the role's setting is not meant for us */
	nest_level = tasksched_lift_lock_timeout();
	PushActiveSnapshot(GetTransactionSnapshot());
	TASKSCHED_FAULT_POINT("action returned");
	tasksched_store_lock(tasksched_launch.finishing);
	if (tasksched_launch.finishing)
	{
		decide_outcome();
		held = tasksched_store_finish(&tasksched_launch.ref, &tasksched_launch.outcome);
	}
	else
	{
		Outcome		change = tasksched_outcome(STATUS_NONE);

		if (staged->dirty)
		{
			change.result = staged->result;
			change.error = staged->error;
		}
		held = tasksched_store_checkpoint(&tasksched_launch.ref, &change);
	}
	TASKSCHED_FAULT_POINT("outcome written");
	PopActiveSnapshot();
	AtEOXact_GUC(true, nest_level);
	XactReadOnly = read_only;
	RESUME_CANCEL_INTERRUPTS();
	MemoryContextSwitchTo(old);
	return held;
}

/*
 * Keep the error that our own statements have raised.  A procedure may catch it in
 * its COMMIT and raise another one later, which is not ours.
 */
static void
keep_own_error(void)
{
	MemoryContext old = MemoryContextSwitchTo(tasksched_launch_cxt);

	tasksched_launch.own_error = CopyErrorData();
	MemoryContextSwitchTo(old);
}

/* Right before a commit of the action's */
static void
store_at_commit(void)
{
	volatile bool held = false;

	if (tasksched_launch.own_error != NULL)
		FreeErrorData(tasksched_launch.own_error);
	tasksched_launch.own_error = NULL;
	tasksched_launch.bookkeeping = true;
	PG_TRY();
	{
		held = store_in_action();
	}
	PG_CATCH();
	{
		keep_own_error();
		PG_RE_THROW();
	}
	PG_END_TRY();
	tasksched_launch.bookkeeping = false;

	if (!held)
	{
		tasksched_launch.superseded = true;
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("task %s was cancelled or deleted while its action ran",
						tasksched_uuid_out(&tasksched_launch.ref.id)),
				 errdetail("What the action did since its last commit is rolled back.")));
	}
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (proc_exit_inprogress)
	{
		/*
		 * The action has come to an end without an outcome.  The server commits once
		 * more, to drop temporary tables: that is no commit of the action's, and no
		 * reason to wait for a standby.
		 */
		synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
		return;
	}
	if (!tasksched_launch.in_action)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			tasksched_launch.committing = true;
			store_at_commit();
			break;
		case XACT_EVENT_COMMIT:
			tasksched_launch.committing = false;
			tasksched_launch.has_committed = true;
			tasksched_staged_committed();
			break;
		case XACT_EVENT_ABORT:
			tasksched_launch.committing = false;
			tasksched_staged_aborted();
			break;
		default:
			break;
	}
}

/*
 * The net: a callback that runs statements, and has come before ours since it was
 * registered by something else than a statement, has had ours move out of
 * its turn.  This one is registered once, before any of an action's, so it comes
 * after them.
 */
static void
late_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT && !tasksched_launch.committing)
		xact_callback(event, arg);
}

/*
 * Have our callback be the first at the next commit.  They are called in the
 * reverse order of their registration, and postgres_fdw, for one, registers its own
 * when the action first makes it connect.
 *
 * While they are being called, the list must not change; our own statements come
 * by here then.
 */
void
tasksched_be_first_at_commit(void)
{
	if (!tasksched_launch.in_action || tasksched_launch.committing)
		return;
	UnregisterXactCallback(xact_callback, NULL);
	RegisterXactCallback(xact_callback, NULL);
}

static void
executor_end(QueryDesc *queryDesc)
{
	if (prev_executor_end_hook)
		prev_executor_end_hook(queryDesc);
	else
		standard_ExecutorEnd(queryDesc);
	tasksched_be_first_at_commit();
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, queryString, readOnlyTree, context,
								  params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
	tasksched_be_first_at_commit();
}

/*
 * Actions use the executor or a utility command for whatever may end in a commit
 * elsewhere, their deferred triggers included.
 */
void
tasksched_commit_init(void)
{
	RegisterXactCallback(late_xact_callback, NULL);
	RegisterXactCallback(xact_callback, NULL);
	prev_executor_end_hook = ExecutorEnd_hook;
	ExecutorEnd_hook = executor_end;
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
