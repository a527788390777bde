/*
 * installation.c
 *	  This installation: what distinguishes the tasks of this database from
 *	  those that a restore or a copy has brought from another one.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/lsyscache.h"

#include "base/base.h"
#include "store/internal.h"
#include "store/store.h"

/*
 * The identity of this installation.  It is cached, because it never changes
 * while the sequence exists.
 */
int64
tasksched_store_installation(void)
{
	static Oid	cached_relid = InvalidOid;
	static int64 cached;
	Oid			relid = get_relname_relid("installation", tasksched_schema_oid());

	if (relid != cached_relid)
	{
		Args		args = {0};
		Entered		saved;

		tasksched_enter(&saved);
		if (tasksched_run(Q_INSTALLATION, &args) != 1)
			elog(ERROR, "sequence tasksched.installation is empty");
		cached = DatumGetInt64(tasksched_result(0, 1));
		tasksched_leave(&saved);
		cached_relid = relid;
	}
	return cached;
}

/*
 * Add the two arguments that distinguish the tasks and the scheduler of this
 * database from others
 */
void
tasksched_add_home(Args *args)
{
	tasksched_add_arg(args, Int64GetDatum(tasksched_store_installation()));
	tasksched_add_arg(args, ObjectIdGetDatum(MyDatabaseId));
}

void
tasksched_store_set_installation(void)
{
	Args		args = {0};
	uint64		id;

	if (!pg_strong_random(&id, sizeof(id)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	tasksched_add_arg(&args, Int64GetDatum((int64) (id >> 2) + 1));
	(void) tasksched_execute(Q_SET_INSTALLATION, &args);
}

void
tasksched_store_set_paused(bool paused)
{
	Args		args = {0};

	tasksched_add_home(&args);
	tasksched_add_arg(&args, BoolGetDatum(paused));
	(void) tasksched_execute(Q_SET_PAUSED, &args);
	/* WAKE_PAUSE prevents launches from the commit on, before the scan */
	tasksched_wake_at_commit(paused ? WAKE_SCAN | WAKE_PAUSE : WAKE_SCAN, DT_NOEND);
}

bool
tasksched_store_get_paused(void)
{
	Args		args = {0};

	tasksched_add_home(&args);
	return tasksched_execute(Q_GET_PAUSED, &args) > 0;
}
