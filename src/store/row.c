/*
 * row.c
 *	  The row of one task, found by its id.
 *
 * Here no statement looks for it.  A plan depends on statistics, and one that
 * walks through all tasks would stay.  In a serializable transaction, a look-up in
 * an index counts as a read of all that lies near, so that the changes of one
 * task would conflict with those of its neighbours.  So the primary key is
 * searched outside of any snapshot, and which version of the row a snapshot
 * sees is found out by looking at each.  Statements that change the row are given
 * its place.
 *
 * The same id may be in both tables, after a restore.  The live task is meant
 * then.
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

/* Where a task can be */
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

/* A copy of the version of a task's row that a snapshot sees; NULL if it sees none */
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

static Datum
get_column(Relation rel, HeapTuple tuple, const char *name, bool *isnull)
{
	AttrNumber	column = get_attnum(RelationGetRelid(rel), name);

	if (column == InvalidAttrNumber)
		elog(ERROR, "column \"%s\" of table \"%s\" does not exist", name, RelationGetRelationName(rel));
	return heap_getattr(tuple, column, RelationGetDescr(rel), isnull);
}

static Datum
get_set_column(Relation rel, HeapTuple tuple, const char *name)
{
	bool		isnull;
	Datum		value = get_column(rel, tuple, name, &isnull);

	if (isnull)
		elog(ERROR, "column \"%s\" of table \"%s\" is null", name, RelationGetRelationName(rel));
	return value;
}

/* The role that owns a task; InvalidOid if there is none of that name */
static Oid
owner_of(Relation rel, HeapTuple tuple)
{
	return DatumGetObjectId(DirectFunctionCall1(tasksched_owner_oid, get_set_column(rel, tuple, "owner")));
}

/* The row as a value of the type tasksched.task; it contains nothing that lies elsewhere */
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
 * Begin a look of the caller's: with "latest" under a snapshot of this very
 * moment, else under the transaction's, which sees what the transaction has done.
 *
 * The locks come before the snapshot: while we wait, ALTER TABLE may write all rows
 * anew, and an older snapshot would see none of them.
 */
static void
begin_look(bool latest)
{
	tasksched_store_lock_to_read();
	if (!latest)
		CommandCounterIncrement();
	PushActiveSnapshot(latest ? GetLatestSnapshot() : GetTransactionSnapshot());
}

/*
 * Find what the active snapshot sees of a task, and open its table; NULL if the
 * caller may not see it.
 */
static HeapTuple
look(const pg_uuid_t *id, TaskTable *table, Relation *rel)
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
	row->id = *DatumGetUUIDP(get_set_column(rel, tuple, "id"));
	row->status = tasksched_status_from_datum(get_set_column(rel, tuple, "status"));
	row->run_at = DatumGetTimestampTz(get_set_column(rel, tuple, "run_at"));
	row->launch = DatumGetInt32(get_set_column(rel, tuple, "launch"));
	row->crashes = DatumGetInt32(get_set_column(rel, tuple, "crashes"));
	row->setbacks = DatumGetInt32(get_set_column(rel, tuple, "setbacks"));
	row->finished = table == TABLE_FINISHED;
	row->place = tuple->t_self;
	row->own_write = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
}

/* Look at a task; false if the caller may not see it */
bool
tasksched_row_find(const pg_uuid_t *id, bool latest, TaskLookup *row)
{
	TaskTable	table;
	Relation	rel;
	HeapTuple	tuple;

	begin_look(latest);
	tuple = look(id, &table, &rel);
	if (HeapTupleIsValid(tuple))
	{
		read_row(rel, table, tuple, row);
		heap_freetuple(tuple);
		table_close(rel, NoLock);
	}
	PopActiveSnapshot();
	return HeapTupleIsValid(tuple);
}

/* The task as a value of the type tasksched.task; false if the caller may not see it */
bool
tasksched_row_get(const pg_uuid_t *id, bool latest, Datum *task)
{
	TaskTable	table;
	Relation	rel;
	HeapTuple	tuple;

	begin_look(latest);
	tuple = look(id, &table, &rel);
	if (HeapTupleIsValid(tuple))
	{
		*task = task_datum(rel, tuple);
		table_close(rel, NoLock);
	}
	PopActiveSnapshot();
	return HeapTupleIsValid(tuple);
}

/*
 * Lock the row of a task that was found, and read it as it is then.  What a
 * REPEATABLE READ transaction can't see the latest version of raises an error.
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

	/* from here on the scheduler passes it by; the time is that of the row that we hold */
	if (result == ROW_LOCKED && !row->finished)
		tasksched_wake_at_abort(row->status == STATUS_SCHEDULED ? row->run_at : DT_NOEND);
	return result;
}

/* ----------
 * The scheduler and the worker, who see all tasks
 * ----------
 */

/*
 * Where the row of a task lies now; false if there is none.  SnapshotSelf would not
 * do: a row that is updated between our looks at the index and at the table would
 * not be found at all.
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
	table_close(rel, NoLock);	/* the row shall not be moved by VACUUM FULL */
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
 * Delete the row of a finished task, though the transaction's snapshot may not
 * see it.  It does not matter if somebody else does so at the same time.
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

/* The row of a launch that holds its task, under a snapshot that is made now; else NULL */
static HeapTuple
find_held(Relation live, const TaskRef *task)
{
	HeapTuple	tuple;

	PushActiveSnapshot(GetTransactionSnapshot());
	tuple = find_version(live, TABLE_LIVE, &task->id, GetActiveSnapshot());
	PopActiveSnapshot();
	if (HeapTupleIsValid(tuple) &&
		tasksched_status_from_datum(get_set_column(live, tuple, "status")) == STATUS_ACTIVE &&
		DatumGetInt32(get_set_column(live, tuple, "launch")) == task->launch)
		return tuple;
	return NULL;
}

/* Does the launch hold its task? */
bool
tasksched_row_holds(const TaskRef *task)
{
	Relation	rel = open_table(TABLE_LIVE, AccessShareLock);
	bool		holds = HeapTupleIsValid(find_held(rel, task));

	table_close(rel, NoLock);
	return holds;
}

/*
 * Read the task of a launch into the caller's memory context; false if the launch
 * no longer holds it.
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

		strlcpy(row->action, TextDatumGetCString(get_set_column(rel, tuple, "action")), sizeof(row->action));
		row->first_launch = DatumGetBool(get_set_column(rel, tuple, "first_launch"));
		/* nothing of it may point into a table that changes meanwhile */
		row->params = row->params_null ? (Datum) 0 : PointerGetDatum(PG_DETOAST_DATUM_COPY(params));
		row->task = task_datum(rel, tuple);
	}
	table_close(rel, NoLock);
	return HeapTupleIsValid(tuple);
}
