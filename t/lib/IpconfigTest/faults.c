/*
 * What a block of t/330-processes.t puts in nginx's way, loaded by LD_PRELOAD. Files
 * in FAULTS (a folder, given to the compiler) say what is to go wrong:
 *
 *   panic        the plugin's thread panics whenever it waits for events, for as
 *                long as the file is there
 *   panic-once   it does so once, and the file is gone
 *   kill         worker 0 is killed at a store into the shared dict: "before KEY" or
 *                "after KEY", where KEY is what the key begins with; the file is gone
 *   clock        so many seconds the time of day is ahead, or behind
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int is_the_thread(void)
{
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    return strcmp(name, "ipconfig") == 0;
}

/* A file's text; 0 if there is none. */
static int read_fault(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return 0;
    }
    ssize_t len = read(file, text, size - 1);
    close(file);
    text[len > 0 ? len : 0] = '\0';
    return len > 0;
}

/* tokio has no answer to a poll that fails so, and panics. */
int epoll_wait(int epoll, struct epoll_event *events, int max, int timeout)
{
    static int (*next)(int, struct epoll_event *, int, int);
    if (next == NULL) {
        next = (int (*)(int, struct epoll_event *, int, int)) dlsym(RTLD_NEXT, "epoll_wait");
    }
    if (is_the_thread()
        && (access(FAULTS "/panic", F_OK) == 0 || unlink(FAULTS "/panic-once") == 0))
    {
        errno = EBADF;
        return -1;
    }
    return next(epoll, events, max, timeout);
}

int ngx_http_lua_ffi_shdict_store(void *zone, int op, const unsigned char *key,
    size_t key_len, int type, const unsigned char *text, size_t len, double number,
    long expires, int flags, char **message, int *forcible)
{
    typedef int (*store_fn)(void *, int, const unsigned char *, size_t, int,
        const unsigned char *, size_t, double, long, int, char **, int *);
    static store_fn next;
    char fault[128], when[8], begin[100];

    if (next == NULL) {
        next = (store_fn) dlsym(RTLD_NEXT, "ngx_http_lua_ffi_shdict_store");
    }
    if (is_the_thread() && read_fault(FAULTS "/kill", fault, sizeof(fault))
        && sscanf(fault, "%7s %99s", when, begin) == 2
        && key_len >= strlen(begin) && memcmp(key, begin, strlen(begin)) == 0)
    {
        if (strcmp(when, "after") == 0) {
            next(zone, op, key, key_len, type, text, len, number, expires, flags, message,
                 forcible);
        }
        unlink(FAULTS "/kill");
        kill(getpid(), SIGKILL);
    }
    return next(zone, op, key, key_len, type, text, len, number, expires, flags, message,
                forcible);
}

static long seconds_ahead(void)
{
    char text[32];
    return read_fault(FAULTS "/clock", text, sizeof(text)) ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int) syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += seconds_ahead();
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = (int) syscall(SYS_gettimeofday, now, zone);
    if (!failed) {
        now->tv_sec += seconds_ahead();
    }
    return failed;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) {
        *out = now.tv_sec;
    }
    return now.tv_sec;
}
