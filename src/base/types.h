/*
 * types.h
 *	  Types for tasks, actions and outcomes, used by all parts of tasksched.
 */
#ifndef TASKSCHED_TYPES_H
#define TASKSCHED_TYPES_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* The longest name of an action, in bytes */
#define TASKSCHED_MAX_ACTION_LEN (NAMEDATALEN - 1)

/*
 * Room for such a name after a restore in another encoding, where each byte
 * may have become MAX_CONVERSION_GROWTH bytes
 */
#define TASKSCHED_NAME_SIZE (4 * (NAMEDATALEN - 1) + 1)

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

/* One launch of one task.  It is the fence that keeps late writers out. */
typedef struct TaskRef
{
	pg_uuid_t	id;
	int32		launch;
} TaskRef;

static inline bool
tasksched_same_task(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a, b, sizeof(pg_uuid_t)) == 0;
}

static inline bool
tasksched_same_launch(const TaskRef *a, const TaskRef *b)
{
	return a->launch == b->launch && tasksched_same_task(&a->id, &b->id);
}

/*
 * The number of the next launch, as NEXT_LAUNCH in queries.c computes it.
 * After the highest number it starts again at 1, since a task may go on
 * forever.
 */
static inline int32
tasksched_next_launch(int32 launch)
{
	return launch % PG_INT32_MAX + 1;
}

/* The arguments of an action */
typedef enum ActionArgs
{
	ARGS_NONE,
	ARGS_PARAMS,
	ARGS_TASK,
	ARGS_TASK_FIRST_LAUNCH
} ActionArgs;

/* The result of an action */
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

/*
 * The outcome of a launch, or a change of a task.  A NULL leaves the stored
 * value alone, with one exception: a task that completes after its first
 * launch loses an error that an earlier launch has stored (see Q_TO_FINISHED).
 */
typedef struct Outcome
{
	TaskStatus	status;			/* STATUS_NONE = the action gave none */
	TimestampTz run_at;			/* new due time; DT_NOEND = not given */
	Jsonb	   *result;
	char	   *error;
	Jsonb	   *error_details;
} Outcome;

/* An outcome of this status that changes nothing else */
static inline Outcome
tasksched_outcome(TaskStatus status)
{
	Outcome		outcome = {0};

	outcome.status = status;
	outcome.run_at = DT_NOEND;
	return outcome;
}

#endif							/* TASKSCHED_TYPES_H */
