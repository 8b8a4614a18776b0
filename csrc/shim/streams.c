/* Copies a process's stdout and stderr into its log file, in the CRI log format:
 *
 *     2026-11-24T11:50:40.123456789Z stdout F a whole line
 *     2026-11-24T11:50:40.123456789Z stderr P a piece of a line, more follows
 *
 * A piece is written as soon as it is read, so a prompt without newline is seen at once, nothing is
 * kept in memory, and the bytes can be put together again exactly. A log that cannot be written
 * never blocks the container: the bytes are counted and dropped. One whose reader must not lose a
 * line (operation log_hold) does: main.c stops reading the streams until it has caught up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include "shim.h"

#define MAX_DRAIN (1024 * 1024) /* after exit: a pipe holds 64 KiB, the rest is somebody else's */
#define BATCH 64                /* lines per writev; IOV_MAX is 1024, three vectors a line */

static void capture(struct process *process, const char *data, size_t length) {
    if (!process->captured || !process->captured_limit)
        return;
    uint32_t limit = process->captured_limit;
    if (length >= limit) {
        memcpy(process->captured, data + length - limit, limit);
        process->captured_bytes = limit;
        return;
    }
    size_t kept = process->captured_bytes;
    if (kept + length > limit) {
        size_t excess = kept + length - limit;
        memmove(process->captured, process->captured + excess, kept - excess);
        kept -= excess;
    }
    memcpy(process->captured + kept, data, length);
    process->captured_bytes = (uint32_t)(kept + length);
}

static void write_all(struct process *process, struct iovec *vectors, int count, size_t total) {
    size_t wrote = log_write(&process->log, vectors, count, total);
    process->dropped_log_bytes += total - wrote;
    process->unread_bytes += wrote;
}

static size_t format_prefix(char *out, size_t room, const char *stream) {
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    int length = snprintf(out, room, "%04d-%02d-%02dT%02d:%02d:%02d.%09ldZ %s ", utc.tm_year + 1900,
                          utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                          now.tv_nsec, stream);
    return length < 0 ? 0 : (size_t)length;
}

static void log_chunk(struct process *process, int stream, const char *data, size_t length) {
    static char newline[] = "\n", whole[] = "F ", piece[] = "P ";
    char prefix[64];
    size_t prefix_length = format_prefix(prefix, sizeof prefix, stream ? "stderr" : "stdout");
    struct iovec vectors[BATCH * 4];
    int count = 0;
    size_t total = 0;

    while (length) {
        const char *end = memchr(data, '\n', length);
        size_t line = end ? (size_t)(end - data) : length;
        vectors[count++] = (struct iovec){prefix, prefix_length};
        vectors[count++] = (struct iovec){end ? whole : piece, 2};
        vectors[count++] = (struct iovec){(char *)data, line};
        vectors[count++] = (struct iovec){newline, 1};
        total += prefix_length + 2 + line + 1;
        data += line + (end ? 1 : 0);
        length -= line + (end ? 1 : 0);
        if (count == BATCH * 4 || !length) {
            write_all(process, vectors, count, total);
            count = 0;
            total = 0;
        }
    }
}

/* Reads what the pipe holds (once, or with `drain` until it is empty); closes it at its end. */
void stream_read(struct process *process, int stream, bool drain) {
    static char buffer[STREAM_BUFFER];
    size_t drained = 0;
    while (process->streams[stream] >= 0) {
        ssize_t got = read(process->streams[stream], buffer, sizeof buffer);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            close_descriptor(&process->streams[stream]);
            return;
        }
        capture(process, buffer, (size_t)got);
        if (process->log.directory >= 0)
            log_chunk(process, stream, buffer, (size_t)got);
        drained += (size_t)got;
        if (!drain || drained >= MAX_DRAIN)
            return;
    }
}
