/*
 * shortage.c
 *	  Shortages of background workers, processes and entries: remember them,
 *	  and log them from time to time.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "schedule/schedule.h"
#include "shared/internal.h"
#include "shared/shared.h"

/* How long a shortage of background workers is remembered */
#define SHORTAGE_US (10 * USECS_PER_SEC)

/*
 * The time between two log messages about a shortage, from all processes
 * together
 */
#define SHORTAGE_LOG_US (600 * USECS_PER_SEC)

/* Is it time to log a shortage again? */
static bool
may_log(TimestampTz *logged, TimestampTz now)
{
	Assert(LWLockHeldByMeInMode(tasksched_shared->lock, LW_EXCLUSIVE));
	if (tasksched_is_ahead(*logged + SHORTAGE_LOG_US, now, SHORTAGE_LOG_US))
		return false;
	*logged = now;
	return true;
}

/*
 * A background worker could not be registered.  From now on the databases take
 * turns, until no registration has failed for SHORTAGE_US.
 */
void
tasksched_shortage_begin(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		log_it;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	if (!tasksched_is_ahead(tasksched_shared->shortage_until, now, SHORTAGE_US))
		tasksched_wake_launcher();
	tasksched_shared->shortage_until = now + SHORTAGE_US;
	log_it = may_log(&tasksched_shared->shortage_logged, now);
	LWLockRelease(tasksched_shared->lock);

	if (log_it)
		ereport(LOG,
				(errmsg("tasksched has no free background worker slot; tasks wait"),
				 errhint("Consider increasing max_worker_processes (currently %d).",
						 max_worker_processes)));
}

/*
 * A background worker was registered, but the postmaster could not start a
 * process for it.
 */
void
tasksched_log_no_process(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		log_it;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	log_it = may_log(&tasksched_shared->no_process_logged, now);
	LWLockRelease(tasksched_shared->lock);

	if (log_it)
		ereport(LOG,
				(errmsg("tasksched could not have a process started by the server; tasks wait"),
				 errhint("Consider raising the operating system's limit on the number of processes (ulimit -u) of the server's user.")));
}

/* Is there a shortage of background workers? */
bool
tasksched_shortage(void)
{
	bool		result;

	LWLockAcquire(tasksched_shared->lock, LW_SHARED);
	result = tasksched_is_ahead(tasksched_shared->shortage_until, GetCurrentTimestamp(), SHORTAGE_US);
	LWLockRelease(tasksched_shared->lock);
	return result;
}

/* There is no entry for another database. */
void
tasksched_log_no_room(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		log_it;

	LWLockAcquire(tasksched_shared->lock, LW_EXCLUSIVE);
	log_it = may_log(&tasksched_shared->no_room_logged, now);
	LWLockRelease(tasksched_shared->lock);

	if (log_it)
		ereport(LOG,
				(errmsg("tasksched has no room for another database"),
				 errdetail("The tasks of at most %d databases can be run.", TASKSCHED_MAX_DATABASES)));
}
