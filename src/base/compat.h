/*
 * compat.h
 *	  Differences between versions of the server, all in one place.
 *
 * The code is written for the newest version.  For older versions, this header
 * provides what they lack under the names of the newest one.  Where versions
 * differ in more than a name, a function here hides the difference.
 */
#ifndef TASKSCHED_COMPAT_H
#define TASKSCHED_COMPAT_H

#include "access/parallel.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "replication/slot.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/jsonb.h"
#include "utils/regproc.h"

/* The way a worker connects relies on fixes in these minor releases */
static inline bool
tasksched_server_is_fit(int version)
{
	return version >= (version < 160000 ? 150009 : version < 170000 ? 160005 : 170000);
}

/*
 * Connect as a role that may lack LOGIN.  The session never has another
 * identity that the action could switch back to.
 *
 * Before PostgreSQL 17, a background worker can't connect as a role without
 * LOGIN.  Connecting as a superuser and switching to the role would let the
 * action switch back.  So on those versions we do what a parallel worker does
 * to get the identity of its leader: we set the identity first, and the
 * connection leaves it alone.  The caller must check afterwards that
 * "superuser" is still right, and must set session_authorization.
 */
static inline void
tasksched_connect_as(Oid dboid, Oid role, bool superuser)
{
#if PG_VERSION_NUM >= 170000
	BackgroundWorkerInitializeConnectionByOid(dboid, role, BGWORKER_BYPASS_ROLELOGINCHECK);
#else
	InitializingParallelWorker = true;
	SetAuthenticatedUserId(role, superuser);
	SetSessionAuthorization(role, superuser);
	SetCurrentRoleId(InvalidOid, false);
	BackgroundWorkerInitializeConnectionByOid(dboid, role, 0);
	InitializingParallelWorker = false;
#endif
}

#if PG_VERSION_NUM < 160000

static inline AclResult
object_aclcheck(Oid classid, Oid objectid, Oid roleid, AclMode mode)
{
	Assert(classid == ProcedureRelationId || classid == DatabaseRelationId);
	return classid == ProcedureRelationId ? pg_proc_aclcheck(objectid, roleid, mode) :
		pg_database_aclcheck(objectid, roleid, mode);
}

static inline bool
object_ownercheck(Oid classid, Oid objectid, Oid roleid)
{
	switch (classid)
	{
		case RelationRelationId:
			return pg_class_ownercheck(objectid, roleid);
		case NamespaceRelationId:
			return pg_namespace_ownercheck(objectid, roleid);
		case ExtensionRelationId:
			return pg_extension_ownercheck(objectid, roleid);
		default:
			Assert(classid == DatabaseRelationId);
			return pg_database_ownercheck(objectid, roleid);
	}
}

#define stringToQualifiedNameList(string, escontext) \
	stringToQualifiedNameList(string)

#endif

#if PG_VERSION_NUM < 170000

#define ReplicationSlotCleanup(synced_only) \
	ReplicationSlotCleanup()

#endif

#if PG_VERSION_NUM < 180000

#define PortalRun(portal, count, isTopLevel, dest, altdest, qc) \
	PortalRun(portal, count, isTopLevel, true, dest, altdest, qc)

#endif

#if PG_VERSION_NUM < 190000

#define FuncnameGetCandidates(names, nargs, argnames, expand_variadic, expand_defaults, \
							  include_out_arguments, missing_ok, fgc_flags) \
	(*(fgc_flags) = 0, \
	 FuncnameGetCandidates(names, nargs, argnames, expand_variadic, expand_defaults, \
						   include_out_arguments, missing_ok))

typedef struct JsonbInState
{
	JsonbValue *result;
	JsonbParseState *parseState;
} JsonbInState;

static inline void
tasksched_push_jsonb_value(JsonbInState *state, JsonbIteratorToken token, JsonbValue *value)
{
	state->result = pushJsonbValue(&state->parseState, token, value);
}

#define pushJsonbValue(state, token, value) \
	tasksched_push_jsonb_value(state, token, value)

/* Arguments that a signal handler passes on to another handler */
#define PASS_SIGNAL_ARGS	postgres_signal_arg
#define PG_SIG_IGN			SIG_IGN

#else

#define PASS_SIGNAL_ARGS	postgres_signal_arg, pg_siginfo

#endif

#endif							/* TASKSCHED_COMPAT_H */
