"""`make bench-meter`: what metering costs, beside a bare C loop and Python, and how it grows.

    meter.py [--rounds N] [--groups N] [--seconds N]

Writes benchmarks/results/meter.json, rows {name, unit, value, peer, peer_value, goal, met}, and
docs/meter-cost.svg. Contestants alternate in one run and are measured in CPU time, so that a
machine that is busy with something else is so for all of them; values are medians of rounds, ratios
are of the same round. Lateness is by the clock: it says how busy the machine was.
Needs root: it makes real groups.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import BENCH
from benchmarks.rows import Row, write_results
from fargatelite.cgroups.cgroup import Cgroup, CgroupLimits, Driver
from fargatelite.cgroups.detect import detect_driver
from fargatelite.meter.ledger import LedgerHeader, read_ledger
from fargatelite.meter.rollup import roll_up, rollup_path
from fargatelite.meter.sampler import Sampler
from fargatelite.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PLOT = ROOT / "docs" / "meter-cost.svg"
COUNTS = (1, 10, 50, 100, 200, 500, 1000, 1500, 2000)
TASK_HOUR_S = 3600
BILL_TASKS = 10_000


def group_files(group: Cgroup) -> list[str]:
    """What is read of a group every second."""
    throttled_file = group.throttled_file if group.is_cpu_limited else None
    files = (group.cpu_usage_file, group.memory_usage_file, group.memory_peak_file,
             throttled_file, group.pids_file)  # fmt: skip
    return [file for file in files if file is not None]


def python_sweep_ns(groups: list[Cgroup]) -> float:
    """One sweep with open().read(), in ns."""
    files = [file for group in groups for file in group_files(group)]
    started_ns = time.thread_time_ns()
    for file in files:
        with open(file) as stream:
            stream.read()
    return float(time.thread_time_ns() - started_ns)


def per_round_ns(work: Callable[[int], float], count: int) -> float:
    """CPU time of one of `count` rounds of C, in ns."""
    started_ns = time.thread_time_ns()
    work(count)
    return (time.thread_time_ns() - started_ns) / count


class Fleet:
    """Many tasks, sampled by one meter: each has a group with a CPU limit and in it a container's
    group without one, as a task on Fargate has."""

    def __init__(self, driver: Driver, directory: Path, sampler: Sampler) -> None:
        self._driver = driver
        self._directory = directory
        self.sampler = sampler
        self._path = f"fargatelite/test-bench-{os.getpid()}"
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.groups: list[Cgroup] = []
        self.tasks: list[str] = []

    def grow(self, count: int) -> None:
        """To this many groups."""
        while len(self.groups) < count:
            if len(self.groups) % 2 == 0:
                self._add_task(f"{len(self.tasks):032x}")
            else:
                path = f"{self._path}/{len(self.tasks) - 1}/app"
                group = self._driver.create(path, CgroupLimits(devices=False))
                self.groups.append(group)
                self.sampler.add_container(self.tasks[-1], "app", group)

    def _add_task(self, task_id: str) -> None:
        limits = CgroupLimits(devices=False, cpu_quota_us=25_000)
        group = self._driver.create(f"{self._path}/{len(self.tasks)}", limits)
        header = LedgerHeader(
            task_id=task_id, boot_id=self._boot_id, created_at_ns=time.time_ns(), cpu_units=256,
            memory_mib=512,
        )  # fmt: skip
        self.sampler.add(task_id, self.ledger(len(self.tasks)), header, group)
        self.groups.append(group)
        self.tasks.append(task_id)

    def ledger(self, number: int) -> Path:
        """Of a task."""
        return self._directory / f"{number:032x}.ledger"

    def remove(self) -> None:
        """Everything."""
        for task_id in self.tasks:
            self.sampler.remove(task_id)
        self._driver.remove(self._path)


def rss_bytes() -> int:
    """Resident memory of this process without file mappings (ledgers are the page cache's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def row(
    name: str, unit: str, value: float, *, peer: str | None = None,
    peer_value: float | None = None, goal: str, met: bool,
) -> Row:  # fmt: skip
    """One row of the results. Values are medians of ratios within a round, where there are any."""
    print(f"{name:58} {value:12.4g} {unit:10} goal {goal:14} {'met' if met else 'NOT MET'}"
          + (f"   {peer}: {peer_value:.4g}" if peer_value is not None else ""))  # fmt: skip
    return Row(name=name, unit=unit, value=value, peer=peer, peer_value=peer_value,
               goal=goal or None, met=met if goal else None)  # fmt: skip


def measure_sample(fleet: Fleet, rounds: int) -> list[Row]:
    """One sample of a task with one container, by group: against its bare preads in C and against
    Python."""
    fleet.grow(50)
    ours, bare, python = [], [], []
    for number in range(rounds + 5):
        figures = (
            per_round_ns(fleet.sampler.run_sweeps, 40) / 50 / 1000,
            per_round_ns(fleet.sampler.run_reads, 40) / 50 / 1000,
            python_sweep_ns(fleet.groups) / 50 / 1000,
        )
        if number >= 5:
            for values, figure in zip((ours, bare, python), figures, strict=True):
                values.append(figure)
    to_bare = statistics.median(one / two for one, two in zip(ours, bare, strict=True))
    to_python = statistics.median(one / two for one, two in zip(python, ours, strict=True))
    value = statistics.median(ours)
    return [
        row("sample of a group / its preads in a bare C loop", "ratio", to_bare,
            peer="C loop, us", peer_value=statistics.median(bare), goal="<= 2",
            met=to_bare <= 2),
        row("Python open().read() of the same files / sample", "ratio", to_python,
            peer="Python, us", peer_value=statistics.median(python), goal=">= 20",
            met=to_python >= 20),
        row("sample of a group", "us", value, goal="", met=True),
    ]  # fmt: skip


def measure_cold(fleet: Fleet, rounds: int) -> list[Row]:
    """Why a group costs more among many: the bare preads of few groups, when what the kernel keeps
    of them has left the CPU's caches, beside those of many."""
    fleet.grow(50)
    other = bytearray(64 << 20)
    warm, cold = [], []
    for _ in range(rounds):
        warm.append(per_round_ns(fleet.sampler.run_reads, 2) / 50 / 1000)
        for at in range(0, len(other), 64):
            other[at] ^= 1
        cold.append(per_round_ns(fleet.sampler.run_reads, 1) / 50 / 1000)
    value = statistics.median(cold)
    return [row("bare preads of a group of 50, caches cold", "us", value, peer="warm, us",
                peer_value=statistics.median(warm), goal="", met=True)]  # fmt: skip


def measure_slow(fleet: Fleet, rounds: int) -> list[Row]:
    """What the slow kinds add at their default pace."""
    fleet.grow(50)
    values = [per_round_ns(fleet.sampler.run_sweeps, 40) / 50 / 1000 for _ in range(rounds)]
    return [row("sample of a group with slow kinds every 20 s", "us", statistics.median(values),
                goal="", met=True)]  # fmt: skip


def measure_line(fleet: Fleet, rounds: int) -> tuple[list[dict[str, Any]], list[Row]]:
    """Cost against the number of groups, ours and Python's."""
    points = []
    for count in COUNTS:
        fleet.grow(count)
        ours, bare, python = [], [], []
        for _ in range(max(5, rounds // 10)):
            bare.append(per_round_ns(fleet.sampler.run_reads, 5) / 1e6)
            ours.append(per_round_ns(fleet.sampler.run_sweeps, 5) / 1e6)
            python.append(python_sweep_ns(fleet.groups) / 1e6)
        points.append({"groups": count, "sweep_ms": statistics.median(ours),
                       "bare_ms": statistics.median(bare),
                       "python_ms": statistics.median(python)})  # fmt: skip
        print(f"  {count:5} groups: {points[-1]['sweep_ms']:.3f} ms, "
              f"its preads {points[-1]['bare_ms']:.3f} ms, "
              f"Python {points[-1]['python_ms']:.1f} ms")  # fmt: skip
    # The kernel's own structures leave the CPU's caches as groups grow in number; what is ours to
    # keep straight is what comes on top of the bare reads.
    large = [point for point in points if point["groups"] >= 50]
    shares = [point["sweep_ms"] / point["bare_ms"] for point in large]
    costs = [point["sweep_ms"] / point["groups"] for point in large]
    bare_costs = [point["bare_ms"] / point["groups"] for point in large]
    bend = max(costs) / min(costs)
    bare_bend = max(bare_costs) / min(bare_costs)
    return points, [
        row("cost of a group, dearest / cheapest, 50 to 2,000 groups", "ratio", bend,
            peer="bare C loop", peer_value=bare_bend, goal="<= 1.2 of the C loop's",
            met=bend <= 1.2 * bare_bend),
        row("sweep / its preads, at its worst, 50 to 2,000 groups", "ratio", max(shares),
            goal="<= 2", met=max(shares) <= 2),
    ]  # fmt: skip


def measure_fleet(driver: Driver, directory: Path, count: int, seconds: int) -> list[Row]:
    """Live groups sampled by the thread once a second."""
    sampler = Sampler()
    before_bytes = rss_bytes()
    fleet = Fleet(driver, directory, sampler)
    try:
        fleet.grow(count)
        sampler.start()
        deadline = time.monotonic() + seconds + 30
        started = sampler.counters()
        started_at = time.monotonic()
        while sampler.counters().ticks < started.ticks + seconds:
            if time.monotonic() > deadline:
                raise RuntimeError("the meter does not tick")
            time.sleep(0.2)
        spent_s = (sampler.counters().thread_cpu_ns - started.thread_cpu_ns) / 1e9
        lived_s = time.monotonic() - started_at
        used_bytes = rss_bytes() - before_bytes
        sampler.stop()
        late_ms = sorted(
            sample.late_us / 1000
            for sample in read_ledger(fleet.ledger(0)).samples
            if not sample.flags & 128
        )
        p99_ms = late_ms[max(0, -(-len(late_ms) * 99 // 100) - 1)]
        bound = 64 * count * seconds + 2**20
        share = spent_s / lived_s * 100
    finally:
        sampler.stop()
        fleet.remove()
    return [
        row(f"{count} live groups: CPU of one core", "%", share, peer="cAdvisor, as reported",
            peer_value=500.0, goal="< 3", met=share < 3),
        row(f"{count} live groups: p99 lateness of the sweep", "ms", p99_ms, goal="< 20",
            met=p99_ms < 20),
        row(f"{count} live groups: anonymous memory", "bytes", used_bytes,
            peer="64 bytes x records + 1 MiB", peer_value=bound, goal=f"< {bound}",
            met=used_bytes < bound),
    ]  # fmt: skip


def write_hour(directory: Path, version: int, *, has_container: bool) -> Path:
    """A ledger as the meter writes it in an hour, of groups that are files: every value changes
    every second, and the task is throttled."""
    files = HourFiles(directory / f"group{version}", version)
    path = directory / f"{version}-{has_container}.ledger"
    header = LedgerHeader(
        task_id="e" * 32, boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        created_at_ns=time.time_ns(), cpu_units=256, memory_mib=512,
    )  # fmt: skip
    sampler = Sampler()
    shifted_ns = 0
    files.put(0)
    sampler.add(header.task_id, path, header, files.group)
    sampler.add_network(header.task_id, os.open(files.network, os.O_RDONLY))
    if has_container:
        sampler.add_container(header.task_id, "app", files.group)
    for second in range(1, TASK_HOUR_S + 1):
        files.put(second)
        # To the begin of the next second, as the thread would be woken.
        step_ns = 10**9 - (time.time_ns() + shifted_ns) % 10**9 + 200_000
        shifted_ns += step_ns
        sampler.shift_clocks(wall_ns=step_ns, monotonic_ns=step_ns, boottime_ns=step_ns)
        sampler.tick()
    sampler.remove(header.task_id)
    return path


class HourFiles:
    """Files that look like a busy group's."""

    def __init__(self, directory: Path, version: int) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self.network = directory / "dev"
        pressure = tuple(str(directory / f"{name}.pressure") for name in ("cpu", "memory", "io"))
        self.group = Cgroup(
            path="-", version=version, join_files=(), clone_into=None,
            cpu_usage_file=str(directory / ("cpu.stat" if version == 2 else "cpuacct.usage")),
            memory_usage_file=str(directory / "memory"),
            memory_peak_file=str(directory / "peak"),
            throttled_file=str(directory / "cpu.stat") if version == 1 else None,
            pids_file=str(directory / "pids"), memory_stat_file=str(directory / "memory.stat"),
            cpu_user_file=str(directory / "user") if version == 1 else None,
            io_file=str(directory / "io"),
            pressure_files=(pressure[0], pressure[1], pressure[2]) if version == 2 else None,
        )  # fmt: skip

    def put(self, second: int) -> None:
        """What the kernel says in this second: a busy 16 vCPU, memory that grows in steps."""
        cpu_us, held, moved = second * 15_900_000, second * 4, second * 1_000_000
        texts = {
            "cpuacct.usage": f"{cpu_us * 1000}\n",
            "cpu.stat": f"usage_usec {cpu_us}\nuser_usec {cpu_us}\nsystem_usec 0\n"
            f"nr_periods {second * 10}\nnr_throttled {held}\n"
            f"throttled_time {held * 1000}\nthrottled_usec {held}\n",
            "memory": f"{(100_000 + second % 60 * 100) * 4096}\n",
            "peak": f"{(110_000 + second // 120 * 10) * 4096}\n",
            "pids": "12\n",
            "memory.stat": "".join(
                f"{prefix}{key} {moved}\n"
                for prefix in ("", "total_")
                for key in ("inactive_file", "anon", "rss", "file", "cache")
            ),
            "user": f"{cpu_us}\n",
            "io": f"8:0 rbytes={moved} wbytes={moved}\n"
            if self.group.version == 2
            else f"1 1 {second * 8} 1 1 1 {second * 8}\n",
            "dev": f"\n\n eth1: {moved} 1 0 0 0 0 0 0 {moved} 1 0 0 0 0 0 0\n",
            **{
                f"{name}.pressure": f"some total={second}\nfull total={second}\n"
                for name in ("cpu", "memory", "io")
            },
        }
        for name, text in texts.items():
            (self._directory / name).write_text(text)


def measure_size(directory: Path) -> list[Row]:
    """Ledgers of an hour: of one group, and of a task with one container."""
    rows = []
    for name, version, has_container in (
        ("one group", 1, False),
        ("one container and its task", 1, True),
        ("one container and its task, cgroup v2", 2, True),
    ):
        path = write_hour(directory, version, has_container=has_container)
        ledger = read_ledger(path)
        groups = 2 if has_container else 1
        assert not ledger.problems
        assert len(ledger.samples) == (TASK_HOUR_S + 2) * groups
        assert len(ledger.slow) >= 180 * groups
        assert len(ledger.pressure) == (len(ledger.slow) if version == 2 else 0)
        roll_up(path)
        raw, rolled = path.stat().st_size / 1024, rollup_path(path).stat().st_size / 1024
        rows += [
            row(f"ledger of an hour, raw, {name}", "KiB", raw, goal="<= 256", met=raw <= 256),
            row(f"ledger of an hour, rolled up, {name}", "KiB", rolled, goal="<= 16",
                met=rolled <= 16),
        ]  # fmt: skip
    return rows


def measure_bill(directory: Path) -> list[Row]:
    """`bill --by family` over 10,000 stopped tasks of an hour."""
    from fargatelite.billing.invoice import group_bills
    from fargatelite.meter.ledger import read_task_ledger
    from fargatelite.meter.rollup import encode_rollup
    from fargatelite.runtime.bills import bill_tasks
    from fargatelite.runtime.record import encode_record, list_records
    from tests.fixtures.lives import write_life

    settings = Settings(data_root=str(directory), run_root=str(directory / "run"))
    first = write_life(settings, "0" * 32, seconds=TASK_HOUR_S)
    ledger = read_task_ledger(settings.ledgers / f"{'0' * 32}.ledger")
    rolled, recorded = encode_rollup(ledger), encode_record(first)
    for number in range(BILL_TASKS):
        task_id = f"{number:032x}"
        (settings.records / task_id).mkdir(exist_ok=True)
        (settings.records / task_id / "record.json").write_bytes(
            recorded.replace(b"0" * 32, task_id.encode())
        )
        (settings.ledgers / f"{task_id}.rollup").write_bytes(rolled)
    spent = []
    for _ in range(3):
        started = time.process_time()
        records = list_records(settings, stopped=True)
        groups = group_bills(bill_tasks(settings, records), "family")
        spent.append(time.process_time() - started)
        assert groups[0].tasks == BILL_TASKS
    value = statistics.median(spent)
    return [row("bill over 10,000 tasks of an hour, by family", "s", value, goal="< 2",
                met=value < 2)]  # fmt: skip


def draw(points: list[dict[str, Any]]) -> str:
    """Cost against groups, both axes logarithmic: a straight line of slope 1 is linear cost."""
    import math

    width, height, left, bottom, top = 720, 400, 70, 46, 20
    low, high = 0.001, max(point["python_ms"] for point in points) * 2

    def x(count: float) -> float:
        return left + (width - left - 130) * math.log10(count) / math.log10(COUNTS[-1])

    def y(value: float) -> float:
        share = math.log10(value / low) / math.log10(high / low)
        return height - bottom - (height - bottom - top) * share

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#666">',
        "<style>.a{stroke:#2f6fdd;fill:none;stroke-width:2}.b{stroke:#c2571a;fill:none;"
        "stroke-width:2}.c{stroke:#999;fill:none;stroke-dasharray:3 3}"
        ".g{stroke:#8884;stroke-width:1}</style>",
    ]
    tick = low
    while tick <= high:
        label = f"{tick:g} ms" if tick >= 1 else f"{tick * 1000:g} us"
        out.append(f'<line class="g" x1="{left}" x2="{width - 130}" y1="{y(tick):.1f}" '
                   f'y2="{y(tick):.1f}"/><text x="{left - 8}" y="{y(tick) + 4:.1f}" '
                   f'text-anchor="end">{label}</text>')  # fmt: skip
        tick *= 10
    for count in (1, 10, 100, 1000, 2000):
        out.append(
            f'<text x="{x(count):.1f}" y="{height - 24}" text-anchor="middle">{count}</text>'
        )
    for key, css_class, name in (("sweep_ms", "a", "meter (C)"), ("bare_ms", "c", ""),
                                 ("python_ms", "b", "Python, open().read()")):  # fmt: skip
        line = " ".join(f"{x(point['groups']):.1f},{y(point[key]):.1f}" for point in points)
        out.append(f'<polyline class="{css_class}" points="{line}"/>')
        out.append(f'<text x="{width - 126}" y="{y(points[-1][key]) + 4:.1f}">{name}</text>')
        out += [f'<circle class="{css_class}" cx="{x(point["groups"]):.1f}" '
                f'cy="{y(point[key]):.1f}" r="2.5"/>' for point in points]  # fmt: skip
    out.append(f'<text x="{(left + width - 130) / 2}" y="{height - 6}" text-anchor="middle">'
               "groups in one sweep; dashed: the bare preads of the same files in C"
               "</text></svg>\n")  # fmt: skip
    return "".join(out)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description="what metering costs")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--groups", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=110)
    arguments = parser.parse_args()
    if os.getuid() != 0:
        sys.exit("the benchmark needs root: it makes groups")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = os.getloadavg()[0]
    driver = detect_driver()
    BENCH.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        fleet = Fleet(driver, Path(directory), Sampler())
        try:
            points, more = measure_line(fleet, arguments.rounds)
            rows += more
        finally:
            fleet.remove()
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        fleet = Fleet(driver, Path(directory), Sampler(slow_every_s=0))
        try:
            rows += measure_sample(fleet, arguments.rounds)
            rows += measure_cold(fleet, arguments.rounds // 4)
        finally:
            fleet.remove()
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        fleet = Fleet(driver, Path(directory), Sampler())
        try:
            rows += measure_slow(fleet, arguments.rounds)
        finally:
            fleet.remove()
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        rows += measure_fleet(driver, Path(directory), arguments.groups, arguments.seconds)
    with tempfile.TemporaryDirectory(dir=BENCH) as directory:
        rows += measure_size(Path(directory))
        rows += measure_bill(Path(directory) / "bills")
    print(f"load {load:.1f}, at the end {os.getloadavg()[0]:.1f}")
    write_results("meter", rows, {}, {"line": points})
    PLOT.write_text(draw(points))
    sys.exit(0 if all(item.met is not False for item in rows) else 1)


if __name__ == "__main__":
    main()
