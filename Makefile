# tasksched: background tasks inside PostgreSQL

EXTENSION = tasksched
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" tasksched.control)

MODULE_big = tasksched
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
DATA = $(wildcard sql/tasksched--*.sql)

# -isystem suppresses warnings about the server's headers
PG_CPPFLAGS = -DTASKSCHED_VERSION='"$(EXTVERSION)"' -I$(srcdir)/src -isystem $(includedir_server)
# fault points are for tests only; see src/base/fault.c
ifdef FAULT_POINTS
PG_CPPFLAGS += -DTASKSCHED_FAULT_POINTS
endif
# callbacks, and SQL functions without arguments, have unused parameters
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter

REGRESS = setup interface actions errors privileges security
REGRESS_OPTS = --inputdir=.
ISOLATION = claim cancel finish wait
ISOLATION_OPTS = --inputdir=. --load-extension=tasksched

PG_CONFIG ?= pg_config
# These targets install what they need, so pg_config may not be there yet.
ifneq (,$(filter-out test torture load demo lint coverage,$(or $(MAKECMDGOALS),all)))
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
endif

$(OBJS): $(wildcard src/*/*.h) tasksched.control

.PHONY: test torture load demo lint coverage

# run all tests in a private server (variables: see test/run)
test:
	@bash test/run

# run all tests, then report which lines of src/ they executed
coverage:
	@COVERAGE=1 bash test/run

# run a million tasks, and other loads, in a private server
load:
	@bash test/load

# cause faults of all kinds in a private server for MINUTES minutes
torture:
	@bash test/torture $(or $(MINUTES),10) $(SEED)

# report warnings of compilers and analyzers
lint:
	@bash test/lint

# run an import that survives kill -9, in a private server
demo:
	@bash demo/run
