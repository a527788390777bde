/*
 * session.c
 *	  The session of a worker: connecting as the owner of the tasks, and
 *	  resetting it after each of them.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/portal.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/settings.h"
#include "store/store.h"
#include "worker/internal.h"
#include "worker/worker.h"

static WorkerArgs my_args;
static volatile bool role_changed = false;
static uint32 owner_hash;		/* hash value of the owner in the syscache */

/*
 * Compute a fingerprint of the settings of pg_db_role_setting that a session
 * of an owner starts with.
 */
uint32
tasksched_settings_fingerprint(Oid owner)
{
	const Oid	keys[][2] = {
		{MyDatabaseId, owner},
		{MyDatabaseId, InvalidOid},
		{InvalidOid, owner},
		{InvalidOid, InvalidOid}
	};
	Relation	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	uint32		hash = 0;

	for (int i = 0; i < (int) lengthof(keys); i++)
	{
		ScanKeyData key[2];
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(keys[i][0]));
		ScanKeyInit(&key[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(keys[i][1]));
		scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 2, key);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
			hash = hash_combine(hash, hash_combine(HeapTupleHeaderGetRawXmin(tuple->t_data), i + 1));
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return hash;
}

/*
 * Is the session outdated?  A session does not follow changes of its role, or
 * of the settings that it started with.
 */
bool
tasksched_session_is_stale(void)
{
	return role_changed || tasksched_settings_fingerprint(my_args.owner) != my_args.settings;
}

/* A role has changed; with no hash value, any role may have */
static void
role_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	if (hashvalue == 0 || hashvalue == owner_hash)
		role_changed = true;
}

/* Connect to the database as the owner of the tasks, which may lack LOGIN */
void
tasksched_session_connect(const WorkerArgs *args)
{
	HeapTuple	tuple;
	bool		ok;

	my_args = *args;
	tasksched_connect_as(my_args.dboid, my_args.owner, my_args.superuser);
	tasksched_pin_timeouts();
	/* if an error ended the process, it would count as a crash of the task */
	SetConfigOption("exit_on_error", "off", PGC_SUSET, PGC_S_OVERRIDE);
	CacheRegisterSyscacheCallback(AUTHOID, role_callback, (Datum) 0);

	tasksched_begin();
	owner_hash = GetSysCacheHashValue1(AUTHOID, ObjectIdGetDatum(my_args.owner));
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(my_args.owner));
	ok = HeapTupleIsValid(tuple) &&
		((Form_pg_authid) GETSTRUCT(tuple))->rolsuper == my_args.superuser;
	if (ok)
	{
		SetConfigOption("session_authorization",
						NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname),
						PGC_BACKEND, PGC_S_OVERRIDE);
		/* ALTER ROLE or DATABASE ... SET may have set another role */
		SetConfigOption("role", "none", PGC_BACKEND, PGC_S_OVERRIDE);
	}
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	/* the server does so for client sessions only, and in a transaction too */
	if (ok)
		process_session_preload_libraries();
	tasksched_commit();
	if (!ok)
		proc_exit(0);			/* the scheduler reads the role again */
	role_changed = false;
}

Oid
tasksched_session_owner(void)
{
	return my_args.owner;
}

/* Has the role of the session changed, or may it have changed? */
bool
tasksched_session_role_changed(void)
{
	return role_changed;
}

/* ----------
 * Resetting the session
 * ----------
 */

/* Return the name of a library, without its directory and suffix */
static char *
library_name(const char *path)
{
	const char *slash = last_dir_separator(path);
	char	   *name = pstrdup(slash ? slash + 1 : path);
	int			len = strlen(name) - strlen(DLSUFFIX);

	if (len > 0 && strcmp(name + len, DLSUFFIX) == 0)
		name[len] = '\0';
	return name;
}

static bool
is_in_library(Oid function, const char *library)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		result = false;
	bool		isnull;
	Datum		path;

	if (!HeapTupleIsValid(tuple))
		return false;
	path = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_probin, &isnull);
	if (!isnull)
		result = strcmp(library_name(TextDatumGetCString(path)), library) == 0;
	ReleaseSysCache(tuple);
	return result;
}

/* Does the library implement a procedural language or foreign-data wrapper? */
static bool
is_stateful_library(const char *library)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	rel = table_open(LanguageRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = is_in_library(((Form_pg_language) GETSTRUCT(tuple))->lanplcallfoid, library);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	rel = table_open(ForeignDataWrapperRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_data_wrapper fdw = (Form_pg_foreign_data_wrapper) GETSTRUCT(tuple);

		found = is_in_library(fdw->fdwhandler, library) ||
			is_in_library(fdw->fdwvalidator, library);	/* all that dblink has */
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * May the session have state that tasksched_session_reset() can't reset?
 * Examples are the connections of dblink or of a foreign-data wrapper, and the
 * global variables of a procedural language.  There is no way to ask for such
 * state, so we go by the libraries that are loaded.  PL/pgSQL is known to keep
 * none.
 */
bool
tasksched_session_is_stateful(void)
{
	static Size looked_at = 0;
	static bool stateful = false;
	Size		size = EstimateLibraryStateSpace();
	char	   *libraries;

	if (size == looked_at)
		return stateful;
	looked_at = size;

	tasksched_begin();
	libraries = palloc(size);
	SerializeLibraryState(size, libraries);
	for (char *path = libraries; *path != '\0' && !stateful; path += strlen(path) + 1)
	{
		char	   *library = library_name(path);

		stateful = strcmp(library, "tasksched") != 0 && strcmp(library, "plpgsql") != 0 &&
			is_stateful_library(library);
	}
	tasksched_commit();
	return stateful;
}

/* Has the session made temporary objects, which its reset drops? */
bool
tasksched_session_has_temporary_objects(void)
{
	Oid			namespace;
	Oid			toast_namespace;

	GetTempNamespaceState(&namespace, &toast_namespace);
	return OidIsValid(namespace);
}

/*
 * Reset the session to its initial state, as DISCARD ALL does, but keep cached
 * plans.  In addition, release replication slots, as PostgresMain() does after
 * an error, and set a new random seed, since the action may have called
 * setseed().
 */
void
tasksched_session_reset(void)
{
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	ReplicationSlotCleanup(false);

	/* tasksched_begin() overrides what the action has set for transactions */
	tasksched_begin();
	PortalHashTableDeleteAll();
	SetPGVariable("session_authorization", NIL, false);
	SetPGVariable("role", NIL, false);
	ResetAllOptions();
	/* dropping temporary tables need not wait for a standby */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	DropAllPreparedStatements();
	Async_UnlistenAll();
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetTempTableNamespace();
	ResetSequenceCaches();
	(void) DirectFunctionCall1(setseed, Float8GetDatum(2 * pg_prng_double(&pg_global_prng_state) - 1));
	tasksched_commit();
}
