"""What `gc` takes and what it leaves: records by age, what was never recorded, and by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, find_task, run_task
from fargatelite.images.image import ImageBackend
from fargatelite.images.mounted import MountedImages
from fargatelite.names import TaskId, new_task_id
from fargatelite.network.pool import HOST_SLOTS
from fargatelite.runtime import upkeep
from fargatelite.runtime.gc import collect
from fargatelite.runtime.images import open_store
from fargatelite.runtime.record import read_record, write_stopped
from fargatelite.settings import Retention

from .test_container_features import TIMEOUT_S, definition, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]

DAY_NS = 86400 * 10**9


def run_once(settings: Settings, image: str) -> str:
    task = run_task(definition(image, shell("app", "echo out")), settings=settings)
    assert task.wait(TIMEOUT_S) == 0
    return task.id


def make_older(settings: Settings, task_id: str, days: float) -> None:
    """As if the task had stopped so many days ago."""
    record = read_record(settings, task_id)
    then_ns = time.time_ns() - int(days * DAY_NS)
    state = msgspec.structs.replace(record.state, stopped_at_ns=then_ns)
    write_stopped(settings, msgspec.structs.replace(record, state=state))
    os.utime(settings.records / task_id / "record.json", ns=(then_ns, then_ns))


def of_task(settings: Settings, task_id: str) -> list[str]:
    """What the data root has of a task."""
    roots = (settings.records, settings.ledgers)
    return [path.name for root in roots for path in root.glob(f"{task_id}*")]


def test_records_are_kept_for_seven_days(settings: Settings, busybox: str) -> None:
    old, young = run_once(settings, busybox), run_once(settings, busybox)
    make_older(settings, old, 7.1)
    make_older(settings, young, 6.9)
    assert len(of_task(settings, old)) == 3  # record, samples, their sums
    would = collect(settings, dry_run=True)
    assert would.records == [old]
    assert len(of_task(settings, old)) == 3
    assert collect(settings).records == [old]
    assert of_task(settings, old) == []
    assert find_task(young, settings=settings).bill().is_final
    for kept in (msgspec.structs.replace(settings, retention=Retention(record_days=0)), settings):
        assert collect(kept).records == []
    longer = msgspec.structs.replace(settings, retention=Retention(record_days=6))
    assert collect(longer).records == [young]


def test_what_was_never_recorded_goes(settings: Settings, busybox: str) -> None:
    """Killed between the run directory and the first state: logs and a ledger, no record."""
    task = run_task(definition(busybox, shell("app", "sleep 300", stopTimeout=2)),
                    settings=settings).until("RUNNING", TIMEOUT_S)  # fmt: skip
    lost, only_ledger = new_task_id(), new_task_id()
    (settings.records / lost / "logs").mkdir(parents=True)
    (settings.ledgers / f"{lost}.ledger").write_bytes(b"")
    (settings.ledgers / f"{only_ledger}.1.ledger").write_bytes(b"")
    (settings.ledgers / f"{only_ledger}.ledger").write_bytes(b"")
    assert sorted(collect(settings, dry_run=True).records) == sorted([lost, only_ledger])
    assert sorted(collect(settings).records) == sorted([lost, only_ledger])
    assert of_task(settings, lost) == of_task(settings, only_ledger) == []
    assert task.last_status == "RUNNING"
    task.stop()
    assert of_task(settings, task.id)


def test_a_use_of_an_image_whose_task_is_gone_ends(settings: Settings, busybox: str) -> None:
    """Killed between the unlink of the last user and the unmount, or before it."""
    run_once(settings, busybox)
    store = open_store(settings)
    image = store.find(busybox)
    assert image is not None
    mounts = Path(settings.run_root, "images")
    for task_id in (new_task_id(), new_task_id()):
        target = MountedImages(store, Path(settings.run_root)).ensure_mounted(image, task_id)
    (target.parent / "users" / task_id).unlink()
    report = collect(settings)
    assert len(report.orphans) == 1
    assert list(mounts.iterdir()) == []
    MountedImages(store, Path(settings.run_root)).ensure_mounted(image, task_id)
    (target.parent / "users" / task_id).unlink()
    assert collect(settings).orphans == []
    assert list(mounts.iterdir()) == []


def test_files_that_a_kill_left_aside_go(settings: Settings, busybox: str) -> None:
    run_once(settings, busybox)
    slot = HOST_SLOTS / ".7.json.abcd"
    slot.write_bytes(b"{")
    old, new = settings.cache / ".old.ext4", settings.cache / ".new.ext4"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    collect(settings)
    assert not slot.exists()
    assert not old.exists()
    assert new.exists()


def test_it_happens_by_itself_and_ends_no_task(settings: Settings, busybox: str) -> None:
    """After a task's end, once within the time that is configured."""
    stale = run_once(settings, busybox)
    make_older(settings, stale, 8)
    upkeep.collect_if_due(settings)  # waits for the one after that task
    assert not upkeep.is_due(settings)
    collected = Path(settings.run_root, "collected")
    code = (
        "import fargatelite, os, signal\n"
        f"settings = fargatelite.Settings(data_root={settings.data_root!r},"
        f" run_root={settings.run_root!r})\n"
        f"task = fargatelite.run_task({definition(busybox, shell('app', 'sleep 300'))!r},"
        " settings=settings).until('RUNNING', 60)\n"
        "print(task.id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    lost = done.stdout.strip()
    run_once(settings, busybox)
    assert of_task(settings, stale)
    os.utime(collected, (0, 0))
    run_once(settings, busybox)
    upkeep.collect_if_due(settings)
    assert not of_task(settings, stale)
    assert (settings.runs / lost).exists()
    os.utime(collected, (time.time() + 9e6,) * 2)  # a clock that was set back
    assert upkeep.is_due(settings)
    never = msgspec.structs.replace(settings, retention=Retention(every_minutes=0))
    assert not upkeep.is_due(never)
    assert collect(settings).tasks == [lost]


def test_one_by_itself_stops_in_time(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [run_once(settings, busybox) for _ in range(2)]
    upkeep.collect_if_due(settings)
    for task_id in tasks:
        make_older(settings, task_id, 8)
    os.utime(Path(settings.run_root, "collected"), (0, 0))
    monkeypatch.setattr(upkeep, "BUDGET_S", 0.0)
    upkeep.collect_if_due(settings)
    assert all(of_task(settings, task_id) for task_id in tasks)


def test_collecting_beside_launches_takes_nothing_of_them(settings: Settings, busybox: str) -> None:
    """Records at once, images beyond nothing: whatever is not in use is fair game."""
    greedy = msgspec.structs.replace(settings, retention=Retention(image_days=0, images_mib=1))
    store = open_store(settings)
    store.backend = ImageBackend.AUTO
    over = threading.Event()
    failures: list[str] = []
    ended: list[str] = []

    def collect_always() -> None:
        while not over.is_set():
            report = collect(greedy, images=True)
            failures.extend(report.failures)
            ended.extend(report.tasks)

    thread = threading.Thread(target=collect_always)
    thread.start()
    try:
        for _ in range(10):
            task = run_task(definition(busybox, shell("app", "exit 3")), settings=settings)
            assert task.wait(TIMEOUT_S) == 3, task.stopped_reason
            assert find_task(task.id, settings=settings).bill().is_final
    finally:
        over.set()
        thread.join()
    assert failures == []
    assert ended == []


def test_the_command_says_what_it_would_do(settings: Settings, busybox: str) -> None:
    # By itself it may come after the task, and take the record that is made older.
    never = msgspec.structs.replace(settings, retention=Retention(every_minutes=0))
    old = run_once(never, busybox)
    make_older(settings, old, 30)
    shutil.rmtree(settings.records / old / "logs")
    command = [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
               "--run-root", settings.run_root, "gc"]  # fmt: skip

    def say(*options: str) -> str:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert say("--dry-run") == f"would have removed record of {old}\n"
    found = json.loads(say("--dry-run", "--output", "json"))
    assert found["records"] == [old]
    assert say() == f"removed record of {old}\n"
    assert say() == ""
    assert TaskId(old) not in os.listdir(settings.records)
