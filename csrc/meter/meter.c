/* The thread, the table of tasks, and the sweep.
 *
 * One mutex guards the table and everything that a sweep touches. The sweep holds it for a few
 * microseconds per group. Calls from Python hold it for pointer work, for their own samples and for
 * at most one allocation of 64 KiB; they never hold the GIL with it (cffi lets it go before the
 * call), so neither side waits for an interpreter that waits for the other. Memory and descriptors
 * are made before it is taken and let go after it.
 */
#define _GNU_SOURCE
#include "meter.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "segment.h"

#define TASK_ID_BYTES 32
#define GROUPS_PER_TASK (LEDGER_MAX_CONTAINERS + 1)
#define NS_PER_S 1000000000ull

struct group {
    int active;
    int sampled; /* `latest` holds a record */
    uint16_t container;
    struct cgroup_files files;
    struct ledger_record latest;
};

struct task {
    struct task *next;
    char id[TASK_ID_BYTES];
    struct segment segment;
    struct group groups[GROUPS_PER_TASK]; /* slot i is container i, the last one the task itself */
};

struct meter {
    pthread_mutex_t mutex;
    struct task *tasks;
    struct meter_counters counters;
    pthread_t thread;
    int running;
    int timer_fd;
    int stop_fd;
};

static uint64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time); /* cannot fail for these clocks */
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

static struct task *find_task(struct meter *meter, const char *task_id) {
    for (struct task *task = meter->tasks; task != NULL; task = task->next)
        if (memcmp(task->id, task_id, TASK_ID_BYTES) == 0)
            return task;
    return NULL;
}

static struct group *group_slot(struct task *task, uint16_t container) {
    if (container == LEDGER_TASK)
        return &task->groups[LEDGER_MAX_CONTAINERS];
    return container < LEDGER_MAX_CONTAINERS ? &task->groups[container] : NULL;
}

static int sample_group(struct meter *meter, struct task *task, struct group *group, uint16_t flags,
                        uint32_t late_us) {
    struct ledger_record record = {
        .container = group->container,
        .flags = flags,
        .wall_ns = now_ns(CLOCK_REALTIME),
        .monotonic_ns = now_ns(CLOCK_MONOTONIC),
        .group_id = group->files.group_id,
        .late_us = late_us,
    };
    if (!group->sampled)
        record.flags |= LEDGER_FIRST;
    read_cgroup(&group->files, &record);
    int result = segment_append(&task->segment, &record);
    if (result < 0)
        meter->counters.dropped_records++;
    group->latest = record;
    group->sampled = 1;
    return result;
}

/* The first failure of all groups, or 0. */
static int sample_groups(struct meter *meter, struct task *task, uint16_t flags, uint32_t late_us) {
    int first = 0;
    for (int index = 0; index < GROUPS_PER_TASK; index++) {
        if (!task->groups[index].active)
            continue;
        int result = sample_group(meter, task, &task->groups[index], flags, late_us);
        if (first == 0)
            first = result;
    }
    return first;
}

static void sweep(struct meter *meter, uint64_t late_us) {
    uint16_t flags = late_us >= LEDGER_LATE_US ? LEDGER_LATE : 0;
    uint32_t late = late_us > UINT32_MAX ? UINT32_MAX : (uint32_t)late_us;
    pthread_mutex_lock(&meter->mutex);
    uint64_t begun_ns = now_ns(CLOCK_MONOTONIC);
    for (struct task *task = meter->tasks; task != NULL; task = task->next)
        (void)sample_groups(meter, task, flags, late); /* a drop is counted */
    meter->counters.last_sweep_ns = now_ns(CLOCK_MONOTONIC) - begun_ns;
    meter->counters.ticks++;
    if (flags & LEDGER_LATE)
        meter->counters.late_ticks++;
    if (late_us > meter->counters.worst_late_us)
        meter->counters.worst_late_us = late_us;
    /* After the samples are in: this may allocate, once in 768 records. A full disk is tried again
     * next second; until then records are dropped and counted once the reserve is used up. */
    for (struct task *task = meter->tasks; task != NULL; task = task->next)
        (void)segment_reserve(&task->segment);
    pthread_mutex_unlock(&meter->mutex);
}

/* Arms the timer for the next whole second of the wall clock. */
static uint64_t arm(struct meter *meter) {
    uint64_t next_s = now_ns(CLOCK_REALTIME) / NS_PER_S + 1;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)next_s, .tv_nsec = 0}};
    timerfd_settime(meter->timer_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &when, NULL);
    return next_s * NS_PER_S;
}

static void *run(void *argument) {
    struct meter *meter = argument;
    uint64_t due_ns = arm(meter);
    for (;;) {
        struct pollfd ready[2] = {{.fd = meter->timer_fd, .events = POLLIN},
                                  {.fd = meter->stop_fd, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0)
            continue; /* EINTR; the descriptors are ours and stay valid */
        if (ready[1].revents)
            return NULL;
        uint64_t expirations;
        ssize_t got = read(meter->timer_fd, &expirations, sizeof expirations);
        if (got < 0) { /* ECANCELED: the wall clock was set; EAGAIN: a spurious wake-up */
            due_ns = arm(meter);
            continue;
        }
        uint64_t begun_ns = now_ns(CLOCK_REALTIME);
        uint64_t late_us = begun_ns > due_ns ? (begun_ns - due_ns) / 1000 : 0;
        sweep(meter, late_us);
        due_ns = arm(meter);
    }
}

struct meter *meter_create(void) {
    segment_prepare();
    struct meter *meter = calloc(1, sizeof *meter);
    if (meter != NULL) {
        pthread_mutex_init(&meter->mutex, NULL);
        meter->timer_fd = meter->stop_fd = -1;
    }
    return meter;
}

static void close_clock(struct meter *meter) {
    if (meter->timer_fd >= 0)
        close(meter->timer_fd);
    if (meter->stop_fd >= 0)
        close(meter->stop_fd);
    meter->timer_fd = meter->stop_fd = -1;
}

int meter_start(struct meter *meter) {
    if (meter->running)
        return -EALREADY;
    meter->timer_fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    meter->stop_fd = meter->timer_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC);
    if (meter->stop_fd < 0) {
        int error = errno;
        close_clock(meter);
        return -error;
    }
    /* The program's signal handlers run in its own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&meter->thread, NULL, run, meter);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        close_clock(meter);
        return -error;
    }
    pthread_setname_np(meter->thread, "meter");
    meter->running = 1;
    return 0;
}

int meter_stop(struct meter *meter) {
    if (!meter->running)
        return 0;
    uint64_t one = 1;
    if (write(meter->stop_fd, &one, sizeof one) != sizeof one)
        return -errno;
    int error = pthread_join(meter->thread, NULL);
    meter->running = 0;
    close_clock(meter);
    return -error;
}

static void free_task(struct task *task, int trim) {
    for (int index = 0; index < GROUPS_PER_TASK; index++)
        if (task->groups[index].active)
            close_cgroup(&task->groups[index].files);
    segment_close(&task->segment, trim);
    free(task);
}

void meter_destroy(struct meter *meter) {
    meter_stop(meter);
    while (meter->tasks != NULL) {
        struct task *task = meter->tasks;
        meter->tasks = task->next;
        free_task(task, 0);
    }
    pthread_mutex_destroy(&meter->mutex);
    free(meter);
}

int meter_add_task(struct meter *meter, const char *task_id, int segment_fd, uint32_t next_seq) {
    struct task *task = calloc(1, sizeof *task);
    if (task == NULL)
        return -ENOMEM;
    memcpy(task->id, task_id, TASK_ID_BYTES);
    int result = segment_open(&task->segment, segment_fd, next_seq);
    if (result < 0) {
        free(task);
        return result;
    }
    pthread_mutex_lock(&meter->mutex);
    int known = find_task(meter, task_id) != NULL;
    if (!known) {
        task->next = meter->tasks;
        meter->tasks = task;
    }
    pthread_mutex_unlock(&meter->mutex);
    if (known) {
        task->segment.fd = -1; /* stays the caller's */
        segment_close(&task->segment, 0);
        free(task);
        return -EEXIST;
    }
    return 0;
}

int meter_add_group(struct meter *meter, const char *task_id, uint16_t container,
                    const struct cgroup_files *files) {
    int result = -ENOENT;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    struct group *group = task == NULL ? NULL : group_slot(task, container);
    if (group != NULL) {
        result = group->active ? -EEXIST : segment_reserve(&task->segment);
        if (result == 0) {
            *group = (struct group){.active = 1, .container = container, .files = *files};
            result = sample_group(meter, task, group, LEDGER_EXTRA, 0);
            group->active = result == 0;
        }
    }
    pthread_mutex_unlock(&meter->mutex);
    return result;
}

int meter_sample_task(struct meter *meter, const char *task_id) {
    int result = -ENOENT;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    if (task != NULL) {
        (void)segment_reserve(&task->segment); /* the append tells whether there is room */
        result = sample_groups(meter, task, LEDGER_EXTRA, 0);
    }
    pthread_mutex_unlock(&meter->mutex);
    return result;
}

int meter_end_group(struct meter *meter, const char *task_id, uint16_t container) {
    int result = -ENOENT;
    struct cgroup_files files;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    struct group *group = task == NULL ? NULL : group_slot(task, container);
    if (group != NULL && group->active) {
        (void)segment_reserve(&task->segment);
        result = sample_group(meter, task, group, LEDGER_EXTRA | LEDGER_LAST, 0);
        files = group->files;
        group->active = 0;
    } else {
        group = NULL;
    }
    pthread_mutex_unlock(&meter->mutex);
    if (group != NULL)
        close_cgroup(&files);
    return result;
}

int meter_remove_task(struct meter *meter, const char *task_id) {
    int result = -ENOENT;
    struct task *task = NULL;
    pthread_mutex_lock(&meter->mutex);
    for (struct task **link = &meter->tasks; *link != NULL; link = &(*link)->next) {
        if (memcmp((*link)->id, task_id, TASK_ID_BYTES) != 0)
            continue;
        task = *link;
        (void)segment_reserve(&task->segment);
        result = sample_groups(meter, task, LEDGER_EXTRA | LEDGER_LAST, 0);
        *link = task->next;
        break;
    }
    pthread_mutex_unlock(&meter->mutex);
    if (task != NULL)
        free_task(task, 1);
    return result;
}

int meter_latest(struct meter *meter, const char *task_id, struct ledger_record *records,
                 int capacity) {
    int count = 0;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    for (int index = 0; task != NULL && index < GROUPS_PER_TASK; index++)
        if (task->groups[index].sampled && count < capacity)
            records[count++] = task->groups[index].latest;
    pthread_mutex_unlock(&meter->mutex);
    return task == NULL ? -ENOENT : count;
}

void meter_read_counters(struct meter *meter, struct meter_counters *counters) {
    pthread_mutex_lock(&meter->mutex);
    *counters = meter->counters;
    pthread_mutex_unlock(&meter->mutex);
}

int64_t meter_run_sweeps(struct meter *meter, int count) {
    uint64_t begun_ns = now_ns(CLOCK_MONOTONIC);
    for (int index = 0; index < count; index++)
        sweep(meter, 0);
    return (int64_t)(now_ns(CLOCK_MONOTONIC) - begun_ns);
}

int64_t meter_run_reads(struct meter *meter, int count) {
    char buffer[256];
    pthread_mutex_lock(&meter->mutex);
    uint64_t begun_ns = now_ns(CLOCK_MONOTONIC);
    for (int round = 0; round < count; round++) {
        for (struct task *task = meter->tasks; task != NULL; task = task->next) {
            for (int index = 0; index < GROUPS_PER_TASK; index++) {
                struct group *group = &task->groups[index];
                if (!group->active)
                    continue;
                if (pread(group->files.cpu_fd, buffer, sizeof buffer, 0) < 0 ||
                    pread(group->files.memory_fd, buffer, sizeof buffer, 0) < 0 ||
                    (group->files.peak_fd >= 0 &&
                     pread(group->files.peak_fd, buffer, sizeof buffer, 0) < 0)) {
                    int error = errno;
                    pthread_mutex_unlock(&meter->mutex);
                    return -error;
                }
            }
        }
    }
    int64_t spent_ns = (int64_t)(now_ns(CLOCK_MONOTONIC) - begun_ns);
    pthread_mutex_unlock(&meter->mutex);
    return spent_ns;
}
