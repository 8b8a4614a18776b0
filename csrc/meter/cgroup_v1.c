/* cgroup v1: a file per figure, times in ns. Documentation/admin-guide/cgroup-v1. */
#include "cgroup_read.h"

#include <errno.h>

int read_cpu_v1(const struct cgroup_files *files, struct sample *sample) {
    return read_number_file(files->cpu_fd, &sample->cpu_ns); /* cpuacct.usage */
}

int read_throttled_v1(const struct cgroup_files *files, struct sample *sample) {
    char text[CPU_STAT_BYTES];
    int64_t got = read_start(files->throttled_fd, text, sizeof text); /* cpu.stat */
    if (got < 0)
        return (int)got;
    uint64_t periods, throttled_periods, throttled_ns;
    const struct wanted_key wanted[] = {{"nr_periods", &periods},
                                        {"nr_throttled", &throttled_periods},
                                        {"throttled_time", &throttled_ns}};
    if (parse_table(text, (size_t)got, wanted, 3) != 3)
        return -EINVAL;
    sample->periods = (uint32_t)periods;
    sample->throttled_periods = (uint32_t)throttled_periods;
    sample->throttled_ns = throttled_ns;
    return 0;
}

int read_user_v1(const struct cgroup_files *files, uint64_t *user_ns) {
    return read_number_file(files->user_fd, user_ns); /* cpuacct.usage_user, Linux 4.5 */
}
