/*
 * internal.h
 *	  Declarations shared by the files of this folder: the shared memory
 *	  itself.
 */
#ifndef TASKSCHED_SHARED_INTERNAL_H
#define TASKSCHED_SHARED_INTERNAL_H

#include "port/atomics.h"
#include "storage/condition_variable.h"

#include "shared/shared.h"

/*
 * The number of condition variables for waiters.  A waiter sleeps on the one
 * that the id of its task hashes to.
 */
#define WAITER_BUCKETS 64

/*
 * A database that has the extension, or is probed for it.  Fields are written
 * under the exclusive lock, except the two atomics, for which the shared lock
 * is enough.
 */
typedef struct TaskDatabase
{
	DatabaseInfo info;			/* copy_database() fills in the rest */
	Latch	   *latch;			/* the scheduler's, NULL = none */
	bool		yield;			/* the scheduler is asked to make room */
	bool		remove_at_exit; /* remove the entry when the scheduler exits */
	bool		prepared_known; /* transactions prepared before the start are
								 * noted */

	pg_atomic_uint32 wake;		/* WAKE_* bits that the scheduler has not seen */
	pg_atomic_uint64 wake_run_at;	/* earliest due time that came with them */
} TaskDatabase;

typedef struct SharedState
{
	LWLock	   *lock;

	Latch	   *launcher_latch; /* NULL = no launcher */
	bool		new_databases;	/* pg_database has changed */
	TimestampTz shortage_until; /* end of the shortage of background workers */
	TimestampTz shortage_logged;
	TimestampTz no_process_logged;
	TimestampTz no_room_logged;

	TaskDatabase databases[TASKSCHED_MAX_DATABASES];
	ConditionVariable waiters[WAITER_BUCKETS];
	TaskSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* The wake-ups to send at the end of a transaction */
typedef struct Wake
{
	int			flags;			/* for the scheduler of the database */
	TimestampTz run_at;			/* earliest due time, DT_NOEND = none */
	bool		create;			/* the database is certain to have the
								 * extension */
	bool		new_databases;	/* for the launcher: pg_database has changed */
	uint64		waiters;		/* bits of tasksched_waiters_bit() */
} Wake;

/* A prepared transaction, and the wake-ups to send when it has ended */
typedef struct PreparedXact
{
	TransactionId xid;			/* invalid = unused entry */
	Oid			dboid;
	Wake		wake;
} PreparedXact;

typedef struct PreparedXacts
{
	pg_atomic_uint32 count;		/* entries in use; read without the lock */
	int			end;			/* all entries in use come before this one */
	PreparedXact entries[FLEXIBLE_ARRAY_MEMBER];
} PreparedXacts;

/* ----------
 * memory.c: the shared memory and its set-up
 * ----------
 */
extern SharedState *tasksched_shared;
extern PreparedXacts *tasksched_prepared;	/* NULL if
											 * max_prepared_transactions is 0 */

extern int	tasksched_max_prepared(void);

/* ----------
 * databases.c: the entries of the databases
 * ----------
 */
extern TaskDatabase *tasksched_my_database; /* in a scheduler */

extern void tasksched_wake_launcher(void);
extern TaskDatabase *tasksched_find_database(Oid dboid);
extern TaskDatabase *tasksched_find_or_create_database(Oid dboid);
extern TaskDatabase *tasksched_find_or_add_known(Oid dboid);
extern void tasksched_add_wake(TaskDatabase *db, int flags, TimestampTz run_at);
extern void tasksched_set_scheduler_latch(TaskDatabase *db);
extern bool tasksched_is_paused(TaskDatabase *db);

/* ----------
 * slots.c: the slots of workers
 * ----------
 */
extern bool tasksched_end_idle_workers(Oid dboid);
extern void tasksched_free_abandoned_slots(Oid dboid);

/* ----------
 * prepared.c: prepared transactions
 * ----------
 */
extern bool tasksched_prepared_any(void);
extern void tasksched_prepared_add(TransactionId xid, const Wake *wake);
extern void tasksched_prepared_learn(const TransactionId *xids, int n);
extern int	tasksched_prepared_copy(int *from, TransactionId *xids, int max);
extern void tasksched_prepared_tell(TransactionId xid);
extern void tasksched_prepared_forget(TransactionId xid);

/* ----------
 * crash.c: the crash board
 * ----------
 */
extern void tasksched_crash_create(int nslots);
extern void tasksched_crash_begin(LWLock *lock);
extern void tasksched_crash_attach(int slot);
extern void tasksched_crash_detach(void);
extern void tasksched_crash_arm(const TaskRef *task);
extern void tasksched_crash_disarm(void);

#endif							/* TASKSCHED_SHARED_INTERNAL_H */
