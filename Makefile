# tasksched: background tasks inside PostgreSQL

EXTENSION = tasksched
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" tasksched.control)

MODULE_big = tasksched
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
DATA = $(wildcard sql/tasksched--*.sql)

# as system headers, the server's own are not warned of
PG_CPPFLAGS = -DTASKSCHED_VERSION='"$(EXTVERSION)"' -I$(srcdir)/src -isystem $(includedir_server)
# for tests only: src/base/fault.c
ifdef FAULT_POINTS
PG_CPPFLAGS += -DTASKSCHED_FAULT_POINTS
endif
# unused parameters are those of callbacks and of functions without arguments
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter

REGRESS = setup interface actions errors privileges security
REGRESS_OPTS = --inputdir=.
ISOLATION = claim cancel finish wait
ISOLATION_OPTS = --inputdir=. --load-extension=tasksched

PG_CONFIG ?= pg_config
# These targets install what is missing, pg_config among it.
ifneq (,$(filter-out test torture load demo lint coverage,$(or $(MAKECMDGOALS),all)))
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
endif

$(OBJS): $(wildcard src/*/*.h) tasksched.control

.PHONY: test torture load demo lint coverage

# all tests, in a private server (variables: see test/run)
test:
	@bash test/run

# all tests; then what of src/ they have executed
coverage:
	@COVERAGE=1 bash test/run

# a million tasks, and so on, in a private server
load:
	@bash test/load

# faults of all kinds for so many minutes, in a private server
torture:
	@bash test/torture $(or $(MINUTES),10) $(SEED)

# warnings of compilers and analyzers
lint:
	@bash test/lint

# an import that survives kill -9, in a private server
demo:
	@bash demo/run
