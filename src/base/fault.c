/*
 * fault.c
 *	  Points at which a test can stop a process or make it raise an error.
 *
 * The points exist only in a build with FAULT_POINTS=1.  Such a build is for
 * tests alone, because the functions here check no privileges.  A test
 * declares them:
 *
 *	CREATE FUNCTION fault_arm(point text, action text) RETURNS void
 *	AS 'tasksched', 'tasksched_fault_arm' LANGUAGE C STRICT;
 *
 * The others are fault_pid(point) RETURNS int, fault_release(point) RETURNS
 * void and fault_pass(point) RETURNS void.  An action calls fault_pass() to
 * have a point of its own.
 *
 * An armed point works once, for the next process that passes it, in any
 * database.  The points are in an anonymous mapping like that of the crash
 * board.  So they need no set-up, and a process can pass one before it has
 * attached to anything.
 */
#include "postgres.h"

#ifdef TASKSCHED_FAULT_POINTS

#include <sys/mman.h>

#include "miscadmin.h"
#include "storage/pmsignal.h"
#include "storage/spin.h"
#include "utils/builtins.h"

#include "base/base.h"

#define MAX_FAULT_POINTS 32

typedef enum FaultAction
{
	FAULT_NONE,					/* not armed */
	FAULT_STOP,
	FAULT_ERROR
} FaultAction;

typedef struct FaultPoint
{
	char		name[NAMEDATALEN];
	FaultAction action;
	int			pid;			/* of the process stopped there, 0 = none */
} FaultPoint;

typedef struct FaultBoard
{
	slock_t		lock;			/* protects the points */
	FaultPoint	points[MAX_FAULT_POINTS];
} FaultBoard;

static FaultBoard *board = NULL;

PG_FUNCTION_INFO_V1(tasksched_fault_arm);
PG_FUNCTION_INFO_V1(tasksched_fault_pid);
PG_FUNCTION_INFO_V1(tasksched_fault_release);
PG_FUNCTION_INFO_V1(tasksched_fault_pass);

/* Create the board, in the postmaster, before it starts any other process */
void
tasksched_fault_init(void)
{
	board = mmap(NULL, sizeof(FaultBoard), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED)
		elog(FATAL, "could not map memory for fault points: %m");
	memset(board, 0, sizeof(FaultBoard));
	SpinLockInit(&board->lock);
}

/*
 * Find a point that is armed, or at which a process has stopped.  NULL if
 * there is none.
 */
static FaultPoint *
find_point(const char *name)
{
	for (int i = 0; i < MAX_FAULT_POINTS; i++)
	{
		if (strcmp(board->points[i].name, name) == 0)
			return &board->points[i];
	}
	return NULL;
}

/*
 * Wait at a point until it is released.  Signals are handled, but interrupts
 * are not processed.
 */
static void
wait_for_release(FaultPoint *point)
{
	/*
	 * If the postmaster dies, go on like any other process.
	 * PostmasterIsAlive() is no use here: it relies on a signal, which may be
	 * blocked.
	 */
	while (*(volatile int *) &point->pid == MyProcPid && PostmasterIsAliveInternal())
		pg_usleep(5000);
}

/* Pass a point: stop or raise an error if it is armed */
void
tasksched_fault_point(const char *name)
{
	FaultAction action = FAULT_NONE;
	FaultPoint *point;

	/* not preloaded, or not armed: the usual case, which needs no lock */
	if (board == NULL || find_point(name) == NULL)
		return;
	SpinLockAcquire(&board->lock);
	point = find_point(name);
	if (point != NULL)
	{
		action = point->action;
		point->action = FAULT_NONE;
		if (action == FAULT_STOP)
			point->pid = MyProcPid;
		else
			point->name[0] = '\0';
	}
	SpinLockRelease(&board->lock);

	if (action == FAULT_STOP)
		wait_for_release(point);
	else if (action == FAULT_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("fault at point \"%s\"", name)));
}

/* fault_arm(point, action): action is stop or error */
Datum
tasksched_fault_arm(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *action = text_to_cstring(PG_GETARG_TEXT_PP(1));
	FaultPoint *point;

	if (board == NULL || strlen(name) == 0 || strlen(name) >= NAMEDATALEN)
		elog(ERROR, "there is no such fault point");
	SpinLockAcquire(&board->lock);
	point = find_point(name);
	if (point == NULL)
		point = find_point("");
	if (point != NULL)
	{
		strlcpy(point->name, name, NAMEDATALEN);
		point->pid = 0;
		point->action = strcmp(action, "error") == 0 ? FAULT_ERROR : FAULT_STOP;
	}
	SpinLockRelease(&board->lock);
	if (point == NULL)
		elog(ERROR, "too many fault points are armed");
	PG_RETURN_VOID();
}

/* fault_pid(point): the process that has stopped there, or NULL */
Datum
tasksched_fault_pid(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	FaultPoint *point;
	int			pid = 0;

	SpinLockAcquire(&board->lock);
	point = find_point(name);
	if (point != NULL)
		pid = point->pid;
	SpinLockRelease(&board->lock);
	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/* fault_release(point): let the process there go on, and disarm the point */
Datum
tasksched_fault_release(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	FaultPoint *point;

	SpinLockAcquire(&board->lock);
	point = find_point(name);
	if (point != NULL)
		memset(point, 0, sizeof(FaultPoint));
	SpinLockRelease(&board->lock);
	PG_RETURN_VOID();
}

/* fault_pass(point): pass a point named by the caller */
Datum
tasksched_fault_pass(PG_FUNCTION_ARGS)
{
	tasksched_fault_point(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

#endif							/* TASKSCHED_FAULT_POINTS */
