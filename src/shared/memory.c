/*
 * memory.c
 *	  The shared memory of tasksched: its size and its set-up.
 *
 * Shared memory is a cache of the tables, and may vanish at any moment.  After
 * every crash of a server process, the postmaster starts with fresh, empty
 * memory.  The schedulers then find out from the tables what was going on.
 *
 * One LWLock protects all of it.  (A second one protects the list of suspects,
 * see crash.c.)  It is taken only in this folder, and never held across a call
 * that can wait or raise an error.  No other lock is taken under it.
 *
 * It does not protect the condition variables, which have locks of their own.
 * The two atomics of a TaskDatabase may be changed under the shared lock.  The
 * number of prepared transactions is read without the lock.
 *
 * To set the latch of another process, or to send it a signal, hold the lock.
 * That keeps its slot or entry from passing on to another process.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "shared/internal.h"
#include "shared/shared.h"

SharedState *tasksched_shared = NULL;
PreparedXacts *tasksched_prepared = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/*
 * The number of worker slots.  At most max_worker_processes workers are alive,
 * but a dead one keeps its slot until its task is put back.
 */
int
tasksched_slot_count(void)
{
	return 2 * max_worker_processes;
}

static Size
shmem_size(void)
{
	return add_size(offsetof(SharedState, slots),
					mul_size(tasksched_slot_count(), sizeof(TaskSlot)));
}

/*
 * The number of entries for prepared transactions.  Besides the prepared ones,
 * each process may be about to prepare one, or have just ended one.
 */
int
tasksched_max_prepared(void)
{
	return max_prepared_xacts > 0 ? max_prepared_xacts + MaxBackends : 0;
}

static Size
prepared_size(void)
{
	return add_size(offsetof(PreparedXacts, entries), mul_size(tasksched_max_prepared(), sizeof(PreparedXact)));
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(shmem_size());
	if (tasksched_max_prepared() > 0)
		RequestAddinShmemSpace(prepared_size());
	RequestNamedLWLockTranche("tasksched", 2);
	tasksched_crash_create(tasksched_slot_count());
}

static void
create_prepared(void)
{
	bool		found;

	if (tasksched_max_prepared() == 0)
		return;
	tasksched_prepared = ShmemInitStruct("tasksched prepared transactions", prepared_size(), &found);
	if (!found)
		memset(tasksched_prepared, 0, prepared_size());
}

static void
create_shared(void)
{
	LWLockPadded *locks;
	bool		found;

	tasksched_shared = ShmemInitStruct("tasksched", shmem_size(), &found);
	if (found)
		return;
	memset(tasksched_shared, 0, shmem_size());
	locks = GetNamedLWLockTranche("tasksched");
	tasksched_shared->lock = &locks[0].lock;
	for (int i = 0; i < TASKSCHED_MAX_DATABASES; i++)
	{
		pg_atomic_init_u32(&tasksched_shared->databases[i].wake, 0);
		pg_atomic_init_u64(&tasksched_shared->databases[i].wake_run_at, DT_NOEND);
	}
	for (int i = 0; i < WAITER_BUCKETS; i++)
		ConditionVariableInit(&tasksched_shared->waiters[i]);
	tasksched_crash_begin(&locks[1].lock);
}

static void
shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	create_prepared();
	create_shared();
	LWLockRelease(AddinShmemInitLock);
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
	return tasksched_shared != NULL;
}
