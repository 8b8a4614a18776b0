"""cffi's view of the meter: what fargatelite.meter.sampler may call. csrc/build.py compiles it."""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.set_source(
    "fargatelite.meter._meter", '#include "meter.h"\n#include "segment.h"\n', py_limited_api=True
)
ffibuilder.cdef(
    """
    struct cgroup_files {
        int version;
        int cpu_fd;
        int memory_fd;
        int peak_fd;
        uint64_t group_id;
    };
    struct ledger_record {
        uint32_t seq;
        uint16_t container;
        uint16_t flags;
        uint64_t wall_ns;
        uint64_t monotonic_ns;
        uint64_t cpu_usage_ns;
        uint64_t memory_bytes;
        uint64_t memory_peak_bytes;
        uint64_t group_id;
        uint32_t late_us;
        uint32_t crc32;
    };
    struct meter_counters {
        uint64_t ticks;
        uint64_t late_ticks;
        uint64_t dropped_records;
        uint64_t worst_late_us;
        uint64_t last_sweep_ns;
    };
    struct meter;
    struct meter *meter_create(void);
    int meter_start(struct meter *meter);
    int meter_stop(struct meter *meter);
    void meter_destroy(struct meter *meter);
    int meter_add_task(struct meter *meter, const char *task_id, int segment_fd, uint32_t next_seq);
    int meter_add_group(struct meter *meter, const char *task_id, uint16_t container,
                        const struct cgroup_files *files);
    int meter_sample_task(struct meter *meter, const char *task_id);
    int meter_end_group(struct meter *meter, const char *task_id, uint16_t container);
    int meter_remove_task(struct meter *meter, const char *task_id);
    int meter_latest(struct meter *meter, const char *task_id, struct ledger_record *records,
                     int capacity);
    void meter_read_counters(struct meter *meter, struct meter_counters *counters);
    int64_t meter_run_sweeps(struct meter *meter, int count);
    int64_t meter_run_reads(struct meter *meter, int count);

    int parse_number(const char *text, size_t length, uint64_t *value);
    int parse_keyed(const char *text, size_t length, const char *key, uint64_t *value);
    uint32_t ledger_crc32(const void *data, size_t length);

    #define LEDGER_VERSION ...
    #define LEDGER_HEADER_BYTES ...
    #define LEDGER_NAMES_OFFSET ...
    #define LEDGER_MAX_CONTAINERS ...
    #define LEDGER_TASK ...
    """
)
