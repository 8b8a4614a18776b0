/* The threads, the table of tasks, and the sweep.
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
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "record.h"
#include "segment.h"

#define TASK_ID_BYTES 32
#define GROUPS_PER_TASK (LEDGER_MAX_CONTAINERS + 1)
#define NS_PER_S 1000000000ll
#define THREAD_NICE (-15) /* of the sweeping thread alone (setpriority(2), NOTES) */
#define LATE_US 100000    /* counted as late: a tenth of the interval */
/* The wall clock may be slewed by 500 ppm (adjtimex(2)); twice that and more is a step. */
#define STEP_NS (50 * 1000000ll)
#define SLEW_PER 1000
#define LIMIT_LOOKED_FOR_EVERY 20 /* sweeps: has a group without a CPU limit been given one? */
#define ROTATIONS_PER_SWEEP 8     /* some 0.1 ms each, with the lock */
/* CLOCK_BOOTTIME and CLOCK_MONOTONIC are read one after the other. */
#define SUSPEND_NS (10 * 1000000ll)

struct group {
    int active;
    int sampled; /* `latest` holds a record */
    uint8_t container;
    struct cgroup_files files;
    struct told told;
    struct sample latest;
};

struct task {
    struct task *next;
    char id[TASK_ID_BYTES];
    struct segment segment;
    int full_fd; /* the segment before, still to be written back; -1: none */
    int network_fd;
    int swept;           /* was part of a sweep: later ones are missed if they do not come */
    uint32_t phase;      /* spreads the slow kinds of many tasks over the seconds */
    uint64_t sync_round; /* the last one it was part of */
    /* Slot i is container i, the last one the task itself; NULL until it is sampled first. */
    struct group *groups[GROUPS_PER_TASK];
};

struct moment {
    int64_t wall_ns, monotonic_ns, boottime_ns;
};

struct meter {
    pthread_mutex_t mutex;
    struct task *tasks;
    uint32_t tasks_added;
    struct meter_counters counters;
    uint32_t slow_every_s;
    uint32_t sync_every_s;
    size_t segment_bytes;
    struct moment shift;    /* of the clocks; 0 but in tests */
    int64_t wall_ahead_ns;  /* of the monotonic clock, as of the begin of this sweep or call */
    struct moment last_due; /* what the clocks said when the last sweep was due */
    int has_last_due;
    pthread_t thread;
    pthread_t sync_thread;
    int running;
    int syncing;
    int timer_fd;
    int stop_fd;
};

static int64_t now_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time); /* cannot fail for these clocks */
    return (int64_t)time.tv_sec * NS_PER_S + time.tv_nsec;
}

static int64_t wall_now_ns(const struct meter *meter) {
    return now_ns(CLOCK_REALTIME) + meter->shift.wall_ns;
}

static int64_t monotonic_now_ns(const struct meter *meter) {
    return now_ns(CLOCK_MONOTONIC) + meter->shift.monotonic_ns;
}

/* Once for each sweep or call, with the lock; samples in it read one clock and add. */
static struct moment read_clocks(struct meter *meter) {
    struct moment now = {
        .wall_ns = wall_now_ns(meter),
        .monotonic_ns = monotonic_now_ns(meter),
        .boottime_ns = now_ns(CLOCK_BOOTTIME) + meter->shift.boottime_ns,
    };
    meter->wall_ahead_ns = now.wall_ns - now.monotonic_ns;
    return now;
}

static struct task *find_task(struct meter *meter, const char *task_id) {
    for (struct task *task = meter->tasks; task != NULL; task = task->next)
        if (memcmp(task->id, task_id, TASK_ID_BYTES) == 0)
            return task;
    return NULL;
}

static struct group **group_slot(struct task *task, uint8_t container) {
    if (container == LEDGER_TASK)
        return &task->groups[LEDGER_MAX_CONTAINERS];
    return container < LEDGER_MAX_CONTAINERS ? &task->groups[container] : NULL;
}

/* A record that has no room is counted. */
static int counted(struct meter *meter, int result) {
    if (result < 0)
        meter->counters.dropped_records++;
    return result;
}

static int append_mark(struct meter *meter, struct task *task, const struct moment *now,
                       uint8_t container, uint8_t generation, enum ledger_mark_type type,
                       int64_t value) {
    return counted(meter, record_mark(&task->segment, now->wall_ns, now->monotonic_ns, container,
                                      generation, type, value));
}

static int has_slow(const struct meter *meter) {
    return meter->slow_every_s != 0;
}

/* The slow kinds of a group, at the moment of its sample. */
static void append_slow(struct meter *meter, struct task *task, struct group *group) {
    struct slow slow = {0};
    read_slow(&group->files, &slow);
    (void)counted(meter, record_slow(&task->segment, &group->latest, &slow));
    if (group->files.pressure_fds[0] >= 0) {
        struct pressure pressure = {0};
        read_pressure(&group->files, &pressure);
        (void)counted(meter, record_pressure(&task->segment, &group->latest, &pressure));
    }
}

static void append_network(struct meter *meter, struct task *task) {
    int64_t monotonic_ns = monotonic_now_ns(meter);
    struct network network;
    if (read_network(task->network_fd, &network) == 0) /* without one it is not there: never a 0 */
        (void)counted(meter, record_network(&task->segment, monotonic_ns + meter->wall_ahead_ns,
                                            monotonic_ns, &network));
}

static int sample_group(struct meter *meter, struct task *task, struct group *group, uint8_t flags,
                        int64_t late_ns, int slow) {
    int64_t late_100us = late_ns / 100000;
    int64_t monotonic_ns = monotonic_now_ns(meter);
    struct sample sample = {
        .container = group->container,
        .flags = flags,
        .generation = group->files.generation,
        .wall_ns = monotonic_ns + meter->wall_ahead_ns,
        .monotonic_ns = monotonic_ns,
        .late_100us = late_100us > UINT32_MAX ? UINT32_MAX : (uint32_t)late_100us,
    };
    if (!group->sampled)
        sample.flags |= LEDGER_FIRST;
    int all = slow || flags & LEDGER_EXTRA ||
              (meter->counters.ticks + task->phase) % LIMIT_LOOKED_FOR_EVERY == 0;
    read_sample(&group->files, &sample, all);
    int result = counted(meter, record_sample(&task->segment, &group->told, &sample));
    group->latest = sample;
    group->sampled = 1;
    if (slow)
        append_slow(meter, task, group);
    return result;
}

/* The first failure of all groups, or 0. */
static int sample_groups(struct meter *meter, struct task *task, uint8_t flags, int64_t late_ns,
                         int slow) {
    int first = 0;
    for (int index = 0; index < GROUPS_PER_TASK; index++) {
        struct group *group = task->groups[index];
        if (group == NULL || !group->active)
            continue;
        int result = sample_group(meter, task, group, flags, late_ns, slow);
        if (first == 0)
            first = result;
    }
    if (slow && task->network_fd >= 0)
        append_network(meter, task);
    return first;
}

/* Says in every ledger what the clocks did since the last sweep was due. `due` is this one's. */
static void mark_clocks(struct meter *meter, const struct moment *due) {
    const struct moment *last = &meter->last_due;
    int64_t elapsed_ns = due->monotonic_ns - last->monotonic_ns;
    int64_t step_ns = due->wall_ns - last->wall_ns - elapsed_ns;
    int64_t slept_ns = due->boottime_ns - last->boottime_ns - elapsed_ns;
    /* The wall clock goes on while the host sleeps. */
    int64_t set_ns = step_ns - (slept_ns > SUSPEND_NS ? slept_ns : 0);
    int64_t slew_ns = STEP_NS + (elapsed_ns + slept_ns) / SLEW_PER;
    int64_t missed = (elapsed_ns + NS_PER_S / 2) / NS_PER_S - 1;
    if (set_ns > -slew_ns && set_ns < slew_ns)
        set_ns = 0;
    else if (missed == 1)
        missed = 0; /* the timer was set anew, for the next second of another clock */
    for (struct task *task = meter->tasks; task != NULL; task = task->next) {
        if (!task->swept)
            continue;
        if (set_ns != 0)
            (void)append_mark(meter, task, due, LEDGER_TASK, 0, LEDGER_MARK_STEP, set_ns);
        if (slept_ns > SUSPEND_NS)
            (void)append_mark(meter, task, due, LEDGER_TASK, 0, LEDGER_MARK_SUSPEND, slept_ns);
        if (missed > 0)
            (void)append_mark(meter, task, due, LEDGER_TASK, 0, LEDGER_MARK_MISSED, missed);
    }
}

/* A segment says which groups it is of: who takes over reads no other one. */
static void rotate(struct meter *meter, struct task *task, const struct moment *now) {
    int old_fd;
    if (segment_rotate(&task->segment, (uint64_t)now->wall_ns, &old_fd) < 0)
        return; /* goes on in this one, and tries again next second */
    for (int index = 0; index < GROUPS_PER_TASK; index++) {
        const struct group *group = task->groups[index];
        if (group != NULL)
            (void)append_mark(meter, task, now, group->container, group->files.generation,
                              LEDGER_MARK_GROUP, (int64_t)group->files.group_id);
    }
    if (task->full_fd >= 0)
        close(task->full_fd);
    task->full_fd = old_fd;
}

/* After the samples are in: this may allocate, once in 2,000 records. A full disk is tried again
 * next second; until then records are dropped and counted once the reserve is used up. */
static void make_room(struct meter *meter) {
    int rotations = 0;
    struct moment now = read_clocks(meter);
    for (struct task *task = meter->tasks; task != NULL; task = task->next) {
        if (segment_bytes(&task->segment) >= meter->segment_bytes &&
            rotations++ < ROTATIONS_PER_SWEEP)
            rotate(meter, task, &now);
        (void)segment_reserve(&task->segment);
    }
}

/* One sample of everything; `due_ns` of the wall clock is the second that it is for. */
static void sweep(struct meter *meter, int64_t due_ns) {
    pthread_mutex_lock(&meter->mutex);
    struct moment due = read_clocks(meter);
    int64_t begun_ns = due.monotonic_ns;
    int64_t late_ns = due.wall_ns > due_ns ? due.wall_ns - due_ns : 0;
    due.wall_ns -= late_ns;
    due.monotonic_ns -= late_ns;
    due.boottime_ns -= late_ns;
    if (meter->has_last_due)
        mark_clocks(meter, &due);
    meter->last_due = due;
    meter->has_last_due = 1;
    for (struct task *task = meter->tasks; task != NULL; task = task->next) {
        int slow =
            has_slow(meter) && (meter->counters.ticks + task->phase) % meter->slow_every_s == 0;
        (void)sample_groups(meter, task, 0, late_ns, slow); /* a drop is counted */
        task->swept = 1;
    }
    meter->counters.last_sweep_ns = (uint64_t)(monotonic_now_ns(meter) - begun_ns);
    meter->counters.ticks++;
    uint64_t late_us = (uint64_t)late_ns / 1000;
    if (late_us >= LATE_US)
        meter->counters.late_ticks++;
    if (late_us > meter->counters.worst_late_us)
        meter->counters.worst_late_us = late_us;
    make_room(meter);
    pthread_mutex_unlock(&meter->mutex);
}

/* Arms the timer for the next whole second of the wall clock. */
static int64_t arm(struct meter *meter) {
    int64_t next_s = now_ns(CLOCK_REALTIME) / NS_PER_S + 1;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)next_s, .tv_nsec = 0}};
    timerfd_settime(meter->timer_fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &when, NULL);
    return next_s * NS_PER_S;
}

static void *run(void *argument) {
    struct meter *meter = argument;
    /* On a busy host a sweep of some ms a second should not wait behind the load that it measures.
     * Without the right to it (CAP_SYS_NICE) it waits, and the record says how long. */
    (void)setpriority(PRIO_PROCESS, 0, THREAD_NICE);
    int64_t due_ns = arm(meter);
    for (;;) {
        struct pollfd ready[2] = {{.fd = meter->timer_fd, .events = POLLIN},
                                  {.fd = meter->stop_fd, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0)
            continue; /* EINTR; the descriptors are ours and stay valid */
        if (ready[1].revents)
            return NULL;
        uint64_t expirations;
        ssize_t got = read(meter->timer_fd, &expirations, sizeof expirations);
        /* ECANCELED: the wall clock was set, the next sweep says so; EAGAIN: a spurious wake-up */
        if (got >= 0)
            sweep(meter, due_ns + meter->shift.wall_ns);
        due_ns = arm(meter);
    }
}

/* The next segment of this round, full ones first; opened anew, since a duplicate would share, and
 * so prolong, its lock. -1: none is left. */
static int open_next_segment(struct meter *meter, uint64_t round) {
    int fd = -1;
    pthread_mutex_lock(&meter->mutex);
    for (struct task *task = meter->tasks; task != NULL && fd < 0; task = task->next) {
        if (task->full_fd >= 0) {
            fd = task->full_fd;
            task->full_fd = -1;
        } else if (task->sync_round < round) {
            task->sync_round = round;
            char path[32];
            snprintf(path, sizeof path, "/proc/self/fd/%d", task->segment.fd);
            fd = open(path, O_RDONLY | O_CLOEXEC);
        }
    }
    pthread_mutex_unlock(&meter->mutex);
    return fd;
}

static void *run_sync(void *argument) {
    struct meter *meter = argument;
    for (uint64_t round = 1;; round++) {
        struct pollfd stop = {.fd = meter->stop_fd, .events = POLLIN};
        if (poll(&stop, 1, (int)meter->sync_every_s * 1000) > 0)
            return NULL;
        int fd;
        while ((fd = open_next_segment(meter, round)) >= 0) {
            int failed = fdatasync(fd) < 0; /* tried again next round */
            close(fd);
            pthread_mutex_lock(&meter->mutex);
            meter->counters.synced++;
            meter->counters.sync_failures += (uint64_t)failed;
            pthread_mutex_unlock(&meter->mutex);
        }
    }
}

struct meter *meter_create(uint32_t slow_every_s, uint32_t sync_every_s, size_t segment_bytes) {
    segment_prepare();
    struct meter *meter = calloc(1, sizeof *meter);
    if (meter != NULL) {
        pthread_mutex_init(&meter->mutex, NULL);
        meter->timer_fd = meter->stop_fd = -1;
        meter->slow_every_s = slow_every_s;
        meter->sync_every_s = sync_every_s;
        meter->segment_bytes = segment_bytes;
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

/* The program's signal handlers run in its own threads. */
static int start_thread(pthread_t *thread, void *(*work)(void *), struct meter *meter,
                        const char *name) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, work, meter);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0)
        pthread_setname_np(*thread, name);
    return -error;
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
    int result = start_thread(&meter->thread, run, meter, "meter");
    if (result < 0) {
        close_clock(meter);
        return result;
    }
    meter->running = 1;
    if (meter->sync_every_s != 0) {
        result = start_thread(&meter->sync_thread, run_sync, meter, "meter-sync");
        meter->syncing = result == 0;
        if (result < 0)
            meter_stop(meter);
    }
    return result;
}

int meter_stop(struct meter *meter) {
    if (!meter->running)
        return 0;
    uint64_t one = 1; /* never read: both threads see it */
    if (write(meter->stop_fd, &one, sizeof one) != sizeof one)
        return -errno;
    int error = pthread_join(meter->thread, NULL);
    if (meter->syncing && error == 0)
        error = pthread_join(meter->sync_thread, NULL);
    meter->running = meter->syncing = 0;
    /* Seconds until the next start are not missed: nobody was to sweep. */
    meter->has_last_due = 0;
    close_clock(meter);
    return -error;
}

static void free_task(struct task *task, int trim) {
    for (int index = 0; index < GROUPS_PER_TASK; index++) {
        if (task->groups[index] != NULL && task->groups[index]->active)
            close_cgroup(&task->groups[index]->files);
        free(task->groups[index]);
    }
    if (task->network_fd >= 0)
        close(task->network_fd);
    if (task->full_fd >= 0)
        close(task->full_fd);
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

int meter_add_task(struct meter *meter, const char *task_id, const char *ledger, uint32_t segment,
                   int segment_fd, uint32_t next_seq) {
    struct task *task = calloc(1, sizeof *task);
    if (task == NULL)
        return -ENOMEM;
    memcpy(task->id, task_id, TASK_ID_BYTES);
    task->network_fd = task->full_fd = -1;
    int result = segment_open(&task->segment, ledger, segment, segment_fd, next_seq);
    if (result < 0) {
        free(task);
        return result;
    }
    pthread_mutex_lock(&meter->mutex);
    int known = find_task(meter, task_id) != NULL;
    if (!known) {
        task->phase = meter->tasks_added++;
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

int meter_add_name(struct meter *meter, const char *task_id, uint8_t container, const void *slot) {
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    int result = task == NULL ? -ENOENT : container < LEDGER_MAX_CONTAINERS ? 0 : -EINVAL;
    if (result == 0)
        segment_set_name(&task->segment, container, slot);
    pthread_mutex_unlock(&meter->mutex);
    return result;
}

int meter_add_group(struct meter *meter, const char *task_id, uint8_t container,
                    const struct cgroup_files *files) {
    int result = -ENOENT;
    struct group *fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    struct group **slot = task == NULL ? NULL : group_slot(task, container);
    if (slot != NULL) {
        if (*slot == NULL) {
            *slot = fresh;
            fresh = NULL;
        }
        struct group *group = *slot;
        result = group->active ? -EEXIST : segment_reserve(&task->segment);
        if (result == 0) {
            *group = (struct group){.active = 1, .container = container, .files = *files};
            set_io_base(&group->files);
            struct moment now = read_clocks(meter);
            result = append_mark(meter, task, &now, container, files->generation, LEDGER_MARK_GROUP,
                                 (int64_t)files->group_id);
            if (result == 0)
                result = sample_group(meter, task, group, LEDGER_EXTRA, 0, 0);
            group->active = result == 0;
        }
    }
    pthread_mutex_unlock(&meter->mutex);
    free(fresh);
    return result;
}

int meter_add_network(struct meter *meter, const char *task_id, int fd) {
    int result = -ENOENT;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    if (task != NULL) {
        result = task->network_fd >= 0 ? -EEXIST : 0;
        if (result == 0)
            task->network_fd = fd;
    }
    pthread_mutex_unlock(&meter->mutex);
    return result;
}

int meter_add_io(struct meter *meter, const char *task_id, uint8_t container, uint64_t read_bytes,
                 uint64_t written_bytes) {
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    struct group **slot = task == NULL ? NULL : group_slot(task, container);
    struct group *group = slot == NULL ? NULL : *slot;
    if (group != NULL) {
        group->files.io_ended[0] += read_bytes;
        group->files.io_ended[1] += written_bytes;
    }
    pthread_mutex_unlock(&meter->mutex);
    return group == NULL ? -ENOENT : 0;
}

int meter_sample_task(struct meter *meter, const char *task_id) {
    int result = -ENOENT;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    if (task != NULL) {
        (void)segment_reserve(&task->segment); /* the append tells whether there is room */
        (void)read_clocks(meter);
        result = sample_groups(meter, task, LEDGER_EXTRA, 0, has_slow(meter));
    }
    pthread_mutex_unlock(&meter->mutex);
    return result;
}

int meter_end_group(struct meter *meter, const char *task_id, uint8_t container) {
    int result = -ENOENT;
    struct cgroup_files files;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    struct group **slot = task == NULL ? NULL : group_slot(task, container);
    struct group *group = slot == NULL ? NULL : *slot;
    if (group != NULL && group->active) {
        (void)segment_reserve(&task->segment);
        (void)read_clocks(meter);
        result = sample_group(meter, task, group, LEDGER_EXTRA | LEDGER_LAST, 0, has_slow(meter));
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
        (void)read_clocks(meter);
        result = sample_groups(meter, task, LEDGER_EXTRA | LEDGER_LAST, 0, has_slow(meter));
        *link = task->next;
        break;
    }
    pthread_mutex_unlock(&meter->mutex);
    if (task != NULL)
        free_task(task, 1);
    return result;
}

int meter_latest(struct meter *meter, const char *task_id, struct sample *samples, int capacity) {
    int count = 0;
    pthread_mutex_lock(&meter->mutex);
    struct task *task = find_task(meter, task_id);
    for (int index = 0; task != NULL && index < GROUPS_PER_TASK; index++)
        if (task->groups[index] != NULL && task->groups[index]->sampled && count < capacity)
            samples[count++] = task->groups[index]->latest;
    pthread_mutex_unlock(&meter->mutex);
    return task == NULL ? -ENOENT : count;
}

void meter_read_counters(struct meter *meter, struct meter_counters *counters) {
    pthread_mutex_lock(&meter->mutex);
    *counters = meter->counters;
    clockid_t clock;
    if (meter->running && pthread_getcpuclockid(meter->thread, &clock) == 0)
        counters->thread_cpu_ns = (uint64_t)now_ns(clock);
    pthread_mutex_unlock(&meter->mutex);
}

void meter_shift_clocks(struct meter *meter, int64_t wall_ns, int64_t monotonic_ns,
                        int64_t boottime_ns) {
    pthread_mutex_lock(&meter->mutex);
    meter->shift.wall_ns += wall_ns;
    meter->shift.monotonic_ns += monotonic_ns;
    meter->shift.boottime_ns += boottime_ns;
    pthread_mutex_unlock(&meter->mutex);
}

void meter_tick(struct meter *meter) {
    sweep(meter, wall_now_ns(meter) / NS_PER_S * NS_PER_S);
}

int64_t meter_run_sweeps(struct meter *meter, int count) {
    int64_t begun_ns = now_ns(CLOCK_MONOTONIC);
    for (int index = 0; index < count; index++)
        sweep(meter, INT64_MAX);
    return now_ns(CLOCK_MONOTONIC) - begun_ns;
}

int64_t meter_run_reads(struct meter *meter, int count) {
    char buffer[CPU_STAT_BYTES];
    pthread_mutex_lock(&meter->mutex);
    int64_t begun_ns = now_ns(CLOCK_MONOTONIC);
    for (int round = 0; round < count; round++) {
        for (struct task *task = meter->tasks; task != NULL; task = task->next) {
            for (int index = 0; index < GROUPS_PER_TASK; index++) {
                const struct group *group = task->groups[index];
                if (group == NULL || !group->active)
                    continue;
                const struct cgroup_files *files = &group->files;
                const int fds[] = {files->cpu_fd, files->memory_fd, files->peak_fd,
                                   files->limited ? files->throttled_fd : -1, files->pids_fd};
                for (size_t file = 0; file < sizeof fds / sizeof *fds; file++) {
                    if (fds[file] < 0 || pread(fds[file], buffer, sizeof buffer, 0) >= 0)
                        continue;
                    int error = errno;
                    pthread_mutex_unlock(&meter->mutex);
                    return -error;
                }
            }
        }
    }
    int64_t spent_ns = now_ns(CLOCK_MONOTONIC) - begun_ns;
    pthread_mutex_unlock(&meter->mutex);
    return spent_ns;
}
