"""Compiles a container of a task into the plan that the shim executes.

Pure: what must be known of the host comes in as data, nothing has happened when a plan exists.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Mapping
from typing import Literal

import msgspec

from fargatelite.errors import SandboxFailed
from fargatelite.sandbox.capabilities import container_mask
from fargatelite.sandbox.environment import compose_environment, exec_candidates
from fargatelite.sandbox.mounts import compile_id_maps
from fargatelite.sandbox.plan import Op, Plan, op
from fargatelite.sandbox.rootfs import (
    IN_ROOT,
    TTY_GROUP,
    Directories,
    compile_mounts,
    compile_root,
)
from fargatelite.sandbox.users import User, resolve_user

__all__ = [
    "ContainerSpec",
    "HostLimits",
    "Process",
    "capabilities_of",
    "compile_container",
    "compile_guest",
    "compile_guest_check",
    "compile_health_check",
    "compile_pause",
    "compile_sysctls",
    "complete_guest",
    "resolve_process",
]

# include/uapi/linux/sched.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000

NOFILE_DEFAULT = 65535  # contract 4.3, soft and hard
HEALTH_OUTPUT_BYTES = 4096

_RLIMITS = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "locks": 10,  # RLIMIT_LOCKS; the resource module does not name it
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": resource.RLIMIT_RTTIME,
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}
_UNLIMITED = 2**64 - 1


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What of the host a plan depends on.

    `nofile_hard` is our own hard limit: without CAP_SYS_RESOURCE it cannot be raised, so Fargate's
    default is cut to it (an explicit `ulimits` entry is not: that fails with its own message).
    """

    nofile_hard: int
    can_raise_limits: bool


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What a container runs: Docker's rules for entry point, command, user and directory."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    user: User
    working_directory: str


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one container's plan is made of.

    `number` is its process number in the shim, `id_base` the host's id of its root, `join_files`
    and `clone_into` come from its Cgroup, `seccomp` is a BPF program (empty: none), `sysctls` are
    files below /proc/sys with their values.
    """

    name: str
    number: int
    process: Process
    directories: Directories
    id_base: int
    hostname: str
    log_path: str
    log_max_bytes: int = 0
    """Of one log file, of which `log_max_files` are kept; 0: no bound."""
    log_max_files: int = 0
    log_hold_bytes: int = 0
    """Unread bytes of the log at which the container's writes wait for a driver; 0: never."""
    join_files: tuple[str, ...]
    clone_into: str | None
    seccomp: bytes
    capabilities: int
    trace_path: str | None = None
    rlimits: tuple[tuple[str, int, int], ...] = ()
    readonly_root: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()
    has_init: bool = False
    has_stdin: bool = False
    has_terminal: bool = False
    apparmor: str = ""
    """The profile of the container's processes; empty: none."""
    has_new_privileges: bool = True
    is_unmasked: bool = False
    network: Literal["task", "host", "none"] = "task"
    has_host_ipc: bool = False
    has_host_pids: bool = False
    pid_holder: int | None = None
    """Process whose pid namespace is the container's (pidMode task); None: one of its own."""


def resolve_process(
    *,
    entry_point: tuple[str, ...] | None,
    command: tuple[str, ...] | None,
    image_entry_point: tuple[str, ...] | None,
    image_command: tuple[str, ...] | None,
    user: str | None,
    image_user: str,
    working_directory: str | None,
    image_working_directory: str,
    passwd: bytes,
    group: bytes,
    image_environment: tuple[str, ...],
    injected: Mapping[str, str],
    environment: tuple[tuple[str, str], ...],
    hostname: str,
    environment_files: Mapping[str, str] = {},
) -> Process:
    """Definition over image: an `entryPoint` without `command` drops the image's command.

    Raises: SandboxFailed when there is nothing to run, for an unknown user, or for a working
        directory that is not absolute.
    Source: contract 2.2 (`entryPoint`, `command`, `user`, `workingDirectory`).
    """
    if entry_point:
        argv = (*entry_point, *(command or ()))
    else:
        argv = (*(image_entry_point or ()), *(command or image_command or ()))
    if not argv or not argv[0]:
        raise SandboxFailed(
            "no command specified: neither the definition nor the image has an entry point or "
            "command; set `command` in the container definition"
        )
    directory = working_directory or image_working_directory or "/"
    if not directory.startswith("/"):
        raise SandboxFailed(f"working directory {directory!r} is not absolute")
    resolved = resolve_user(user or image_user, passwd, group)
    return Process(
        argv=argv,
        environment=compose_environment(
            image=image_environment,
            injected=injected,
            files=environment_files,
            definition=environment,
            hostname=hostname,
            home=resolved.home,
        ),
        user=resolved,
        working_directory=directory,
    )


def capabilities_of(add: tuple[str, ...], drop: tuple[str, ...]) -> int:
    """The capability mask of a container definition's `linuxParameters.capabilities`."""
    return container_mask(add, drop)


def _rlimit(name: str, soft: int, hard: int) -> Op:
    def number(value: int) -> int:
        return _UNLIMITED if value < 0 else value

    return op("rlimit", _RLIMITS[name], number(soft), number(hard))


def describe_rlimit(item: Op) -> str:
    """An `rlimit` operation as its ulimit: `nofile 1024:4096`, -1 for unlimited."""
    number, soft, hard = (-1 if value == _UNLIMITED else value for value in item.values)
    name = next(name for name, known in _RLIMITS.items() if known == number)
    return f"{name} {soft!r}:{hard!r}"


def compile_rlimits(
    ulimits: tuple[tuple[str, int, int], ...], host: HostLimits
) -> tuple[tuple[str, int, int], ...]:
    """The limits of a container: its `ulimits`, and Fargate's nofile where it has none.

    Source: contract 4.3.
    """
    if any(name == "nofile" for name, _, _ in ulimits):
        return ulimits
    nofile = NOFILE_DEFAULT
    if not host.can_raise_limits:
        nofile = min(nofile, host.nofile_hard)
    return (("nofile", nofile, nofile), *ulimits)


def compile_sysctls(controls: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """`systemControls` as files: dots separate, and a slash stands for a dot (sysctl(8)).

    Source: contract 4.6.
    """
    swapped = str.maketrans("./", "/.")
    return tuple((f"/proc/sys/{name.translate(swapped)}", value) for name, value in controls)


def compile_pause(*, join_files: tuple[str, ...], clone_into: str | None, seccomp: bytes) -> Plan:
    """The plan of a task's pid namespace (pidMode task): a PID 1 that is no container, nobody, and
    may do nothing. Source: contract 4.5."""
    nobody = 65534
    return (
        op("namespaces", CLONE_NEWPID, clone_into or ""),
        *(op("join_cgroup", path) for path in join_files),
        op("keyring"),
        op("user_namespace"),
        op("seccomp", seccomp),
        op("bounding", 0),
        op("user", nobody, nobody, b""),
        op("capabilities", 0, 0, 0),
        op("pause"),
    )


def _privileges(spec: ContainerSpec, process: Process) -> list[Op]:
    """From real root in the host's user namespace to the container's user. The filter comes before
    the capabilities go, since installing it without no_new_privs needs CAP_SYS_ADMIN."""
    user = process.user
    groups = struct.pack(f"<{len(user.groups)}I", *user.groups)
    # Root keeps its set through execve by the bounding set; others have none (contract 4.2).
    # Inheritable and ambient are empty (CVE-2022-24769, CVE-2022-29162).
    permitted = spec.capabilities if user.uid == 0 else 0
    ops = [op("keyring"), op("user_namespace")]
    if spec.apparmor:
        # An init of ours executes nothing: it needs the profile now.
        ops.append(op("apparmor", spec.apparmor, int(spec.has_init)))
    if spec.seccomp:
        ops.append(op("seccomp", spec.seccomp))
    if not spec.has_new_privileges:
        ops.append(op("no_new_privileges"))
    ops += [
        op("bounding", spec.capabilities),
        op("user", user.uid, user.gid, groups),
        op("capabilities", permitted, 0, 0),
        op("umask", 0o022),
        op("workdir", process.working_directory),
    ]
    return ops


def _exec(process: Process) -> Op:
    return op(
        "exec",
        process.argv,
        tuple(f"{name}={value}" for name, value in process.environment.items()),
        exec_candidates(
            process.argv[0], process.environment.get("PATH", ""), process.working_directory
        ),
    )


def compile_container(spec: ContainerSpec) -> Plan:
    """The plan that starts a container in namespaces of its own."""
    base, process = spec.id_base, spec.process
    has_own_pids = spec.pid_holder is None and not spec.has_host_pids
    ops = [
        op(
            "namespaces",
            CLONE_NEWNS
            | CLONE_NEWUTS
            | (0 if spec.has_host_ipc else CLONE_NEWIPC)
            | (CLONE_NEWPID if has_own_pids else 0),
            spec.clone_into or "",
        ),
        *((op("join_pid", spec.pid_holder),) if spec.pid_holder is not None else ()),
        op("log", spec.log_path, spec.log_max_bytes, spec.log_max_files),
        *((op("log_hold", spec.log_hold_bytes),) if spec.log_hold_bytes else ()),
        *((op("stdin"),) if spec.has_stdin else ()),
        op("streams", base + process.user.uid, base + process.user.gid),
        *compile_id_maps(
            spec.directories.volumes, base + process.user.uid, base + process.user.gid
        ),
        *((op("trace", spec.trace_path),) if spec.trace_path is not None else ()),
        *(op("join_cgroup", path) for path in spec.join_files),
        op("unshare", CLONE_NEWCGROUP | (CLONE_NEWNET if spec.network == "none" else 0)),
        *((op("join_network"),) if spec.network == "task" else ()),
        *compile_root(spec.directories),
        *compile_mounts(spec.directories, base, spec.sysctls, is_unmasked=spec.is_unmasked),
        *_terminal(spec, base),
        # Docker makes a missing working directory, owned by root.
        op("mkdir", process.working_directory, 0o755, base, base, IN_ROOT),
        op("hostname", spec.hostname),
        *(_rlimit(*limit) for limit in spec.rlimits),
    ]
    if spec.readonly_root:
        ops.append(op("readonly", "/", 0))
    init = (op("init"),) if spec.has_init else ()
    return (*ops, *_privileges(spec, process), *init, _exec(process))


def _terminal(spec: ContainerSpec, base: int) -> tuple[Op, ...]:
    if not spec.has_terminal:
        return ()
    return (op("terminal", base + spec.process.user.uid, base + TTY_GROUP, 0, 0),)


def _check_arguments(command: tuple[str, ...]) -> tuple[str, ...]:
    match command:
        case ("CMD-SHELL", *words):
            return ("/bin/sh", "-c", " ".join(words))
        case ("CMD", *words):
            return tuple(words)
    return command


def compile_guest_check(template: Plan, number: int, command: tuple[str, ...]) -> Plan:
    """A health check made of `compile_guest`'s plan, by somebody who has no more than that: the
    environment is taken in the shim. `number` is the container's process."""
    place = next(index for index, item in enumerate(template) if item.name == "join_pid") + 1
    return (
        *template[:place],
        op("capture", HEALTH_OUTPUT_BYTES),
        *template[place:],
        op("exec_in", number, _check_arguments(command), ()),
    )


def compile_health_check(spec: ContainerSpec, command: tuple[str, ...]) -> Plan:
    """The plan that runs a health check inside a running container: its namespaces, groups, user,
    environment and filter (contract 3.7).

    `command` is the definition's: `CMD` and arguments, `CMD-SHELL` and a string, or neither.
    """
    argv = _check_arguments(command)
    process = msgspec.structs.replace(spec.process, argv=argv)
    return (
        *_join(spec, (op("capture", HEALTH_OUTPUT_BYTES),)),
        *_privileges(spec, process),
        _exec(process),
    )


def compile_guest(spec: ContainerSpec) -> Plan:
    """All of a guest's plan but its last operation: `exec` in a running container, with the same
    namespaces, groups, limits, user, filter. It holds no variable, so it may lie on a disk."""
    return (*_join(spec, ()), *_privileges(spec, spec.process))


def complete_guest(
    template: Plan,
    number: int,
    argv: tuple[str, ...],
    environment: tuple[str, ...] = (),
    *,
    terminal: tuple[int, int] | None = None,
) -> Plan:
    """A guest's whole plan. `number` is the container's process; its environment is taken in the
    shim, with `environment` (`NAME=value`) over it. `terminal`: one of so many rows and columns,
    which it has before the program starts (0: no size)."""
    ops = list(template)
    if terminal is not None:
        streams = next(item for item in ops if item.name == "streams")
        place = next(index for index, item in enumerate(ops) if item.name == "join_process") + 1
        # The owner of the streams is the container's user, as the host counts.
        ops.insert(place, op("terminal", *streams.values, *terminal))
    return (*ops, op("exec_in", number, argv, environment))


def _join(spec: ContainerSpec, more: tuple[Op, ...]) -> list[Op]:
    """Into a running container, still with our own privileges."""
    base, user = spec.id_base, spec.process.user
    return [
        op("namespaces", 0, spec.clone_into or ""),
        op("join_pid", spec.number),
        *more,
        op("streams", base + user.uid, base + user.gid),
        *(op("join_cgroup", path) for path in spec.join_files),
        *(_rlimit(*limit) for limit in spec.rlimits),
        op(
            "join_process",
            spec.number,
            CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWNET,
        ),
    ]
