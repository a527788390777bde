/*
 * base.h
 *	  The foundation that all other folders use. Nothing here depends on
 *	  slots or tables.
 */
#ifndef TASKSCHED_BASE_H
#define TASKSCHED_BASE_H

#include "fmgr.h"
#include "postmaster/bgworker.h"

#include "base/types.h"

/* ----------
 * process.c: common code of our background processes
 * ----------
 */
extern void tasksched_describe_process(BackgroundWorker *worker, const char *kind);
extern bool tasksched_register_process(BackgroundWorker *worker, BackgroundWorkerHandle **handle);
extern void tasksched_watch_sigterm(void);
extern bool tasksched_was_terminated(void);

/* ----------
 * extension.c: the extension and its objects in the catalogs
 * ----------
 */
extern Oid	tasksched_extension_oid(void);
extern void tasksched_extension_check(void);
extern void tasksched_extension_lock(void);
extern Oid	tasksched_schema_oid(void);
extern Oid	tasksched_type_oid(const char *name);
extern bool tasksched_caller_is_admin(void);
extern bool tasksched_role_visible(Oid role);
extern const char *tasksched_status_name(TaskStatus status);
extern Datum tasksched_status_datum(TaskStatus status);
extern TaskStatus tasksched_status_from_datum(Datum status);

/* ----------
 * owner.c: the SQL type task_owner
 * ----------
 */
extern bool tasksched_role_exists(Oid role);
extern Datum tasksched_owner_oid(PG_FUNCTION_ARGS);

/* ----------
 * outcome.c: the outcome of a launch
 * ----------
 */
extern Jsonb *tasksched_checked_result(Datum value);
extern void tasksched_outcome_from_datum(Datum datum, Outcome *outcome, MemoryContext cxt);
extern char *tasksched_error_text(char *text);
extern Jsonb *tasksched_error_details(ErrorData *edata);

/* ----------
 * text.c: whether texts and values can be stored, dumped and restored
 * ----------
 */
extern bool tasksched_text_mask(char *text);
extern void tasksched_text_mask_beyond_ascii(char *text);
extern void tasksched_text_check(const char *text, int length);
extern bool tasksched_name_fits(const char *name);
extern Size tasksched_text_prefix(const char *text, Size max_length, Size max_dump);
extern void tasksched_jsonb_check(Jsonb *jsonb, const char *name);

/* ----------
 * uuid.c: UUIDs of version 7
 * ----------
 */
extern void tasksched_uuid_generate(pg_uuid_t *uuid);
extern char *tasksched_uuid_out(const pg_uuid_t *uuid);

/* ----------
 * fault.c: points at which a test can stop a process or make it fail
 * ----------
 */
#ifdef TASKSCHED_FAULT_POINTS
extern void tasksched_fault_init(void);
extern void tasksched_fault_point(const char *name);
#define TASKSCHED_FAULT_POINT(name) tasksched_fault_point(name)
#else
#define TASKSCHED_FAULT_POINT(name) ((void) 0)
#endif

#endif							/* TASKSCHED_BASE_H */
