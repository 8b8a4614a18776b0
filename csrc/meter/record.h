/* Writes values as records of a segment: what is told by its low bits, and what in detail. */
#ifndef FARGATELITE_RECORD_H
#define FARGATELITE_RECORD_H

#include <stdint.h>

#include "ledger.h"
#include "sample.h"
#include "segment.h"

/* What the newest sample of a group says in the segment. */
struct told {
    int valid;
    uint32_t segment; /* its number: another one tells all anew */
    uint8_t generation;
    uint64_t cpu_ns;
    uint64_t throttled_us;
    uint32_t periods;
    uint32_t throttled_periods;
    uint32_t peak_kib;
    uint64_t detailed_us; /* monotonic clock of the newest detailed one */
};

/* Each returns 0, or -ENOSPC when the segment has no room; a part may have been written then, which
 * readers take for nothing. The slow kinds are of the group and moment of `sample`. */
int record_sample(struct segment *segment, struct told *told, const struct sample *sample);
int record_slow(struct segment *segment, const struct sample *sample, const struct slow *slow);
int record_pressure(struct segment *segment, const struct sample *sample,
                    const struct pressure *pressure);
int record_network(struct segment *segment, int64_t wall_ns, int64_t monotonic_ns,
                   const struct network *network);
int record_mark(struct segment *segment, int64_t wall_ns, int64_t monotonic_ns, uint8_t container,
                uint8_t generation, enum ledger_mark_type type, int64_t value);

#endif
