"""Starts and stops the C thread that samples every task of this process once a second.

Files are opened here, so that an error has a name, and handed over as descriptors; the sweep
itself never runs Python (csrc/meter/meter.c). The meter may not import `cgroups` (its sibling), so
a group is whatever has the attributes of `SampledGroup`; `cgroups.cgroup.Cgroup` has.

A process that forks without exec shares the locks on the ledgers: use subprocess or multiprocessing
with "spawn" in programs that run tasks.

Measured: see benchmarks/meter.py.
"""

from __future__ import annotations

import errno
import importlib
import os
import threading
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, structs

from fargatelite.descriptors import move_high
from fargatelite.errors import (
    CgroupFailed,
    FargateliteError,
    HostUnsupported,
    StateCorrupt,
    TaskBusy,
)
from fargatelite.meter import ledger
from fargatelite.meter.segment import OpenedSegment, open_segment
from fargatelite.names import parse_task_id

__all__ = ["LatestSample", "MeterCounters", "SampledGroup", "Sampler"]

SLOW_EVERY_S = 20
"""memory.stat every second can cost a large fleet 5 % of its CPU."""
SYNC_EVERY_S = 30
"""What a power cut may take, and the time of a round of fdatasync(2)."""
SEGMENT_BYTES = 4 * 2**20
"""17 hours of a task with one container; what one damaged header can cost."""


class SampledGroup(Protocol):
    """The files of a group that are read; see `cgroups.cgroup.Cgroup`."""

    @property
    def version(self) -> int:
        """1 or 2."""

    @property
    def cpu_usage_file(self) -> str:
        """v1 cpuacct.usage or v2 cpu.stat."""

    @property
    def memory_usage_file(self) -> str:
        """A file with one number."""

    @property
    def memory_peak_file(self) -> str | None:
        """A file with one number, None where the kernel has none."""

    @property
    def throttled_file(self) -> str | None:
        """v1 cpu.stat; None on v2, whose `cpu_usage_file` has it."""

    @property
    def is_cpu_limited(self) -> bool:
        """Whether `throttled_file` is read every second."""

    @property
    def pids_file(self) -> str | None:
        """A file with one number."""

    @property
    def memory_stat_file(self) -> str | None:
        """memory.stat."""

    @property
    def cpu_user_file(self) -> str | None:
        """v1 cpuacct.usage_user; None on v2, whose `cpu_usage_file` has it."""

    @property
    def io_file(self) -> str | None:
        """v2 io.stat; with v1 the `stat` of the block device that stands for it."""

    @property
    def processes_file(self) -> str | None:
        """v1 cgroup.procs; a container's processes tell the I/O that v1 does not count."""

    @property
    def pressure_files(self) -> tuple[str, str, str] | None:
        """v2's cpu.pressure, memory.pressure and io.pressure."""


class MeterCounters(Struct, frozen=True, kw_only=True):
    """How the thread itself does."""

    ticks: int
    late_ticks: int
    """Begun 100 ms or more after their second."""
    dropped_records: int
    """Not stored since the ledger's file system is full."""
    worst_late_us: int
    last_sweep_ns: int
    thread_cpu_ns: int
    """CPU time of the sweeping thread since its start, 0 when it does not run."""
    synced: int
    """Segments written back to their disk."""
    sync_failures: int


class LatestSample(Struct, frozen=True, kw_only=True):
    """The newest values of one group; None for a value that could not be read."""

    wall_ns: int
    cpu_usage_ns: int | None
    memory_bytes: int | None
    memory_peak_bytes: int | None


class _Task:
    """What Python keeps of a task: which index has which name, and each index' newest group as its
    generation and inode."""

    def __init__(self, path: Path, names: list[str], groups: dict[int, tuple[int, int]]) -> None:
        self.path = path
        self.names = names
        self.groups = groups


class Sampler:
    """The meter of this process; one is enough. Every method may be called from any thread.

    Use as a context manager, or `start()` and `stop()`. Tasks may be added before the start; then
    only what is asked for is sampled. Slow kinds come every `slow_every_s` (0: never), segments are
    written back every `sync_every_s` (0: when the kernel does), and a segment that has reached
    `segment_bytes` is followed by another one.
    """

    def __init__(
        self,
        *,
        slow_every_s: int = SLOW_EVERY_S,
        sync_every_s: int = SYNC_EVERY_S,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        try:
            extension = importlib.import_module("fargatelite.meter._meter")
        except ImportError as error:
            raise HostUnsupported(
                "the meter extension is not built: run `python csrc/build.py` or reinstall"
            ) from error
        self._ffi: Any = extension.ffi
        self._lib: Any = extension.lib
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._slow_every_s = slow_every_s
        pointer = self._lib.meter_create(slow_every_s, sync_every_s, segment_bytes)
        if pointer == self._ffi.NULL:
            raise MemoryError("no memory for the meter")
        self._meter: Any = self._ffi.gc(pointer, self._lib.meter_destroy)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the thread; once it runs, no error. Raises: HostUnsupported."""
        with self._lock:
            result = self._lib.meter_start(self._meter)
        if result not in (0, -errno.EALREADY):
            raise HostUnsupported(f"cannot start the meter: {_name(result)}", errno=-result)

    def stop(self) -> None:
        """Ends and joins the thread. Tasks stay, for last samples; remove each of them."""
        with self._lock:
            result = self._lib.meter_stop(self._meter)
        if result < 0:
            raise FargateliteError(f"cannot stop the meter: {_name(result)}", errno=-result)

    def add(
        self,
        task_id: str,
        ledger_path: str | os.PathLike[str],
        header: ledger.LedgerHeader,
        group: SampledGroup | None,
    ) -> None:
        """Opens or continues the task's ledger and samples its own group from now on.

        `header` counts only when the ledger is new, its `containers` should be empty; an existing
        one must be of the same task. With `group` None only containers are sampled.
        Raises: TaskBusy when another process (or this one) writes the ledger; StateCorrupt when the
        file is of another task or damaged; CgroupFailed; OSError for the ledger's directory.
        """
        parse_task_id(task_id)  # C compares 32 bytes
        path = Path(os.path.abspath(ledger_path))  # the thread opens what follows
        header = structs.replace(
            header,
            slow_every_s=self._slow_every_s,
            cgroup_version=group.version if group is not None else 0,
        )
        opened = open_segment(path, header)
        self._hand_over(task_id, path, opened)
        with self._lock:
            self._tasks[task_id] = _Task(path, list(opened.containers), opened.groups)
        if group is not None:
            try:
                self._add_group(task_id, ledger.TASK_INDEX, group)
            except BaseException:
                self.remove(task_id)
                raise

    def add_container(self, task_id: str, name: str, group: SampledGroup) -> None:
        """Samples a container's group from now on; the first sample is taken here.

        A container that restarts is added again under its name after `remove_container`.
        Raises: TaskBusy when it is being sampled; CgroupFailed when a file cannot be opened;
        StateCorrupt for the 16th name.
        """
        with self._lock:
            task = self._task(task_id)
            if name not in task.names:
                index = len(task.names)
                if index >= ledger.MAX_CONTAINERS:
                    raise StateCorrupt(
                        f"ledger {task.path} holds {ledger.MAX_CONTAINERS} containers at most",
                        path=task.path,
                    )
                slot = ledger.encode_name(name)
                result = self._lib.meter_add_name(self._meter, task_id.encode(), index, slot)
                self._check(result, "name a container of", task_id)
                task.names.append(name)
            index = task.names.index(name)
        self._add_group(task_id, index, group)

    def add_network(self, task_id: str, descriptor: int) -> None:
        """Takes /proc/net/dev of the task's network namespace, opened; read at the slow pace.

        It keeps the namespace until `remove`. Raises: KeyError; TaskBusy for a second one.
        """
        try:
            with self._lock:
                self._task(task_id)
            result = self._lib.meter_add_network(self._meter, task_id.encode(), descriptor)
            if result == -errno.EEXIST:
                raise TaskBusy(f"the network of task {task_id} is being sampled already")
            self._check(result, "sample the network of", task_id)
        except BaseException:
            os.close(descriptor)
            raise

    def sample_now(self, task_id: str) -> None:
        """One extra sample of all groups of the task.

        Raises: KeyError for a task that was not added, OSError when the ledger has no room.
        """
        with self._lock:
            self._task(task_id)
        self._check(self._lib.meter_sample_task(self._meter, task_id.encode()), "sample", task_id)

    def add_ended_io(self, task_id: str, name: str, read_bytes: int, written_bytes: int) -> None:
        """What a container's main process and its reaped children had read and written when they
        ended: where the kernel does not count it by group (v1), it is added to that of those that
        live. A container that is not sampled is no error."""
        with self._lock:
            task = self._tasks.get(task_id)
            if task is None or name not in task.names:
                return
            index = task.names.index(name)
        result = self._lib.meter_add_io(
            self._meter, task_id.encode(), index, read_bytes, written_bytes
        )
        if result != -errno.ENOENT:
            self._check(result, "add to the block I/O of", task_id)

    def remove_container(self, task_id: str, name: str) -> None:
        """Takes the last sample of a container and lets its group go; call it before removal.

        A container that is not sampled (any more) is no error.
        """
        with self._lock:
            task = self._tasks.get(task_id)
            if task is None or name not in task.names:
                return
            index = task.names.index(name)
        result = self._lib.meter_end_group(self._meter, task_id.encode(), index)
        if result != -errno.ENOENT:
            self._check(result, "take the last sample of", task_id)

    def remove(self, task_id: str) -> None:
        """Takes the last sample of every group, cuts the ledger to its length and closes it.

        A task that is not there is no error. Raises: OSError when the ledger had no room for it.
        """
        with self._lock:
            task = self._tasks.pop(task_id, None)
        if task is None:
            return
        result = self._lib.meter_remove_task(self._meter, task_id.encode())
        self._check(result, "take the last samples of", task_id)

    def latest(self, task_id: str) -> dict[str | None, LatestSample]:
        """The newest sample of each container by name, and of the task's own group by None."""
        with self._lock:
            names = list(self._task(task_id).names)
        capacity = ledger.MAX_CONTAINERS + 1
        samples = self._ffi.new("struct sample[]", capacity)
        count = self._lib.meter_latest(self._meter, task_id.encode(), samples, capacity)
        self._check(min(count, 0), "read the samples of", task_id)
        found: dict[str | None, LatestSample] = {}
        for sample in samples[0:count]:
            flags = ledger.SampleFlag(sample.flags)
            name = None if sample.container == ledger.TASK_INDEX else names[sample.container]
            found[name] = LatestSample(
                wall_ns=sample.wall_ns,
                cpu_usage_ns=None if flags & ledger.SampleFlag.GAP_CPU else int(sample.cpu_ns),
                memory_bytes=None
                if flags & ledger.SampleFlag.GAP_MEMORY
                else sample.memory_kib * ledger.KIB,
                memory_peak_bytes=None
                if flags & ledger.SampleFlag.GAP_PEAK
                else sample.peak_kib * ledger.KIB,
            )
        return found

    def counters(self) -> MeterCounters:
        """Ticks and their punctuality since the start of the process."""
        raw = self._ffi.new("struct meter_counters *")
        self._lib.meter_read_counters(self._meter, raw)
        return MeterCounters(
            ticks=raw.ticks,
            late_ticks=raw.late_ticks,
            dropped_records=raw.dropped_records,
            worst_late_us=raw.worst_late_us,
            last_sweep_ns=raw.last_sweep_ns,
            thread_cpu_ns=raw.thread_cpu_ns,
            synced=raw.synced,
            sync_failures=raw.sync_failures,
        )

    def shift_clocks(
        self, *, wall_ns: int = 0, monotonic_ns: int = 0, boottime_ns: int = 0
    ) -> None:
        """For tests: what the clocks say to this meter is shifted by this much from now on."""
        self._lib.meter_shift_clocks(self._meter, wall_ns, monotonic_ns, boottime_ns)

    def tick(self) -> None:
        """For tests: a tick as the thread does it, for the second that has just begun."""
        self._lib.meter_tick(self._meter)

    def run_sweeps(self, count: int) -> float:
        """For benchmarks: `count` sweeps over all tasks back to back; ns per sweep."""
        return int(self._lib.meter_run_sweeps(self._meter, count)) / count

    def run_reads(self, count: int) -> float:
        """For benchmarks: only the system calls of such sweeps; ns per sweep. Raises: OSError."""
        spent_ns = int(self._lib.meter_run_reads(self._meter, count))
        if spent_ns < 0:
            raise OSError(-spent_ns, os.strerror(-spent_ns))
        return spent_ns / count

    def _task(self, task_id: str) -> _Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise KeyError(f"task {task_id} is not being sampled")
        return task

    def _hand_over(self, task_id: str, path: Path, opened: OpenedSegment) -> None:
        """Gives C the segment and its lock, or closes it."""
        result = self._lib.meter_add_task(
            self._meter, task_id.encode(), os.fsencode(path.with_suffix("")), opened.number,
            opened.descriptor, opened.next_seq,
        )  # fmt: skip
        if result < 0:
            os.close(opened.descriptor)
            if result == -errno.EEXIST:
                raise TaskBusy(f"task {task_id} is being sampled already", path=path)
            raise OSError(-result, os.strerror(-result), os.fspath(path))

    def _add_group(self, task_id: str, index: int, group: SampledGroup) -> None:
        files = self._ffi.new("struct cgroup_files *")
        opened: list[int] = []
        try:
            for member, file in (
                ("cpu_fd", group.cpu_usage_file),
                ("memory_fd", group.memory_usage_file),
                ("peak_fd", group.memory_peak_file),
                ("throttled_fd", group.throttled_file),
                ("pids_fd", group.pids_file),
                ("stat_fd", group.memory_stat_file),
                ("user_fd", group.cpu_user_file),
                ("io_fd", group.io_file),
                ("processes_fd", None if index == ledger.TASK_INDEX else group.processes_file),
            ):
                opened.append(-1 if file is None else _open_counter(file))
                setattr(files, member, opened[-1])
            for number, file in enumerate(group.pressure_files or (None, None, None)):
                opened.append(-1 if file is None else _open_counter(file))
                files.pressure_fds[number] = opened[-1]
            files.version = group.version
            files.limited = group.is_cpu_limited
            files.group_id = os.fstat(opened[0]).st_ino
            with self._lock:
                groups = self._task(task_id).groups
                generation, group_id = groups.get(index, (0, None))
                if group_id is not None and group_id != files.group_id:
                    generation = (generation + 1) % 256
                files.generation = generation
            result = self._lib.meter_add_group(self._meter, task_id.encode(), index, files)
            if result == -errno.EEXIST:
                raise TaskBusy(f"that container of task {task_id} is being sampled already")
            self._check(result, "sample", task_id)
            groups[index] = (generation, files.group_id)
        except BaseException:
            for descriptor in opened:
                if descriptor >= 0:
                    os.close(descriptor)
            raise

    def _check(self, result: int, action: str, task_id: str) -> None:
        if result == -errno.ENOENT:
            raise KeyError(f"cannot {action} task {task_id}: it is not being sampled")
        if result < 0:
            raise OSError(-result, f"cannot {action} task {task_id}: {os.strerror(-result)}")


def _open_counter(file: str) -> int:
    try:
        return move_high(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        if error.errno == errno.EMFILE:
            name += "; let this process open more files (ulimit -n): each group takes up to 11"
        raise CgroupFailed(f"cannot meter {file}: {name}", errno=error.errno, path=file) from error


def _name(result: int) -> str:
    return errno.errorcode.get(-result, "?")
