/*
 * shared.h
 *	  What the processes of tasksched share, and how sessions and processes wake
 *	  each other.
 */
#ifndef TASKSCHED_SHARED_H
#define TASKSCHED_SHARED_H

#include "storage/latch.h"
#include "storage/lwlock.h"

#include "base/types.h"

/* ----------
 * memory.c: its size and its set-up
 * ----------
 */
extern void tasksched_shmem_init(void);
extern bool tasksched_preloaded(void);
extern int	tasksched_slot_count(void);

/* ----------
 * databases.c: the databases that have the extension, and the launcher
 * ----------
 */

/* What a reason to look at the tasks asks of the scheduler (bits) */
#define WAKE_DUE		0x01	/* a task may be due: see the wake's run_at */
#define WAKE_CHECK		0x02	/* a running task may have been cancelled */
#define WAKE_SCAN		0x04	/* anything may have changed: reconcile */
#define WAKE_LATER		0x08	/* tasks will be due later; run_at is the earliest of them */
#define WAKE_PAUSE		0x10	/* no task may be launched until a scan has seen whether one may */

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

/* A database that has the extension, at some moment */
typedef struct DatabaseInfo
{
	Oid			dboid;			/* InvalidOid = unused entry */
	int			pid;			/* of the scheduler, 0 = none */
	bool		known;			/* the extension has been seen */
	bool		attached;		/* the scheduler that was started last has come */
	bool		ready;			/* the scheduler is connected, and has seen the extension */
	bool		clean_exit;		/* the last scheduler exited because that was right */
	bool		terminated;		/* the last scheduler was sent SIGTERM */
	bool		woken;			/* there is a reason that the scheduler has not seen */

	/* what the scheduler reports */
	TimestampTz next_due;		/* DT_NOEND = no task is scheduled */
	TimestampTz last_scan;		/* 0 = none yet */
	bool		busy;			/* it has due tasks, or workers that are not idle */
	bool		held;			/* due tasks are blocked, and only a scan finds the end of that */
	bool		paused;
	int			nlocked;		/* tasks to be put back whose rows are locked */
	Lack		lack;			/* reported by the launcher if no scheduler can start */
	Oid			failing_owners[MAX_FAILING_OWNERS]; /* some whose workers can't start */
	char		last_error[LAST_ERROR_LEN];
} DatabaseInfo;

extern void tasksched_launcher_attach(void);
extern bool tasksched_launcher_is_there(void);
extern bool tasksched_launcher_take_new_databases(void);
extern void tasksched_launcher_wake(bool new_databases);

extern void tasksched_database_wake(Oid dboid, bool create, int flags, TimestampTz run_at);
extern bool tasksched_database_is_paused(void);
extern DatabaseInfo *tasksched_databases_copy(int *n);
extern bool tasksched_database_copy(Oid dboid, DatabaseInfo *copy);
extern bool tasksched_database_is_starting(const DatabaseInfo *db);

extern void tasksched_database_set_lack(Oid dboid, Lack lack);
extern void tasksched_database_set_yield(Oid dboid, bool yield);
extern void tasksched_database_end(Oid dboid, int pid);

extern int	tasksched_database_take_wake(TimestampTz *run_at);
extern bool tasksched_database_is_woken(void);
extern void tasksched_database_put_wake(int flags, TimestampTz run_at);
extern void tasksched_database_set_paused(bool paused);
extern bool tasksched_database_must_yield(void);
extern void tasksched_database_set_known(void);
extern void tasksched_database_set_clean_exit(void);
extern void tasksched_database_report(TimestampTz next_due, TimestampTz last_scan, bool busy, bool held,
									  int nlocked, Lack lack, const Oid *failing_owners);
extern void tasksched_database_report_error(const char *message);

/* ----------
 * shortage.c: too few background workers or processes
 * ----------
 */
extern void tasksched_shortage_begin(void);
extern bool tasksched_shortage(void);
extern void tasksched_log_no_process(void);
extern void tasksched_log_no_room(void);

/* ----------
 * slots.c: the slots of workers
 * ----------
 */

/* The state of a slot; which state may follow which is a table in slots.c */
typedef enum SlotState
{
	SLOT_FREE = 0,
	SLOT_STARTING,				/* reserved: a worker is on its way */
	SLOT_IDLE,					/* the worker waits for a task */
	SLOT_READY,					/* a claimed task was handed over */
	SLOT_RUNNING,				/* the action is called */
	SLOT_DEAD					/* the worker ended without an outcome */
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
	bool		ready;			/* the worker has been ready for its first task */
	bool		quit;			/* the worker is to exit when it is idle */
	TimestampTz since;			/* start of the current state */

	/* valid in READY, RUNNING, DEAD */
	TaskRef		task;
	char		action[TASKSCHED_NAME_SIZE];
	Action		function;		/* what the scheduler found for the action */
	bool		superseded;		/* the launch is not to begin */
	SlotEnd		end;			/* in DEAD */

	/* valid in RUNNING */
	bool		has_progress;
	int64		done;			/* -1 = not reported, likewise total */
	int64		total;
	char		note[PROGRESS_NOTE_LEN];
} TaskSlot;

static inline bool
tasksched_slot_has_task(const TaskSlot *slot)
{
	return slot->state == SLOT_READY || slot->state == SLOT_RUNNING;
}

extern int	tasksched_slot_reserve(Oid owner, uint32 *generation);
extern bool tasksched_slot_release(int slot, uint32 generation);
extern bool tasksched_slot_assign(int slot, uint32 generation, const TaskRef *task,
								  const char *action, const Action *function);
extern void tasksched_slot_reaped(int slot, uint32 generation);
extern bool tasksched_slot_interrupt(int slot, const TaskRef *task, int signo);
extern void tasksched_slot_quit(int slot);
extern void tasksched_slots_quit(Oid dboid, bool terminate);
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
extern bool tasksched_slot_is_running(void);
extern bool tasksched_slot_holds(const pg_uuid_t *id);

/* ----------
 * schedulers.c: schedulers come to their databases and leave them
 * ----------
 */
extern bool tasksched_database_expect(Oid dboid);
extern bool tasksched_database_attach(Oid dboid);
extern void tasksched_database_forget(Oid dboid, bool if_not_woken);
extern bool tasksched_database_clear(Oid dboid);

/* ----------
 * waiters.c: sessions in wait_for_task()
 * ----------
 */
extern uint64 tasksched_waiters_bit(const pg_uuid_t *id);
extern void tasksched_waiters_tell(uint64 bits);
extern void tasksched_waiters_prepare(const pg_uuid_t *id);
extern bool tasksched_waiters_sleep(const pg_uuid_t *id, long timeout_ms);
extern void tasksched_waiters_leave(void);

/* ----------
 * prepared.c: prepared transactions
 * ----------
 */
extern bool tasksched_prepared_wanted(void);

/* ----------
 * wakeup.c: what is told at the end of a transaction
 * ----------
 */
extern void tasksched_wakeup_init(void);
extern void tasksched_wake_at_commit(int flags, TimestampTz run_at);
extern void tasksched_wake_at_abort(TimestampTz run_at);
extern void tasksched_tell_waiters_at_commit(const pg_uuid_t *id);
extern void tasksched_new_databases_at_commit(void);
extern void tasksched_learn_prepared(const TransactionId *xids, int n);

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

extern void tasksched_crash_join(int slot);
extern Suspect *tasksched_suspects_copy(Oid dboid, int *n);
extern void tasksched_suspect_forget(const Suspect *suspect);

#endif							/* TASKSCHED_SHARED_H */
