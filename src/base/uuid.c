/*
 * uuid.c
 *	  UUIDs of version 7 (RFC 9562): 48 bits of milliseconds since the Unix
 *	  epoch, 12 bits of fractions of a millisecond, and 62 random bits. The
 *	  UUIDs made by one session are strictly ascending.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/base.h"

/* The unit of the 12 bits is 1/4096 ms */
#define STEPS_PER_MS 4096

void
tasksched_uuid_generate(pg_uuid_t *uuid)
{
	static int64 last_steps = 0;
	int64		us = GetCurrentTimestamp() +
	(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	int64		steps = us / 1000 * STEPS_PER_MS + us % 1000 * STEPS_PER_MS / 1000;
	uint64		ms;

	/* keep the order even if the clock stands still or goes back */
	if (steps <= last_steps)
		steps = last_steps + 1;
	last_steps = steps;

	if (!pg_strong_random(uuid->data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));

	ms = steps / STEPS_PER_MS;
	for (int i = 0; i < 6; i++)
		uuid->data[i] = (unsigned char) (ms >> (8 * (5 - i)));
	uuid->data[6] = 0x70 | (steps % STEPS_PER_MS) >> 8;
	uuid->data[7] = steps & 0xff;
	uuid->data[8] = 0x80 | (uuid->data[8] & 0x3f);
}

char *
tasksched_uuid_out(const pg_uuid_t *uuid)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(uuid)));
}
