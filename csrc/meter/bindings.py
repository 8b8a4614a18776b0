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
        int limited;
        int cpu_fd;
        int memory_fd;
        int peak_fd;
        int throttled_fd;
        int pids_fd;
        int stat_fd;
        int user_fd;
        int io_fd;
        int processes_fd;
        int pressure_fds[3];
        uint64_t io_base[2];
        uint64_t io_ended[2];
        uint64_t io_told[2];
        uint8_t generation;
        uint64_t group_id;
    };
    struct sample {
        uint8_t container;
        uint8_t flags;
        uint8_t generation;
        uint16_t pids;
        uint32_t late_100us;
        int64_t wall_ns;
        int64_t monotonic_ns;
        uint64_t cpu_ns;
        uint64_t throttled_ns;
        uint32_t memory_kib;
        uint32_t peak_kib;
        uint32_t periods;
        uint32_t throttled_periods;
    };
    struct network {
        uint64_t received_bytes;
        uint64_t sent_bytes;
        uint64_t received_packets;
        uint64_t sent_packets;
    };
    struct meter_counters {
        uint64_t ticks;
        uint64_t late_ticks;
        uint64_t dropped_records;
        uint64_t worst_late_us;
        uint64_t last_sweep_ns;
        uint64_t thread_cpu_ns;
        uint64_t synced;
        uint64_t sync_failures;
    };
    struct meter;
    struct meter *meter_create(uint32_t slow_every_s, uint32_t sync_every_s,
                               size_t segment_bytes);
    int meter_start(struct meter *meter);
    int meter_stop(struct meter *meter);
    void meter_destroy(struct meter *meter);
    int meter_add_task(struct meter *meter, const char *task_id, const char *ledger,
                       uint32_t segment, int segment_fd, uint32_t next_seq);
    int meter_add_name(struct meter *meter, const char *task_id, uint8_t container,
                       const void *slot);
    int meter_add_group(struct meter *meter, const char *task_id, uint8_t container,
                        const struct cgroup_files *files);
    int meter_add_network(struct meter *meter, const char *task_id, int fd);
    int meter_add_io(struct meter *meter, const char *task_id, uint8_t container,
                     uint64_t read_bytes, uint64_t written_bytes);
    int meter_sample_task(struct meter *meter, const char *task_id);
    int meter_end_group(struct meter *meter, const char *task_id, uint8_t container);
    int meter_remove_task(struct meter *meter, const char *task_id);
    int meter_latest(struct meter *meter, const char *task_id, struct sample *samples,
                     int capacity);
    void meter_read_counters(struct meter *meter, struct meter_counters *counters);
    void meter_shift_clocks(struct meter *meter, int64_t wall_ns, int64_t monotonic_ns,
                            int64_t boottime_ns);
    void meter_tick(struct meter *meter);
    int64_t meter_run_sweeps(struct meter *meter, int count);
    int64_t meter_run_reads(struct meter *meter, int count);

    int parse_number(const char *text, size_t length, uint64_t *value);
    int parse_keyed(const char *text, size_t length, const char *key, uint64_t *value);
    int parse_network(const char *text, size_t length, struct network *record);
    int parse_block_stat(const char *text, size_t length, uint64_t *read_bytes,
                         uint64_t *write_bytes);
    int parse_io_v2(const char *text, size_t length, uint64_t *read_bytes, uint64_t *write_bytes);
    int parse_process_io(const char *text, size_t length, uint64_t *read_bytes,
                         uint64_t *write_bytes);
    int parse_pressure(const char *text, size_t length, uint64_t *some_us, uint64_t *full_us);
    uint32_t ledger_crc32(const void *data, size_t length);

    #define LEDGER_VERSION ...
    #define LEDGER_HEADER_BYTES ...
    #define LEDGER_NAMES_OFFSET ...
    #define LEDGER_MAX_CONTAINERS ...
    #define LEDGER_TASK ...
    #define LEDGER_RECORD_BYTES ...
    """
)
