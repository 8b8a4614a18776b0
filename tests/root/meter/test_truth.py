"""The ledger tells what really happened in a real group."""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import Cgroup, CgroupLimits, Driver
from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import CgroupFailed
from fargatelite.meter.ledger import LedgerHeader, SampleFlag, read_ledger
from fargatelite.meter.sampler import Sampler
from fargatelite.meter.usage import summarise

pytestmark = [pytest.mark.root, pytest.mark.vm]
TASK = secrets.token_hex(16)


@pytest.fixture
def driver() -> Driver:
    return detect_driver()


@pytest.fixture
def path(driver: Driver) -> Iterator[str]:
    name = f"fargatelite/test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    driver.kill(name)
    driver.remove(name)


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[Sampler]:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    header = LedgerHeader(
        task_id=TASK, boot_id=boot_id, created_at_ns=time.time_ns(), cpu_units=256, memory_mib=512
    )
    with Sampler() as sampler:
        sampler.add(TASK, tmp_path / "t.ledger", header, None)
        yield sampler
        sampler.remove(TASK)


def run_inside(group: Cgroup, program: str) -> float:
    """Runs a program in the group; the CPU seconds that wait4(2) tells of it and its children to
    their ends, without those that the interpreter took to start, before it joined."""
    join = "".join(f"open({file!r}, 'w').write('0')\n" for file in group.join_files)
    tell = "import time\nprint(time.process_time(), flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", join + tell + program], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        before_s = float(process.stdout.readline())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    assert status == 0
    return usage.ru_utime + usage.ru_stime - before_s


def burn(seconds: float) -> str:
    """From where it is run: a slow machine's interpreter has used as much before."""
    return (
        f"import time\nend = time.process_time() + {seconds}\n"
        "while time.process_time() < end: pass\n"
    )


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_cpu_seconds_are_right_to_half_a_percent(
    driver: Driver, path: str, sampler: Sampler, tmp_path: Path, processes: int
) -> None:
    group = driver.create(f"{path}/burner", CgroupLimits())
    sampler.add_container(TASK, "burner", group)
    each_s = 3.0 / processes
    spent_s = run_inside(
        group,
        f"import os\n"
        f"children = []\n"
        f"for _ in range({processes}):\n"
        f"    child = os.fork()\n"
        f"    if child == 0:\n"
        f"        while sum(os.times()[:2]) < {each_s}: pass\n"
        f"        os._exit(0)\n"
        f"    children.append(child)\n"
        f"for child in children: os.waitpid(child, 0)",
    )
    sampler.remove_container(TASK, "burner")
    usage = summarise(read_ledger(tmp_path / "t.ledger"))["burner"]
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert usage.cpu_ns / 1e9 == pytest.approx(spent_s, rel=0.005, abs=tick_s)
    assert spent_s > 2.9


def test_containers_add_up_to_their_task_and_tasks_to_their_parent(
    driver: Driver, path: str, tmp_path: Path
) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    parent = driver.create(path, CgroupLimits())
    with Sampler() as sampler:
        header = LedgerHeader(
            task_id=TASK, boot_id=boot_id, created_at_ns=time.time_ns(), cpu_units=0, memory_mib=0
        )
        sampler.add(TASK, tmp_path / "parent.ledger", header, parent)
        for name in ("one", "two"):
            group = driver.create(f"{path}/{name}", CgroupLimits())
            sampler.add_container(TASK, name, group)
            run_inside(group, burn(0.4))
        sampler.remove(TASK)
    usages = summarise(read_ledger(tmp_path / "parent.ledger"))
    found = {name: usage.cpu_ns for name, usage in usages.items()}
    # v2 counts in us; each of the three is cut once.
    assert found["one"] + found["two"] == pytest.approx(found[None], abs=10_000)


def test_a_throttled_group_says_so(
    driver: Driver, path: str, sampler: Sampler, tmp_path: Path
) -> None:
    group = driver.create(f"{path}/held", CgroupLimits(cpu_quota_us=20_000))
    sampler.add_container(TASK, "held", group)
    started = time.monotonic()
    spent_s = run_inside(group, burn(0.4))
    lived_s = time.monotonic() - started
    sampler.remove_container(TASK, "held")
    usage = summarise(read_ledger(tmp_path / "t.ledger"))["held"]
    assert usage.cpu_ns / 1e9 == pytest.approx(spent_s, abs=0.05)
    assert usage.cpu_ns / 1e9 < 0.25 * lived_s
    assert usage.throttled_periods > 0.5 * usage.periods > 5
    # How long it waits beyond that is the machine's: a busy one lets it run less often.
    assert usage.throttled_ns > 0.1 * lived_s * 1e9


def test_stalls_are_those_that_the_kernel_tells(driver: Driver, path: str, tmp_path: Path) -> None:
    """PSI of v2: a group that is throttled waits for CPU most of its life."""
    group = driver.create(f"{path}/held", CgroupLimits(cpu_quota_us=20_000))
    if group.pressure_files is None:
        pytest.skip("no PSI: cgroup v1, or a kernel without it (psi=0)")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    header = LedgerHeader(
        task_id=TASK, boot_id=boot_id, created_at_ns=time.time_ns(), cpu_units=0, memory_mib=0
    )
    with Sampler(slow_every_s=1) as sampler:
        sampler.add(TASK, tmp_path / "stalls.ledger", header, None)
        sampler.add_container(TASK, "held", group)
        started = time.monotonic()
        spent_s = run_inside(group, burn(0.4))
        lived_s = time.monotonic() - started
        sampler.remove(TASK)
    told = [item.cpu_us for item in read_ledger(tmp_path / "stalls.ledger").pressure]
    some = Path(group.pressure_files[0]).read_text().splitlines()[0]
    assert told == sorted(told)
    assert len(told) >= 2
    assert told[-1] == pytest.approx(int(some.rpartition("total=")[2]), rel=0.01, abs=1000)
    # PSI counts from when it joined; the interpreter ran a while before that.
    assert told[-1] / 1e6 > 0.5 * (lived_s - spent_s)


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the hard limit lets: a shell's 1024 are 80 groups of v2."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_groups_come_and_go(
    driver: Driver, path: str, tmp_path: Path, many_files: None
) -> None:
    """Churn: nothing is billed twice, every group has its begin and its end."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    made = 0
    with Sampler() as sampler:
        for round_number in range(10):
            ids = [f"{round_number * 1000 + index:032x}" for index in range(200)]
            group = driver.create(f"{path}/{round_number}", CgroupLimits(devices=False))
            for task_id in ids:
                header = LedgerHeader(
                    task_id=task_id, boot_id=boot_id, created_at_ns=0, cpu_units=0, memory_mib=0
                )
                sampler.add(task_id, tmp_path / f"{task_id}.ledger", header, group)
            sampler.tick()
            for task_id in ids:
                sampler.remove(task_id)
                ledger = read_ledger(tmp_path / f"{task_id}.ledger")
                assert ledger.problems == ()
                flags = [sample.flags for sample in ledger.samples]
                assert SampleFlag.FIRST in flags[0]
                assert SampleFlag.LAST in flags[-1]
                made += 1
    assert made == 2000


def test_held_memory_is_right(driver: Driver, path: str, sampler: Sampler, tmp_path: Path) -> None:
    group = driver.create(f"{path}/holder", CgroupLimits())
    sampler.add_container(TASK, "holder", group)
    run_inside(group, "x = bytearray(128 << 20)\nimport time\ntime.sleep(4)\n")
    sampler.remove_container(TASK, "holder")
    usage = summarise(read_ledger(tmp_path / "t.ledger"))["holder"]
    assert 128 << 20 < usage.memory_peak_bytes < 150 << 20
    # 4 s of 128 MiB; the slopes at both ends may be off by half a second each.
    mib_seconds = usage.memory_byte_ns / (1 << 20) / 1e9
    assert 3.0 * 128 < mib_seconds < 4.8 * 150
    assert usage.estimated_ns == 0


def test_too_many_open_files_are_explained(
    driver: Driver, path: str, sampler: Sampler, many_files: None
) -> None:
    group = driver.create(f"{path}/one", CgroupLimits())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/", os.O_PATH)  # the limit is one of numbers, and this is the lowest free one
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(CgroupFailed, match=r"EMFILE.*ulimit -n"):
            sampler.add_container(TASK, "one", group)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sampler.add_container(TASK, "one", group)


def test_short_life_is_counted(driver: Driver, path: str, sampler: Sampler, tmp_path: Path) -> None:
    group = driver.create(f"{path}/short", CgroupLimits())
    sampler.add_container(TASK, "short", group)
    spent_s = run_inside(group, "x = bytearray(64 << 20)\n" + burn(0.15))
    sampler.remove_container(TASK, "short")
    driver.remove(path)
    usage = summarise(read_ledger(tmp_path / "t.ledger"))["short"]
    assert usage.cpu_ns / 1e9 == pytest.approx(spent_s, abs=0.02)
    assert usage.memory_peak_bytes > 64 << 20
    assert usage.memory_byte_ns > 0


def test_group_that_went_away_is_a_gap(
    driver: Driver, path: str, sampler: Sampler, tmp_path: Path
) -> None:
    group = driver.create(f"{path}/gone", CgroupLimits())
    sampler.add_container(TASK, "gone", group)
    driver.remove(path)
    sampler.sample_now(TASK)
    sample = read_ledger(tmp_path / "t.ledger").samples[-1]
    assert (sample.cpu_usage_ns, sample.memory_bytes) == (None, None)
