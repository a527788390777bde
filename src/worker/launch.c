/*
 * launch.c
 *	  One launch of a task.
 *
 * A launch takes two transactions.  The first one reads the row and ends
 * before the action begins, so that a running action holds no lock on our
 * tables.  The second one is the action's own, and the outcome is written in
 * it: see commit.c.
 *
 * A cancel interrupt is meant for an action.  So such interrupts are held
 * except while an action runs, and one that comes too late for its launch is
 * dropped.
 */
#include "postgres.h"

#include "access/xact.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "actions/actions.h"
#include "base/base.h"
#include "base/settings.h"
#include "shared/shared.h"
#include "store/store.h"
#include "worker/internal.h"
#include "worker/worker.h"

/*
 * Return the reason why the action can't be called now, or NULL if it can.
 *
 * If the scheduler has handed over the launch, it has made all checks a moment
 * ago, so only the function is checked again.  It has not checked a launch
 * that follows at once on the one before.
 */
static char *
recheck_action(Action *action, bool from_scheduler)
{
	Oid			owner = action->function_owner;

	if (!from_scheduler)
		return tasksched_task_blocked(tasksched_launch.row.action, tasksched_session_owner(), false, action);
	if (tasksched_action_unfit(action->function, action) == UNFIT_NOT &&
		action->function_owner == owner)
		return NULL;
	return tasksched_action_blocked(tasksched_launch.row.action, action);
}

/*
 * Read the task and check its action; false if the launch no longer holds the
 * task.  If the launch can't begin for another reason, the process exits, and
 * the scheduler undoes the claim.
 */
static bool
prepare_launch(Action *action, bool from_scheduler)
{
	char	   *blocked = NULL;
	bool		stale;
	bool		found = false;
	MemoryContext old;

	CHECK_FOR_INTERRUPTS();		/* if we must exit, do so before it begins */
	tasksched_begin();
	stale = tasksched_session_is_stale();
	if (!stale)
	{
		old = MemoryContextSwitchTo(tasksched_launch_cxt);
		found = tasksched_row_read(&tasksched_launch.ref, &tasksched_launch.row);
		if (found)
			blocked = recheck_action(action, from_scheduler);
		MemoryContextSwitchTo(old);
	}
	tasksched_commit();
	TASKSCHED_FAULT_POINT("task read");

	if (stale)
		tasksched_slot_end(END_STALE);
	else if (blocked != NULL)
		ereport(LOG,
				(errmsg("tasksched could not launch task %s: %s",
						tasksched_uuid_out(&tasksched_launch.ref.id), blocked)));
	if (stale || blocked != NULL)
		proc_exit(0);
	return found;
}

/*
 * The function was dropped before it could be called.  The launch has had no
 * effect, so exit in a way that makes the scheduler undo the claim.  It then
 * finds the function that exists now, or the reason why there is none.
 */
static void
leave_without_function(void)
{
	tasksched_slot_end(END_STALE);
	ereport(LOG,
			(errmsg("tasksched could not launch task %s: its function was dropped or got another owner at this moment",
					tasksched_uuid_out(&tasksched_launch.ref.id)),
			 errdetail("The task will be launched again.")));
	proc_exit(0);
}

/* Call the action, and commit its effects together with the outcome */
static void
run_action(const Action *action)
{
	SetCurrentStatementStartTimestamp();
	TASKSCHED_FAULT_POINT("slot begun");
	StartTransactionCommand();
	if (!tasksched_action_is_there(action))
		leave_without_function();
	tasksched_launch.in_action = true;
	tasksched_action_call(action, tasksched_launch.row.task, tasksched_launch.row.params, tasksched_launch.row.params_null,
						  tasksched_launch.row.first_launch, &tasksched_launch.returned, tasksched_launch_cxt);
	if (GetCurrentTransactionNestLevel() > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("action left a subtransaction open")));
	tasksched_launch.finishing = true;
	tasksched_be_first_at_commit();
	CommitTransactionCommand();
	tasksched_launch.in_action = false;
}

/* ----------
 * Errors
 * ----------
 */

/* Hold interrupts again, since raising an error has reset both counters */
static void
hold_interrupts_again(void)
{
	HOLD_INTERRUPTS();
	HOLD_CANCEL_INTERRUPTS();
}

/*
 * Log the error.  If it is too long to be logged, the resulting error takes
 * its place.
 */
static void
report_error(void)
{
	PG_TRY();
	{
		EmitErrorReport();
	}
	PG_CATCH();
	{
		hold_interrupts_again();
		EmitErrorReport();
	}
	PG_END_TRY();
}

/*
 * Copy the error.  Returns NULL if there is no memory for that; then the lack of
 * memory becomes the error.
 */
static ErrorData *
copy_error(void)
{
	ErrorData  *volatile edata = NULL;
	MemoryContext old = MemoryContextSwitchTo(tasksched_launch_cxt);

	PG_TRY();
	{
		edata = CopyErrorData();
	}
	PG_CATCH();
	{
		hold_interrupts_again();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return edata;
}

/*
 * Clean up after an error, as PostgresMain() does, and return the error.  It
 * is copied before the abort.  An error that SPI_commit() or PL/pgSQL has thrown
 * again points into memory that the abort frees.
 */
static ErrorData *
recover_from_error(void)
{
	ErrorData  *edata;

	hold_interrupts_again();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	report_error();
	edata = copy_error();
	AbortOutOfAnyTransaction();
	PortalErrorCleanup();
	jit_reset_after_error();
	MemoryContextSwitchTo(tasksched_launch_cxt);
	if (edata == NULL)
		edata = CopyErrorData();
	FlushErrorState();
	tasksched_launch.in_action = false;
	RESUME_INTERRUPTS();
	return edata;
}

/* Store in a transaction of its own that the attempt has failed */
static void
store_failure(ErrorData *edata)
{
	/* from here on an error is not the action's, and ends the process */
	tasksched_slot_end(END_BOOKKEEPING);
	TASKSCHED_FAULT_POINT("action failed");
	tasksched_begin();
	(void) tasksched_lift_lock_timeout();
	tasksched_launch.outcome = tasksched_outcome(STATUS_FAILED);
	tasksched_launch.outcome.error = tasksched_error_text(edata->message);
	tasksched_launch.outcome.error_details = tasksched_error_details(edata);
	tasksched_store_lock(true);
	if (!tasksched_store_finish(&tasksched_launch.ref, &tasksched_launch.outcome))
		tasksched_launch.superseded = true;
	tasksched_commit();
}

/*
 * Is it the error that was kept?  Languages other than PL/pgSQL may raise it
 * again with a longer message and another SQLSTATE, so look for the message
 * in it.
 */
static bool
is_same_error(const ErrorData *edata, const ErrorData *kept)
{
	if (kept->message == NULL || edata->message == NULL)
		return kept->sqlerrcode == edata->sqlerrcode;
	return strstr(edata->message, kept->message) != NULL;
}

/* Has an error in our own statements ended the launch? */
static bool
is_own_error(const ErrorData *edata)
{
	const ErrorData *own = tasksched_launch.own_error;

	return tasksched_launch.bookkeeping && (own == NULL || is_same_error(edata, own));
}

/*
 * Was the outcome lost by an error in our own statements?  Then the task has
 * not failed, and is launched again.
 *
 * A conflict between transactions is an exception.  It may be due to the
 * isolation level or the row locks of the action, so it fails the task.  But a
 * deadlock while we lock our tables is with a command that locks these tables,
 * and not the action's fault.
 */
static bool
outcome_was_lost(const ErrorData *edata)
{
	const ErrorData *own = tasksched_launch.own_error;
	const ErrorData *lock_error = tasksched_store_lock_error();

	if (lock_error != NULL && is_same_error(edata, lock_error))
		return true;
	return is_own_error(edata) &&
		(own == NULL || ERRCODE_TO_CATEGORY(own->sqlerrcode) != ERRCODE_TRANSACTION_ROLLBACK);
}

/*
 * Was the error raised because the function does not exist any more?  It may
 * also have been dropped while it ran, and have raised such an error itself.
 * That makes no difference, since its effects are rolled back.
 */
static bool
function_was_gone(const ErrorData *edata)
{
	bool		gone;

	if (tasksched_launch.has_committed ||
		(edata->sqlerrcode != ERRCODE_INTERNAL_ERROR &&
		 edata->sqlerrcode != ERRCODE_UNDEFINED_FUNCTION))
		return false;
	/* from here on an error is not the action's */
	tasksched_slot_end(END_BOOKKEEPING);
	tasksched_begin();
	gone = !tasksched_action_is_there(tasksched_launch.action);
	tasksched_commit();
	return gone;
}

static void
handle_error(void)
{
	ErrorData  *edata = recover_from_error();

	if (tasksched_launch.superseded)
		return;
	if (outcome_was_lost(edata))
	{
		tasksched_slot_end(END_BOOKKEEPING);
		ereport(LOG,
				(errmsg("tasksched could not store the outcome of task %s",
						tasksched_uuid_out(&tasksched_launch.ref.id)),
				 errdetail("The task will be launched again.")));
		proc_exit(0);
	}
	if (function_was_gone(edata))
		leave_without_function();
	store_failure(edata);
}

/* ----------
 * Running
 * ----------
 */

/* Show the task in pg_stat_activity, and as the STATEMENT of log messages */
static void
show_activity(void)
{
	char	   *text;

	MemoryContextSwitchTo(tasksched_launch_cxt);
	text = psprintf("tasksched: %s %s", tasksched_launch.row.action, tasksched_uuid_out(&tasksched_launch.ref.id));
	debug_query_string = text;
	pgstat_report_activity(STATE_RUNNING, text);
}

static void
tell_waiters(void)
{
	tasksched_waiters_tell(tasksched_waiters_bit(&tasksched_launch.ref.id));
}

/*
 * The task is done.  The worker takes no other one if its session may have
 * kept state, or if workers must not be idle.
 *
 * A session with temporary objects is reset first.  Other objects may depend on
 * these, so to drop them can wait for a lock.  The slot stays taken meanwhile:
 * running_tasks shows the worker, and no task waits for it unseen.
 */
static void
settle(void)
{
	tasksched_slot_end(END_BOOKKEEPING);
	if (tasksched_session_has_temporary_objects())
	{
		tell_waiters();
		tasksched_session_reset();
		tasksched_launch.session_is_reset = true;
	}
	tasksched_slot_settle(tasksched_worker_idle_timeout == 0 || tasksched_session_is_stateful());
}

/*
 * Run one launch.  Returns true if the next launch of the same task follows at
 * once; it is in tasksched_launch.ref then.
 */
static bool
run_launch(Action *action, bool from_scheduler)
{
	bool		paused = false;

	TASKSCHED_FAULT_POINT("task taken");
	if (!prepare_launch(action, from_scheduler) || !tasksched_slot_begin(&tasksched_launch.ref, &paused))
	{
		if (paused)
		{
			/* the scheduler undoes the claim */
			tasksched_slot_end(END_STALE);
			proc_exit(0);
		}
		settle();
		return false;
	}

	show_activity();
	tasksched_launch.action = action;
	QueryCancelPending = false; /* it was meant for an earlier launch */
	RESUME_CANCEL_INTERRUPTS();
	PG_TRY();
	{
		run_action(action);
		HOLD_CANCEL_INTERRUPTS();
	}
	PG_CATCH();
	{
		handle_error();
	}
	PG_END_TRY();
	TASKSCHED_FAULT_POINT("outcome committed");

	if (!tasksched_launch.superseded && tasksched_launch.outcome.status == STATUS_ACTIVE)
	{
		tasksched_launch.ref.launch = tasksched_next_launch(tasksched_launch.ref.launch);
		tasksched_slot_proceed(&tasksched_launch.ref);
		return true;
	}
	settle();
	tell_waiters();
	return false;
}

/*
 * Run the launch that the scheduler has handed over, and those that follow at
 * once
 */
void
tasksched_run_task(const TaskRef *task, Action *action)
{
	bool		again;
	bool		first = true;

	memset(&tasksched_launch, 0, sizeof(Launch));
	tasksched_launch.ref = *task;
	do
	{
		TaskRef		ref = tasksched_launch.ref;

		memset(&tasksched_launch, 0, sizeof(Launch));
		tasksched_launch.ref = ref;
		tasksched_launch.committed.run_at = DT_NOEND;
		tasksched_store_forget_lock_error();
		again = run_launch(action, first);
		TASKSCHED_FAULT_POINT("slot settled");
		first = false;
		debug_query_string = NULL;
		MemoryContextReset(tasksched_launch_cxt);
		if (!tasksched_launch.session_is_reset)
			tasksched_session_reset();
		(void) pgstat_report_stat(false);
	} while (again);
	tasksched_launch.ref.launch = 0;
	pgstat_report_activity(STATE_IDLE, NULL);
}
