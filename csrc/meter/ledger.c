#define _GNU_SOURCE /* mremap */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* 256 records: a sweep of the largest task (16 groups) takes 52 with all slow kinds and marks, and
 * room is made after each. */
#define SEGMENT_RESERVE 256u
/* 64 KiB: 1,024 records. A task of a minute with two containers takes one step. */
#define SEGMENT_STEP_BYTES (64u * 1024u)

/* Sliced by four: the table at index i advances over i further bytes of zeros. */
#define CRC_SLICES 4
static uint32_t crc_table[CRC_SLICES][256];

void segment_prepare(void) {
    for (uint32_t index = 0; index < 256; index++) {
        uint32_t value = index;
        for (int bit = 0; bit < 8; bit++)
            value = (value >> 1) ^ ((value & 1) ? 0xEDB88320u : 0);
        crc_table[0][index] = value; /* the same on every call: racing threads store equal values */
    }
    for (int slice = 1; slice < CRC_SLICES; slice++)
        for (uint32_t index = 0; index < 256; index++) {
            uint32_t value = crc_table[slice - 1][index];
            crc_table[slice][index] = (value >> 8) ^ crc_table[0][value & 0xFF];
        }
}

uint32_t ledger_crc32(const void *data, size_t length) {
    const unsigned char *bytes = data;
    uint32_t crc = 0xFFFFFFFFu;
    size_t at = 0;
    for (; at + sizeof(uint32_t) <= length; at += sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, bytes + at, sizeof word); /* little-endian, as the format */
        crc ^= word;
        crc = crc_table[3][crc & 0xFF] ^ crc_table[2][crc >> 8 & 0xFF] ^
              crc_table[1][crc >> 16 & 0xFF] ^ crc_table[0][crc >> 24];
    }
    for (; at < length; at++)
        crc = (crc >> 8) ^ crc_table[0][(crc ^ bytes[at]) & 0xFF];
    return ~crc;
}

static size_t record_offset(uint32_t seq) {
    return LEDGER_HEADER_BYTES + (size_t)seq * LEDGER_RECORD_BYTES;
}

int segment_open(struct segment *segment, int fd, uint32_t next_seq) {
    struct segment opened = {.fd = fd, .mapping = NULL, .mapped_bytes = 0, .next_seq = next_seq};
    int result = segment_reserve(&opened);
    if (result == 0)
        *segment = opened;
    return result;
}

int segment_reserve(struct segment *segment) {
    if (segment->next_seq > UINT32_MAX - SEGMENT_RESERVE)
        return -EFBIG;
    size_t needed = record_offset(segment->next_seq + SEGMENT_RESERVE);
    if (needed <= segment->mapped_bytes)
        return 0;
    size_t bytes = (needed + SEGMENT_STEP_BYTES - 1) / SEGMENT_STEP_BYTES * SEGMENT_STEP_BYTES;
    int error = posix_fallocate(segment->fd, 0, (off_t)bytes);
    if (error != 0)
        return -error;
    void *mapping = segment->mapping == NULL
                        ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd, 0)
                        : mremap(segment->mapping, segment->mapped_bytes, bytes, MREMAP_MAYMOVE);
    if (mapping == MAP_FAILED)
        return -errno;
    segment->mapping = mapping;
    segment->mapped_bytes = bytes;
    return 0;
}

int segment_append(struct segment *segment, void *record) {
    size_t offset = record_offset(segment->next_seq);
    if (offset + LEDGER_RECORD_BYTES > segment->mapped_bytes)
        return -ENOSPC;
    const size_t checked = LEDGER_RECORD_BYTES - sizeof(uint32_t);
    unsigned char *bytes = record;
    memcpy(bytes, &segment->next_seq, sizeof segment->next_seq);
    uint32_t crc = ledger_crc32(bytes, checked);
    memcpy(bytes + checked, &crc, sizeof crc);
    memcpy(segment->mapping + offset, bytes, LEDGER_RECORD_BYTES);
    segment->next_seq++;
    return 0;
}

void segment_close(struct segment *segment, int trim) {
    munmap(segment->mapping, segment->mapped_bytes);
    /* Nothing is lost when this fails: unwritten records are zero and readers know them. */
    int ignored = trim ? ftruncate(segment->fd, (off_t)record_offset(segment->next_seq)) : 0;
    (void)ignored;
    if (segment->fd >= 0)
        close(segment->fd);
    segment->fd = -1;
    segment->mapping = NULL;
}
