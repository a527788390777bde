/*
 * action.c
 *	  Which function an action names, and whether it can be an action.
 *
 * An action takes (tasksched.task, boolean), (tasksched.task), (jsonb) or
 * nothing, and returns void, jsonb or tasksched.outcome.  A procedure returns
 * jsonb or tasksched.outcome through one more argument, which is INOUT and the
 * last one.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "actions/actions.h"
#include "base/base.h"
#include "base/compat.h"
#include "store/store.h"

#define SIGNATURES_HINT \
	"An action takes (tasksched.task, boolean), (tasksched.task), (jsonb) or no arguments, and returns void, jsonb or tasksched.outcome; a procedure returns jsonb or tasksched.outcome through an INOUT argument at the end."

/* ----------
 * Which functions fit
 * ----------
 */

/* Classify the argument types of a function; false if they do not fit */
static bool
classify_args(const Oid *types, int n, ActionArgs *args)
{
	Oid			task_type = tasksched_type_oid("task");

	if (n == 0)
		*args = ARGS_NONE;
	else if (n == 1 && types[0] == JSONBOID)
		*args = ARGS_PARAMS;
	else if (n == 1 && types[0] == task_type)
		*args = ARGS_TASK;
	else if (n == 2 && types[0] == task_type && types[1] == BOOLOID)
		*args = ARGS_TASK_FIRST_LAUNCH;
	else
		return false;
	return true;
}

static bool
classify_result(Oid type, ActionResult *result)
{
	if (type == VOIDOID)
		*result = RESULT_VOID;
	else if (type == JSONBOID)
		*result = RESULT_JSONB;
	else if (type == tasksched_type_oid("outcome"))
		*result = RESULT_OUTCOME;
	else
		return false;
	return true;
}

/* Return the modes of a function's arguments, or NULL if all are IN */
static char *
argument_modes(HeapTuple tuple, int *n)
{
	bool		isnull;
	Datum		datum = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargmodes, &isnull);
	ArrayType  *array;

	if (isnull)
		return NULL;
	array = DatumGetArrayTypeP(datum);
	*n = ARR_DIMS(array)[0];
	return (char *) ARR_DATA_PTR(array);
}

/* Does the signature of a function or procedure fit? */
static bool
signature_fits(HeapTuple tuple, Action *action)
{
	Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
	Oid		   *types = proc->proargtypes.values;
	int			nargs = proc->pronargs;
	int			nmodes = 0;
	char	   *modes = argument_modes(tuple, &nmodes);

	if (!action->is_procedure)
		return modes == NULL && classify_args(types, nargs, &action->args) &&
			classify_result(proc->prorettype, &action->result);

	action->result = RESULT_VOID;
	if (modes != NULL)
	{
		/* the last argument must be INOUT, and all others IN */
		if (nmodes != nargs || modes[nargs - 1] != PROARGMODE_INOUT)
			return false;
		for (int i = 0; i < nargs - 1; i++)
		{
			if (modes[i] != PROARGMODE_IN)
				return false;
		}
		nargs--;
		if (!classify_result(types[nargs], &action->result) || action->result == RESULT_VOID)
			return false;
	}
	return classify_args(types, nargs, &action->args);
}

/*
 * Determine whether a function can be an action, and if not, why.  If it can,
 * *action describes how to call it.
 */
Unfit
tasksched_action_unfit(Oid function, Action *action)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;
	Unfit		unfit = UNFIT_NOT;

	if (!HeapTupleIsValid(tuple))
		return UNFIT_MISSING;
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	action->function = function;
	action->function_owner = proc->proowner;
	action->is_procedure = proc->prokind == PROKIND_PROCEDURE;
	action->strict = proc->proisstrict;
	action->security_definer = proc->prosecdef;

	if (proc->prokind == PROKIND_AGGREGATE)
		unfit = UNFIT_AGGREGATE;
	else if (proc->prokind == PROKIND_WINDOW)
		unfit = UNFIT_WINDOW;
	else if (proc->proretset)
		unfit = UNFIT_SET;
	else if (proc->prorettype == TRIGGEROID || proc->prorettype == EVENT_TRIGGEROID)
		unfit = UNFIT_TRIGGER;
	else if (!signature_fits(tuple, action))
		unfit = UNFIT_SIGNATURE;
	ReleaseSysCache(tuple);
	return unfit;
}

/* Does the function of an action still exist, with the same owner? */
bool
tasksched_action_is_there(const Action *action)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(action->function));
	bool		result = HeapTupleIsValid(tuple) &&
	((Form_pg_proc) GETSTRUCT(tuple))->proowner == action->function_owner;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* Return the signature of a function, qualified and quoted, as it is stored */
char *
tasksched_action_signature(Oid function)
{
	return format_procedure_extended(function, FORMAT_PROC_FORCE_QUALIFY);
}

/* How an unfit function is reported */
typedef struct UnfitReport
{
	int			sqlerrcode;
	const char *detail;			/* of the error */
	const char *blocked;		/* why the tasks of its action wait */
} UnfitReport;

static const UnfitReport unfit_reports[] = {
	[UNFIT_MISSING] = {
		ERRCODE_UNDEFINED_FUNCTION,
		"The function does not exist.",
		"the action's function %s does not exist"
	},
	[UNFIT_AGGREGATE] = {
		ERRCODE_WRONG_OBJECT_TYPE,
		"The function is an aggregate function.",
		"the action's function %s is an aggregate function"
	},
	[UNFIT_WINDOW] = {
		ERRCODE_WRONG_OBJECT_TYPE,
		"The function is a window function.",
		"the action's function %s is a window function"
	},
	[UNFIT_SET] = {
		ERRCODE_WRONG_OBJECT_TYPE,
		"The function returns a set.",
		"the action's function %s returns a set"
	},
	[UNFIT_TRIGGER] = {
		ERRCODE_WRONG_OBJECT_TYPE,
		"The function is a trigger function.",
		"the action's function %s is a trigger function"
	},
	[UNFIT_SIGNATURE] = {
		ERRCODE_INVALID_FUNCTION_DEFINITION,
		"The function has a signature that does not fit.",
		"the action's function %s has a signature that does not fit"
	}
};

/* Raise the error that says why a function cannot be an action */
static void
report_unfit(const char *name, Unfit unfit)
{
	const UnfitReport *report = &unfit_reports[unfit];

	ereport(ERROR,
			(errcode(report->sqlerrcode),
			 errmsg("function %s cannot be an action", name),
			 errdetail_internal("%s", report->detail),
			 errhint(SIGNATURES_HINT)));
}

/*
 * Does the name have argument types?  It does if it has a parenthesis outside
 * double quotes.
 */
static bool
has_argument_types(const char *name)
{
	bool		quoted = false;

	for (; *name != '\0'; name++)
	{
		if (*name == '"')
			quoted = !quoted;
		else if (*name == '(' && !quoted)
			return true;
	}
	return false;
}

/*
 * Find a function by its name and argument types, or by its name alone.  A
 * bare name must match exactly one function that can be an action.
 */
Oid
tasksched_action_find(const char *name)
{
	Action		action;
	Unfit		last_unfit = UNFIT_MISSING;
	FuncCandidateList candidates;
	int			fgc_flags;
	Oid			found = InvalidOid;
	int			nfound = 0;

	if (has_argument_types(name))
		found = DatumGetObjectId(DirectFunctionCall1(regprocedurein, CStringGetDatum(name)));
	else
	{
		candidates = FuncnameGetCandidates(stringToQualifiedNameList(name, NULL), -1, NIL,
										   false, false, false, true, &fgc_flags);
		if (candidates == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("function %s does not exist", name),
					 errhint("Create the function first, or qualify its name with its schema.")));
		for (; candidates != NULL; candidates = candidates->next)
		{
			Unfit		unfit = tasksched_action_unfit(candidates->oid, &action);

			if (unfit == UNFIT_NOT)
			{
				found = candidates->oid;
				nfound++;
			}
			else
				last_unfit = unfit;
		}
		if (nfound == 0)
			report_unfit(name, last_unfit);
		if (nfound > 1)
			ereport(ERROR,
					(errcode(ERRCODE_AMBIGUOUS_FUNCTION),
					 errmsg("function name \"%s\" is not unique", name),
					 errdetail("%d functions of that name fit.", nfound),
					 errhint("Give the argument types, as in \"%s(jsonb)\".", name)));
	}

	tasksched_action_check(found, name);
	return found;
}

/* Raise an error unless a function can be an action */
void
tasksched_action_check(Oid function, const char *name)
{
	Action		action;
	Unfit		unfit = tasksched_action_unfit(function, &action);

	if (unfit != UNFIT_NOT)
		report_unfit(name, unfit);
}

/*
 * Return the reason why tasks of an action cannot be launched.  If they can,
 * return NULL, and *found describes the function to call.
 */
char *
tasksched_action_blocked(const char *name, Action *found)
{
	RegisteredAction registered;
	Unfit		unfit;

	if (!tasksched_store_find_action(name, &registered))
		return psprintf("no action \"%s\" is registered", name);
	unfit = OidIsValid(registered.function) ?
		tasksched_action_unfit(registered.function, found) : UNFIT_MISSING;
	if (unfit != UNFIT_NOT)
		return psprintf(unfit_reports[unfit].blocked, registered.signature);
	if (found->function_owner != registered.function_owner)
		return psprintf("the action's function %s has got another owner since it was registered",
						registered.signature);
	return NULL;
}
