/* A file layer under fire, put in front of libc by LD_PRELOAD: it sees every call that SQLite and Python make for
 * files below one directory, fails the k-th of them, holds it up, or keeps a journal of them.
 *
 * The journal is what a test builds disks from that a power loss may leave (tests/fire/disks.py): it says which
 * writes were not synced yet. Steered by fire_arm (ctypes), or, in a daemon, by the environment: FIRE_ROOT is the
 * directory, FIRE_SWITCH a file in which a fault may be written at any time, as "CALLS ERROR" (tests/fire/layer.py).
 * One thread writes; descriptors are not duplicated; nobody appends (O_APPEND) or writes through mmap. That nothing
 * is missed is tested: the journal, replayed, gives the very files that lie there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LOOK = 1, READ = 2, NAME = 4, WRITE = 8, SYNC = 16 };  /* kinds of calls */
enum { SHORT = -1, HANG = -2 };                               /* faults that are no errno */
enum { FILES_MOST = 65536, HANG_LOOK_US = 10000 };

struct record {  /* of the journal; `size` bytes follow */
    uint32_t op, fd;
    int64_t offset;
    uint64_t size;
};

static char root[PATH_MAX], switch_path[PATH_MAX];
static size_t root_size;
static unsigned char watched[FILES_MOST];
static int journal = -1;
static int kinds, fault, lasting;
static long at, count;
static int modelled;  /* the journal knows what is synced: the kernel need not */

#define REAL(name)                                      \
    static __typeof__(name) *real;                      \
    if (!real && !(real = dlsym(RTLD_NEXT, #name))) abort()

/* From the `first`-th call of `which` kinds on, counted from here, once or until further notice. */
void fire_arm(const char *directory, int journal_fd, int which, long first, int what, int for_good) {
    root_size = strlen(directory);
    if (root_size >= sizeof root || journal_fd >= FILES_MOST) abort();
    memcpy(root, directory, root_size + 1);
    journal = journal_fd;
    kinds = which, at = first, fault = what, lasting = for_good, count = 0;
    modelled = 1;
}

long fire_count(void) { return count; }

static void note(int op, int fd, int64_t offset, const void *data, size_t size) {
    if (journal < 0) return;
    REAL(writev);
    struct record head = {op, fd, offset, size};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, size}};
    if (real(journal, parts, 2) != (ssize_t)(sizeof head + size)) abort();
}

/* The story that the test tells: what may be on the disk from here on, and what must. */
void fire_mark(int op, long number) { note(op, 0, number, "", 0); }

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("FIRE_ROOT"), *path = getenv("FIRE_SWITCH");
    if (!directory || !path) return;
    fire_arm(directory, -1, 0, 0, 0, 0);
    modelled = 0;
    if (strlen(path) >= sizeof switch_path) abort();
    strcpy(switch_path, path);
}

static int inside(const char *path) {
    return root_size && !strncmp(path, root, root_size) && (path[root_size] == '/' || !path[root_size]);
}

static int seen(int fd) { return fd >= 0 && fd < FILES_MOST && watched[fd]; }

static void look_at_switch(void) {
    REAL(fopen);
    FILE *file = real(switch_path, "re");
    kinds = fault = 0;
    if (!file) return;
    if (fscanf(file, "%d %d", &kinds, &fault) != 2) kinds = fault = 0;
    fclose(file);
    at = count, lasting = 1;
}

/* The fault that strikes this call, else 0. */
static int struck(int kind) {
    if (*switch_path) {
        look_at_switch();
        while (kinds & kind && fault == HANG) {
            usleep(HANG_LOOK_US);
            look_at_switch();
        }
    }
    if (!(kinds & kind)) return 0;
    count++;
    return count == at || (lasting && count > at) ? fault : 0;
}

#define STRIKE(kind, failed)                                    \
    do {                                                        \
        int struck_by = struck(kind);                           \
        if (struck_by > 0) { errno = struck_by; return failed; } \
    } while (0)

/* --- Opening and naming --- */

static int opened(int fd, const char *path, int flags) {
    if (fd < 0) return fd;
    if (fd >= FILES_MOST || flags & O_APPEND) abort();
    watched[fd] = 1;
    note('o', fd, flags & O_TRUNC ? 1 : 0, path, strlen(path));
    return fd;
}

#define OPEN(name, directory, ...)                                           \
    {                                                                        \
        va_list more;                                                        \
        va_start(more, flags);                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                        \
        REAL(name);                                                          \
        if (!inside(path)) return real(__VA_ARGS__, flags, mode);            \
        STRIKE(flags & O_CREAT ? NAME : LOOK, -1);                           \
        return opened(real(__VA_ARGS__, flags, mode), path, flags);          \
    }

int open(const char *path, int flags, ...) OPEN(open, AT_FDCWD, path)
int open64(const char *path, int flags, ...) OPEN(open64, AT_FDCWD, path)
int openat(int at_fd, const char *path, int flags, ...) OPEN(openat, at_fd, at_fd, path)
int openat64(int at_fd, const char *path, int flags, ...) OPEN(openat64, at_fd, at_fd, path)

int close(int fd) {
    REAL(close);
    if (seen(fd)) {
        watched[fd] = 0;
        note('c', fd, 0, "", 0);
    }
    return real(fd);
}

int unlink(const char *path) {
    REAL(unlink);
    if (!inside(path)) return real(path);
    STRIKE(NAME, -1);
    int done = real(path);
    if (!done) note('u', 0, 0, path, strlen(path));
    return done;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (!inside(from) || !inside(to)) return real(from, to);
    STRIKE(NAME, -1);
    int done = real(from, to);
    if (!done) {
        char both[2 * PATH_MAX];
        int size = snprintf(both, sizeof both, "%s\n%s", from, to);
        note('r', 0, 0, both, size);
    }
    return done;
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (!inside(path)) return real(path, mode);
    STRIKE(NAME, -1);
    int done = real(path, mode);
    if (!done) note('d', 0, 0, path, strlen(path));
    return done;
}

/* --- Looking --- */

#define LOOK_AT(name, type)                  \
    int name(const char *path, type *found) { \
        REAL(name);                          \
        if (inside(path)) STRIKE(LOOK, -1);  \
        return real(path, found);            \
    }

LOOK_AT(stat, struct stat)
LOOK_AT(stat64, struct stat64)
LOOK_AT(lstat64, struct stat64)
LOOK_AT(statvfs64, struct statvfs64)

int fstat64(int fd, struct stat64 *found) {
    REAL(fstat64);
    if (seen(fd)) STRIKE(LOOK, -1);
    return real(fd, found);
}

ssize_t read(int fd, void *data, size_t size) {
    REAL(read);
    if (seen(fd)) STRIKE(READ, -1);
    return real(fd, data, size);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset) {
    REAL(pread64);
    if (seen(fd)) STRIKE(READ, -1);
    return real(fd, data, size, offset);
}

/* --- Writing --- */

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    if (!seen(fd)) return real(fd, data, size, offset);
    int by = struck(WRITE);
    if (by > 0) {
        errno = by;
        return -1;
    }
    ssize_t done = real(fd, data, by == SHORT && size > 1 ? size / 2 : size, offset);
    if (done > 0) note('w', fd, offset, data, done);
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!seen(fd)) return real(fd, data, size);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t done = pwrite64(fd, data, size, offset);
    if (done > 0) lseek(fd, done, SEEK_CUR);
    return done;
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    if (!seen(fd)) return real(fd, size);
    STRIKE(WRITE, -1);
    int done = real(fd, size);
    if (!done) note('t', fd, size, "", 0);
    return done;
}

#define SYNC_BY(name)                                                              \
    int name(int fd) {                                                             \
        REAL(name);                                                                \
        if (!seen(fd)) return modelled ? 0 : real(fd);                             \
        int by = struck(SYNC);                                                     \
        if (by > 0) { /* the kernel forgets that these pages are to be written */  \
            note('f', fd, 0, "", 0);                                               \
            errno = by;                                                            \
            return -1;                                                             \
        }                                                                          \
        int done = modelled ? 0 : real(fd);                                        \
        if (!done) note('s', fd, 0, "", 0);                                        \
        return done;                                                               \
    }

SYNC_BY(fsync)
SYNC_BY(fdatasync)
