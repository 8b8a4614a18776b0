/* The ledger, version 3: segments of a task, `<task id>.ledger`, `<task id>.1.ledger`, ...; all
 * numbers little-endian. docs/ledger-format.md describes it for readers in other languages.
 *
 * - At 0: struct ledger_header, written once, before the first record.
 * - At 256: LEDGER_MAX_CONTAINERS times struct ledger_name. Slot i names container index i and is
 *   written once, before the container's first record; unused slots are zero.
 * - At 4096: records of 28 bytes; record n begins at 4096 + 28 * n. `who` is the kind in its upper
 *   four bits and the container in its lower ones. `crc32` is the CRC of the record with n in its
 *   place, so that a record counts at its own place only. Readers skip kinds that they do not know.
 *
 * A record every second must be small, so a sample has the low bits of its counters: the rest is
 * that of the same group's value before, since counters only grow, and by less than half of what
 * the low bits hold. Whatever is not like that is detailed: struct ledger_base stands before the
 * sample and has the upper bits; a group's first sample, and one a minute, are. Times are the low
 * bits of the monotonic clock in us; struct ledger_clock has all of it and the wall clock's, once a
 * minute and before a sample that could not be told otherwise.
 *
 * The file is allocated in steps: records that are all zero are not written yet. A record whose CRC
 * is wrong is torn or damaged: readers report its place and go on. One process writes at a time and
 * holds flock(2) LOCK_EX on the newest segment; it stores whole records through a shared mapping,
 * so that kill -9 loses nothing that was sampled. A power cut loses what was not written back: at
 * most the meter's sync interval and the time that a round of fdatasync(2) takes.
 *
 * Version history: 1, records of 64 bytes of one kind. 2, kinds of records, of 64 bytes, all values
 * whole; a segment is of one boot. 3, 28 bytes; a segment is of a bounded size.
 */
#ifndef FARGATELITE_LEDGER_H
#define FARGATELITE_LEDGER_H

#include <stdint.h>

#define LEDGER_MAGIC "FLLEDGER"
#define LEDGER_VERSION 3
#define LEDGER_HEADER_BYTES 4096
#define LEDGER_NAMES_OFFSET 256
#define LEDGER_RECORD_BYTES 28
#define LEDGER_MAX_CONTAINERS 15 /* what fits the page; ECS allows 10 per task */
#define LEDGER_TASK 15           /* container index of the task's own group */

struct ledger_header {
    char magic[8];
    uint16_t version;
    uint16_t record_bytes;
    uint32_t header_bytes;
    uint64_t created_at_ns; /* wall clock; of the segment */
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
    LEDGER_BASE = 2,     /* struct ledger_base: of the sample after it */
    LEDGER_CLOCK = 3,    /* struct ledger_clock */
    LEDGER_MARK = 4,     /* struct ledger_mark: something about the clock, or a group */
    LEDGER_MEMORY = 5,   /* struct ledger_memory: every slow_every_s, as the ones below */
    LEDGER_IO = 6,       /* struct ledger_pair: bytes read, bytes written */
    LEDGER_PRESSURE = 7, /* struct ledger_pressure: cgroup v2 only */
    LEDGER_RECEIVED = 8, /* struct ledger_pair: bytes, packets; the task only */
    LEDGER_SENT = 9,     /* likewise, right after it */
};

/* Of samples. A value with a GAP flag could not be read (or the kernel does not tell): it is 0 and
 * means nothing. */
enum ledger_flags {
    LEDGER_GAP_CPU = 1,
    LEDGER_GAP_MEMORY = 2,
    LEDGER_GAP_PEAK = 4,
    LEDGER_GAP_THROTTLED = 8, /* throttled time, periods, throttled periods */
    LEDGER_GAP_PIDS = 16,
    LEDGER_FIRST = 32,  /* the first of this group by this writer */
    LEDGER_LAST = 64,   /* the last of this group by this writer: it ended */
    LEDGER_EXTRA = 128, /* asked for, not by the clock; its lateness is 0 */
};

/* What a sample says about itself. One that is not detailed has none of the flags above but the
 * three gaps that are told here. */
enum ledger_bits {
    LEDGER_GENERATION = 15,     /* the lower bits of the group's; of slow kinds likewise */
    LEDGER_PEAK_IS_MEMORY = 16, /* the highest use is that of now */
    LEDGER_PEAK_UNKNOWN = 32,   /* neither: as in the group's sample before, or in the base */
    LEDGER_NO_THROTTLING = 64,
    LEDGER_DETAILED = 128, /* the record before is the base of this one */
};
#define LEDGER_PIDS_UNKNOWN 65535 /* and one less: that or more */
#define LEDGER_LATE_IN_CLOCK 4095
/* How `counts` and `time` of a sample are shared. */
#define LEDGER_PERIOD_BITS 10 /* periods: bits 0 to 9, throttled periods: 10 to 19 */
#define LEDGER_LATE_SHIFT 20
#define LEDGER_TIME_BITS 24 /* the rest of `time` are bits 32 to 39 of the CPU time */

struct ledger_sample {
    uint32_t crc32;
    uint8_t who;
    uint8_t bits; /* enum ledger_bits */
    uint16_t pids;
    uint32_t counts; /* CFS periods, throttled ones; lateness: from the second's boundary to the
                        begin of the sweep, in 0.1 ms */
    uint32_t time;   /* monotonic clock, us; more of the CPU time */
    uint32_t cpu_ns;
    uint32_t throttled_us;
    uint32_t memory_kib;
};

struct ledger_base {
    uint32_t crc32;
    uint8_t who;
    uint8_t flags;      /* enum ledger_flags */
    uint8_t generation; /* of the container's groups, modulo 256: another one counts anew from 0 */
    uint8_t zero;
    uint32_t cpu_high; /* bits 32 to 63 of the sample's cpu_ns */
    uint32_t throttled_high;
    uint32_t periods; /* all bits of these */
    uint32_t throttled_periods;
    uint32_t peak_kib;
};

struct ledger_clock {
    uint32_t crc32;
    uint8_t who;
    uint8_t zero[3];
    uint32_t late_100us;      /* of the sweep that begins here */
    uint32_t wall_ns[2];      /* CLOCK_REALTIME, lower half first */
    uint32_t monotonic_ns[2]; /* CLOCK_MONOTONIC, within one boot_id; the same moment */
};

enum ledger_mark_type {
    LEDGER_MARK_GROUP = 1,   /* value: inode of the group; begins a generation of a container */
    LEDGER_MARK_MISSED = 2,  /* value: whole seconds without a sweep; none is made up for them */
    LEDGER_MARK_STEP = 3,    /* value: ns, signed, that the wall clock was set by */
    LEDGER_MARK_SUSPEND = 4, /* value: ns that the host slept: CLOCK_MONOTONIC stood still */
};

struct ledger_mark {
    uint32_t crc32;
    uint8_t who;
    uint8_t type; /* enum ledger_mark_type */
    uint8_t generation;
    uint8_t zero;
    uint32_t time;
    uint32_t wall_ns[2];
    uint32_t value[2];
};

struct ledger_memory {
    uint32_t crc32;
    uint8_t who;
    uint8_t bits; /* generation; LEDGER_GAP_STAT, LEDGER_GAP_USER */
    uint16_t user_high;
    uint32_t time;
    uint32_t working_set_kib; /* in use without inactive file cache, as ECS reports it */
    uint32_t rss_kib;
    uint32_t cache_kib;
    uint32_t user_us; /* with 16 upper bits above; the rest of the CPU time is the kernel's */
};
#define LEDGER_GAP_STAT 16
#define LEDGER_GAP_USER 32

struct ledger_pair {
    uint32_t crc32;
    uint8_t who;
    uint8_t bits; /* generation */
    uint16_t zero;
    uint32_t time;
    uint32_t first[2];
    uint32_t second[2];
};

/* Stall times since the group was made, in us, of 44 bits: `some` of cpu, `some` and `full` of
 * memory, `some` of io. Its time is that of the record before. */
struct ledger_pressure {
    uint32_t crc32;
    uint8_t who;
    uint8_t bits;     /* generation; 16 to 128: the kernel does not tell the first to fourth */
    uint16_t highest; /* bits 40 to 43, four of each */
    uint8_t high[4];
    uint32_t low[4];
};

#define LEDGER_CHECK_RECORD(type)                                                                  \
    _Static_assert(sizeof(struct type) == LEDGER_RECORD_BYTES, #type " has no padding")

_Static_assert(sizeof(struct ledger_header) == LEDGER_NAMES_OFFSET, "the header has no padding");
_Static_assert(sizeof(struct ledger_name) == 256, "the name slot has no padding");
_Static_assert(LEDGER_NAMES_OFFSET + LEDGER_MAX_CONTAINERS * sizeof(struct ledger_name) ==
                   LEDGER_HEADER_BYTES,
               "the names fill the header's page");
LEDGER_CHECK_RECORD(ledger_sample);
LEDGER_CHECK_RECORD(ledger_base);
LEDGER_CHECK_RECORD(ledger_clock);
LEDGER_CHECK_RECORD(ledger_mark);
LEDGER_CHECK_RECORD(ledger_memory);
LEDGER_CHECK_RECORD(ledger_pair);
LEDGER_CHECK_RECORD(ledger_pressure);

#endif
