/* A clock of day that can be set for one process: preloaded, it adds the seconds that the file DRILL_CLOCK holds (one
 * double, mapped) to what the machine's clock says. Set while the process runs, it jumps at once, as when somebody sets
 * the time or a virtual machine wakes up; the monotonic clock goes on, and waits end when they should. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile double *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("DRILL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
        offset = mapped == MAP_FAILED ? NULL : mapped;
        close(file);
    }
}

static void add(struct timespec *at, double seconds) {
    long long nanos = (long long)at->tv_sec * 1000000000LL + at->tv_nsec + (long long)(seconds * 1e9);
    at->tv_sec = nanos / 1000000000LL;
    at->tv_nsec = nanos % 1000000000LL;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, at);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) add(at, *offset);
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* Waits until a moment of the clock of day: the kernel compares with the machine's. */
#define UNTIL(name, object)                                                   \
    int name(object *one, const struct timespec *restrict until) {            \
        static int (*real)(object *, const struct timespec *);                \
        struct timespec machine = *until;                                     \
        if (!real) real = dlsym(RTLD_NEXT, #name);                            \
        if (offset) add(&machine, -*offset);                                  \
        return real(one, &machine);                                           \
    }

UNTIL(sem_timedwait, sem_t)
UNTIL(pthread_mutex_timedlock, pthread_mutex_t)
