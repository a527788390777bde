/*
 * shared.h
 *	  What the processes of tasksched share, and how sessions and processes
 *	  wake each other.
 */
#ifndef TASKSCHED_SHARED_H
#define TASKSCHED_SHARED_H

#include "storage/latch.h"
#include "storage/lwlock.h"

#include "base/types.h"

/* ----------
 * memory.c: the shared memory and its set-up
 * ----------
 */
extern void tasksched_shmem_init(void);
extern bool tasksched_preloaded(void);
extern int	tasksched_slot_count(void);

/* ----------
 * databases.c: the entries of the databases, and the latch of the launcher
 * ----------
 */

/* What a reason to look at the tasks asks of the scheduler (bits) */
#define WAKE_DUE		0x01	/* a task is due at run_at, or a slot has
								 * changed */
#define WAKE_CHECK		0x02	/* a running task may have been cancelled */
#define WAKE_SCAN		0x04	/* anything may have changed: scan */
#define WAKE_LATER		0x08	/* a task is due later, perhaps after run_at:
								 * look it up */
#define WAKE_PAUSE		0x10	/* launch no task until a scan has read the
								 * table */

/* What the due tasks or the scheduler of a database wait for */
typedef enum Lack
{
	LACK_NOTHING,
	LACK_SLOT,					/* a background worker slot */
	LACK_PROCESS				/* the postmaster can't start a process */
} Lack;

/* The number of databases that can have the extension at the same time */
#define TASKSCHED_MAX_DATABASES 1024

#define MAX_FAILING_OWNERS 8
#define LAST_ERROR_LEN 256

/*
 * What other processes can read of the entry of a database that has the
 * extension, or is probed for it
 */
typedef struct DatabaseInfo
{
	Oid			dboid;			/* InvalidOid = unused entry */
	int			pid;			/* the scheduler's, 0 = none */
	bool		known;			/* the database has the extension */
	bool		attached;		/* the last scheduler started has arrived */
	bool		ready;			/* its present scheduler has found the
								 * extension */
	bool		clean_exit;		/* the last scheduler exited of its own accord */
	bool		terminated;		/* the last scheduler received SIGTERM */
	bool		woken;			/* the scheduler has not seen all reasons */

	/* reported by the scheduler */
	TimestampTz next_due;		/* DT_NOEND = none, or no task may be launched */
	TimestampTz last_scan;		/* 0 = none yet */
	bool		busy;			/* it has due tasks, or slots neither free nor
								 * idle */
	bool		held;			/* due tasks are blocked; only a scan sees
								 * that end */
	bool		paused;
	int			nlocked;		/* tasks to put back whose rows are locked */
	Lack		lack;			/* the launcher reports it if no scheduler can
								 * start */
	Oid			failing_owners[MAX_FAILING_OWNERS]; /* some of those whose
													 * workers can't start */
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
 * shortage.c: shortages of background workers and processes
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

/*
 * The state of a slot.  The table in slots.c says which state may follow
 * which.
 */
typedef enum SlotState
{
	SLOT_FREE = 0,
	SLOT_STARTING,				/* reserved for a worker that is starting */
	SLOT_IDLE,					/* the worker waits for a task */
	SLOT_READY,					/* a claimed task has been handed over */
	SLOT_RUNNING,				/* the action runs */
	SLOT_DEAD					/* the worker ended without an outcome */
} SlotState;

/* Why a worker ended without an outcome */
typedef enum SlotEnd
{
	END_NOT_BEGUN,				/* before the action: the claim is undone,
								 * with a delay */
	END_STALE,					/* before the action, as the worker or its
								 * function was outdated, or by a pause: the
								 * claim is undone */
	END_TERMINATED,				/* by SIGTERM, or the postmaster died:
								 * resumed, no crash is counted */
	END_CUT_SHORT,				/* by SIGTERM soon after the action began:
								 * resumed after a second */
	END_BOOKKEEPING,			/* the outcome could not be stored: resumed
								 * with a delay */
	END_CRASHED					/* by itself: a crash is counted */
} SlotEnd;

#define PROGRESS_NOTE_LEN 128

/*
 * The LWLock protects every field except "end".  The worker with this pid
 * moves the slot on from IDLE, READY and RUNNING, and no other process does,
 * except that the scheduler moves it from IDLE to READY.
 */
typedef struct TaskSlot
{
	SlotState	state;
	uint32		generation;		/* number of reservations: a worker that is
								 * too late sees another one */
	Oid			dboid;
	Oid			owner;
	int			pid;			/* 0 until attached */
	Latch	   *latch;			/* the worker's, NULL until attached */
	bool		ready;			/* the worker was ready for its first task */
	bool		quit;			/* the worker must exit when it is idle */
	TimestampTz since;			/* when the current state began */

	/* valid in READY, RUNNING, DEAD */
	TaskRef		task;
	char		action[TASKSCHED_NAME_SIZE];
	Action		function;		/* what the scheduler found for the action */
	bool		superseded;		/* the launch must not begin */
	SlotEnd		end;			/* set by the worker without the lock; read in
								 * DEAD */

	/* valid in RUNNING */
	bool		has_progress;
	int64		done;			/* -1 = not reported */
	int64		total;			/* -1 = not reported */
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
 * schedulers.c: how a scheduler takes and leaves its database
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
 * wakeup.c: wake-ups at the end of a transaction
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

/* A launch that crashed the server.  The scheduler has yet to count it. */
typedef struct Suspect
{
	Oid			dboid;
	TaskRef		task;
} Suspect;

extern void tasksched_crash_join(int slot);
extern Suspect *tasksched_suspects_copy(Oid dboid, int *n);
extern void tasksched_suspect_forget(const Suspect *suspect);

#endif							/* TASKSCHED_SHARED_H */
