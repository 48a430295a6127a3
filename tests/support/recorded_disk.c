/* A disk that is recorded: whatever a process changes below the folder $RECORDED_DISK_ROOT is appended to the file
 * $RECORDED_DISK_LOG, in the order in which it happened, for several processes together. For LD_PRELOAD;
 * tests/support/recorded_disk.py builds it, and explains the records.
 *
 * A record is a line "KIND INODE NUMBER NUMBER LENGTH LENGTH" and two texts of those lengths.
 *
 * Rules
 * -----
 * 1. A change and its record are one step: a lock is held meanwhile, against threads and against other processes.
 * 2. A sync has a record when it begins, since it covers only what was written before, and one when it has ended, since
 *    nothing is promised earlier. It takes at least $RECORDED_DISK_SYNC_US microseconds, so that what does not wait for
 *    it comes before its end.
 * 3. SQLite's "-shm" files are not durable, and not recorded.
 * 4. If there is a file $RECORDED_DISK_LOG with ".fail" behind it, the next sync of a file removes that and fails with EIO.
 *    As Linux does it, what was to be written is lost then, and the next sync succeeds. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define LOCKED(type, call)    \
    ({                        \
        lock_all();           \
        type done_ = (call);  \
        done_;                \
    })

static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int record_file = -1;
static unsigned long sync_number;

static int ready(void)
{
    const char *folder = getenv("RECORDED_DISK_ROOT"), *file = getenv("RECORDED_DISK_LOG");

    if (record_file >= 0)
        return 1;
    if (folder == NULL || file == NULL || realpath(folder, root) == NULL)
        return 0;
    root_length = strlen(root);
    __typeof__(open) *real = (__typeof__(open) *)dlsym(RTLD_NEXT, "open");
    record_file = real(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    return record_file >= 0;
}

/* A lock of fcntl is a process's own, also after a fork. */
static void hold(short how)
{
    struct flock whole = {.l_type = how, .l_whence = SEEK_SET};

    while (fcntl(record_file, F_SETLKW, &whole) != 0)
        ;
}

static void lock_all(void)
{
    pthread_mutex_lock(&threads);
    hold(F_WRLCK);
}

static void unlock_all(void)
{
    hold(F_UNLCK);
    pthread_mutex_unlock(&threads);
}

static void record(char kind, ino_t inode, long long one, long long two, const struct iovec *texts)
{
    char head[160];
    struct iovec parts[3] = {{head, 0}, texts[0], texts[1]};

    __typeof__(writev) *real = (__typeof__(writev) *)dlsym(RTLD_NEXT, "writev");
    parts[0].iov_len = (size_t)snprintf(head, sizeof head, "%c %llu %lld %lld %zu %zu\n", kind,
                                        (unsigned long long)inode, one, two, texts[0].iov_len, texts[1].iov_len);
    if (real(record_file, parts, 3) < 0)
        abort();
}

static void record_paths(char kind, ino_t inode, long long one, long long two, const char *first, const char *second)
{
    struct iovec texts[2] = {{(void *)first, strlen(first)}, {(void *)second, strlen(second)}};

    record(kind, inode, one, two, texts);
}

static int is_recorded(const char *path)
{
    size_t length = strlen(path);

    if (strncmp(path, root, root_length) != 0 || (path[root_length] != '/' && path[root_length] != 0))
        return 0;
    return length < 4 || strcmp(path + length - 4, "-shm") != 0;
}

/* Return whether `file` is a file or folder below the root; its path and state are put there. */
static int known(int file, char *path, struct stat *state)
{
    char link[64];
    ssize_t length;

    if (!ready())
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0 || path[0] != '/')
        return 0;
    path[length] = 0;
    return is_recorded(path) && fstat(file, state) == 0 && (S_ISREG(state->st_mode) || S_ISDIR(state->st_mode));
}

/* Put the whole path of `name`, below the folder `place`, there; return whether it is below the root. */
static int whole(int place, const char *name, char *path)
{
    char folder[PATH_MAX], given[PATH_MAX], link[64];
    ssize_t length;
    char *slash;

    if (!ready())
        return 0;
    if (name[0] == '/') {
        snprintf(given, sizeof given, "%s", name);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", place);
        if (place == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        length = readlink(link, folder, sizeof folder - 1);
        if (length <= 0)
            return 0;
        folder[length] = 0;
        if (snprintf(given, sizeof given, "%s/%s", folder, name) >= (int)sizeof given)
            return 0;
    }
    slash = strrchr(given, '/');
    if (slash[1] == 0 && slash != given) {
        *slash = 0;
        slash = strrchr(given, '/');
    }
    *slash = 0;
    if (realpath(given[0] ? given : "/", folder) == NULL)
        return 0;
    if (snprintf(path, PATH_MAX, "%s/%s", folder, slash + 1) >= PATH_MAX)
        return 0;
    return is_recorded(path);
}

static int opened(int (*real)(int, const char *, int, ...), int place, const char *name, int how, mode_t mode)
{
    char path[PATH_MAX];
    struct stat before, after;
    int file, was_there;

    if ((how & (O_CREAT | O_TRUNC)) == 0 || !whole(place, name, path))
        return real(place, name, how, mode);
    lock_all();
    was_there = stat(path, &before) == 0;
    file = real(place, name, how, mode);
    if (file >= 0 && known(file, path, &after)) {
        if (!was_there)
            record_paths('C', after.st_ino, after.st_mode & 07777, 0, path, "");
        else if ((how & O_TRUNC) && before.st_size > 0)
            record_paths('T', after.st_ino, 0, 0, "", "");
    }
    unlock_all();
    return file;
}

#define MODE(how)                                 \
    mode_t mode = 0;                              \
    if ((how) & (O_CREAT | __O_TMPFILE)) {        \
        va_list rest;                             \
        va_start(rest, how);                      \
        mode = va_arg(rest, mode_t);              \
        va_end(rest);                             \
    }
typedef int (*Open)(int, const char *, int, ...);

int open(const char *name, int how, ...)
{
    MODE(how)
    return opened((Open)dlsym(RTLD_NEXT, "openat"), AT_FDCWD, name, how, mode);
}

int open64(const char *name, int how, ...)
{
    MODE(how)
    return opened((Open)dlsym(RTLD_NEXT, "openat64"), AT_FDCWD, name, how, mode);
}

int openat(int place, const char *name, int how, ...)
{
    MODE(how)
    return opened((Open)dlsym(RTLD_NEXT, "openat"), place, name, how, mode);
}

int openat64(int place, const char *name, int how, ...)
{
    MODE(how)
    return opened((Open)dlsym(RTLD_NEXT, "openat64"), place, name, how, mode);
}

/* What was written last: its place is where the file's position is now, or the one that was given. */
static void note_written(const struct stat *state, long long place, const void *data, ssize_t size)
{
    struct iovec texts[2] = {{(void *)data, size > 0 ? (size_t)size : 0}, {"", 0}};

    if (size > 0)
        record('W', state->st_ino, place, 0, texts);
    unlock_all();
}

ssize_t write(int file, const void *data, size_t size)
{
    char path[PATH_MAX];
    struct stat state;
    ssize_t done;

    REAL(write);
    if (!known(file, path, &state))
        return real(file, data, size);
    lock_all();
    done = real(file, data, size);
    note_written(&state, done < 0 ? 0 : (long long)lseek(file, 0, SEEK_CUR) - done, data, done);
    return done;
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place)
{
    char path[PATH_MAX];
    struct stat state;
    ssize_t done;

    REAL(pwrite64);
    if (!known(file, path, &state))
        return real(file, data, size, place);
    lock_all();
    done = real(file, data, size, place);
    note_written(&state, place, data, done);
    return done;
}

ssize_t pwrite(int file, const void *data, size_t size, off_t place) { return pwrite64(file, data, size, place); }

/* Nothing of ours writes to a file in these ways: the record would not be whole. */
ssize_t writev(int file, const struct iovec *parts, int count)
{
    char path[PATH_MAX];
    struct stat state;

    REAL(writev);
    if (known(file, path, &state))
        abort();
    return real(file, parts, count);
}

ssize_t copy_file_range(int from, off64_t *at, int file, off64_t *place, size_t size, unsigned int flags)
{
    char path[PATH_MAX];
    struct stat state;

    REAL(copy_file_range);
    if (known(file, path, &state))
        abort();
    return real(from, at, file, place, size, flags);
}

int ftruncate64(int file, off64_t size)
{
    char path[PATH_MAX];
    struct stat state;
    int failed;

    REAL(ftruncate64);
    if (!known(file, path, &state))
        return real(file, size);
    lock_all();
    failed = real(file, size);
    if (!failed)
        record_paths('T', state.st_ino, size, 0, "", "");
    unlock_all();
    return failed;
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

/* Whether this sync is the one that is to fail. */
static int is_to_fail(const struct stat *state)
{
    char flag[PATH_MAX];

    __typeof__(unlinkat) *real = (__typeof__(unlinkat) *)dlsym(RTLD_NEXT, "unlinkat");
    snprintf(flag, sizeof flag, "%s.fail", getenv("RECORDED_DISK_LOG"));
    return S_ISREG(state->st_mode) && real(AT_FDCWD, flag, 0) == 0;
}

static int synced(int (*real)(int), int file)
{
    const char *slowness = getenv("RECORDED_DISK_SYNC_US");
    char path[PATH_MAX];
    struct stat state;
    long long number;
    int failed;

    if (!known(file, path, &state))
        return real(file);
    lock_all();
    if (is_to_fail(&state)) {
        record_paths('X', state.st_ino, 0, 0, "", "");
        unlock_all();
        errno = EIO;
        return -1;
    }
    number = (long long)++sync_number;
    record_paths('S', state.st_ino, getpid(), number, "", "");
    unlock_all();
    failed = real(file);
    if (slowness != NULL)
        usleep((useconds_t)atoi(slowness));
    lock_all();
    if (!failed)
        record_paths('E', state.st_ino, getpid(), number, "", "");
    unlock_all();
    return failed;
}

int fsync(int file) { return synced((int (*)(int))dlsym(RTLD_NEXT, "fsync"), file); }

int fdatasync(int file) { return synced((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"), file); }

static int named(char kind, int failed, int which, const char *first, const char *second)
{
    if (which) {
        if (!failed)
            record_paths(kind, 0, 0, 0, first, second);
        unlock_all();
    }
    return failed;
}

static int renamed(int (*real)(int, const char *, int, const char *), int from, const char *old, int to,
                   const char *new)
{
    char first[PATH_MAX], second[PATH_MAX];
    int one = whole(from, old, first), other = whole(to, new, second);

    if (!one && !other)
        return real(from, old, to, new);
    if (!one || !other)
        abort(); /* Into the folder, or out of it. */
    return named('R', LOCKED(int, real(from, old, to, new)), 1, first, second);
}

int renameat(int from, const char *old, int to, const char *new)
{
    REAL(renameat);
    return renamed(real, from, old, to, new);
}

int rename(const char *old, const char *new)
{
    REAL(renameat);
    return renamed(real, AT_FDCWD, old, AT_FDCWD, new);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    char first[PATH_MAX], second[PATH_MAX];

    REAL(linkat);
    if (!whole(to, new, second))
        return real(from, old, to, new, flags);
    if (!whole(from, old, first))
        abort(); /* From outside. */
    return named('L', LOCKED(int, real(from, old, to, new, flags)), 1, first, second);
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int place, const char *name, int flags)
{
    char path[PATH_MAX];

    REAL(unlinkat);
    if (!whole(place, name, path))
        return real(place, name, flags);
    return named('U', LOCKED(int, real(place, name, flags)), 1, path, "");
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int place, const char *name, mode_t mode)
{
    char path[PATH_MAX];
    struct stat state;
    int failed;

    REAL(mkdirat);
    if (!whole(place, name, path))
        return real(place, name, mode);
    lock_all();
    failed = real(place, name, mode);
    if (!failed && stat(path, &state) == 0)
        record_paths('D', state.st_ino, state.st_mode & 07777, 0, path, "");
    unlock_all();
    return failed;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
