/* Reads a group's counters through open descriptors. */
#ifndef FARGATELITE_CGROUP_READ_H
#define FARGATELITE_CGROUP_READ_H

#include <stddef.h>
#include <stdint.h>

#include "ledger.h"
#include "sample.h"

/* Descriptors of a group's files; -1 where the kernel has no such file. On v2 cpu_fd tells CPU time
 * and throttling, so throttled_fd and user_fd are -1. */
struct cgroup_files {
    int version; /* 1 or 2: how the files are to be read */
    int limited; /* throttled_fd is read each time: without a CPU limit it says 0 and costs most */
    int cpu_fd;
    int memory_fd;
    int peak_fd;
    int throttled_fd;
    int pids_fd;
    int stat_fd;
    int user_fd;
    int io_fd;
    int processes_fd;    /* without io_fd: what they say in /proc/PID/io is summed */
    int pressure_fds[3]; /* cpu, memory, io */
    uint64_t
        io_base[2]; /* what was read and written before; a block device counts from its own begin */
    uint64_t io_ended[2]; /* of processes that have ended */
    uint64_t io_told[2];  /* a sum over processes may fall when one ends: it is not told then */
    uint8_t generation;   /* see ledger_prefix */
    uint64_t group_id;    /* see LEDGER_MARK_GROUP */
};

/* A line's key and where its number goes. */
struct wanted_key {
    const char *key;
    uint64_t *value;
};

/* From the begin of a file; what was read (a full buffer may be a part), or -errno. */
int64_t read_start(int fd, char *buffer, size_t size);
/* The first line of `text` as a decimal number, ended by a newline or the end of `text`. */
int parse_number(const char *text, size_t length, uint64_t *value);
/* The number after `key` and one blank at the begin of a line of `text`. */
int parse_keyed(const char *text, size_t length, const char *key, uint64_t *value);
/* Likewise for several keys that stand in this order, other lines between them; in one pass.
 * How many were found before the first that is not there or does not parse. */
int parse_table(const char *text, size_t length, const struct wanted_key *wanted, int count);
/* Sums /proc/net/dev without lo. 0 or -EINVAL. */
int parse_network(const char *text, size_t length, struct network *record);
/* A block device's stat file, which stands for v1's missing counters, and v2's io.stat
 * (`8:0 rbytes=4096 wbytes=...`). */
int parse_block_stat(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes);
int parse_io_v2(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes);
/* /proc/PID/io. */
int parse_process_io(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes);
/* `some avg10=0.00 ... total=N`, and for memory and io a second line `full`. */
int parse_pressure(const char *text, size_t length, uint64_t *some_us, uint64_t *full_us);

/* Fills the values and sets a GAP flag for each that cannot be read or parsed. `all`: throttling of
 * a group without a limit too; it has one from then on if there was any. */
void read_sample(struct cgroup_files *files, struct sample *sample, int all);
/* Block I/O counts from here on. */
void set_io_base(struct cgroup_files *files);
void read_slow(struct cgroup_files *files, struct slow *slow);
void read_pressure(const struct cgroup_files *files, struct pressure *pressure);
int read_network(int fd, struct network *record);
void close_cgroup(struct cgroup_files *files);

/* What differs between the hierarchies: cgroup_v1.c, cgroup_v2.c. 0 or -errno; the first fills
 * cpu_ns, the second throttling (v2 in one read: `text` is what the first read). */
#define CPU_STAT_BYTES 512
int read_cpu_v1(const struct cgroup_files *files, struct sample *sample);
int read_throttled_v1(const struct cgroup_files *files, struct sample *sample);
void read_cpu_v2(const struct cgroup_files *files, struct sample *sample);
int read_user_v1(const struct cgroup_files *files, uint64_t *user_ns);
int read_user_v2(const struct cgroup_files *files, uint64_t *user_ns);
int read_number_file(int fd, uint64_t *value);

#endif
