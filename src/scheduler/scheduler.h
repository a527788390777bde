/*
 * scheduler.h
 *	  The scheduler of a database.
 */
#ifndef TASKSCHED_SCHEDULER_H
#define TASKSCHED_SCHEDULER_H

/* ----------
 * loop.c: the process
 * ----------
 */

/* Arguments that the launcher passes to a scheduler, in bgw_extra */
typedef struct SchedulerArgs
{
	Oid			dboid;
	bool		look_only;		/* exit at once if there is nothing to do */
} SchedulerArgs;

extern PGDLLEXPORT void tasksched_scheduler_main(Datum arg);

#endif							/* TASKSCHED_SCHEDULER_H */
