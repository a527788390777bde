/*
 * internal.h
 *	  Declarations shared by the files of this folder: the statements, and
 *	  how to run them.
 */
#ifndef TASKSCHED_STORE_INTERNAL_H
#define TASKSCHED_STORE_INTERNAL_H

#include "nodes/execnodes.h"

#include "base/types.h"

/* ----------
 * queries.c: the texts of the statements
 * ----------
 */
typedef enum StoreQuery
{
	Q_INSTALLATION,
	Q_SET_INSTALLATION,
	Q_FIND_ACTION,
	Q_REGISTER_ACTION,
	Q_UNREGISTER_ACTION,
	Q_INSERT,
	Q_UPDATE_SCHEDULED,
	Q_DELETE_LIVE,
	Q_DELETE_FINISHED,
	Q_TO_FINISHED,
	Q_TO_LIVE,
	Q_ADOPT,
	Q_DELETE_TWINS,
	Q_SET_PAUSED,
	Q_GET_PAUSED,
	Q_PRIORITIES,
	Q_PEEK,
	Q_NEXT_DUE,
	Q_CLAIM,
	Q_PUT_BACK,
	Q_ACTIVE,
	Q_BRING_FORWARD,
	Q_STUCK,
	Q_OLD_FINISHED,
	Q_PURGE,
	Q_CHECKPOINT,
	Q_STAGE,
	NUM_QUERIES
} StoreQuery;

#define MAX_ARGS 10

typedef struct QueryText
{
	const char *sql;
	Oid			argtypes[MAX_ARGS + 1]; /* 0-terminated */
} QueryText;

extern const QueryText tasksched_queries[NUM_QUERIES];
extern const char *const tasksched_get_tasks_sql;

/* ----------
 * spi.c: entering the store, running statements, leaving it
 * ----------
 */

/*
 * What tasksched_leave() restores.  After an error, the abort of the
 * (sub)transaction restores it.
 */
typedef struct Entered
{
	Oid			userid;
	int			sec_context;
	int			guc_nest_level;
} Entered;

/* The arguments of a statement.  NULL pointers become SQL nulls. */
typedef struct Args
{
	int			n;
	Datum		values[MAX_ARGS];
	char		nulls[MAX_ARGS];
} Args;

extern void tasksched_enter(Entered *saved);
extern void tasksched_leave(const Entered *saved);
extern void tasksched_set_guc(const char *name, const char *value);

extern void tasksched_add_arg(Args *args, Datum value);
extern void tasksched_add_pointer(Args *args, const void *pointer);
extern void tasksched_add_text(Args *args, const char *string);
extern void tasksched_add_time(Args *args, TimestampTz time);
extern void tasksched_add_int4_or_null(Args *args, const int32 *value);

extern uint64 tasksched_run(StoreQuery q, Args *args);
extern uint64 tasksched_execute(StoreQuery q, Args *args);
extern void tasksched_run_into(const char *sql, Args *args, const Oid *argtypes, ReturnSetInfo *rsinfo);
extern Datum tasksched_result(uint64 row, int column);

/* ----------
 * installation.c: the identity of this installation
 * ----------
 */
extern void tasksched_add_home(Args *args);

/* ----------
 * finish.c: the end of a task
 * ----------
 */
extern bool tasksched_to_finished(const pg_uuid_t *id, const int32 *launch, const Outcome *outcome, int crashes);

#endif							/* TASKSCHED_STORE_INTERNAL_H */
