/*
 * wakeup.c
 *	  Wake-ups at the end of a transaction that changed tasks.
 *
 * The functions that change tasks note in the statement what the scheduler
 * must learn.  It is woken once the commit is fully visible.  A callback at
 * XACT_EVENT_COMMIT would be too early: the rows are visible then, but the
 * other sessions have not received the invalidations for catalog changes of
 * the same transaction, such as a GRANT.  A resource release callback after
 * the release of locks comes after both.
 *
 * A transaction that has locked the row of a task also wakes the scheduler if
 * it aborts, or if the subtransaction does.  The scheduler may have passed by
 * the row because it was locked.
 *
 * A prepared transaction leaves its wake-ups in shared memory.  It ends in a
 * transaction of another process, and no callback there says so.  That process
 * may be a session, or a worker of logical replication.  So every process that
 * has written WAL checks, at the end of its transaction, whether a prepared
 * one has ended.  It has ended when the lock on its transaction id is free: a
 * prepared transaction releases that lock after everything that other sessions
 * must see.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "shared/internal.h"
#include "shared/shared.h"

/*
 * The number of prepared transactions that one look into shared memory copies
 */
#define PREPARED_BATCH 16

static object_access_hook_type prev_object_access_hook = NULL;

/* The wake-ups to send at the end of the current transaction */
static struct
{
	Wake		wake;			/* if it commits */
	int			abort_flags;	/* if it aborts */
	TimestampTz abort_run_at;
}			pending = {
	.wake = {.run_at = DT_NOEND},
	.abort_run_at = DT_NOEND
};

static TransactionId preparing = InvalidTransactionId;	/* between PRE_PREPARE
														 * and PREPARE */

static XLogRecPtr wal_checked = InvalidXLogRecPtr;	/* our last WAL record at
													 * the last check */
static bool must_check = false;

/* ----------
 * In the statement
 * ----------
 */

static int
later_flag(TimestampTz run_at)
{
	return run_at != DT_NOEND && run_at > GetCurrentTimestamp() ? WAKE_LATER : 0;
}

/* Wake the scheduler if the current transaction commits */
void
tasksched_wake_at_commit(int flags, TimestampTz run_at)
{
	pending.wake.flags |= flags | later_flag(run_at);
	pending.wake.run_at = Min(pending.wake.run_at, run_at);
	pending.wake.create = true;
}

/*
 * Wake the scheduler if the current transaction aborts.  It has locked the row
 * of a live task, and the abort leaves the row unchanged.
 */
void
tasksched_wake_at_abort(TimestampTz run_at)
{
	pending.abort_flags |= WAKE_DUE | later_flag(run_at);
	pending.abort_run_at = Min(pending.abort_run_at, run_at);
}

/*
 * Wake the waiters of this task if the current transaction commits.  The
 * worker that runs the task does that itself, a little later, when the task no
 * longer looks running.
 */
void
tasksched_tell_waiters_at_commit(const pg_uuid_t *id)
{
	if (tasksched_slot_holds(id))
		return;
	pending.wake.waiters |= tasksched_waiters_bit(id);
}

/*
 * A database was created or dropped: make the launcher read pg_database again
 * at commit
 */
void
tasksched_new_databases_at_commit(void)
{
	pending.wake.new_databases = true;
}

/*
 * At DROP EXTENSION, also through another command, and at ALTER EXTENSION:
 * make the scheduler and all waiters look for themselves.
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
		pending.wake.flags |= WAKE_SCAN | WAKE_CHECK;
		pending.wake.waiters = PG_UINT64_MAX;
	}
}

/* ----------
 * Prepared transactions
 * ----------
 */

/*
 * Has a transaction that was prepared in this database ended?  Nothing may
 * fail where this is called, so check first that GetLockConflicts() will get
 * its memory.
 */
static bool
has_ended(TransactionId xid)
{
	void	   *room = palloc_extended((MaxBackends + max_prepared_xacts + 1) * sizeof(VirtualTransactionId),
									   MCXT_ALLOC_NO_OOM);
	LOCKTAG		tag;
	int			nholders;

	if (room == NULL)
		return false;			/* the next scan will see */
	pfree(room);
	SET_LOCKTAG_TRANSACTION(tag, xid);
	pfree(GetLockConflicts(&tag, ShareLock, &nholders));
	return nholders == 0;
}

/* Send the wake-ups of the prepared transactions that have ended */
static void
wake_for_ended(void)
{
	TransactionId xids[PREPARED_BATCH];
	int			from = 0;
	int			n;

	/* the end of a prepared transaction writes WAL */
	if (!OidIsValid(MyDatabaseId) || !tasksched_prepared_any() ||
		(ProcLastRecPtr == wal_checked && !must_check))
		return;
	wal_checked = ProcLastRecPtr;
	must_check = false;
	while ((n = tasksched_prepared_copy(&from, xids, PREPARED_BATCH)) > 0)
	{
		for (int i = 0; i < n; i++)
		{
			if (has_ended(xids[i]))
				tasksched_prepared_tell(xids[i]);
		}
	}
}

/*
 * In a scheduler, once after each start of the server, before its first scan:
 * note the prepared transactions of its database that are older than the
 * shared memory.  What they have done is not known.
 */
void
tasksched_learn_prepared(const TransactionId *xids, int n)
{
	tasksched_prepared_learn(xids, n);
	/* one may have ended since the caller saw it */
	must_check = true;
}

/* ----------
 * At the end
 * ----------
 */

static void
forget_pending(void)
{
	memset(&pending, 0, sizeof(pending));
	pending.wake.run_at = DT_NOEND;
	pending.abort_run_at = DT_NOEND;
}

static void
wake_scheduler(int flags, TimestampTz run_at)
{
	if (flags != 0)
		tasksched_database_wake(MyDatabaseId, pending.wake.create, flags, run_at);
}

/*
 * PREPARE TRANSACTION leaves the wake-ups in shared memory, to be sent when
 * the prepared transaction ends
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_PREPARE)
	{
		Wake		wake = pending.wake;

		/* it may commit or roll back: send the same in either case */
		wake.flags |= pending.abort_flags;
		wake.run_at = Min(wake.run_at, pending.abort_run_at);
		if (wake.flags == 0 && wake.waiters == 0 && !wake.new_databases)
			return;
		preparing = GetTopTransactionId();
		tasksched_prepared_add(preparing, &wake);
	}
	else if (event == XACT_EVENT_PREPARE)
	{
		preparing = InvalidTransactionId;
		forget_pending();
	}
}

static void
release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !tasksched_preloaded())
		return;

	if (!isCommit)
		wake_scheduler(pending.abort_flags, pending.abort_run_at);
	else if (isTopLevel)
	{
		wake_scheduler(pending.wake.flags, pending.wake.run_at);
		if (pending.wake.waiters != 0)
			tasksched_waiters_tell(pending.wake.waiters);
		if (pending.wake.new_databases)
			tasksched_launcher_wake(true);
	}
	if (!isTopLevel)
		return;
	forget_pending();
	if (TransactionIdIsValid(preparing))
	{
		tasksched_prepared_forget(preparing);	/* PREPARE TRANSACTION has
												 * failed */
		preparing = InvalidTransactionId;
	}
	wake_for_ended();
}

void
tasksched_wakeup_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterResourceReleaseCallback(release_callback, NULL);
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
}
