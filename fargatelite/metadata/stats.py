"""A container's use in the shape of Docker's StatsJSON with the agent's one extra. Pure.

`Reading` is what the kernel said at one moment; a response needs the newest and the one before.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fargatelite.metadata.shapes import format_time

__all__ = ["BlockCounter", "NetworkCounters", "Reading", "docker_stats"]

_NO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time: `preread` of a container's first reading."""

_BLKIO = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queue_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)


class NetworkCounters(Struct, frozen=True, kw_only=True):
    """Since the interface was made, as /proc/net/dev tells; of the whole task."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class BlockCounter(Struct, frozen=True, kw_only=True):
    """One device's and operation's figure; `series` is a member of `blkio_stats`."""

    series: str
    major: int
    minor: int
    op: str
    value: int


class Reading(Struct, frozen=True, kw_only=True):
    """One moment of one container. None: this kernel does not tell."""

    time_ns: int
    """Wall clock, since 1970."""
    cpu_total_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    system_cpu_ns: int
    """CPU time that the whole host spent, idle included: the base of Docker's percentage."""
    online_cpus: int
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory_usage_bytes: int
    memory_max_usage_bytes: int | None = None
    memory_fail_count: int | None = None
    memory_limit_bytes: int
    memory_stats: dict[str, int] = {}
    """The group's memory.stat, its keys as they are."""
    pids_current: int | None = None
    pids_limit: int | None = None
    block_counters: tuple[BlockCounter, ...] = ()
    networks: dict[str, NetworkCounters] = {}
    """By interface name, without lo."""


def _cpu(reading: Reading) -> dict[str, Any]:
    return {
        "cpu_usage": {
            "total_usage": reading.cpu_total_ns,
            "usage_in_kernelmode": reading.cpu_system_ns,
            "usage_in_usermode": reading.cpu_user_ns,
        },
        "system_cpu_usage": reading.system_cpu_ns,
        "online_cpus": reading.online_cpus,
        "throttling_data": {
            "periods": reading.periods,
            "throttled_periods": reading.throttled_periods,
            "throttled_time": reading.throttled_ns,
        },
    }


_NO_CPU: dict[str, Any] = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}


def _memory(reading: Reading) -> dict[str, Any]:
    shown: dict[str, Any] = {"usage": reading.memory_usage_bytes}
    if reading.memory_max_usage_bytes is not None:
        shown["max_usage"] = reading.memory_max_usage_bytes
    if reading.memory_fail_count is not None:
        shown["failcnt"] = reading.memory_fail_count
    return {**shown, "stats": reading.memory_stats, "limit": reading.memory_limit_bytes}


def _pids(reading: Reading) -> dict[str, int]:
    shown = {"current": reading.pids_current, "limit": reading.pids_limit}
    return {name: value for name, value in shown.items() if value is not None}


def _block(reading: Reading) -> dict[str, list[dict[str, Any]]]:
    return {
        series: [
            {"major": item.major, "minor": item.minor, "op": item.op, "value": item.value}
            for item in reading.block_counters
            if item.series == series
        ]
        for series in _BLKIO
    }


def _network(counters: NetworkCounters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in NetworkCounters.__struct_fields__}


def _network_rates(previous: Reading | None, current: Reading) -> dict[str, float] | None:
    """Bytes per second of all interfaces together, None without two readings apart in time.

    A counter that went back (an interface was replaced) counts as no traffic, not as negative.
    """
    if previous is None or current.time_ns <= previous.time_ns:
        return None
    seconds = (current.time_ns - previous.time_ns) / 1e9

    def rate(member: str) -> float:
        grown = 0
        for name, counters in current.networks.items():
            before = previous.networks.get(name)
            if before is not None:
                grown += max(0, getattr(counters, member) - getattr(before, member))
        return grown / seconds

    return {"rx_bytes_per_sec": rate("rx_bytes"), "tx_bytes_per_sec": rate("tx_bytes")}


def docker_stats(
    previous: Reading | None, current: Reading, *, name: str, runtime_id: str
) -> dict[str, Any]:
    """StatsJSON (contract 5.4); `network_rate_stats` is absent without a `previous` reading.

    `percpu_usage` is never there: cgroup v2 has no such figure, and Docker omits it.
    """
    shown: dict[str, Any] = {
        "read": format_time(current.time_ns),
        "preread": _NO_TIME if previous is None else format_time(previous.time_ns),
        "pids_stats": _pids(current),
        "blkio_stats": _block(current),
        "num_procs": 0,  # Docker: only on Windows
        "storage_stats": {},
        "cpu_stats": _cpu(current),
        "precpu_stats": _NO_CPU if previous is None else _cpu(previous),
        "memory_stats": _memory(current),
        "name": name,
        "id": runtime_id,
        "networks": {interface: _network(c) for interface, c in current.networks.items()},
    }
    rates = _network_rates(previous, current)
    return shown if rates is None else {**shown, "network_rate_stats": rates}
