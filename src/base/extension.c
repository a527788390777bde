/*
 * extension.c
 *	  The extension in the catalogs: whether it exists, its version, and the
 *	  objects of it that C code looks up.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/base.h"
#include "base/compat.h"

/* Return the extension's OID and version; InvalidOid if it does not exist */
static Oid
find_extension(char **version)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			oid = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("tasksched"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		datum = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(rel), &isnull);

		oid = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		Assert(!isnull);
		*version = TextDatumGetCString(datum);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return oid;
}

Oid
tasksched_extension_oid(void)
{
	char	   *version = NULL;

	return find_extension(&version);
}

/*
 * The guard keeps the extension unchanged until the end of the transaction.  A
 * transaction that uses the extension takes the guard in shared mode.  A
 * command that changes or drops the extension takes it exclusively, before any
 * other lock (see guard.c).  So while that command waits for a lock that we
 * hold, we never wait for one that it holds.
 *
 * The guard is a lock on a part of the extension, because no command of the
 * server takes one.  A lock on the extension itself would not do: any role can
 * take that with ALTER FUNCTION ... DEPENDS ON EXTENSION.
 */
#define GUARD 1

/* Take the guard.  Returns the OID of the extension, InvalidOid if none. */
static Oid
lock_guard(LOCKMODE mode, char **version)
{
	static Oid	known = InvalidOid;

	/* while we waited, the extension may have been dropped and created again */
	for (;;)
	{
		Oid			oid;

		if (OidIsValid(known))
			LockDatabaseObject(ExtensionRelationId, known, GUARD, mode);
		oid = find_extension(version);
		if (oid == known)
			return oid;
		known = oid;
	}
}

/*
 * Take the guard exclusively, to change or drop the extension.  The caller has
 * checked that the current user is allowed to do that.
 */
void
tasksched_extension_lock(void)
{
	char	   *version = NULL;

	(void) lock_guard(AccessExclusiveLock, &version);
}

/*
 * Raise an error unless the extension exists in the version of the library.
 * Its own scripts are exempt: during CREATE or ALTER EXTENSION the version in
 * the catalog may be another one.
 */
void
tasksched_extension_check(void)
{
	char	   *version = NULL;
	Oid			oid = lock_guard(AccessShareLock, &version);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"%s\" does not exist", "tasksched"),
				 errhint("Use CREATE EXTENSION tasksched in this database.")));
	if (strcmp(version, TASKSCHED_VERSION) != 0 &&
		!(creating_extension && CurrentExtensionObject == oid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("version %s of the tasksched library does not fit version %s of the extension",
						TASKSCHED_VERSION, version),
				 errhint("Run ALTER EXTENSION tasksched UPDATE in this database, or restart the server if a newer library was installed.")));
	pfree(version);
}

Oid
tasksched_schema_oid(void)
{
	return get_namespace_oid("tasksched", false);
}

Oid
tasksched_type_oid(const char *name)
{
	Oid			oid = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									  CStringGetDatum(name), ObjectIdGetDatum(tasksched_schema_oid()));

	if (!OidIsValid(oid))
		elog(ERROR, "type tasksched.%s does not exist", name);
	return oid;
}

/* An admin is a role that may execute adopt_tasks(): see grant_admin() */
bool
tasksched_caller_is_admin(void)
{
	oidvector  *noargs = buildoidvector(NULL, 0);
	Oid			function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
										   CStringGetDatum("adopt_tasks"),
										   PointerGetDatum(noargs),
										   ObjectIdGetDatum(tasksched_schema_oid()));

	return OidIsValid(function) &&
		object_aclcheck(ProcedureRelationId, function, GetUserId(), ACL_EXECUTE) == ACLCHECK_OK;
}

/* May the current user see the tasks of this role? */
bool
tasksched_role_visible(Oid role)
{
	return has_privs_of_role(GetUserId(), role) || tasksched_caller_is_admin();
}

static const char *const status_names[] = {
	"scheduled", "active", "complete", "failed", "cancelled"
};

const char *
tasksched_status_name(TaskStatus status)
{
	return status_names[status];
}

Datum
tasksched_status_datum(TaskStatus status)
{
	return GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
						   ObjectIdGetDatum(tasksched_type_oid("task_status")),
						   CStringGetDatum(status_names[status]));
}

TaskStatus
tasksched_status_from_datum(Datum status)
{
	HeapTuple	tuple = SearchSysCache1(ENUMOID, status);
	TaskStatus	found = STATUS_NONE;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for enum %u", DatumGetObjectId(status));
	for (int i = 0; i < (int) lengthof(status_names); i++)
	{
		if (namestrcmp(&((Form_pg_enum) GETSTRUCT(tuple))->enumlabel, status_names[i]) == 0)
			found = i;
	}
	ReleaseSysCache(tuple);
	return found;
}
