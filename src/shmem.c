/*
 * shmem.c
 *	  What the processes of tasksched share: databases, worker slots, waiters.
 *
 * Shared memory is a cache of the tables that may vanish at any instant: every
 * crash of a server process makes the postmaster start with fresh, empty
 * memory, and the schedulers find out from the tables what was going on.
 *
 * Lock rules: there is one LWLock, taken in this file alone and never across a
 * call that can wait or throw.  No lock of the server's is taken under it.  It
 * protects everything but the two atomics of a TaskDatabase, which may be changed
 * while holding it in shared mode, the number of prepared transactions, and the
 * condition variables, which look after themselves.  A latch of another
 * process is set, and a signal is sent, while holding the lock, since that is
 * what keeps the slot or the entry from passing on to another process.
 */
#include "postgres.h"

#include <signal.h>

#include "access/twophase.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "tasksched.h"

/* Waiters sleep on the condition variable that their task's id hashes to */
#define WAITER_BUCKETS 64

/* A launch that is terminated so soon after it began is not resumed at once */
#define CUT_SHORT_US USECS_PER_SEC

/* How long a shortage of background workers is remembered */
#define SHORTAGE_US (10 * USECS_PER_SEC)

/* How often one is logged, whoever finds it */
#define SHORTAGE_LOG_US (600 * USECS_PER_SEC)

typedef struct TaskSharedState
{
	LWLock	   *lock;

	Latch	   *launcher_latch;	/* NULL = no launcher */
	bool		new_databases;	/* pg_database has changed */
	TimestampTz shortage_until;	/* background workers were short lately */
	TimestampTz shortage_logged;
	TimestampTz no_process_logged;
	TimestampTz no_room_logged;

	TaskDatabase databases[TASKSCHED_MAX_DATABASES];
	ConditionVariable waiters[WAITER_BUCKETS];
	TaskSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} TaskSharedState;

/* A prepared transaction, and what is to be told when it has ended */
typedef struct PreparedXact
{
	TransactionId xid;			/* invalid = unused entry */
	Oid			dboid;
	Wake		wake;
} PreparedXact;

typedef struct PreparedXacts
{
	pg_atomic_uint32 count;		/* entries in use; read without the lock */
	int			end;			/* no entry is in use from here on */
	PreparedXact entries[FLEXIBLE_ARRAY_MEMBER];
} PreparedXacts;

static TaskSharedState *shared = NULL;
static PreparedXacts *prepared = NULL;	/* NULL if the server allows for none */

static TaskSlot *my_slot = NULL;			/* in a worker */
static TaskDatabase *my_database = NULL;	/* in a scheduler */
static volatile sig_atomic_t terminated = false;	/* in both: SIGTERM came */

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/*
 * Number of worker slots.  No more workers than max_worker_processes can be
 * alive, but dead ones keep their slots until their tasks are put back.
 */
int
tasksched_slot_count(void)
{
	return 2 * max_worker_processes;
}

static Size
shmem_size(void)
{
	return add_size(offsetof(TaskSharedState, slots),
					mul_size(tasksched_slot_count(), sizeof(TaskSlot)));
}

/*
 * Each entry in use is that of a prepared transaction, or of one that a process is
 * about to prepare or has just ended.
 */
static int
max_prepared(void)
{
	return max_prepared_xacts > 0 ? max_prepared_xacts + MaxBackends : 0;
}

static Size
prepared_size(void)
{
	return add_size(offsetof(PreparedXacts, entries), mul_size(max_prepared(), sizeof(PreparedXact)));
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shmem_size());
	if (max_prepared() > 0)
		RequestAddinShmemSpace(prepared_size());
	RequestNamedLWLockTranche("tasksched", 2);
	tasksched_crash_create();
}

static void
shmem_startup(void)
{
	LWLockPadded *locks;
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	if (max_prepared() > 0)
	{
		prepared = ShmemInitStruct("tasksched prepared transactions", prepared_size(), &found);
		if (!found)
			memset(prepared, 0, prepared_size());
	}
	shared = ShmemInitStruct("tasksched", shmem_size(), &found);
	if (found)
		return;

	memset(shared, 0, shmem_size());
	locks = GetNamedLWLockTranche("tasksched");
	shared->lock = &locks[0].lock;
	for (int i = 0; i < TASKSCHED_MAX_DATABASES; i++)
	{
		pg_atomic_init_u32(&shared->databases[i].wake, 0);
		pg_atomic_init_u64(&shared->databases[i].wake_run_at, DT_NOEND);
	}
	for (int i = 0; i < WAITER_BUCKETS; i++)
		ConditionVariableInit(&shared->waiters[i]);
	tasksched_crash_begin(&locks[1].lock);
}

void
tasksched_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

bool
tasksched_preloaded(void)
{
	return shared != NULL;
}

/* SIGTERM in a scheduler or a worker: remember that the end is not its doing */
static void
handle_sigterm(SIGNAL_ARGS)
{
	terminated = true;
	die(PASS_SIGNAL_ARGS);
}

/* ----------
 * The launcher
 * ----------
 */

static void
launcher_detach(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher_latch = NULL;
	LWLockRelease(shared->lock);
}

void
tasksched_launcher_attach(void)
{
	before_shmem_exit(launcher_detach, 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher_latch = MyLatch;
	LWLockRelease(shared->lock);
}

bool
tasksched_launcher_is_there(void)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_SHARED);
	result = shared->launcher_latch != NULL;
	LWLockRelease(shared->lock);
	return result;
}

static void
wake_launcher(void)
{
	Assert(LWLockHeldByMe(shared->lock));
	if (shared->launcher_latch != NULL)
		SetLatch(shared->launcher_latch);
}

/* Wake the launcher; with new_databases, make it read pg_database again */
void
tasksched_launcher_wake(bool new_databases)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (new_databases)
		shared->new_databases = true;
	wake_launcher();
	LWLockRelease(shared->lock);
}

bool
tasksched_launcher_take_new_databases(void)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	result = shared->new_databases;
	shared->new_databases = false;
	LWLockRelease(shared->lock);
	return result;
}

/* Is it time to log a shortage again? */
static bool
may_log(TimestampTz *logged, TimestampTz now)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));
	if (tasksched_is_ahead(*logged + SHORTAGE_LOG_US, now, SHORTAGE_LOG_US))
		return false;
	*logged = now;
	return true;
}

/*
 * A background worker could not be registered: the databases take turns from
 * now on, until that has not happened for a while.
 */
void
tasksched_shortage_begin(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		tell;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (!tasksched_is_ahead(shared->shortage_until, now, SHORTAGE_US))
		wake_launcher();
	shared->shortage_until = now + SHORTAGE_US;
	tell = may_log(&shared->shortage_logged, now);
	LWLockRelease(shared->lock);

	if (tell)
		ereport(LOG,
				(errmsg("tasksched has no free background worker slot; tasks wait"),
				 errhint("Consider increasing max_worker_processes (currently %d).",
						 max_worker_processes)));
}

/*
 * A background worker was registered, but the server could not start a process
 * for it.
 */
void
tasksched_log_no_process(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		tell;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	tell = may_log(&shared->no_process_logged, now);
	LWLockRelease(shared->lock);

	if (tell)
		ereport(LOG,
				(errmsg("tasksched could not have a process started by the server; tasks wait"),
				 errhint("Consider raising the operating system's limit on the number of processes (ulimit -u) of the server's user.")));
}

bool
tasksched_shortage(void)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_SHARED);
	result = tasksched_is_ahead(shared->shortage_until, GetCurrentTimestamp(), SHORTAGE_US);
	LWLockRelease(shared->lock);
	return result;
}

/* ----------
 * Databases and their schedulers
 * ----------
 */

/* Move a slot to another state; the one place where that happens */
static void
set_slot_state(TaskSlot *slot, SlotState state)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));
	Assert(state == SLOT_STARTING ? slot->state == SLOT_FREE :
		   state == SLOT_IDLE ? slot->state == SLOT_STARTING ||
		   slot->state == SLOT_READY || slot->state == SLOT_RUNNING :
		   state == SLOT_READY ? slot->state == SLOT_IDLE || slot->state == SLOT_RUNNING :
		   state == SLOT_RUNNING ? slot->state == SLOT_READY :
		   state == SLOT_DEAD ? slot->state == SLOT_READY || slot->state == SLOT_RUNNING :
		   slot->state != SLOT_READY && slot->state != SLOT_RUNNING);
	slot->state = state;
	slot->since = GetCurrentTimestamp();
	if (state == SLOT_FREE || state == SLOT_DEAD)
	{
		slot->pid = 0;
		slot->latch = NULL;
	}
	if (state == SLOT_FREE)
		slot->dboid = InvalidOid;
}

static TaskDatabase *
find_database(Oid dboid)
{
	Assert(LWLockHeldByMe(shared->lock));
	for (int i = 0; i < TASKSCHED_MAX_DATABASES; i++)
	{
		if (shared->databases[i].dboid == dboid)
			return &shared->databases[i];
	}
	return NULL;
}

static TaskDatabase *
find_or_create_database(Oid dboid)
{
	TaskDatabase *db = find_database(dboid);

	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));
	if (db != NULL)
		return db;
	db = find_database(InvalidOid);
	if (db == NULL)
		return NULL;
	db->dboid = dboid;
	db->pid = 0;
	db->latch = NULL;
	db->yield = false;
	db->forget = false;
	db->known = false;
	db->came = true;
	db->ready = false;
	db->clean_exit = true;
	db->terminated = false;
	db->prepared_known = false;
	pg_atomic_write_u32(&db->wake, 0);
	pg_atomic_write_u64(&db->wake_run_at, (uint64) DT_NOEND);
	db->next_due = DT_NOEND;
	db->last_scan = 0;
	db->busy = false;
	db->held = false;
	db->paused = false;
	db->nlocked = 0;
	db->lack = LACK_NOTHING;
	memset(db->failing_owners, 0, sizeof(db->failing_owners));
	db->last_error[0] = '\0';
	return db;
}

/* Note a reason to look at the tasks of a database */
static void
add_wake(TaskDatabase *db, int flags, TimestampTz run_at)
{
	uint64		old = pg_atomic_read_u64(&db->wake_run_at);

	while ((TimestampTz) old > run_at &&
		   !pg_atomic_compare_exchange_u64(&db->wake_run_at, &old, (uint64) run_at))
		;
	pg_atomic_fetch_or_u32(&db->wake, flags);
}

static void
set_scheduler_latch(TaskDatabase *db)
{
	if (db->latch != NULL)
		SetLatch(db->latch);
	else
		wake_launcher();
}

/* The entry of a database that surely has the extension; NULL if there is no room */
static TaskDatabase *
find_or_add_known(Oid dboid)
{
	TaskDatabase *db = find_or_create_database(dboid);

	if (db != NULL)
		db->known = true;
	return db;
}

/*
 * Wake the scheduler of a database, or the launcher if it has none.  A
 * database that is not known yet is added if the caller is sure that it has
 * the extension.
 */
void
tasksched_database_wake(Oid dboid, bool create, int flags, TimestampTz run_at)
{
	TaskDatabase *db;

	LWLockAcquire(shared->lock, LW_SHARED);
	db = find_database(dboid);
	if (create && (db == NULL || !db->known))
	{
		LWLockRelease(shared->lock);
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		db = find_or_add_known(dboid);
	}
	if (db != NULL)
	{
		add_wake(db, flags, run_at);
		set_scheduler_latch(db);
	}
	LWLockRelease(shared->lock);
}

/*
 * Remove an entry, and free the slots that are the scheduler's to free, since no
 * other one may come.  A worker that is still on its way finds that out.
 */
static void
remove_database(TaskDatabase *db)
{
	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &shared->slots[i];

		if (slot->dboid == db->dboid &&
			(slot->state == SLOT_DEAD || (slot->state == SLOT_STARTING && slot->pid == 0)))
			set_slot_state(slot, SLOT_FREE);
	}
	db->dboid = InvalidOid;
}

static void
database_detach(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_database->pid = 0;
	my_database->latch = NULL;
	my_database->ready = false;
	my_database->terminated = terminated;
	/* unless there has been a reason since, such as CREATE EXTENSION */
	if (my_database->forget && pg_atomic_read_u32(&my_database->wake) == 0)
		remove_database(my_database);
	my_database = NULL;
	wake_launcher();
	LWLockRelease(shared->lock);
}

/*
 * In the launcher: a scheduler is about to be started; "came" will say whether
 * it was.  False if there is no room for one more database.
 */
bool
tasksched_database_expect(Oid dboid)
{
	TimestampTz now = GetCurrentTimestamp();
	TaskDatabase *db;
	bool		tell = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_or_create_database(dboid);
	if (db != NULL)
		db->came = false;
	else
		tell = may_log(&shared->no_room_logged, now);
	LWLockRelease(shared->lock);

	if (tell)
		ereport(LOG,
				(errmsg("tasksched has no room for another database"),
				 errdetail("The tasks of at most %d databases can be run.", TASKSCHED_MAX_DATABASES)));
	return db != NULL;
}

/* In the launcher: why no scheduler could be started */
void
tasksched_database_set_lack(Oid dboid, Lack lack)
{
	TaskDatabase *db;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_database(dboid);
	if (db != NULL)
		db->lack = lack;
	LWLockRelease(shared->lock);
}

/* Become the scheduler of a database; false if it has one, or there is no room */
bool
tasksched_database_attach(Oid dboid)
{
	TaskDatabase *db;
	bool		result = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_or_create_database(dboid);
	if (db != NULL)
		db->came = true;
	if (db != NULL && db->pid == 0)
	{
		db->pid = MyProcPid;
		db->latch = MyLatch;
		db->yield = false;
		db->forget = false;
		db->clean_exit = false;
		db->terminated = false;
		db->lack = LACK_NOTHING;
		db->busy = true;		/* until it has had a look */
		my_database = db;
		result = true;
	}
	LWLockRelease(shared->lock);
	if (result)
	{
		pqsignal(SIGTERM, handle_sigterm);
		/* after the connection has gone: a command that needs the database waits for this */
		on_shmem_exit(database_detach, 0);
	}
	return result;
}

/*
 * In a scheduler: take the reasons that have come up since the last call.  After
 * WAKE_PAUSE the database is paused until a scan, for which that asks as well, has
 * read the table.
 */
int
tasksched_database_take_wake(TimestampTz *run_at)
{
	int			flags;

	LWLockAcquire(shared->lock, LW_SHARED);
	flags = pg_atomic_fetch_and_u32(&my_database->wake, WAKE_PAUSE);
	*run_at = (TimestampTz) pg_atomic_exchange_u64(&my_database->wake_run_at, (uint64) DT_NOEND);
	LWLockRelease(shared->lock);
	if (flags & WAKE_PAUSE)
	{
		/* not between the one and the other is it not paused */
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		my_database->paused = true;
		pg_atomic_fetch_and_u32(&my_database->wake, ~WAKE_PAUSE);
		LWLockRelease(shared->lock);
	}
	return flags;
}

/*
 * May no task be launched?  That is so from the commit of pause_scheduler() on,
 * before the scheduler has seen it.
 */
static bool
is_paused(TaskDatabase *db)
{
	Assert(LWLockHeldByMe(shared->lock));
	return db->paused || (pg_atomic_read_u32(&db->wake) & WAKE_PAUSE) != 0;
}

/* The same, in a process that is connected to the database; true if it is not known */
bool
tasksched_database_is_paused(void)
{
	TaskDatabase *db;
	bool		result;

	LWLockAcquire(shared->lock, LW_SHARED);
	db = my_database ? my_database : find_database(MyDatabaseId);
	result = db == NULL || is_paused(db);
	LWLockRelease(shared->lock);
	return result;
}

/* In a scheduler: what the table says */
void
tasksched_database_set_paused(bool paused)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_database->paused = paused;
	LWLockRelease(shared->lock);
}

/* In a scheduler: have more come up? */
bool
tasksched_database_is_woken(void)
{
	return pg_atomic_read_u32(&my_database->wake) != 0 || tasksched_database_must_yield();
}

/* In a scheduler: leave a reason behind for the next one */
void
tasksched_database_put_wake(int flags, TimestampTz run_at)
{
	LWLockAcquire(shared->lock, LW_SHARED);
	add_wake(my_database, flags, run_at);
	LWLockRelease(shared->lock);
}

bool
tasksched_database_must_yield(void)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_SHARED);
	result = my_database->yield;
	LWLockRelease(shared->lock);
	return result;
}

/* In a scheduler: it is connected, and the database has the extension */
void
tasksched_database_set_known(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_database->known = true;
	my_database->ready = true;
	LWLockRelease(shared->lock);
}

/* In a scheduler: it is about to exit because that is right */
void
tasksched_database_set_clean_exit(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_database->clean_exit = true;
	LWLockRelease(shared->lock);
}

/* In the launcher: ask a scheduler to make room for another database's */
void
tasksched_database_set_yield(Oid dboid, bool yield)
{
	TaskDatabase *db;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_database(dboid);
	if (db != NULL && db->yield != yield)
	{
		db->yield = yield;
		if (db->latch != NULL)
			SetLatch(db->latch);
	}
	LWLockRelease(shared->lock);
}

/* In the launcher: end this scheduler, and leave a reason behind for the next one */
void
tasksched_database_end(Oid dboid, int pid)
{
	TaskDatabase *db;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_database(dboid);
	if (db != NULL && db->pid == pid)
	{
		if (db->known)
			add_wake(db, WAKE_SCAN, DT_NOEND);
		kill(pid, SIGTERM);
	}
	LWLockRelease(shared->lock);
}

/* In a scheduler: publish its state */
void
tasksched_database_report(TimestampTz next_due, TimestampTz last_scan, bool busy, bool held,
						  int nlocked, Lack lack, const Oid *failing_owners)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_database->next_due = next_due;
	my_database->last_scan = last_scan;
	my_database->busy = busy;
	my_database->held = held;
	my_database->nlocked = nlocked;
	my_database->lack = lack;
	memcpy(my_database->failing_owners, failing_owners, sizeof(my_database->failing_owners));
	LWLockRelease(shared->lock);
}

/* Show an error of the scheduler, also in databases of other encodings */
void
tasksched_database_report_error(const char *message)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	strlcpy(my_database->last_error, message, LAST_ERROR_LEN);
	tasksched_text_mask_beyond_ascii(my_database->last_error);
	LWLockRelease(shared->lock);
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

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_database(dboid);
	if (db != NULL && !(if_not_woken && pg_atomic_read_u32(&db->wake) != 0))
	{
		if (db->pid == 0)
			remove_database(db);
		else
		{
			db->forget = true;
			if (db->pid != MyProcPid)
				kill(db->pid, SIGTERM);
		}
	}
	LWLockRelease(shared->lock);
}

/* Make the idle workers of a database go, and the others as soon as they are idle */
static bool
end_idle_workers(Oid dboid)
{
	bool		occupied = false;

	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &shared->slots[i];

		if (slot->dboid != dboid)
			continue;
		slot->quit = true;
		if (slot->state == SLOT_STARTING && slot->pid == 0)
			set_slot_state(slot, SLOT_FREE);	/* it finds that out when it comes */
		else if (slot->state == SLOT_STARTING || slot->state == SLOT_IDLE)
		{
			kill(slot->pid, SIGTERM);
			occupied = true;
		}
	}
	return occupied;
}

/* Likewise, for who does not hold the lock */
void
tasksched_slots_end_idle(Oid dboid)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	(void) end_idle_workers(dboid);
	LWLockRelease(shared->lock);
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

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_database(dboid);
	if (db != NULL && db->pid != 0)
	{
		kill(db->pid, SIGTERM);
		occupied = true;
	}
	occupied |= end_idle_workers(dboid);
	LWLockRelease(shared->lock);
	return occupied;
}

static void
copy_database(TaskDatabase *copy, TaskDatabase *db)
{
	memcpy(copy, db, sizeof(TaskDatabase));
	copy->paused = is_paused(db);
}

/* A copy of all entries in use */
TaskDatabase *
tasksched_databases_copy(int *n)
{
	TaskDatabase *copy;
	int			count = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < TASKSCHED_MAX_DATABASES; i++)
		count += OidIsValid(shared->databases[i].dboid);
	LWLockRelease(shared->lock);

	/* memory is allocated without the lock; what comes in between is left out */
	copy = palloc(Max(count, 1) * sizeof(TaskDatabase));
	*n = 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < TASKSCHED_MAX_DATABASES && *n < count; i++)
	{
		if (OidIsValid(shared->databases[i].dboid))
			copy_database(&copy[(*n)++], &shared->databases[i]);
	}
	LWLockRelease(shared->lock);
	return copy;
}

bool
tasksched_database_copy(Oid dboid, TaskDatabase *copy)
{
	TaskDatabase *db;

	LWLockAcquire(shared->lock, LW_SHARED);
	db = find_database(dboid);
	if (db != NULL)
		copy_database(copy, db);
	LWLockRelease(shared->lock);
	return db != NULL;
}

/*
 * Is there a reason for a scheduler, but none yet that could have looked at it?
 * Of a copy.
 */
bool
tasksched_database_is_starting(const TaskDatabase *db)
{
	if (db->pid != 0)
		return !db->ready;
	return !db->known || !db->clean_exit || db->next_due <= GetCurrentTimestamp() ||
		pg_atomic_read_u32(unconstify(pg_atomic_uint32 *, &db->wake)) != 0;
}

/* ----------
 * Prepared transactions
 * ----------
 */

bool
tasksched_prepared_any(void)
{
	return prepared != NULL && pg_atomic_read_u32(&prepared->count) > 0;
}

static PreparedXact *
find_prepared(TransactionId xid)
{
	Assert(LWLockHeldByMe(shared->lock));
	for (int i = 0; i < prepared->end; i++)
	{
		if (prepared->entries[i].xid == xid)
			return &prepared->entries[i];
	}
	return NULL;
}

/* Use a free entry; false if there is none */
static bool
add_prepared(TransactionId xid, const Wake *wake)
{
	PreparedXact *entry = find_prepared(InvalidTransactionId);

	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));
	if (entry == NULL && prepared->end < max_prepared())
		entry = &prepared->entries[prepared->end++];
	if (entry == NULL)
		return false;
	entry->xid = xid;
	entry->dboid = MyDatabaseId;
	entry->wake = *wake;
	pg_atomic_fetch_add_u32(&prepared->count, 1);
	return true;
}

static void
remove_prepared(PreparedXact *entry)
{
	Assert(LWLockHeldByMeInMode(shared->lock, LW_EXCLUSIVE));
	entry->xid = InvalidTransactionId;
	while (prepared->end > 0 && !TransactionIdIsValid(prepared->entries[prepared->end - 1].xid))
		prepared->end--;
	/* last: who finds none need not wait for the lock, and has been told of all */
	pg_atomic_fetch_sub_u32(&prepared->count, 1);
}

/* The current transaction is about to be prepared */
void
tasksched_prepared_add(TransactionId xid, const Wake *wake)
{
	bool		done;

	if (prepared == NULL)
		return;					/* the server is about to refuse */
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	done = add_prepared(xid, wake);
	LWLockRelease(shared->lock);
	if (!done)
		elog(ERROR, "too many prepared transactions");
}

/* In a scheduler: is it to find out what was prepared before the server started? */
bool
tasksched_prepared_wanted(void)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_SHARED);
	result = prepared != NULL && !my_database->prepared_known;
	LWLockRelease(shared->lock);
	return result;
}

/*
 * In a scheduler: these transactions are prepared in its database.  One that is
 * not known may have done anything, and created the extension.
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

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < n && done; i++)
		done = find_prepared(xids[i]) != NULL || add_prepared(xids[i], &anything);
	my_database->prepared_known = done;
	LWLockRelease(shared->lock);
}

/* The next transactions that are prepared in this database; 0 at the end */
int
tasksched_prepared_copy(int *from, TransactionId *xids, int max)
{
	int			n = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (; *from < prepared->end && n < max; (*from)++)
	{
		const PreparedXact *entry = &prepared->entries[*from];

		if (TransactionIdIsValid(entry->xid) && entry->dboid == MyDatabaseId)
			xids[n++] = entry->xid;
	}
	LWLockRelease(shared->lock);
	return n;
}

/* A prepared transaction has ended: tell, unless somebody has */
void
tasksched_prepared_tell(TransactionId xid)
{
	PreparedXact *entry;
	uint64		waiters = 0;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	entry = find_prepared(xid);
	if (entry != NULL)
	{
		const Wake *wake = &entry->wake;
		TaskDatabase *db = wake->create ? find_or_add_known(entry->dboid) : find_database(entry->dboid);

		if (db != NULL && wake->flags != 0)
		{
			add_wake(db, wake->flags, wake->run_at);
			set_scheduler_latch(db);
		}
		if (wake->new_databases)
		{
			shared->new_databases = true;
			wake_launcher();
		}
		waiters = wake->waiters;
		remove_prepared(entry);
	}
	LWLockRelease(shared->lock);
	if (waiters != 0)
		tasksched_waiters_tell(waiters);
}

/* A transaction could not be prepared after all */
void
tasksched_prepared_forget(TransactionId xid)
{
	PreparedXact *entry;

	if (prepared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	entry = find_prepared(xid);
	if (entry != NULL)
		remove_prepared(entry);
	LWLockRelease(shared->lock);
}

/* ----------
 * Worker slots: the scheduler's side
 * ----------
 */

/* Is it still the same reservation? */
static bool
slot_is(TaskSlot *slot, uint32 generation, SlotState state)
{
	return slot->generation == generation && slot->state == state;
}

static void
wake_slot_scheduler(TaskSlot *slot)
{
	TaskDatabase *db = find_database(slot->dboid);

	if (db != NULL)
	{
		add_wake(db, WAKE_DUE, DT_NOEND);
		set_scheduler_latch(db);
	}
}

/*
 * If no slot is free, take the oldest one of a dead worker of another database,
 * whose scheduler can't put its task back.  That one will find the task with a
 * scan, and resume it without knowing how it has ended.
 */
static void
make_slot_free(void)
{
	TaskSlot   *oldest = NULL;
	TaskDatabase *db;

	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &shared->slots[i];

		if (slot->state == SLOT_FREE)
			return;
		if (slot->state == SLOT_DEAD && slot->dboid != MyDatabaseId &&
			(oldest == NULL || slot->since < oldest->since))
			oldest = slot;
	}
	if (oldest == NULL)
		return;
	db = find_database(oldest->dboid);
	if (db != NULL)
	{
		add_wake(db, WAKE_SCAN, DT_NOEND);
		set_scheduler_latch(db);
	}
	set_slot_state(oldest, SLOT_FREE);
}

/* Reserve a slot for a worker of this database and owner; -1 if there is none */
int
tasksched_slot_reserve(Oid owner, uint32 *generation)
{
	int			result = -1;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	make_slot_free();
	for (int i = 0; i < tasksched_slot_count() && result < 0; i++)
	{
		TaskSlot   *slot = &shared->slots[i];

		if (slot->state != SLOT_FREE)
			continue;
		set_slot_state(slot, SLOT_STARTING);
		*generation = ++slot->generation;
		slot->dboid = MyDatabaseId;
		slot->owner = owner;
		slot->came = false;
		slot->quit = false;
		result = i;
	}
	LWLockRelease(shared->lock);
	return result;
}

/* Give up a reservation whose worker has not come; false if it has, after all */
bool
tasksched_slot_release(int i, uint32 generation)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	result = slot_is(&shared->slots[i], generation, SLOT_STARTING);
	if (result)
		set_slot_state(&shared->slots[i], SLOT_FREE);
	LWLockRelease(shared->lock);
	return result;
}

/* Hand a claimed task to an idle worker; false if it went away meanwhile, or by a pause */
bool
tasksched_slot_assign(int i, uint32 generation, const TaskRef *task,
					  const char *action, const Action *function)
{
	TaskSlot   *slot = &shared->slots[i];
	bool		result = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot_is(slot, generation, SLOT_IDLE) && !slot->quit && !is_paused(my_database))
	{
		set_slot_state(slot, SLOT_READY);
		slot->task = *task;
		strlcpy(slot->action, action, sizeof(slot->action));
		slot->function = *function;
		slot->superseded = false;
		slot->end = END_NOT_BEGUN;
		SetLatch(slot->latch);
		result = true;
	}
	LWLockRelease(shared->lock);
	return result;
}

/* The task of a dead worker has been put back */
void
tasksched_slot_reaped(int i, uint32 generation)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot_is(&shared->slots[i], generation, SLOT_DEAD))
		set_slot_state(&shared->slots[i], SLOT_FREE);
	LWLockRelease(shared->lock);
}

/*
 * Signal the worker that runs this very launch, or keep it from beginning it;
 * false if neither is called for any more.
 */
bool
tasksched_slot_interrupt(int i, const TaskRef *task, int signo)
{
	TaskSlot   *slot = &shared->slots[i];
	bool		result = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if ((slot->state == SLOT_READY || slot->state == SLOT_RUNNING) &&
		slot->task.launch == task->launch &&
		tasksched_same_task(&slot->task.id, &task->id))
	{
		if (slot->state == SLOT_READY)
			slot->superseded = true;
		else
			kill(slot->pid, signo);
		result = slot->state == SLOT_RUNNING;
	}
	LWLockRelease(shared->lock);
	return result;
}

static void
quit_slot(TaskSlot *slot)
{
	if (slot->quit)
		return;
	slot->quit = true;
	if (slot->latch != NULL)
		SetLatch(slot->latch);
}

/* Make a worker exit as soon as it is idle */
void
tasksched_slot_quit(int i)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	quit_slot(&shared->slots[i]);
	LWLockRelease(shared->lock);
}

/* Make the workers of a database exit as soon as they are idle; with terminate, at once */
void
tasksched_slots_quit(Oid dboid, bool terminate)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < tasksched_slot_count(); i++)
	{
		TaskSlot   *slot = &shared->slots[i];

		if (slot->state == SLOT_FREE || slot->dboid != dboid)
			continue;
		if (terminate && slot->state == SLOT_DEAD)
		{
			set_slot_state(slot, SLOT_FREE);
			continue;
		}
		quit_slot(slot);
		if (terminate && slot->pid != 0)
			kill(slot->pid, SIGTERM);
	}
	LWLockRelease(shared->lock);
}

/*
 * A copy of all slots, in which those of other databases look free (unless
 * dboid is InvalidOid).
 */
TaskSlot *
tasksched_slots_copy(Oid dboid, int *n)
{
	TaskSlot   *copy = palloc(tasksched_slot_count() * sizeof(TaskSlot));

	*n = tasksched_slot_count();
	LWLockAcquire(shared->lock, LW_SHARED);
	memcpy(copy, shared->slots, *n * sizeof(TaskSlot));
	LWLockRelease(shared->lock);
	if (OidIsValid(dboid))
	{
		for (int i = 0; i < *n; i++)
		{
			if (copy[i].dboid != dboid)
				copy[i].state = SLOT_FREE;
		}
	}
	return copy;
}

/* ----------
 * Worker slots: the worker's side
 * ----------
 */

/*
 * How a worker that is in its action has ended.  An end that nobody asked for
 * (FATAL, exit()) counts as a crash of the task, but not if the postmaster has
 * died: then all processes end, and a scheduler that has not noticed yet would
 * count it.  An action that terminates its own worker must not be launched in a
 * hot loop.
 */
static SlotEnd
end_in_action(const TaskSlot *slot)
{
	if (!terminated && PostmasterIsAlive())
		return END_CRASHED;
	return tasksched_is_ahead(slot->since + CUT_SHORT_US, GetCurrentTimestamp(), CUT_SHORT_US) ?
		END_CUT_SHORT : END_TERMINATED;
}

/* The slot of a process that runs a task; -1 if it does not */
int
tasksched_slot_of(int pid)
{
	int			found = -1;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < tasksched_slot_count() && found < 0; i++)
	{
		if (shared->slots[i].state == SLOT_RUNNING && shared->slots[i].pid == pid)
			found = i;
	}
	LWLockRelease(shared->lock);
	return found;
}

/* Leave the slot */
static void
slot_detach(int code, Datum arg)
{
	TaskSlot   *slot = my_slot;
	uint64		waiters = 0;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot != NULL)
	{
		/* its outcome may be committed, and nobody told */
		if (slot->state == SLOT_READY || slot->state == SLOT_RUNNING)
			waiters = tasksched_waiters_bit(&slot->task.id);
		if (slot->state == SLOT_RUNNING && slot->end == END_CRASHED)
			slot->end = end_in_action(slot);
		wake_slot_scheduler(slot);
		if (slot->state == SLOT_READY || slot->state == SLOT_RUNNING)
			set_slot_state(slot, SLOT_DEAD);
		/* a task that nobody will put back: the database or the extension is gone */
		if (slot->state != SLOT_DEAD || find_database(slot->dboid) == NULL)
			set_slot_state(slot, SLOT_FREE);
		tasksched_crash_detach();
	}
	LWLockRelease(shared->lock);
	if (waiters != 0)
		tasksched_waiters_tell(waiters);

	/* one more free place: a database may be waiting for it */
	if (tasksched_shortage())
		tasksched_launcher_wake(false);
}

/* Take the reserved slot; false if the reservation is no longer valid */
bool
tasksched_slot_attach(int i, uint32 generation)
{
	TaskSlot   *slot = &shared->slots[i];
	bool		result = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot_is(slot, generation, SLOT_STARTING))
	{
		/* not IDLE yet: that comes with the first tasksched_slot_take() */
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		my_slot = slot;
		result = true;
	}
	LWLockRelease(shared->lock);
	if (result)
	{
		tasksched_crash_attach(i);
		pqsignal(SIGTERM, handle_sigterm);
		on_shmem_exit(slot_detach, 0);	/* see tasksched_database_attach() */
	}
	return result;
}

/* The worker is there: a task may be handed to it */
void
tasksched_slot_announce(void)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	set_slot_state(my_slot, SLOT_IDLE);
	wake_slot_scheduler(my_slot);
	LWLockRelease(shared->lock);
}

/* Is there a task to run?  Says also whether the worker shall exit if not. */
bool
tasksched_slot_take(TaskRef *task, Action *function, bool *quit)
{
	bool		result = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->came = true;
	if (my_slot->state == SLOT_READY)
	{
		*task = my_slot->task;
		*function = my_slot->function;
		result = true;
	}
	*quit = my_slot->quit;
	LWLockRelease(shared->lock);
	return result;
}

bool
tasksched_slot_must_quit(void)
{
	bool		result;

	LWLockAcquire(shared->lock, LW_SHARED);
	result = my_slot->quit;
	LWLockRelease(shared->lock);
	return result;
}

/*
 * The action is about to be called, for this launch; false if it shall not,
 * since the task was cancelled after it was read, or the database is paused: then
 * the task is to be put back.
 */
bool
tasksched_slot_begin(const TaskRef *task, bool *paused)
{
	TaskDatabase *db;
	bool		begun = false;

	tasksched_crash_arm(task);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = find_database(my_slot->dboid);
	*paused = !my_slot->superseded && db != NULL && is_paused(db);
	if (!my_slot->superseded && !*paused)
	{
		set_slot_state(my_slot, SLOT_RUNNING);
		my_slot->task = *task;
		my_slot->end = END_CRASHED;
		my_slot->has_progress = false;
		my_slot->done = my_slot->total = -1;
		my_slot->note[0] = '\0';
		begun = true;
	}
	LWLockRelease(shared->lock);
	if (!begun)
		tasksched_crash_disarm();
	return begun;
}

/* This launch's outcome is committed, and with it the claim of the next one */
void
tasksched_slot_proceed(const TaskRef *next)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	set_slot_state(my_slot, SLOT_READY);
	my_slot->task = *next;
	my_slot->superseded = false;
	my_slot->end = END_NOT_BEGUN;
	LWLockRelease(shared->lock);
	tasksched_crash_disarm();
}

/*
 * The task is no longer ours: its outcome is committed, or it was superseded.
 * With last, the worker takes no other one.
 */
void
tasksched_slot_settle(bool last)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	set_slot_state(my_slot, SLOT_IDLE);
	if (last)
		my_slot->quit = true;
	wake_slot_scheduler(my_slot);
	LWLockRelease(shared->lock);
	tasksched_crash_disarm();
}

/*
 * Leave the slot of an idle worker; false if a task was handed over meanwhile.
 */
bool
tasksched_slot_leave(void)
{
	TaskSlot   *slot = my_slot;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->state == SLOT_IDLE)
	{
		wake_slot_scheduler(slot);
		set_slot_state(slot, SLOT_FREE);
		tasksched_crash_detach();
		my_slot = NULL;
	}
	LWLockRelease(shared->lock);
	return my_slot == NULL;
}

/* Say how the worker would end if it ended now */
void
tasksched_slot_end(SlotEnd end)
{
	my_slot->end = end;			/* nobody else looks at it before DEAD */
	if (end != END_CRASHED)
		tasksched_crash_disarm();
}

/* Publish the progress of the task that this process runs */
void
tasksched_slot_progress(const int64 *done, const int64 *total, const char *note)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	my_slot->has_progress = true;
	if (done)
		my_slot->done = *done;
	if (total)
		my_slot->total = *total;
	if (note)
		strlcpy(my_slot->note, note, PROGRESS_NOTE_LEN);
	LWLockRelease(shared->lock);
}

/* ----------
 * Waiters: sessions in wait_for_task()
 * ----------
 */

/* The bucket of a task, as a bit to be collected over a transaction */
uint64
tasksched_waiters_bit(const pg_uuid_t *id)
{
	/* the last byte of a version 7 UUID is random */
	return UINT64CONST(1) << (id->data[UUID_LEN - 1] % WAITER_BUCKETS);
}

static ConditionVariable *
waiters_of(const pg_uuid_t *id)
{
	return &shared->waiters[id->data[UUID_LEN - 1] % WAITER_BUCKETS];
}

void
tasksched_waiters_tell(uint64 bits)
{
	for (int i = 0; i < WAITER_BUCKETS; i++)
	{
		if (bits & (UINT64CONST(1) << i))
			ConditionVariableBroadcast(&shared->waiters[i]);
	}
}

void
tasksched_waiters_prepare(const pg_uuid_t *id)
{
	ConditionVariablePrepareToSleep(waiters_of(id));
}

/* Sleep until something happened in the bucket; false at the timeout */
bool
tasksched_waiters_sleep(const pg_uuid_t *id, long timeout_ms)
{
	return !ConditionVariableTimedSleep(waiters_of(id), timeout_ms, PG_WAIT_EXTENSION);
}

void
tasksched_waiters_leave(void)
{
	ConditionVariableCancelSleep();
}
