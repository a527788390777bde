/*
 * settings.h
 *	  settings.c: our settings, and the server's that our processes pin.
 */
#ifndef TASKSCHED_SETTINGS_H
#define TASKSCHED_SETTINGS_H

extern bool tasksched_enabled;
extern int	tasksched_max_running_tasks;
extern int	tasksched_reconcile_interval;	/* ms */
extern int	tasksched_keep_finished_tasks;	/* s, -1 = forever */
extern int	tasksched_stuck_after;	/* s */
extern int	tasksched_worker_idle_timeout;	/* ms */
extern int	tasksched_scheduler_idle_timeout;	/* s */
extern int	tasksched_max_crashes;

extern void tasksched_define_settings(void);
extern void tasksched_pin_timeouts(void);
extern void tasksched_pin_transactions(void);

#endif							/* TASKSCHED_SETTINGS_H */
