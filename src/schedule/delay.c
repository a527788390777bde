/*
 * delay.c
 *	  When something runs next: pure functions of their arguments.
 */
#include "postgres.h"

#include "schedule/schedule.h"

#define SETBACK_BASE_US INT64CONST(1000000)
#define SETBACK_CAP_US (60 * SETBACK_BASE_US)

/*
 * Is a moment still to come that was set, or moved, at most so long ahead?  If it
 * is further ahead, the clock has been set back since.
 */
bool
tasksched_is_ahead(TimestampTz moment, TimestampTz now, int64 at_most)
{
	return moment > now && moment - now <= at_most;
}

/*
 * Delay of the next launch after so many setbacks in a row (launches that ended
 * before the action began, right after it, or in our bookkeeping): 1 s, doubling
 * up to 1 min.
 */
int64
tasksched_setback_delay(int setbacks)
{
	return setbacks > 6 ? SETBACK_CAP_US : SETBACK_BASE_US << (setbacks - 1);
}
