"""What does one tick of the meter cost, beside a bare C loop of the same preads, and beside Python?

The three alternate in one run. Run as root; TASKS groups are made and removed. The tick
also writes a record with its CRC into each task's ledger. `make bench-meter` tells more.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from meter import python_sweep_ns

from benchmarks.report import BENCH, Table
from fargatelite.cgroups.cgroup import Cgroup, CgroupLimits
from fargatelite.cgroups.detect import detect_driver
from fargatelite.meter.ledger import LedgerHeader
from fargatelite.meter.sampler import Sampler

TASKS = 50
ROUNDS = 100
WARM_UP = 5
SWEEPS = 100


def measure(sampler: Sampler, groups: list[Cgroup], rounds: int) -> tuple[list[float], ...]:
    """Microseconds per group: the tick, its bare preads, Python."""
    ticks: list[float] = []
    reads: list[float] = []
    python: list[float] = []
    for _ in range(WARM_UP + rounds):
        ticks.append(sampler.run_sweeps(SWEEPS) / TASKS / 1000)
        reads.append(sampler.run_reads(SWEEPS) / TASKS / 1000)
        python.append(python_sweep_ns(groups) / TASKS / 1000)
    return ticks[WARM_UP:], reads[WARM_UP:], python[WARM_UP:]


def run(rounds: int = ROUNDS) -> Table:
    """The whole benchmark; prints its table."""
    driver = detect_driver()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path = f"fargatelite/test-bench-{os.getpid()}"
    groups: list[Cgroup] = []
    sampler = Sampler(slow_every_s=0)
    table = Table("meter", "us per group")
    table.start(
        f"{TASKS} groups of cgroup v{driver.version}, each value the mean of {SWEEPS} ticks"
    )
    BENCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        try:
            for index in range(TASKS):
                group = driver.create(f"{path}/{index}", CgroupLimits(devices=False))
                groups.append(group)
                task_id = f"{index:032x}"
                header = LedgerHeader(
                    task_id=task_id, boot_id=boot_id, created_at_ns=0, cpu_units=0, memory_mib=0
                )
                sampler.add(task_id, Path(directory, f"{task_id}.ledger"), header, group)
            ticks, reads, python = measure(sampler, groups, rounds)
        finally:
            for index in range(len(groups)):
                sampler.remove(f"{index:032x}")
            driver.remove(path)
    table.add("tick / its preads in a bare C loop", ticks, reads, reads)
    table.add("tick / Python open().read()", ticks, python, reads)
    return table


if __name__ == "__main__":
    run()
