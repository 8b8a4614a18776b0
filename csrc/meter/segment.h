/* A ledger file being written: its mapping and what is used of it. */
#ifndef FARGATELITE_SEGMENT_H
#define FARGATELITE_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "ledger.h"

struct segment {
    int fd;
    unsigned char *mapping;
    size_t mapped_bytes;
    uint32_t next_seq;
};

/* Fills the CRC table; before any other function, once per process or more often. */
void segment_prepare(void);
uint32_t ledger_crc32(const void *data, size_t length);

/* Maps the file with room for records after `next_seq`; takes `fd` on success. 0 or -errno. */
int segment_open(struct segment *segment, int fd, uint32_t next_seq);
/* Makes sure that the next SEGMENT_RESERVE records have room. Allocates blocks, so that no store
 * to the mapping can meet a full disk (SIGBUS). May move the mapping. 0 or -errno. */
int segment_reserve(struct segment *segment);
/* Stores a record of any kind with its seq and CRC; -ENOSPC when there is no room. No system call.
 */
int segment_append(struct segment *segment, void *record);
/* Unmaps, cuts the file behind the last record if `trim`, closes it (which ends the lock). */
void segment_close(struct segment *segment, int trim);

#endif
