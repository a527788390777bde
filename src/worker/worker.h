/*
 * worker.h
 *	  The worker, and the task that this process runs.
 */
#ifndef TASKSCHED_WORKER_H
#define TASKSCHED_WORKER_H

#include "base/types.h"

/* ----------
 * worker.c: the process
 * ----------
 */

/* Arguments that a scheduler passes to a worker, in bgw_extra */
typedef struct WorkerArgs
{
	Oid			dboid;
	Oid			owner;
	bool		superuser;		/* owner's rolsuper; checked once connected */
	uint32		settings;		/* fingerprint from before the session starts */
	int			slot;
	uint32		generation;
} WorkerArgs;

extern PGDLLEXPORT void tasksched_worker_main(Datum arg);

/* ----------
 * session.c: the session of a worker
 * ----------
 */
extern uint32 tasksched_settings_fingerprint(Oid owner);

/* ----------
 * staged.c: the task that this process runs, as its action sees it
 * ----------
 */
extern bool tasksched_in_action(void);
extern bool tasksched_is_current_task(const pg_uuid_t *id);
extern bool tasksched_current_task_is_own(void);
extern void tasksched_stage_current_task(const Outcome *change);
extern Datum tasksched_current_task_datum(void);

#endif							/* TASKSCHED_WORKER_H */
