/*
 * waiters.c
 *	  Waiters: sessions in wait_for_task().
 *
 * Each waiter sleeps on the condition variable that the id of its task hashes
 * to.
 */
#include "postgres.h"

#include "storage/condition_variable.h"
#include "utils/wait_event.h"

#include "shared/internal.h"
#include "shared/shared.h"

/*
 * The bucket of a task, as a bit.  A transaction collects the bits of its
 * tasks.
 */
uint64
tasksched_waiters_bit(const pg_uuid_t *id)
{
	/* the last byte of a version 7 UUID is random */
	return UINT64CONST(1) << (id->data[UUID_LEN - 1] % WAITER_BUCKETS);
}

static ConditionVariable *
waiters_of(const pg_uuid_t *id)
{
	return &tasksched_shared->waiters[id->data[UUID_LEN - 1] % WAITER_BUCKETS];
}

/* Wake the waiters in these buckets */
void
tasksched_waiters_tell(uint64 bits)
{
	for (int i = 0; i < WAITER_BUCKETS; i++)
	{
		if (bits & (UINT64CONST(1) << i))
			ConditionVariableBroadcast(&tasksched_shared->waiters[i]);
	}
}

void
tasksched_waiters_prepare(const pg_uuid_t *id)
{
	ConditionVariablePrepareToSleep(waiters_of(id));
}

/* Sleep until the bucket is woken.  Returns false at the timeout. */
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
