/*
 * queries.c
 *	  The SQL texts of the statements on our tables.
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "store/internal.h"

/* The columns of the row type tasksched.task, in order */
#define TASK_COLUMNS \
	"t.id, t.action, t.status, t.run_at, t.resource_id, t.params, t.result, t.error, " \
	"t.error_details, t.owner::pg_catalog.regrole, t.priority, t.attempt, t.launch, t.crashes, " \
	"t.created_at, t.started_at, t.updated_at, t.finished_at"

/* Whether the role $2 may see a task.  $1 says whether it is an admin. */
#define VISIBLE "($1 OR pg_catalog.pg_has_role($2, t.owner::oid, 'USAGE'))"

/* The columns that a task keeps whenever it moves between live and finished */
#define KEPT_COLUMNS \
	"id, action, resource_id, params, owner, priority, launch, created_at, "

/*
 * Conditions on the status of a task that is found by its id or its place.
 * They are written so that no index can serve them.  While the table is small,
 * walking through all tasks of a status looks as cheap as the look-up, and
 * that plan would stay.
 */
#define IS_SCHEDULED "status::text = 'scheduled'"
#define IS_ACTIVE "status::text = 'active'"

/* See tasksched_next_launch() */
#define NEXT_LAUNCH "launch % 2147483647 + 1"

const QueryText tasksched_queries[NUM_QUERIES] = {
	[Q_INSTALLATION] = {
		"SELECT last_value FROM tasksched.installation",
		{0}
	},
	[Q_SET_INSTALLATION] = {
		"SELECT pg_catalog.setval('tasksched.installation', $1)",
		{INT8OID}
	},
	[Q_FIND_ACTION] = {
		"SELECT function, function_owner::oid, coalesce(pg_catalog.to_regprocedure(function)::oid, 0::oid) "
		"FROM tasksched.registered_actions WHERE action = $1",
		{TEXTOID}
	},
	[Q_REGISTER_ACTION] = {
		"INSERT INTO tasksched.registered_actions AS a (action, function, function_owner, registered_by, registered_at) "
		"VALUES ($1, $2, $3::regrole, $4::regrole, $5) "
		"ON CONFLICT (action) DO UPDATE SET function = EXCLUDED.function, function_owner = EXCLUDED.function_owner, "
		"registered_by = EXCLUDED.registered_by, registered_at = EXCLUDED.registered_at",
		{TEXTOID, TEXTOID, OIDOID, OIDOID, TIMESTAMPTZOID}
	},
	[Q_UNREGISTER_ACTION] = {
		"DELETE FROM tasksched.registered_actions WHERE action = $1",
		{TEXTOID}
	},
	[Q_INSERT] = {
		"INSERT INTO tasksched.live (id, action, status, run_at, resource_id, params, owner, "
		"created_at, updated_at, installation, database, finished) "
		"VALUES ($1, $2, 'scheduled', $3, $4, $5, $6::regrole, $7, $7, $8, $9, false)",
		{UUIDOID, TEXTOID, TIMESTAMPTZOID, TEXTOID, JSONBOID, OIDOID, TIMESTAMPTZOID, INT8OID, OIDOID}
	},
	[Q_UPDATE_SCHEDULED] = {
		"UPDATE tasksched.live SET run_at = coalesce($2, run_at), result = coalesce($3, result), "
		"error = coalesce($4, error), updated_at = $5 WHERE ctid = $6 AND id = $1",
		{UUIDOID, TIMESTAMPTZOID, JSONBOID, TEXTOID, TIMESTAMPTZOID, TIDOID}
	},
	[Q_DELETE_LIVE] = {
		"DELETE FROM tasksched.live WHERE ctid = $2 AND id = $1",
		{UUIDOID, TIDOID}
	},
	[Q_DELETE_FINISHED] = {
		"DELETE FROM tasksched.finished WHERE ctid = $2 AND id = $1",
		{UUIDOID, TIDOID}
	},
	[Q_TO_FINISHED] = {
		/*
		 * $2: the launch that must hold the task, NULL = any; $9: see
		 * change_live()
		 */
		"WITH gone AS (DELETE FROM tasksched.live WHERE ctid = $9 AND id = $1 "
		"AND ($2 IS NULL OR launch = $2 AND " IS_ACTIVE ") RETURNING *) "
		"INSERT INTO tasksched.finished (" KEPT_COLUMNS "run_at, attempt, started_at, first_launch, setbacks, "
		"installation, database, finished, status, result, error, error_details, crashes, updated_at, finished_at) "
		"SELECT " KEPT_COLUMNS "run_at, CASE $3 WHEN 'failed' THEN greatest(attempt, 1) ELSE attempt END, "
		"started_at, false, 0, installation, database, true, "
		"$3::tasksched.task_status, coalesce($4, result), "
		/* the error of an earlier launch is over, unless it is given again */
		"CASE WHEN $3 = 'complete' AND NOT first_launch THEN $5 ELSE coalesce($5, error) END, "
		"CASE WHEN $3 = 'complete' AND NOT first_launch THEN $6 ELSE coalesce($6, error_details) END, "
		"crashes + $7, $8, $8 FROM gone",
		{UUIDOID, INT4OID, TEXTOID, JSONBOID, TEXTOID, JSONBOID, INT4OID, TIMESTAMPTZOID, TIDOID}
	},
	[Q_TO_LIVE] = {
		"WITH gone AS (DELETE FROM tasksched.finished WHERE ctid = $5 AND id = $1 RETURNING *) "
		"INSERT INTO tasksched.live (" KEPT_COLUMNS "result, run_at, status, updated_at, installation, database, finished) "
		"SELECT " KEPT_COLUMNS "result, $2, 'scheduled', $2, $3, $4, false FROM gone",
		{UUIDOID, TIMESTAMPTZOID, INT8OID, OIDOID, TIDOID}
	},
	[Q_ADOPT] = {
		"UPDATE tasksched.live SET installation = $1, database = $2, updated_at = $3, "
		"owner = CASE WHEN tasksched._name_only(owner) THEN owner::text::tasksched.task_owner ELSE owner END, "
		"status = 'scheduled', first_launch = first_launch AND status = 'scheduled' "
		"WHERE (installation, database) IS DISTINCT FROM ($1, $2) "
		"OR (status = 'scheduled' AND (EXISTS (SELECT FROM tasksched.finished f WHERE f.id = live.id) "
		"OR tasksched._name_only(owner) AND owner::text::tasksched.task_owner::oid <> 0))",
		{INT8OID, OIDOID, TIMESTAMPTZOID}
	},
	[Q_DELETE_TWINS] = {
		"DELETE FROM tasksched.finished f USING tasksched.live l WHERE l.id = f.id",
		{0}
	},
	[Q_SET_PAUSED] = {
		"INSERT INTO tasksched.scheduler_state AS s (installation, database, paused) VALUES ($1, $2, $3) "
		"ON CONFLICT (installation, database) DO UPDATE SET paused = $3 WHERE s.paused <> $3",
		{INT8OID, OIDOID, BOOLOID}
	},
	[Q_GET_PAUSED] = {
		"SELECT FROM tasksched.scheduler_state WHERE installation = $1 AND database = $2 AND paused",
		{INT8OID, OIDOID}
	},
	[Q_PRIORITIES] = {
		/* one index look-up for each priority */
		"WITH RECURSIVE p AS ("
		"(SELECT priority FROM tasksched.live WHERE status = 'scheduled' ORDER BY priority LIMIT 1) "
		"UNION ALL SELECT (SELECT l.priority FROM tasksched.live l WHERE l.status = 'scheduled' "
		"AND l.priority > p.priority ORDER BY l.priority LIMIT 1) FROM p WHERE p.priority IS NOT NULL) "
		"SELECT priority FROM p WHERE priority IS NOT NULL ORDER BY priority",
		{0}
	},
	[Q_PEEK] = {
		"SELECT id, run_at, owner::oid, action, (installation, database) IS DISTINCT FROM ($6, $7), ctid "
		"FROM tasksched.live WHERE status = 'scheduled' AND priority = $1 AND (run_at, id) > ($2, $3) "
		"AND run_at <= $4 ORDER BY run_at, id LIMIT $5",
		{INT2OID, TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID, INT8OID, INT8OID, OIDOID}
	},
	[Q_NEXT_DUE] = {
		"SELECT run_at FROM tasksched.live WHERE status = 'scheduled' AND priority = $1 AND run_at > $2 "
		"ORDER BY run_at LIMIT 1",
		{INT2OID, TIMESTAMPTZOID}
	},
	[Q_CLAIM] = {
		/*
		 * $1: the places of the tasks; $2: the time at which they must be
		 * due; $3: now; $4: their ids.  The condition with greatest() is
		 * written so that no index can serve it.  The sub-select is not an
		 * EXISTS, because that could become a join that walks through the
		 * table.
		 */
		"UPDATE tasksched.live SET status = 'active', launch = " NEXT_LAUNCH ", attempt = greatest(attempt, 1), "
		"started_at = coalesce(started_at, $3), updated_at = $3 "
		"WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM tasksched.live l "
		"WHERE l.ctid = ANY ($1) AND l." IS_SCHEDULED " AND greatest(l.run_at, $2) = $2 "
		"AND (SELECT f.id FROM tasksched.finished f WHERE f.id = l.id) IS NULL "
		"FOR NO KEY UPDATE OF l SKIP LOCKED)) AND " IS_SCHEDULED " RETURNING array_position($4, id), launch",
		{TIDARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDARRAYOID}
	},
	[Q_PUT_BACK] = {
		/*
		 * $2: undo the claim; $3: delay in us, or NULL; $4: crashes to add;
		 * $5: now; $6: keep first_launch; $7: the launch
		 */
		"UPDATE tasksched.live SET status = 'scheduled', "
		"first_launch = first_launch AND $6, "
		"launch = $7 - $2::int, "
		"attempt = CASE WHEN $2 AND first_launch THEN 0 ELSE attempt END, "
		"started_at = CASE WHEN $2 AND first_launch THEN NULL ELSE started_at END, "
		"run_at = CASE WHEN $3 IS NULL THEN run_at ELSE $5 + $3 * interval '1 microsecond' END, "
		"setbacks = setbacks + ($3 IS NOT NULL)::int, "
		"crashes = crashes + $4, updated_at = $5 WHERE ctid = $8 AND id = $1 RETURNING run_at",
		{UUIDOID, BOOLOID, INT8OID, INT4OID, TIMESTAMPTZOID, BOOLOID, INT4OID, TIDOID}
	},
	[Q_ACTIVE] = {
		"SELECT id, launch FROM tasksched.live WHERE status = 'active' AND installation = $1 AND database = $2",
		{INT8OID, OIDOID}
	},
	[Q_BRING_FORWARD] = {
		"UPDATE tasksched.live SET run_at = $1, updated_at = $1 WHERE ctid = ANY (ARRAY("
		"SELECT ctid FROM tasksched.live WHERE status = 'scheduled' AND run_at > $1 AND run_at <= updated_at "
		"LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED))",
		{TIMESTAMPTZOID, INT8OID}
	},
	[Q_STUCK] = {
		"SELECT id, action FROM tasksched.live WHERE status = 'active' AND updated_at < $1 "
		"AND installation = $2 AND database = $3",
		{TIMESTAMPTZOID, INT8OID, OIDOID}
	},
	[Q_OLD_FINISHED] = {
		/* $2: where the last batch ended */
		"SELECT ctid, id, finished_at FROM tasksched.finished WHERE finished_at < $1 AND finished_at >= $2 "
		"ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED",
		{TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
	},
	[Q_PURGE] = {
		"DELETE FROM tasksched.finished WHERE ctid = ANY ($1)",
		{TIDARRAYOID}
	},
	[Q_CHECKPOINT] = {
		"UPDATE tasksched.live SET result = coalesce($3, result), error = coalesce($4, error), updated_at = $5 "
		"WHERE ctid = $6 AND id = $1 AND launch = $2 AND " IS_ACTIVE,
		{UUIDOID, INT4OID, JSONBOID, TEXTOID, TIMESTAMPTZOID, TIDOID}
	},
	[Q_STAGE] = {
		/* $3: go on at once, as the next launch (proceed) */
		"UPDATE tasksched.live SET status = CASE WHEN $3 THEN status ELSE 'scheduled' END, "
		"launch = CASE WHEN $3 THEN " NEXT_LAUNCH " ELSE launch END, "
		"run_at = coalesce($4, run_at), result = coalesce($5, result), "
		"error = coalesce($6, error), first_launch = false, setbacks = 0, updated_at = $7 "
		"WHERE ctid = $8 AND id = $1 AND launch = $2 AND " IS_ACTIVE,
		{UUIDOID, INT4OID, BOOLOID, TIMESTAMPTZOID, JSONBOID, TEXTOID, TIMESTAMPTZOID, TIDOID}
	},
};

/*
 * Planned for each call, because the plan depends on the filters that are
 * given
 */
const char *const tasksched_get_tasks_sql =
"SELECT " TASK_COLUMNS " FROM tasksched.tasks t WHERE " VISIBLE " "
"AND ($3 IS NULL OR t.action = ANY ($3)) "
"AND ($4 IS NULL OR t.resource_id = $4) "
"AND ($5 IS NULL OR t.status = ANY ($5::tasksched.task_status[])) "
"AND ($6 IS NULL OR CASE t.status WHEN 'scheduled' THEN t.run_at ELSE t.updated_at END <= $6) "
"ORDER BY CASE t.status WHEN 'scheduled' THEN t.run_at ELSE t.updated_at END, t.id LIMIT $7";
