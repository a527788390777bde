/*
 * commit.c
 *	  Storing the outcome of a launch in the action's own transaction.
 *
 * The outcome is written in a callback right before the commit, after deferred
 * triggers and any other user code that may fail.  The write is conditional on
 * the fence (id, launch) and status active.  If the task was cancelled,
 * deleted or superseded, it raises an error, and the effects of the action are
 * rolled back with it.  Each COMMIT in a procedure calls the same callback,
 * which then stores what has been staged so far, under the same condition.
 *
 * Other libraries commit elsewhere in callbacks of their own: postgres_fdw,
 * for example, commits on the foreign server.  Our callback has to be called
 * before all of these, since it may raise an error.
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
 * May the task's next launch follow at once in this worker?  The conditions
 * are those under which the scheduler claims a task.  After a reload the
 * answer is no, since max_running_tasks may be lower now, and the scheduler
 * sees to that.
 */
static bool
may_proceed(void)
{
	Action		action;

	if (!tasksched_enabled || tasksched_slot_must_quit() || ConfigReloadPending ||
		tasksched_database_is_paused())
		return false;

	/*
	 * the action's snapshot may be too old to tell; prepare_launch() checks
	 * as well
	 */
	if (IsolationUsesXactSnapshot())
		return true;
	AcceptInvalidationMessages();
	return tasksched_task_blocked(tasksched_launch.row.action, tasksched_session_owner(), false, &action) == NULL;
}

/* Determine the outcome from what the action returned and what it staged */
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

	/*
	 * Include an error that a checkpoint has stored.  When a task becomes
	 * complete, an error that is not given again is cleared as that of an
	 * earlier stage.
	 */
	if (tasksched_launch.outcome.error == NULL)
		tasksched_launch.outcome.error = staged->error;
}

/*
 * Disable the timeouts that the action may have set and that could end our
 * statements while they wait for a lock.  Returns the GUC nest level to pass
 * to AtEOXact_GUC().
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
 * Store the outcome, or at a COMMIT in a procedure what it has staged so far.
 * Returns false if the launch no longer holds the task.
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
	XactReadOnly = false;		/* a read-only setting is not for us */
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
 * Keep a copy of the error that our own statements have raised.  A procedure
 * may catch it at its COMMIT and raise another error later, which must not be
 * taken for ours.
 */
static void
keep_own_error(void)
{
	MemoryContext old = MemoryContextSwitchTo(tasksched_launch_cxt);

	tasksched_launch.own_error = CopyErrorData();
	MemoryContextSwitchTo(old);
}

/* Called right before each commit of the action */
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
		 * The process exits, perhaps from within the action.  The server
		 * commits once more, to drop temporary tables.  That is no commit of
		 * the action's, and it need not wait for a standby.
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
 * Do the work of xact_callback() if that is not called at a commit.
 *
 * A library may register a callback otherwise than in a statement.  It is then
 * called before ours.  If it runs a statement, tasksched_be_first_at_commit()
 * moves ours to the head of the list, which has been passed by, so ours is not
 * called.  This callback is registered once, before any that an action can
 * bring.  So it is called after all of these.
 */
static void
fallback_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT && !tasksched_launch.committing)
		xact_callback(event, arg);
}

/*
 * Make our callback the first to be called at the next commit, by registering
 * it anew.  Callbacks are called in the reverse order of their registration,
 * and postgres_fdw, for example, registers its own when an action first makes
 * it connect.
 *
 * The list must not change while the callbacks are called.  Our own statements
 * get here at that time.
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
 * Whatever an action does that leads to a commit elsewhere, it does in a query
 * or a utility command.  This also holds for deferred triggers.  So it is
 * enough to hook the end of these two.
 */
void
tasksched_commit_init(void)
{
	RegisterXactCallback(fallback_xact_callback, NULL);
	RegisterXactCallback(xact_callback, NULL);
	prev_executor_end_hook = ExecutorEnd_hook;
	ExecutorEnd_hook = executor_end;
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
