/*
 * owner.c
 *	  The type task_owner: a role that outlives its own name.
 *
 * A value keeps the role's OID and the name it had when the value was made.
 * It prints the current name of the role, so that it follows ALTER ROLE ...
 * RENAME, and the kept name when there is no role with that OID, so that
 * nothing is lost when the role is dropped.  Reading a name that no role bears
 * is not an error: the value then has no OID.  So a dump carries names, which
 * mean the same role elsewhere, and a restore where a role is missing keeps
 * the row.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "common/hashfn.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "tasksched.h"

typedef struct TaskOwner
{
	int32		vl_len_;		/* varlena header */
	Oid			role;			/* InvalidOid = unknown when it was made */
	char		name[FLEXIBLE_ARRAY_MEMBER];	/* NUL-terminated */
} TaskOwner;

#define PG_GETARG_OWNER(n) ((TaskOwner *) PG_DETOAST_DATUM(PG_GETARG_DATUM(n)))

bool
tasksched_role_exists(Oid role)
{
	return OidIsValid(role) && SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
}

static TaskOwner *
make_owner(Oid role, const char *name)
{
	Size		length = strlen(name) + 1;
	TaskOwner  *owner = palloc0(offsetof(TaskOwner, name) + length);

	SET_VARSIZE(owner, offsetof(TaskOwner, name) + length);
	owner->role = role;
	memcpy(owner->name, name, length);
	return owner;
}

static TaskOwner *
owner_from_name(const char *name)
{
	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("invalid role name: \"%s\"", name)));
	return make_owner(get_role_oid(name, true), name);
}

/* The current name if there is one, else the last one known */
static const char *
owner_name(TaskOwner *owner)
{
	char	   *name = OidIsValid(owner->role) ? GetUserNameFromId(owner->role, true) : NULL;

	return name ? name : owner->name;
}

PG_FUNCTION_INFO_V1(tasksched_owner_in);
Datum
tasksched_owner_in(PG_FUNCTION_ARGS)
{
	PG_RETURN_POINTER(owner_from_name(PG_GETARG_CSTRING(0)));
}

PG_FUNCTION_INFO_V1(tasksched_owner_out);
Datum
tasksched_owner_out(PG_FUNCTION_ARGS)
{
	PG_RETURN_CSTRING(pstrdup(owner_name(PG_GETARG_OWNER(0))));
}

PG_FUNCTION_INFO_V1(tasksched_owner_recv);
Datum
tasksched_owner_recv(PG_FUNCTION_ARGS)
{
	StringInfo	buf = (StringInfo) PG_GETARG_POINTER(0);
	int			nbytes;

	PG_RETURN_POINTER(owner_from_name(pq_getmsgtext(buf, buf->len - buf->cursor, &nbytes)));
}

PG_FUNCTION_INFO_V1(tasksched_owner_send);
Datum
tasksched_owner_send(PG_FUNCTION_ARGS)
{
	const char *name = owner_name(PG_GETARG_OWNER(0));
	StringInfoData buf;

	pq_begintypsend(&buf);
	pq_sendtext(&buf, name, strlen(name));
	PG_RETURN_BYTEA_P(pq_endtypsend(&buf));
}

/* The role's OID; 0 if there is no such role (any more) */
PG_FUNCTION_INFO_V1(tasksched_owner_oid);
Datum
tasksched_owner_oid(PG_FUNCTION_ARGS)
{
	Oid			role = PG_GETARG_OWNER(0)->role;

	PG_RETURN_OID(tasksched_role_exists(role) ? role : InvalidOid);
}

/*
 * Was it made of a name that no role had?  Such a one may be looked up again; a
 * role that was dropped here is gone, and a new one of its name is another.
 */
PG_FUNCTION_INFO_V1(tasksched_owner_name_only);
Datum
tasksched_owner_name_only(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!OidIsValid(PG_GETARG_OWNER(0)->role));
}

PG_FUNCTION_INFO_V1(tasksched_owner_from_role);
Datum
tasksched_owner_from_role(PG_FUNCTION_ARGS)
{
	Oid			role = PG_GETARG_OID(0);

	PG_RETURN_POINTER(make_owner(role, GetUserNameFromId(role, false)));
}

/*
 * Values are compared by the names that they print, so a known role equals an
 * unknown one of the same name.  Names may change, so don't make an index.
 */
static int
owner_compare(FunctionCallInfo fcinfo)
{
	return strcmp(owner_name(PG_GETARG_OWNER(0)), owner_name(PG_GETARG_OWNER(1)));
}

#define OWNER_COMPARISON(name, op) \
PG_FUNCTION_INFO_V1(tasksched_owner_##name); \
Datum \
tasksched_owner_##name(PG_FUNCTION_ARGS) \
{ \
	PG_RETURN_BOOL(owner_compare(fcinfo) op 0); /* NOLINT(bugprone-macro-parentheses) */ \
}

OWNER_COMPARISON(eq, ==)
OWNER_COMPARISON(ne, !=)
OWNER_COMPARISON(lt, <)
OWNER_COMPARISON(le, <=)
OWNER_COMPARISON(gt, >)
OWNER_COMPARISON(ge, >=)

PG_FUNCTION_INFO_V1(tasksched_owner_cmp);
Datum
tasksched_owner_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(owner_compare(fcinfo));
}

PG_FUNCTION_INFO_V1(tasksched_owner_hash);
Datum
tasksched_owner_hash(PG_FUNCTION_ARGS)
{
	const char *name = owner_name(PG_GETARG_OWNER(0));

	return hash_any((const unsigned char *) name, strlen(name));
}
