/*
 * crash.c
 *	  The crash board: which task has crashed the server.
 *
 * The board is in an anonymous shared mapping.  The postmaster makes it before
 * it starts any other process.  So it outlives the reinitialization after a
 * crash, and dies with the postmaster.
 *
 * Each worker slot has a place on the board.  A worker arms its place right
 * before it calls an action, and disarms it once the outcome is committed.
 * When a process crashes, the postmaster sends SIGQUIT to all others, and the
 * workers' signal handlers mark their places as innocent.  A place that is
 * armed and not innocent when the postmaster sets up the new shared memory was
 * the culprit's.  The parallel workers of an action are counted in its place
 * while they live.  One that crashes the server stays counted.
 *
 * The culprits become suspects.  A suspect stays on the list until the
 * scheduler of its database has counted the crash in the task.
 */
#include "postgres.h"

#include <signal.h>
#include <sys/mman.h>

#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"

#include "base/compat.h"
#include "shared/internal.h"
#include "shared/shared.h"

#ifdef EXEC_BACKEND
#error "the crash board is inherited from the postmaster by fork()"
#endif

/* The place of one worker slot */
typedef struct CrashPlace
{
	volatile sig_atomic_t armed;
	volatile sig_atomic_t innocent;
	pg_atomic_uint32 helpers;	/* parallel workers of the action, except
								 * innocent ones */
	Suspect		launch;
} CrashPlace;

typedef struct CrashBoard
{
	LWLock	   *lock;			/* protects the suspects; used in this file
								 * only, no other lock is taken under it */
	int			nplaces;
	int			nsuspects;		/* at most nplaces */
	Suspect    *suspects;
	CrashPlace *places;			/* written by the worker; helpers also by its
								 * parallel workers */
} CrashBoard;

static CrashBoard *board = NULL;
static CrashPlace *my_place = NULL; /* in a worker */
static CrashPlace *leaders_place = NULL;	/* in a parallel worker of an
											 * action */

/* ----------
 * The postmaster
 * ----------
 */

/* Create the board, once for each postmaster, before it forks any child */
void
tasksched_crash_create(int nslots)
{
	Size		size = sizeof(CrashBoard) + nslots * (sizeof(CrashPlace) + sizeof(Suspect));

	if (board != NULL)
		return;
	board = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not map %zu bytes of shared memory: %m", size)));
	memset(board, 0, size);
	board->places = (CrashPlace *) (board + 1);
	board->suspects = (Suspect *) (board->places + nslots);
	board->nplaces = nslots;
}

/*
 * Add a suspect.  If the list is full, the oldest one is dropped: the suspects
 * of a database that was dropped are never removed otherwise.
 */
static void
add_suspect(const Suspect *launch)
{
	if (board->nsuspects == board->nplaces)
		memmove(&board->suspects[0], &board->suspects[1], --board->nsuspects * sizeof(Suspect));
	board->suspects[board->nsuspects++] = *launch;
}

/*
 * New shared memory has been set up, with this lock for the suspects.  If
 * there was a crash, turn its culprits into suspects.  Clear all places.
 */
void
tasksched_crash_begin(LWLock *lock)
{
	board->lock = lock;
	for (int i = 0; i < board->nplaces; i++)
	{
		CrashPlace *place = &board->places[i];
		bool		guilty = !place->innocent || pg_atomic_read_u32(&place->helpers) > 0;

		if (place->armed && guilty)
			add_suspect(&place->launch);
	}
	memset(board->places, 0, board->nplaces * sizeof(CrashPlace));
}

/* ----------
 * The worker
 * ----------
 */

/*
 * SIGQUIT: another process has crashed, or the server does an immediate
 * shutdown.  Neither is the fault of our task.
 */
static void
handle_sigquit(SIGNAL_ARGS)
{
	if (my_place != NULL)
		my_place->innocent = true;
	SignalHandlerForCrashExit(PASS_SIGNAL_ARGS);
}

/* Use the place of the worker's slot from here on */
void
tasksched_crash_attach(int slot)
{
	my_place = &board->places[slot];
	pqsignal(SIGQUIT, handle_sigquit);
}

/* Leave the place, because the slot may pass on to another worker */
void
tasksched_crash_detach(void)
{
	tasksched_crash_disarm();
	my_place = NULL;
}

/*
 * This launch is about to begin.  From here on, a crash of this process is the
 * fault of its task.
 */
void
tasksched_crash_arm(const TaskRef *task)
{
	my_place->armed = false;
	my_place->innocent = false;
	my_place->launch.dboid = MyDatabaseId;
	my_place->launch.task = *task;
	pg_write_barrier();
	my_place->armed = true;
}

void
tasksched_crash_disarm(void)
{
	my_place->armed = false;
}

/* ----------
 * Parallel workers of an action
 * ----------
 */

static void
helper_leave(void)
{
	CrashPlace *place = leaders_place;

	leaders_place = NULL;
	if (place != NULL)
		pg_atomic_fetch_sub_u32(&place->helpers, 1);
}

static void
helper_detach(int code, Datum arg)
{
	helper_leave();
}

static void
handle_helper_sigquit(SIGNAL_ARGS)
{
	helper_leave();
	SignalHandlerForCrashExit(PASS_SIGNAL_ARGS);
}

/*
 * In a parallel worker: count it in the place of its leader, which runs a task
 */
void
tasksched_crash_join(int slot)
{
	before_shmem_exit(helper_detach, 0);
	pqsignal(SIGQUIT, handle_helper_sigquit);
	pg_atomic_fetch_add_u32(&board->places[slot].helpers, 1);
	leaders_place = &board->places[slot];
}

/* ----------
 * Suspects
 * ----------
 */

/* Copy the suspects of a database: the launches that crashed the server */
Suspect *
tasksched_suspects_copy(Oid dboid, int *n)
{
	Suspect    *copy = palloc(board->nplaces * sizeof(Suspect));

	*n = 0;
	LWLockAcquire(board->lock, LW_SHARED);
	for (int i = 0; i < board->nsuspects; i++)
	{
		if (board->suspects[i].dboid == dboid)
			copy[(*n)++] = board->suspects[i];
	}
	LWLockRelease(board->lock);
	return copy;
}

/* Remove a suspect, once its crash has been counted */
void
tasksched_suspect_forget(const Suspect *suspect)
{
	LWLockAcquire(board->lock, LW_EXCLUSIVE);
	for (int i = 0; i < board->nsuspects; i++)
	{
		if (memcmp(&board->suspects[i], suspect, sizeof(Suspect)) == 0)
		{
			board->suspects[i] = board->suspects[--board->nsuspects];
			break;
		}
	}
	LWLockRelease(board->lock);
}
