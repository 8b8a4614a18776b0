"""Figures of live tasks for Prometheus, under cAdvisor's names: dashboards made for it work.

They come from the ledgers, which any process may read: nothing is sampled for a scrape, and a value
is at most a second old (memory details, I/O and network as old as the meter's slow pace).
Source: cAdvisor's docs/storage/prometheus.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fargatelite.errors import FargateliteError
from fargatelite.meter.latest import Latest, read_latest
from fargatelite.runtime.bills import bill_task
from fargatelite.runtime.record import TaskRecord, list_records
from fargatelite.runtime.usage import ledger_of
from fargatelite.settings import Settings

if TYPE_CHECKING:
    from fargatelite.meter.ledger import Sample

__all__ = ["TaskCollector", "expose", "make_registry"]

_LABELS = ["id", "name", "image", "task_id", "family", "cluster"]
_PERIOD_US = 100_000

_COUNTERS = {
    "container_cpu_usage_seconds": "CPU time consumed.",
    "container_cpu_user_seconds": "CPU time consumed in user mode.",
    "container_cpu_system_seconds": "CPU time consumed in kernel mode.",
    "container_cpu_cfs_periods": "Elapsed enforcement periods.",
    "container_cpu_cfs_throttled_periods": "Throttled enforcement periods.",
    "container_cpu_cfs_throttled_seconds": "Time throttled.",
    "container_fs_reads_bytes": "Bytes read.",
    "container_fs_writes_bytes": "Bytes written.",
    "container_network_receive_bytes": "Bytes received.",
    "container_network_transmit_bytes": "Bytes sent.",
    "container_network_receive_packets": "Packets received.",
    "container_network_transmit_packets": "Packets sent.",
    "container_pressure_cpu_waiting_seconds": "Some task waited for CPU.",
    "container_pressure_memory_waiting_seconds": "Some task waited for memory.",
    "container_pressure_memory_stalled_seconds": "All tasks waited for memory.",
    "container_pressure_io_waiting_seconds": "Some task waited for I/O.",
}
_GAUGES = {
    "container_memory_usage_bytes": "Memory in use, all of it.",
    "container_memory_max_usage_bytes": "Highest memory use.",
    "container_memory_working_set_bytes": "Memory without inactive file cache.",
    "container_memory_rss": "Anonymous memory.",
    "container_memory_cache": "Page cache.",
    "container_processes": "Processes and threads.",
    "container_spec_cpu_quota": "CPU quota of a period, in us; the task's.",
    "container_spec_cpu_period": "CPU period in us.",
    "container_spec_memory_limit_bytes": "Memory limit.",
    "container_last_seen": "When it was sampled last.",
    "container_start_time_seconds": "When it was started.",
    "fargatelite_task_cost": "What the task has cost on Fargate until now.",
    "fargatelite_task_idle_share": "The share of the cost that was not used.",
}


class TaskCollector(Collector):
    """Collects from all live tasks of a data root at each scrape."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterable[Metric]:
        """One family for each name that has a value."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        unreadable = GaugeMetricFamily(
            "fargatelite_unreadable_tasks", "Live tasks whose ledger or record cannot be read."
        )
        failed = 0
        for record in list_records(self._settings):
            try:
                latest = read_latest(ledger_of(self._settings, record.task_id))
                values = [*_task_values(record, latest), *_cost_values(self._settings, record)]
            except FileNotFoundError:
                continue  # not provisioned yet
            except (FargateliteError, OSError):
                failed += 1
                continue
            for name, labels, value in values:
                if name not in families:
                    kind = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
                    more = ["interface"] if "_network_" in name else []
                    more += ["currency"] if name == "fargatelite_task_cost" else []
                    text = _COUNTERS.get(name) or _GAUGES[name]
                    families[name] = kind(name, text, labels=[*_LABELS, *more])
                families[name].add_metric(labels, value)
        unreadable.add_metric([], failed)
        return [*families.values(), unreadable]


def _labels(record: TaskRecord, name: str | None) -> list[str]:
    images = {
        item.get("name"): str(item.get("image", ""))
        for item in record.definition.get("containerDefinitions", [])
    }
    path = f"/fargatelite/{record.task_id}" + (f"/{name}" if name else "")
    return [
        path,
        name or "",
        images.get(name, ""),
        record.task_id,
        str(record.definition.get("family", "")),
        record.facts.cluster,
    ]


_Value = tuple[str, list[str], float]


def _task_values(record: TaskRecord, latest: Latest) -> Iterator[_Value]:
    cpu_units = int(record.definition.get("cpu") or 0)
    memory_mib = int(record.definition.get("memory") or 0)
    containers = {item.name: item for item in record.state.containers}
    limits = {
        item.get("name"): int(item.get("memory") or 0)
        for item in record.definition.get("containerDefinitions", [])
    }
    for name, sample in latest.samples.items():
        labels = _labels(record, name)
        for metric, value in _sample_values(sample):
            if value is not None:
                yield metric, labels, value
        limit_mib = memory_mib if name is None else limits.get(name, 0)
        if limit_mib:
            yield "container_spec_memory_limit_bytes", labels, limit_mib * 2**20
        if name is None and cpu_units:
            yield "container_spec_cpu_quota", labels, cpu_units * _PERIOD_US / 1024
            yield "container_spec_cpu_period", labels, _PERIOD_US
        container = containers.get(name) if name is not None else None
        started_ns = container.started_at_ns if container else record.state.started_at_ns
        if started_ns:
            yield "container_start_time_seconds", labels, started_ns / 1e9
        yield from _slow_values(labels, sample, latest, name)
    if latest.network is not None:
        labels = [*_labels(record, None), "eth1"]
        network = latest.network
        yield "container_network_receive_bytes", labels, network.received_bytes
        yield "container_network_transmit_bytes", labels, network.sent_bytes
        yield "container_network_receive_packets", labels, network.received_packets
        yield "container_network_transmit_packets", labels, network.sent_packets


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


def _sample_values(sample: Sample) -> Iterator[tuple[str, float | None]]:
    yield "container_cpu_usage_seconds", _seconds(sample.cpu_usage_ns)
    yield "container_cpu_cfs_periods", sample.periods
    yield "container_cpu_cfs_throttled_periods", sample.throttled_periods
    yield "container_cpu_cfs_throttled_seconds", _seconds(sample.throttled_ns)
    yield "container_memory_usage_bytes", sample.memory_bytes
    yield "container_memory_max_usage_bytes", sample.memory_peak_bytes
    yield "container_processes", sample.pids
    yield "container_last_seen", sample.wall_ns / 1e9


def _slow_values(
    labels: list[str], sample: Sample, latest: Latest, name: str | None
) -> Iterator[_Value]:
    values: list[tuple[str, float | None]] = []
    slow = latest.slow.get(name)
    if slow is not None and slow.generation == sample.generation:
        values += [
            ("container_cpu_user_seconds", _seconds(slow.user_ns)),
            ("container_memory_working_set_bytes", slow.working_set_bytes),
            ("container_memory_rss", slow.rss_bytes),
            ("container_memory_cache", slow.cache_bytes),
            ("container_fs_reads_bytes", slow.read_bytes),
            ("container_fs_writes_bytes", slow.write_bytes),
        ]
        if slow.user_ns is not None and sample.cpu_usage_ns is not None:
            system_ns = max(0, sample.cpu_usage_ns - slow.user_ns)
            values.append(("container_cpu_system_seconds", system_ns / 1e9))
    stalls = latest.pressure.get(name)
    if stalls is not None and stalls.generation == sample.generation:
        for metric, stalled_us in (
            ("container_pressure_cpu_waiting_seconds", stalls.cpu_us),
            ("container_pressure_memory_waiting_seconds", stalls.memory_us),
            ("container_pressure_memory_stalled_seconds", stalls.memory_full_us),
            ("container_pressure_io_waiting_seconds", stalls.io_us),
        ):
            values.append((metric, None if stalled_us is None else stalled_us / 1e6))
    for metric, value in values:
        if value is not None:
            yield metric, labels, value


def _cost_values(settings: Settings, record: TaskRecord) -> Iterator[_Value]:
    bill = bill_task(settings, record).bill
    labels = _labels(record, None)
    yield "fargatelite_task_cost", [*labels, bill.currency], float(bill.cost)
    if bill.idle_share is not None:
        yield "fargatelite_task_idle_share", labels, float(bill.idle_share)


def make_registry(settings: Settings) -> CollectorRegistry:
    """A registry that has these figures and nothing of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TaskCollector(settings))
    return registry


def expose(settings: Settings) -> str:
    """Prometheus' text format."""
    return generate_latest(make_registry(settings)).decode()
