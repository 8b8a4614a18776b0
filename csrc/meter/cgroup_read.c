#include "cgroup_read.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "ledger.h"

/* cpu.stat's usage_usec is its first line; 20 digits are the most that any counter has. */
#define READ_BYTES 256

int parse_number(const char *text, size_t length, uint64_t *value) {
    uint64_t number = 0;
    size_t digits = 0;
    while (digits < length && text[digits] >= '0' && text[digits] <= '9') {
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(text[digits] - '0'), &number))
            return -ERANGE;
        digits++;
    }
    if (digits == 0 || (digits < length && text[digits] != '\n'))
        return -EINVAL;
    *value = number;
    return 0;
}

int parse_keyed(const char *text, size_t length, const char *key, uint64_t *value) {
    size_t key_length = strlen(key), at = 0;
    while (at < length) {
        size_t rest = length - at;
        if (rest > key_length && memcmp(text + at, key, key_length) == 0 &&
            text[at + key_length] == ' ') {
            const char *number = text + at + key_length + 1;
            size_t number_length = rest - key_length - 1;
            /* A number that the buffer cuts off would parse as a smaller one. */
            if (memchr(number, '\n', number_length) == NULL)
                return -EINVAL;
            return parse_number(number, number_length, value);
        }
        const char *newline = memchr(text + at, '\n', rest);
        if (newline == NULL)
            break;
        at = (size_t)(newline - text) + 1;
    }
    return -ENOENT;
}

static ssize_t read_start(int fd, char *buffer) {
    ssize_t got;
    do
        got = pread(fd, buffer, READ_BYTES, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

static int read_number(int fd, uint64_t *value) {
    char buffer[READ_BYTES];
    ssize_t got = read_start(fd, buffer);
    return got < 0 ? -errno : parse_number(buffer, (size_t)got, value);
}

static int read_cpu(const struct cgroup_files *files, uint64_t *value) {
    if (files->version == 1)
        return read_number(files->cpu_fd, value);
    char buffer[READ_BYTES];
    ssize_t got = read_start(files->cpu_fd, buffer);
    if (got < 0)
        return -errno;
    uint64_t us, ns;
    int result = parse_keyed(buffer, (size_t)got, "usage_usec", &us);
    if (result == 0 && __builtin_mul_overflow(us, 1000, &ns))
        result = -ERANGE;
    if (result == 0)
        *value = ns;
    return result;
}

void read_cgroup(const struct cgroup_files *files, struct ledger_record *record) {
    if (read_cpu(files, &record->cpu_usage_ns) < 0)
        record->flags |= LEDGER_GAP_CPU;
    if (read_number(files->memory_fd, &record->memory_bytes) < 0)
        record->flags |= LEDGER_GAP_MEMORY;
    if (files->peak_fd < 0 || read_number(files->peak_fd, &record->memory_peak_bytes) < 0)
        record->flags |= LEDGER_GAP_PEAK;
}

void close_cgroup(struct cgroup_files *files) {
    close(files->cpu_fd);
    close(files->memory_fd);
    if (files->peak_fd >= 0)
        close(files->peak_fd);
    files->cpu_fd = files->memory_fd = files->peak_fd = -1;
}
