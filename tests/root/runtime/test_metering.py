"""What the ledger and the exports say about a task that really ran."""

from __future__ import annotations

import re
import time

import pytest

import fargatelite
from fargatelite import Settings
from fargatelite.meter.latest import read_latest
from fargatelite.meter.ledger import SampleFlag, read_task_ledger
from fargatelite.meter.rollup import read_task_usage, rollup_path
from fargatelite.meter.usage import measure
from fargatelite.runtime.metrics import expose
from fargatelite.runtime.usage import get_sampler, ledger_of

pytestmark = [pytest.mark.root, pytest.mark.registry]
WRITTEN_MIB = 64


@pytest.fixture
def definition(busybox: str) -> dict[str, object]:
    script = (
        f"dd if=/dev/zero of=/data/big bs=1048576 count={WRITTEN_MIB} conv=fsync 2>/dev/null; "
        "while [ ! -e /stop ]; do sleep 0.1; done"
    )
    return {
        "family": "metered",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "volumes": [{"name": "data"}],
        "containerDefinitions": [
            {
                "name": "app",
                "image": busybox,
                "entryPoint": ["/bin/sh", "-c"],
                "command": [script],
                "stopTimeout": 2,
                # A writable layer may keep what is synced in memory; a volume does not.
                "mountPoints": [{"sourceVolume": "data", "containerPath": "/data"}],
            }
        ],
    }


def test_a_task_from_the_kernel_to_the_exports(
    definition: dict[str, object], settings: Settings
) -> None:
    with fargatelite.run_task(definition, settings=settings) as task:
        task.until("RUNNING", timeout=20)
        shown = expose(settings)
        task.stop()
    path = ledger_of(settings, task.id)
    ledger = read_task_ledger(path)
    used = measure(ledger)
    assert used.damaged == 0
    for container in (0, None):
        flags = [item.flags for item in ledger.samples if item.container == container]
        assert SampleFlag.FIRST in flags[0]
        assert SampleFlag.LAST in flags[-1]
        gaps = SampleFlag.GAP_CPU | SampleFlag.GAP_MEMORY | SampleFlag.GAP_THROTTLED
        assert not any(item & (gaps | SampleFlag.GAP_PIDS) for item in flags)
    # Rolled up at its end, to the same.
    assert rollup_path(path).exists()
    assert read_task_usage(path) == used
    assert len(ledger.network) >= 1
    assert used.traffic["app"].user_ns <= used.usage["app"].cpu_ns
    # While it ran, under cAdvisor's names.
    labels = rf'id="/fargatelite/{task.id}/app",image="[^"]+",name="app",task_id="{task.id}"'
    for name in ("container_cpu_usage_seconds_total", "container_memory_usage_bytes",
                 "container_processes", "container_cpu_cfs_periods_total"):  # fmt: skip
        assert re.search(rf"^{name}\{{[^}}]*{labels}", shown, re.MULTILINE) or re.search(
            rf'^{name}\{{[^}}]*name="app"[^}}]*task_id="{task.id}"', shown, re.MULTILINE
        ), name
    assert "fargatelite_task_cost{" in shown
    bill = task.bill()
    assert bill.is_final
    assert bill.right_sizing is not None
    assert (bill.right_sizing.cpu_units, bill.damaged_records) == (256, 0)


def test_bytes_written_are_counted(definition: dict[str, object], settings: Settings) -> None:
    """By the task's file system with cgroup v1, by io.stat with v2; without what ext4 writes about
    itself, which is its own."""
    container = definition["containerDefinitions"][0]  # type: ignore[index]
    container["command"] = [container["command"][0].partition(";")[0]]
    with fargatelite.run_task(definition, settings=settings) as task:
        assert task.wait(timeout=30) == 0
    traffic = measure(read_task_ledger(ledger_of(settings, task.id))).traffic
    assert traffic[None].write_bytes == pytest.approx(WRITTEN_MIB * 2**20, rel=0.005)
    assert traffic["app"].write_bytes == pytest.approx(WRITTEN_MIB * 2**20, rel=0.005)


def test_block_io_is_told_by_container(definition: dict[str, object], settings: Settings) -> None:
    """Two that write at the same time, one by children that end one after the other, one that
    lives on and is asked while it does; with cgroup v1 as with v2."""
    first = definition["containerDefinitions"][0]  # type: ignore[index]
    write = "dd if=/dev/zero of=/data/{} bs=1048576 count={} conv=fsync 2>/dev/null"
    first["command"] = ["; ".join(write.format(f"a{number}", 8) for number in range(4)) + "; true"]
    first["essential"] = False
    second = {
        **first, "name": "stays", "essential": True,
        "command": [write.format("b", 24) + "; touch /data/done; while :; do sleep 0.1; done"],
    }  # fmt: skip
    definition["containerDefinitions"] = [first, second]
    with fargatelite.run_task(definition, settings=settings) as task:
        task.until("RUNNING", timeout=20)
        deadline = time.monotonic() + 30
        while True:
            get_sampler(settings).sample_now(task.id)
            slow = read_latest(ledger_of(settings, task.id)).slow
            written = {name: item.write_bytes or 0 for name, item in slow.items()}
            if min(written.get("app", 0) // 32, written.get("stays", 0) // 24) >= 2**20:
                break
            assert time.monotonic() < deadline, written
            time.sleep(0.1)  # the pace of asking; what is waited for is the disk
        task.stop()
    traffic = measure(read_task_ledger(ledger_of(settings, task.id))).traffic
    assert traffic["app"].write_bytes == pytest.approx(32 * 2**20, rel=0.01)
    assert traffic["stays"].write_bytes == pytest.approx(24 * 2**20, rel=0.01)
