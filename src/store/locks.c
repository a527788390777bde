/*
 * locks.c
 *	  The locks that our statements take on our tables, before anything else.
 */
#include "postgres.h"

#include "storage/lmgr.h"
#include "utils/lsyscache.h"

#include "base/base.h"
#include "shared/shared.h"
#include "store/store.h"

/* Lock one of our tables, until the end of the transaction */
static void
lock_table(const char *table, LOCKMODE mode)
{
	LockRelationOid(get_relname_relid(table, tasksched_schema_oid()), mode);
}

/*
 * To be called before anything else by what changes tasks, and in an action also by
 * what reads them, since its end changes one: REINDEX would wait for the lock of
 * the reader, and keep the reader from the lock of a writer.  The order is that
 * of ALTER TABLE and TRUNCATE on tasks.
 *
 * Each statement looks at the extension's version after this: what was altered
 * while we waited for a lock is seen.
 */
void
tasksched_store_lock(bool finished_too)
{
	tasksched_extension_check();
	lock_table("tasks", AccessShareLock);
	lock_table("live", RowExclusiveLock);
	if (finished_too)
		lock_table("finished", RowExclusiveLock);
}

/* The same for what reads tasks */
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
