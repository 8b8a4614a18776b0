/* What is read of a group or a task, as whole values; record.h writes it down in few bytes. */
#ifndef FARGATELITE_SAMPLE_H
#define FARGATELITE_SAMPLE_H

#include <stdint.h>

struct sample {
    uint8_t container;  /* or LEDGER_TASK */
    uint8_t flags;      /* enum ledger_flags */
    uint8_t generation; /* see struct ledger_base */
    uint16_t pids;
    uint32_t late_100us;
    int64_t wall_ns;
    int64_t monotonic_ns;
    uint64_t cpu_ns; /* this and all other counters: since the group was made */
    uint64_t throttled_ns;
    uint32_t memory_kib;
    uint32_t peak_kib;
    uint32_t periods;
    uint32_t throttled_periods;
};

/* The slow kinds of a group; `flags`: LEDGER_GAP_STAT, LEDGER_GAP_USER. */
struct slow {
    uint8_t flags;
    int has_io;
    uint64_t user_ns;
    uint64_t read_bytes;
    uint64_t write_bytes;
    uint32_t working_set_kib;
    uint32_t rss_kib;
    uint32_t cache_kib;
};

/* cpu, memory, memory full, io; us. UINT64_MAX where the kernel does not tell. */
#define PRESSURES 4
struct pressure {
    uint64_t stalled_us[PRESSURES];
};

/* All interfaces of a network namespace but lo. */
struct network {
    uint64_t received_bytes;
    uint64_t sent_bytes;
    uint64_t received_packets;
    uint64_t sent_packets;
};

#endif
