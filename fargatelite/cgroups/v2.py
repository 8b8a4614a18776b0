"""cgroup v2: one directory per group in the single hierarchy.

The kernel does in one file what v1 needs a dance for: cgroup.kill (Linux 5.14) kills a whole tree
without missing anyone. A group with controllers for its children holds no processes of its own, so
processes go into container groups, never into a task's group.

Where systemd manages the tree, `root` is a group that it has delegated: see `systemd`.

Source: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import math
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from fargatelite.cgroups import tree
from fargatelite.cgroups.cgroup import BlockIoLimits, Cgroup, CgroupLimits
from fargatelite.cgroups.devices import ALLOWED, attach_device_program
from fargatelite.errors import CgroupFailed, HostUnsupported
from fargatelite.names import CGROUP_ROOT

__all__ = ["CONTROLLERS", "KILL_DEADLINE_S", "V2Driver", "cpu_weight"]

CONTROLLERS = ("cpu", "memory", "pids")
BLOCK_IO = "io"
"""Used only for tasks that have `block_io` limits."""

KILL_DEADLINE_S = 10.0
"""As for v1: long enough to free a large host's memory."""

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def cpu_weight(shares: int) -> int:
    """The cpu.weight (1 to 10000) for v1 shares (2 to 262144), 1024 giving v2's default of 100.

    Source: runc 1.3.2 and crun 1.23, which left the older linear formula because it made 1024
    shares a weight of 39, less than a group without a setting.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


class V2Driver:
    """The driver for hosts whose cpu, memory and pids controllers are in the v2 hierarchy.

    `root` is the absolute directory below which `fargatelite/` is made; `claim` makes it exist
    where somebody else has to; `shelter` is what `Driver.shelter` does.
    """

    version = 2

    def __init__(
        self,
        root: str,
        claim: Callable[[], None] | None = None,
        shelter: Callable[[int], None] | None = None,
    ) -> None:
        self._root = root
        self._claim = claim
        self._shelter = shelter

    def create(self, path: str, limits: CgroupLimits) -> Cgroup:
        """See Driver.create.

        Raises: HostUnsupported when a controller is not available in this hierarchy, and without
        CONFIG_CGROUP_BPF when `limits.devices` is set.
        """
        tree.check_path(path)
        if self._claim is not None:
            self._claim()
        group = f"{self._root}/{path}"
        parents = path.split("/")[:-1]
        for _ in range(tree.CREATE_ATTEMPTS):
            tree.make_group(self._root, "/".join(parents))
            try:
                wanted = CONTROLLERS if limits.block_io is None else (*CONTROLLERS, BLOCK_IO)
                self._enable(self._root, wanted)
                for depth in range(1, len(parents) + 1):
                    self._enable("/".join([self._root, *parents[:depth]]), wanted)
            except CgroupFailed as error:
                # Only the project's root goes away beneath us; see tree.remove_tree.
                if error.errno in (errno.ENOENT, errno.ENODEV) and Path(self._root).exists():
                    continue
                raise
            tree.make_group(self._root, path)
            if Path(f"{group}/memory.max").exists():
                break
            # make_group made the parents anew without their controllers: once more.
        else:
            raise CgroupFailed(f"cannot give group {group} its controllers", path=group)
        self._limit(group, limits)
        if limits.devices:
            attach_device_program(group, (*ALLOWED, *limits.more_devices))
        return self._describe(path)

    def uncap_cpu(self, path: str) -> None:
        """See Driver.uncap_cpu."""
        tree.write_if_there(f"{self._root}/{tree.check_path(path)}/cpu.max", "max")

    def kill(self, path: str) -> None:
        """See Driver.kill; waits for `populated 0` in cgroup.events, which poll(2) reports."""
        group = f"{self._root}/{tree.check_path(path)}"
        if not Path(group).exists():
            return
        try:
            events = os.open(f"{group}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self.uncap_cpu(path)
            tree.write_text(f"{group}/cgroup.kill", "1")
            poller = select.poll()
            poller.register(events, select.POLLPRI | select.POLLERR)
            give_up_at = time.monotonic() + KILL_DEADLINE_S
            while "populated 1" in os.pread(events, 4096, 0).decode():
                left_s = give_up_at - time.monotonic()
                if left_s <= 0:
                    raise CgroupFailed(
                        f"cannot kill group {group}: processes {tree.read_pids(group)[:8]} do not "
                        f"end after {KILL_DEADLINE_S:.0f} s: see their /proc/PID/wchan",
                        errno=errno.ETIMEDOUT,
                        path=group,
                    )
                poller.poll(left_s * 1000)
        except OSError as error:
            if error.errno != errno.ENODEV:  # removed by another process: nobody was in it
                raise tree.failed("read", f"{group}/cgroup.events", error) from error
        finally:
            os.close(events)

    def remove(self, path: str) -> None:
        """See Driver.remove."""
        tree.remove_tree(self._root, tree.check_path(path))

    def oom_kills(self, path: str) -> int:
        """See Driver.oom_kills; memory.events counts hierarchically."""
        return self._keyed(path, "memory.events", "oom_kill")

    def cpu_usage_ns(self, path: str) -> int:
        """See Driver.cpu_usage_ns; in steps of a microsecond."""
        return self._keyed(path, "cpu.stat", "usage_usec") * 1000

    def memory_usage_bytes(self, path: str) -> int:
        """See Driver.memory_usage_bytes."""
        return tree.read_number(self._describe(path).memory_usage_file)

    def memory_peak_bytes(self, path: str) -> int | None:
        """See Driver.memory_peak_bytes; None before Linux 5.19."""
        peak_file = self._describe(path).memory_peak_file
        return None if peak_file is None else tree.read_number(peak_file)

    def pids(self, path: str) -> list[int]:
        """See Driver.pids."""
        return tree.read_pids(f"{self._root}/{tree.check_path(path)}")

    def shelter(self, pid: int) -> None:
        """See Driver."""
        if self._shelter is not None:
            self._shelter(pid)

    def list_tasks(self) -> list[str]:
        """See Driver.list_tasks."""
        return sorted(tree.list_children(f"{self._root}/{CGROUP_ROOT}"))

    def directory(self, controller: str, path: str) -> str | None:
        """See Driver."""
        return f"{self._root}/{path}"

    def _describe(self, path: str) -> Cgroup:
        group = f"{self._root}/{tree.check_path(path)}"
        peak, io = f"{group}/memory.peak", f"{group}/io.stat"
        pressure = (f"{group}/cpu.pressure", f"{group}/memory.pressure", f"{group}/io.pressure")
        return Cgroup(
            path=path,
            version=2,
            join_files=(f"{group}/cgroup.procs",),
            clone_into=group,
            cpu_usage_file=f"{group}/cpu.stat",
            memory_usage_file=f"{group}/memory.current",
            memory_peak_file=peak if Path(peak).exists() else None,
            pids_file=f"{group}/pids.current",
            memory_stat_file=f"{group}/memory.stat",
            io_file=io if Path(io).exists() else None,
            pressure_files=pressure if Path(pressure[0]).exists() else None,
        )

    def _enable(self, directory: str, wanted: tuple[str, ...]) -> None:
        """Gives the children of `directory` these controllers."""
        enabled = tree.read_text(f"{directory}/cgroup.subtree_control").split()
        missing = [name for name in wanted if name not in enabled]
        if not missing:
            return
        available = tree.read_text(f"{directory}/cgroup.controllers").split()
        absent = [name for name in missing if name not in available]
        if absent:
            raise HostUnsupported(
                f"{directory} has no {', '.join(absent)} controller: it is disabled, held by a "
                f"cgroup v1 hierarchy, or not delegated to this group",
                path=directory,
            )
        try:
            tree.write_text(
                f"{directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing)
            )
        except CgroupFailed as error:
            if error.errno == errno.EBUSY:
                error.add_note(
                    f"{directory} holds processes: a group of v2 has either processes or limited "
                    f"children; move them into a group of their own"
                )
            raise

    def _limit(self, group: str, limits: CgroupLimits) -> None:
        if limits.cpu_quota_us is not None:
            tree.write_verified(f"{group}/cpu.max", f"{limits.cpu_quota_us} {limits.cpu_period_us}")
        if limits.cpu_shares is not None:
            tree.write_verified(f"{group}/cpu.weight", str(cpu_weight(limits.cpu_shares)))
        if limits.memory_soft_bytes is not None:
            _write_bytes(f"{group}/memory.low", limits.memory_soft_bytes)
        if limits.memory_bytes is not None:
            _write_bytes(f"{group}/memory.max", limits.memory_bytes)
            swap = f"{group}/memory.swap.max"
            if Path(swap).exists():  # CONFIG_SWAP and not swapaccount=0
                tree.write_verified(swap, "0")
        if limits.oom_group:
            tree.write_verified(f"{group}/memory.oom.group", "1")
        if limits.pids_max is not None:
            tree.write_verified(f"{group}/pids.max", str(limits.pids_max))
        if limits.block_io is not None:
            _limit_block_io(f"{group}/io.max", limits.block_io)

    def _keyed(self, path: str, name: str, key: str) -> int:
        file = f"{self._root}/{tree.check_path(path)}/{name}"
        for line in tree.read_text(file).splitlines():
            if line.startswith(f"{key} "):
                return int(line.split()[1])
        raise CgroupFailed(f"{file} has no line {key!r}", path=file)


def _limit_block_io(file: str, limits: BlockIoLimits) -> None:
    if not Path(file).exists():
        raise HostUnsupported(
            f"block I/O cannot be bounded: there is no {file}: use a kernel with "
            f"CONFIG_BLK_DEV_THROTTLING, or take [block_io] out of the configuration",
            path=file,
        )
    bounds = {
        "rbps": limits.read_bytes_per_s,
        "wbps": limits.write_bytes_per_s,
        "riops": limits.read_operations_per_s,
        "wiops": limits.write_operations_per_s,
    }
    words = (f"{key}={'max' if value is None else value}" for key, value in bounds.items())
    tree.write_verified(file, " ".join([limits.disk, *words]))


def _write_bytes(file: str, value: int) -> None:
    tree.write_verified(file, str(value), str(value - value % _PAGE_BYTES))
