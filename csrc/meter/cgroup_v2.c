/* cgroup v2: cpu.stat has CPU time and throttling, in us. Documentation/admin-guide/cgroup-v2.rst.
 */
#include "cgroup_read.h"

#include <errno.h>

static int to_ns(uint64_t us, uint64_t *ns) {
    return __builtin_mul_overflow(us, 1000, ns) ? -ERANGE : 0;
}

void read_cpu_v2(const struct cgroup_files *files, struct sample *sample) {
    char text[CPU_STAT_BYTES];
    int64_t got = read_start(files->cpu_fd, text, sizeof text);
    uint64_t usage_us, periods, throttled_periods, throttled_us;
    const struct wanted_key wanted[] = {{"usage_usec", &usage_us},
                                        {"nr_periods", &periods},
                                        {"nr_throttled", &throttled_periods},
                                        {"throttled_usec", &throttled_us}};
    int found = got < 0 ? 0 : parse_table(text, (size_t)got, wanted, 4);
    if (found < 1 || to_ns(usage_us, &sample->cpu_ns) < 0)
        sample->flags |= LEDGER_GAP_CPU;
    if (found < 4 || to_ns(throttled_us, &sample->throttled_ns) < 0) {
        sample->flags |= LEDGER_GAP_THROTTLED; /* without the cpu controller */
    } else {
        sample->periods = (uint32_t)periods;
        sample->throttled_periods = (uint32_t)throttled_periods;
    }
}

int read_user_v2(const struct cgroup_files *files, uint64_t *user_ns) {
    char text[CPU_STAT_BYTES];
    int64_t got = read_start(files->cpu_fd, text, sizeof text);
    uint64_t user_us;
    if (got < 0)
        return (int)got;
    int result = parse_keyed(text, (size_t)got, "user_usec", &user_us);
    return result < 0 ? result : to_ns(user_us, user_ns);
}
