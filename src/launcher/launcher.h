/*
 * launcher.h
 *	  The launcher, and the handling of utility commands.
 */
#ifndef TASKSCHED_LAUNCHER_H
#define TASKSCHED_LAUNCHER_H

#include "nodes/nodes.h"

/* ----------
 * launcher.c: the process
 * ----------
 */
extern void tasksched_launcher_register(void);
extern PGDLLEXPORT void tasksched_launcher_main(Datum arg);

/* ----------
 * commands.c: commands that need a database to themselves
 * ----------
 */
extern void tasksched_commands_init(void);

/* ----------
 * guard.c: commands that lock objects of the extension
 * ----------
 */
extern void tasksched_guard_command(Node *stmt);

#endif							/* TASKSCHED_LAUNCHER_H */
