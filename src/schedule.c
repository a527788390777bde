/*
 * schedule.c
 *	  When something runs next: pure functions of their arguments.
 */
#include "postgres.h"

#include "tasksched.h"

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
 * Delay of the next launch after so many launches in a row that ended before
 * the action began or in our bookkeeping: 1 s, doubling up to 1 min.
 */
int64
tasksched_setback_delay(int setbacks)
{
	if (setbacks < 1)
		return 0;
	if (setbacks > 6)
		return SETBACK_CAP_US;
	return Min(SETBACK_BASE_US << (setbacks - 1), SETBACK_CAP_US);
}
