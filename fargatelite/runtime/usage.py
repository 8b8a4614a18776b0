"""The meter of this process, and what its ledgers say about a task: stats and bill."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from fargatelite import names
from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import CgroupFailed
from fargatelite.meter.ledger import read_ledger, summarise
from fargatelite.runtime.record import TaskRecord
from fargatelite.settings import Settings
from fargatelite.taskdef.load import load_recorded

if TYPE_CHECKING:
    from fargatelite.billing.bill import Bill
    from fargatelite.meter.sampler import Sampler

__all__ = ["compute_task_bill", "get_sampler", "read_stats"]

_lock = threading.Lock()
_sampler: Sampler | None = None


def get_sampler() -> Sampler:
    """The sampler of this process, started on first use.

    Raises: HostUnsupported when the extension is not built.
    """
    global _sampler
    from fargatelite.meter.sampler import Sampler

    with _lock:
        if _sampler is None:
            sampler = Sampler()
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


def compute_task_bill(settings: Settings, record: TaskRecord) -> Bill:
    """The bill of a task from its record and its ledger; up to now while it runs.

    A task without a ledger (it never came so far) has a charge and unknown usage.
    Raises: ConfigurationInvalid for an unknown price; StateCorrupt for a damaged ledger header.
    """
    from fargatelite.billing.bill import BillableLife, compute_bill
    from fargatelite.billing.prices import load_price_book

    definition = load_recorded(record.definition)
    try:
        usage = summarise(read_ledger(settings.ledgers / f"{record.task_id}.ledger"))
    except FileNotFoundError:
        usage = None
    state = record.state
    return compute_bill(
        BillableLife(
            task_id=record.task_id,
            family=definition.family,
            cpu_units=definition.cpu_units,
            memory_mib=definition.memory_mib,
            ephemeral_storage_gib=definition.ephemeral_storage_gib,
            cpu_architecture=definition.cpu_architecture,
            pull_started_at_ns=state.pull_started_at_ns,
            stopped_at_ns=state.stopped_at_ns,
            now_ns=time.time_ns(),
            containers=tuple(container.name for container in state.containers),
        ),
        usage,
        load_price_book(record.facts.region),
    )
