/*
 * databases.c
 *	  The entries of the databases, and the latch of the launcher.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "shared/internal.h"
#include "shared/shared.h"

TaskDatabase *tasksched_my_database = NULL;

/* ----------
 * The launcher
 * ----------
 */

static void
launcher_detach(int code, Datum arg)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_shared->launcher_latch = NULL;
	LWLockRelease(tasksched_shared->lock);
}

void
tasksched_launcher_attach(void)
{
	before_shmem_exit(launcher_detach, 0);
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_shared->launcher_latch = MyLatch;
	LWLockRelease(tasksched_shared->lock);
}

bool
tasksched_launcher_is_there(void)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	result = tasksched_shared->launcher_latch != NULL;
	LWLockRelease(tasksched_shared->lock);
	return result;
}

void
tasksched_wake_launcher(void)
{
	Assert(LWLockHeldByMe(tasksched_shared->lock));
	if (tasksched_shared->launcher_latch != NULL)
		SetLatch(tasksched_shared->launcher_latch);
}

/* Wake the launcher.  With new_databases, make it read pg_database again. */
void
tasksched_launcher_wake(bool new_databases)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (new_databases)
		tasksched_shared->new_databases = true;
	tasksched_wake_launcher();
	LWLockRelease(tasksched_shared->lock);
}

bool
tasksched_launcher_take_new_databases(void)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	result = tasksched_shared->new_databases;
	tasksched_shared->new_databases = false;
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/* ----------
 * Entries
 * ----------
 */

TaskDatabase *
tasksched_find_database(Oid dboid)
{
	Assert(LWLockHeldByMe(tasksched_shared->lock));
	for (int i = 0; i < TASKSCHED_MAX_DATABASES; i++)
	{
		if (tasksched_shared->databases[i].info.dboid == dboid)
			return &tasksched_shared->databases[i];
	}
	return NULL;
}

TaskDatabase *
tasksched_find_or_create_database(Oid dboid)
{
	TaskDatabase *db = tasksched_find_database(dboid);

	Assert(LWLockHeldByMeInMode(tasksched_shared->lock, LW_EXCLUSIVE));
	if (db != NULL)
		return db;
	db = tasksched_find_database(InvalidOid);
	if (db == NULL)
		return NULL;
	memset(&db->info, 0, sizeof(DatabaseInfo));
	db->info.dboid = dboid;
	db->info.attached = true;
	db->info.clean_exit = true;
	db->info.next_due = DT_NOEND;
	db->latch = NULL;
	db->yield = false;
	db->remove_at_exit = false;
	db->prepared_known = false;
	pg_atomic_write_u32(&db->wake, 0);
	pg_atomic_write_u64(&db->wake_run_at, (uint64) DT_NOEND);
	return db;
}

/*
 * Note a reason to look at the tasks of a database.  The shared lock is
 * enough.
 */
void
tasksched_add_wake(TaskDatabase *db, int flags, TimestampTz run_at)
{
	uint64		old = pg_atomic_read_u64(&db->wake_run_at);

	while ((TimestampTz) old > run_at &&
		   !pg_atomic_compare_exchange_u64(&db->wake_run_at, &old, (uint64) run_at))
		;
	pg_atomic_fetch_or_u32(&db->wake, flags);
}

void
tasksched_set_scheduler_latch(TaskDatabase *db)
{
	if (db->latch != NULL)
		SetLatch(db->latch);
	else
		tasksched_wake_launcher();
}

/*
 * Find or add the entry of a database that is certain to have the extension.
 * NULL if there is no room.
 */
TaskDatabase *
tasksched_find_or_add_known(Oid dboid)
{
	TaskDatabase *db = tasksched_find_or_create_database(dboid);

	if (db != NULL)
		db->info.known = true;
	return db;
}

/*
 * Is the database paused, so that no task may be launched?  It is from the
 * commit of pause_scheduler() on, even before the scheduler has seen the
 * reason.
 */
bool
tasksched_is_paused(TaskDatabase *db)
{
	Assert(LWLockHeldByMe(tasksched_shared->lock));
	return db->info.paused || (pg_atomic_read_u32(&db->wake) & WAKE_PAUSE) != 0;
}

static DatabaseInfo
copy_database(TaskDatabase *db)
{
	DatabaseInfo copy = db->info;

	copy.woken = pg_atomic_read_u32(&db->wake) != 0;
	copy.paused = tasksched_is_paused(db);
	return copy;
}

/* ----------
 * Any process
 * ----------
 */

/*
 * Wake the scheduler of a database, or the launcher if there is no scheduler.
 * With "create", the caller is certain that the database has the extension,
 * and an entry is added if there is none yet.
 */
void
tasksched_database_wake(Oid dboid, bool create, int flags, TimestampTz run_at)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	db = tasksched_find_database(dboid);
	if (create && (db == NULL || !db->info.known))
	{
		LWLockRelease(tasksched_shared->lock);
		LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
		db = tasksched_find_or_add_known(dboid);
	}
	if (db != NULL)
	{
		tasksched_add_wake(db, flags, run_at);
		tasksched_set_scheduler_latch(db);
	}
	LWLockRelease(tasksched_shared->lock);
}

/*
 * Is the database that this process is connected to paused?  True also if it
 * has no entry.
 */
bool
tasksched_database_is_paused(void)
{
	TaskDatabase *db;
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	db = tasksched_my_database ? tasksched_my_database : tasksched_find_database(MyDatabaseId);
	result = db == NULL || tasksched_is_paused(db);
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/* Copy all entries in use */
DatabaseInfo *
tasksched_databases_copy(int *n)
{
	DatabaseInfo *copy;
	int			count = 0;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	for (int i = 0; i < TASKSCHED_MAX_DATABASES; i++)
		count += OidIsValid(tasksched_shared->databases[i].info.dboid);
	LWLockRelease(tasksched_shared->lock);

	/*
	 * allocate memory without the lock; an entry added meanwhile may be left
	 * out
	 */
	copy = palloc(Max(count, 1) * sizeof(DatabaseInfo));
	*n = 0;
	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	for (int i = 0; i < TASKSCHED_MAX_DATABASES && *n < count; i++)
	{
		if (OidIsValid(tasksched_shared->databases[i].info.dboid))
			copy[(*n)++] = copy_database(&tasksched_shared->databases[i]);
	}
	LWLockRelease(tasksched_shared->lock);
	return copy;
}

bool
tasksched_database_copy(Oid dboid, DatabaseInfo *copy)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	db = tasksched_find_database(dboid);
	if (db != NULL)
		*copy = copy_database(db);
	LWLockRelease(tasksched_shared->lock);
	return db != NULL;
}

/* Is a scheduler wanted, but none has had a look yet? */
bool
tasksched_database_is_starting(const DatabaseInfo *db)
{
	if (db->pid != 0)
		return !db->ready;
	return !db->known || !db->clean_exit || db->next_due <= GetCurrentTimestamp() || db->woken;
}

/* ----------
 * The launcher, about a database
 * ----------
 */

/* In the launcher: note why no scheduler can be started */
void
tasksched_database_set_lack(Oid dboid, Lack lack)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_database(dboid);
	if (db != NULL)
		db->info.lack = lack;
	LWLockRelease(tasksched_shared->lock);
}

/*
 * In the launcher: ask a scheduler to exit in favor of another database's, or
 * withdraw that
 */
void
tasksched_database_set_yield(Oid dboid, bool yield)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_database(dboid);
	if (db != NULL && db->yield != yield)
	{
		db->yield = yield;
		if (db->latch != NULL)
			SetLatch(db->latch);
	}
	LWLockRelease(tasksched_shared->lock);
}

/*
 * In the launcher: terminate this scheduler.  If the database has the
 * extension, make the next one scan.
 */
void
tasksched_database_end(Oid dboid, int pid)
{
	TaskDatabase *db;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	db = tasksched_find_database(dboid);
	if (db != NULL && db->info.pid == pid)
	{
		if (db->info.known)
			tasksched_add_wake(db, WAKE_SCAN, DT_NOEND);
		kill(pid, SIGTERM);
	}
	LWLockRelease(tasksched_shared->lock);
}

/* ----------
 * The scheduler, about its database
 * ----------
 */

/*
 * In a scheduler: take the reasons noted since the last call.  WAKE_PAUSE
 * turns into a pause of the database.  It lasts until the scan that
 * pause_scheduler() asks for at the same time has read the table.
 */
int
tasksched_database_take_wake(TimestampTz *run_at)
{
	int			flags;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	flags = pg_atomic_fetch_and_u32(&tasksched_my_database->wake, WAKE_PAUSE);
	*run_at = (TimestampTz) pg_atomic_exchange_u64(&tasksched_my_database->wake_run_at, (uint64) DT_NOEND);
	LWLockRelease(tasksched_shared->lock);
	if (flags & WAKE_PAUSE)
	{
		/* set the one before clearing the other, so the database stays paused */
		LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
		tasksched_my_database->info.paused = true;
		pg_atomic_fetch_and_u32(&tasksched_my_database->wake, ~WAKE_PAUSE);
		LWLockRelease(tasksched_shared->lock);
	}
	return flags;
}

/* In a scheduler: note what the table says */
void
tasksched_database_set_paused(bool paused)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_my_database->info.paused = paused;
	LWLockRelease(tasksched_shared->lock);
}

/* In a scheduler: is there a new reason to look, or a request to yield? */
bool
tasksched_database_is_woken(void)
{
	return pg_atomic_read_u32(&tasksched_my_database->wake) != 0 || tasksched_database_must_yield();
}

/* In a scheduler: note a reason for the next scheduler */
void
tasksched_database_put_wake(int flags, TimestampTz run_at)
{
	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	tasksched_add_wake(tasksched_my_database, flags, run_at);
	LWLockRelease(tasksched_shared->lock);
}

bool
tasksched_database_must_yield(void)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	result = tasksched_my_database->yield;
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/*
 * In a scheduler: note that it is connected and the database has the extension
 */
void
tasksched_database_set_known(void)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_my_database->info.known = true;
	tasksched_my_database->info.ready = true;
	LWLockRelease(tasksched_shared->lock);
}

/* In a scheduler: note that it exits of its own accord */
void
tasksched_database_set_clean_exit(void)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_my_database->info.clean_exit = true;
	LWLockRelease(tasksched_shared->lock);
}

/* In a scheduler: publish its state */
void
tasksched_database_report(TimestampTz next_due, TimestampTz last_scan, bool busy, bool held,
						  int nlocked, Lack lack, const Oid *failing_owners)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	tasksched_my_database->info.next_due = next_due;
	tasksched_my_database->info.last_scan = last_scan;
	tasksched_my_database->info.busy = busy;
	tasksched_my_database->info.held = held;
	tasksched_my_database->info.nlocked = nlocked;
	tasksched_my_database->info.lack = lack;
	memcpy(tasksched_my_database->info.failing_owners, failing_owners, sizeof(tasksched_my_database->info.failing_owners));
	LWLockRelease(tasksched_shared->lock);
}

/*
 * In a scheduler: publish an error.  It must be readable in databases of any
 * encoding.
 */
void
tasksched_database_report_error(const char *message)
{
	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	strlcpy(tasksched_my_database->info.last_error, message, LAST_ERROR_LEN);
	tasksched_text_mask_beyond_ascii(tasksched_my_database->info.last_error);
	LWLockRelease(tasksched_shared->lock);
}
