"""[block_io] of the configuration: a task is held to it on the disk below the data root."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.cgroups.detect import detect_driver
from fargatelite.cgroups.disks import find_disk
from fargatelite.runtime.upkeep import collect_if_due
from fargatelite.settings import BlockIo

from .test_run_task import TIMEOUT_S, definition, run, shell, text_of

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

MIB = 2**20


def bounded(settings: Settings, **bounds: int) -> Settings:
    return msgspec.structs.replace(settings, block_io=BlockIo(**bounds))


def seconds_of(settings: Settings, busybox: str, command: str) -> float:
    """How long a command takes in a task, O_DIRECT in it: also v1 knows whose that is."""
    before = "dd if=/dev/zero of=/written bs=1M count=4 conv=fsync 2>/dev/null; sync"
    clock = "cut -d ' ' -f 1 /proc/uptime"
    task = run(settings, busybox, shell("app", f"{before}; {clock}; {command} && {clock}"))
    assert task.exit_code == 0, text_of(task, "app")
    began, ended = text_of(task, "app").split()
    return float(ended) - float(began)


@pytest.mark.parametrize(
    ("bounds", "command", "least_s"),
    [
        ({"write_bytes_per_s": MIB}, "dd if=/dev/zero of=/new bs=64k count=64 oflag=direct", 3.5),
        ({"read_bytes_per_s": MIB}, "dd if=/written of=/dev/null bs=64k iflag=direct", 3.5),
        ({"write_operations_per_s": 50},
         "dd if=/dev/zero of=/written bs=4k count=200 oflag=direct conv=notrunc", 3.5),
        ({"read_operations_per_s": 50}, "dd if=/written of=/dev/null bs=4k count=200 iflag=direct",
         3.5),
    ],
    ids=["write bytes", "read bytes", "write operations", "read operations"],
)  # fmt: skip
def test_a_task_is_slowed_down_to_it(
    settings: Settings, busybox: str, bounds: dict[str, int], command: str, least_s: float
) -> None:
    """4 s of work each; the kernel lets a slice of 0.1 s go ahead."""
    free_s = seconds_of(settings, busybox, f"{command} 2>/dev/null")
    held_s = seconds_of(bounded(settings, **bounds), busybox, f"{command} 2>/dev/null")
    assert held_s >= least_s
    assert held_s > free_s


def test_the_kernel_holds_the_bounds_and_nobody_else_has_them(
    settings: Settings, busybox: str
) -> None:
    bounds = {
        "read_bytes_per_s": 64 * MIB, "write_bytes_per_s": 32 * MIB,
        "read_operations_per_s": 2000, "write_operations_per_s": 1000,
    }  # fmt: skip
    disk = find_disk(Path(settings.data_root))
    driver = detect_driver()
    files = (
        {
            f"blkio.throttle.{name}_device": f"{disk} {value}"
            for name, value in zip(
                ("read_bps", "write_bps", "read_iops", "write_iops"), bounds.values(), strict=True
            )
        }
        if driver.version == 1
        else {"io.max": f"{disk} rbps={64 * MIB} wbps={32 * MIB} riops=2000 wiops=1000"}
    )
    sleeping = definition(busybox, shell("app", "sleep 300"))
    with run_task(sleeping, settings=bounded(settings, **bounds)) as task:
        task.until("RUNNING", timeout=TIMEOUT_S)
        group = driver.directory("blkio", f"fargatelite/{task.id}")
        for name, wanted in files.items():
            assert Path(f"{group}/{name}").read_text().strip() == wanted
        with run_task(sleeping, settings=settings) as other:
            other.until("RUNNING", timeout=TIMEOUT_S)
            theirs = driver.directory("blkio", f"fargatelite/{other.id}")
            for name in files:
                file = Path(f"{theirs}/{name}")
                assert not file.exists() or not file.read_text().strip()


def test_a_data_root_without_a_disk_is_refused(settings: Settings, busybox: str) -> None:
    with TemporaryDirectory(dir="/dev/shm") as memory:  # a tmpfs
        there = msgspec.structs.replace(settings, data_root=memory)
        asked = bounded(there, read_bytes_per_s=MIB)
        task = run_task(definition(busybox, shell("app", "exit 0")), settings=asked)
        task.wait(TIMEOUT_S)
        collect_if_due(asked)  # one that goes on makes its directories there, and is waited for
        assert f"{memory} lies on no disk of its own" in (task.stopped_reason or "")
