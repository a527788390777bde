/*
 * tasksched.h
 *	  Shared declarations of tasksched, one section for each file of src/.
 */
#ifndef TASKSCHED_H
#define TASKSCHED_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "nodes/execnodes.h"
#include "nodes/lockoptions.h"
#include "port/atomics.h"
#include "postmaster/bgworker.h"
#include "storage/itemptr.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* The longest name of an action, in bytes */
#define TASKSCHED_MAX_ACTION_LEN (NAMEDATALEN - 1)

/*
 * Room for a name of that length after a restore in another encoding, where a
 * byte may have become MAX_CONVERSION_GROWTH bytes
 */
#define TASKSCHED_NAME_SIZE (4 * (NAMEDATALEN - 1) + 1)

/* One launch of one task: the fence that keeps late writers out */
typedef struct TaskRef
{
	pg_uuid_t	id;
	int32		launch;
} TaskRef;

/*
 * The number of the launch after this one, as NEXT_LAUNCH in store.c has it.
 * After the highest one it begins anew: a task may go on for ever.
 */
static inline int32
tasksched_next_launch(int32 launch)
{
	return launch % PG_INT32_MAX + 1;
}

static inline bool
tasksched_same_task(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a, b, sizeof(pg_uuid_t)) == 0;
}

/* What an action takes and returns */
typedef enum ActionArgs
{
	ARGS_NONE,
	ARGS_PARAMS,
	ARGS_TASK,
	ARGS_TASK_FIRST_LAUNCH
} ActionArgs;

typedef enum ActionResult
{
	RESULT_VOID,
	RESULT_JSONB,
	RESULT_OUTCOME
} ActionResult;

/* A function or procedure that can serve as an action */
typedef struct Action
{
	Oid			function;
	Oid			function_owner;
	bool		is_procedure;
	bool		strict;
	bool		security_definer;
	ActionArgs	args;
	ActionResult result;
} Action;

/* What a reason to look at the tasks asks of the scheduler (bits) */
#define WAKE_DUE		0x01	/* a task may be due: see the wake's run_at */
#define WAKE_CHECK		0x02	/* a running task may have been cancelled */
#define WAKE_SCAN		0x04	/* anything may have changed: reconcile */
#define WAKE_LATER		0x08	/* tasks will be due later, of which run_at is the earliest */
#define WAKE_PAUSE		0x10	/* no task may be launched until a scan has seen whether one may */

/* What is to be told at the end of a transaction */
typedef struct Wake
{
	int			flags;			/* to the scheduler of its database */
	TimestampTz run_at;			/* likewise; DT_NOEND = none */
	bool		create;			/* the database surely has the extension */
	bool		new_databases;	/* to the launcher */
	uint64		waiters;		/* see tasksched_waiters_bit() */
} Wake;

/* ----------
 * tasksched.c: settings, hooks
 * ----------
 */
extern bool tasksched_enabled;
extern int	tasksched_max_running_tasks;
extern int	tasksched_reconcile_interval;		/* ms */
extern int	tasksched_keep_finished_tasks;		/* s, -1 = for ever */
extern int	tasksched_stuck_after;				/* s */
extern int	tasksched_worker_idle_timeout;		/* ms */
extern int	tasksched_scheduler_idle_timeout;	/* s */
extern int	tasksched_max_crashes;

extern void tasksched_pin_timeouts(void);
extern void tasksched_pin_transactions(void);
extern void tasksched_describe_process(BackgroundWorker *worker, const char *kind);
extern bool tasksched_register_process(BackgroundWorker *worker, BackgroundWorkerHandle **handle);

/* ----------
 * wakeup.c: what is told at the end of a transaction
 * ----------
 */
extern void tasksched_wakeup_init(void);
extern void tasksched_wake_at_commit(int flags, TimestampTz run_at);
extern void tasksched_wake_at_abort(TimestampTz run_at);
extern void tasksched_tell_waiters_at_commit(const pg_uuid_t *id);
extern void tasksched_new_databases_at_commit(void);
extern void tasksched_learn_prepared(void);

/* ----------
 * commands.c: commands that need a database to themselves
 * ----------
 */
extern void tasksched_commands_init(void);

/* ----------
 * guard.c: who may give commands that lock what is ours
 * ----------
 */
extern void tasksched_guard_command(Node *stmt);

/* ----------
 * shmem.c: databases, worker slots and waiters
 * ----------
 */

/*
 * Slots of workers.  State changes:
 *
 *	FREE -> STARTING	scheduler: reserved, then registered
 *	STARTING -> IDLE	worker: attached
 *	IDLE -> READY		scheduler: claimed a task and handed it over
 *	READY -> RUNNING	worker: is about to call the action
 *	READY -> IDLE		worker: the task was superseded before it began
 *	RUNNING -> READY	worker: the next launch of the same task (proceed)
 *	RUNNING -> IDLE		worker: the outcome is committed
 *	READY, RUNNING -> DEAD	worker: exits without an outcome; says why in 'end'
 *	STARTING, IDLE -> FREE	worker exits, or never came
 *	DEAD -> FREE		scheduler: has put the task back
 */
typedef enum SlotState
{
	SLOT_FREE = 0,
	SLOT_STARTING,
	SLOT_IDLE,
	SLOT_READY,
	SLOT_RUNNING,
	SLOT_DEAD
} SlotState;

/* Why a worker ended without an outcome */
typedef enum SlotEnd
{
	END_NOT_BEGUN,				/* before the action: the claim is undone */
	END_STALE,					/* likewise, because the worker was outdated, or by a pause */
	END_TERMINATED,				/* by SIGTERM: resumed, nothing is counted */
	END_CUT_SHORT,				/* likewise, right after it began: resumed after a second */
	END_BOOKKEEPING,			/* the outcome could not be stored */
	END_CRASHED					/* by itself: counts a crash */
} SlotEnd;

#define PROGRESS_NOTE_LEN 128

/*
 * Every field is protected by the LWLock.  The worker named by pid alone moves
 * a slot on from IDLE (but for IDLE -> READY), READY and RUNNING.
 */
typedef struct TaskSlot
{
	SlotState	state;
	uint32		generation;		/* counts reservations: a late worker finds out */
	Oid			dboid;
	Oid			owner;
	int			pid;			/* 0 until attached */
	Latch	   *latch;			/* the worker's, NULL until attached */
	bool		came;			/* the worker has been ready for its first task */
	bool		quit;			/* the worker shall exit when it is idle */
	TimestampTz since;			/* start of the current state */

	/* valid in READY, RUNNING, DEAD */
	TaskRef		task;
	char		action[TASKSCHED_NAME_SIZE];
	Action		function;		/* what the scheduler found for the action */
	bool		superseded;		/* the launch shall not begin */
	SlotEnd		end;			/* in DEAD */

	/* valid in RUNNING */
	bool		has_progress;
	int64		done;			/* -1 = not reported, likewise total */
	int64		total;
	char		note[PROGRESS_NOTE_LEN];
} TaskSlot;

/* What a database's due tasks, or its scheduler, wait for */
typedef enum Lack
{
	LACK_NOTHING,
	LACK_SLOT,					/* of a background worker */
	LACK_PROCESS				/* the server could not start one */
} Lack;

/* Databases that can have the extension at the same time */
#define TASKSCHED_MAX_DATABASES 1024

#define MAX_FAILING_OWNERS 8
#define LAST_ERROR_LEN 256

/*
 * A database that has the extension.  Written under the exclusive lock, but
 * for the two atomics, for which the shared lock does.
 */
typedef struct TaskDatabase
{
	Oid			dboid;			/* InvalidOid = unused entry */
	int			pid;			/* of the scheduler, 0 = none */
	Latch	   *latch;			/* likewise */
	bool		yield;			/* the launcher wants the scheduler's place */
	bool		forget;			/* the entry goes with the scheduler */
	bool		known;			/* the extension has been seen */
	bool		came;			/* the scheduler that was started last has attached */
	bool		ready;			/* the scheduler is connected, and has seen the extension */
	bool		clean_exit;		/* the last scheduler ended on its own accord */
	bool		terminated;		/* the last scheduler was sent SIGTERM */
	bool		prepared_known; /* what was prepared before the server started is noted */

	pg_atomic_uint32 wake;		/* WAKE_* bits not yet seen by the scheduler */
	pg_atomic_uint64 wake_run_at;	/* earliest due time that came with them */

	/* what the scheduler tells: the launcher and the view status read it */
	TimestampTz next_due;		/* DT_NOEND = no task is scheduled */
	TimestampTz last_scan;		/* 0 = none yet */
	bool		busy;			/* the scheduler has due tasks, or workers that are not idle */
	bool		held;			/* due tasks are blocked, which nobody may tell the end of */
	bool		paused;
	int			nlocked;		/* tasks to be put back whose rows somebody has locked */
	Lack		lack;			/* the launcher tells, too, if no scheduler can start */
	Oid			failing_owners[MAX_FAILING_OWNERS]; /* some whose workers can't start */
	char		last_error[LAST_ERROR_LEN];
} TaskDatabase;

extern void tasksched_shmem_init(void);
extern bool tasksched_preloaded(void);
extern int	tasksched_slot_count(void);

extern void tasksched_launcher_attach(void);
extern bool tasksched_launcher_is_there(void);
extern bool tasksched_launcher_take_new_databases(void);
extern void tasksched_launcher_wake(bool new_databases);

extern void tasksched_database_wake(Oid dboid, bool create, int flags, TimestampTz run_at);
extern bool tasksched_database_expect(Oid dboid);
extern void tasksched_database_set_lack(Oid dboid, Lack lack);
extern bool tasksched_database_attach(Oid dboid);
extern int	tasksched_database_take_wake(TimestampTz *run_at);
extern bool tasksched_database_is_woken(void);
extern void tasksched_database_put_wake(int flags, TimestampTz run_at);
extern bool tasksched_database_is_paused(void);
extern void tasksched_database_set_paused(bool paused);
extern bool tasksched_database_must_yield(void);
extern void tasksched_database_set_known(void);
extern void tasksched_database_set_clean_exit(void);
extern void tasksched_database_set_yield(Oid dboid, bool yield);
extern void tasksched_database_end(Oid dboid, int pid);
extern void tasksched_database_report(TimestampTz next_due, TimestampTz last_scan, bool busy, bool held,
									  int nlocked, Lack lack, const Oid *failing_owners);
extern void tasksched_database_report_error(const char *message);
extern void tasksched_database_forget(Oid dboid, bool if_not_woken);
extern bool tasksched_database_clear(Oid dboid);
extern TaskDatabase *tasksched_databases_copy(int *n);
extern bool tasksched_database_copy(Oid dboid, TaskDatabase *copy);
extern bool tasksched_database_is_starting(const TaskDatabase *db);

extern bool tasksched_prepared_any(void);
extern void tasksched_prepared_add(TransactionId xid, const Wake *wake);
extern bool tasksched_prepared_wanted(void);
extern void tasksched_prepared_learn(const TransactionId *xids, int n);
extern int	tasksched_prepared_copy(int *from, TransactionId *xids, int max);
extern void tasksched_prepared_tell(TransactionId xid);
extern void tasksched_prepared_forget(TransactionId xid);

extern void tasksched_shortage_begin(void);
extern bool tasksched_shortage(void);
extern void tasksched_log_no_process(void);

extern int	tasksched_slot_reserve(Oid owner, uint32 *generation);
extern bool tasksched_slot_release(int slot, uint32 generation);
extern bool tasksched_slot_assign(int slot, uint32 generation, const TaskRef *task,
								  const char *action, const Action *function);
extern void tasksched_slot_reaped(int slot, uint32 generation);
extern bool tasksched_slot_interrupt(int slot, const TaskRef *task, int signo);
extern void tasksched_slots_quit(Oid dboid, bool terminate);
extern void tasksched_slot_quit(int slot);
extern void tasksched_slots_end_idle(Oid dboid);
extern TaskSlot *tasksched_slots_copy(Oid dboid, int *n);
extern int	tasksched_slot_of(int pid);

extern bool tasksched_slot_attach(int slot, uint32 generation);
extern void tasksched_slot_announce(void);
extern bool tasksched_slot_must_quit(void);
extern bool tasksched_slot_take(TaskRef *task, Action *function, bool *quit);
extern bool tasksched_slot_begin(const TaskRef *task, bool *paused);
extern void tasksched_slot_proceed(const TaskRef *next);
extern void tasksched_slot_settle(bool last);
extern bool tasksched_slot_leave(void);
extern void tasksched_slot_end(SlotEnd end);
extern void tasksched_slot_progress(const int64 *done, const int64 *total, const char *note);

extern uint64 tasksched_waiters_bit(const pg_uuid_t *id);
extern void tasksched_waiters_tell(uint64 bits);
extern void tasksched_waiters_prepare(const pg_uuid_t *id);
extern bool tasksched_waiters_sleep(const pg_uuid_t *id, long timeout_ms);
extern void tasksched_waiters_leave(void);

/* ----------
 * crash.c: which task has crashed the server
 * ----------
 */

/* A launch that crashed the server, until its scheduler has counted it */
typedef struct Suspect
{
	Oid			dboid;
	TaskRef		task;
} Suspect;

extern void tasksched_crash_create(void);
extern void tasksched_crash_begin(LWLock *lock);
extern void tasksched_crash_attach(int slot);
extern void tasksched_crash_detach(void);
extern void tasksched_crash_arm(const TaskRef *task);
extern void tasksched_crash_disarm(void);
extern void tasksched_crash_join_leader(void);
extern Suspect *tasksched_suspects_copy(Oid dboid, int *n);
extern void tasksched_suspect_forget(const Suspect *suspect);

/* ----------
 * launcher.c, scheduler.c, worker.c: the processes
 * ----------
 */

/* What the launcher tells a scheduler it starts (bgw_extra) */
typedef struct SchedulerArgs
{
	Oid			dboid;
	bool		net;			/* for no other reason than to have a look */
} SchedulerArgs;

/* What a scheduler tells a worker it starts (bgw_extra) */
typedef struct WorkerArgs
{
	Oid			dboid;
	Oid			owner;
	bool		superuser;		/* the owner's rolsuper, read again once connected */
	uint32		settings;		/* fingerprint, taken before the session reads them */
	int			slot;
	uint32		generation;
} WorkerArgs;

extern void tasksched_launcher_register(void);
extern PGDLLEXPORT void tasksched_launcher_main(Datum arg);
extern PGDLLEXPORT void tasksched_scheduler_main(Datum arg);
extern PGDLLEXPORT void tasksched_worker_main(Datum arg);

/* ----------
 * action.c: from the text of a signature to a call and its outcome
 * ----------
 */
/* Status of a task, in the order of the SQL type */
typedef enum TaskStatus
{
	STATUS_NONE = -1,
	STATUS_SCHEDULED,
	STATUS_ACTIVE,
	STATUS_COMPLETE,
	STATUS_FAILED,
	STATUS_CANCELLED
} TaskStatus;

/* What a launch comes to; NULL and DT_NOEND parts keep what is stored */
typedef struct Outcome
{
	TaskStatus	status;			/* STATUS_NONE: nothing was said */
	TimestampTz run_at;			/* with STATUS_SCHEDULED; DT_NOEND = not given */
	Jsonb	   *result;
	char	   *error;
	Jsonb	   *error_details;
} Outcome;

extern const char *tasksched_action_unfit(Oid function, Action *action);
extern Oid	tasksched_action_find(const char *name);
extern void tasksched_action_check(Oid function, const char *name);
extern char *tasksched_action_signature(Oid function);
extern bool tasksched_action_is_there(const Action *action);
extern char *tasksched_action_blocked(const char *action, Action *found);
extern void tasksched_action_call(const Action *action, Datum task, Datum params, bool params_null,
								  bool first_launch, Outcome *outcome, MemoryContext cxt);
extern void tasksched_outcome_from_datum(Datum datum, Outcome *outcome, MemoryContext cxt);
extern char *tasksched_error_text(char *text);
extern Jsonb *tasksched_error_details(ErrorData *edata);

/* ----------
 * blocked.c: why a due task can't run
 * ----------
 */
extern char *tasksched_task_blocked(const char *action, Oid owner, bool foreign, Action *found);

/* ----------
 * extension.c: the extension as the catalogs know it
 * ----------
 */
extern Oid	tasksched_extension_oid(void);
extern void tasksched_extension_check(void);
extern void tasksched_extension_lock(void);
extern Oid	tasksched_schema_oid(void);
extern Oid	tasksched_type_oid(const char *name);
extern bool tasksched_caller_is_admin(void);
extern const char *tasksched_status_name(TaskStatus status);
extern Datum tasksched_status_datum(TaskStatus status);
extern TaskStatus tasksched_status_from_datum(Datum status);

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
	bool		finished;		/* in which table it is */
	bool		own_write;		/* written by the current transaction */
	ItemPointerData place;
} TaskLookup;

/* What locking a row came to */
typedef enum RowLock
{
	ROW_LOCKED,
	ROW_GONE,					/* deleted, or moved to the other table */
	ROW_BUSY					/* locked by somebody else: only if that is not waited for */
} RowLock;

/* A task as its worker reads it */
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
 * store.c: the only SQL on our tables
 * ----------
 */

/* A place in a queue: before it or at it are the tasks that come no later */
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
	bool		foreign;		/* belongs to another installation */
	ItemPointerData place;		/* of its row, for the transaction that has looked */
} Candidate;

/* What putting a task back came to */
typedef enum PutBack
{
	PUT_BACK_DONE,
	PUT_BACK_NOT_HELD,			/* this launch does not hold the task any more */
	PUT_BACK_LOCKED				/* somebody holds the row: try again later */
} PutBack;

extern void tasksched_begin(void);
extern void tasksched_commit(void);

extern int64 tasksched_store_installation(void);
extern void tasksched_store_set_installation(void);

extern bool tasksched_store_find_action(const char *action, char **signature, Oid *registered_owner,
										Oid *function);
extern void tasksched_store_register_action(const char *action, const char *function, Oid function_owner);
extern bool tasksched_store_unregister_action(const char *action);

extern void tasksched_store_insert_task(const pg_uuid_t *id, const char *action, TimestampTz run_at,
										const char *resource_id, Jsonb *params, TimestampTz now);
extern void tasksched_store_lock(bool finished_too);
extern void tasksched_store_lock_to_read(void);
extern void tasksched_store_update_scheduled(const TaskLookup *row, const Outcome *change);
extern void tasksched_store_delete(const TaskLookup *row);
extern void tasksched_store_cancel(const TaskLookup *row);
extern void tasksched_store_retry(const TaskLookup *row);
extern int64 tasksched_store_adopt(void);
extern void tasksched_store_set_paused(bool paused);
extern bool tasksched_store_get_paused(void);
extern void tasksched_store_get_tasks(ArrayType *actions, const char *resource_id, ArrayType *statuses,
									  const TimestampTz *max_timestamp, const int32 *max_rows,
									  ReturnSetInfo *rsinfo);

extern int	tasksched_store_priorities(int16 **priorities);
extern int	tasksched_store_peek(int16 priority, const QueuePlace *after, TimestampTz horizon, int limit,
								 Candidate *candidates);
extern TimestampTz tasksched_store_next_due(int16 priority, TimestampTz after);
extern int	tasksched_store_claim(const ItemPointerData *places, int n, TimestampTz due, TaskRef *claimed);
extern int	tasksched_store_claim_ids(const pg_uuid_t *ids, int n, TaskRef *claimed);
extern PutBack tasksched_store_put_back(const TaskRef *task, SlotEnd end, bool server_crashed);
extern int	tasksched_store_active(TaskRef **tasks);
extern int	tasksched_store_bring_forward(int limit);
extern int	tasksched_store_superseded(const TaskRef *tasks, int n, TaskRef *superseded);
extern int	tasksched_store_stuck(pg_uuid_t **ids, char ***actions);
extern int	tasksched_store_purge(TimestampTz *from, int limit);

extern bool tasksched_store_checkpoint(const TaskRef *task, const Outcome *change);
extern bool tasksched_store_finish(const TaskRef *task, const Outcome *outcome);

/* ----------
 * worker.c: the task that this process runs
 * ----------
 */
extern uint32 tasksched_settings_fingerprint(Oid owner);
extern bool tasksched_in_action(void);
extern bool tasksched_worker_holds(const pg_uuid_t *id);
extern bool tasksched_is_current_task(const pg_uuid_t *id);
extern bool tasksched_current_task_is_own(void);
extern void tasksched_stage_current_task(const Outcome *change);
extern Datum tasksched_current_task_datum(void);

/* ----------
 * admin.c, views.c: operation
 * ----------
 */
extern void tasksched_check_action_name(const char *action);
extern void tasksched_warn_if_not_preloaded(void);
extern bool tasksched_role_visible(Oid owner);

/* ----------
 * owner.c: the SQL type task_owner
 * ----------
 */
extern bool tasksched_role_exists(Oid role);
extern Datum tasksched_owner_oid(PG_FUNCTION_ARGS);

/* ----------
 * text.c: what can be stored, dumped and restored
 * ----------
 */
extern bool tasksched_text_mask(char *text);
extern void tasksched_text_mask_beyond_ascii(char *text);
extern void tasksched_text_check(const char *text, int length);
extern bool tasksched_name_fits(const char *name);
extern Size tasksched_text_prefix(const char *text, Size max_length, Size max_dump);
extern void tasksched_jsonb_check(Jsonb *jsonb, const char *name);

/* ----------
 * uuid.c
 * ----------
 */
extern void tasksched_uuid_generate(pg_uuid_t *uuid);
extern char *tasksched_uuid_out(const pg_uuid_t *uuid);

/* ----------
 * schedule.c: when something runs next
 * ----------
 */
extern bool tasksched_is_ahead(TimestampTz moment, TimestampTz now, int64 at_most);
extern int64 tasksched_setback_delay(int setbacks);	/* us */

/* ----------
 * fault.c: points where a test can stop a process or make it fail
 * ----------
 */
#ifdef TASKSCHED_FAULT_POINTS
extern void tasksched_fault_init(void);
extern void tasksched_fault_point(const char *name);
#define TASKSCHED_FAULT_POINT(name) tasksched_fault_point(name)
#else
#define TASKSCHED_FAULT_POINT(name) ((void) 0)
#endif

#endif							/* TASKSCHED_H */
