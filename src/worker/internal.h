/*
 * internal.h
 *	  Declarations shared by the files of the worker.
 */
#ifndef TASKSCHED_WORKER_INTERNAL_H
#define TASKSCHED_WORKER_INTERNAL_H

#include "base/types.h"
#include "store/store.h"
#include "worker/worker.h"

/*
 * What an action has staged, that is, the changes to its own task that it has
 * made by update_task().  There is an entry for each subtransaction that
 * staged something.  A new entry is a copy of the enclosing one, so it has all
 * that is staged at that level.
 *
 * An entry shares its result and error with the enclosing one until it stages
 * its own.  Those that differ from the enclosing entry's belong to it, and are
 * freed with it, since an action may stage any number of times.
 */
typedef struct Staged
{
	SubTransactionId subid;
	bool		scheduled;		/* the outcome, unless the action returns one */
	TimestampTz run_at;			/* if scheduled; DT_NOEND = now */
	bool		dirty;			/* result and error are not stored yet */
	Jsonb	   *result;			/* NULL = none was staged */
	char	   *error;			/* NULL = none was staged */
	struct Staged *outer;		/* the enclosing entry */
} Staged;

/* The current launch of this worker */
typedef struct Launch
{
	bool		in_action;		/* the action's transaction is under way */
	const Action *action;		/* the function that it calls */
	bool		finishing;		/* the next commit stores the outcome */
	bool		committing;		/* from our callback before a commit to the
								 * end of the transaction */
	bool		has_committed;	/* a commit of the action has succeeded */
	bool		superseded;		/* the launch no longer holds its task */
	bool		bookkeeping;	/* our own statements run, or have failed */
	ErrorData  *own_error;		/* their error; NULL if it could not be copied */
	TaskRef		ref;
	TaskRow		row;
	Outcome		returned;		/* what the action has returned */
	Outcome		outcome;		/* what is stored as the outcome of the launch */
	Staged		committed;		/* what was staged before the last commit */
	Staged	   *staged;			/* what was staged since, innermost first */
	bool		session_is_reset;	/* after the launch */
} Launch;

/* ----------
 * session.c: the session of a worker
 * ----------
 */
extern void tasksched_session_connect(const WorkerArgs *args);
extern Oid	tasksched_session_owner(void);
extern bool tasksched_session_role_changed(void);
extern bool tasksched_session_is_stale(void);
extern bool tasksched_session_is_stateful(void);
extern bool tasksched_session_has_temporary_objects(void);
extern void tasksched_session_reset(void);

/* ----------
 * staged.c: the current launch, and what its action stages
 * ----------
 */
extern Launch tasksched_launch;
extern MemoryContext tasksched_launch_cxt;	/* reset after each launch */

extern void tasksched_launch_init(void);
extern Staged *tasksched_staged_now(void);
extern void tasksched_staged_committed(void);
extern void tasksched_staged_aborted(void);

/* ----------
 * commit.c: storing the outcome in the action's own transaction
 * ----------
 */
extern void tasksched_commit_init(void);
extern void tasksched_be_first_at_commit(void);
extern int	tasksched_lift_lock_timeout(void);

/* ----------
 * launch.c: one launch of a task
 * ----------
 */
extern void tasksched_run_task(const TaskRef *task, Action *action);

#endif							/* TASKSCHED_WORKER_INTERNAL_H */
