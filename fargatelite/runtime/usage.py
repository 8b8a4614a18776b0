"""The meter of this process, and what its ledgers say about a task: stats and bill."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fargatelite import names
from fargatelite.cgroups.cgroup import Cgroup
from fargatelite.cgroups.detect import detect_driver
from fargatelite.descriptors import move_high
from fargatelite.errors import CgroupFailed, StateCorrupt
from fargatelite.rundir import EXITS_NAME, RunDirectory
from fargatelite.runtime.record import TaskRecord
from fargatelite.settings import Settings
from fargatelite.shim import read_exit_records

if TYPE_CHECKING:
    from fargatelite.billing.bill import Bill
    from fargatelite.meter.sampler import Sampler

__all__ = [
    "add_ended_io",
    "compute_task_bill",
    "get_sampler",
    "ledger_of",
    "meter_network",
    "read_stats",
    "roll_up_ledger",
    "sampled_group",
]

ROLLED_AT_THE_END_BYTES = 8 * 2**20
"""About a second of work; a longer ledger is rolled up by `gc`."""

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_sampler: Sampler | None = None


def get_sampler(settings: Settings) -> Sampler:
    """The sampler of this process, started on first use; whose settings come first count.

    Raises: HostUnsupported when the extension is not built.
    """
    global _sampler
    from fargatelite.meter.sampler import Sampler

    with _lock:
        if _sampler is None:
            sampler = Sampler(
                slow_every_s=settings.meter_slow_every_s, sync_every_s=settings.meter_sync_every_s
            )
            sampler.start()
            _sampler = sampler
        return _sampler


def read_stats(record: TaskRecord) -> dict[str, dict[str, int]]:
    """CPU and memory of a live task's groups, read from the kernel now; container names, and "" for
    the task. Empty for a task without groups (not provisioned yet, or stopped)."""
    driver = detect_driver()
    found: dict[str, dict[str, int]] = {}
    for name in ("", *(container.name for container in record.state.containers)):
        path = names.cgroup_path(names.parse_task_id(record.task_id), name or None)
        try:
            found[name] = {
                "cpu_usage_ns": driver.cpu_usage_ns(path),
                "memory_bytes": driver.memory_usage_bytes(path),
                "memory_peak_bytes": driver.memory_peak_bytes(path) or 0,
            }
        except CgroupFailed:
            continue  # no such group: the container has not started, or the task is over
    return found


def meter_network(sampler: Sampler, task_id: names.TaskId, netns_fd: int) -> None:
    """Samples the traffic of a task's network namespace.

    An open /proc/net/dev stays that of the namespace in which it was opened.
    Raises: NetworkFailed; OSError.
    """
    from fargatelite.network.namespaces import run_in_namespace

    flags = os.O_RDONLY | os.O_CLOEXEC
    descriptor = move_high(
        run_in_namespace(netns_fd, lambda: os.open("/proc/thread-self/net/dev", flags))
    )
    sampler.add_network(task_id, descriptor)


def sampled_group(settings: Settings, task_id: str, group: Cgroup) -> Cgroup:
    """The task's own group as it is sampled: where cgroups do not count block I/O (v1), the device
    of the task's file system does, its writable layers and volumes together."""
    if group.io_file is not None or settings.storage_backend == "unlimited":
        return group
    try:
        device = os.stat(settings.layers / task_id).st_dev
    except FileNotFoundError:
        return group
    stat = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"
    own = os.path.ismount(settings.layers / task_id) and os.path.exists(stat)
    return msgspec.structs.replace(group, io_file=stat) if own else group


def add_ended_io(sampler: Sampler, run: RunDirectory, name: str, number: int) -> None:
    """Tells the meter what a container's main process had read and written when it ended; its exit
    record is there before the exit is told."""
    try:
        records = read_exit_records(run.path / EXITS_NAME)
    except StateCorrupt as error:
        logger.error("task %s: block I/O of %s: %s", run.task_id, name, error)
        return
    found = next((record for record in reversed(records) if record.number == number), None)
    if found is not None:
        sampler.add_ended_io(run.task_id, name, found.read_bytes, found.written_bytes)


def ledger_of(settings: Settings, task_id: str) -> Path:
    """The first segment of a task's ledger."""
    return settings.ledgers / f"{task_id}.ledger"


def roll_up_ledger(settings: Settings, task_id: str) -> None:
    """Rolls up the ledger of a task that has ended, unless it is so long that `gc` should.

    Raises: StateCorrupt; OSError.
    """
    from fargatelite.meter.ledger import list_segments
    from fargatelite.meter.rollup import roll_up

    path = ledger_of(settings, task_id)
    segments = list(list_segments(path))
    if segments and sum(item.stat().st_size for item in segments) <= ROLLED_AT_THE_END_BYTES:
        roll_up(path)


def compute_task_bill(settings: Settings, record: TaskRecord) -> Bill:
    """The bill of a task from its record and its ledger; up to now while it runs.

    Raises: see `bills.bill_task`.
    """
    from fargatelite.runtime.bills import bill_task

    return bill_task(settings, record).bill
