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
    uint64_t thread_cpu_ns; /* of the sweeping thread, since its start; 0 when it does not run */
    uint64_t synced;        /* segments written back, failures too */
    uint64_t sync_failures;
};

/* Slow kinds every `slow_every_s` seconds, 0: never. Segments are written back to their disk every
 * `sync_every_s` seconds, by a thread of its own; 0: when the kernel does. One that has
 * `segment_bytes` is followed by another one after the sweep (at most some of them in each). NULL
 * with errno set when there is no memory. */
struct meter *meter_create(uint32_t slow_every_s, uint32_t sync_every_s, size_t segment_bytes);
/* Starts the threads; -EALREADY when they run. */
int meter_start(struct meter *meter);
/* Ends and joins the threads; tasks stay registered. No error when they do not run.
 */
int meter_stop(struct meter *meter);
/* Stops, lets go of every task without a last sample, and frees. */
void meter_destroy(struct meter *meter);

/* Takes `segment_fd` (on success): segment number `segment` of the ledger `ledger` (an absolute
 * path without its suffix), with a header, `next_seq` records and a held lock. */
int meter_add_task(struct meter *meter, const char *task_id, const char *ledger, uint32_t segment,
                   int segment_fd, uint32_t next_seq);
/* Stores a struct ledger_name. */
int meter_add_name(struct meter *meter, const char *task_id, uint8_t container, const void *slot);
/* Takes the descriptors of `files` (on success) and samples at once. -EEXIST when `container` is
 * being sampled already. */
int meter_add_group(struct meter *meter, const char *task_id, uint8_t container,
                    const struct cgroup_files *files);
/* Takes `fd`, /proc/net/dev of the task's network namespace, read at the slow pace. -EEXIST when
 * there is one. */
int meter_add_network(struct meter *meter, const char *task_id, int fd);
/* What processes of a group that have ended had read and written. */
int meter_add_io(struct meter *meter, const char *task_id, uint8_t container, uint64_t read_bytes,
                 uint64_t written_bytes);
/* One extra sample of all groups of the task, slow kinds too. */
int meter_sample_task(struct meter *meter, const char *task_id);
/* A last sample of one group, whose descriptors are closed then. */
int meter_end_group(struct meter *meter, const char *task_id, uint8_t container);
/* A last sample of all groups; closes them and the segment, cut to what is used. */
int meter_remove_task(struct meter *meter, const char *task_id);
/* Copies each group's newest sample to `samples`; how many, or -errno. */
int meter_latest(struct meter *meter, const char *task_id, struct sample *samples, int capacity);
void meter_read_counters(struct meter *meter, struct meter_counters *counters);

/* For tests: what the clocks say is shifted by this much from now on, and a tick as the thread does
 * it, as if it had been woken for the second that has just begun. */
void meter_shift_clocks(struct meter *meter, int64_t wall_ns, int64_t monotonic_ns,
                        int64_t boottime_ns);
void meter_tick(struct meter *meter);
/* For benchmarks: `count` sweeps back to back, then the bare preads of as many; ns in total. */
int64_t meter_run_sweeps(struct meter *meter, int count);
int64_t meter_run_reads(struct meter *meter, int count);

#endif
