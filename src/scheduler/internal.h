/*
 * internal.h
 *	  Declarations shared by the files of the scheduler.
 */
#ifndef TASKSCHED_SCHEDULER_INTERNAL_H
#define TASKSCHED_SCHEDULER_INTERNAL_H

#include "base/types.h"
#include "shared/shared.h"
#include "store/store.h"

/* The clock was set back if it is behind its latest time by more than this */
#define SET_BACK_US USECS_PER_SEC

/* A worker is started this long before its task is due */
#define LEAD_US INT64CONST(100000)

/* ----------
 * round.c: one round of the loop
 * ----------
 */

/* The state of the current round of the loop */
typedef struct Round
{
	MemoryContext cxt;			/* reset after each round */
	TaskSlot   *slots;			/* a copy from its start, with its own changes */
	int			nslots;
	TimestampTz retry_at;		/* when to retry what could not be done */
	Lack		lack;			/* what due tasks lack */
} Round;

extern Round tasksched_round;

extern void tasksched_round_init(void);
extern void tasksched_round_begin(void);
extern int	tasksched_count_slots(SlotState state);
extern int	tasksched_count_active(void);
extern int	tasksched_count_locked(void);
extern void tasksched_retry_by(TimestampTz at);
extern PutBack tasksched_put_back(const TaskRef *task, SlotEnd end, bool server_crashed);
extern bool tasksched_put_back_locked(TimestampTz now, bool woken);
extern bool tasksched_is_remembered(const TaskRef *task);

/* ----------
 * reap.c: putting back the tasks of workers that have ended
 * ----------
 */
extern bool tasksched_reap(TimestampTz now, bool woken);
extern void tasksched_reap_suspects(void);

/* ----------
 * cancel.c: interrupting the actions of cancelled tasks
 * ----------
 */
extern void tasksched_cancel_init(void);
extern void tasksched_check_superseded(void);
extern void tasksched_send_interrupts(void);
extern TimestampTz tasksched_next_interrupt(void);

/* ----------
 * scan.c: comparing what is remembered with the tables
 * ----------
 */
extern void tasksched_scan_init(void);
extern void tasksched_scan(bool set_back);
extern TimestampTz tasksched_last_scan(void);
extern bool tasksched_scan_found_paused(void);
extern bool tasksched_has_batches(void);
extern void tasksched_bring_forward_batch(TimestampTz now);
extern void tasksched_purge_batch(void);

/* ----------
 * queues.c: where to look for due tasks, and when
 * ----------
 */

/*
 * The scheduled tasks of one priority, and the two cursors through them.
 * "Due" includes tasks that are due within LEAD_US, which need a worker.
 */
typedef struct Queue
{
	int16		priority;

	/* the first cursor */
	QueuePlace	frontier;		/* all up to here was claimed or passed by */
	bool		more_beyond;	/* due tasks may lie beyond the frontier */

	/* the second cursor: a pass over what lies before the frontier */
	bool		in_pass;		/* a pass is under way */
	QueuePlace	pass_place;		/* the place it has reached */
	bool		pass_waits;		/* it has met a task that has to wait */
	TimestampTz next_pass_from; /* start of the next pass; DT_NOEND = none */

	bool		held;			/* a due task was passed by, and no wake-up
								 * will say when it can be launched */
	TimestampTz later_due;		/* no other task is due before this;
								 * DT_NOBEGIN = unknown, DT_NOEND = there is
								 * none */
	TimestampTz soon_due;		/* the first due time to come within LEAD_US;
								 * DT_NOEND = none */
} Queue;

extern Queue *tasksched_queues;
extern int	tasksched_nqueues;

extern void tasksched_queues_init(void);
extern void tasksched_queues_scan(const int16 *priorities, int n);
extern void tasksched_queues_note_due(TimestampTz run_at, TimestampTz now);
extern void tasksched_queues_note_later(void);
extern void tasksched_queues_note_failing(TimestampTz until, TimestampTz run_at);
extern void tasksched_queues_revisit(TimestampTz now, TimestampTz at_the_latest);
extern bool tasksched_queues_due(void);
extern bool tasksched_queues_held(void);
extern TimestampTz tasksched_queues_next_due(void);
extern TimestampTz tasksched_queues_next_reason(void);
extern int	tasksched_compare_places(const QueuePlace *a, const QueuePlace *b);
extern bool tasksched_queue_has_more(const Queue *queue);
extern void tasksched_queue_see_time(Queue *queue, TimestampTz now);
extern void tasksched_queue_put_off(Queue *queue, TimestampTz now);
extern void tasksched_queue_begin_pass(Queue *queue);

/* ----------
 * claim.c: claiming due tasks
 * ----------
 */
extern void tasksched_claim_due(void);

/* ----------
 * start.c: starting workers, and watching them start
 * ----------
 */

/* How many workers an owner needs in this round, starting ones included */
typedef struct Demand
{
	Oid			owner;
	int			wanted;
} Demand;

extern void tasksched_start_init(void);
extern void tasksched_check_starting(void);
extern bool tasksched_owner_must_wait(Oid owner, TimestampTz now, TimestampTz *until);
extern void tasksched_failing_owners(Oid *owners, int max);
extern void tasksched_forget_failing(TimestampTz now);
extern void tasksched_start_workers(const Demand *demands, int n);

#endif							/* TASKSCHED_SCHEDULER_INTERNAL_H */
