/*
 * internal.h
 *	  What the files of this folder share: the shared memory itself.
 */
#ifndef TASKSCHED_SHARED_INTERNAL_H
#define TASKSCHED_SHARED_INTERNAL_H

#include "port/atomics.h"
#include "storage/condition_variable.h"

#include "shared/shared.h"

/* Waiters sleep on the condition variable that the id of their task hashes to */
#define WAITER_BUCKETS 64

/*
 * A database that has the extension.  Written under the exclusive lock, but
 * for the two atomics, for which the shared lock does.
 */
typedef struct TaskDatabase
{
	DatabaseInfo info;			/* but for what copy_database() finds out */
	Latch	   *latch;			/* of the scheduler, NULL = none */
	bool		yield;			/* the launcher wants the scheduler's place */
	bool		forget;			/* the entry goes with the scheduler */
	bool		prepared_known; /* what was prepared before the server started is noted */

	pg_atomic_uint32 wake;		/* WAKE_* bits not yet seen by the scheduler */
	pg_atomic_uint64 wake_run_at;	/* earliest due time that came with them */
} TaskDatabase;

typedef struct SharedState
{
	LWLock	   *lock;

	Latch	   *launcher_latch; /* NULL = no launcher */
	bool		new_databases;	/* pg_database has changed */
	TimestampTz shortage_until; /* background workers were short lately */
	TimestampTz shortage_logged;
	TimestampTz no_process_logged;
	TimestampTz no_room_logged;

	TaskDatabase databases[TASKSCHED_MAX_DATABASES];
	ConditionVariable waiters[WAITER_BUCKETS];
	TaskSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* What is to be told at the end of a transaction */
typedef struct Wake
{
	int			flags;			/* to the scheduler of its database */
	TimestampTz run_at;			/* likewise; DT_NOEND = none */
	bool		create;			/* the database surely has the extension */
	bool		new_databases;	/* to the launcher */
	uint64		waiters;		/* see tasksched_waiters_bit() */
} Wake;

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

/* ----------
 * memory.c
 * ----------
 */
extern SharedState *tasksched_shared;
extern PreparedXacts *tasksched_prepared;	/* NULL if the server allows for none */

extern int	tasksched_max_prepared(void);

/* ----------
 * databases.c
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
 * slots.c
 * ----------
 */
extern bool tasksched_end_idle_workers(Oid dboid);
extern void tasksched_free_abandoned_slots(Oid dboid);

/* ----------
 * prepared.c
 * ----------
 */
extern bool tasksched_prepared_any(void);
extern void tasksched_prepared_add(TransactionId xid, const Wake *wake);
extern void tasksched_prepared_learn(const TransactionId *xids, int n);
extern int	tasksched_prepared_copy(int *from, TransactionId *xids, int max);
extern void tasksched_prepared_tell(TransactionId xid);
extern void tasksched_prepared_forget(TransactionId xid);

/* ----------
 * crash.c
 * ----------
 */
extern void tasksched_crash_create(int nslots);
extern void tasksched_crash_begin(LWLock *lock);
extern void tasksched_crash_attach(int slot);
extern void tasksched_crash_detach(void);
extern void tasksched_crash_arm(const TaskRef *task);
extern void tasksched_crash_disarm(void);

#endif							/* TASKSCHED_SHARED_INTERNAL_H */
