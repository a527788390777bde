/*
 * api.h
 *	  What the SQL functions share.
 */
#ifndef TASKSCHED_API_H
#define TASKSCHED_API_H

/* ----------
 * admin.c: SQL functions for admins
 * ----------
 */
extern void tasksched_check_action_name(const char *name);
extern void tasksched_warn_if_not_preloaded(void);

#endif							/* TASKSCHED_API_H */
