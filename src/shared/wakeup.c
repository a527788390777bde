/*
 * wakeup.c
 *	  What is told at the end of a transaction that changed tasks.
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
 *
 * A prepared transaction leaves what it has to tell in shared memory.  It ends
 * in a transaction of another process, for which no callback says so: be it a
 * session's, or that of a worker of logical replication.  So whoever has written
 * WAL looks, at the end of its transaction, whether one has ended.  What tells is
 * the lock that a transaction holds on its own id: a prepared one lets it go
 * after all that others have to see of it.
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

/* So many prepared transactions are looked at for one look into shared memory */
#define LOOK_AT 16

static object_access_hook_type prev_object_access_hook = NULL;

/* What to tell at the end of the current transaction */
static struct
{
	Wake		wake;			/* at commit */
	int			abort_flags;	/* if it aborts */
	TimestampTz abort_run_at;
}			pending = {
	.wake = {.run_at = DT_NOEND},
	.abort_run_at = DT_NOEND
};

static TransactionId preparing = InvalidTransactionId;	/* between PRE_PREPARE and PREPARE */

static XLogRecPtr looked_at = InvalidXLogRecPtr;	/* our last WAL record at the last look */
static bool look_again = false;

/* ----------
 * In the statement
 * ----------
 */

static int
later_flag(TimestampTz run_at)
{
	return run_at != DT_NOEND && run_at > GetCurrentTimestamp() ? WAKE_LATER : 0;
}

/* The scheduler shall hear of this if the current transaction commits */
void
tasksched_wake_at_commit(int flags, TimestampTz run_at)
{
	pending.wake.flags |= flags | later_flag(run_at);
	pending.wake.run_at = Min(pending.wake.run_at, run_at);
	pending.wake.create = true;
}

/* The current transaction has locked the row of a live task, and may leave it as it was */
void
tasksched_wake_at_abort(TimestampTz run_at)
{
	pending.abort_flags |= WAKE_DUE | later_flag(run_at);
	pending.abort_run_at = Min(pending.abort_run_at, run_at);
}

/*
 * Those who wait for this task shall look again if we commit.  The worker that
 * runs it tells them itself, a little later, when it no longer looks running.
 */
void
tasksched_tell_waiters_at_commit(const pg_uuid_t *id)
{
	if (tasksched_slot_holds(id))
		return;
	pending.wake.waiters |= tasksched_waiters_bit(id);
}

/* A database was created or dropped */
void
tasksched_new_databases_at_commit(void)
{
	pending.wake.new_databases = true;
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
		pending.wake.flags |= WAKE_SCAN | WAKE_CHECK;
		pending.wake.waiters = PG_UINT64_MAX;
	}
}

/* ----------
 * Prepared transactions
 * ----------
 */

/*
 * Has a transaction that was prepared in this database come to its end?  To be
 * called where nothing may fail, so see first whether there is memory.
 */
static bool
has_ended(TransactionId xid)
{
	void	   *room = palloc_extended((MaxBackends + max_prepared_xacts + 1) * sizeof(VirtualTransactionId),
									   MCXT_ALLOC_NO_OOM);
	LOCKTAG		tag;
	int			nholders;

	if (room == NULL)
		return false;			/* the next scan sees to it */
	pfree(room);
	SET_LOCKTAG_TRANSACTION(tag, xid);
	pfree(GetLockConflicts(&tag, ShareLock, &nholders));
	return nholders == 0;
}

/* Tell what those prepared transactions stand for that have ended */
static void
tell_of_ended(void)
{
	TransactionId xids[LOOK_AT];
	int			from = 0;
	int			n;

	/* who ends one writes WAL */
	if (!OidIsValid(MyDatabaseId) || !tasksched_prepared_any() ||
		(ProcLastRecPtr == looked_at && !look_again))
		return;
	looked_at = ProcLastRecPtr;
	look_again = false;
	while ((n = tasksched_prepared_copy(&from, xids, LOOK_AT)) > 0)
	{
		for (int i = 0; i < n; i++)
		{
			if (has_ended(xids[i]))
				tasksched_prepared_tell(xids[i]);
		}
	}
}

/*
 * In a scheduler, once after each start of the server, before its first scan: note
 * the prepared transactions of its database that are not known, since they are
 * older than the shared memory.  What they have done is not known either.
 */
void
tasksched_learn_prepared(const TransactionId *xids, int n)
{
	tasksched_prepared_learn(xids, n);
	/* one may have ended since it was seen */
	look_again = true;
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
tell(int flags, TimestampTz run_at)
{
	if (flags != 0)
		tasksched_database_wake(MyDatabaseId, pending.wake.create, flags, run_at);
}

/* PREPARE TRANSACTION leaves to the end of the transaction what there is to tell */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_PREPARE)
	{
		Wake		wake = pending.wake;

		/* which of the two ends it comes to makes no difference */
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
		tell(pending.abort_flags, pending.abort_run_at);
	else if (isTopLevel)
	{
		tell(pending.wake.flags, pending.wake.run_at);
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
		tasksched_prepared_forget(preparing);	/* PREPARE has failed */
		preparing = InvalidTransactionId;
	}
	tell_of_ended();
}

void
tasksched_wakeup_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterResourceReleaseCallback(release_callback, NULL);
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
}
