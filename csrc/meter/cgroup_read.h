/* Reads a group's counters through open descriptors. */
#ifndef FARGATELITE_CGROUP_READ_H
#define FARGATELITE_CGROUP_READ_H

#include <stddef.h>
#include <stdint.h>

struct cgroup_files {
    int version; /* 1 or 2: how cpu_fd is to be read */
    int cpu_fd;
    int memory_fd;
    int peak_fd;       /* -1 where the kernel has no such file */
    uint64_t group_id; /* see ledger_record */
};

struct ledger_record;

/* The first line of `text` as a decimal number, ended by a newline or the end of `text`. */
int parse_number(const char *text, size_t length, uint64_t *value);
/* The number after `key` and one blank at the begin of a line of `text`. */
int parse_keyed(const char *text, size_t length, const char *key, uint64_t *value);
/* Fills the counters of `record`; sets a GAP flag for each that cannot be read or parsed. */
void read_cgroup(const struct cgroup_files *files, struct ledger_record *record);
void close_cgroup(struct cgroup_files *files);

#endif
