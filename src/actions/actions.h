/*
 * actions.h
 *	  Actions: finding the function of an action, and calling it.
 */
#ifndef TASKSCHED_ACTIONS_H
#define TASKSCHED_ACTIONS_H

#include "base/types.h"

/* ----------
 * action.c: which function an action names, and whether it can be an action
 * ----------
 */

/* Why a function cannot be an action */
typedef enum Unfit
{
	UNFIT_NOT,					/* it can be one */
	UNFIT_MISSING,
	UNFIT_AGGREGATE,
	UNFIT_WINDOW,
	UNFIT_SET,
	UNFIT_TRIGGER,
	UNFIT_SIGNATURE
} Unfit;

extern Unfit tasksched_action_unfit(Oid function, Action *action);
extern bool tasksched_action_is_there(const Action *action);
extern char *tasksched_action_signature(Oid function);
extern Oid	tasksched_action_find(const char *name);
extern void tasksched_action_check(Oid function, const char *name);
extern char *tasksched_action_blocked(const char *name, Action *found);

/* ----------
 * call.c: calling the function of an action
 * ----------
 */
extern void tasksched_action_call(const Action *action, Datum task, Datum params, bool params_null,
								  bool first_launch, Outcome *outcome, MemoryContext cxt);

/* ----------
 * blocked.c: why a due task can't run
 * ----------
 */
extern char *tasksched_task_blocked(const char *action, Oid owner, bool foreign, Action *found);

#endif							/* TASKSCHED_ACTIONS_H */
