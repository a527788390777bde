/*
 * store.h
 *	  The store: the only SQL on our tables.
 */
#ifndef TASKSCHED_STORE_H
#define TASKSCHED_STORE_H

#include "nodes/execnodes.h"
#include "nodes/lockoptions.h"
#include "storage/itemptr.h"
#include "utils/array.h"

#include "base/types.h"
#include "shared/shared.h"

/* ----------
 * spi.c: transactions of our own processes
 * ----------
 */
extern void tasksched_begin(void);
extern void tasksched_commit(void);

extern int	tasksched_store_prepared_transactions(TransactionId **xids);

/* ----------
 * locks.c: the locks on our tables
 * ----------
 */
extern void tasksched_store_lock(bool finished_too);
extern void tasksched_store_lock_to_read(void);
extern const ErrorData *tasksched_store_lock_error(void);
extern void tasksched_store_forget_lock_error(void);

/* ----------
 * installation.c: this installation, and whether its scheduler is paused
 * ----------
 */
extern int64 tasksched_store_installation(void);
extern void tasksched_store_set_installation(void);
extern void tasksched_store_set_paused(bool paused);
extern bool tasksched_store_get_paused(void);

/* ----------
 * actions.c: registered actions
 * ----------
 */

/* A registered action */
typedef struct RegisteredAction
{
	char	   *signature;		/* of the function, qualified and quoted */
	Oid			function_owner; /* when it was registered */
	Oid			function;		/* InvalidOid = it does not exist any more */
} RegisteredAction;

extern bool tasksched_store_find_action(const char *name, RegisteredAction *action);
extern void tasksched_store_register_action(const char *name, const char *signature, Oid function_owner);
extern bool tasksched_store_unregister_action(const char *name);

/* ----------
 * row.c: the row of one task, found by its id
 * ----------
 */

/* A version of a task's row */
typedef struct TaskLookup
{
	pg_uuid_t	id;
	TaskStatus	status;
	TimestampTz run_at;
	int32		launch;
	int32		crashes;
	int32		setbacks;
	bool		finished;		/* in the table finished, not live */
	bool		own_write;		/* written by the current transaction */
	ItemPointerData place;		/* of the version: its ctid */
} TaskLookup;

/* The result of locking a row */
typedef enum RowLock
{
	ROW_LOCKED,
	ROW_GONE,					/* deleted, or moved to the other table */
	ROW_BUSY					/* locked by another transaction; not with
								 * LockWaitBlock */
} RowLock;

/* A task as the worker reads it */
typedef struct TaskRow
{
	Datum		task;			/* composite tasksched.task */
	Datum		params;
	bool		params_null;
	bool		first_launch;
	char		action[TASKSCHED_NAME_SIZE];
} TaskRow;

extern bool tasksched_row_find(const pg_uuid_t *id, bool latest, TaskLookup *row);
extern bool tasksched_row_get(const pg_uuid_t *id, bool latest, Datum *task);
extern RowLock tasksched_row_lock(TaskLookup *row, LockWaitPolicy wait);
extern bool tasksched_row_find_live(const pg_uuid_t *id, TaskLookup *row);
extern bool tasksched_row_find_finished(const pg_uuid_t *id, TaskLookup *row);
extern void tasksched_row_delete_finished(const TaskLookup *row);
extern bool tasksched_row_holds(const TaskRef *task);
extern bool tasksched_row_read(const TaskRef *task, TaskRow *row);

/* ----------
 * tasks.c: tasks as owners and admins see and change them
 * ----------
 */
extern void tasksched_store_insert_task(const pg_uuid_t *id, const char *action, TimestampTz run_at,
										const char *resource_id, Jsonb *params, TimestampTz now);
extern void tasksched_store_update_scheduled(const TaskLookup *row, const Outcome *change);
extern void tasksched_store_delete(const TaskLookup *row);
extern void tasksched_store_cancel(const TaskLookup *row);
extern void tasksched_store_retry(const TaskLookup *row);
extern int64 tasksched_store_adopt(void);
extern void tasksched_store_get_tasks(ArrayType *actions, const char *resource_id, ArrayType *statuses,
									  const TimestampTz *max_timestamp, const int32 *max_rows,
									  ReturnSetInfo *rsinfo);

/* ----------
 * queue.c: what the scheduler reads and changes
 * ----------
 */

/* A place in a queue, which is in the order of due time and id */
typedef struct QueuePlace
{
	TimestampTz run_at;
	pg_uuid_t	id;
} QueuePlace;

/* A due (or soon due) task as the scheduler sees it */
typedef struct Candidate
{
	pg_uuid_t	id;
	TimestampTz run_at;
	Oid			owner;
	char		action[TASKSCHED_NAME_SIZE];
	bool		foreign;		/* it belongs to another installation */
	ItemPointerData place;		/* of its row; valid in the transaction that
								 * read it */
} Candidate;

/* The result of putting back a task */
typedef enum PutBack
{
	PUT_BACK_DONE,
	PUT_BACK_NOT_HELD,			/* the launch no longer holds the task */
	PUT_BACK_LOCKED				/* another transaction has locked the row: try
								 * again later */
} PutBack;

/* An active task that has had no update for long */
typedef struct StuckTask
{
	pg_uuid_t	id;
	char	   *action;
} StuckTask;

extern int	tasksched_store_priorities(int16 **priorities);
extern int	tasksched_store_peek(int16 priority, const QueuePlace *after, TimestampTz horizon, int limit,
								 Candidate *candidates);
extern TimestampTz tasksched_store_next_due(int16 priority, TimestampTz after);
extern int	tasksched_store_bring_forward(int limit);
extern int	tasksched_store_claim(const pg_uuid_t *ids, const ItemPointerData *places, int n,
								  TimestampTz due, int32 *launches);
extern int	tasksched_store_claim_ids(const pg_uuid_t *ids, int n, TaskRef *claimed);
extern PutBack tasksched_store_put_back(const TaskRef *task, SlotEnd end, bool server_crashed);
extern int	tasksched_store_active(TaskRef **tasks);
extern int	tasksched_store_superseded(const TaskRef *tasks, int n, TaskRef *superseded);
extern int	tasksched_store_stuck(StuckTask **tasks);
extern int	tasksched_store_purge(TimestampTz *from, int limit);

/* ----------
 * finish.c: the end of a launch, and of a task
 * ----------
 */
extern bool tasksched_store_checkpoint(const TaskRef *task, const Outcome *change);
extern bool tasksched_store_finish(const TaskRef *task, const Outcome *outcome);

#endif							/* TASKSCHED_STORE_H */
