/* LD_PRELOAD: every flush to disk takes SLOW_FLUSH_US microseconds longer. Built by benchmarks/product.py for PostgreSQL alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_a_little(void)
{
    const char *us = getenv("SLOW_FLUSH_US");
    long n = us ? atol(us) : 1000;
    struct timespec t = {n / 1000000, (n % 1000000) * 1000};
    nanosleep(&t, NULL);
}

int fsync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_a_little();
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_a_little();
    return real(fd);
}
