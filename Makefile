# tasksched: background tasks inside PostgreSQL

EXTENSION = tasksched
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" tasksched.control)

MODULE_big = tasksched
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = $(wildcard sql/tasksched--*.sql)

PG_CPPFLAGS = -DTASKSCHED_VERSION='"$(EXTVERSION)"'
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers

REGRESS =
REGRESS_OPTS = --inputdir=.
ISOLATION =

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): src/tasksched.h tasksched.control
