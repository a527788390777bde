/*
 * owner.c
 *	  The type task_owner: a role that outlives its own name.
 *
 * A value keeps the role's OID and the name it had when the value was made.
 * It prints the current name of the role, so that it follows ALTER ROLE ...
 * RENAME.  When there is no role with that OID any more, it prints the kept name
 * with a mark, so that nothing is lost when the role is dropped.  Reading a name
 * that no role bears is not an error: the value then has no OID.  So a dump
 * carries names, which mean the same role elsewhere, and a restore where a role
 * is missing keeps the row.
 *
 * A name with the mark is never looked up, whatever roles there are: the role is
 * gone for good, and another one of its name is not to get what it has left.
 *
 * Names are in a shared catalog, in the encoding of the database that they were
 * made in.  What is not valid in this one is masked, or a dump of the table
 * could not be restored; and the name is marked, since it may be another role's.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_authid.h"
#include "common/hashfn.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "base/base.h"

typedef struct TaskOwner
{
	int32		vl_len_;		/* varlena header */
	Oid			role;			/* InvalidOid = unknown when it was made */
	char		name[FLEXIBLE_ARRAY_MEMBER];	/* NUL-terminated */
} TaskOwner;

#define PG_GETARG_OWNER(n) ((TaskOwner *) PG_DETOAST_DATUM(PG_GETARG_DATUM(n)))

/* What a name ends in, before an OID, when that role is gone, or its name is no text here */
#define DROPPED_MARK " (dropped role "
#define MASKED_MARK " (role "
#define MAX_OID_DIGITS 10

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

/* The length of a name without a mark, if it ends in one */
static Size
unmarked_length(const char *name)
{
	static const char *const marks[] = {DROPPED_MARK, MASKED_MARK};
	Size		length = strlen(name);
	Size		digits = length > 0 ? length - 1 : 0;	/* where they begin */

	while (digits > 0 && length - digits <= MAX_OID_DIGITS && isdigit((unsigned char) name[digits - 1]))
		digits--;
	if (!isdigit((unsigned char) name[digits]) || name[length - 1] != ')')
		return length;
	for (int i = 0; i < (int) lengthof(marks); i++)
	{
		Size		mark = strlen(marks[i]);

		if (digits >= mark && strncmp(name + digits - mark, marks[i], mark) == 0)
			return digits - mark;
	}
	return length;
}

static bool
is_marked(const char *name)
{
	return name[unmarked_length(name)] != '\0';
}

static TaskOwner *
owner_from_name(const char *name)
{
	Oid			role = InvalidOid;

	tasksched_text_check(name, strlen(name));
	if (name[0] == '\0' || !tasksched_name_fits(pnstrdup(name, unmarked_length(name))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("invalid role name: \"%s\"", name)));
	/* one that got longer in another encoding is no role's here */
	if (!is_marked(name) && strlen(name) < NAMEDATALEN)
		role = get_role_oid(name, true);
	return make_owner(role, name);
}

/* A copy of what an owner prints */
static char *
owner_text(TaskOwner *owner)
{
	char	   *text = OidIsValid(owner->role) ? GetUserNameFromId(owner->role, true) : pstrdup(owner->name);

	if (text == NULL)
		text = psprintf("%s" DROPPED_MARK "%u)", owner->name, owner->role);
	if (tasksched_text_mask(text) && !is_marked(text))
		text = psprintf("%s" MASKED_MARK "%u)", text, owner->role);
	return text;
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
	PG_RETURN_CSTRING(owner_text(PG_GETARG_OWNER(0)));
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
	char	   *text = owner_text(PG_GETARG_OWNER(0));
	StringInfoData buf;

	pq_begintypsend(&buf);
	pq_sendtext(&buf, text, strlen(text));
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
 * role that was dropped is gone, and a new one of its name is another.
 */
PG_FUNCTION_INFO_V1(tasksched_owner_name_only);
Datum
tasksched_owner_name_only(PG_FUNCTION_ARGS)
{
	TaskOwner  *owner = PG_GETARG_OWNER(0);

	PG_RETURN_BOOL(!OidIsValid(owner->role) && !is_marked(owner->name));
}

PG_FUNCTION_INFO_V1(tasksched_owner_from_role);
Datum
tasksched_owner_from_role(PG_FUNCTION_ARGS)
{
	Oid			role = PG_GETARG_OID(0);
	char	   *name = GetUserNameFromId(role, false);

	tasksched_text_mask(name);
	PG_RETURN_POINTER(make_owner(role, name));
}

/*
 * Values are compared by what never changes: roles by their OIDs, and after them
 * those that have none, by their names.
 */
static int
owner_compare(FunctionCallInfo fcinfo)
{
	TaskOwner  *a = PG_GETARG_OWNER(0);
	TaskOwner  *b = PG_GETARG_OWNER(1);

	if (a->role != b->role)
		return a->role - 1 < b->role - 1 ? -1 : 1;	/* InvalidOid is the last */
	return OidIsValid(a->role) ? 0 : strcmp(a->name, b->name);
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
	TaskOwner  *owner = PG_GETARG_OWNER(0);

	if (OidIsValid(owner->role))
		return hash_uint32(owner->role);
	return hash_any((const unsigned char *) owner->name, strlen(owner->name));
}
