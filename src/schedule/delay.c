/*
 * delay.c
 *	  Moments and delays: pure functions of their arguments.
 */
#include "postgres.h"

#include "schedule/schedule.h"

#define SETBACK_BASE_US INT64CONST(1000000)
#define SETBACK_CAP_US (60 * SETBACK_BASE_US)

/*
 * Is this moment still ahead?  It was set, or moved, at most at_most
 * microseconds ahead.  If it is further ahead now, the clock has been set back
 * since, and the moment counts as reached.
 */
bool
tasksched_is_ahead(TimestampTz moment, TimestampTz now, int64 at_most)
{
	return moment > now && moment - now <= at_most;
}

/*
 * The delay before the next try after this many setbacks in a row: 1 s,
 * doubling up to 1 min.  A setback is a launch that ended before the action
 * began, soon after it began, or in our bookkeeping; also a worker that could
 * not start, or an error in the scheduler.
 */
int64
tasksched_setback_delay(int setbacks)
{
	return setbacks > 6 ? SETBACK_CAP_US : SETBACK_BASE_US << (setbacks - 1);
}
