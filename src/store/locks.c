/*
 * locks.c
 *	  The locks on our tables, which our statements take before anything
 *	  else.
 */
#include "postgres.h"

#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/base.h"
#include "shared/shared.h"
#include "store/store.h"

/* Lock one of our tables until the end of the transaction */
static void
lock_table(const char *table, LOCKMODE mode)
{
	LockRelationOid(get_relname_relid(table, tasksched_schema_oid()), mode);
}

/* What has kept an action from our locks, since the last call of the next function */
static ErrorData *lock_error = NULL;

void
tasksched_store_forget_lock_error(void)
{
	if (lock_error != NULL)
		FreeErrorData(lock_error);
	lock_error = NULL;
}

const ErrorData *
tasksched_store_lock_error(void)
{
	return lock_error;
}

static void
lock_to_write(bool finished_too)
{
	tasksched_extension_check();
	lock_table("tasks", AccessShareLock);
	lock_table("live", RowExclusiveLock);
	if (finished_too)
		lock_table("finished", RowExclusiveLock);
}

/*
 * In an action: take the locks, and keep the error if that fails.  If the action
 * has read our tables by itself, it may meet REINDEX in a deadlock, which is no
 * failure of its own.
 */
static void
lock_in_action(bool finished_too)
{
	PG_TRY();
	{
		lock_to_write(finished_too);
	}
	PG_CATCH();
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		tasksched_store_forget_lock_error();
		lock_error = CopyErrorData();
		MemoryContextSwitchTo(old);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * Lock our tables for a transaction that changes tasks, before it does
 * anything else.  A transaction of an action that only reads tasks takes the
 * same locks, because the outcome of the action changes one at its end.  With
 * a reader's lock alone, it would deadlock with REINDEX, which waits for the
 * reader and makes the reader wait for the lock of a writer.  The order is
 * that of ALTER TABLE and TRUNCATE on tasks.
 *
 * Each statement checks the version of the extension after this, so it sees
 * what was altered while we waited for a lock.
 */
void
tasksched_store_lock(bool finished_too)
{
	if (tasksched_slot_is_running())
		lock_in_action(finished_too);
	else
		lock_to_write(finished_too);
}

/* The same for a transaction that reads tasks */
void
tasksched_store_lock_to_read(void)
{
	if (tasksched_slot_is_running())
	{
		tasksched_store_lock(true);
		return;
	}
	tasksched_extension_check();
	lock_table("tasks", AccessShareLock);
	lock_table("live", AccessShareLock);
	lock_table("finished", AccessShareLock);
}
