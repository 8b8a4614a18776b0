/* The ledger, version 2: segments of a task, `<task id>.ledger`, `<task id>.1.ledger`, ...; all
 * numbers little-endian. docs/ledger-format.md describes it for readers in other languages.
 *
 * - At 0: struct ledger_header, written once, before the first record.
 * - At 256: LEDGER_MAX_CONTAINERS times struct ledger_name. Slot i names container index i and is
 *   written once, before the container's first record; unused slots are zero.
 * - At 4096: records of 64 bytes; record n begins at 4096 + 64 * n and has seq n. All records begin
 *   with struct ledger_prefix and end with a CRC; readers skip kinds that they do not know.
 *
 * The file is allocated in steps: records that are all zero are not written yet. A record whose CRC
 * is wrong is torn or damaged: readers report its place and go on. One process writes at a time and
 * holds flock(2) LOCK_EX on the file; it stores whole records through a shared mapping, so that
 * kill -9 loses nothing that was sampled. A power cut loses what was not written back: at most the
 * meter's sync interval and the time that a round of fdatasync(2) takes.
 *
 * Counters are cumulative, so a lost record loses none of what they count.
 *
 * Version history: 1, first: struct ledger_record_v1 and nothing else. 2: kinds of records;
 * throttling, pids, slow values, marks; a segment is of one boot.
 */
#ifndef FARGATELITE_LEDGER_H
#define FARGATELITE_LEDGER_H

#include <stdint.h>

#define LEDGER_MAGIC "FLLEDGER"
#define LEDGER_VERSION 2
#define LEDGER_HEADER_BYTES 4096
#define LEDGER_NAMES_OFFSET 256
#define LEDGER_RECORD_BYTES 64
#define LEDGER_MAX_CONTAINERS 15 /* what fits the page; ECS allows 10 per task */
#define LEDGER_TASK 0xFF         /* container index of the task's own group */

struct ledger_header {
    char magic[8];
    uint16_t version;
    uint16_t record_bytes;
    uint32_t header_bytes;
    uint64_t created_at_ns; /* wall clock */
    char task_id[32];       /* hex, not terminated */
    char boot_id[36];       /* /proc/sys/kernel/random/boot_id, not terminated */
    uint32_t cpu_units;
    uint32_t memory_mib;
    uint32_t slow_every_s;  /* pace of the slow kinds; 0: none are written */
    uint8_t cgroup_version; /* 1 or 2: where the values come from; 0: not known */
    uint8_t reserved[147];  /* zero */
    uint32_t crc32;         /* IEEE, of all bytes before this one */
};

struct ledger_name {
    uint16_t length;
    char name[250]; /* UTF-8, zero-padded */
    uint32_t crc32; /* IEEE, of all bytes before this one */
};

enum ledger_kind {
    LEDGER_SAMPLE = 1,   /* struct ledger_sample: every second */
    LEDGER_SLOW = 2,     /* struct ledger_slow: every slow_every_s */
    LEDGER_PRESSURE = 3, /* struct ledger_pressure: likewise; cgroup v2 only */
    LEDGER_NETWORK = 4,  /* struct ledger_network: likewise; the task only */
    LEDGER_MARK = 5,     /* struct ledger_mark: something about the clock, or a group */
};

/* Of samples. A value with a GAP flag could not be read (or the kernel does not tell): it is 0 and
 * means nothing. */
enum ledger_flags {
    LEDGER_GAP_CPU = 1,
    LEDGER_GAP_MEMORY = 2,
    LEDGER_GAP_PEAK = 4,
    LEDGER_GAP_THROTTLED = 8, /* throttled_ns, periods, throttled_periods */
    LEDGER_GAP_PIDS = 16,
    LEDGER_FIRST = 32,  /* the first of this group by this writer */
    LEDGER_LAST = 64,   /* the last of this group by this writer: it ended */
    LEDGER_EXTRA = 128, /* asked for, not by the clock; late_100us is 0 */
};

/* Of slow records. */
enum ledger_slow_flags {
    LEDGER_GAP_STAT = 1, /* working_set_kib, rss_kib, cache_kib */
    LEDGER_GAP_USER = 2, /* user_ns */
    LEDGER_GAP_IO = 4,   /* read_bytes, write_bytes */
};

enum ledger_mark_type {
    LEDGER_MARK_GROUP = 1,   /* value: inode of the group; begins a generation of a container */
    LEDGER_MARK_MISSED = 2,  /* value: whole seconds without a sweep; none is made up for them */
    LEDGER_MARK_STEP = 3,    /* value: ns, signed, that the wall clock was set by */
    LEDGER_MARK_SUSPEND = 4, /* value: ns that the host slept: CLOCK_MONOTONIC stood still */
};

struct ledger_prefix {
    uint32_t seq;
    uint8_t kind;
    uint8_t container;  /* slot of the name, or LEDGER_TASK */
    uint8_t flags;      /* by kind */
    uint8_t generation; /* of the container's groups, modulo 256: another one counts anew from 0 */
    uint64_t wall_ns;   /* CLOCK_REALTIME */
    uint64_t monotonic_ns; /* CLOCK_MONOTONIC; within one boot_id */
};

struct ledger_sample {
    struct ledger_prefix prefix;
    uint64_t cpu_usage_ns; /* this and all other counters: since the group was made */
    uint64_t throttled_ns;
    uint32_t memory_kib;
    uint32_t memory_peak_kib;
    uint32_t periods;
    uint32_t throttled_periods;
    uint16_t pids;       /* 65535: that or more */
    uint16_t late_100us; /* from the second's boundary to the begin of the sweep, in 0.1 ms; 65535:
                            that or more */
    uint32_t crc32;      /* IEEE, of all bytes before this one */
};

struct ledger_slow {
    struct ledger_prefix prefix;
    uint64_t user_ns; /* the rest of cpu_usage_ns is system time */
    uint64_t read_bytes;
    uint64_t write_bytes;
    uint32_t working_set_kib; /* in use without inactive file cache, as ECS reports it */
    uint32_t rss_kib;
    uint32_t cache_kib;
    uint32_t crc32;
};

/* Stall times since the group was made, of memory.pressure and its siblings: `some` of cpu, `some`
 * and `full` of memory, `some` of io; all ones where the kernel does not tell. */
struct ledger_pressure {
    struct ledger_prefix prefix;
    uint64_t cpu_us;
    uint64_t memory_us;
    uint64_t memory_full_us;
    uint64_t io_us;
    uint32_t reserved;
    uint32_t crc32;
};

/* All interfaces of the task's network namespace but lo, as the task sees them. */
struct ledger_network {
    struct ledger_prefix prefix;
    uint64_t received_bytes;
    uint64_t sent_bytes;
    uint64_t received_packets;
    uint64_t sent_packets;
    uint32_t reserved;
    uint32_t crc32;
};

struct ledger_mark {
    struct ledger_prefix prefix;
    uint32_t type; /* enum ledger_mark_type */
    uint32_t reserved;
    int64_t value;
    uint64_t boottime_ns; /* CLOCK_BOOTTIME */
    uint8_t zero[12];
    uint32_t crc32;
};

/* Version 1 had these only, and LEDGER_TASK as 0xFFFF. Flags: 1, 2, 4 as above, 8 late, 16 FIRST,
 * 32 LAST, 64 EXTRA. */
struct ledger_record_v1 {
    uint32_t seq;
    uint16_t container;
    uint16_t flags;
    uint64_t wall_ns;
    uint64_t monotonic_ns;
    uint64_t cpu_usage_ns;
    uint64_t memory_bytes;
    uint64_t memory_peak_bytes;
    uint64_t group_id; /* inode of the group */
    uint32_t late_us;
    uint32_t crc32;
};

#define LEDGER_CHECK_RECORD(type)                                                                  \
    _Static_assert(sizeof(struct type) == LEDGER_RECORD_BYTES, #type " has no padding")

_Static_assert(sizeof(struct ledger_header) == LEDGER_NAMES_OFFSET, "the header has no padding");
_Static_assert(sizeof(struct ledger_name) == 256, "the name slot has no padding");
_Static_assert(LEDGER_NAMES_OFFSET + LEDGER_MAX_CONTAINERS * sizeof(struct ledger_name) ==
                   LEDGER_HEADER_BYTES,
               "the names fill the header's page");
LEDGER_CHECK_RECORD(ledger_sample);
LEDGER_CHECK_RECORD(ledger_slow);
LEDGER_CHECK_RECORD(ledger_pressure);
LEDGER_CHECK_RECORD(ledger_network);
LEDGER_CHECK_RECORD(ledger_mark);
LEDGER_CHECK_RECORD(ledger_record_v1);

#endif
