/* A disk that fails: writes and syncs of files whose name has "broker.db" in it end with the error number that stands in
 * the file $FAILING_DISK names, as long as there is one; only the syncs if a minus sign stands before it.
 * For LD_PRELOAD; tests/support/failing_disk.py builds it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int file, int is_sync)
{
    char link[64], name[4096];
    const char *flag = getenv("FAILING_DISK");
    FILE *said;
    ssize_t length;
    int number = 0;

    if (flag == NULL || access(flag, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, name, sizeof name - 1);
    if (length <= 0)
        return 0;
    name[length] = '\0';
    if (strstr(name, "broker.db") == NULL || (said = fopen(flag, "r")) == NULL)
        return 0;
    if (fscanf(said, "%d", &number) != 1)
        number = 0;
    fclose(said);
    if (number < 0)
        number = is_sync ? -number : 0;
    return number != 0 && (errno = number);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place)
{
    REAL(pwrite64);
    return fails(file, 0) ? -1 : real(file, data, size, place);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t place)
{
    REAL(pwrite);
    return fails(file, 0) ? -1 : real(file, data, size, place);
}

ssize_t write(int file, const void *data, size_t size)
{
    REAL(write);
    return fails(file, 0) ? -1 : real(file, data, size);
}

int fsync(int file)
{
    REAL(fsync);
    return fails(file, 1) ? -1 : real(file);
}

int fdatasync(int file)
{
    REAL(fdatasync);
    return fails(file, 1) ? -1 : real(file);
}
