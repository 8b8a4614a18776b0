#define _GNU_SOURCE /* mremap */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A sweep of the largest task (16 groups) takes 90 records with all slow kinds, bases and marks,
 * and room is made after each. */
#define SEGMENT_RESERVE 256u
/* 2,194 records: a task of ten minutes with two containers takes one step. */
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

int segment_open(struct segment *segment, const char *path, uint32_t number, int fd,
                 uint32_t next_seq) {
    struct segment opened = {.fd = fd, .number = number, .next_seq = next_seq};
    opened.path = strdup(path);
    if (opened.path == NULL)
        return -ENOMEM;
    int result = segment_reserve(&opened);
    if (result < 0)
        free(opened.path);
    else
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
    memcpy(record, &segment->next_seq, sizeof segment->next_seq);
    uint32_t crc = ledger_crc32(record, LEDGER_RECORD_BYTES);
    memcpy(record, &crc, sizeof crc);
    memcpy(segment->mapping + offset, record, LEDGER_RECORD_BYTES);
    segment->next_seq++;
    return 0;
}

void segment_set_name(struct segment *segment, int index, const void *slot) {
    size_t offset = LEDGER_NAMES_OFFSET + (size_t)index * sizeof(struct ledger_name);
    memcpy(segment->mapping + offset, slot, sizeof(struct ledger_name));
}

size_t segment_bytes(const struct segment *segment) {
    return record_offset(segment->next_seq);
}

/* Nothing is lost when this fails: unwritten records are zero and readers know them. */
static void trim_file(const struct segment *segment) {
    int ignored = ftruncate(segment->fd, (off_t)segment_bytes(segment));
    (void)ignored;
}

/* The page at the begin of `segment`, for a segment that begins now. */
static void write_header(const struct segment *segment, unsigned char *page, uint64_t wall_ns) {
    struct ledger_header header;
    memcpy(page, segment->mapping, LEDGER_HEADER_BYTES);
    memcpy(&header, page, sizeof header);
    header.created_at_ns = wall_ns;
    header.crc32 = ledger_crc32(&header, sizeof header - sizeof header.crc32);
    memcpy(page, &header, sizeof header);
}

/* The file has its name only once it has its header: who dies before leaves a file that no reader
 * looks at and the next writer overwrites. */
static int begin_next(const struct segment *segment, struct segment *next, const char *temporary,
                      uint64_t wall_ns) {
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s.%u.ledger", segment->path, next->number);
    if (length < 0 || (size_t)length >= sizeof path)
        return -ENAMETOOLONG;
    if (flock(next->fd, LOCK_EX | LOCK_NB) < 0)
        return -errno;
    int result = segment_reserve(next);
    if (result < 0)
        return result;
    write_header(segment, next->mapping, wall_ns);
    return renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE) < 0 ? -errno : 0;
}

int segment_rotate(struct segment *segment, uint64_t wall_ns, int *old_fd) {
    char temporary[PATH_MAX];
    int length = snprintf(temporary, sizeof temporary, "%s.ledger.next", segment->path);
    if (length < 0 || (size_t)length >= sizeof temporary)
        return -ENAMETOOLONG;
    const int flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW;
    struct segment next = {.number = segment->number + 1, .path = segment->path};
    next.fd = open(temporary, flags, 0600);
    if (next.fd < 0)
        return -errno;
    int result = begin_next(segment, &next, temporary, wall_ns);
    if (result < 0) {
        unlink(temporary);
        if (next.mapping != NULL)
            munmap(next.mapping, next.mapped_bytes);
        close(next.fd);
        return result;
    }
    munmap(segment->mapping, segment->mapped_bytes);
    trim_file(segment);
    *old_fd = segment->fd;
    *segment = next;
    return 0;
}

void segment_close(struct segment *segment, int trim) {
    munmap(segment->mapping, segment->mapped_bytes);
    if (trim)
        trim_file(segment);
    if (segment->fd >= 0)
        close(segment->fd);
    free(segment->path);
    segment->fd = -1;
    segment->mapping = NULL;
    segment->path = NULL;
}
