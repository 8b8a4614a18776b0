"""The ledger tells what really happened in a real group."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import Cgroup, CgroupLimits, Driver
from fargatelite.cgroups.detect import detect_driver
from fargatelite.meter.ledger import LedgerHeader, read_ledger
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
    """Runs a program in the group; the CPU seconds that wait4(2) tells, without those that the
    interpreter took to start, before it joined."""
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
    return f"import time\nwhile time.process_time() < {seconds}: pass\n"


def test_cpu_seconds_are_right_to_two_percent(
    driver: Driver, path: str, sampler: Sampler, tmp_path: Path
) -> None:
    group = driver.create(f"{path}/burner", CgroupLimits())
    sampler.add_container(TASK, "burner", group)
    spent_s = run_inside(group, burn(2.5))
    sampler.remove_container(TASK, "burner")
    usage = summarise(read_ledger(tmp_path / "t.ledger"))["burner"]
    assert usage.cpu_ns / 1e9 == pytest.approx(spent_s, rel=0.02)
    assert usage.samples >= 4
    assert usage.gaps == 0


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
