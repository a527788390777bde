/*
 * guard.c
 *	  Commands that lock what is ours: who may give them, and the extension's
 *	  guard.
 *
 * Many commands of the server lock what they name before they ask whether the
 * user may do that to it.  Somebody who may not would wait behind a transaction
 * that has scheduled a task and is idle, and everybody else behind that.  So the
 * question is asked here first, and answered with the server's own error.
 *
 * What is not here either asks before it locks (commands on the table itself, such
 * as ALTER or DROP TABLE, CREATE INDEX, TRUNCATE, LOCK), or locks as somebody who
 * reads or writes rows does, which is in nobody's way (DROP TRIGGER, LIKE, COPY).
 *
 * Commands that change or drop the extension take its guard; see extension.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"

#include "base/base.h"
#include "base/compat.h"
#include "launcher/launcher.h"
#include "shared/shared.h"

/* The name of the extension and that of its schema */
#define NAME "tasksched"

/* What a command needs on a relation: one of the rights of GRANT, or this */
#define OWNERSHIP ACL_NO_RIGHTS

static bool
is_there(void)
{
	return OidIsValid(tasksched_extension_oid());
}

static bool
has_right(Oid relid, AclMode right)
{
	if (right == OWNERSHIP)
		return object_ownercheck(RelationRelationId, relid, GetUserId());
	if (pg_class_aclcheck(relid, GetUserId(), right) == ACLCHECK_OK)
		return true;
	/* which columns a foreign key refers to is for the server to find out */
	return right == ACL_REFERENCES &&
		pg_attribute_aclcheck_all(relid, GetUserId(), right, ACLMASK_ANY) == ACLCHECK_OK;
}

/* A command locks this relation.  If it is ours, does the user have the right? */
static void
need(const RangeVar *name, AclMode right)
{
	Oid			schema;
	Oid			relid;

	if (name == NULL || (name->schemaname != NULL && strcmp(name->schemaname, NAME) != 0))
		return;
	schema = get_namespace_oid(NAME, true);
	if (!OidIsValid(schema))
		return;
	relid = RangeVarGetRelid(name, NoLock, true);
	if (!OidIsValid(relid) || get_rel_namespace(relid) != schema ||
		has_right(relid, right) || !is_there())
		return;
	aclcheck_error(right == OWNERSHIP ? ACLCHECK_NOT_OWNER : ACLCHECK_NO_PRIV,
				   get_relkind_objtype(get_rel_relkind(relid)), name->relname);
}

/* Likewise an extension; returns whether it is the one that is meant, and there */
static bool
need_extension_named(const char *name, const char *meant)
{
	Oid			oid = strcmp(name, meant) == 0 ? get_extension_oid(name, true) : InvalidOid;

	if (!OidIsValid(oid))
		return false;
	if (!object_ownercheck(ExtensionRelationId, oid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_EXTENSION, name);
	return true;
}

static bool
need_extension(const char *name)
{
	return need_extension_named(name, NAME);
}

/* Likewise its schema */
static bool
need_schema(const char *name)
{
	Oid			oid;

	if (strcmp(name, NAME) != 0)
		return false;
	oid = get_namespace_oid(name, true);
	if (!OidIsValid(oid) || !is_there())
		return false;
	if (!object_ownercheck(NamespaceRelationId, oid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_SCHEMA, name);
	return true;
}

/* Likewise an object of any kind, as COMMENT names it */
static bool
need_object(ObjectType type, Node *object)
{
	List	   *names;

	switch (type)
	{
		case OBJECT_EXTENSION:
			return need_extension(strVal(object));
		case OBJECT_SCHEMA:
			return need_schema(strVal(object));
		case OBJECT_TABLE:
		case OBJECT_FOREIGN_TABLE:
		case OBJECT_INDEX:
		case OBJECT_MATVIEW:
		case OBJECT_SEQUENCE:
		case OBJECT_VIEW:
			need(makeRangeVarFromNameList(castNode(List, object)), OWNERSHIP);
			return false;
		case OBJECT_COLUMN:
			names = castNode(List, object);
			if (list_length(names) > 1)
				need(makeRangeVarFromNameList(list_truncate(list_copy(names), list_length(names) - 1)),
					 OWNERSHIP);
			return false;
		default:
			return false;
	}
}

/* Constraints, perhaps among other things: the tables that foreign keys refer to */
static void
check_constraints(List *elements)
{
	ListCell   *lc;

	foreach(lc, elements)
	{
		Node	   *element = lfirst(lc);

		if (IsA(element, Constraint) && castNode(Constraint, element)->contype == CONSTR_FOREIGN)
			need(castNode(Constraint, element)->pktable, ACL_REFERENCES);
	}
}

/* Likewise, and those of columns */
static void
need_references(List *elements)
{
	ListCell   *lc;

	check_constraints(elements);
	foreach(lc, elements)
	{
		if (IsA(lfirst(lc), ColumnDef))
			check_constraints(lfirst_node(ColumnDef, lc)->constraints);
	}
}

/* Relations of a list, which may have other things that the server will refuse */
static void
need_ownership(List *relations)
{
	ListCell   *lc;

	foreach(lc, relations)
	{
		if (IsA(lfirst(lc), RangeVar))
			need(lfirst_node(RangeVar, lc), OWNERSHIP);
	}
}

/* Is there a relation of this name? */
static bool
relation_exists(const RangeVar *name)
{
	return OidIsValid(RangeVarGetRelid(name, NoLock, true));
}

static void
check_create_table(CreateStmt *stmt)
{
	if (stmt->if_not_exists && relation_exists(stmt->relation))
		return;					/* nothing is done */
	need_ownership(stmt->inhRelations); /* or the one that it is a partition of */
	need_references(stmt->tableElts);
	need_references(stmt->constraints);
}

/* What ALTER TABLE (or INDEX) locks besides the table itself */
static void
check_alter_table(AlterTableStmt *stmt)
{
	ListCell   *lc;

	if (stmt->missing_ok && !relation_exists(stmt->relation))
		return;
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		switch (cmd->subtype)
		{
			case AT_AddColumn:
			case AT_AddConstraint:
				need_references(list_make1(cmd->def));
				break;
			case AT_AddInherit:
				need(castNode(RangeVar, cmd->def), OWNERSHIP);
				break;
			case AT_AttachPartition:
			case AT_DetachPartition:
			case AT_DetachPartitionFinalize:
				need(castNode(PartitionCmd, cmd->def)->name, OWNERSHIP);
				break;
			default:
				break;
		}
	}
}

static void
check_publication(List *objects)
{
	ListCell   *lc;

	foreach(lc, objects)
	{
		PublicationObjSpec *object = lfirst_node(PublicationObjSpec, lc);

		if (object->pubtable != NULL)
			need(object->pubtable->relation, OWNERSHIP);
	}
}

static bool
check_drop(DropStmt *stmt)
{
	bool		ours = false;
	ListCell   *lc;

	if (stmt->removeType != OBJECT_EXTENSION && stmt->removeType != OBJECT_SCHEMA)
		return false;
	foreach(lc, stmt->objects)
	{
		ours |= need_object(stmt->removeType, lfirst(lc));
		/* with what tasksched requires, it goes as well */
		ours |= stmt->behavior == DROP_CASCADE && stmt->removeType == OBJECT_EXTENSION &&
			need_extension_named(strVal(lfirst(lc)), "plpgsql");
	}
	return ours;
}

/* DROP OWNED, of a role that owns the extension or is a superuser */
static bool
check_drop_owned(DropOwnedStmt *stmt)
{
	Oid			oid = tasksched_extension_oid();
	ListCell   *lc;

	foreach(lc, stmt->roles)
	{
		Oid			role = get_rolespec_oid(lfirst_node(RoleSpec, lc), true);

		if (OidIsValid(oid) && OidIsValid(role) && has_privs_of_role(GetUserId(), role) &&
			object_ownercheck(ExtensionRelationId, oid, role))
			return true;
	}
	return false;
}

/*
 * Raise an error if a command would lock what is ours, and the user may not give
 * it; returns whether it changes the extension.
 */
static bool
check_command(Node *stmt)
{
	bool		ours;

	switch (nodeTag(stmt))
	{
		case T_CreateTrigStmt:
			need(castNode(CreateTrigStmt, stmt)->relation, ACL_TRIGGER);
			return false;
		case T_RuleStmt:
			need(castNode(RuleStmt, stmt)->relation, OWNERSHIP);
			return false;
		case T_CreateStmt:
			check_create_table(castNode(CreateStmt, stmt));
			return false;
		case T_CreateForeignTableStmt:
			check_create_table(&castNode(CreateForeignTableStmt, stmt)->base);
			return false;
		case T_AlterTableStmt:
			check_alter_table(castNode(AlterTableStmt, stmt));
			return false;
		case T_CreateStatsStmt:
			need_ownership(castNode(CreateStatsStmt, stmt)->relations);
			return false;
		case T_CreatePublicationStmt:
			check_publication(castNode(CreatePublicationStmt, stmt)->pubobjects);
			return false;
		case T_AlterPublicationStmt:
			/* who owns the publication may take out of it what it does not own */
			if (castNode(AlterPublicationStmt, stmt)->action != AP_DropObjects)
				check_publication(castNode(AlterPublicationStmt, stmt)->pubobjects);
			return false;
		case T_AlterObjectDependsStmt:
			need(castNode(AlterObjectDependsStmt, stmt)->relation, OWNERSHIP);
			(void) need_extension(strVal(castNode(AlterObjectDependsStmt, stmt)->extname));
			return false;
		case T_CommentStmt:
			(void) need_object(castNode(CommentStmt, stmt)->objtype, castNode(CommentStmt, stmt)->object);
			return false;
		case T_SecLabelStmt:
			(void) need_object(castNode(SecLabelStmt, stmt)->objtype, castNode(SecLabelStmt, stmt)->object);
			return false;
		case T_AlterOwnerStmt:
			return castNode(AlterOwnerStmt, stmt)->objectType == OBJECT_SCHEMA &&
				need_schema(strVal(castNode(AlterOwnerStmt, stmt)->object));
		case T_RenameStmt:
			return castNode(RenameStmt, stmt)->renameType == OBJECT_SCHEMA &&
				need_schema(castNode(RenameStmt, stmt)->subname);
		case T_AlterObjectSchemaStmt:
			return castNode(AlterObjectSchemaStmt, stmt)->objectType == OBJECT_EXTENSION &&
				need_extension(strVal(castNode(AlterObjectSchemaStmt, stmt)->object));
		case T_AlterExtensionStmt:
			return need_extension(castNode(AlterExtensionStmt, stmt)->extname);
		case T_AlterExtensionContentsStmt:
			ours = need_extension(castNode(AlterExtensionContentsStmt, stmt)->extname);
			(void) need_object(castNode(AlterExtensionContentsStmt, stmt)->objtype,
							   castNode(AlterExtensionContentsStmt, stmt)->object);
			return ours;
		case T_DropStmt:
			return check_drop(castNode(DropStmt, stmt));
		case T_DropOwnedStmt:
			return check_drop_owned(castNode(DropOwnedStmt, stmt));
		default:
			return false;
	}
}

/*
 * To be called before the server executes a utility command.  In a read-only
 * transaction it refuses all of these.
 */
void
tasksched_guard_command(Node *stmt)
{
	if (!XactReadOnly && check_command(stmt))
		tasksched_extension_lock();
}
