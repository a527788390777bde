/*
 * staged.c
 *	  The current launch: its task as the action sees it, and what the action
 *	  stages.
 *
 * Changes that an action makes to its own task by update_task() are staged
 * here.  The callback right before the commit stores them.  They are not
 * stored at once because the row must not be locked while user code runs:
 * cancel_task() would have to wait for the action.
 *
 * They are kept in a stack, with an entry for each subtransaction that staged
 * something.  The commit of a subtransaction merges its entry into its
 * parent's, and its abort removes the entry.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/base.h"
#include "worker/internal.h"
#include "worker/worker.h"

Launch		tasksched_launch;
MemoryContext tasksched_launch_cxt;

/* ----------
 * The current task
 * ----------
 */

bool
tasksched_in_action(void)
{
	return tasksched_launch.in_action;
}

bool
tasksched_is_current_task(const pg_uuid_t *id)
{
	return tasksched_launch.in_action && tasksched_same_task(id, &tasksched_launch.ref.id);
}

/*
 * Does the current user have access to the task whose action is under way?
 * The action may run code as other roles: functions with SECURITY DEFINER, or
 * the expressions of an index.  Access is for roles with the privileges of the
 * task's owner.  If the action's own function has SECURITY DEFINER, it is also
 * for the owner of that function.
 */
bool
tasksched_current_task_is_own(void)
{
	const Action *action = tasksched_launch.action;

	if (!tasksched_launch.in_action)
		return false;
	return has_privs_of_role(GetUserId(), tasksched_session_owner()) ||
		(action->security_definer && action->function_owner == GetUserId());
}

/* The task as its action sees it: as it was read, with the staged changes */
Datum
tasksched_current_task_datum(void)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(tasksched_launch.row.task);
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(header),
												   HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple = {
		.t_len = HeapTupleHeaderGetDatumLength(header),
		.t_data = header
	};
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));
	Staged	   *staged = tasksched_staged_now();

	heap_deform_tuple(&tuple, desc, values, nulls);
	for (int i = 0; i < desc->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(desc, i)->attname);

		if (strcmp(name, "result") == 0 && staged->result != NULL)
		{
			values[i] = PointerGetDatum(staged->result);
			nulls[i] = false;
		}
		else if (strcmp(name, "error") == 0 && staged->error != NULL)
		{
			values[i] = CStringGetTextDatum(staged->error);
			nulls[i] = false;
		}
		else if (strcmp(name, "status") == 0 && staged->scheduled)
			values[i] = ObjectIdGetDatum(tasksched_status_datum(STATUS_SCHEDULED));
		else if (strcmp(name, "run_at") == 0 && staged->scheduled && staged->run_at != DT_NOEND)
			values[i] = TimestampTzGetDatum(staged->run_at);
	}
	return heap_copy_tuple_as_datum(heap_form_tuple(desc, values, nulls), desc);
}

/* ----------
 * Staged changes
 * ----------
 */

/* All that is staged now */
Staged *
tasksched_staged_now(void)
{
	return tasksched_launch.staged ? tasksched_launch.staged : &tasksched_launch.committed;
}

/* The entry that encloses an entry, or what was committed */
static const Staged *
staged_outside(const Staged *entry)
{
	return entry->outer ? entry->outer : &tasksched_launch.committed;
}

static void
free_unless(void *value, const void *kept)
{
	if (value != NULL && value != kept)
		pfree(value);
}

/* Free an entry, and its own values unless "stays" uses them */
static void
free_staged(Staged *entry, const Staged *outside, const Staged *stays)
{
	if (entry->result != outside->result)
		free_unless(entry->result, stays->result);
	if (entry->error != outside->error)
		free_unless(entry->error, stays->error);
	pfree(entry);
}

/* Remove the innermost entry */
static void
pop_staged(void)
{
	Staged	   *entry = tasksched_launch.staged;

	tasksched_launch.staged = entry->outer;
	free_staged(entry, tasksched_staged_now(), tasksched_staged_now());
}

/* Return the entry of the current subtransaction, and create it if need be */
static Staged *
staged_entry(void)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (tasksched_launch.staged == NULL || tasksched_launch.staged->subid != subid)
	{
		Staged	   *entry = MemoryContextAlloc(tasksched_launch_cxt, sizeof(Staged));

		*entry = *tasksched_staged_now();
		entry->subid = subid;
		entry->outer = tasksched_launch.staged;
		tasksched_launch.staged = entry;
	}
	return tasksched_launch.staged;
}

/* Stage a change, for update_task() on the current task */
void
tasksched_stage_current_task(const Outcome *change)
{
	Staged	   *entry = staged_entry();
	MemoryContext old = MemoryContextSwitchTo(tasksched_launch_cxt);

	if (change->result != NULL)
	{
		Jsonb	   *result = (Jsonb *) PG_DETOAST_DATUM_COPY(PointerGetDatum(change->result));

		free_unless(entry->result, staged_outside(entry)->result);
		entry->result = result;
	}
	if (change->error != NULL)
	{
		char	   *error = pstrdup(change->error);

		free_unless(entry->error, staged_outside(entry)->error);
		entry->error = error;
	}
	if (change->status != STATUS_NONE)
	{
		entry->scheduled = change->status == STATUS_SCHEDULED;
		entry->run_at = change->run_at;
	}
	entry->dirty = true;
	MemoryContextSwitchTo(old);
}

/*
 * After a commit: what was staged is stored.  Keep it, because the action
 * still sees it.  Nothing may fail here, so nothing is allocated.
 */
void
tasksched_staged_committed(void)
{
	Staged	   *entry = tasksched_launch.staged;

	if (entry == NULL)
		return;
	free_unless(tasksched_launch.committed.result, entry->result);
	free_unless(tasksched_launch.committed.error, entry->error);
	tasksched_launch.committed = *entry;
	tasksched_launch.committed.dirty = false;
	tasksched_launch.staged = NULL;
	pfree(entry);
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid, SubTransactionId parentSubid, void *arg)
{
	Staged	   *entry = tasksched_launch.staged;

	if (!tasksched_launch.in_action || entry == NULL || entry->subid != mySubid)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		pop_staged();
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		Staged	   *parent = entry->outer;

		if (parent != NULL && parent->subid == parentSubid)
		{
			entry->outer = parent->outer;
			free_staged(parent, staged_outside(entry), entry);
		}
		entry->subid = parentSubid;
	}
}

/* After an abort: discard what was staged since the last commit */
void
tasksched_staged_aborted(void)
{
	while (tasksched_launch.staged != NULL)
		pop_staged();
}

void
tasksched_launch_init(void)
{
	tasksched_launch_cxt = AllocSetContextCreate(TopMemoryContext, "tasksched launch", ALLOCSET_DEFAULT_SIZES);
	RegisterSubXactCallback(subxact_callback, NULL);
}
