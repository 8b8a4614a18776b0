/* A ledger file being written: its mapping, what is used of it, and what follows it. */
#ifndef FARGATELITE_SEGMENT_H
#define FARGATELITE_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "ledger.h"

/* What the newest clock record says, and the newest time after it; see record.c. */
struct segment_clock {
    int valid;
    uint32_t late_100us;
    int64_t ahead_ns; /* of the wall clock to the monotonic one */
    uint64_t told_us; /* monotonic clock */
    uint64_t newest_us;
};

struct segment {
    int fd;
    uint32_t number;
    uint32_t next_seq;
    unsigned char *mapping;
    size_t mapped_bytes;
    struct segment_clock clock;
    char *path; /* of segment 0, without its suffix; owned */
};

/* Fills the CRC table; before any other function, once per process or more often. */
void segment_prepare(void);
uint32_t ledger_crc32(const void *data, size_t length);

/* Maps segment `number` of the ledger `path` (without suffix) with room for records after
 * `next_seq`; takes `fd` on success. 0 or -errno. */
int segment_open(struct segment *segment, const char *path, uint32_t number, int fd,
                 uint32_t next_seq);
/* Makes sure that the next SEGMENT_RESERVE records have room. Allocates blocks, so that no store
 * to the mapping can meet a full disk (SIGBUS). May move the mapping. 0 or -errno. */
int segment_reserve(struct segment *segment);
/* Stores a record of any kind with its CRC; -ENOSPC when there is no room. No system call. */
int segment_append(struct segment *segment, void *record);
/* Stores the name slot of a container index. */
void segment_set_name(struct segment *segment, int index, const void *slot);
/* What is used of the file. */
size_t segment_bytes(const struct segment *segment);
/* Goes on in the next segment, which has the same header and names and is locked before this one
 * is let go; `old_fd` is this one, cut to its length, for the caller to close. On failure nothing
 * has changed. 0 or -errno. */
int segment_rotate(struct segment *segment, uint64_t wall_ns, int *old_fd);
/* Unmaps, cuts the file behind the last record if `trim`, closes it (which ends the lock). */
void segment_close(struct segment *segment, int trim);

#endif
