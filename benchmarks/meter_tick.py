"""What does one tick of the meter cost, beside a bare C loop of the same preads, and beside Python?

The three alternate in one run. Run as root; TASKS groups are made and removed.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from fargatelite.cgroups.cgroup import Cgroup, CgroupLimits
from fargatelite.cgroups.detect import detect_driver
from fargatelite.meter.ledger import LedgerHeader
from fargatelite.meter.sampler import Sampler

TASKS = 50
ROUNDS = 30
SWEEPS = 100


def python_sweep_ns(groups: list[Cgroup]) -> float:
    """One sweep with open().read(), in ns."""
    started_ns = time.perf_counter_ns()
    for group in groups:
        for file in (group.cpu_usage_file, group.memory_usage_file, group.memory_peak_file):
            if file is not None:
                with open(file) as stream:
                    stream.read()
    return float(time.perf_counter_ns() - started_ns)


def main() -> None:
    """Prints microseconds per group and the ratios."""
    driver = detect_driver()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path = f"fargatelite/test-bench-{os.getpid()}"
    groups: list[Cgroup] = []
    sampler = Sampler()
    sweeps, reads, python = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        try:
            for index in range(TASKS):
                group = driver.create(f"{path}/{index}", CgroupLimits(devices=False))
                groups.append(group)
                task_id = f"{index:032x}"
                header = LedgerHeader(
                    task_id=task_id, boot_id=boot_id, created_at_ns=0, cpu_units=0, memory_mib=0
                )
                sampler.add(task_id, Path(directory, f"{task_id}.ledger"), header, group)
            for _ in range(ROUNDS):
                sweeps.append(sampler.run_sweeps(SWEEPS) / TASKS / 1000)
                reads.append(sampler.run_reads(SWEEPS) / TASKS / 1000)
                python.append(python_sweep_ns(groups) / TASKS / 1000)
        finally:
            for index in range(TASKS):
                sampler.remove(f"{index:032x}")
            driver.remove(path)
    ratios = sorted(sweep / read for sweep, read in zip(sweeps, reads, strict=True))
    print(f"Linux {platform.release()}, {os.cpu_count()} cores, cgroup v{driver.version}")
    print(f"{TASKS} groups, {ROUNDS} rounds of {SWEEPS} sweeps, us per group (median):")
    print(f"  tick, with record and CRC   {statistics.median(sweeps):7.2f}")
    print(f"  bare C loop of its preads   {statistics.median(reads):7.2f}")
    print(f"  Python open().read()        {statistics.median(python):7.2f}")
    print(f"tick / bare: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
