/*
 * worker.c
 *	  The worker: connects as the owner of tasks and runs them, one after the
 *	  other.
 *
 * A launch takes two transactions.  The first reads the row; so a running
 * action holds no lock on our tables.  The second is the action's own, and the
 * outcome is written in it, at its very end: in a callback right before the
 * commit, after deferred triggers and whatever else of the user's might fail.
 * That write is conditional on the fence (id, launch) and status active; if the
 * task was cancelled, deleted or superseded, it raises an error, which takes
 * all effects of the action with it.  A procedure that commits on its way
 * passes the same callback each time.
 *
 * A cancel interrupt is meant for an action, so it is held back all the time but
 * while one runs, and what came too late for its launch is dropped.
 *
 * What commits elsewhere at the same time, such as postgres_fdw on a foreign
 * server, does so in callbacks of its own, so ours has to be the first of them.
 *
 * What an action stages by update_task() for its own task is kept here, in a
 * stack with an entry for each subtransaction that changed something, until
 * the callback stores it: the row must not be locked while a user's code runs.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "executor/executor.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "tasksched.h"

/* How long a new worker waits at least for its first task */
#define FIRST_TASK_MS 5000

/*
 * Changes to its own task that an action has made by update_task().  An entry
 * begins with what the one outside of it has; a result or an error that differs
 * from that is its own to free, since an action may stage any number of times.
 */
typedef struct Staged
{
	SubTransactionId subid;
	bool		scheduled;		/* the outcome, unless the action says otherwise */
	TimestampTz run_at;			/* with scheduled; DT_NOEND = now */
	bool		dirty;			/* result and error are not stored yet */
	Jsonb	   *result;			/* NULL = as it was read */
	char	   *error;
	struct Staged *outer;
} Staged;

/* The launch that this worker is at */
static struct
{
	bool		in_action;		/* the second transaction is under way */
	const Action *action;		/* what it calls */
	bool		finishing;		/* the action has returned: store the outcome */
	bool		committing;		/* callbacks of a commit or abort are being called */
	bool		has_committed;	/* a procedure, on its way */
	bool		superseded;		/* the fence has failed */
	bool		bookkeeping;	/* our own statements have begun, and not come to their end */
	bool		locking;		/* likewise: they take their locks */
	ErrorData  *own_error;		/* what they raised; NULL if that could not be kept */
	TaskRef		ref;
	TaskRow		row;
	Outcome		returned;		/* what the action has returned */
	Outcome		outcome;		/* what the launch comes to */
	Staged		committed;		/* as of the last commit */
	Staged	   *staged;			/* since then, innermost subtransaction first */
}			current;

static MemoryContext launch_cxt;	/* reset after each launch */

static WorkerArgs my_args;
static volatile bool role_changed = false;
static uint32 owner_hash;		/* of the owner's entry in the cache of roles */

static ExecutorEnd_hook_type prev_executor_end_hook = NULL;
static ProcessUtility_hook_type prev_process_utility_hook = NULL;

/* ----------
 * Staged changes
 * ----------
 */

bool
tasksched_in_action(void)
{
	return current.in_action;
}

bool
tasksched_is_current_task(const pg_uuid_t *id)
{
	return current.in_action && tasksched_same_task(id, &current.ref.id);
}

/*
 * Is the task whose action is under way the current user's own?  An action runs
 * code of others, too, as them: a function with SECURITY DEFINER, an expression of
 * an index.  The task is for those who have the rights of its owner, and for the
 * owner of the action's function if that is the one whose rights it has.
 */
bool
tasksched_current_task_is_own(void)
{
	const Action *action = current.action;

	if (!current.in_action)
		return false;
	return has_privs_of_role(GetUserId(), my_args.owner) ||
		(action->security_definer && action->function_owner == GetUserId());
}

/* Does this worker hold the task, in its action or around it? */
bool
tasksched_worker_holds(const pg_uuid_t *id)
{
	return current.ref.launch > 0 && tasksched_same_task(id, &current.ref.id);
}

static Staged *
staged_now(void)
{
	return current.staged ? current.staged : &current.committed;
}

static const Staged *
staged_outside(const Staged *entry)
{
	return entry->outer ? entry->outer : &current.committed;
}

static void
free_unless(void *value, const void *kept)
{
	if (value != NULL && value != kept)
		pfree(value);
}

/* Free an entry and what is not needed any more by the one that stays */
static void
free_staged(Staged *entry, const Staged *outside, const Staged *stays)
{
	if (entry->result != outside->result)
		free_unless(entry->result, stays->result);
	if (entry->error != outside->error)
		free_unless(entry->error, stays->error);
	pfree(entry);
}

/* Forget the innermost entry */
static void
pop_staged(void)
{
	Staged	   *entry = current.staged;

	current.staged = entry->outer;
	free_staged(entry, staged_now(), staged_now());
}

/* The entry of the current subtransaction */
static Staged *
staged_entry(void)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (current.staged == NULL || current.staged->subid != subid)
	{
		Staged	   *entry = MemoryContextAlloc(launch_cxt, sizeof(Staged));

		*entry = *staged_now();
		entry->subid = subid;
		entry->outer = current.staged;
		current.staged = entry;
	}
	return current.staged;
}

/* update_task() on the task whose action calls it */
void
tasksched_stage_current_task(const Outcome *change)
{
	Staged	   *entry = staged_entry();
	MemoryContext old = MemoryContextSwitchTo(launch_cxt);

	if (change->result != NULL)
	{
		Jsonb	   *result = (Jsonb *) PG_DETOAST_DATUM_COPY(PointerGetDatum(change->result));

		free_unless(entry->result, staged_outside(entry)->result);
		entry->result = result;
	}
	if (change->error != NULL)
	{
		char	   *error = pstrdup(change->error);

		free_unless(entry->error, staged_outside(entry)->error);
		entry->error = error;
	}
	if (change->status != STATUS_NONE)
	{
		entry->scheduled = change->status == STATUS_SCHEDULED;
		entry->run_at = change->run_at;
	}
	entry->dirty = true;
	MemoryContextSwitchTo(old);
}

/* The task as its action shall see it: as it was read, with what it staged */
Datum
tasksched_current_task_datum(void)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(current.row.task);
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(header),
												   HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header), .t_data = header};
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	Staged	   *staged = staged_now();

	heap_deform_tuple(&tuple, desc, values, nulls);
	for (int i = 0; i < desc->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(desc, i)->attname);

		if (strcmp(name, "result") == 0 && staged->result != NULL)
		{
			values[i] = PointerGetDatum(staged->result);
			nulls[i] = false;
		}
		else if (strcmp(name, "error") == 0 && staged->error != NULL)
		{
			values[i] = CStringGetTextDatum(staged->error);
			nulls[i] = false;
		}
		else if (strcmp(name, "status") == 0 && staged->scheduled)
			values[i] = ObjectIdGetDatum(tasksched_status_datum(STATUS_SCHEDULED));
		else if (strcmp(name, "run_at") == 0 && staged->scheduled && staged->run_at != DT_NOEND)
			values[i] = TimestampTzGetDatum(staged->run_at);
	}
	return heap_copy_tuple_as_datum(heap_form_tuple(desc, values, nulls), desc);
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid, SubTransactionId parentSubid, void *arg)
{
	Staged	   *entry = current.staged;

	if (!current.in_action || entry == NULL || entry->subid != mySubid)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		pop_staged();
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		Staged	   *parent = entry->outer;

		if (parent != NULL && parent->subid == parentSubid)
		{
			entry->outer = parent->outer;
			free_staged(parent, staged_outside(entry), entry);
		}
		entry->subid = parentSubid;
	}
}

/* ----------
 * Storing the outcome
 * ----------
 */

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
	return tasksched_task_blocked(current.row.action, my_args.owner, false, &action) == NULL;
}

/* What the launch comes to, from what the action returned and what it staged */
static void
decide_outcome(void)
{
	Staged	   *staged = staged_now();

	current.outcome = current.returned;
	if (current.returned.status == STATUS_NONE)
	{
		current.outcome.status = staged->scheduled ? STATUS_SCHEDULED : STATUS_COMPLETE;
		current.outcome.run_at = staged->run_at;
	}
	if (current.outcome.status == STATUS_ACTIVE && !may_proceed())
		current.outcome.status = STATUS_SCHEDULED;
	if (staged->dirty && current.outcome.result == NULL)
		current.outcome.result = staged->result;
	/* also one that is stored: what complete does not repeat is an earlier stage's */
	if (current.outcome.error == NULL)
		current.outcome.error = staged->error;
}

/*
 * Let our statements wait for locks as long as it takes, whatever the action has
 * set.  Returns the nest level to leave.
 */
static int
lift_lock_timeout(void)
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
	Staged	   *staged = staged_now();
	bool		read_only = XactReadOnly;
	MemoryContext old;
	int			nest_level;
	bool		held;

	old = MemoryContextSwitchTo(CurTransactionContext);
	HOLD_CANCEL_INTERRUPTS();
	XactReadOnly = false;		/* the role's setting is not meant for us */
	nest_level = lift_lock_timeout();
	PushActiveSnapshot(GetTransactionSnapshot());
	TASKSCHED_FAULT_POINT("action returned");
	current.locking = true;
	tasksched_store_lock(current.finishing);
	current.locking = false;
	if (current.finishing)
	{
		decide_outcome();
		held = tasksched_store_finish(&current.ref, &current.outcome);
	}
	else
	{
		Outcome		change = {.status = STATUS_NONE};

		if (staged->dirty)
		{
			change.result = staged->result;
			change.error = staged->error;
		}
		held = tasksched_store_checkpoint(&current.ref, &change);
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
	MemoryContext old = MemoryContextSwitchTo(launch_cxt);

	current.own_error = CopyErrorData();
	MemoryContextSwitchTo(old);
}

/* Right before a commit of the action's */
static void
store_at_commit(void)
{
	volatile bool held = false;

	if (current.own_error != NULL)
		FreeErrorData(current.own_error);
	current.own_error = NULL;
	current.locking = false;
	current.bookkeeping = true;
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
	current.bookkeeping = false;

	if (!held)
	{
		current.superseded = true;
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("task %s was cancelled or deleted while its action ran",
						tasksched_uuid_out(&current.ref.id)),
				 errdetail("What the action did since its last commit is rolled back.")));
	}
}

/*
 * After a commit: what was staged is stored now.  Keep it, to be shown.  Nothing
 * may fail here, so nothing is allocated.
 */
static void
keep_committed(void)
{
	Staged	   *entry = current.staged;

	if (entry == NULL)
		return;
	free_unless(current.committed.result, entry->result);
	free_unless(current.committed.error, entry->error);
	current.committed = *entry;
	current.committed.dirty = false;
	current.staged = NULL;
	pfree(entry);
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
	if (!current.in_action)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			current.committing = true;
			store_at_commit();
			break;
		case XACT_EVENT_COMMIT:
			current.committing = false;
			current.has_committed = true;
			keep_committed();
			break;
		case XACT_EVENT_ABORT:
			current.committing = false;
			while (current.staged != NULL)
				pop_staged();
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
	if (event == XACT_EVENT_PRE_COMMIT && !current.committing)
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
static void
be_first_at_commit(void)
{
	if (!current.in_action || current.committing)
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
	be_first_at_commit();
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
	be_first_at_commit();
}

/*
 * Actions use the executor or a utility command for whatever may end in a commit
 * elsewhere, their deferred triggers included.
 */
static void
watch_statements(void)
{
	prev_executor_end_hook = ExecutorEnd_hook;
	ExecutorEnd_hook = executor_end;
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}

/* ----------
 * Running a task
 * ----------
 */

/* The settings that a session of an owner starts with, as a fingerprint */
uint32
tasksched_settings_fingerprint(Oid owner)
{
	const Oid	keys[][2] = {
		{MyDatabaseId, owner},
		{MyDatabaseId, InvalidOid},
		{InvalidOid, owner},
		{InvalidOid, InvalidOid}
	};
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	uint32		hash = 0;

	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		ScanKeyData key[2];
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(keys[i][0]));
		ScanKeyInit(&key[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(keys[i][1]));
		scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 2, key);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
			hash = hash_combine(hash, hash_combine(HeapTupleHeaderGetRawXmin(tuple->t_data), i + 1));
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return hash;
}

/* Has the owner changed in a way that a connected session does not follow? */
static bool
is_stale(void)
{
	return role_changed || tasksched_settings_fingerprint(my_args.owner) != my_args.settings;
}

/*
 * Is the function still what the scheduler has found?  That was a moment ago.  A
 * stage that goes on at once has not been looked at by the scheduler.
 */
static char *
recheck_action(Action *action, bool found_now)
{
	Oid			owner = action->function_owner;

	if (!found_now)
		return tasksched_task_blocked(current.row.action, my_args.owner, false, action);
	if (tasksched_action_unfit(action->function, action) == NULL &&
		action->function_owner == owner)
		return NULL;
	return tasksched_action_blocked(current.row.action, action);
}

/*
 * Read the task and check its action; false if there is nothing to run.  If the
 * launch can't begin, the process ends and the scheduler undoes the claim.
 */
static bool
prepare_launch(Action *action, bool found_now)
{
	char	   *blocked = NULL;
	bool		stale;
	bool		found = false;
	MemoryContext old;

	CHECK_FOR_INTERRUPTS();		/* whoever has to leave does so before the launch begins */
	tasksched_begin();
	stale = is_stale();
	if (!stale)
	{
		old = MemoryContextSwitchTo(launch_cxt);
		found = tasksched_row_read(&current.ref, &current.row);
		if (found)
			blocked = recheck_action(action, found_now);
		MemoryContextSwitchTo(old);
	}
	tasksched_commit();
	TASKSCHED_FAULT_POINT("task read");

	if (stale)
		tasksched_slot_end(END_STALE);
	else if (blocked != NULL)
		ereport(LOG,
				(errmsg("tasksched could not launch task %s: %s",
						tasksched_uuid_out(&current.ref.id), blocked)));
	if (stale || blocked != NULL)
		proc_exit(0);
	return found;
}

/*
 * The function was dropped before it could be called.  Nothing has happened, so
 * let the claim be undone: the scheduler finds the function that is there now, or
 * says why there is none.
 */
static void
leave_without_function(void)
{
	tasksched_slot_end(END_STALE);
	ereport(LOG,
			(errmsg("tasksched could not launch task %s: its function was dropped or got another owner at this moment",
					tasksched_uuid_out(&current.ref.id)),
			 errdetail("The task will be launched again.")));
	proc_exit(0);
}

/* Call the action and commit, with the outcome */
static void
run_action(const Action *action)
{
	SetCurrentStatementStartTimestamp();
	TASKSCHED_FAULT_POINT("slot begun");
	StartTransactionCommand();
	if (!tasksched_action_is_there(action))
		leave_without_function();
	current.in_action = true;
	tasksched_action_call(action, current.row.task, current.row.params, current.row.params_null,
						  current.row.first_launch, &current.returned, launch_cxt);
	if (GetCurrentTransactionNestLevel() > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("action left a subtransaction open")));
	current.finishing = true;
	be_first_at_commit();
	CommitTransactionCommand();
	current.in_action = false;
}

/* Hold what an error has let go */
static void
hold_interrupts_again(void)
{
	HOLD_INTERRUPTS();
	HOLD_CANCEL_INTERRUPTS();
}

/* Log the error; if it is too long for that, this is the error from here on */
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
 * Clean up after an error, as PostgresMain() does.  The error is copied after the
 * abort has freed memory, which may be what lacked.
 */
static ErrorData *
recover(void)
{
	ErrorData  *edata;

	hold_interrupts_again();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	report_error();
	AbortOutOfAnyTransaction();
	PortalErrorCleanup();
	jit_reset_after_error();
	MemoryContextSwitchTo(launch_cxt);
	edata = CopyErrorData();
	FlushErrorState();
	current.in_action = false;
	RESUME_INTERRUPTS();
	return edata;
}

/* The attempt has failed: store that in a transaction of its own */
static void
store_failure(ErrorData *edata)
{
	/* an error from here on is ours, and ends the process */
	tasksched_slot_end(END_BOOKKEEPING);
	TASKSCHED_FAULT_POINT("action failed");
	tasksched_begin();
	(void) lift_lock_timeout();
	memset(&current.outcome, 0, sizeof(Outcome));
	current.outcome.status = STATUS_FAILED;
	current.outcome.run_at = DT_NOEND;
	current.outcome.error = tasksched_error_text(edata->message);
	current.outcome.error_details = tasksched_error_details(edata);
	tasksched_store_lock(true);
	if (!tasksched_store_finish(&current.ref, &current.outcome))
		current.superseded = true;
	tasksched_commit();
}

/*
 * Has an error in our own statements ended the launch?  Languages other than
 * PL/pgSQL may raise it again with more words around it, and with another SQLSTATE.
 */
static bool
is_own_error(const ErrorData *edata)
{
	const ErrorData *own = current.own_error;

	if (!current.bookkeeping || own == NULL)
		return current.bookkeeping;
	if (own->message == NULL || edata->message == NULL)
		return own->sqlerrcode == edata->sqlerrcode;
	return strstr(edata->message, own->message) != NULL;
}

/*
 * An error in our own statements does not fail the task, unless it is a conflict
 * between transactions, which may be the action's: it is not while we take the locks
 * on our tables, where a deadlock is with somebody who wants these.
 */
static bool
outcome_was_lost(const ErrorData *edata)
{
	if (!is_own_error(edata))
		return false;
	return current.own_error == NULL || current.locking ||
		ERRCODE_TO_CATEGORY(current.own_error->sqlerrcode) != ERRCODE_TRANSACTION_ROLLBACK;
}

/*
 * Was it the function's absence that raised the error?  If it was dropped later on,
 * while it ran, and raised such an error itself, that makes no difference: all that
 * it did is rolled back.
 */
static bool
function_was_gone(const ErrorData *edata)
{
	bool		gone;

	if (current.has_committed ||
		(edata->sqlerrcode != ERRCODE_INTERNAL_ERROR &&
		 edata->sqlerrcode != ERRCODE_UNDEFINED_FUNCTION))
		return false;
	/* an error from here on is ours */
	tasksched_slot_end(END_BOOKKEEPING);
	tasksched_begin();
	gone = !tasksched_action_is_there(current.action);
	tasksched_commit();
	return gone;
}

static void
handle_error(void)
{
	ErrorData  *edata = recover();

	if (current.superseded)
		return;
	if (outcome_was_lost(edata))
	{
		tasksched_slot_end(END_BOOKKEEPING);
		ereport(LOG,
				(errmsg("tasksched could not store the outcome of task %s",
						tasksched_uuid_out(&current.ref.id)),
				 errdetail("The task will be launched again.")));
		proc_exit(0);
	}
	if (function_was_gone(edata))
		leave_without_function();
	store_failure(edata);
}

/* Show the task in pg_stat_activity, and as the STATEMENT of log messages */
static void
show_activity(void)
{
	char	   *text;

	MemoryContextSwitchTo(launch_cxt);
	text = psprintf("tasksched: %s %s", current.row.action, tasksched_uuid_out(&current.ref.id));
	debug_query_string = text;
	pgstat_report_activity(STATE_RUNNING, text);
}

/* The name of a library, without its folder and suffix */
static char *
library_name(const char *path)
{
	const char *slash = last_dir_separator(path);
	char	   *name = pstrdup(slash ? slash + 1 : path);
	int			len = strlen(name) - strlen(DLSUFFIX);

	if (len > 0 && strcmp(name + len, DLSUFFIX) == 0)
		name[len] = '\0';
	return name;
}

static bool
is_in_library(Oid function, const char *library)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		result = false;
	bool		isnull;
	Datum		path;

	if (!HeapTupleIsValid(tuple))
		return false;
	path = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_probin, &isnull);
	if (!isnull)
		result = strcmp(library_name(TextDatumGetCString(path)), library) == 0;
	ReleaseSysCache(tuple);
	return result;
}

/* Is it the library of a procedural language or a foreign-data wrapper? */
static bool
is_stateful_library(const char *library)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	rel = table_open(LanguageRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = is_in_library(((Form_pg_language) GETSTRUCT(tuple))->lanplcallfoid, library);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	rel = table_open(ForeignDataWrapperRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_data_wrapper fdw = (Form_pg_foreign_data_wrapper) GETSTRUCT(tuple);

		found = is_in_library(fdw->fdwhandler, library) ||
			is_in_library(fdw->fdwvalidator, library);	/* dblink has no more than that */
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * May the session keep what reset_session() can't take away: the connections of
 * dblink or a foreign-data wrapper, the global variables of a procedural
 * language?  Nobody can be asked for them, so go by the libraries that have been
 * loaded; PL/pgSQL is known to keep nothing.
 */
static bool
session_is_stateful(void)
{
	static Size looked_at = 0;
	static bool stateful = false;
	Size		size = EstimateLibraryStateSpace();
	char	   *libraries;

	if (size == looked_at)
		return stateful;
	looked_at = size;

	tasksched_begin();
	libraries = palloc(size);
	SerializeLibraryState(size, libraries);
	for (char *path = libraries; *path != '\0' && !stateful; path += strlen(path) + 1)
	{
		char	   *library = library_name(path);

		stateful = strcmp(library, "tasksched") != 0 && strcmp(library, "plpgsql") != 0 &&
			is_stateful_library(library);
	}
	tasksched_commit();
	return stateful;
}

/* Done with the task; the next one may want a fresh process */
static void
settle(void)
{
	tasksched_slot_end(END_BOOKKEEPING);
	tasksched_slot_settle(tasksched_worker_idle_timeout == 0 || session_is_stateful());
}

/*
 * Run one launch; returns true if the next launch of the same task, in
 * current.ref, follows at once.
 */
static bool
run_launch(Action *action, bool found_now)
{
	bool		paused = false;

	TASKSCHED_FAULT_POINT("task taken");
	if (!prepare_launch(action, found_now) || !tasksched_slot_begin(&current.ref, &paused))
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
	current.action = action;
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

	if (!current.superseded && current.outcome.status == STATUS_ACTIVE)
	{
		current.ref.launch = tasksched_next_launch(current.ref.launch);
		tasksched_slot_proceed(&current.ref);
		return true;
	}
	settle();
	tasksched_waiters_tell(tasksched_waiters_bit(&current.ref.id));
	return false;
}

/*
 * Bring the session back to its initial state, as DISCARD ALL but for plans.
 * Beyond that, let go of replication slots, as PostgresMain() does after an
 * error, and of what setseed() has set.
 */
static void
reset_session(void)
{
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	ReplicationSlotCleanup(false);

	/* the settings that the action has left must not apply to this transaction */
	tasksched_begin();
	PortalHashTableDeleteAll();
	SetPGVariable("session_authorization", NIL, false);
	SetPGVariable("role", NIL, false);
	ResetAllOptions();
	/* dropping temporary tables is no reason to wait for a standby */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	DropAllPreparedStatements();
	Async_UnlistenAll();
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetTempTableNamespace();
	ResetSequenceCaches();
	(void) DirectFunctionCall1(setseed, Float8GetDatum(2 * pg_prng_double(&pg_global_prng_state) - 1));
	tasksched_commit();
}

static void
run_task(const TaskRef *task, Action *action)
{
	bool		again;
	bool		first = true;

	memset(&current, 0, sizeof(current));
	current.ref = *task;
	do
	{
		TaskRef		ref = current.ref;

		memset(&current, 0, sizeof(current));
		current.ref = ref;
		current.committed.run_at = DT_NOEND;
		again = run_launch(action, first);
		TASKSCHED_FAULT_POINT("slot settled");
		first = false;
		debug_query_string = NULL;
		MemoryContextReset(launch_cxt);
		reset_session();
		(void) pgstat_report_stat(false);
	} while (again);
	current.ref.launch = 0;
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* ----------
 * The process
 * ----------
 */

/* A role has changed, or if there is no hash value, any of them may have */
static void
role_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	if (hashvalue == 0 || hashvalue == owner_hash)
		role_changed = true;
}

/*
 * Connect to the database as the owner of the tasks, who may lack LOGIN.
 */
static void
connect_as_owner(void)
{
	HeapTuple	tuple;
	bool		ok;

	tasksched_connect_as(my_args.dboid, my_args.owner, my_args.superuser);
	tasksched_pin_timeouts();
	/* an error of an action is no crash, even if errors end the sessions of its role */
	SetConfigOption("exit_on_error", "off", PGC_SUSET, PGC_S_OVERRIDE);
	CacheRegisterSyscacheCallback(AUTHOID, role_callback, (Datum) 0);

	tasksched_begin();
	owner_hash = GetSysCacheHashValue1(AUTHOID, ObjectIdGetDatum(my_args.owner));
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(my_args.owner));
	ok = HeapTupleIsValid(tuple) &&
		((Form_pg_authid) GETSTRUCT(tuple))->rolsuper == my_args.superuser;
	if (ok)
	{
		SetConfigOption("session_authorization",
						NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname),
						PGC_BACKEND, PGC_S_OVERRIDE);
		/* a role that ALTER ROLE or DATABASE ... SET gives to sessions is not the owner */
		SetConfigOption("role", "none", PGC_BACKEND, PGC_S_OVERRIDE);
	}
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	/* the server does so for sessions only, in a transaction as well */
	if (ok)
		process_session_preload_libraries();
	tasksched_commit();
	if (!ok)
		proc_exit(0);			/* the scheduler will see the role as it is now */
	role_changed = false;
}

/*
 * Wait for the next task; false if the worker shall exit instead.  May exit
 * only from a slot that is left, or a task could be handed over too late.
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
		start = Min(start, GetCurrentTimestamp());	/* the clock may have gone back */
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												  TimestampTzPlusMilliseconds(start, timeout));
		if ((quit || timeout <= 0 || role_changed) && tasksched_slot_leave())
			return false;

		(void) pgstat_report_stat(true);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(timeout, 0), PG_WAIT_EXTENSION);
	}
}

/*
 * Say that we are there, and while the scheduler claims a task for us, do once what
 * its launch will begin with, so that the catalogs are in our caches.
 */
static void
announce(void)
{
	TaskRef		none = {0};
	TaskRow		row;

	tasksched_slot_announce();
	TASKSCHED_FAULT_POINT("worker announced");
	tasksched_begin();
	MemoryContextSwitchTo(launch_cxt);
	(void) tasksched_row_read(&none, &row);
	tasksched_commit();
	MemoryContextReset(launch_cxt);
}

void
tasksched_worker_main(Datum arg)
{
	TaskRef		task;
	Action		action;
	bool		first = true;

	memcpy(&my_args, MyBgworkerEntry->bgw_extra, sizeof(my_args));

	TASKSCHED_FAULT_POINT("worker started");

	/*
	 * The slot first: its exit callback then runs after the transaction has
	 * been aborted and the database connection has gone.
	 */
	if (!tasksched_slot_attach(my_args.slot, my_args.generation))
		proc_exit(0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, StatementCancelHandler);
	HOLD_CANCEL_INTERRUPTS();	/* but for the time of an action */
	BackgroundWorkerUnblockSignals();
	TASKSCHED_FAULT_POINT("worker attached");

	connect_as_owner();
	launch_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched launch", ALLOCSET_DEFAULT_SIZES);
	RegisterXactCallback(late_xact_callback, NULL);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	watch_statements();
	pgstat_report_activity(STATE_IDLE, NULL);
	announce();

	while (wait_for_next(first, &task, &action))
	{
		first = false;
		run_task(&task, &action);
	}
	proc_exit(0);
}
