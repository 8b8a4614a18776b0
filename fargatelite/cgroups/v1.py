"""cgroup v1: one directory per task in each of six hierarchies.

A group is killed through the freezer: frozen, nobody can fork away or exit and have its pid used
again, so one list of pids is complete and true. Hosts with v1 controllers are real, this project's
build machines among them.

Measured on Linux 6.18, 2 cores: see benchmarks/cgroups.py for creation and the cost of joining.

Source: Documentation/admin-guide/cgroup-v1/{cpuacct,devices,freezer-subsystem,memory,pids}.rst.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from pathlib import Path

from msgspec import structs

from fargatelite.cgroups import tree
from fargatelite.cgroups.cgroup import BlockIoLimits, Cgroup, CgroupLimits
from fargatelite.cgroups.devices import ALLOWED, DeviceRule
from fargatelite.errors import CgroupFailed, HostUnsupported
from fargatelite.names import CGROUP_ROOT

__all__ = ["BLOCK_IO", "CONTROLLERS", "KILL_DEADLINE_S", "V1Driver"]

CONTROLLERS = ("freezer", "cpu", "cpuacct", "memory", "pids", "devices")
"""In the order of joining; the freezer first, see `Cgroup.join_files`."""

BLOCK_IO = "blkio"
"""Used only for tasks that have `block_io` limits."""

KILL_DEADLINE_S = 10.0
"""Long enough for a process that frees all of a large host's memory; then something is stuck."""

_AWAITED = 128
"""Processes of a group whose end is awaited by descriptor: of a fork bomb's there are more than a
process may have open, and whoever is left is found by the next look."""

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class V1Driver:
    """The driver for hosts whose controllers are v1 hierarchies.

    `roots` maps each of CONTROLLERS to the absolute directory that stands for the hierarchy's root;
    co-mounted controllers (cpu,cpuacct) have the same one. BLOCK_IO may be among them.
    """

    version = 1

    def __init__(self, roots: dict[str, str]) -> None:
        self._roots = {controller: roots[controller] for controller in CONTROLLERS}
        self._hierarchies = tuple(dict.fromkeys(self._roots.values()))
        self._block_io_root = roots.get(BLOCK_IO)
        if self._block_io_root is not None:
            self._roots[BLOCK_IO] = self._block_io_root

    def create(self, path: str, limits: CgroupLimits) -> Cgroup:
        """See Driver.create. Memory limits are whole pages (the kernel rounds down)."""
        tree.check_path(path)
        for root in self._hierarchies:
            self._create_group(root, path)
        self._limit_cpu(self._directory("cpu", path), limits)
        self._limit_memory(self._directory("memory", path), limits)
        if limits.pids_max is not None:
            tree.write_verified(f"{self._directory('pids', path)}/pids.max", str(limits.pids_max))
        if limits.devices:
            self._limit_devices(self._directory("devices", path), limits.more_devices)
        if limits.block_io is not None:
            self._limit_block_io(path, limits.block_io)
        group = self._describe(path)
        return structs.replace(group, is_cpu_limited=limits.cpu_quota_us is not None)

    def uncap_cpu(self, path: str) -> None:
        """See Driver.uncap_cpu."""
        tree.write_if_there(
            f"{self._directory('cpu', tree.check_path(path))}/cpu.cfs_quota_us", "-1"
        )

    def kill(self, path: str) -> None:
        """See Driver.kill: freeze, signal everyone, thaw, until nobody is left.

        A second round is needed only when freezing does not complete in time (a process in an
        uninterruptible system call) and something forked meanwhile.
        """
        group = self._directory("freezer", tree.check_path(path))
        state = f"{group}/freezer.state"
        self.uncap_cpu(path)
        give_up_at = time.monotonic() + KILL_DEADLINE_S
        while pids := tree.read_pids(group):
            if time.monotonic() > give_up_at:
                raise CgroupFailed(
                    f"cannot kill group {group}: processes {pids[:8]} do not end after "
                    f"{KILL_DEADLINE_S:.0f} s: see their /proc/PID/wchan",
                    errno=errno.ETIMEDOUT,
                    path=group,
                )
            try:
                tree.write_text(state, "FROZEN")
                self._await_frozen(state, min(give_up_at, time.monotonic() + 1.0))
                waiting = [
                    _signal(pid, keep=number < _AWAITED)
                    for number, pid in enumerate(tree.read_pids(group))
                ]
            finally:
                # Also after an error: a group left frozen would hang whoever waits for it.
                tree.write_text(state, "THAWED")
            for pidfd in waiting:
                _await_exit(pidfd, give_up_at)

    def remove(self, path: str) -> None:
        """See Driver.remove."""
        tree.check_path(path)
        if self._block_io_root is not None:
            tree.remove_tree(self._block_io_root, path)
        # The freezer last: while a process is in any hierarchy it can be found and killed there.
        for root in reversed(self._hierarchies):
            tree.remove_tree(root, path)

    def oom_kills(self, path: str) -> int:
        """See Driver.oom_kills. `oom_kill` counts per group, so children are added (Linux 4.13).

        A process that is killed because the task's limit is hit counts in its container's group.
        """
        total = 0
        for group in tree.groups_below(self._directory("memory", tree.check_path(path))):
            for line in tree.read_text(f"{group}/memory.oom_control").splitlines():
                if line.startswith("oom_kill "):
                    total += int(line.split()[1])
        return total

    def cpu_usage_ns(self, path: str) -> int:
        """See Driver.cpu_usage_ns."""
        return tree.read_number(self._describe(path).cpu_usage_file)

    def memory_usage_bytes(self, path: str) -> int:
        """See Driver.memory_usage_bytes."""
        return tree.read_number(self._describe(path).memory_usage_file)

    def memory_peak_bytes(self, path: str) -> int | None:
        """See Driver.memory_peak_bytes; v1 always tells."""
        return tree.read_number(f"{self._directory('memory', path)}/memory.max_usage_in_bytes")

    def pids(self, path: str) -> list[int]:
        """See Driver.pids; as the freezer sees them."""
        return tree.read_pids(self._directory("freezer", tree.check_path(path)))

    def shelter(self, pid: int) -> None:
        """See Driver; systemd's hierarchy of v1 is not ours to write."""

    def list_tasks(self) -> list[str]:
        """See Driver.list_tasks."""
        names: set[str] = set()
        for root in (*self._hierarchies, *filter(None, [self._block_io_root])):
            names.update(tree.list_children(f"{root}/{CGROUP_ROOT}"))
        return sorted(names)

    def directory(self, controller: str, path: str) -> str | None:
        """See Driver."""
        return self._directory(controller, path) if controller in self._roots else None

    def _directory(self, controller: str, path: str) -> str:
        return f"{self._roots[controller]}/{path}"

    def _describe(self, path: str) -> Cgroup:
        tree.check_path(path)
        memory = self._directory("memory", path)
        return Cgroup(
            path=path,
            version=1,
            join_files=(
                *(f"{root}/{path}/tasks" for root in self._hierarchies),
                *self._block_io_join_files(path),
            ),
            clone_into=None,
            cpu_usage_file=f"{self._directory('cpuacct', path)}/cpuacct.usage",
            memory_usage_file=f"{memory}/memory.usage_in_bytes",
            memory_peak_file=f"{memory}/memory.max_usage_in_bytes",
            throttled_file=f"{self._directory('cpu', path)}/cpu.stat",
            pids_file=f"{self._directory('pids', path)}/pids.current",
            memory_stat_file=f"{memory}/memory.stat",
            cpu_user_file=f"{self._directory('cpuacct', path)}/cpuacct.usage_user",
            processes_file=f"{self._directory('freezer', path)}/cgroup.procs",
        )

    def _create_group(self, root: str, path: str) -> None:
        tree.make_group(root, path)
        if root == self._roots["memory"]:
            # Before Linux 5.11 the root may be non-hierarchical, and a task's limit would not hold
            # for its containers. Only a group without children may change it.
            task = "/".join(path.split("/")[:2])
            hierarchy = f"{root}/{task}/memory.use_hierarchy"
            if Path(hierarchy).exists() and tree.read_text(hierarchy).strip() == "0":
                tree.write_verified(hierarchy, "1")

    def _limit_cpu(self, group: str, limits: CgroupLimits) -> None:
        if limits.cpu_quota_us is not None:
            tree.write_verified(f"{group}/cpu.cfs_period_us", str(limits.cpu_period_us))
            tree.write_verified(f"{group}/cpu.cfs_quota_us", str(limits.cpu_quota_us))
        if limits.cpu_shares is not None:
            # The kernel clamps silently: MIN_SHARES and MAX_SHARES of kernel/sched/sched.h.
            kept = min(max(limits.cpu_shares, 2), 262144)
            tree.write_verified(f"{group}/cpu.shares", str(limits.cpu_shares), str(kept))

    def _limit_memory(self, group: str, limits: CgroupLimits) -> None:
        if limits.memory_soft_bytes is not None:
            _write_bytes(f"{group}/memory.soft_limit_in_bytes", limits.memory_soft_bytes)
        if limits.memory_bytes is None:
            return
        tree.write_verified(f"{group}/memory.swappiness", "0")
        memory, with_swap = f"{group}/memory.limit_in_bytes", f"{group}/memory.memsw.limit_in_bytes"
        # memsw is missing without CONFIG_MEMCG_SWAP or with swapaccount=0; swappiness 0 remains.
        files = [memory, with_swap] if Path(with_swap).exists() else [memory]
        # The kernel keeps limit <= memsw limit at every moment: raise memsw first.
        if len(files) == 2 and tree.read_number(with_swap) < limits.memory_bytes:
            files.reverse()
        for file in files:
            _write_bytes(file, limits.memory_bytes)

    def _block_io_join_files(self, path: str) -> tuple[str, ...]:
        """Of the task whose group `path` is or is below, if its block I/O is bounded."""
        task = "/".join(path.split("/")[:2])
        file = f"{self._block_io_root}/{task}/tasks"
        return (file,) if self._block_io_root is not None and Path(file).exists() else ()

    def _limit_block_io(self, path: str, limits: BlockIoLimits) -> None:
        if self._block_io_root is None:
            raise HostUnsupported(
                f"block I/O cannot be bounded: the cgroup v1 controller {BLOCK_IO} is not mounted "
                f"or not writable: mount it, or take [block_io] out of the configuration"
            )
        group = f"{self._block_io_root}/{path}"
        tree.make_group(self._block_io_root, path)
        for name, value in (
            ("read_bps", limits.read_bytes_per_s),
            ("write_bps", limits.write_bytes_per_s),
            ("read_iops", limits.read_operations_per_s),
            ("write_iops", limits.write_operations_per_s),
        ):
            file = f"{group}/blkio.throttle.{name}_device"
            if not Path(file).exists():
                raise HostUnsupported(
                    f"block I/O cannot be bounded: there is no {file}: use a kernel with "
                    f"CONFIG_BLK_DEV_THROTTLING, or take [block_io] out of the configuration",
                    path=file,
                )
            if value is not None:
                tree.write_verified(file, f"{limits.disk} {value}")

    def _limit_devices(self, group: str, more: tuple[DeviceRule, ...]) -> None:
        wanted = {rule.v1_text() for rule in (*ALLOWED, *more)}
        listing = f"{group}/devices.list"
        if set(tree.read_text(listing).split("\n")) - {""} == wanted:
            return  # "deny a" is refused (EINVAL) once the group has children
        tree.write_text(f"{group}/devices.deny", "a")
        for text in sorted(wanted):
            tree.write_text(f"{group}/devices.allow", text)
        found = set(tree.read_text(listing).split("\n")) - {""}
        if found != wanted:
            raise CgroupFailed(
                f"{listing} holds {sorted(found)} instead of {sorted(wanted)}: the parent group "
                f"denies a device of Docker's default list",
                path=listing,
            )

    def _await_frozen(self, state: str, give_up_at: float) -> None:
        """Waits until the kernel reports FROZEN; reading the file makes it look again."""
        while tree.read_text(state).strip() != "FROZEN" and time.monotonic() < give_up_at:
            time.sleep(0.0002)


def _write_bytes(file: str, value: int) -> None:
    tree.write_verified(file, str(value), str(value - value % _PAGE_BYTES))


def _signal(pid: int, *, keep: bool) -> int:
    """Sends SIGKILL to a frozen process; a pidfd that becomes readable at its exit, -1 if gone or
    not to be kept."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # a zombie whose parent has not waited: pidfd_send_signal says so once it is reaped
    except BaseException:
        os.close(pidfd)
        raise
    if not keep:
        os.close(pidfd)
        return -1
    return pidfd


def _await_exit(pidfd: int, give_up_at: float) -> None:
    """Waits for the exit and closes `pidfd`; returns at the deadline, the caller looks again."""
    if pidfd < 0:
        return
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(max(0.0, give_up_at - time.monotonic()) * 1000)
    finally:
        os.close(pidfd)
