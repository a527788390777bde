/*
 * guard.c
 *	  Commands that lock objects of the extension: privilege checks, and the
 *	  extension's guard.
 *
 * Many commands of the server lock the objects they name before they check the
 * user's privileges on them.  A command of a user without the privilege would
 * wait for an idle transaction that has scheduled a task, and all others would
 * wait behind that command.  So the privilege is checked here first, and its
 * lack is reported with the server's own error.
 *
 * Commands that are not handled here do no harm.  Either they check privileges
 * before they lock, as commands on the table itself do (ALTER and DROP TABLE,
 * CREATE INDEX, TRUNCATE, LOCK).  Or they take only the lock of a reader or
 * writer of rows, which blocks no task (DROP TRIGGER, LIKE, COPY).
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

/* The name of both the extension and its schema */
#define NAME "tasksched"

/* What a command requires on a relation: a privilege of GRANT, or ownership */
#define OWNERSHIP ACL_NO_RIGHTS

static bool
extension_exists(void)
{
	return OidIsValid(tasksched_extension_oid());
}

static bool
has_privilege(Oid relid, AclMode privilege)
{
	if (privilege == OWNERSHIP)
		return object_ownercheck(RelationRelationId, relid, GetUserId());
	if (pg_class_aclcheck(relid, GetUserId(), privilege) == ACLCHECK_OK)
		return true;
	/* it may be on columns; the server checks those that are referred to */
	return privilege == ACL_REFERENCES &&
		pg_attribute_aclcheck_all(relid, GetUserId(), privilege, ACLMASK_ANY) == ACLCHECK_OK;
}

/*
 * A command locks this relation.  If it is ours, raise an error unless the
 * user has the privilege.
 */
static void
require_privilege(const RangeVar *name, AclMode privilege)
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
		has_privilege(relid, privilege) || !extension_exists())
		return;
	aclcheck_error(privilege == OWNERSHIP ? ACLCHECK_NOT_OWNER : ACLCHECK_NO_PRIV,
				   get_relkind_objtype(get_rel_relkind(relid)), name->relname);
}

/*
 * The same for an extension, of which the user must be the owner.  Returns
 * whether it exists and is the one that is meant.
 */
static bool
require_extension_named(const char *name, const char *meant)
{
	Oid			oid = strcmp(name, meant) == 0 ? get_extension_oid(name, true) : InvalidOid;

	if (!OidIsValid(oid))
		return false;
	if (!object_ownercheck(ExtensionRelationId, oid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_EXTENSION, name);
	return true;
}

/* The same for our extension */
static bool
require_extension(const char *name)
{
	return require_extension_named(name, NAME);
}

/* The same for our schema */
static bool
require_schema(const char *name)
{
	Oid			oid;

	if (strcmp(name, NAME) != 0)
		return false;
	oid = get_namespace_oid(name, true);
	if (!OidIsValid(oid) || !extension_exists())
		return false;
	if (!object_ownercheck(NamespaceRelationId, oid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_SCHEMA, name);
	return true;
}

/*
 * The same for an object of any type, as COMMENT names it.  Returns whether it
 * is our extension or our schema.
 */
static bool
require_object(ObjectType type, Node *object)
{
	List	   *names;

	switch (type)
	{
		case OBJECT_EXTENSION:
			return require_extension(strVal(object));
		case OBJECT_SCHEMA:
			return require_schema(strVal(object));
		case OBJECT_TABLE:
		case OBJECT_FOREIGN_TABLE:
		case OBJECT_INDEX:
		case OBJECT_MATVIEW:
		case OBJECT_SEQUENCE:
		case OBJECT_VIEW:
			require_privilege(makeRangeVarFromNameList(castNode(List, object)), OWNERSHIP);
			return false;
		case OBJECT_COLUMN:
			names = castNode(List, object);
			if (list_length(names) > 1)
				require_privilege(makeRangeVarFromNameList(list_truncate(list_copy(names), list_length(names) - 1)),
								  OWNERSHIP);
			return false;
		default:
			return false;
	}
}

/* Check the tables that the foreign keys of a list refer to */
static void
check_constraints(List *elements)
{
	ListCell   *lc;

	foreach(lc, elements)
	{
		Node	   *element = lfirst(lc);

		if (IsA(element, Constraint) && castNode(Constraint, element)->contype == CONSTR_FOREIGN)
			require_privilege(castNode(Constraint, element)->pktable, ACL_REFERENCES);
	}
}

/* The same, including the foreign keys of column definitions */
static void
require_references(List *elements)
{
	ListCell   *lc;

	check_constraints(elements);
	foreach(lc, elements)
	{
		if (IsA(lfirst(lc), ColumnDef))
			check_constraints(lfirst_node(ColumnDef, lc)->constraints);
	}
}

/* Check the relations of a list; the server refuses any other items in it */
static void
require_ownership(List *relations)
{
	ListCell   *lc;

	foreach(lc, relations)
	{
		if (IsA(lfirst(lc), RangeVar))
			require_privilege(lfirst_node(RangeVar, lc), OWNERSHIP);
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
		return;					/* the command does nothing */
	require_ownership(stmt->inhRelations);	/* or a partitioned table */
	require_references(stmt->tableElts);
	require_references(stmt->constraints);
}

/* Check what ALTER TABLE or ALTER INDEX locks besides the relation itself */
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
				require_references(list_make1(cmd->def));
				break;
			case AT_AddInherit:
				require_privilege(castNode(RangeVar, cmd->def), OWNERSHIP);
				break;
			case AT_AttachPartition:
			case AT_DetachPartition:
			case AT_DetachPartitionFinalize:
				require_privilege(castNode(PartitionCmd, cmd->def)->name, OWNERSHIP);
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
			require_privilege(object->pubtable->relation, OWNERSHIP);
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
		ours |= require_object(stmt->removeType, lfirst(lc));
		/* dropping plpgsql, which tasksched requires, drops it as well */
		ours |= stmt->behavior == DROP_CASCADE && stmt->removeType == OBJECT_EXTENSION &&
			require_extension_named(strVal(lfirst(lc)), "plpgsql");
	}
	return ours;
}

/* Does DROP OWNED name a role that owns the extension or is a superuser? */
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
 * Raise an error if a command would lock an object of the extension, and the
 * user lacks the privilege.  Returns whether the command changes the
 * extension.
 */
static bool
check_command(Node *stmt)
{
	bool		ours;

	switch (nodeTag(stmt))
	{
		case T_CreateTrigStmt:
			require_privilege(castNode(CreateTrigStmt, stmt)->relation, ACL_TRIGGER);
			return false;
		case T_RuleStmt:
			require_privilege(castNode(RuleStmt, stmt)->relation, OWNERSHIP);
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
			require_ownership(castNode(CreateStatsStmt, stmt)->relations);
			return false;
		case T_CreatePublicationStmt:
			check_publication(castNode(CreatePublicationStmt, stmt)->pubobjects);
			return false;
		case T_AlterPublicationStmt:
			/* the owner of a publication may drop any table from it */
			if (castNode(AlterPublicationStmt, stmt)->action != AP_DropObjects)
				check_publication(castNode(AlterPublicationStmt, stmt)->pubobjects);
			return false;
		case T_AlterObjectDependsStmt:
			require_privilege(castNode(AlterObjectDependsStmt, stmt)->relation, OWNERSHIP);
			(void) require_extension(strVal(castNode(AlterObjectDependsStmt, stmt)->extname));
			return false;
		case T_CommentStmt:
			(void) require_object(castNode(CommentStmt, stmt)->objtype, castNode(CommentStmt, stmt)->object);
			return false;
		case T_SecLabelStmt:
			(void) require_object(castNode(SecLabelStmt, stmt)->objtype, castNode(SecLabelStmt, stmt)->object);
			return false;
		case T_AlterOwnerStmt:
			return castNode(AlterOwnerStmt, stmt)->objectType == OBJECT_SCHEMA &&
				require_schema(strVal(castNode(AlterOwnerStmt, stmt)->object));
		case T_RenameStmt:
			return castNode(RenameStmt, stmt)->renameType == OBJECT_SCHEMA &&
				require_schema(castNode(RenameStmt, stmt)->subname);
		case T_AlterObjectSchemaStmt:
			return castNode(AlterObjectSchemaStmt, stmt)->objectType == OBJECT_EXTENSION &&
				require_extension(strVal(castNode(AlterObjectSchemaStmt, stmt)->object));
		case T_AlterExtensionStmt:
			return require_extension(castNode(AlterExtensionStmt, stmt)->extname);
		case T_AlterExtensionContentsStmt:
			ours = require_extension(castNode(AlterExtensionContentsStmt, stmt)->extname);
			(void) require_object(castNode(AlterExtensionContentsStmt, stmt)->objtype,
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
 * Called before the server executes a utility command.  In a read-only
 * transaction the server refuses all commands that are checked here, before
 * they lock anything.
 */
void
tasksched_guard_command(Node *stmt)
{
	if (!XactReadOnly && check_command(stmt))
		tasksched_extension_lock();
}
