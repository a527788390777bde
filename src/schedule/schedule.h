/*
 * schedule.h
 *	  When something happens next: pure functions of their arguments.
 */
#ifndef TASKSCHED_SCHEDULE_H
#define TASKSCHED_SCHEDULE_H

#include "datatype/timestamp.h"

/* ----------
 * delay.c: moments and delays
 * ----------
 */
extern bool tasksched_is_ahead(TimestampTz moment, TimestampTz now, int64 at_most);
extern int64 tasksched_setback_delay(int setbacks); /* us */

#endif							/* TASKSCHED_SCHEDULE_H */
