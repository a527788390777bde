/*
 * admin.c
 *	  SQL functions for admins: actions, adoption, pause; and the end of CREATE
 *	  EXTENSION.
 *
 * Who may call them is a matter of EXECUTE: see grant_admin().
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/timestamp.h"

#include "actions/actions.h"
#include "api/api.h"
#include "base/base.h"
#include "base/compat.h"
#include "base/settings.h"
#include "shared/shared.h"
#include "store/store.h"
#include "worker/worker.h"

/* Warn if no task can run, because the library is not in every process */
void
tasksched_warn_if_not_preloaded(void)
{
	if (!tasksched_preloaded())
		ereport(WARNING,
				(errmsg("tasksched is not loaded by the server, so no task will run"),
				 errhint("Add tasksched to shared_preload_libraries and restart the server.")));
}

/* Is it the name of an action that became longer by a restore in another encoding? */
static bool
is_grown_name(const char *action)
{
	RegisteredAction registered;

	return tasksched_name_fits(action) && tasksched_store_find_action(action, &registered);
}

/*
 * Raise an error unless the name of an action is well-formed.  A registered name
 * is, even if a restore in another encoding made it too long.
 */
void
tasksched_check_action_name(const char *action)
{
	if (action == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("action must not be null")));
	if (action[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("action must not be empty")));
	tasksched_text_check(action, strlen(action));
	if (strlen(action) > TASKSCHED_MAX_ACTION_LEN && !is_grown_name(action))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("action name is too long"),
				 errdetail("It has %zu bytes; at most %d are allowed.",
						   strlen(action), TASKSCHED_MAX_ACTION_LEN)));
}

static char *
text_arg_or_null(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static void
check_function_given(FunctionCallInfo fcinfo, int n)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("function must not be null")));
}

/* Register a function, which can serve as an action */
static void
register_function(const char *action, Oid function)
{
	AclResult	aclresult = object_aclcheck(ProcedureRelationId, function, GetUserId(), ACL_EXECUTE);
	Action		found;
	char	   *signature;

	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult,
					   get_func_prokind(function) == PROKIND_PROCEDURE ? OBJECT_PROCEDURE : OBJECT_FUNCTION,
					   get_func_name(function));
	(void) tasksched_action_unfit(function, &found);
	signature = tasksched_action_signature(function);
	tasksched_text_check(signature, strlen(signature));
	tasksched_store_register_action(action, signature, found.function_owner);
	tasksched_warn_if_not_preloaded();
}

PG_FUNCTION_INFO_V1(tasksched_register_action);
Datum
tasksched_register_action(PG_FUNCTION_ARGS)
{
	char	   *action = text_arg_or_null(fcinfo, 0);

	tasksched_check_action_name(action);
	check_function_given(fcinfo, 1);
	register_function(action, tasksched_action_find(text_to_cstring(PG_GETARG_TEXT_PP(1))));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(tasksched_register_action_oid);
Datum
tasksched_register_action_oid(PG_FUNCTION_ARGS)
{
	char	   *action = text_arg_or_null(fcinfo, 0);
	Oid			function;

	tasksched_check_action_name(action);
	check_function_given(fcinfo, 1);
	function = PG_GETARG_OID(1);
	if (get_func_name(function) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function)));
	tasksched_action_check(function, format_procedure(function));
	register_function(action, function);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(tasksched_unregister_action);
Datum
tasksched_unregister_action(PG_FUNCTION_ARGS)
{
	char	   *action = text_arg_or_null(fcinfo, 0);

	tasksched_check_action_name(action);
	PG_RETURN_BOOL(tasksched_store_unregister_action(action));
}

PG_FUNCTION_INFO_V1(tasksched_adopt_tasks);
Datum
tasksched_adopt_tasks(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(tasksched_store_adopt());
}

PG_FUNCTION_INFO_V1(tasksched_pause_scheduler);
Datum
tasksched_pause_scheduler(PG_FUNCTION_ARGS)
{
	tasksched_store_set_paused(true);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(tasksched_resume_scheduler);
Datum
tasksched_resume_scheduler(PG_FUNCTION_ARGS)
{
	tasksched_store_set_paused(false);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(tasksched_init);
Datum
tasksched_init(PG_FUNCTION_ARGS)
{
	tasksched_store_set_installation();
	tasksched_warn_if_not_preloaded();
	tasksched_wake_at_commit(WAKE_SCAN, DT_NOEND);
	PG_RETURN_VOID();
}
