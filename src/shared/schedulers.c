/*
 * schedulers.c
 *	  Schedulers come to their databases and leave them, with what is in slots.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "shared/internal.h"
#include "shared/shared.h"

/* Remove an entry.  No other scheduler may come to free its slots. */
static void
remove_database(TaskDatabase *db)
{
	tasksched_free_abandoned_slots(db->info.dboid);
	db->info.dboid = InvalidOid;
}

static void
database_detach(int code, Datum arg)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_my_database->info.pid = 0;
	tasksched_my_database->latch = NULL;
	tasksched_my_database->info.ready = false;
	tasksched_my_database->info.terminated = tasksched_was_terminated();
	/* unless there has been a reason since, such as CREATE EXTENSION */
	if (tasksched_my_database->forget && pg_atomic_read_u32(&tasksched_my_database->wake) == 0)
		remove_database(tasksched_my_database);
	tasksched_my_database = NULL;
	tasksched_wake_launcher();
	LWLockRelease(tasksched_shared->lock);
}

/* Become the scheduler of a database; false if it has one, or there is no room */
bool
tasksched_database_attach(Oid dboid)
{
	TaskDatabase *db;
	bool		result = false;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_or_create_database(dboid);
	if (db != NULL)
		db->info.attached = true;
	if (db != NULL && db->info.pid == 0)
	{
		db->info.pid = MyProcPid;
		db->latch = MyLatch;
		db->yield = false;
		db->forget = false;
		db->info.clean_exit = false;
		db->info.terminated = false;
		db->info.lack = LACK_NOTHING;
		db->info.busy = true;		/* until it has had a look */
		tasksched_my_database = db;
		result = true;
	}
	LWLockRelease(tasksched_shared->lock);
	if (result)
	{
		tasksched_watch_sigterm();
		/* after the connection has gone: a command that needs the database waits for this */
		on_shmem_exit(database_detach, 0);
	}
	return result;
}

/*
 * In the launcher: a scheduler is about to be started; "attached" will say
 * whether it came.  False if there is no room for one more database.
 */
bool
tasksched_database_expect(Oid dboid)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_or_create_database(dboid);
	if (db != NULL)
		db->info.attached = false;
	LWLockRelease(tasksched_shared->lock);

	if (db == NULL)
		tasksched_log_no_room();
	return db != NULL;
}

/*
 * Forget a database that is gone, takes no connections or has lost the
 * extension.  With if_not_woken it stays if there is a reason that its scheduler
 * has not seen, since that may have been CREATE EXTENSION.  While it has a
 * scheduler, its entry can't be used for another one: that scheduler is asked to
 * leave, and removes the entry.
 */
void
tasksched_database_forget(Oid dboid, bool if_not_woken)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_database(dboid);
	if (db != NULL && !(if_not_woken && pg_atomic_read_u32(&db->wake) != 0))
	{
		if (db->info.pid == 0)
			remove_database(db);
		else
		{
			db->forget = true;
			if (db->info.pid != MyProcPid)
				kill(db->info.pid, SIGTERM);
		}
	}
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Make the scheduler and the idle workers of a database go, and the others as
 * soon as they are idle.  Returns whether any was there that has to go; to be
 * called until that is false, since one that was on its way may have come.
 */
bool
tasksched_database_clear(Oid dboid)
{
	TaskDatabase *db;
	bool		occupied = false;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_database(dboid);
	if (db != NULL && db->info.pid != 0)
	{
		kill(db->info.pid, SIGTERM);
		occupied = true;
	}
	occupied |= tasksched_end_idle_workers(dboid);
	LWLockRelease(tasksched_shared->lock);
	return occupied;
}
