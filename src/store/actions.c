/*
 * actions.c
 *	  The registered actions.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "shared/shared.h"
#include "store/internal.h"
#include "store/store.h"

/* Columns of Q_FIND_ACTION */
enum
{
	FOUND_SIGNATURE = 1,
	FOUND_FUNCTION_OWNER,
	FOUND_FUNCTION
};

/*
 * Look up an action.  The signature is allocated in the caller's memory
 * context.
 */
bool
tasksched_store_find_action(const char *name, RegisteredAction *action)
{
	MemoryContext cxt = CurrentMemoryContext;
	Args		args = {0};
	Entered		saved;
	bool		found;

	tasksched_enter(&saved);
	tasksched_add_text(&args, name);
	found = tasksched_run(Q_FIND_ACTION, &args) == 1;
	if (found)
	{
		action->signature = MemoryContextStrdup(cxt, TextDatumGetCString(tasksched_result(0, FOUND_SIGNATURE)));
		action->function_owner = DatumGetObjectId(tasksched_result(0, FOUND_FUNCTION_OWNER));
		action->function = DatumGetObjectId(tasksched_result(0, FOUND_FUNCTION));
	}
	tasksched_leave(&saved);
	return found;
}

void
tasksched_store_register_action(const char *name, const char *signature, Oid function_owner)
{
	Args		args = {0};

	tasksched_add_text(&args, name);
	tasksched_add_text(&args, signature);
	tasksched_add_arg(&args, ObjectIdGetDatum(function_owner));
	tasksched_add_arg(&args, ObjectIdGetDatum(GetUserId()));
	tasksched_add_time(&args, GetCurrentTimestamp());
	(void) tasksched_execute(Q_REGISTER_ACTION, &args);
	tasksched_wake_at_commit(WAKE_SCAN, DT_NOEND);
}

bool
tasksched_store_unregister_action(const char *name)
{
	Args		args = {0};

	tasksched_add_text(&args, name);
	return tasksched_execute(Q_UNREGISTER_ACTION, &args) > 0;
}
