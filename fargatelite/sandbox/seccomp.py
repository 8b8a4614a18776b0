"""The system-call filter: Fargate's default, as a BPF program.

Fargate does not publish its profile; Docker's default is the stand-in (contract 4.2), minus the
socket families that the page-cache attacks of 2026 used (design, "Sandbox"). A call that is named
in no list answers ENOSYS, so that programs fall back as on an older kernel; a call that is known
and refused answers EPERM.

A profile of the user's (seccomp_profile.py) takes its place, all of it.

Compiling takes libseccomp some 20 ms, so a program is kept in the data root under a key of all
that it depends on; libseccomp is imported only on a miss.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import ConfigurationInvalid, HostUnsupported
from fargatelite.sandbox.capabilities import CAPABILITIES
from fargatelite.sandbox.seccomp_profile import MACHINES, Action, SeccompProfile, select_rules

__all__ = ["compile_profile", "load_program"]

_PROFILE_VERSION = 1  # part of the cache key: raise it with every change of the lists below

ALLOWED = """
_llseek _newselect accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset
chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr
fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue
futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu
getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr llistxattr
lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt
mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64
recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send
sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address
setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaction
sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend socketpair splice
stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
""".split()

# Known, and refused with EPERM unless the container has the capability.
NEEDS_CAPABILITY = {
    "SYS_CHROOT": "chroot",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_ADMIN": (
        "bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr "
        "move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname "
        "setns umount umount2 unshare"
    ),
    "DAC_READ_SEARCH": "open_by_handle_at",
    "SYS_BOOT": "reboot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_PACCT": "acct",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYSLOG": "syslog",
}

# Known, and refused with EPERM always. name_to_handle_at: handles of nsfs (CVE-2026-43391, -43403);
# keyctl and kin: keyrings are not namespaced; userfaultfd and io_uring: exploit building blocks.
REFUSED = """
add_key bdflush io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl
listmount migrate_pages move_pages name_to_handle_at nfsservctl nice oldfstat oldlstat oldolduname
oldstat olduname pivot_root request_key sgetmask ssetmask statmount swapoff swapon sysfs uselib
userfaultfd ustat vm86 vm86old
""".split()

# socket(2) families that are allowed: all but AF_KEY 15, AF_RXRPC 33, AF_ALG 38, AF_VSOCK 40
# (CVE-2026-31431, -43284, -43500 and kin). An allow-list of exact values, so that upper bits of the
# 64-bit register, which the kernel ignores, cannot smuggle one in.
_FAMILIES = 46  # AF_MAX of Linux 6.x
REFUSED_FAMILIES = (15, 33, 38, 40)
_AF_NETLINK, _NETLINK_XFRM = 16, 6

_CLONE_NAMESPACES = 0x7E020000  # CLONE_NEW*: cgroup, uts, ipc, user, pid, net and mount namespaces
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_MAGIC = b"FLSC"

_UNKNOWN = -1  # __NR_SCMP_ERROR; the names of other architectures have lower numbers
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS


# Before libseccomp's program, which turns a rule for i386 socket(2) into one for socketcall(2) that
# has lost its arguments: socketcall does not exist. (Libraries since glibc 2.22 call socket.)
_AUDIT_ARCH_I386, _I386_SOCKETCALL = 0x40000003, 102
_SECCOMP_RET_ERRNO = 0x00050000
_PROLOGUE = b"".join(
    struct.pack("<HBBI", code, jump_true, jump_false, value)
    for code, jump_true, jump_false, value in (
        (0x20, 0, 0, 4),  # A = seccomp_data.arch
        (0x15, 0, 3, _AUDIT_ARCH_I386),  # another architecture: skip what follows
        (0x20, 0, 0, 0),  # A = seccomp_data.nr
        (0x15, 0, 1, _I386_SOCKETCALL),
        (0x06, 0, 0, _SECCOMP_RET_ERRNO | errno.ENOSYS),
    )
)


def _add_conditional(library: Any, profile: Any, is_native: bool) -> None:
    allow, refuse = library.ALLOW, library.ERRNO(errno.EPERM)
    equal, masked = library.EQ, library.MASKED_EQ
    for persona in _PERSONALITIES:
        profile.add_rule(allow, "personality", library.Arg(0, equal, persona))
    for family in range(_FAMILIES):
        if family in REFUSED_FAMILIES:
            if is_native:  # i386: ENOSYS by default, see _PROLOGUE
                profile.add_rule(refuse, "socket", library.Arg(0, equal, family))
        elif family == _AF_NETLINK:
            for protocol in range(32):  # MAX_LINKS of the kernel
                family_and_protocol = (
                    library.Arg(0, equal, family),
                    library.Arg(2, equal, protocol),
                )
                if protocol != _NETLINK_XFRM:
                    profile.add_rule(allow, "socket", *family_and_protocol)
                elif is_native:
                    profile.add_rule(refuse, "socket", *family_and_protocol)
        else:
            profile.add_rule(allow, "socket", library.Arg(0, equal, family))
    profile.add_rule(allow, "clone", library.Arg(0, masked, _CLONE_NAMESPACES, 0))
    for bit in range(17, 31):
        if _CLONE_NAMESPACES >> bit & 1:
            profile.add_rule(refuse, "clone", library.Arg(0, masked, 1 << bit, 1 << bit))
    # clone3's flags are in memory, out of a filter's sight, and socketcall's arguments too: ENOSYS
    # (the default) makes libraries use clone and socket.


def compile_profile(capabilities: int, own: SeccompProfile | None = None) -> bytes:
    """The BPF program for a container with this capability mask, as an array of sock_filter: of the
    built-in lists, or of the user's `own` profile.

    Raises: HostUnsupported when libseccomp is not installed; ConfigurationInvalid for a profile
        that it does not take.
    """
    try:
        import pyseccomp as library
    except (ImportError, OSError, RuntimeError) as error:
        raise HostUnsupported(
            f"cannot load libseccomp ({error}); install it (Debian: apt-get install libseccomp2)"
        ) from error
    if own is not None:
        return _compile_own(library, capabilities, own)
    profile = _build(library, capabilities, library.Arch.NATIVE)
    prologue = b""
    if platform.machine() == "x86_64":
        profile.merge(_build(library, capabilities, library.Arch.X86))
        prologue = _PROLOGUE
    return prologue + _export(profile)


def _export(profile: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        profile.export_bpf(file)
        file.seek(0)
        return file.read()


def _set_attributes(library: Any, profile: Any) -> None:
    # x32 and any other entry: as if the kernel did not have it.
    profile.set_attr(library.Attr.ACT_BADARCH, library.ERRNO(errno.ENOSYS))
    # The set-up code decides about no_new_privs itself (off by default on Fargate, contract 4.2).
    profile.set_attr(library.Attr.CTL_NNP, 0)
    if hasattr(library.Attr, "CTL_OPTIMIZE"):
        profile.set_attr(library.Attr.CTL_OPTIMIZE, 2)  # a binary tree instead of a list


def _compile_own(library: Any, capabilities: int, own: SeccompProfile) -> bytes:
    machine = platform.machine()
    if machine not in MACHINES:
        raise HostUnsupported(f"profiles of system calls are known for {', '.join(MACHINES)} only")

    def action_of(action: Action) -> int:
        known = getattr(library, action.name)
        return int(known(action.number) if action.name in ("ERRNO", "TRACE") else known)

    default = action_of(own.default)
    profile = library.SyscallFilter(default)
    _set_attributes(library, profile)
    entries = own.entries(machine)
    for name in entries[1:]:
        profile.add_arch(getattr(library.Arch, name))
    has_socketcall = False
    for number, rule in select_rules(own, capabilities, machine, platform.release()):
        action = action_of(rule.action)
        if action == default:  # libseccomp refuses what says nothing
            continue
        arguments = tuple(
            library.Arg(item.index, getattr(library, item.operator), item.value, item.value_two)
            for item in rule.comparisons
        )
        # Several comparisons of one argument are alternatives (runc, crun): libseccomp takes none.
        indexes = [item.index for item in rule.comparisons]
        is_split = len(set(indexes)) < len(indexes)
        for name in rule.names:
            if "\0" in name or library.resolve_syscall(library.Arch.NATIVE, name) == _UNKNOWN:
                continue
            has_socketcall |= name == "socketcall"
            try:
                for some in [(item,) for item in arguments] if is_split else [arguments]:
                    profile.add_rule(action, name, *some)
            except OSError as error:
                raise ConfigurationInvalid(
                    f"seccomp profile: syscalls[{number}]: libseccomp does not take the rule for "
                    f"{name}: {error.strerror}"
                ) from error
    # libseccomp makes an unasked rule for socketcall(2) of one for socket(2): see _PROLOGUE.
    needs_prologue = "X86" in entries and not has_socketcall
    program = (_PROLOGUE if needs_prologue else b"") + _export(profile)
    if len(program) // 8 > _MAX_INSTRUCTIONS:
        raise ConfigurationInvalid(
            f"seccomp profile: {len(program) // 8} instructions; the kernel takes "
            f"{_MAX_INSTRUCTIONS}: leave rules out"
        )
    return program


def _build(library: Any, capabilities: int, architecture: Any) -> Any:
    is_native = architecture == library.Arch.NATIVE
    refuse = library.ERRNO(errno.EPERM)
    profile = library.SyscallFilter(library.ERRNO(errno.ENOSYS))
    if not is_native:
        profile.add_arch(architecture)
        profile.remove_arch(library.Arch.NATIVE)
    _set_attributes(library, profile)

    def known(name: str) -> bool:
        return bool(library.resolve_syscall(architecture, name) >= 0)

    for name in filter(known, ALLOWED):
        profile.add_rule(library.ALLOW, name)
    for capability, names in NEEDS_CAPABILITY.items():
        allowed = capabilities >> CAPABILITIES[capability] & 1
        for name in filter(known, names.split()):
            profile.add_rule(library.ALLOW if allowed else refuse, name)
    for name in filter(known, REFUSED):
        profile.add_rule(refuse, name)
    _add_conditional(library, profile, is_native)
    return profile


def _cache_key(capabilities: int, own: SeccompProfile | None) -> str:
    parts: tuple[object, ...] = (
        _PROFILE_VERSION, platform.machine(), platform.release(), f"{capabilities:x}",
    )  # fmt: skip
    if own is not None:
        parts = (*parts, hashlib.sha256(msgspec.json.encode(own)).hexdigest())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def load_program(cache: Path, capabilities: int, own: SeccompProfile | None = None) -> bytes:
    """The program for this capability mask, of the built-in lists or of the user's `own` profile,
    from the cache directory or compiled into it.

    A cached file that is torn or of another version is compiled anew and replaced.
    Raises: HostUnsupported when libseccomp is needed and not installed; ConfigurationInvalid for a
        profile that it does not take.
    """
    path = cache / f"seccomp-{_cache_key(capabilities, own)}"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if len(data) > 8 and data[:4] == _MAGIC:
        program = data[8:]
        if struct.unpack_from("<I", data, 4)[0] == zlib.crc32(program):
            return program
    program = compile_profile(capabilities, own)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    temporary.write_bytes(_MAGIC + struct.pack("<I", zlib.crc32(program)) + program)
    temporary.replace(path)
    return program
