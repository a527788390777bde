/*
 * internal.h
 *	  What the files of the worker share: the launch that this process is at.
 */
#ifndef TASKSCHED_WORKER_INTERNAL_H
#define TASKSCHED_WORKER_INTERNAL_H

#include "base/types.h"
#include "store/store.h"
#include "worker/worker.h"

/*
 * Changes to its own task that an action has made by update_task().  A new
 * entry starts as a copy of the one outside of it.  A result or an error that
 * differs from the outer one's is the entry's own to free, since an action may
 * stage any number of times.
 */
typedef struct Staged
{
	SubTransactionId subid;
	bool		scheduled;		/* the outcome, unless the action says otherwise */
	TimestampTz run_at;			/* with scheduled; DT_NOEND = now */
	bool		dirty;			/* result and error are not stored yet */
	Jsonb	   *result;			/* NULL = as it was read */
	char	   *error;
	struct Staged *outer;
} Staged;

/* The launch that this worker is at */
typedef struct Launch
{
	bool		in_action;		/* the second transaction is under way */
	const Action *action;		/* what it calls */
	bool		finishing;		/* the action has returned: store the outcome */
	bool		committing;		/* callbacks of a commit or abort are being called */
	bool		has_committed;	/* a procedure, on its way */
	bool		superseded;		/* the fence has failed */
	bool		bookkeeping;	/* our own statements have begun, and not come to their end */
	ErrorData  *own_error;		/* what they raised; NULL if that could not be kept */
	TaskRef		ref;
	TaskRow		row;
	Outcome		returned;		/* what the action has returned */
	Outcome		outcome;		/* what the launch comes to */
	Staged		committed;		/* as of the last commit */
	Staged	   *staged;			/* since then, innermost subtransaction first */
	bool		session_is_reset;	/* since the launch has ended */
} Launch;

/* ----------
 * session.c
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
 * staged.c
 * ----------
 */
extern Launch tasksched_launch;
extern MemoryContext tasksched_launch_cxt;	/* reset after each launch */

extern void tasksched_launch_init(void);
extern Staged *tasksched_staged_now(void);
extern void tasksched_staged_committed(void);
extern void tasksched_staged_aborted(void);

/* ----------
 * commit.c
 * ----------
 */
extern void tasksched_commit_init(void);
extern void tasksched_be_first_at_commit(void);
extern int	tasksched_lift_lock_timeout(void);

/* ----------
 * launch.c
 * ----------
 */
extern void tasksched_run_task(const TaskRef *task, Action *action);

#endif							/* TASKSCHED_WORKER_INTERNAL_H */
