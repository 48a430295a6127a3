/* A disk that waits: the first write of each of SQLite's commits, to a file whose name ends in "-wal", goes on when the
 * file $HELD_DISK.waiting, which it makes, is gone; as long as there is a file $HELD_DISK. Only the thread that writes
 * waits. For LD_PRELOAD; tests/support/held_store.py builds it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* SQLite writes from one thread at a time. */
static volatile int under_way;

static int is_log(int file)
{
    char link[64], name[4096];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, name, sizeof name);
    return length > 4 && memcmp(name + length - 4, "-wal", 4) == 0;
}

static void wait_for_leave(int file)
{
    const char *flag = getenv("HELD_DISK");
    char waiting[4096];

    if (flag == NULL || !is_log(file) || under_way)
        return;
    under_way = 1;
    if (access(flag, F_OK) != 0)
        return;
    snprintf(waiting, sizeof waiting, "%s.waiting", flag);
    close(open(waiting, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    while (access(waiting, F_OK) == 0)
        usleep(1000);
}

static void note_end(int file)
{
    if (is_log(file))
        under_way = 0;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place)
{
    REAL(pwrite64);
    wait_for_leave(file);
    return real(file, data, size, place);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t place)
{
    REAL(pwrite);
    wait_for_leave(file);
    return real(file, data, size, place);
}

int fsync(int file)
{
    REAL(fsync);
    note_end(file);
    return real(file);
}

int fdatasync(int file)
{
    REAL(fdatasync);
    note_end(file);
    return real(file);
}
