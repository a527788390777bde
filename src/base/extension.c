/*
 * extension.c
 *	  The extension as the catalogs know it: whether it is there, in which
 *	  version, and its objects that C code has to find.
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

/* The extension's OID, InvalidOid if there is none; and its version */
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
 * The guard keeps the extension as it is until the end of the transaction.  Who
 * uses it takes the guard shared, and who changes or drops it, exclusively and
 * before any other lock (see guard.c): once that one waits for one of our locks,
 * we wait for none of its.
 *
 * It is a lock on a part of the extension, which no command of the server takes.
 * That on the extension itself won't do: any role can have it, by ALTER FUNCTION
 * ... DEPENDS ON EXTENSION.
 */
#define GUARD 1

static Oid
lock_guard(LOCKMODE mode, char **version)
{
	static Oid	known = InvalidOid;

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

/* The current user, who may, is about to change or drop the extension */
void
tasksched_extension_lock(void)
{
	char	   *version = NULL;

	(void) lock_guard(AccessExclusiveLock, &version);
}

/*
 * Raise an error unless the extension is there, in the library's version.  A
 * script of its own may be on its way from one version to the next.
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

/* An admin is who may execute adopt_tasks(): see grant_admin() */
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
