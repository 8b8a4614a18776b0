#include "record.h"

#include <string.h>

#define NS_PER_US 1000
#define DETAILED_EVERY_US 60000000u
/* How far the wall clock may run from what the last clock record says: it is slewed. */
#define CLOCK_DRIFT_NS 1000000
/* Half of what the low bits hold: growth below it is told by them alone. */
#define HALF(bits) (1ull << ((bits)-1))
#define CPU_BITS 40
#define PEAK_NOT_TOLD UINT32_MAX
#define PERIOD_MASK ((1u << LEDGER_PERIOD_BITS) - 1)

static uint8_t who(enum ledger_kind kind, uint8_t container) {
    return (uint8_t)(kind << 4 | container);
}

static uint64_t to_us(int64_t ns) {
    return (uint64_t)ns / NS_PER_US;
}

/* The wall clock is set, or slewed, or much time has passed: the rest of the clocks. */
static int tell_clock(struct segment *segment, int64_t wall_ns, int64_t monotonic_ns,
                      uint32_t late_100us) {
    struct segment_clock *clock = &segment->clock;
    uint64_t now_us = to_us(monotonic_ns);
    int64_t drift_ns = wall_ns - monotonic_ns - clock->ahead_ns;
    int is_late = late_100us >= LEDGER_LATE_IN_CLOCK && late_100us != clock->late_100us;
    if (clock->valid && !is_late && drift_ns < CLOCK_DRIFT_NS && drift_ns > -CLOCK_DRIFT_NS &&
        now_us - clock->told_us < DETAILED_EVERY_US &&
        now_us - clock->newest_us < HALF(LEDGER_TIME_BITS)) {
        clock->newest_us = now_us;
        return 0;
    }
    struct ledger_clock record = {.who = who(LEDGER_CLOCK, LEDGER_TASK), .late_100us = late_100us};
    memcpy(record.wall_ns, &wall_ns, sizeof wall_ns);
    memcpy(record.monotonic_ns, &monotonic_ns, sizeof monotonic_ns);
    int result = segment_append(segment, &record);
    if (result == 0)
        *clock = (struct segment_clock){.valid = 1,
                                        .ahead_ns = wall_ns - monotonic_ns,
                                        .told_us = now_us,
                                        .newest_us = now_us,
                                        .late_100us = late_100us};
    return result;
}

static int is_detailed(const struct segment *segment, const struct told *told,
                       const struct sample *sample, uint64_t now_us, uint64_t throttled_us) {
    const uint8_t flags =
        LEDGER_GAP_CPU | LEDGER_GAP_MEMORY | LEDGER_FIRST | LEDGER_LAST | LEDGER_EXTRA;
    int same_peak = sample->peak_kib == told->peak_kib || sample->peak_kib == sample->memory_kib ||
                    sample->flags & LEDGER_GAP_PEAK;
    /* A counter that fell has grown by more than half, since these are unsigned. */
    return !told->valid || told->segment != segment->number ||
           told->generation != sample->generation || sample->flags & flags || !same_peak ||
           now_us - told->detailed_us >= DETAILED_EVERY_US ||
           sample->cpu_ns - told->cpu_ns >= HALF(CPU_BITS) ||
           throttled_us - told->throttled_us >= HALF(32) ||
           sample->periods - told->periods >= HALF(LEDGER_PERIOD_BITS) ||
           sample->throttled_periods - told->throttled_periods >= HALF(LEDGER_PERIOD_BITS);
}

static int tell_base(struct segment *segment, struct told *told, const struct sample *sample,
                     uint64_t throttled_us) {
    struct ledger_base base = {
        .who = who(LEDGER_BASE, sample->container),
        .flags = sample->flags,
        .generation = sample->generation,
        .cpu_high = (uint32_t)(sample->cpu_ns >> 32),
        .throttled_high = (uint32_t)(throttled_us >> 32),
        .periods = sample->periods,
        .throttled_periods = sample->throttled_periods,
        .peak_kib = sample->peak_kib,
    };
    told->valid = 0; /* until the sample is written */
    return segment_append(segment, &base);
}

int record_sample(struct segment *segment, struct told *told, const struct sample *sample) {
    uint64_t now_us = to_us(sample->monotonic_ns);
    uint64_t throttled_us = sample->throttled_ns / NS_PER_US;
    int result = tell_clock(segment, sample->wall_ns, sample->monotonic_ns, sample->late_100us);
    if (result < 0)
        return result;
    uint8_t bits = sample->generation & LEDGER_GENERATION;
    int detailed = is_detailed(segment, told, sample, now_us, throttled_us);
    if (detailed) {
        result = tell_base(segment, told, sample, throttled_us);
        if (result < 0)
            return result;
        bits |= LEDGER_DETAILED;
    } else if (sample->flags & LEDGER_GAP_PEAK) {
        bits |= LEDGER_PEAK_UNKNOWN;
    } else if (sample->peak_kib != told->peak_kib) {
        bits |= LEDGER_PEAK_IS_MEMORY;
    }
    if (sample->flags & LEDGER_GAP_THROTTLED)
        bits |= LEDGER_NO_THROTTLING;
    uint32_t late =
        sample->late_100us < LEDGER_LATE_IN_CLOCK ? sample->late_100us : LEDGER_LATE_IN_CLOCK;
    uint16_t pids = sample->pids < LEDGER_PIDS_UNKNOWN ? sample->pids : LEDGER_PIDS_UNKNOWN - 1;
    struct ledger_sample record = {
        .who = who(LEDGER_SAMPLE, sample->container),
        .bits = bits,
        .pids = sample->flags & LEDGER_GAP_PIDS ? LEDGER_PIDS_UNKNOWN : pids,
        .counts = (sample->periods & PERIOD_MASK) |
                  (sample->throttled_periods & PERIOD_MASK) << LEDGER_PERIOD_BITS |
                  late << LEDGER_LATE_SHIFT,
        .time = ((uint32_t)now_us & ((1u << LEDGER_TIME_BITS) - 1)) |
                (uint32_t)(sample->cpu_ns >> 32) << LEDGER_TIME_BITS,
        .cpu_ns = (uint32_t)sample->cpu_ns,
        .throttled_us = (uint32_t)throttled_us,
        .memory_kib = sample->memory_kib,
    };
    result = segment_append(segment, &record);
    uint32_t peak_kib = sample->peak_kib;
    if (sample->flags & LEDGER_GAP_PEAK)
        peak_kib = detailed ? PEAK_NOT_TOLD : told->peak_kib;
    /* After a gap nobody knows what the next one grows from. */
    int known = result == 0 && !(sample->flags & LEDGER_GAP_CPU);
    *told = (struct told){.valid = known,
                          .segment = segment->number,
                          .generation = sample->generation,
                          .cpu_ns = sample->cpu_ns,
                          .throttled_us = throttled_us,
                          .periods = sample->periods,
                          .throttled_periods = sample->throttled_periods,
                          .peak_kib = peak_kib,
                          .detailed_us = detailed ? now_us : told->detailed_us};
    return result;
}

static int record_pair(struct segment *segment, enum ledger_kind kind, uint8_t container,
                       uint8_t generation, uint64_t now_us, uint64_t first, uint64_t second) {
    struct ledger_pair pair = {.who = who(kind, container),
                               .bits = generation & LEDGER_GENERATION,
                               .time = (uint32_t)now_us};
    memcpy(pair.first, &first, sizeof first);
    memcpy(pair.second, &second, sizeof second);
    return segment_append(segment, &pair);
}

int record_slow(struct segment *segment, const struct sample *sample, const struct slow *slow) {
    uint64_t now_us = to_us(sample->monotonic_ns);
    uint64_t user_us = slow->user_ns / NS_PER_US;
    struct ledger_memory memory = {
        .who = who(LEDGER_MEMORY, sample->container),
        .bits = (sample->generation & LEDGER_GENERATION) | slow->flags,
        .user_high = (uint16_t)(user_us >> 32),
        .time = (uint32_t)now_us,
        .working_set_kib = slow->working_set_kib,
        .rss_kib = slow->rss_kib,
        .cache_kib = slow->cache_kib,
        .user_us = (uint32_t)user_us,
    };
    int result = segment_append(segment, &memory);
    if (result == 0 && slow->has_io)
        result = record_pair(segment, LEDGER_IO, sample->container, sample->generation, now_us,
                             slow->read_bytes, slow->write_bytes);
    return result;
}

int record_pressure(struct segment *segment, const struct sample *sample,
                    const struct pressure *pressure) {
    struct ledger_pressure record = {.who = who(LEDGER_PRESSURE, sample->container),
                                     .bits = sample->generation & LEDGER_GENERATION};
    for (int index = 0; index < PRESSURES; index++) {
        uint64_t stalled_us = pressure->stalled_us[index];
        if (stalled_us == UINT64_MAX) {
            record.bits |= (uint8_t)((LEDGER_GENERATION + 1) << index);
            continue;
        }
        record.low[index] = (uint32_t)stalled_us;
        record.high[index] = (uint8_t)(stalled_us >> 32);
        record.highest |= (uint16_t)((stalled_us >> 40 & 15) << 4 * index);
    }
    return segment_append(segment, &record);
}

int record_network(struct segment *segment, int64_t wall_ns, int64_t monotonic_ns,
                   const struct network *network) {
    uint64_t now_us = to_us(monotonic_ns);
    int result = tell_clock(segment, wall_ns, monotonic_ns, 0);
    if (result == 0)
        result = record_pair(segment, LEDGER_RECEIVED, LEDGER_TASK, 0, now_us,
                             network->received_bytes, network->received_packets);
    if (result == 0)
        result = record_pair(segment, LEDGER_SENT, LEDGER_TASK, 0, now_us, network->sent_bytes,
                             network->sent_packets);
    return result;
}

int record_mark(struct segment *segment, int64_t wall_ns, int64_t monotonic_ns, uint8_t container,
                uint8_t generation, enum ledger_mark_type type, int64_t value) {
    int result = tell_clock(segment, wall_ns, monotonic_ns, 0);
    if (result < 0)
        return result;
    struct ledger_mark mark = {
        .who = who(LEDGER_MARK, container),
        .type = (uint8_t)type,
        .generation = generation,
        .time = (uint32_t)to_us(monotonic_ns),
    };
    memcpy(mark.wall_ns, &wall_ns, sizeof wall_ns);
    memcpy(mark.value, &value, sizeof value);
    return segment_append(segment, &mark);
}
