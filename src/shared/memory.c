/*
 * memory.c
 *	  The shared memory of tasksched: its size and its set-up.
 *
 * Shared memory is a cache of the tables that may vanish at any instant.  Every
 * crash of a server process makes the postmaster start with fresh, empty memory,
 * and the schedulers find out from the tables what was going on.
 *
 * There is one LWLock for all of it, taken in this folder alone and never across
 * a call that can wait or raise an error.  No lock of the server's is taken under
 * it.  It protects everything but the two atomics of a TaskDatabase, which may
 * be changed while it is held in shared mode, the number of prepared
 * transactions, and the condition variables, which look after themselves.  The
 * latch of another process is set, and a signal is sent to it, under the lock: the
 * lock keeps the slot or the entry from passing on to another process.
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
	return add_size(offsetof(SharedState, slots),
					mul_size(tasksched_slot_count(), sizeof(TaskSlot)));
}

/*
 * Each entry in use is that of a prepared transaction, or of one that a process is
 * about to prepare or has just ended.
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
