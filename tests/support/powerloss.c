/* Records, for one directory tree, what a power failure would spare: which bytes of which file were fsynced, and which
 * changes of directories were. Preloaded into the process under test; read by powerloss.py, which undoes the rest.
 *
 * Journal, one line a record, appended with one write(2), so that it survives SIGKILL and keeps the order of threads:
 *
 *   C <ino> <path>             a file was created            M <path>   a directory was created
 *   L <path>                   a hard link was created       D <path>   a directory was removed
 *   R <copy> <old>\t<new>      renamed; <copy> keeps the file that <new> was, or is "-"
 *   U <copy> <path>            unlinked; <copy> keeps the file
 *   S <ino> <bytes>            fsync of a file returned; its length when the call began
 *   T <ino> <bytes>            truncated
 *   Y <offset> <path>          fsync of a directory returned; the journal's length when the call began
 *   X <path>                   bytes below the synced length were overwritten: outside this model
 *
 * A record of a change is written before the change (a kill in between is settled by looking), a record of a sync after it.
 * Not modelled: writes through a shared mapping, and files that libc opens for itself (fopen): these count as never synced.
 */
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
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SLOTS 65536

static const char *root, *journal_path, *copies, *fault_path;
static size_t root_length;
static int journal = -1, lying;
static long sync_delay_us;
static unsigned long copy_number;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct { ino_t ino; off_t bytes; } synced[SLOTS];

static int raw_open(const char *path, int flags) { return (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0644); }

static void start(void) {
    journal_path = getenv("POWERLOSS_JOURNAL");
    root = getenv("POWERLOSS_DIR");
    copies = getenv("POWERLOSS_COPIES");
    fault_path = getenv("POWERLOSS_FAULT");
    lying = getenv("POWERLOSS_LYING_DISK") != NULL;
    const char *delay = getenv("POWERLOSS_SYNC_DELAY_US");
    sync_delay_us = delay ? atol(delay) : 0;
    if (!journal_path || !root || !copies) { root = NULL; return; }
    root_length = strlen(root);
    journal = raw_open(journal_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
    if (journal >= 0) { /* out of the way of programs that expect small descriptors */
        int high = fcntl(journal, F_DUPFD_CLOEXEC, 1000);
        if (high >= 0) { syscall(SYS_close, journal); journal = high; }
    }
    copy_number = ((unsigned long)getpid() << 32);
}

static int active(void) { pthread_once(&once, start); return root != NULL && journal >= 0; }

static void record(const char *format, ...) {
    char line[3 * PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    int saved = errno;
    if (length > 0 && syscall(SYS_write, journal, line, (size_t)length) != length) abort();
    errno = saved;
}

static int inside(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || path[root_length] == 0);
}

/* The absolute path with its directory resolved; 0 when it is not in the tree. */
static int resolve(int directory, const char *path, char *out) {
    char joined[2 * PATH_MAX], parent[PATH_MAX];
    if (path[0] == '/') snprintf(joined, sizeof joined, "%s", path);
    else if (directory == AT_FDCWD) {
        if (!getcwd(parent, sizeof parent)) return 0;
        snprintf(joined, sizeof joined, "%s/%s", parent, path);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t n = readlink(link, parent, sizeof parent - 1);
        if (n <= 0) return 0;
        parent[n] = 0;
        snprintf(joined, sizeof joined, "%s/%s", parent, path);
    }
    size_t length = strlen(joined);
    while (length > 1 && joined[length - 1] == '/') joined[--length] = 0;
    char *slash = strrchr(joined, '/');
    if (!slash) return 0;
    *slash = 0;
    int saved = errno;
    char *found = realpath(joined[0] ? joined : "/", parent);
    errno = saved;
    if (!found) return 0;
    snprintf(out, 2 * PATH_MAX, "%s/%s", parent, slash + 1);
    return inside(out);
}

static int descriptor_path(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    errno = saved;
    if (n <= 0) return 0;
    out[n] = 0;
    return inside(out);
}

static off_t *slot(ino_t ino) {
    for (size_t i = ino % SLOTS, tries = 0; tries < SLOTS; i = (i + 1) % SLOTS, tries++) {
        if (synced[i].ino == ino) return &synced[i].bytes;
        if (!synced[i].ino) { synced[i].ino = ino; return &synced[i].bytes; }
    }
    abort();
}

/* The errno that the control file orders for `what` ("write" or "sync"), or 0. */
static int fault(const char *what) {
    if (!fault_path) return 0;
    int saved = errno, fd = raw_open(fault_path, O_RDONLY | O_CLOEXEC), number = 0;
    if (fd >= 0) {
        char text[256];
        ssize_t n = syscall(SYS_read, fd, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        syscall(SYS_close, fd);
        char *found = strstr(text, what);
        if (found) number = atoi(found + strlen(what));
    }
    errno = saved;
    return number;
}

/* Before a write of a regular file of the tree: an ordered fault, and the check that only the tail is written. */
static int before_write(int fd, off_t offset, int positioned) {
    struct stat about;
    char path[PATH_MAX];
    if (!active() || fstat(fd, &about) || !S_ISREG(about.st_mode) || !descriptor_path(fd, path)) return 0;
    int number = fault("write");
    if (number) { errno = number; return -1; }
    if (!positioned) offset = fcntl(fd, F_GETFL) & O_APPEND ? about.st_size : lseek(fd, 0, SEEK_CUR);
    pthread_mutex_lock(&guard);
    if (offset < *slot(about.st_ino)) record("X %s\n", path);
    pthread_mutex_unlock(&guard);
    return 0;
}

static void truncated(ino_t ino, off_t bytes) {
    pthread_mutex_lock(&guard);
    off_t *known = slot(ino);
    if (bytes < *known) *known = bytes;
    record("T %lu %ld\n", (unsigned long)ino, (long)bytes);
    pthread_mutex_unlock(&guard);
}

/* Keeps the file at `path` as a hard link; its name, or "-". */
static void keep(const char *path, char *name) {
    char copy[2 * PATH_MAX];
    pthread_mutex_lock(&guard);
    snprintf(name, 32, "%lx", copy_number++);
    pthread_mutex_unlock(&guard);
    snprintf(copy, sizeof copy, "%s/%s", copies, name);
    int saved = errno;
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, copy, 0)) strcpy(name, "-");
    errno = saved;
}

static int opened(int directory, const char *path, int flags, mode_t mode) {
    char full[2 * PATH_MAX];
    int tracked = active() && (flags & (O_CREAT | O_TRUNC)) && !(flags & O_TMPFILE & ~O_DIRECTORY) && resolve(directory, path, full);
    struct stat about;
    int saved = errno, existed = tracked && !stat(full, &about);
    errno = saved;
    if (tracked && !existed && (flags & O_CREAT)) {
        int number = fault("write");
        if (number) { errno = number; return -1; }
    }
    int fd = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (tracked && fd >= 0 && !fstat(fd, &about) && S_ISREG(about.st_mode)) {
        if (!existed) {
            pthread_mutex_lock(&guard);
            *slot(about.st_ino) = 0;
            record("C %lu %s\n", (unsigned long)about.st_ino, full);
            pthread_mutex_unlock(&guard);
        } else if (flags & O_TRUNC) truncated(about.st_ino, 0);
    }
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) {
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? (mode_t)va_arg(arguments, int) : 0;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list a; va_start(a, flags); mode_t mode = mode_of(flags, a); va_end(a); return opened(AT_FDCWD, path, flags, mode); }
#define OPENAT(name) int name(int directory, const char *path, int flags, ...) { \
    va_list a; va_start(a, flags); mode_t mode = mode_of(flags, a); va_end(a); return opened(directory, path, flags, mode); }
#undef open64
#undef openat64
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

ssize_t write(int fd, const void *data, size_t n) {
    return before_write(fd, 0, 0) ? -1 : syscall(SYS_write, fd, data, n);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    return before_write(fd, 0, 0) ? -1 : syscall(SYS_writev, fd, parts, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
    return before_write(fd, offset, 1) ? -1 : syscall(SYS_pwrite64, fd, data, n, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off_t offset) { return pwrite(fd, data, n, offset); }
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t offset) {
    return before_write(fd, offset, 1) ? -1 : syscall(SYS_pwritev, fd, parts, n, offset, 0);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off_t offset) { return pwritev(fd, parts, n, offset); }

int ftruncate(int fd, off_t bytes) {
    struct stat about;
    char path[PATH_MAX];
    if (active() && !fstat(fd, &about) && descriptor_path(fd, path)) truncated(about.st_ino, bytes);
    return (int)syscall(SYS_ftruncate, fd, bytes);
}
int ftruncate64(int fd, off_t bytes) { return ftruncate(fd, bytes); }
int truncate(const char *path, off_t bytes) {
    char full[2 * PATH_MAX];
    struct stat about;
    if (active() && resolve(AT_FDCWD, path, full) && !stat(full, &about)) truncated(about.st_ino, bytes);
    return (int)syscall(SYS_truncate, path, bytes);
}
int truncate64(const char *path, off_t bytes) { return truncate(path, bytes); }

static int sync_of(int fd, long number) {
    struct stat about, log;
    char path[PATH_MAX];
    if (!active() || fstat(fd, &about) || !descriptor_path(fd, path)) return (int)syscall(number, fd);
    int ordered = fault("sync");
    if (ordered) { errno = ordered; return -1; }
    if (fstat(journal, &log)) abort();
    /* No real fsync: the journal is the disk here, and the machine is spared. */
    if (sync_delay_us) usleep((useconds_t)sync_delay_us);
    if (lying) return 0;
    if (S_ISDIR(about.st_mode)) record("Y %ld %s\n", (long)log.st_size, path);
    else if (S_ISREG(about.st_mode)) {
        pthread_mutex_lock(&guard);
        off_t *known = slot(about.st_ino);
        if (about.st_size > *known) *known = about.st_size;
        record("S %lu %ld\n", (unsigned long)about.st_ino, (long)about.st_size);
        pthread_mutex_unlock(&guard);
    }
    return 0;
}
int fsync(int fd) { return sync_of(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_of(fd, SYS_fdatasync); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char source[2 * PATH_MAX], target[2 * PATH_MAX], copy[32] = "-";
    if (active() && resolve(from, old, source) && resolve(to, new, target)) {
        keep(target, copy);
        record("R %s %s\t%s\n", copy, source, target);
    }
    return (int)syscall(SYS_renameat2, from, old, to, new, flags);
}
int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int directory, const char *path, int flags) {
    char full[2 * PATH_MAX], copy[32];
    if (active() && resolve(directory, path, full)) {
        if (flags & AT_REMOVEDIR) record("D %s\n", full);
        else {
            keep(full, copy);
            if (strcmp(copy, "-")) record("U %s %s\n", copy, full);
        }
    }
    return (int)syscall(SYS_unlinkat, directory, path, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat about;
    return !lstat(path, &about) && S_ISDIR(about.st_mode) ? rmdir(path) : unlink(path);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    char full[2 * PATH_MAX];
    if (active() && resolve(to, new, full)) record("L %s\n", full);
    return (int)syscall(SYS_linkat, from, old, to, new, flags);
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int mkdirat(int directory, const char *path, mode_t mode) {
    char full[2 * PATH_MAX];
    struct stat about;
    int saved = errno;
    if (active() && resolve(directory, path, full) && stat(full, &about)) record("M %s\n", full);
    errno = saved;
    return (int)syscall(SYS_mkdirat, directory, path, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
