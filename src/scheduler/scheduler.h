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

/* What the launcher tells a scheduler it starts (bgw_extra) */
typedef struct SchedulerArgs
{
	Oid			dboid;
	bool		look_only;		/* started just to have a look */
} SchedulerArgs;

extern PGDLLEXPORT void tasksched_scheduler_main(Datum arg);

#endif							/* TASKSCHED_SCHEDULER_H */
