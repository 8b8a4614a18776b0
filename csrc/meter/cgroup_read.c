#define _GNU_SOURCE /* memmem */
#include "cgroup_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NUMBER_BYTES 32    /* 20 digits are the most that any counter has */
#define STAT_BYTES 4096    /* memory.stat: 1 to 2 KiB */
#define IO_BYTES 8192      /* io.stat: some 100 bytes for each device */
#define NETWORK_BYTES 4096 /* /proc/net/dev: 130 bytes for each interface */
#define PRESSURE_BYTES 256
#define PROCESS_IO_BYTES 512
#define PROCESSES_BYTES 8192 /* 1,000 processes and more; with more it is not told */
#define KIB 1024
#define SECTOR_BYTES 512 /* of /sys/block/DEVICE/stat, whatever the device has */

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

int parse_table(const char *text, size_t length, const struct wanted_key *wanted, int count) {
    size_t at = 0;
    for (int found = 0; found < count; found++) {
        size_t key_length = strlen(wanted[found].key);
        for (;;) {
            const char *newline = at < length ? memchr(text + at, '\n', length - at) : NULL;
            if (newline == NULL) /* the end, or a line that the buffer cuts off */
                return found;
            size_t line = (size_t)(newline - text) - at;
            int is_it = line > key_length + 1 && text[at + key_length] == ' ' &&
                        memcmp(text + at, wanted[found].key, key_length) == 0;
            if (is_it && parse_number(text + at + key_length + 1, line - key_length - 1,
                                      wanted[found].value) < 0)
                return found;
            at += line + 1;
            if (is_it)
                break;
        }
    }
    return count;
}

/* Moves `*at` behind blanks and a number; 0 or -errno. */
static int take_number(const char *text, size_t length, size_t *at, uint64_t *value) {
    while (*at < length && text[*at] == ' ')
        ++*at;
    size_t end = *at;
    while (end < length && text[end] >= '0' && text[end] <= '9')
        end++;
    int result = parse_number(text + *at, end - *at, value);
    *at = end;
    return result;
}

int parse_network(const char *text, size_t length, struct network *record) {
    uint64_t sums[4] = {0};
    int line = 0;
    for (size_t at = 0; at < length; line++) {
        const char *newline = memchr(text + at, '\n', length - at);
        if (newline == NULL)
            return -EINVAL; /* cut off */
        size_t end = (size_t)(newline - text);
        if (line >= 2) { /* two lines of titles */
            const char *colon = memchr(text + at, ':', end - at);
            if (colon == NULL)
                return -EINVAL;
            size_t name = at;
            while (text[name] == ' ')
                name++;
            at = (size_t)(colon - text) + 1;
            int is_loopback = at - 1 - name == 2 && memcmp(text + name, "lo", 2) == 0;
            for (int column = 0; column < 10; column++) {
                uint64_t value;
                if (take_number(text, end, &at, &value) < 0)
                    return -EINVAL;
                /* bytes and packets received are columns 0 and 1, sent 8 and 9 */
                if (!is_loopback && (column < 2 || column > 7))
                    sums[column < 2 ? column : column - 6] += value;
            }
        }
        at = end + 1;
    }
    if (line < 2)
        return -EINVAL;
    record->received_bytes = sums[0];
    record->received_packets = sums[1];
    record->sent_bytes = sums[2];
    record->sent_packets = sums[3];
    return 0;
}

static int sum_after(const char *line, size_t length, const char *word, uint64_t *sum) {
    size_t word_length = strlen(word);
    const char *found = memmem(line, length, word, word_length);
    if (found == NULL)
        return 0;
    size_t at = (size_t)(found - line) + word_length;
    uint64_t value;
    int result = take_number(line, length, &at, &value);
    if (result == 0)
        *sum += value;
    return result;
}

static int sum_lines(const char *text, size_t length, const char *read_word, const char *write_word,
                     uint64_t *read_bytes, uint64_t *write_bytes) {
    uint64_t in = 0, out = 0;
    for (size_t at = 0; at < length;) {
        const char *newline = memchr(text + at, '\n', length - at);
        if (newline == NULL)
            return -EINVAL;
        size_t line = (size_t)(newline - text) - at;
        if (sum_after(text + at, line, read_word, &in) < 0 ||
            sum_after(text + at, line, write_word, &out) < 0)
            return -EINVAL;
        at += line + 1;
    }
    *read_bytes = in;
    *write_bytes = out;
    return 0;
}

int parse_block_stat(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes) {
    uint64_t fields[7]; /* the third and the seventh are sectors read and written */
    size_t at = 0;
    for (int field = 0; field < 7; field++)
        if (take_number(text, length, &at, &fields[field]) < 0)
            return -EINVAL;
    *read_bytes = fields[2] * SECTOR_BYTES;
    *write_bytes = fields[6] * SECTOR_BYTES;
    return 0;
}

int parse_io_v2(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes) {
    return sum_lines(text, length, " rbytes=", " wbytes=", read_bytes, write_bytes);
}

int parse_pressure(const char *text, size_t length, uint64_t *some_us, uint64_t *full_us) {
    uint64_t *targets[2] = {some_us, full_us};
    size_t at = 0;
    for (int line = 0; line < 2 && at < length; line++) {
        const char *newline = memchr(text + at, '\n', length - at);
        if (newline == NULL)
            return -EINVAL;
        size_t end = (size_t)(newline - text);
        *targets[line] = 0;
        if (sum_after(text + at, end - at, " total=", targets[line]) < 0)
            return -EINVAL;
        at = end + 1;
    }
    return at == 0 ? -EINVAL : 0;
}

int64_t read_start(int fd, char *buffer, size_t size) {
    ssize_t got;
    do
        got = pread(fd, buffer, size, 0);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

int read_number_file(int fd, uint64_t *value) {
    if (fd < 0)
        return -ENOENT;
    char buffer[NUMBER_BYTES];
    int64_t got = read_start(fd, buffer, sizeof buffer);
    return got < 0 ? (int)got : parse_number(buffer, (size_t)got, value);
}

/* 4 TiB is the most that a record holds. */
static int read_kib(int fd, uint32_t *kib) {
    uint64_t bytes;
    int result = read_number_file(fd, &bytes);
    if (result == 0)
        *kib = bytes / KIB > UINT32_MAX ? UINT32_MAX : (uint32_t)(bytes / KIB);
    return result;
}

void read_sample(struct cgroup_files *files, struct sample *sample, int all) {
    uint8_t *flags = &sample->flags;
    if (files->version == 1) {
        if (read_cpu_v1(files, sample) < 0)
            *flags |= LEDGER_GAP_CPU;
        if (files->throttled_fd < 0)
            *flags |= LEDGER_GAP_THROTTLED;
        else if (files->limited || all) {
            if (read_throttled_v1(files, sample) < 0)
                *flags |= LEDGER_GAP_THROTTLED;
            files->limited |= sample->periods > 0;
        }
    } else {
        read_cpu_v2(files, sample);
    }
    if (read_kib(files->memory_fd, &sample->memory_kib) < 0)
        *flags |= LEDGER_GAP_MEMORY;
    if (read_kib(files->peak_fd, &sample->peak_kib) < 0)
        *flags |= LEDGER_GAP_PEAK;
    uint64_t pids;
    if (read_number_file(files->pids_fd, &pids) < 0)
        *flags |= LEDGER_GAP_PIDS;
    else
        sample->pids = pids > UINT16_MAX ? UINT16_MAX : (uint16_t)pids;
}

static int read_stat(const struct cgroup_files *files, struct slow *slow) {
    static const char *const v1[] = {"total_inactive_file", "total_rss", "total_cache"};
    static const char *const v2[] = {"inactive_file", "anon", "file"};
    const char *const *keys = files->version == 1 ? v1 : v2;
    char text[STAT_BYTES];
    uint64_t usage, values[3];
    int64_t got = files->stat_fd < 0 ? -ENOENT : read_start(files->stat_fd, text, sizeof text);
    if (got < 0)
        return (int)got;
    for (int index = 0; index < 3; index++)
        if (parse_keyed(text, (size_t)got, keys[index], &values[index]) < 0)
            return -EINVAL;
    if (read_number_file(files->memory_fd, &usage) < 0)
        return -EINVAL;
    uint64_t working_set = usage > values[0] ? usage - values[0] : 0;
    slow->working_set_kib = (uint32_t)(working_set / KIB);
    slow->rss_kib = (uint32_t)(values[1] / KIB);
    slow->cache_kib = (uint32_t)(values[2] / KIB);
    return 0;
}

static int read_io(const struct cgroup_files *files, uint64_t *read_bytes, uint64_t *write_bytes) {
    char text[IO_BYTES];
    int64_t got = files->io_fd < 0 ? -ENOENT : read_start(files->io_fd, text, sizeof text);
    if (got < 0)
        return (int)got;
    int result = (files->version == 1 ? parse_block_stat : parse_io_v2)(text, (size_t)got,
                                                                        read_bytes, write_bytes);
    if (result == 0) {
        *read_bytes -= files->io_base[0];
        *write_bytes -= files->io_base[1];
    }
    return result;
}

void set_io_base(struct cgroup_files *files) {
    files->io_base[0] = files->io_base[1] = 0;
    /* v2's counters are the group's own. Loop devices are used again and go on counting. */
    uint64_t base[2];
    if (files->version == 1 && read_io(files, &base[0], &base[1]) == 0) {
        files->io_base[0] = base[0];
        files->io_base[1] = base[1];
    }
}

int parse_process_io(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes) {
    return parse_keyed(text, length, "read_bytes:", read_bytes) < 0 ||
                   parse_keyed(text, length, "write_bytes:", write_bytes) < 0
               ? -EINVAL
               : 0;
}

/* A process adds that of children that it has waited for, so a sum over those that live, and what
 * the shim saw the end of, is that of all but a few: see docs/ledger-format.md. */
static void add_process_io(uint64_t pid, uint64_t sums[2]) {
    char path[32], text[PROCESS_IO_BYTES];
    snprintf(path, sizeof path, "/proc/%u/io", (unsigned)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int64_t got = fd < 0 ? -errno : read_start(fd, text, sizeof text);
    uint64_t values[2];
    if (got > 0 && parse_process_io(text, (size_t)got, &values[0], &values[1]) == 0) {
        sums[0] += values[0];
        sums[1] += values[1];
    } /* else it has ended meanwhile */
    if (fd >= 0)
        close(fd);
}

static int read_processes_io(struct cgroup_files *files, uint64_t *read_bytes,
                             uint64_t *write_bytes) {
    char text[PROCESSES_BYTES];
    int64_t got = read_start(files->processes_fd, text, sizeof text);
    if (got < 0)
        return (int)got;
    if (got == sizeof text)
        return -EFBIG;
    uint64_t sums[2] = {files->io_ended[0], files->io_ended[1]};
    for (size_t at = 0; at < (size_t)got; at++) {
        uint64_t pid;
        if (take_number(text, (size_t)got, &at, &pid) < 0)
            return -EINVAL;
        add_process_io(pid, sums);
    }
    for (int index = 0; index < 2; index++)
        if (sums[index] > files->io_told[index])
            files->io_told[index] = sums[index];
    *read_bytes = files->io_told[0];
    *write_bytes = files->io_told[1];
    return 0;
}

void read_slow(struct cgroup_files *files, struct slow *slow) {
    uint8_t *flags = &slow->flags;
    if (read_stat(files, slow) < 0)
        *flags |= LEDGER_GAP_STAT;
    if ((files->version == 1 ? read_user_v1 : read_user_v2)(files, &slow->user_ns) < 0)
        *flags |= LEDGER_GAP_USER;
    uint64_t *io[2] = {&slow->read_bytes, &slow->write_bytes};
    int result = files->io_fd < 0 && files->processes_fd >= 0
                     ? read_processes_io(files, io[0], io[1])
                     : read_io(files, io[0], io[1]);
    slow->has_io = result == 0;
}

void read_pressure(const struct cgroup_files *files, struct pressure *pressure) {
    uint64_t ignored;
    uint64_t *stalled = pressure->stalled_us;
    uint64_t *some[3] = {&stalled[0], &stalled[1], &stalled[3]};
    uint64_t *full[3] = {&ignored, &stalled[2], &ignored};
    stalled[2] = UINT64_MAX;
    for (int index = 0; index < 3; index++) {
        char text[PRESSURE_BYTES];
        int fd = files->pressure_fds[index];
        int64_t got = fd < 0 ? -ENOENT : read_start(fd, text, sizeof text);
        if (got < 0 || parse_pressure(text, (size_t)got, some[index], full[index]) < 0)
            *some[index] = UINT64_MAX;
    }
}

int read_network(int fd, struct network *record) {
    char text[NETWORK_BYTES];
    int64_t got = read_start(fd, text, sizeof text);
    return got < 0 ? (int)got : parse_network(text, (size_t)got, record);
}

void close_cgroup(struct cgroup_files *files) {
    int *const all[] = {&files->cpu_fd,          &files->memory_fd,       &files->peak_fd,
                        &files->throttled_fd,    &files->pids_fd,         &files->stat_fd,
                        &files->user_fd,         &files->processes_fd,    &files->io_fd,
                        &files->pressure_fds[0], &files->pressure_fds[1], &files->pressure_fds[2]};
    for (size_t index = 0; index < sizeof all / sizeof *all; index++) {
        if (*all[index] >= 0)
            close(*all[index]);
        *all[index] = -1;
    }
}
