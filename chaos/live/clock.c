/* A wall clock that can be set for one process: preloaded into a node, it adds an offset to CLOCK_REALTIME and leaves the
 * monotonic clock alone, as a step of the machine's clock would.
 *
 * CHAOS_CLOCK names a file of eight bytes, the offset in nanoseconds, mapped into memory: a step is one write to the file.
 * Deadlines that are handed to the kernel as wall times are shifted back, so that waits take as long as they were meant to.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define WALL_FROM_S 1000000000LL /* a deadline later than this is a wall time: no machine is up for 31 years */

static volatile int64_t *offset_ns;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) offset_ns = mapped;
}

static void shift(struct timespec *at, int64_t by_ns) {
    int64_t ns = at->tv_nsec + by_ns % NS;
    at->tv_sec += by_ns / NS;
    if (ns < 0) { ns += NS; at->tv_sec -= 1; }
    if (ns >= NS) { ns -= NS; at->tv_sec += 1; }
    at->tv_nsec = ns;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real ? real(clock, at) : (int)syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && offset_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(at, *offset_ns);
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return (time_t)-1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real)
        real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlvsym(
            RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real)
        real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlsym(
            RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec until = *deadline;
    if (offset_ns && until.tv_sec > WALL_FROM_S) shift(&until, -*offset_ns);
    return real(condition, mutex, &until);
}
