/* The per-second meter: one thread, all tasks of the process in one sweep.
 *
 * Python opens every file (so that an error has its name) and hands over descriptors; from then on
 * they belong to the meter. Functions return 0 or -errno and may be called from any thread at any
 * time; cffi calls them without the GIL. Task ids are 32 characters.
 */
#ifndef FARGATELITE_METER_H
#define FARGATELITE_METER_H

#include "cgroup_read.h"
#include "ledger.h"

struct meter;

struct meter_counters {
    uint64_t ticks;
    uint64_t late_ticks;
    uint64_t dropped_records; /* no room in the segment: its file system is full */
    uint64_t worst_late_us;
    uint64_t last_sweep_ns; /* duration */
};

/* NULL with errno set when there is no memory. */
struct meter *meter_create(void);
/* Starts the thread; -EALREADY when it runs. */
int meter_start(struct meter *meter);
/* Ends and joins the thread; tasks stay registered. No error when it does not run. */
int meter_stop(struct meter *meter);
/* Stops, lets go of every task without a last sample, and frees. */
void meter_destroy(struct meter *meter);

/* Takes `segment_fd` (on success): a ledger with a header, `next_seq` records and a held lock. */
int meter_add_task(struct meter *meter, const char *task_id, int segment_fd, uint32_t next_seq);
/* Takes the descriptors of `files` (on success) and samples at once. -EEXIST when `container` is
 * being sampled already. */
int meter_add_group(struct meter *meter, const char *task_id, uint16_t container,
                    const struct cgroup_files *files);
/* One extra sample of all groups of the task. */
int meter_sample_task(struct meter *meter, const char *task_id);
/* A last sample of one group, whose descriptors are closed then. */
int meter_end_group(struct meter *meter, const char *task_id, uint16_t container);
/* A last sample of all groups; closes them and the segment, cut to what is used. */
int meter_remove_task(struct meter *meter, const char *task_id);
/* Copies each group's newest record to `records`; how many, or -errno. */
int meter_latest(struct meter *meter, const char *task_id, struct ledger_record *records,
                 int capacity);
void meter_read_counters(struct meter *meter, struct meter_counters *counters);

/* For benchmarks: `count` sweeps back to back, then the bare preads of as many; ns in total. */
int64_t meter_run_sweeps(struct meter *meter, int count);
int64_t meter_run_reads(struct meter *meter, int count);

#endif
