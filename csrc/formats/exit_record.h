/* Exit records, version 1: the file `exits` of a task's run directory is a sequence of these,
 * appended and synced before the exit is told to anybody. Little-endian. */
#ifndef FARGATELITE_EXIT_RECORD_H
#define FARGATELITE_EXIT_RECORD_H

#include <stdint.h>

#define EXIT_RECORD_MAGIC 0x52584c46u /* "FLXR" */
#define EXIT_RECORD_VERSION 1

struct exit_record {
    uint32_t magic;
    uint16_t version;
    uint16_t length; /* of this record: sizeof */
    uint32_t process;
    int32_t pid;
    int32_t wait_status;
    uint32_t read_sectors;  /* of 512 bytes; as times, of all; all ones: that or more */
    uint64_t started_at_ns; /* wall clock */
    uint64_t stopped_at_ns; /* wall clock */
    uint64_t user_us;       /* getrusage of the process and its reaped children */
    uint64_t system_us;
    uint64_t max_rss_kib;
    uint64_t dropped_log_bytes; /* could not be written to the log file */
    uint32_t written_sectors;   /* caused to be written: once dirty in the page cache */
    uint32_t crc32;             /* IEEE, of all bytes before this one */
};

_Static_assert(sizeof(struct exit_record) == 80, "the exit record has no padding");

#endif
