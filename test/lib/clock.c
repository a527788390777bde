/*
 * clock.c
 *	  A clock that a test can set: preloaded into a server, it adds the seconds
 *	  that the file CLOCK_FILE contains, as one int64, to the time of day.  The
 *	  monotonic clock and timers stay, as when the system's clock is set.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor))
static void
map_offset(void)
{
	static const int64_t none = 0;
	const char *file = getenv("CLOCK_FILE");
	int			fd = file ? open(file, O_RDONLY) : -1;
	void	   *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);

	offset = map == MAP_FAILED ? &none : map;
	if (fd >= 0)
		close(fd);
}

int
clock_gettime(clockid_t clock, struct timespec *ts)
{
	int			result = syscall(SYS_clock_gettime, clock, ts);

	if (result == 0 && clock == CLOCK_REALTIME && offset)
		ts->tv_sec += *offset;
	return result;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec ts;
	int			result = clock_gettime(CLOCK_REALTIME, &ts);

	(void) tz;
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return result;
}

time_t
time(time_t *t)
{
	struct timespec ts;

	(void) clock_gettime(CLOCK_REALTIME, &ts);
	if (t)
		*t = ts.tv_sec;
	return ts.tv_sec;
}
