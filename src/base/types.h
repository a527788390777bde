/*
 * types.h
 *	  What all parts of tasksched speak of: tasks, actions and outcomes.
 */
#ifndef TASKSCHED_TYPES_H
#define TASKSCHED_TYPES_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* The longest name of an action, in bytes */
#define TASKSCHED_MAX_ACTION_LEN (NAMEDATALEN - 1)

/*
 * Room for a name of that length after a restore in another encoding, where
 * each byte may have become MAX_CONVERSION_GROWTH bytes
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

/* One launch of one task: the fence that keeps late writers out */
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
 * The number of the launch after this one, as NEXT_LAUNCH in queries.c has it.
 * After the highest number it begins anew: a task may go on for ever.
 */
static inline int32
tasksched_next_launch(int32 launch)
{
	return launch % PG_INT32_MAX + 1;
}

/* What an action takes */
typedef enum ActionArgs
{
	ARGS_NONE,
	ARGS_PARAMS,
	ARGS_TASK,
	ARGS_TASK_FIRST_LAUNCH
} ActionArgs;

/* What an action returns */
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

/* What a launch comes to; a NULL or DT_NOEND part keeps what is stored */
typedef struct Outcome
{
	TaskStatus	status;			/* STATUS_NONE: nothing was said */
	TimestampTz run_at;			/* with STATUS_SCHEDULED; DT_NOEND = not given */
	Jsonb	   *result;
	char	   *error;
	Jsonb	   *error_details;
} Outcome;

/* An outcome of this status that keeps all else */
static inline Outcome
tasksched_outcome(TaskStatus status)
{
	Outcome		outcome = {0};

	outcome.status = status;
	outcome.run_at = DT_NOEND;
	return outcome;
}

#endif							/* TASKSCHED_TYPES_H */
