/*
 * row.c
 *	  The row of one task, found by its id.
 *
 * The functions here search the primary key themselves, without a statement.
 * The plan of a statement depends on statistics, and one that walks through
 * all tasks would stay.  In a serializable transaction, a look-up in an index
 * counts as a read of its neighborhood, so changes of one task would conflict
 * with those of others.  So the search finds all versions of the row, and each
 * is checked against the snapshot afterwards.  Statements that change the row
 * get its place.
 *
 * After a restore, the same id may be in both tables.  It then means the live
 * task.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/base.h"
#include "shared/shared.h"
#include "store/store.h"

/* The tables that a task can be in */
typedef enum TaskTable
{
	TABLE_LIVE,
	TABLE_FINISHED
} TaskTable;

static const char *const table_names[] = {"live", "finished"};
static const char *const key_names[] = {"live_pkey", "finished_pkey"};

static Relation
open_table(TaskTable table, LOCKMODE mode)
{
	return table_open(get_relname_relid(table_names[table], tasksched_schema_oid()), mode);
}

/*
 * Return a copy of the version of a task's row that a snapshot sees, or NULL
 */
static HeapTuple
find_version(Relation rel, TaskTable table, const pg_uuid_t *id, Snapshot snapshot)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, get_attnum(RelationGetRelid(rel), "id"), BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(id));
	scan = systable_beginscan(rel, get_relname_relid(key_names[table], tasksched_schema_oid()),
							  true, SnapshotAny, 1, &key);
	do
		tuple = systable_getnext(scan);
	while (HeapTupleIsValid(tuple) && !table_tuple_satisfies_snapshot(rel, scan->slot, snapshot));
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

/* A column, found by its name */
static Datum
get_column(Relation rel, HeapTuple tuple, const char *name, bool *isnull)
{
	AttrNumber	column = get_attnum(RelationGetRelid(rel), name);

	if (column == InvalidAttrNumber)
		elog(ERROR, "column \"%s\" of table \"%s\" does not exist", name, RelationGetRelationName(rel));
	return heap_getattr(tuple, column, RelationGetDescr(rel), isnull);
}

/* A column that can't be null */
static Datum
get_not_null_column(Relation rel, HeapTuple tuple, const char *name)
{
	bool		isnull;
	Datum		value = get_column(rel, tuple, name, &isnull);

	if (isnull)
		elog(ERROR, "column \"%s\" of table \"%s\" is null", name, RelationGetRelationName(rel));
	return value;
}

/* The role that owns a task; InvalidOid if it does not exist (any more) */
static Oid
owner_of(Relation rel, HeapTuple tuple)
{
	return DatumGetObjectId(DirectFunctionCall1(tasksched_owner_oid, get_not_null_column(rel, tuple, "owner")));
}

/*
 * Return the row as a value of the type tasksched.task.  It contains no
 * pointers to TOASTed values.
 */
static Datum
task_datum(Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(tasksched_type_oid("task"), -1);
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);
		const char *name = NameStr(column->attname);

		if (column->attisdropped)
			nulls[i] = true;
		else if (column->atttypid == REGROLEOID)
		{
			values[i] = ObjectIdGetDatum(owner_of(rel, tuple));
			nulls[i] = false;
		}
		else
			values[i] = get_column(rel, tuple, name, &nulls[i]);
	}
	return heap_copy_tuple_as_datum(heap_form_tuple(desc, values, nulls), desc);
}

/*
 * Lock our tables and push a snapshot.  With "latest", it is a snapshot of
 * this moment.  Otherwise it is the transaction's, which sees what the
 * transaction has done so far.
 *
 * The locks come before the snapshot.  While we wait for them, ALTER TABLE may
 * rewrite all rows, and an older snapshot would see none of them.
 */
static void
lock_and_push_snapshot(bool latest)
{
	tasksched_store_lock_to_read();
	if (!latest)
		CommandCounterIncrement();
	PushActiveSnapshot(latest ? GetLatestSnapshot() : GetTransactionSnapshot());
}

/*
 * Find the row of a task that the active snapshot sees, and open its table.
 * Returns NULL, with no table open, if there is none or the caller may not see
 * it.
 */
static HeapTuple
find_visible(const pg_uuid_t *id, TaskTable *table, Relation *rel)
{
	for (*table = TABLE_LIVE; *table <= TABLE_FINISHED; (*table)++)
	{
		HeapTuple	tuple;

		*rel = open_table(*table, AccessShareLock);
		tuple = find_version(*rel, *table, id, GetActiveSnapshot());
		if (HeapTupleIsValid(tuple))
		{
			if (tasksched_role_visible(owner_of(*rel, tuple)))
				return tuple;
			table_close(*rel, NoLock);
			return NULL;
		}
		table_close(*rel, NoLock);
	}
	return NULL;
}

static void
read_row(Relation rel, TaskTable table, HeapTuple tuple, TaskLookup *row)
{
	row->id = *DatumGetUUIDP(get_not_null_column(rel, tuple, "id"));
	row->status = tasksched_status_from_datum(get_not_null_column(rel, tuple, "status"));
	row->run_at = DatumGetTimestampTz(get_not_null_column(rel, tuple, "run_at"));
	row->launch = DatumGetInt32(get_not_null_column(rel, tuple, "launch"));
	row->crashes = DatumGetInt32(get_not_null_column(rel, tuple, "crashes"));
	row->setbacks = DatumGetInt32(get_not_null_column(rel, tuple, "setbacks"));
	row->finished = table == TABLE_FINISHED;
	row->place = tuple->t_self;
	row->own_write = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
}

/*
 * Look up a task.  Returns false if there is none or the caller may not see
 * it.
 */
bool
tasksched_row_find(const pg_uuid_t *id, bool latest, TaskLookup *row)
{
	TaskTable	table;
	Relation	rel;
	HeapTuple	tuple;

	lock_and_push_snapshot(latest);
	tuple = find_visible(id, &table, &rel);
	if (HeapTupleIsValid(tuple))
	{
		read_row(rel, table, tuple, row);
		heap_freetuple(tuple);
		table_close(rel, NoLock);
	}
	PopActiveSnapshot();
	return HeapTupleIsValid(tuple);
}

/*
 * Return a task as a value of the type tasksched.task.  Returns false if there
 * is none or the caller may not see it.
 */
bool
tasksched_row_get(const pg_uuid_t *id, bool latest, Datum *task)
{
	TaskTable	table;
	Relation	rel;
	HeapTuple	tuple;

	lock_and_push_snapshot(latest);
	tuple = find_visible(id, &table, &rel);
	if (HeapTupleIsValid(tuple))
	{
		*task = task_datum(rel, tuple);
		table_close(rel, NoLock);
	}
	PopActiveSnapshot();
	return HeapTupleIsValid(tuple);
}

/*
 * Lock the row of a task that was found, and read its latest version.  A
 * transaction of isolation level REPEATABLE READ or higher gets an error if
 * the row has changed since its snapshot.
 */
RowLock
tasksched_row_lock(TaskLookup *row, LockWaitPolicy wait)
{
	TaskTable	table = row->finished ? TABLE_FINISHED : TABLE_LIVE;
	Relation	rel = open_table(table, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TM_FailureData failure;
	TM_Result	locked;
	RowLock		result = ROW_GONE;

	PushActiveSnapshot(GetTransactionSnapshot());
	locked = table_tuple_lock(rel, &row->place, GetActiveSnapshot(), slot, GetCurrentCommandId(true),
							  LockTupleExclusive, wait,
							  IsolationUsesXactSnapshot() ? 0 : TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							  &failure);
	if (locked == TM_Ok)
	{
		bool		should_free;
		HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, &should_free);

		read_row(rel, table, tuple, row);
		if (should_free)
			heap_freetuple(tuple);
		result = ROW_LOCKED;
	}
	else if (locked == TM_WouldBlock)
		result = ROW_BUSY;
	else if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);

	/*
	 * from here on the scheduler passes by the row: it looks again if we
	 * abort, from the due time of the locked version
	 */
	if (result == ROW_LOCKED && !row->finished)
		tasksched_wake_at_abort(row->status == STATUS_SCHEDULED ? row->run_at : DT_NOEND);
	return result;
}

/* ----------
 * Without a check of what the caller may see
 * ----------
 */

/*
 * Find the row of a task, as committed at this moment or written by this
 * transaction.  Returns false if there is none.  SnapshotSelf would not do: it
 * would miss a row that is updated between our looks at the index and at the
 * table.
 */
static bool
find_place(TaskTable table, const pg_uuid_t *id, TaskLookup *row)
{
	Relation	rel = open_table(table, RowExclusiveLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	HeapTuple	tuple = find_version(rel, table, id, snapshot);

	if (HeapTupleIsValid(tuple))
	{
		read_row(rel, table, tuple, row);
		heap_freetuple(tuple);
	}
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);	/* keep the lock, so that VACUUM FULL can't
								 * move the row */
	return HeapTupleIsValid(tuple);
}

bool
tasksched_row_find_live(const pg_uuid_t *id, TaskLookup *row)
{
	return find_place(TABLE_LIVE, id, row);
}

bool
tasksched_row_find_finished(const pg_uuid_t *id, TaskLookup *row)
{
	return find_place(TABLE_FINISHED, id, row);
}

/*
 * Delete the row of a finished task, even if the transaction's snapshot does
 * not see it.  If another transaction deletes it first, there is nothing to do.
 */
void
tasksched_row_delete_finished(const TaskLookup *row)
{
	Relation	rel = open_table(TABLE_FINISHED, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ItemPointerData place = row->place;
	TM_FailureData failure;
	TM_Result	locked;

	Assert(row->finished);
	PushActiveSnapshot(GetLatestSnapshot());
	locked = table_tuple_lock(rel, &place, GetActiveSnapshot(), slot, GetCurrentCommandId(true),
							  LockTupleExclusive, LockWaitBlock, TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(slot);
	if (locked == TM_Ok)
	{
		simple_heap_delete(rel, &place);
		CommandCounterIncrement();
	}
	table_close(rel, NoLock);
}

/*
 * Return the row of a launch if it holds its task, or NULL.  Takes a new
 * snapshot.
 */
static HeapTuple
find_held(Relation live, const TaskRef *task)
{
	HeapTuple	tuple;

	PushActiveSnapshot(GetTransactionSnapshot());
	tuple = find_version(live, TABLE_LIVE, &task->id, GetActiveSnapshot());
	PopActiveSnapshot();
	if (HeapTupleIsValid(tuple) &&
		tasksched_status_from_datum(get_not_null_column(live, tuple, "status")) == STATUS_ACTIVE &&
		DatumGetInt32(get_not_null_column(live, tuple, "launch")) == task->launch)
		return tuple;
	return NULL;
}

/* Does this launch hold its task? */
bool
tasksched_row_holds(const TaskRef *task)
{
	Relation	rel = open_table(TABLE_LIVE, AccessShareLock);
	bool		holds = HeapTupleIsValid(find_held(rel, task));

	table_close(rel, NoLock);
	return holds;
}

/*
 * Read the task of a launch into the caller's memory context.  Returns false
 * if the launch no longer holds it.
 */
bool
tasksched_row_read(const TaskRef *task, TaskRow *row)
{
	Relation	rel;
	HeapTuple	tuple;

	tasksched_extension_check();
	rel = open_table(TABLE_LIVE, AccessShareLock);
	tuple = find_held(rel, task);
	if (HeapTupleIsValid(tuple))
	{
		Datum		params = get_column(rel, tuple, "params", &row->params_null);

		strlcpy(row->action, TextDatumGetCString(get_not_null_column(rel, tuple, "action")), sizeof(row->action));
		row->first_launch = DatumGetBool(get_not_null_column(rel, tuple, "first_launch"));
		/* detoast: the table may change while the action runs */
		row->params = row->params_null ? (Datum) 0 : PointerGetDatum(PG_DETOAST_DATUM_COPY(params));
		row->task = task_datum(rel, tuple);
	}
	table_close(rel, NoLock);
	return HeapTupleIsValid(tuple);
}
