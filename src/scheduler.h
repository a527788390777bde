/*
 * scheduler.h
 *	  What the files of the scheduler share: scheduler.c, the loop; claim.c, which
 *	  tasks to claim; start.c, the start of workers for them.
 */
#ifndef TASKSCHED_SCHEDULER_H
#define TASKSCHED_SCHEDULER_H

#include "tasksched.h"

/* ----------
 * scheduler.c
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

extern int	tasksched_count_slots(SlotState state);
extern int	tasksched_count_active(void);
extern void tasksched_retry_by(TimestampTz at);
extern PutBack tasksched_put_back(const TaskRef *task, SlotEnd end, bool server_crashed);

/* ----------
 * claim.c
 * ----------
 */
extern void tasksched_queues_init(void);
extern void tasksched_queues_scan(const int16 *priorities, int n);
extern void tasksched_queues_note_due(TimestampTz run_at, TimestampTz now);
extern void tasksched_queues_note_later(void);
extern void tasksched_queues_revisit(TimestampTz now, TimestampTz at_the_latest);
extern bool tasksched_queues_due(void);
extern bool tasksched_queues_held(void);
extern TimestampTz tasksched_queues_next_due(void);
extern TimestampTz tasksched_queues_next_reason(void);
extern void tasksched_claim_due(void);

/* ----------
 * start.c
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

#endif							/* TASKSCHED_SCHEDULER_H */
