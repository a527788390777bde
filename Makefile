# tasksched: background tasks inside PostgreSQL

EXTENSION = tasksched
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" tasksched.control)

MODULE_big = tasksched
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = $(wildcard sql/tasksched--*.sql)

PG_CPPFLAGS = -DTASKSCHED_VERSION='"$(EXTVERSION)"'
# unused parameters are those of callbacks; the server's own headers compare signs
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare

REGRESS = setup interface actions errors privileges
REGRESS_OPTS = --inputdir=.
ISOLATION = claim cancel finish wait
ISOLATION_OPTS = --inputdir=. --load-extension=tasksched

PG_CONFIG ?= pg_config
# "make test" and "make demo" install what is missing, pg_config among it.
ifneq (,$(filter-out test demo,$(or $(MAKECMDGOALS),all)))
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
endif

$(OBJS): src/compat.h src/tasksched.h tasksched.control

.PHONY: test demo

# all tests, in a private server (variables: see test/run)
test:
	@bash test/run

# an import that survives kill -9, in a private server
demo:
	@bash demo/run
