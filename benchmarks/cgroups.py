"""What do the groups of a task cost: creating, joining and removing them?

Joining is one write per hierarchy on v1 by a child forked for it, as the shim does. Run as root.
"""

from __future__ import annotations

import os
import platform
import statistics
import struct
import time
from collections.abc import Callable

from fargatelite.cgroups.cgroup import Cgroup, CgroupLimits
from fargatelite.cgroups.detect import detect_driver

ROUNDS = 100
PATH = f"fargatelite/test-bench-{os.getpid()}"


def timed_us(call: Callable[[], object]) -> float:
    """Microseconds that one call takes."""
    started_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started_ns) / 1000


def join_us(group: Cgroup) -> list[float]:
    """Microseconds per join file, measured in a child that joins and exits."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        times = []
        for file in group.join_files:
            descriptor = os.open(file, os.O_WRONLY)
            times.append(timed_us(lambda descriptor=descriptor: os.write(descriptor, b"0")))
        os.write(writer, struct.pack(f"{len(times)}d", *times))
        os._exit(0)
    os.close(writer)
    data = os.read(reader, 4096)
    os.close(reader)
    os.waitpid(pid, 0)
    return list(struct.unpack(f"{len(data) // 8}d", data))


def show(name: str, values: list[float]) -> None:
    """One line: median, 99th percentile."""
    ordered = sorted(values)
    print(f"{name:24} p50 {statistics.median(ordered):8.0f} us   p99 {ordered[-1]:8.0f} us")


def main() -> None:
    """Prints the table."""
    driver = detect_driver()
    limits = CgroupLimits(cpu_quota_us=100_000, memory_bytes=512 << 20)
    child_limits = CgroupLimits(cpu_shares=256, devices=False)
    task, child, joined, removed, killed = [], [], [], [], []
    files: tuple[str, ...] = ()
    for _ in range(ROUNDS):
        task.append(timed_us(lambda: driver.create(PATH, limits)))
        child.append(timed_us(lambda: driver.create(f"{PATH}/web", child_limits)))
        group = driver.create(f"{PATH}/web", child_limits)
        files = group.join_files
        joined.append(join_us(group))
        killed.append(timed_us(lambda: driver.kill(PATH)))
        removed.append(timed_us(lambda: driver.remove(PATH)))
    print(f"Linux {platform.release()}, {os.cpu_count()} cores, cgroup v{driver.version}")
    show("create task group", task)
    show("create container group", child)
    show("join, all hierarchies", [sum(times) for times in joined])
    for index, file in enumerate(files):
        show(f"  {file.split('/')[4]}", [times[index] for times in joined])
    show("kill when empty", killed)
    show("remove both", removed)


if __name__ == "__main__":
    main()
