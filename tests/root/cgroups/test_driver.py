"""The driver of this host, with real processes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from fargatelite.cgroups.cgroup import CgroupLimits, Driver
from fargatelite.errors import CgroupFailed
from tests.fixtures.patience import patient

from .conftest import Inhabitants

pytestmark = [pytest.mark.root, pytest.mark.vm]

LIMITS = CgroupLimits(
    cpu_quota_us=25_000, cpu_shares=512, memory_bytes=64 << 20, memory_soft_bytes=32 << 20
)
WAIT = "print('ready', flush=True)\nimport signal\nsignal.pause()\n"
FORK_BOMB = """
import os
print('ready', flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_create_may_be_repeated_and_remove_too(driver: Driver, path: str) -> None:
    first = driver.create(path, LIMITS)
    child = driver.create(f"{path}/web", CgroupLimits(memory_bytes=32 << 20))
    assert driver.create(path, LIMITS) == first  # also with a child in it
    assert driver.create(f"{path}/web", CgroupLimits(memory_bytes=48 << 20)) == child
    assert path.split("/")[1] in driver.list_tasks()
    assert driver.oom_kills(path) == 0
    driver.remove(path)
    driver.remove(path)
    driver.kill(path)


def test_fork_bomb_is_killed_to_the_last(
    driver: Driver, path: str, inhabitants: Inhabitants
) -> None:
    driver.create(path, CgroupLimits(pids_max=200))
    group = driver.create(f"{path}/bomb", CgroupLimits())
    inhabitants.start(group, FORK_BOMB)
    deadline = time.monotonic() + patient(20)
    while len(driver.pids(path)) < 150:
        assert time.monotonic() < deadline
    assert len(driver.pids(path)) <= 200
    driver.kill(path)
    assert driver.pids(path) == []


def test_what_is_killed_dies_without_its_cap(
    driver: Driver, path: str, inhabitants: Inhabitants
) -> None:
    """A hundredth of a CPU for some hundred processes that are to end: a second of work."""
    driver.create(path, CgroupLimits(pids_max=400, cpu_quota_us=100_000))
    group = driver.create(f"{path}/bomb", CgroupLimits())
    inhabitants.start(group, FORK_BOMB)
    deadline = time.monotonic() + patient(20)
    while len(driver.pids(path)) < 350:
        assert time.monotonic() < deadline
    driver.create(path, CgroupLimits(pids_max=400, cpu_quota_us=1_000))
    file = "cpu.cfs_quota_us" if driver.version == 1 else "cpu.max"
    driver.kill(path)
    assert driver.pids(path) == []
    assert Path(f"{driver.directory('cpu', path)}/{file}").read_text().split()[0] in ("-1", "max")
    driver.uncap_cpu(path)
    driver.remove(path)
    driver.uncap_cpu(path)


def test_stopped_process_is_killed(driver: Driver, path: str, inhabitants: Inhabitants) -> None:
    group = driver.create(path if driver.version == 1 else f"{path}/c", CgroupLimits())
    process = inhabitants.start(group, WAIT)
    os.kill(process.pid, 19)
    driver.kill(path)
    assert process.wait(patient(5)) == -9


def test_remove_names_who_is_inside(driver: Driver, path: str, inhabitants: Inhabitants) -> None:
    group = driver.create(f"{path}/c", CgroupLimits())
    process = inhabitants.start(group, WAIT)
    with pytest.raises(CgroupFailed, match=rf"EBUSY.*processes \[{process.pid}\]"):
        driver.remove(path)
    assert driver.pids(path) == [process.pid]


def test_memory_limit_kills_and_is_counted(
    driver: Driver, path: str, inhabitants: Inhabitants
) -> None:
    driver.create(path, CgroupLimits(memory_bytes=48 << 20))
    group = driver.create(f"{path}/eater", CgroupLimits())
    process = inhabitants.start(
        group, "print('ready', flush=True)\nx = bytearray(256 << 20)\nprint('survived')\n"
    )
    assert process.wait(patient(20)) == -9
    assert driver.oom_kills(path) == 1
    peak_bytes = driver.memory_peak_bytes(path)
    assert peak_bytes is not None
    assert 40 << 20 < peak_bytes <= 48 << 20


def test_a_group_dies_of_memory_as_one_on_v2(
    driver: Driver, path: str, inhabitants: Inhabitants
) -> None:
    driver.create(path, CgroupLimits(memory_bytes=64 << 20))
    group = driver.create(f"{path}/pair", CgroupLimits(oom_group=True))
    process = inhabitants.start(
        group,
        "import os\nprint('ready', flush=True)\nchild = os.fork()\n"
        "if not child: x = bytearray(256 << 20)\nos.wait()\n",
    )
    # v1 kills the child alone.
    assert process.wait(patient(20)) == (-9 if driver.version == 2 else 0)
    # The kernel may count the chosen one twice.
    assert driver.oom_kills(path) >= (2 if driver.version == 2 else 1)


def test_cpu_quota_holds(driver: Driver, path: str, inhabitants: Inhabitants) -> None:
    driver.create(path, CgroupLimits(cpu_quota_us=20_000))
    group = driver.create(f"{path}/burner", CgroupLimits())
    process = inhabitants.start(
        group,
        "import time\nprint('ready', flush=True)\nend = time.monotonic() + 1.5\n"
        "while time.monotonic() < end: pass\n",
    )
    assert process.wait(patient(20)) == 0
    assert 0.15e9 < driver.cpu_usage_ns(path) < 0.45e9


def test_devices_outside_the_list_are_refused(
    driver: Driver, path: str, inhabitants: Inhabitants
) -> None:
    group = driver.create(f"{path}/c", CgroupLimits())
    process = inhabitants.start(
        group,
        f"""
import os, stat
print('ready', flush=True)
os.write(os.open('/dev/null', os.O_RDWR), b'x')
node = '/dev/{path.replace("/", "-")}'
os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 11))  # kmsg: making it is allowed
try:
    os.open(node, os.O_RDONLY)
except PermissionError:
    print('refused')
finally:
    os.unlink(node)
""",
    )
    assert process.stdout is not None
    assert process.stdout.read() == "refused\n"
    assert process.wait(patient(5)) == 0


def test_groups_of_many_threads_come_and_go(driver: Driver, path: str) -> None:
    """The shared root group is removed by whoever is last while others create below it."""
    failures: list[CgroupFailed] = []

    finished: list[int] = []

    def live(index: int) -> None:
        try:
            for _ in range(30):
                driver.create(f"{path}-{index}", CgroupLimits(devices=False))
                driver.remove(f"{path}-{index}")
            finished.append(index)
        except CgroupFailed as error:
            failures.append(error)

    threads = [threading.Thread(target=live, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(finished) == [0, 1, 2, 3]


def test_refusal_names_file_and_errno(driver: Driver, path: str) -> None:
    with pytest.raises(CgroupFailed, match=r"cannot write '-7' to .*pids.max: EINVAL") as caught:
        driver.create(path, CgroupLimits(pids_max=-7))
    assert caught.value.errno == 22
    assert caught.value.path is not None
    assert Path(caught.value.path).name == "pids.max"
