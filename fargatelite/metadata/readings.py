"""Reads what the kernel says about a container now: its groups' files and its task's interfaces.

Paths come as data, so it knows no hierarchy; v1 and v2 differ in which files there are. A file that
is not there (a controller that is off, a kernel that does not tell) leaves its member out.
Source: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst, proc(5).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from msgspec import Struct

from fargatelite.metadata.stats import BlockCounter, NetworkCounters, Reading
from fargatelite.network.namespaces import run_in_namespace

__all__ = ["GroupPaths", "parse_block_v2", "parse_networks", "read_networks", "read_reading"]

NO_MEMORY_LIMIT_BYTES = 9_223_372_036_854_771_712
"""What cgroup v1 says without a limit, and Fargate's samples show (contract 5.4)."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class GroupPaths(Struct, frozen=True, kw_only=True):
    """A container's group as absolute directories; on v2 all are the same, None on v1: not there.

    `version` decides the names of files in them.
    """

    version: int
    cpu: str
    """v1: the cpu controller's (throttling)."""
    cpuacct: str
    memory: str
    pids: str | None = None
    blkio: str | None = None


def read_reading(paths: GroupPaths, networks: dict[str, NetworkCounters]) -> Reading:
    """The group's figures now.

    Raises: OSError when the CPU or memory group is gone; ValueError when a file has another shape.
    """
    system_cpu_ns, online_cpus = _host_cpu()
    common = _read_v1(paths) if paths.version == 1 else _read_v2(paths)
    return Reading(
        time_ns=time.time_ns(),
        system_cpu_ns=system_cpu_ns,
        online_cpus=online_cpus,
        networks=networks,
        **common,  # type: ignore[arg-type]  # msgspec checks no keyword's type
    )


def read_networks(netns_fd: int) -> dict[str, NetworkCounters]:
    """The counters of a network namespace's interfaces, without lo."""
    return run_in_namespace(
        netns_fd, lambda: parse_networks(Path("/proc/thread-self/net/dev").read_text())
    )


def parse_networks(text: str) -> dict[str, NetworkCounters]:
    """Of /proc/net/dev. Raises: ValueError when it has another shape."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = [int(item) for item in rest.split()]
        if len(numbers) < 16:
            raise ValueError(f"/proc/net/dev: a line of {len(numbers)} numbers, not 16")
        if name.strip() == "lo":
            continue
        found[name.strip()] = NetworkCounters(
            rx_bytes=numbers[0],
            rx_packets=numbers[1],
            rx_errors=numbers[2],
            rx_dropped=numbers[3],
            tx_bytes=numbers[8],
            tx_packets=numbers[9],
            tx_errors=numbers[10],
            tx_dropped=numbers[11],
        )
    return found


def _host_cpu() -> tuple[int, int]:
    """Docker's system_cpu_usage: the first seven figures of /proc/stat, and the CPUs in it."""
    lines = Path("/proc/stat").read_text().splitlines()
    ticks = sum(int(item) for item in lines[0].split()[1:8])
    online = sum(1 for line in lines[1:] if line.startswith("cpu"))
    return ticks * 1_000_000_000 // _TICKS_PER_S, online


def _pairs(text: str) -> dict[str, int]:
    """A flat keyed file: a name and a number in each line."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def _optional(directory: str | None, name: str) -> str | None:
    if directory is None:
        return None
    try:
        return Path(directory, name).read_text()
    except FileNotFoundError:
        return None


def _number(text: str | None) -> int | None:
    """None also for v2's `max`."""
    if text is None or text.strip() == "max":
        return None
    return int(text)


def _read_v1(paths: GroupPaths) -> dict[str, object]:
    ticks = _pairs(Path(paths.cpuacct, "cpuacct.stat").read_text())
    throttling = _pairs(_optional(paths.cpu, "cpu.stat") or "")
    memory = Path(paths.memory)
    return {
        "cpu_total_ns": int(Path(paths.cpuacct, "cpuacct.usage").read_text()),
        "cpu_user_ns": ticks["user"] * 1_000_000_000 // _TICKS_PER_S,
        "cpu_system_ns": ticks["system"] * 1_000_000_000 // _TICKS_PER_S,
        "periods": throttling.get("nr_periods", 0),
        "throttled_periods": throttling.get("nr_throttled", 0),
        "throttled_ns": throttling.get("throttled_time", 0),
        "memory_usage_bytes": int((memory / "memory.usage_in_bytes").read_text()),
        "memory_max_usage_bytes": int((memory / "memory.max_usage_in_bytes").read_text()),
        "memory_fail_count": int((memory / "memory.failcnt").read_text()),
        "memory_limit_bytes": int((memory / "memory.limit_in_bytes").read_text()),
        "memory_stats": _pairs((memory / "memory.stat").read_text()),
        "pids_current": _number(_optional(paths.pids, "pids.current")),
        "pids_limit": _number(_optional(paths.pids, "pids.max")),
        "block_counters": tuple(
            _parse_block_v1(
                "io_service_bytes_recursive",
                _optional(paths.blkio, "blkio.throttle.io_service_bytes") or "",
            )
            + _parse_block_v1(
                "io_serviced_recursive", _optional(paths.blkio, "blkio.throttle.io_serviced") or ""
            )
        ),
    }


def _parse_block_v1(series: str, text: str) -> list[BlockCounter]:
    """Lines of `8:0 Read 4096`; the last, `Total 4096`, is of no device."""
    found = []
    for line in text.splitlines():
        if line.count(" ") == 2:
            device, op, value = line.split()
            major, minor = device.split(":")
            found.append(
                BlockCounter(
                    series=series, major=int(major), minor=int(minor), op=op, value=int(value)
                )
            )
    return found


def _read_v2(paths: GroupPaths) -> dict[str, object]:
    cpu = _pairs(Path(paths.cpu, "cpu.stat").read_text())
    memory = Path(paths.memory)
    limit_bytes = _number((memory / "memory.max").read_text())
    return {
        "cpu_total_ns": cpu["usage_usec"] * 1000,
        "cpu_user_ns": cpu["user_usec"] * 1000,
        "cpu_system_ns": cpu["system_usec"] * 1000,
        "periods": cpu.get("nr_periods", 0),
        "throttled_periods": cpu.get("nr_throttled", 0),
        "throttled_ns": cpu.get("throttled_usec", 0) * 1000,
        "memory_usage_bytes": int((memory / "memory.current").read_text()),
        "memory_limit_bytes": NO_MEMORY_LIMIT_BYTES if limit_bytes is None else limit_bytes,
        "memory_stats": _pairs((memory / "memory.stat").read_text()),
        "pids_current": _number(_optional(paths.pids, "pids.current")),
        "pids_limit": _number(_optional(paths.pids, "pids.max")),
        "block_counters": parse_block_v2(_optional(paths.blkio, "io.stat") or ""),
    }


def parse_block_v2(text: str) -> tuple[BlockCounter, ...]:
    """Of io.stat, lines of `8:0 rbytes=1 wbytes=2 rios=3 ...`, as Docker shows them on v2."""
    shown = {
        "rbytes": ("io_service_bytes_recursive", "read"),
        "wbytes": ("io_service_bytes_recursive", "write"),
        "rios": ("io_serviced_recursive", "read"),
        "wios": ("io_serviced_recursive", "write"),
    }
    found = []
    for line in text.splitlines():
        device, *figures = line.split()
        major, minor = device.split(":")
        for figure in figures:
            name, _, value = figure.partition("=")
            if name in shown:
                series, op = shown[name]
                found.append(
                    BlockCounter(
                        series=series, major=int(major), minor=int(minor), op=op, value=int(value)
                    )
                )
    return tuple(found)
