/* The ledger, version 1: one file per task, `<task id>.ledger`, little-endian.
 *
 * - At 0: struct ledger_header, written once, before the first record.
 * - At 256: LEDGER_MAX_CONTAINERS times struct ledger_name. Slot i names container index i and is
 *   written once, before the container's first record; unused slots are zero.
 * - At 4096: records of 64 bytes; record n begins at 4096 + 64 * n and has seq n.
 *
 * The file is allocated in steps: records that are all zero are not written yet. A record whose CRC
 * is wrong is torn or damaged: readers report its place and go on. One process writes at a time and
 * holds flock(2) LOCK_EX on the file; it stores whole records through a shared mapping, so that
 * kill -9 loses nothing that was sampled (a power cut may).
 *
 * Version history: 1, first.
 */
#ifndef FARGATELITE_LEDGER_H
#define FARGATELITE_LEDGER_H

#include <stdint.h>

#define LEDGER_MAGIC "FLLEDGER"
#define LEDGER_VERSION 1
#define LEDGER_HEADER_BYTES 4096
#define LEDGER_NAMES_OFFSET 256
#define LEDGER_MAX_CONTAINERS 15 /* what fits the page; ECS allows 10 per task */
#define LEDGER_TASK 0xFFFF       /* container index of the task's own group */

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
    uint8_t reserved[152]; /* zero */
    uint32_t crc32;        /* IEEE, of all bytes before this one */
};

struct ledger_name {
    uint16_t length;
    char name[250]; /* UTF-8, zero-padded */
    uint32_t crc32; /* IEEE, of all bytes before this one */
};

enum ledger_flags {
    LEDGER_GAP_CPU = 1,    /* cpu_usage_ns could not be read: it is 0 and means nothing */
    LEDGER_GAP_MEMORY = 2, /* likewise memory_bytes */
    LEDGER_GAP_PEAK = 4,   /* likewise memory_peak_bytes, or the kernel does not tell */
    LEDGER_LATE = 8,       /* taken LEDGER_LATE_US or more after its second began */
    LEDGER_FIRST = 16,     /* the first of this group by this writer */
    LEDGER_LAST = 32,      /* the last of this group by this writer: it ended */
    LEDGER_EXTRA = 64,     /* asked for, not by the clock; late_us is 0 */
};

#define LEDGER_LATE_US 100000 /* 100 ms: a tenth of the interval */

struct ledger_record {
    uint32_t seq;
    uint16_t container; /* slot of the name, or LEDGER_TASK */
    uint16_t flags;
    uint64_t wall_ns;      /* CLOCK_REALTIME */
    uint64_t monotonic_ns; /* CLOCK_MONOTONIC; within one boot_id */
    uint64_t cpu_usage_ns; /* since the group was made */
    uint64_t memory_bytes;
    uint64_t memory_peak_bytes; /* since the group was made */
    uint64_t group_id;          /* inode of the group: a counter of another group starts anew */
    uint32_t late_us;           /* from the second's boundary to the begin of the sweep */
    uint32_t crc32;             /* IEEE, of all bytes before this one */
};

_Static_assert(sizeof(struct ledger_header) == LEDGER_NAMES_OFFSET, "the header has no padding");
_Static_assert(sizeof(struct ledger_name) == 256, "the name slot has no padding");
_Static_assert(LEDGER_NAMES_OFFSET + LEDGER_MAX_CONTAINERS * sizeof(struct ledger_name) ==
                   LEDGER_HEADER_BYTES,
               "the names fill the header's page");
_Static_assert(sizeof(struct ledger_record) == 64, "the record has no padding");

#endif
