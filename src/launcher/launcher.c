/*
 * launcher.c
 *	  The launcher: one scheduler for each database that has the extension.
 *
 * The launcher is connected to no database, so it blocks no command that needs
 * a database to itself.  Only a process that is connected to a database can
 * see whether it has the extension.  So each database is probed once: its
 * scheduler is started, and exits if the extension is not there.  After that,
 * commits tell.  CREATE EXTENSION, and every commit that schedules a task,
 * wakes the scheduler of its database, or the launcher if no scheduler runs.
 *
 * A scheduler that has had nothing to do for a while exits.  It leaves its
 * next due time in shared memory, and the launcher starts it again a little
 * before that.
 *
 * There may be too few background workers for a scheduler and a worker in each
 * database.  During such a shortage the databases take turns.  The database
 * whose turn it is has its scheduler; the schedulers of the others exit, and
 * their running tasks go on in their workers.
 *
 * A process that connects to a database waits if the database, or a catalog in
 * it, is locked, and such a lock may last as long as a transaction stays open.
 * So the launcher never waits for a scheduler.  It starts none for a locked
 * database.  It gives up a probe that takes long while other databases wait
 * for theirs.  If a process does not exit when its database's turn is over,
 * the launcher terminates it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "launcher/launcher.h"
#include "schedule/schedule.h"
#include "scheduler/scheduler.h"
#include "shared/shared.h"
#include "store/store.h"

/* A scheduler is started this long before its next due time */
#define START_AHEAD_MS 1000

/*
 * How long a turn lasts at most if other databases wait, and how often to
 * check
 */
#define TURN_MS 2000
#define TURN_RETRY_MS 200

/*
 * An idle worker that was asked to exit, and a scheduler that was and waits
 * for a lock, is terminated after this.
 */
#define LEAVE_MS 1000

/*
 * A probe that takes longer is given up while other databases wait for theirs
 */
#define PROBE_MS 5000

/* How often to retry a database that is locked */
#define LOCKED_RETRY_MS 1000

/*
 * Bounds of the delay before a scheduler that ended with an error is restarted
 */
#define RESTART_MIN_MS 1000
#define RESTART_MAX_MS 60000

/* A database that allows connections */
typedef struct KnownDatabase
{
	Oid			dboid;
	bool		seen;			/* by the last reading of pg_database */
	bool		probed;			/* it is known whether it has the extension */
	BackgroundWorkerHandle *scheduler;	/* NULL = we have started none */
	TimestampTz started_at;		/* when its last scheduler was started */
	TimestampTz ended_at;		/* when that one was seen to have ended */
	TimestampTz not_before;		/* no scheduler may be started before this */
	int			failures;		/* of its schedulers, in a row */
	bool		given_up;		/* its scheduler hung, and was terminated */
	int			hung_probes;	/* given up, in a row */
	TimestampTz must_leave_since;	/* when asked to exit; 0 = not asked */
	TimestampTz lock_wait_since;	/* of its scheduler; 0 = it does not wait */
} KnownDatabase;

static KnownDatabase *known = NULL;
static int	nknown = 0;

static Oid	turn = InvalidOid;	/* the database whose turn it is in a shortage */
static TimestampTz turn_started;

/* ----------
 * Which databases there are
 * ----------
 */

static KnownDatabase *
find_known(Oid dboid)
{
	for (int i = 0; i < nknown; i++)
	{
		if (known[i].dboid == dboid)
			return &known[i];
	}
	return NULL;
}

static const DatabaseInfo *
find_info(const DatabaseInfo *infos, int n, Oid dboid)
{
	for (int i = 0; i < n; i++)
	{
		if (infos[i].dboid == dboid)
			return &infos[i];
	}
	return NULL;
}

static void
add_known(Oid dboid)
{
	KnownDatabase *db;

	known = known ? repalloc(known, (nknown + 1) * sizeof(KnownDatabase)) :
		MemoryContextAlloc(TopMemoryContext, sizeof(KnownDatabase));
	db = &known[nknown++];
	memset(db, 0, sizeof(KnownDatabase));
	db->dboid = dboid;
	db->seen = true;
}

/*
 * Read pg_database.  Add new databases, and forget those that are gone or
 * allow no connections.
 *
 * The entries of shared memory are copied first.  A database that has one is
 * then visible in pg_database, so if it is not seen there it is gone.
 */
static void
read_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	int			n;
	DatabaseInfo *infos = tasksched_databases_copy(&n);

	for (int i = 0; i < nknown; i++)
		known[i].seen = false;

	tasksched_begin();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		KnownDatabase *db = find_known(form->oid);

		if (!form->datallowconn || database_is_invalid_form(form))
			continue;
		if (db != NULL)
			db->seen = true;
		else
			add_known(form->oid);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	tasksched_commit();

	for (int i = 0; i < nknown;)
	{
		if (known[i].seen)
		{
			i++;
			continue;
		}
		if (known[i].scheduler)
			pfree(known[i].scheduler);
		known[i] = known[--nknown];
	}
	for (int i = 0; i < n; i++)
	{
		if (find_known(infos[i].dboid) != NULL)
			continue;
		tasksched_database_forget(infos[i].dboid, false);
		tasksched_slots_quit(infos[i].dboid, false);
	}

	/*
	 * If there is no room for another entry, shared memory can't say that a
	 * database without one has got the extension.  So probe these databases
	 * again.
	 */
	for (int i = 0; i < nknown && n == TASKSCHED_MAX_DATABASES; i++)
		known[i].probed = known[i].probed && find_info(infos, n, known[i].dboid) != NULL;
	pfree(infos);
}

/* ----------
 * Starting schedulers
 * ----------
 */

/*
 * Would a process that connects to the database wait for a lock on it?  A
 * command that needs the database to itself holds such a lock, perhaps until
 * the end of a long transaction.
 */
static bool
is_locked(Oid dboid)
{
	LOCKTAG		tag;
	bool		locked;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, dboid, 0);
	tasksched_begin();
	locked = LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL;
	if (!locked)
		LockRelease(&tag, RowExclusiveLock, false);
	tasksched_commit();
	return locked;
}

/*
 * Register a scheduler.  Returns false if no background worker slot is free.
 * If the database can't have one now for another reason, set when to retry.
 */
static bool
start_scheduler(KnownDatabase *db, bool look_only)
{
	SchedulerArgs args = {
		.dboid = db->dboid,
		.look_only = look_only
	};
	BackgroundWorker worker;

	if (is_locked(db->dboid))
	{
		db->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCKED_RETRY_MS);
		tasksched_database_set_lack(db->dboid, LACK_NOTHING);
		return true;
	}
	if (!tasksched_database_expect(db->dboid))
	{
		db->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RESTART_MAX_MS);
		return true;			/* no room for an entry; there may be later */
	}
	tasksched_describe_process(&worker, "scheduler");
	snprintf(worker.bgw_name, BGW_MAXLEN, "tasksched scheduler for database %u", db->dboid);
	StaticAssertStmt(sizeof(SchedulerArgs) <= BGW_EXTRALEN, "SchedulerArgs too large");
	memcpy(worker.bgw_extra, &args, sizeof(args));

	if (!tasksched_register_process(&worker, &db->scheduler))
	{
		tasksched_database_set_lack(db->dboid, LACK_SLOT);
		tasksched_shortage_begin();
		return false;
	}
	db->started_at = GetCurrentTimestamp();
	return true;
}

/*
 * The delay after a failure, given the number of failures in a row before it
 */
static int
setback_ms(int failures)
{
	return Min(RESTART_MIN_MS << Min(failures, 6), RESTART_MAX_MS);
}

/*
 * If a scheduler has ended, find out why, and when the next one may be started
 */
static void
check_ended(KnownDatabase *db)
{
	DatabaseInfo info;
	bool		has_info;
	bool		given_up = db->given_up;
	pid_t		pid;

	if (db->scheduler == NULL ||
		GetBackgroundWorkerPid(db->scheduler, &pid) != BGWH_STOPPED)
		return;
	pfree(db->scheduler);
	db->scheduler = NULL;
	db->given_up = false;
	db->ended_at = GetCurrentTimestamp();
	has_info = tasksched_database_copy(db->dboid, &info);

	if (given_up && has_info && !info.clean_exit)
	{
		/* it has not failed, but as a probe it has found out nothing */
		if (!db->probed)
			db->not_before = TimestampTzPlusMilliseconds(db->ended_at,
														 setback_ms(db->hung_probes++));
		return;
	}
	if (has_info && !info.attached)
	{
		/*
		 * The server could not start the process.  The database is not to
		 * blame, and has not been probed.
		 */
		db->not_before = TimestampTzPlusMilliseconds(db->ended_at, RESTART_MIN_MS);
		tasksched_database_set_lack(db->dboid, LACK_PROCESS);
		tasksched_log_no_process();
		return;
	}
	db->probed = true;
	db->hung_probes = 0;
	if (!has_info || info.clean_exit)
		db->failures = 0;
	else
	{
		/*
		 * one that was terminated, or that ran for a while, starts a new
		 * count
		 */
		if (info.terminated ||
			TimestampDifferenceExceeds(db->started_at, db->ended_at, RESTART_MAX_MS))
			db->failures = 0;
		db->not_before = TimestampTzPlusMilliseconds(db->ended_at, setback_ms(db->failures++));
	}
}

static bool
is_probing(const KnownDatabase *db)
{
	return db->scheduler != NULL && !db->probed && !db->given_up;
}

/* Terminate a probe that hangs, since it must not hold up the other probes */
static void
give_up_probe(KnownDatabase *db, TimestampTz now)
{
	if (!is_probing(db) || !TimestampDifferenceExceeds(db->started_at, now, PROBE_MS))
		return;
	TerminateBackgroundWorker(db->scheduler);
	db->given_up = true;
}

/*
 * The clock may have been set back: no time of the past may be in the future
 */
static void
forget_future(KnownDatabase *db, TimestampTz now)
{
	db->started_at = Min(db->started_at, now);
	db->ended_at = Min(db->ended_at, now);
	db->must_leave_since = Min(db->must_leave_since, now);
	db->lock_wait_since = Min(db->lock_wait_since, now);
	if (!tasksched_is_ahead(db->not_before, now, RESTART_MAX_MS * INT64CONST(1000)))
		db->not_before = Min(db->not_before, now);
}

/*
 * When does the database want a scheduler?  A time in the past means now.
 * DT_NOEND means never, for a database without the extension.
 */
static TimestampTz
wanted_at(KnownDatabase *db, const DatabaseInfo *info)
{
	TimestampTz at;

	if (!db->probed)
		at = DT_NOBEGIN;
	else if (info == NULL)
		return DT_NOEND;
	else if (info->woken || !info->clean_exit)
		at = DT_NOBEGIN;
	else
	{
		/*
		 * Start it in time for the next due time.  In any case start it now
		 * and then, in case a wake-up was missed: as often as it would scan
		 * if due tasks are blocked, since only a scan finds out when they no
		 * longer are.
		 */
		at = db->ended_at + tasksched_scheduler_idle_timeout * USECS_PER_SEC;
		if (info->held)
			at = Min(at, TimestampTzPlusMilliseconds(db->ended_at, tasksched_reconcile_interval));
		if (info->next_due != DT_NOEND)
			at = Min(at, info->next_due - START_AHEAD_MS * INT64CONST(1000));
	}
	return Max(at, db->not_before);
}

/* Is a scheduler wanted only because none has run for a while? */
static bool
is_look_only(KnownDatabase *db, const DatabaseInfo *info, TimestampTz now)
{
	return db->probed && info != NULL && info->clean_exit &&
		!info->woken &&
		info->next_due - START_AHEAD_MS * INT64CONST(1000) > now;
}

static bool
is_running(KnownDatabase *db, const DatabaseInfo *info)
{
	return db->scheduler != NULL || (info != NULL && info->pid != 0);
}

/* ----------
 * Turns
 * ----------
 */

/* Does the database need a background worker that it could not get? */
static bool
is_contender(KnownDatabase *db, const DatabaseInfo *info, TimestampTz now)
{
	if (is_running(db, info))
		return info != NULL && info->lack == LACK_SLOT;
	return wanted_at(db, info) <= now;
}

static bool
waits_for_lock(int pid)
{
	PGPROC	   *proc = pid != 0 ? BackendPidGetProc(pid) : NULL;

	return proc != NULL && proc->waitStatus == PROC_WAIT_STATUS_WAITING;
}

/*
 * It is another database's turn.  Ask the idle workers of this one to exit,
 * and terminate those that don't.  Its scheduler has been asked as well, and
 * exits after its round; it is terminated only if it waits for a lock.
 * Running tasks go on.
 */
static void
make_room(KnownDatabase *db, const DatabaseInfo *info, TimestampTz now)
{
	if (db->must_leave_since == 0)
		db->must_leave_since = now;
	tasksched_slots_quit(db->dboid, false);
	if (TimestampDifferenceExceeds(db->must_leave_since, now, LEAVE_MS))
		tasksched_slots_end_idle(db->dboid);

	if (!waits_for_lock(info->pid))
		db->lock_wait_since = 0;
	else if (db->lock_wait_since == 0)
		db->lock_wait_since = now;
	else if (TimestampDifferenceExceeds(db->lock_wait_since, now, LEAVE_MS))
	{
		db->given_up = db->scheduler != NULL;
		tasksched_database_end(db->dboid, info->pid);
	}
}

/* The processes of a database need not exit */
static void
keep_room(KnownDatabase *db)
{
	db->must_leave_since = 0;
	db->lock_wait_since = 0;
}

/*
 * During a shortage, determine whose turn it is.  Start the scheduler of that
 * database, and ask the others to make room.
 */
static void
take_turns(const DatabaseInfo *infos, int n, TimestampTz now)
{
	KnownDatabase *next = NULL;
	KnownDatabase *first = NULL;
	KnownDatabase *holder = find_known(turn);
	const DatabaseInfo *holder_info = find_info(infos, n, turn);
	bool		over;

	/* find the next contender after the current holder, by OID */
	for (int i = 0; i < nknown; i++)
	{
		KnownDatabase *db = &known[i];
		const DatabaseInfo *info = find_info(infos, n, db->dboid);

		if (db->dboid == turn || !is_contender(db, info, now))
			continue;
		if (!is_running(db, info) && !is_look_only(db, info, now))
			tasksched_database_set_lack(db->dboid, LACK_SLOT);
		if (first == NULL || db->dboid < first->dboid)
			first = db;
		if (db->dboid > turn && (next == NULL || db->dboid < next->dboid))
			next = db;
	}
	if (next == NULL)
		next = first;

	over = holder == NULL ||
		(!is_running(holder, holder_info) && wanted_at(holder, holder_info) > now) ||
		(holder_info != NULL && holder_info->pid != 0 && !holder_info->busy) ||
		TimestampDifferenceExceeds(turn_started, now, TURN_MS);
	if (over && next != NULL)
	{
		turn = next->dboid;
		turn_started = now;
		holder = next;
		holder_info = find_info(infos, n, turn);
	}

	for (int i = 0; i < n; i++)
	{
		bool		yield = OidIsValid(turn) && infos[i].dboid != turn;
		KnownDatabase *db = find_known(infos[i].dboid);

		tasksched_database_set_yield(infos[i].dboid, yield);
		if (db != NULL && yield)
			make_room(db, &infos[i], now);
		else if (db != NULL)
			keep_room(db);
	}
	if (holder != NULL && !is_running(holder, holder_info) && wanted_at(holder, holder_info) <= now)
	{
		(void) start_scheduler(holder, is_look_only(holder, holder_info, now));
		if (holder->scheduler != NULL)
			turn_started = now; /* until now it had to wait for others to exit */
	}
}

/* ----------
 * The loop
 * ----------
 */

/* Choose the database to probe next; those whose probes have hung come last */
static KnownDatabase *
next_probe(const DatabaseInfo *infos, int n, TimestampTz now)
{
	KnownDatabase *next = NULL;

	for (int i = 0; i < nknown; i++)
	{
		KnownDatabase *db = &known[i];
		const DatabaseInfo *info = find_info(infos, n, db->dboid);

		if (!db->probed && !is_running(db, info) && wanted_at(db, info) <= now &&
			(next == NULL || db->hung_probes < next->hung_probes))
			next = db;
	}
	return next;
}

/*
 * Without a shortage, start all schedulers that are wanted, but one probe at a
 * time
 */
static void
start_wanted(const DatabaseInfo *infos, int n, TimestampTz now)
{
	bool		probing = false;
	KnownDatabase *probe;

	for (int i = 0; i < n; i++)
		tasksched_database_set_yield(infos[i].dboid, false);
	turn = InvalidOid;

	probe = next_probe(infos, n, now);
	for (int i = 0; i < nknown; i++)
	{
		keep_room(&known[i]);
		if (probe != NULL)
			give_up_probe(&known[i], now);
		probing |= is_probing(&known[i]);
	}

	for (int i = 0; i < nknown; i++)
	{
		KnownDatabase *db = &known[i];
		const DatabaseInfo *info = find_info(infos, n, db->dboid);

		if (!db->probed || is_running(db, info) || wanted_at(db, info) > now)
			continue;
		if (!start_scheduler(db, is_look_only(db, info, now)))
			return;
	}
	/* if a database can't be probed now, try the next one */
	for (int i = 0; i < nknown && !probing && probe != NULL; i++)
	{
		if (!start_scheduler(probe, false))
			return;
		probing = probe->scheduler != NULL;
		probe = next_probe(infos, n, now);
	}
}

/* Do one round; returns how long to sleep, in ms */
static long
launcher_cycle(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz wake_at = TimestampTzPlusMilliseconds(now, tasksched_reconcile_interval);
	DatabaseInfo *infos;
	int			n;

	for (int i = 0; i < nknown; i++)
	{
		forget_future(&known[i], now);
		check_ended(&known[i]);
	}
	turn_started = Min(turn_started, now);
	infos = tasksched_databases_copy(&n);
	for (int i = 0; i < nknown; i++)
	{
		const DatabaseInfo *info = find_info(infos, n, known[i].dboid);

		/* a commit, or an earlier scheduler, has told of the extension */
		if (info != NULL && info->known)
			known[i].probed = true;
	}

	if (tasksched_shortage())
	{
		take_turns(infos, n, now);
		return TURN_RETRY_MS;
	}
	start_wanted(infos, n, now);
	if (tasksched_shortage())
		return 0;

	for (int i = 0; i < nknown; i++)
	{
		const DatabaseInfo *info = find_info(infos, n, known[i].dboid);

		if (!is_running(&known[i], info))
			wake_at = Min(wake_at, wanted_at(&known[i], info));
	}
	return wake_at <= now ? TURN_RETRY_MS : TimestampDifferenceMilliseconds(now, wake_at);
}

/* tasksched.enabled was turned on: wake all schedulers */
static void
wake_all(void)
{
	for (int i = 0; i < nknown; i++)
		tasksched_database_wake(known[i].dboid, false, WAKE_SCAN, DT_NOEND);
}

void
tasksched_launcher_main(Datum arg)
{
	MemoryContext cycle_cxt;
	TimestampTz next_read = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, PG_SIG_IGN);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	tasksched_pin_transactions();
	tasksched_launcher_attach();
	cycle_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched launcher", ALLOCSET_DEFAULT_SIZES);
	pgstat_report_appname("tasksched launcher");

	for (;;)
	{
		long		timeout;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			bool		was_enabled = tasksched_enabled;

			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			if (tasksched_enabled && !was_enabled)
				wake_all();
		}
		if (catchupInterruptPending)
			ProcessCatchupInterrupt();
		/* the last condition holds if the clock was set back */
		if (tasksched_launcher_take_new_databases() || GetCurrentTimestamp() >= next_read ||
			next_read > TimestampTzPlusMilliseconds(GetCurrentTimestamp(), tasksched_reconcile_interval))
		{
			read_databases();
			SetLatch(MyLatch);	/* a wait for a lock may have reset it */
			next_read = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), tasksched_reconcile_interval);
		}

		TASKSCHED_FAULT_POINT("launcher round");
		MemoryContextSwitchTo(cycle_cxt);
		timeout = launcher_cycle();
		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(cycle_cxt);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, PG_WAIT_EXTENSION);
	}
}

void
tasksched_launcher_register(void)
{
	BackgroundWorker worker;

	tasksched_describe_process(&worker, "launcher");
	strlcpy(worker.bgw_name, worker.bgw_type, BGW_MAXLEN);
	worker.bgw_restart_time = 1;
	RegisterBackgroundWorker(&worker);
}
