/*
 * owner.c
 *	  The type task_owner: a role that outlives its own name.
 *
 * A value holds the OID of the role, and the name that the role had when the
 * value was made.  It prints the current name of the role, and so follows
 * ALTER ROLE ... RENAME.  If the role has been dropped, it prints the stored
 * name with a mark, so a dropped role is still identified.  Input of a name
 * that no role has is not an error: such a value has no OID.  So a dump
 * contains names, which mean the same roles elsewhere, and a restore where a
 * role is missing keeps the row.
 *
 * A name with the mark is never looked up, even if there is a role of that
 * name.  The role that it stands for is gone for good, and another role of its
 * name must not get its tasks.
 *
 * The names of roles are in a shared catalog, each in the encoding of the
 * database in which it was made.  Bytes that are invalid in this database are
 * masked, since a dump of the table could not be restored with them.  Such a
 * name is marked as well, since the masked name may be that of another role.
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
	Oid			role;			/* InvalidOid = only a name was known */
	char		name[FLEXIBLE_ARRAY_MEMBER];	/* NUL-terminated */
} TaskOwner;

#define PG_GETARG_OWNER(n) ((TaskOwner *) PG_DETOAST_DATUM(PG_GETARG_DATUM(n)))

/*
 * The marks of a role that was dropped, and of a name with masked bytes.  The
 * OID and a closing parenthesis follow.
 */
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

/* The length of a name without its mark, if it has one */
static Size
unmarked_length(const char *name)
{
	static const char *const marks[] = {DROPPED_MARK, MASKED_MARK};
	Size		length = strlen(name);
	Size		digits = length > 0 ? length - 1 : 0;	/* their start */

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
	/* a name that has grown in another encoding is no role's name here */
	if (!is_marked(name) && strlen(name) < NAMEDATALEN)
		role = get_role_oid(name, true);
	return make_owner(role, name);
}

/* Return the text that an owner prints, as a copy */
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

/* The role's OID; 0 if the role does not exist (any more) */
PG_FUNCTION_INFO_V1(tasksched_owner_oid);
Datum
tasksched_owner_oid(PG_FUNCTION_ARGS)
{
	Oid			role = PG_GETARG_OWNER(0)->role;

	PG_RETURN_OID(tasksched_role_exists(role) ? role : InvalidOid);
}

/*
 * Was this value made from a name that no role had?  Such a name may be looked
 * up again.  A role that was dropped is gone for good, and a new one of its
 * name is a different role.
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
 * Compare two values by what never changes.  Roles with an OID are ordered by
 * that.  Those without one follow, ordered by their names.
 */
static int
owner_compare(FunctionCallInfo fcinfo)
{
	TaskOwner  *a = PG_GETARG_OWNER(0);
	TaskOwner  *b = PG_GETARG_OWNER(1);

	if (a->role != b->role)
		return a->role - 1 < b->role - 1 ? -1 : 1;	/* InvalidOid sorts last */
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
