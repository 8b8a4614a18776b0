/* A launch without Python and without decisions: the system calls that benchmarks/bare.py recorded
 * of one, made again. What it takes is the kernel's and the shim's time; the rest is ours.
 *
 *     bare_launch SHIM PLAN < rounds
 *
 * PLAN has a step per line, its words separated by tabs; those after `exited` remove what was made.
 * Each line of standard input is answered by a round: milliseconds until the program ran, and until
 * its end was known.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../formats/control.h"

enum { MAX_STEPS = 512, MAX_WORDS = 16, SHIM_FDS = 6, PORT_QUEUE = 64 };

struct step {
    int count;
    char *words[MAX_WORDS];
};

static struct step steps[MAX_STEPS];
static int step_count;
static char filling[65536];

static int host_netns = -1, task_netns = -1, control = -1, lock_fd = -1, program_fd = -1;
static pid_t shim_pid;
static pthread_t storage_thread;
static void *nft_host;
static void *(*nft_new)(uint32_t);
static int (*nft_run)(void *, const char *);
static void (*nft_free)(void *);

static void fail(const char *what, const char *on) {
    fprintf(stderr, "bare_launch: %s %s: %s\n", what, on, strerror(errno));
    exit(1);
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* ---- files ---- */

static void put(const char *path, int flags, size_t size) {
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
    if (fd < 0 || write(fd, filling, size) != (ssize_t)size)
        fail("write", path);
    close(fd);
}

static void replace(const char *path, size_t size) {
    char aside[4096];
    snprintf(aside, sizeof aside, "%s.aside", path);
    put(aside, O_EXCL, size);
    if (rename(aside, path) != 0)
        fail("rename", path);
}

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail("write", path);
    close(fd);
}

static void read_text(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text) < 0)
        fail("read", path);
    close(fd);
}

static char *load(const char *path, size_t *size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0)
        fail("open", path);
    char *text = calloc(1, info.st_size + 1);
    if (text == NULL || read(fd, text, info.st_size) != info.st_size)
        fail("read", path);
    close(fd);
    *size = info.st_size;
    return text;
}

static void map_ledger(const char *path, size_t size) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, size) != 0)
        fail("ledger", path);
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        fail("mmap", path);
    memset(mapped, 1, 4096);
    munmap(mapped, size);
    close(fd);
}

/* ---- mounts ---- */

static void mount_new(const char *kind, char **words, int count, const char *target) {
    int made = syscall(SYS_fsopen, kind, FSOPEN_CLOEXEC);
    for (int i = 0; i < count; i++) {
        char *value = strchr(words[i], '=');
        if (value != NULL)
            *value = '\0';
        if (syscall(SYS_fsconfig, made, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, words[i],
                    value ? value + 1 : NULL, 0) != 0)
            fail("fsconfig", words[i]);
        if (value != NULL)
            *value = '=';
    }
    if (syscall(SYS_fsconfig, made, FSCONFIG_CMD_CREATE, NULL, NULL, 0) != 0)
        fail("fsconfig create", target);
    int mounted = syscall(SYS_fsmount, made, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOATIME);
    if (mounted < 0 || syscall(SYS_move_mount, mounted, "", AT_FDCWD, target, 4) != 0)
        fail("mount", target);
    close(mounted);
    close(made);
}

static void *make_storage(void *argument) {
    char **words = ((struct step *)argument)->words;
    int from = open(words[1], O_RDONLY | O_CLOEXEC);
    int to = open(words[2], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct stat info;
    if (from < 0 || to < 0 || fstat(from, &info) != 0 || ftruncate(to, info.st_size) != 0)
        fail("storage", words[2]);
    for (off_t at = 0; (at = lseek(from, at, SEEK_DATA)) >= 0;) {
        off_t end = lseek(from, at, SEEK_HOLE);
        off_t out = at;
        while (at < end)
            if (copy_file_range(from, &at, to, &out, end - at, 0) <= 0)
                fail("copy", words[1]);
    }
    struct loop_config config = {.fd = to};
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    int loops = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    char source[64];
    int device = -1;
    for (int tries = 0; device < 0 && tries < 64; tries++) {
        snprintf(source, sizeof source, "source=/dev/loop%d", ioctl(loops, LOOP_CTL_GET_FREE));
        device = open(source + 7, O_RDWR | O_CLOEXEC);
        if (device >= 0 && ioctl(device, LOOP_CONFIGURE, &config) != 0) {
            close(device);
            device = -1;
        }
    }
    if (device < 0)
        fail("loop device", words[2]);
    if (mkdir(words[3], 0700) != 0)
        fail("mkdir", words[3]);
    char discard[] = "discard", no_tables[] = "noinit_itable";
    char *options[] = {source, discard, no_tables};
    mount_new("ext4", options, 3, words[3]);
    close(device);
    close(loops);
    close(to);
    close(from);
    return NULL;
}

static void mount_erofs(struct step *step) {
    char options[MAX_WORDS][64], read_only[] = "ro";
    char *words[MAX_WORDS];
    int fds[MAX_WORDS];
    int count = 0;
    for (int i = 2; i < step->count; i++) {
        fds[count] = open(step->words[i], O_RDONLY | O_CLOEXEC);
        snprintf(options[count], 64, "%s=/proc/self/fd/%d", i == 2 ? "source" : "device",
                 fds[count]);
        words[count] = options[count];
        count++;
    }
    words[count] = read_only;
    mount_new("erofs", words, count + 1, step->words[1]);
    while (count > 0)
        close(fds[--count]);
}

/* ---- network ---- */

struct message {
    struct nlmsghdr header;
    char rest[1024];
};

static struct rtattr *add(struct message *message, int type, const void *data, size_t size) {
    struct rtattr *made = (void *)((char *)message + NLMSG_ALIGN(message->header.nlmsg_len));
    made->rta_type = type;
    made->rta_len = RTA_LENGTH(size);
    if (size > 0)
        memcpy(RTA_DATA(made), data, size);
    message->header.nlmsg_len = NLMSG_ALIGN(message->header.nlmsg_len) + RTA_ALIGN(made->rta_len);
    return made;
}

static void end(struct message *message, struct rtattr *nest) {
    nest->rta_len = (char *)message + message->header.nlmsg_len - (char *)nest;
}

static void begin(struct message *message, int type, int flags, const void *body, size_t size) {
    memset(message, 0, sizeof *message);
    message->header.nlmsg_type = type;
    message->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message->header.nlmsg_len = NLMSG_LENGTH(size);
    memcpy(NLMSG_DATA(&message->header), body, size);
}

static void talk(int fd, struct message *message, const char *what) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char rest[1024];
    } reply;
    if (send(fd, message, message->header.nlmsg_len, 0) < 0 ||
        recv(fd, &reply, sizeof reply, 0) < 0)
        fail("netlink", what);
    if (reply.error.error != 0) {
        errno = -reply.error.error;
        fail("netlink", what);
    }
}

static void bring_up(int fd, int index) {
    struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct message message;
    begin(&message, RTM_NEWLINK, 0, &link, sizeof link);
    talk(fd, &message, "up");
}

static void give_address(int fd, int index, const char *text) {
    struct ifaddrmsg address = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = index};
    struct in_addr number;
    struct message message;
    inet_pton(AF_INET, text, &number);
    begin(&message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &address, sizeof address);
    add(&message, IFA_LOCAL, &number, sizeof number);
    add(&message, IFA_ADDRESS, &number, sizeof number);
    talk(fd, &message, "address");
}

static void route(int fd, int index, const char *to, const char *from, const char *via) {
    struct rtmsg entry = {.rtm_family = AF_INET,
                          .rtm_table = RT_TABLE_MAIN,
                          .rtm_protocol = RTPROT_STATIC,
                          .rtm_type = RTN_UNICAST,
                          .rtm_dst_len = to ? 32 : 0,
                          .rtm_scope = via ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK};
    struct in_addr number;
    struct message message;
    if (via != NULL)
        entry.rtm_flags = RTNH_F_ONLINK;
    begin(&message, RTM_NEWROUTE, NLM_F_CREATE, &entry, sizeof entry);
    const char *texts[] = {to, from, via};
    const int types[] = {RTA_DST, RTA_PREFSRC, RTA_GATEWAY};
    for (int i = 0; i < 3; i++)
        if (texts[i] != NULL) {
            inet_pton(AF_INET, texts[i], &number);
            add(&message, types[i], &number, sizeof number);
        }
    add(&message, RTA_OIF, &index, sizeof index);
    talk(fd, &message, "route");
}

static int open_route_socket(void) {
    struct sockaddr_nl own = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0 || bind(fd, (void *)&own, sizeof own) != 0)
        fail("netlink", "socket");
    return fd;
}

static void enter(int netns) {
    if (setns(netns, CLONE_NEWNET) != 0)
        fail("setns", "network");
}

/* veth NAME PEER ADDRESS GATEWAY METADATA_ADDRESS */
static void make_veth(char **words) {
    int fd = open_route_socket();
    struct ifinfomsg link = {0};
    struct message message;
    char path[256];
    begin(&message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof link);
    add(&message, IFLA_IFNAME, words[1], strlen(words[1]) + 1);
    struct rtattr *info = add(&message, IFLA_LINKINFO, NULL, 0);
    add(&message, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = add(&message, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = add(&message, VETH_INFO_PEER, &link, sizeof link);
    add(&message, IFLA_IFNAME, words[2], strlen(words[2]) + 1);
    add(&message, IFLA_NET_NS_FD, &task_netns, sizeof task_netns);
    end(&message, peer);
    end(&message, data);
    end(&message, info);
    talk(fd, &message, words[1]);
    int index = if_nametoindex(words[1]);
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", words[1]);
    write_text(path, "1");
    snprintf(path, sizeof path, "/proc/sys/net/ipv4/conf/%s/forwarding", words[1]);
    write_text(path, "1");
    snprintf(path, sizeof path, "/proc/sys/net/ipv4/conf/%s/route_localnet", words[1]);
    write_text(path, "1");
    bring_up(fd, index);
    give_address(fd, index, words[4]);
    route(fd, index, words[3], words[4], NULL);
    close(fd);
    enter(task_netns);
    fd = open_route_socket();
    index = if_nametoindex(words[2]);
    snprintf(path, sizeof path, "/proc/thread-self/root/proc/sys/net/ipv6/conf/%s/disable_ipv6",
             words[2]);
    write_text(path, "1");
    bring_up(fd, 1);
    give_address(fd, 1, words[5]);
    bring_up(fd, index);
    give_address(fd, index, words[3]);
    route(fd, index, NULL, NULL, words[4]);
    close(fd);
    enter(host_netns);
}

static void remove_link(const char *name) {
    int fd = open_route_socket();
    struct ifinfomsg link = {0};
    struct message message;
    begin(&message, RTM_DELLINK, 0, &link, sizeof link);
    add(&message, IFLA_IFNAME, name, strlen(name) + 1);
    talk(fd, &message, name);
    close(fd);
}

static void run_nft(void *context, const char *file) {
    size_t size;
    char *commands = load(file, &size);
    if (nft_run(context, commands) != 0)
        fail("nft", file);
    free(commands);
}

/* endpoint ADDRESS PORT FILE: the listening socket and the rule that leads to it */
static int open_endpoint(char **words) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
    inet_pton(AF_INET, words[1], &own.sin_addr);
    enter(task_netns);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (void *)&own, sizeof own) != 0 || listen(fd, PORT_QUEUE) != 0)
        fail("listen", words[1]);
    void *context = nft_new(0);
    run_nft(context, words[3]);
    read_text("/proc/thread-self/net/dev");
    enter(host_netns);
    nft_free(context);
    return fd;
}

/* ---- the shim ---- */

/* shim RUN_DIRECTORY ID_BASE ID_COUNT */
static void start_shim(char **words) {
    int pair[2], fds[SHIM_FDS];
    int directory = open(words[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un own = {.sun_family = AF_UNIX};
    snprintf(own.sun_path, sizeof own.sun_path, "/proc/self/fd/%d/shim.sock", directory);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0 ||
        bind(listener, (void *)&own, sizeof own) != 0 || listen(listener, 8) != 0)
        fail("shim", words[1]);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const int inherited[SHIM_FDS] = {null, null, null, pair[1], listener, directory};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (int i = 0; i < SHIM_FDS; i++) {
        fds[i] = fcntl(inherited[i], F_DUPFD_CLOEXEC, 64);
        posix_spawn_file_actions_adddup2(&actions, fds[i], i);
    }
    char path[64], name[] = "fargatelite-shim";
    char *arguments[] = {name, words[2], words[3], NULL}, *environment[] = {NULL};
    snprintf(path, sizeof path, "/proc/self/fd/%d", program_fd);
    errno = posix_spawn(&shim_pid, path, &actions, NULL, arguments, environment);
    if (errno != 0)
        fail("spawn", path);
    posix_spawn_file_actions_destroy(&actions);
    for (int i = 0; i < SHIM_FDS; i++)
        close(fds[i]);
    close(null);
    close(directory);
    close(listener);
    close(pair[1]);
    control = pair[0];
}

static void receive(uint16_t wanted, int *fds) {
    struct event event;
    char space[CMSG_SPACE(2 * sizeof(int))];
    struct iovec part = {&event, sizeof event};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    if (recvmsg(control, &message, MSG_CMSG_CLOEXEC) < (ssize_t)sizeof event)
        fail("receive from", "the shim");
    if (event.type != wanted) {
        errno = event.failure.error;
        fail(event.failure.call, event.failure.object);
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (fds != NULL && header != NULL)
        memcpy(fds, CMSG_DATA(header), 2 * sizeof(int));
}

static void request(uint16_t type, int fd) {
    struct request request = {.magic = CONTROL_MAGIC, .version = CONTROL_VERSION, .type = type};
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&request, sizeof request};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = space;
        message.msg_controllen = sizeof space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    if (sendmsg(control, &message, MSG_NOSIGNAL) < 0)
        fail("send to", "the shim");
}

static void start_program(const char *path) {
    size_t size;
    char *plan = load(path, &size);
    int fd = memfd_create("plan", MFD_CLOEXEC);
    if (write(fd, plan, size) != (ssize_t)size)
        fail("write", path);
    request(REQUEST_START, fd);
    close(fd);
    free(plan);
}

static void load_shim(const char *path) {
    size_t size;
    char *program = load(path, &size);
    int fd = memfd_create("fargatelite-shim", MFD_CLOEXEC);
    if (write(fd, program, size) != (ssize_t)size)
        fail("write", path);
    char own[64];
    snprintf(own, sizeof own, "/proc/self/fd/%d", fd);
    program_fd = open(own, O_RDONLY | O_CLOEXEC);
    close(fd); /* one that may write keeps it from being executed */
    free(program);
}

/* ---- */

static void remove_group(const char *path) {
    for (int tries = 0; rmdir(path) != 0; tries++) {
        if (errno != EBUSY || tries > 5000)
            fail("rmdir", path);
        usleep(200);
    }
}

static void run_round(void) {
    double began = now_ms(), started = 0, exited = 0;
    int endpoint = -1, fds[2] = {-1, -1};
    for (int i = 0; i < step_count; i++) {
        struct step *step = &steps[i];
        char **words = step->words;
        const char *name = words[0];
        if (strcmp(name, "mkdir") == 0) {
            if (mkdir(words[1], 0755) != 0)
                fail("mkdir", words[1]);
        } else if (strcmp(name, "write") == 0) {
            write_text(words[1], words[2]);
        } else if (strcmp(name, "read") == 0) {
            read_text(words[1]);
        } else if (strcmp(name, "create") == 0) {
            put(words[1], O_EXCL, atoi(words[2]));
        } else if (strcmp(name, "append") == 0) {
            put(words[1], O_APPEND, atoi(words[2]));
        } else if (strcmp(name, "replace") == 0) {
            replace(words[1], atoi(words[2]));
        } else if (strcmp(name, "link") == 0) {
            if (link(words[1], words[2]) != 0 || unlink(words[1]) != 0)
                fail("link", words[2]);
        } else if (strcmp(name, "chown") == 0) {
            if (chown(words[1], atoi(words[2]), atoi(words[2])) != 0)
                fail("chown", words[1]);
        } else if (strcmp(name, "symlink") == 0) {
            if (symlink(words[1], words[2]) != 0)
                fail("symlink", words[2]);
        } else if (strcmp(name, "lock") == 0) {
            lock_fd = open(words[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            if (flock(lock_fd, LOCK_EX) != 0)
                fail("flock", words[1]);
        } else if (strcmp(name, "unlock") == 0) {
            close(lock_fd);
        } else if (strcmp(name, "ledger") == 0) {
            map_ledger(words[1], atoi(words[2]));
        } else if (strcmp(name, "shim") == 0) {
            start_shim(words);
        } else if (strcmp(name, "storage") == 0) {
            pthread_create(&storage_thread, NULL, make_storage, step);
        } else if (strcmp(name, "stored") == 0) {
            pthread_join(storage_thread, NULL);
        } else if (strcmp(name, "ready") == 0) {
            receive(EVENT_READY, fds);
            task_netns = fds[1];
        } else if (strcmp(name, "nft") == 0) {
            run_nft(nft_host, words[1]);
        } else if (strcmp(name, "veth") == 0) {
            make_veth(words);
        } else if (strcmp(name, "endpoint") == 0) {
            endpoint = open_endpoint(words);
        } else if (strcmp(name, "erofs") == 0) {
            mount_erofs(step);
        } else if (strcmp(name, "start") == 0) {
            start_program(words[1]);
        } else if (strcmp(name, "started") == 0) {
            receive(EVENT_STARTED, NULL);
            started = now_ms() - began;
        } else if (strcmp(name, "exited") == 0) {
            receive(EVENT_EXITED, NULL);
            exited = now_ms() - began;
        } else if (strcmp(name, "shutdown") == 0) {
            request(REQUEST_SHUTDOWN, -1);
            close(control);
            waitpid(shim_pid, NULL, 0);
            close(endpoint);
            close(fds[0]);
            close(fds[1]);
        } else if (strcmp(name, "unlink") == 0) {
            unlink(words[1]);
        } else if (strcmp(name, "rmdir") == 0) {
            remove_group(words[1]);
        } else if (strcmp(name, "umount") == 0) {
            if (umount2(words[1], MNT_DETACH) != 0)
                fail("umount", words[1]);
        } else if (strcmp(name, "unveth") == 0) {
            remove_link(words[1]);
        } else {
            errno = EINVAL;
            fail("step", name);
        }
    }
    printf("%.3f %.3f\n", started, exited);
    fflush(stdout);
}

int main(int count, char **arguments) {
    size_t size;
    if (count != 3)
        return 2;
    memset(filling, ' ', sizeof filling);
    char *text = load(arguments[2], &size), *line_end = NULL, *word_end = NULL;
    for (char *line = strtok_r(text, "\n", &line_end); line != NULL && step_count < MAX_STEPS;
         line = strtok_r(NULL, "\n", &line_end)) {
        struct step *step = &steps[step_count++];
        for (char *word = strtok_r(line, "\t", &word_end); word != NULL && step->count < MAX_WORDS;
             word = strtok_r(NULL, "\t", &word_end))
            step->words[step->count++] = word;
    }
    void *library = dlopen("libnftables.so.1", RTLD_NOW);
    if (library == NULL)
        fail("load", "libnftables.so.1");
    *(void **)&nft_new = dlsym(library, "nft_ctx_new");
    *(void **)&nft_run = dlsym(library, "nft_run_cmd_from_buffer");
    *(void **)&nft_free = dlsym(library, "nft_ctx_free");
    nft_host = nft_new(0);
    host_netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    load_shim(arguments[1]);
    char request_line[16];
    while (fgets(request_line, sizeof request_line, stdin) != NULL)
        run_round();
    return 0;
}
