/* Prints as one line of JSON what a process sees of its container, then becomes the program that
 * its arguments name, if any: an image whose entry point it is runs every command behind a look
 * around.
 *
 * Values of variables are not printed: logs are kept. A part that cannot be read is null, never
 * left out, so that a test that asks for it fails.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool first; /* whether the next member is the first of its object or list */

static void text(const char *bytes, size_t size) {
    putchar('"');
    for (size_t at = 0; at < size; at++) {
        unsigned char byte = (unsigned char)bytes[at];
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20 || byte > 0x7e)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

static void string(const char *value) {
    text(value, strlen(value));
}

static void comma(void) {
    if (!first)
        putchar(',');
    first = false;
}

static void key(const char *name) {
    comma();
    string(name);
    putchar(':');
}

static void open_with(const char *bracket) {
    fputs(bracket, stdout);
    first = true;
}

static void close_with(const char *bracket) {
    fputs(bracket, stdout);
    first = false;
}

static void number(const char *name, long long value) {
    key(name);
    printf("%lld", value);
}

/* A whole file below 64 KiB; NULL when it cannot be read. */
static char *contents(const char *path) {
    static char buffer[65536];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    size_t used = 0;
    ssize_t got;
    while (used < sizeof buffer - 1 &&
           (got = read(fd, buffer + used, sizeof buffer - 1 - used)) > 0)
        used += (size_t)got;
    close(fd);
    buffer[used] = 0;
    return buffer;
}

static void file(const char *name, const char *path) {
    char *found = contents(path);
    key(name);
    if (found)
        string(found);
    else
        fputs("null", stdout);
}

/* A line of /proc/self/status, without its name. */
static void status(const char *name, const char *label) {
    char *found = contents("/proc/self/status");
    char *line = found ? strstr(found, label) : NULL;
    key(name);
    if (!line) {
        fputs("null", stdout);
        return;
    }
    line += strlen(label);
    line += strspn(line, ":\t ");
    text(line, strcspn(line, "\n"));
}

static void limits(void) {
    static const struct {
        const char *name;
        int resource;
    } known[] = {
        {"core", RLIMIT_CORE},         {"cpu", RLIMIT_CPU},     {"data", RLIMIT_DATA},
        {"fsize", RLIMIT_FSIZE},       {"locks", RLIMIT_LOCKS}, {"memlock", RLIMIT_MEMLOCK},
        {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},   {"nofile", RLIMIT_NOFILE},
        {"nproc", RLIMIT_NPROC},       {"rss", RLIMIT_RSS},     {"rtprio", RLIMIT_RTPRIO},
        {"rttime", RLIMIT_RTTIME},     {"stack", RLIMIT_STACK}, {"sigpending", RLIMIT_SIGPENDING},
    };
    key("limits");
    open_with("{");
    for (size_t at = 0; at < sizeof known / sizeof *known; at++) {
        struct rlimit limit;
        if (getrlimit(known[at].resource, &limit))
            continue;
        key(known[at].name); /* -1 is unlimited, as in a task definition */
        printf("[%lld,%lld]", (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
    close_with("}");
}

/* Options of a mount: its own flags and its file system's. */
static void mounts(void) {
    key("mounts");
    open_with("[");
    FILE *table = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t room = 0;
    while (table && getline(&line, &room, table) > 0) {
        char root[4096], path[4096], flags[1024], type[64], source[4096], super[4096];
        char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*s %*s %*s %4095s %4095s %1023s", root, path, flags) != 3 ||
            sscanf(rest, " - %63s %4095s %4095s", type, source, super) != 3)
            continue;
        comma();
        open_with("{");
        key("path"), string(path);
        key("root"), string(root);
        key("type"), string(type);
        key("flags"), string(flags);
        key("super"), string(super);
        close_with("}");
    }
    free(line);
    if (table)
        fclose(table);
    close_with("]");
}

static void namespaces(void) {
    static const char *const known[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    key("namespaces");
    open_with("{");
    for (size_t at = 0; at < sizeof known / sizeof *known; at++) {
        char path[64], target[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", known[at]);
        ssize_t size = readlink(path, target, sizeof target - 1);
        key(known[at]);
        text(target, size > 0 ? (size_t)size : 0);
    }
    close_with("}");
}

static void open_files(void) {
    key("fds");
    open_with("{");
    DIR *all = opendir("/proc/self/fd");
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        char target[4096];
        ssize_t size = readlinkat(dirfd(all), entry->d_name, target, sizeof target - 1);
        if (entry->d_name[0] == '.' || size < 0 || atoi(entry->d_name) == dirfd(all))
            continue;
        key(entry->d_name);
        text(target, (size_t)size);
    }
    if (all)
        closedir(all);
    close_with("}");
}

/* Nodes in /dev itself, as "c 1:3". */
static void devices(void) {
    key("devices");
    open_with("{");
    DIR *all = opendir("/dev");
    struct dirent *entry;
    struct stat info;
    while (all && (entry = readdir(all))) {
        if (fstatat(dirfd(all), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) ||
            !(S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode)))
            continue;
        key(entry->d_name);
        printf("\"%c %u:%u\"", S_ISCHR(info.st_mode) ? 'c' : 'b', major(info.st_rdev),
               minor(info.st_rdev));
    }
    if (all)
        closedir(all);
    close_with("}");
}

/* Processes that /proc shows, by number. */
static void processes(void) {
    key("processes");
    open_with("{");
    DIR *all = opendir("/proc");
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        char path[512];
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        char *comm = contents(path);
        key(entry->d_name);
        text(comm ? comm : "", comm ? strcspn(comm, "\n") : 0);
    }
    if (all)
        closedir(all);
    close_with("}");
}

/* Directories of the root, and mount points in it, where a file can be made. */
static void try_writing(const char *directory) {
    char path[4200];
    snprintf(path, sizeof path, "%s/.probe", strcmp(directory, "/") ? directory : "");
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    close(fd);
    unlink(path);
    comma();
    string(directory);
}

static void writable(void) {
    key("writable");
    open_with("[");
    try_writing("/");
    DIR *root = opendir("/");
    struct dirent *entry;
    while (root && (entry = readdir(root))) {
        char path[512];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/%s", entry->d_name);
        try_writing(path);
    }
    if (root)
        closedir(root);
    close_with("]");
}

static void disk(void) {
    struct statvfs info;
    key("disk_bytes");
    if (statvfs("/", &info))
        fputs("null", stdout);
    else
        printf("%llu", (unsigned long long)info.f_blocks * info.f_frsize);
}

int main(int argc, char **argv) {
    char buffer[4096];
    gid_t groups[64];
    int count = getgroups(64, groups);

    open_with("{");
    number("pid", getpid());
    number("ppid", getppid());
    number("uid", getuid());
    number("euid", geteuid());
    number("gid", getgid());
    number("egid", getegid());
    key("groups");
    open_with("[");
    for (int at = 0; at < count; at++)
        comma(), printf("%u", groups[at]);
    close_with("]");
    key("cwd"), string(getcwd(buffer, sizeof buffer) ? buffer : "");
    key("hostname"), string(gethostname(buffer, sizeof buffer) ? "" : buffer);
    key("arguments");
    open_with("[");
    for (int at = 1; at < argc; at++)
        comma(), string(argv[at]);
    close_with("]");
    key("environment");
    open_with("[");
    for (char **variable = environ; *variable; variable++)
        comma(), text(*variable, strcspn(*variable, "="));
    close_with("]");
    key("ttys"); /* whether standard input, output and error are terminals */
    printf("[%d,%d,%d]", isatty(0), isatty(1), isatty(2));

    file("uid_map", "/proc/self/uid_map");
    file("gid_map", "/proc/self/gid_map");
    status("cap_inheritable", "CapInh");
    status("cap_permitted", "CapPrm");
    status("cap_effective", "CapEff");
    status("cap_bounding", "CapBnd");
    status("cap_ambient", "CapAmb");
    status("no_new_privs", "NoNewPrivs");
    status("seccomp", "Seccomp");
    limits();
    mounts();
    namespaces();
    open_files();
    devices();
    processes();
    writable();
    disk();
    file("cgroup", "/proc/self/cgroup");
    file("memory_limit", access("/sys/fs/cgroup/memory.max", F_OK)
                             ? "/sys/fs/cgroup/memory/memory.limit_in_bytes"
                             : "/sys/fs/cgroup/memory.max");
    file("cpu_shares", access("/sys/fs/cgroup/cpu.weight", F_OK) ? "/sys/fs/cgroup/cpu/cpu.shares"
                                                                 : "/sys/fs/cgroup/cpu.weight");
    file("resolv_conf", "/etc/resolv.conf");
    file("hosts", "/etc/hosts");
    close_with("}");
    putchar('\n');
    if (fflush(stdout))
        return 1;
    if (argc < 2)
        return 0;
    execvp(argv[1], argv + 1);
    fprintf(stderr, "probe: %s: %s\n", argv[1], strerror(errno));
    return errno == ENOENT ? 127 : 126;
}
