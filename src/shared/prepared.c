/*
 * prepared.c
 *	  Prepared transactions, and the wake-ups to send when they have ended.
 */
#include "postgres.h"

#include "access/transam.h"
#include "miscadmin.h"
#include "storage/lwlock.h"

#include "shared/internal.h"
#include "shared/shared.h"

bool
tasksched_prepared_any(void)
{
	return tasksched_prepared != NULL && pg_atomic_read_u32(&tasksched_prepared->count) > 0;
}

static PreparedXact *
find_prepared(TransactionId xid)
{
	Assert(LWLockHeldByMe(tasksched_shared->lock));
	for (int i = 0; i < tasksched_prepared->end; i++)
	{
		if (tasksched_prepared->entries[i].xid == xid)
			return &tasksched_prepared->entries[i];
	}
	return NULL;
}

/* Use a free entry.  Returns false if there is none. */
static bool
add_prepared(TransactionId xid, const Wake *wake)
{
	PreparedXact *entry = find_prepared(InvalidTransactionId);

	Assert(LWLockHeldByMeInMode(tasksched_shared->lock, LW_EXCLUSIVE));
	if (entry == NULL && tasksched_prepared->end < tasksched_max_prepared())
		entry = &tasksched_prepared->entries[tasksched_prepared->end++];
	if (entry == NULL)
		return false;
	entry->xid = xid;
	entry->dboid = MyDatabaseId;
	entry->wake = *wake;
	pg_atomic_fetch_add_u32(&tasksched_prepared->count, 1);
	return true;
}

static void
remove_prepared(PreparedXact *entry)
{
	Assert(LWLockHeldByMeInMode(tasksched_shared->lock, LW_EXCLUSIVE));
	entry->xid = InvalidTransactionId;
	while (tasksched_prepared->end > 0 && !TransactionIdIsValid(tasksched_prepared->entries[tasksched_prepared->end - 1].xid))
		tasksched_prepared->end--;

	/*
	 * last: a process that reads 0 without the lock relies on the schedulers
	 * having been woken
	 */
	pg_atomic_fetch_sub_u32(&tasksched_prepared->count, 1);
}

/*
 * Note the wake-ups of the current transaction, which is about to be prepared
 */
void
tasksched_prepared_add(TransactionId xid, const Wake *wake)
{
	bool		done;

	if (tasksched_prepared == NULL)
		return;					/* the server will refuse to prepare it */
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	done = add_prepared(xid, wake);
	LWLockRelease(tasksched_shared->lock);
	if (!done)
		elog(ERROR, "too many prepared transactions");
}

/*
 * In a scheduler: must it note the transactions that were prepared before the
 * server started?
 */
bool
tasksched_prepared_wanted(void)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	result = tasksched_prepared != NULL && !tasksched_my_database->prepared_known;
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/*
 * In a scheduler: note these transactions, which are prepared in its database.
 * One that has no entry yet may have done anything, even created the
 * extension.
 */
void
tasksched_prepared_learn(const TransactionId *xids, int n)
{
	const Wake	anything = {
		.flags = WAKE_SCAN | WAKE_CHECK,
		.run_at = DT_NOEND,
		.create = true,
		.waiters = PG_UINT64_MAX
	};
	bool		done = true;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < n && done; i++)
		done = find_prepared(xids[i]) != NULL || add_prepared(xids[i], &anything);
	tasksched_my_database->prepared_known = done;
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Copy the next transactions that are prepared in this database.  Returns
 * their number, 0 at the end.
 */
int
tasksched_prepared_copy(int *from, TransactionId *xids, int max)
{
	int			n = 0;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	for (; *from < tasksched_prepared->end && n < max; (*from)++)
	{
		const PreparedXact *entry = &tasksched_prepared->entries[*from];

		if (TransactionIdIsValid(entry->xid) && entry->dboid == MyDatabaseId)
			xids[n++] = entry->xid;
	}
	LWLockRelease(tasksched_shared->lock);
	return n;
}

/*
 * A prepared transaction has ended: send its wake-ups, unless another process
 * has
 */
void
tasksched_prepared_tell(TransactionId xid)
{
	PreparedXact *entry;
	uint64		waiters = 0;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	entry = find_prepared(xid);
	if (entry != NULL)
	{
		const Wake *wake = &entry->wake;
		TaskDatabase *db = wake->create ? tasksched_find_or_add_known(entry->dboid) : tasksched_find_database(entry->dboid);

		if (db != NULL && wake->flags != 0)
		{
			tasksched_add_wake(db, wake->flags, wake->run_at);
			tasksched_set_scheduler_latch(db);
		}
		if (wake->new_databases)
		{
			tasksched_shared->new_databases = true;
			tasksched_wake_launcher();
		}
		waiters = wake->waiters;
		remove_prepared(entry);
	}
	LWLockRelease(tasksched_shared->lock);
	if (waiters != 0)
		tasksched_waiters_tell(waiters);
}

/* Remove the entry of a transaction that could not be prepared after all */
void
tasksched_prepared_forget(TransactionId xid)
{
	PreparedXact *entry;

	if (tasksched_prepared == NULL)
		return;
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	entry = find_prepared(xid);
	if (entry != NULL)
		remove_prepared(entry);
	LWLockRelease(tasksched_shared->lock);
}
