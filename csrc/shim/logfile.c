/* The log file of a process, bounded: `web.log` is written, and at its bound renamed to
 * `web.log.<where it begins>`, the place of its first byte among all that were ever written, with
 * 20 digits. Names never change afterwards, so a reader that follows can tell the next file from a
 * later one, and how much was removed before it came (fargatelite/logdrivers/local.py).
 *
 * Nothing is remembered but what the directory says: a container that is restarted goes on where
 * it was.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "shim.h"

#define PLACE_DIGITS 20

/* Rotated files of one log: how many, and where the first and the last of them begin. */
struct rotated {
    size_t count;
    uint64_t first;
    uint64_t last;
};

/* The place in a rotated file's name; false for any other name. */
static bool parse_place(const char *name, const char *base, uint64_t *place) {
    size_t length = strlen(base);
    if (strncmp(name, base, length) || name[length] != '.' ||
        strlen(name + length + 1) != PLACE_DIGITS)
        return false;
    uint64_t found = 0;
    for (const char *digit = name + length + 1; *digit; digit++) {
        if (*digit < '0' || *digit > '9' || __builtin_mul_overflow(found, 10, &found) ||
            __builtin_add_overflow(found, (uint64_t)(*digit - '0'), &found))
            return false;
    }
    *place = found;
    return true;
}

static int scan(int directory, const char *base, struct rotated *rotated) {
    char entries[4096] __attribute__((aligned(__alignof__(struct dirent64))));
    ssize_t got;
    memset(rotated, 0, sizeof *rotated);
    cleanup_close int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while ((got = getdents64(fd, entries, sizeof entries)) > 0)
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *entry = (const void *)(entries + at);
            uint64_t place;
            at += entry->d_reclen;
            if (!parse_place(entry->d_name, base, &place))
                continue;
            if (!rotated->count || place < rotated->first)
                rotated->first = place;
            if (!rotated->count || place > rotated->last)
                rotated->last = place;
            rotated->count++;
        }
    return got < 0 ? -errno : 0;
}

static void name_of(const struct log_file *log, uint64_t place, char out[NAME_MAX + 1]) {
    snprintf(out, NAME_MAX + 1, "%s.%0*" PRIu64, log->name, PLACE_DIGITS, place);
}

static int open_current(struct log_file *log) {
    struct stat info;
    log->fd = openat(log->directory, log->name,
                     O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log->fd < 0 || fstat(log->fd, &info))
        return -errno;
    log->bytes = (uint64_t)info.st_size;
    return 0;
}

/* Opens the log at `path`, absolute or below `base`; `max_bytes` 0: without bound. */
int log_open(struct log_file *log, int base, const char *path, uint64_t max_bytes,
             uint64_t max_files, struct failure *failure) {
    char parent[PATH_MAX], name[NAME_MAX + 1];
    struct rotated rotated;
    struct stat info;
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 0;
    const char *last = path + length;

    if (length >= sizeof parent || strlen(last) >= sizeof log->name || !*last)
        return fail(failure, "open", path, ENAMETOOLONG);
    memcpy(parent, path, length);
    parent[length] = 0;
    strcpy(log->name, last);
    log->max_bytes = max_bytes;
    log->max_files = max_files;
    log->directory =
        openat(base, length ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (log->directory < 0)
        return FAIL(failure, "openat", path);
    if (open_current(log))
        return FAIL(failure, "openat", path);
    int result = scan(log->directory, log->name, &rotated);
    if (result)
        return fail(failure, "getdents64", path, -result);
    log->begin = 0;
    if (rotated.count) {
        name_of(log, rotated.last, name);
        if (fstatat(log->directory, name, &info, AT_SYMLINK_NOFOLLOW))
            return FAIL(failure, "fstatat", name);
        log->begin = rotated.last + (uint64_t)info.st_size;
    }
    return 0;
}

/* A log that cannot be rotated goes on growing: its disk is broken in a way that a container should
 * not be stopped for, and the next attempt is at the next batch. */
static void rotate(struct log_file *log) {
    char name[NAME_MAX + 1];
    struct rotated rotated;
    name_of(log, log->begin, name);
    if (renameat(log->directory, log->name, log->directory, name))
        return;
    log->begin += log->bytes;
    close_descriptor(&log->fd);
    open_current(log); /* on failure writes fail, and are counted as dropped */
    while (!scan(log->directory, log->name, &rotated) && rotated.count >= log->max_files) {
        name_of(log, rotated.first, name);
        if (unlinkat(log->directory, name, 0))
            return;
    }
}

/* Appends whole records; returns how many bytes were written. A short write (a full disk) leaves a
 * torn line; the reader treats what is no record as such. */
size_t log_write(struct log_file *log, const struct iovec *vectors, int count, size_t total) {
    if (log->max_bytes && log->bytes && log->bytes + total > log->max_bytes)
        rotate(log);
    if (log->fd < 0)
        open_current(log);
    ssize_t wrote = writev(log->fd, vectors, count);
    if (wrote < 0)
        return 0;
    log->bytes += (uint64_t)wrote;
    return (size_t)wrote;
}

void log_close(struct log_file *log) {
    close_descriptor(&log->fd);
    close_descriptor(&log->directory);
}
