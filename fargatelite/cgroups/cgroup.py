"""Limits and groups as data, and what a driver of a cgroup hierarchy must be able to do.

Promises nothing itself: `v1` and `v2` are the two drivers, `detect` chooses. A task's group holds
the task's hard limits and has one child per container (contract 4.3).
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from fargatelite.cgroups.devices import DeviceRule

__all__ = ["BlockIoLimits", "Cgroup", "CgroupLimits", "Driver"]


class BlockIoLimits(Struct, frozen=True, kw_only=True):
    """What a task may read from and write to one disk in a second; None is no bound."""

    disk: str
    """Its device number, `major:minor`; see `disks.find_disk`."""
    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_operations_per_s: int | None = None
    write_operations_per_s: int | None = None


class CgroupLimits(Struct, frozen=True, kw_only=True):
    """What a group may use. None leaves the kernel's default, which is no limit.

    Memory never includes swap: a memory limit also forbids swapping (contract 4.3).
    """

    cpu_quota_us: int | None = None
    """CPU time per period; hard cap (CFS bandwidth)."""
    cpu_period_us: int = 100_000
    """100 ms is the ECS agent's period (contract 4.3); used only with a quota."""
    cpu_shares: int | None = None
    """Docker's relative weight, 2 to 262144, 1024 by default; on v2 converted to cpu.weight."""
    memory_bytes: int | None = None
    memory_soft_bytes: int | None = None
    """memoryReservation: what reclaim tries to leave to the group."""
    oom_group: bool = False
    """v2: whoever the OOM killer chooses here, all of the group die, so that no container goes on
    without a part of itself (memory.oom.group, Linux 4.19). v1 has nothing like it."""
    pids_max: int | None = None
    block_io: BlockIoLimits | None = None
    """Of a task's group only: v1 does not count what groups below use, so there all containers of
    the task join the task's group of blkio."""
    devices: bool = True
    """Whether the group gets Docker's default device list; False inherits from its parent."""
    more_devices: tuple[DeviceRule, ...] = ()
    """Beside that list: devices of the host that a definition names."""


class Cgroup(Struct, frozen=True, kw_only=True):
    """A group that exists: how to join it and which files tell its use."""

    path: str
    """Relative to a hierarchy's root: `fargatelite/<task>[/<container>]`."""
    version: int
    """1 or 2. Decides how the meter reads `cpu_usage_file`."""
    join_files: tuple[str, ...]
    """Absolute files; a single-threaded process that writes `0` to each, in this order, is in.

    On v1 the freezer comes first: whoever is in any hierarchy of the group can then be killed. And
    it is `tasks`, not `cgroup.procs`: since Linux 5.5 a thread that moves itself alone takes no
    global lock, while moving a process waits for an RCU grace period (12 ms of a launch, measured;
    0.25 ms this way).
    """
    clone_into: str | None
    """Directory to open for CLONE_INTO_CGROUP (clone3(2), Linux 5.7); None on v1."""
    cpu_usage_file: str
    """v1 cpuacct.usage (ns in text), v2 cpu.stat (`usage_usec` is the first line)."""
    memory_usage_file: str
    memory_peak_file: str | None
    """v1 memory.max_usage_in_bytes, v2 memory.peak (Linux 5.19), None where there is none."""
    throttled_file: str | None = None
    """v1 cpu.stat; None on v2, where `cpu_usage_file` has it."""
    is_cpu_limited: bool = True
    """False where no quota was set: nothing is throttled then, and the meter looks at
    `throttled_file`, the dearest of all, now and then only."""
    pids_file: str | None = None
    memory_stat_file: str | None = None
    cpu_user_file: str | None = None
    """v1 cpuacct.usage_user (Linux 4.5); None on v2, where `cpu_usage_file` has it."""
    io_file: str | None = None
    """v2 io.stat. None on v1, whose blkio leaves out what is written back later (nearly all), and
    since Linux 6.10 counts nothing without a throttling rule: there a task's file system tells."""
    processes_file: str | None = None
    """v1 cgroup.procs: what a container's processes say of their block I/O stands for the group's.
    None on v2."""
    pressure_files: tuple[str, str, str] | None = None
    """v2 cpu.pressure, memory.pressure, io.pressure; None without PSI (psi=0)."""


class Driver(Protocol):
    """One hierarchy version. Every method is thread-safe and takes paths as `Cgroup.path` has them.

    All raise CgroupFailed with the file and the errno when the kernel refuses.
    """

    version: int

    def create(self, path: str, limits: CgroupLimits) -> Cgroup:
        """Makes the group and its parents, sets `limits`, reads them back; may be repeated.

        Raises: CgroupFailed also when the kernel holds another value than the one written.
        """
        ...

    def uncap_cpu(self, path: str) -> None:
        """Takes the group's CPU cap away, for what is about to die: thousands of processes that
        share what one CPU may do need minutes to end (20 to 150 s, measured with a fork bomb of
        17,000), and the first of them waits for its turn like all others. No error where the group
        is gone."""
        ...

    def kill(self, path: str) -> None:
        """SIGKILLs every process in the group and below it and waits until none is left, without
        the group's CPU cap.

        Nobody is missed, not even a fork bomb. Returns at once when the group does not exist.
        Raises: CgroupFailed when processes remain after the deadline (10 s; a process that is stuck
        in the kernel).
        """
        ...

    def remove(self, path: str) -> None:
        """Removes the group and what is below it, then the project's root group if that is empty.

        Removing what is not there is no error. Exiting processes keep a group busy for a moment:
        retried for 5 s. Raises: CgroupFailed when processes are still inside after that.
        """
        ...

    def oom_kills(self, path: str) -> int:
        """Processes of the group (and on v2 of groups below it) that the OOM killer killed."""
        ...

    def cpu_usage_ns(self, path: str) -> int:
        """CPU time that the group and what is below it used since the group was made."""
        ...

    def memory_usage_bytes(self, path: str) -> int:
        """Memory charged to the group and what is below it now, page cache included."""
        ...

    def memory_peak_bytes(self, path: str) -> int | None:
        """Highest memory use since the group was made; None where the kernel does not tell."""
        ...

    def pids(self, path: str) -> list[int]:
        """Processes in the group and below it, without those in none of our pid namespace."""
        ...

    def directory(self, controller: str, path: str) -> str | None:
        """The group's directory in a controller's hierarchy; on v2 always the same one. None where
        this driver does not use the controller."""
        ...

    def shelter(self, pid: int) -> None:
        """Has a process of ours that tasks depend on outlive the systemd unit that started it: its
        threads move to a group beside the tasks'. Nothing happens where systemd does not own the
        tree. May take 10 ms. Raises: HostUnsupported, CgroupFailed.
        """
        ...

    def list_tasks(self) -> list[str]:
        """Names of the groups directly below the project's root in any hierarchy, sorted."""
        ...
