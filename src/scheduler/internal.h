/*
 * internal.h
 *	  What the files of the scheduler share.
 */
#ifndef TASKSCHED_SCHEDULER_INTERNAL_H
#define TASKSCHED_SCHEDULER_INTERNAL_H

#include "base/types.h"
#include "shared/shared.h"
#include "store/store.h"

/* The clock was set back if it shows so much less than before */
#define SET_BACK_US USECS_PER_SEC

/* A worker is started so long before the due time of its task */
#define LEAD_US INT64CONST(100000)

/* ----------
 * round.c: one round of the loop
 * ----------
 */

/* What holds for one round of the loop */
typedef struct Round
{
	MemoryContext cxt;			/* reset after each round */
	TaskSlot   *slots;			/* the slots as they were at its beginning, and what it did */
	int			nslots;
	TimestampTz retry_at;		/* when to try again what could not be done */
	Lack		lack;			/* what due tasks wait for */
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
 * reap.c: put back the tasks of workers that have ended
 * ----------
 */
extern bool tasksched_reap(TimestampTz now, bool woken);
extern void tasksched_reap_suspects(void);

/* ----------
 * cancel.c: interrupt the actions of cancelled tasks
 * ----------
 */
extern void tasksched_cancel_init(void);
extern void tasksched_check_superseded(void);
extern void tasksched_send_interrupts(void);
extern TimestampTz tasksched_next_interrupt(void);

/* ----------
 * scan.c: read everything afresh
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
 * queues.c: what there is to claim, and when
 * ----------
 */

/* The scheduled tasks of one priority */
typedef struct Queue
{
	int16		priority;
	QueuePlace	frontier;		/* everything up to here is claimed or was passed by */
	bool		revisiting;		/* is a pass over that under way? */
	QueuePlace	revisit;		/* if so, how far it is ... */
	bool		stuck;			/* ... and whether it waits for something */
	TimestampTz again;			/* where the next pass begins; DT_NOEND = none is called for */
	bool		held;			/* a due task was passed by that may be launched one day */
	bool		due;			/* there may be tasks beyond the frontier to launch or to start workers for */
	TimestampTz future;			/* no other is due before; DT_NOBEGIN = not known */
	TimestampTz soon;			/* first one seen that is only about to be due */
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
 * claim.c: which due tasks to claim
 * ----------
 */
extern void tasksched_claim_due(void);

/* ----------
 * start.c: starting workers, and what becomes of them on their way
 * ----------
 */

/* How many workers an owner lacks in this round */
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
