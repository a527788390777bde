/*
 * schedulers.c
 *	  How a scheduler takes and leaves its database, with the slots that
 *	  only it can free.
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

/*
 * Remove an entry.  No scheduler will come to free the slots of the database,
 * so free them now.
 */
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
	/* keep it if there is a new reason, which may be CREATE EXTENSION */
	if (tasksched_my_database->remove_at_exit && pg_atomic_read_u32(&tasksched_my_database->wake) == 0)
		remove_database(tasksched_my_database);
	tasksched_my_database = NULL;
	tasksched_wake_launcher();
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Become the scheduler of a database.  Returns false if it has one, or there
 * is no room for another database.
 */
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
		db->remove_at_exit = false;
		db->info.clean_exit = false;
		db->info.terminated = false;
		db->info.lack = LACK_NOTHING;
		db->info.busy = true;	/* until it has reported */
		tasksched_my_database = db;
		result = true;
	}
	LWLockRelease(tasksched_shared->lock);
	if (result)
	{
		tasksched_watch_sigterm();

		/*
		 * runs after the connection has ended, since a command that needs the
		 * database waits for this
		 */
		on_shmem_exit(database_detach, 0);
	}
	return result;
}

/*
 * In the launcher: a scheduler is about to be started.  "attached" will say
 * whether it came.  Returns false if there is no room for another database.
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
 * Remove the entry of a database that was dropped, takes no connections or has
 * lost the extension.  With if_not_woken, keep it if there is a reason that
 * the scheduler has not seen, because that may be CREATE EXTENSION.  An entry
 * with a scheduler can't be used for another database, so that scheduler is
 * terminated and removes the entry as it exits.
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
			db->remove_at_exit = true;
			if (db->info.pid != MyProcPid)
				kill(db->info.pid, SIGTERM);
		}
	}
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Terminate the scheduler and the idle workers of a database.  Its other
 * workers exit as soon as they are idle.  Returns true if there were processes
 * to terminate.  The caller repeats this until it returns false, because a
 * process that was starting may have arrived meanwhile.
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
