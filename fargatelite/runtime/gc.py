"""Finds and removes what is left of tasks whose supervisor is gone, and what nobody needs any more.

A task is left over when its run directory's lock is free. Its processes are killed, everything
that is named after it is removed, and it is recorded as STOPPED with the exit codes that its shim
wrote, so that its bill is right to the last second its shim saw. Doing it twice is no error.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from pathlib import Path

import msgspec

from fargatelite import names
from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import FargateliteError, StateCorrupt, TaskBusy, TaskNotFound
from fargatelite.meter.ledger import list_segments
from fargatelite.meter.rollup import drop_raw, remove_ledger, roll_up, rollup_path
from fargatelite.names import TaskId
from fargatelite.rundir import RunDirectory
from fargatelite.runtime import launch, record
from fargatelite.runtime import task as machine
from fargatelite.runtime.close import end_lost
from fargatelite.runtime.images import open_store
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import Settings

__all__ = ["Collected", "collect"]


class Collected(msgspec.Struct, kw_only=True, rename="camel"):
    """What was done, and what could not be."""

    tasks: list[str] = []
    orphans: list[str] = []
    records: list[str] = []
    images: list[str] = []
    freed_bytes: int = 0
    """Of ledgers' raw data that has been rolled up."""
    failures: list[str] = []


def _collect_task(settings: Settings, run: RunDirectory, report: Collected) -> None:
    try:
        run.lock()
    except (TaskBusy, TaskNotFound):
        return
    failures = end_lost(settings, run)
    report.tasks.append(str(run.task_id))
    report.failures += [f"task {run.task_id[:12]}: {failure}" for failure in failures]


def _orphans(settings: Settings) -> set[TaskId]:
    """Task ids that name a group, a slot or a writable layer, but have no run directory: a crash
    while the run root was lost, as in a reboot."""
    found: set[str] = set(detect_driver().list_tasks())
    found |= _slot_owners(settings)
    with contextlib.suppress(FileNotFoundError):
        found |= set(os.listdir(settings.layers))
    live = {str(run.task_id) for run in RunDirectory.list_all(settings.runs)}
    orphans = set()
    for text in found - live:
        with contextlib.suppress(StateCorrupt):
            orphans.add(names.parse_task_id(text))
    return orphans


def collect(
    settings: Settings, *, older_than_s: float | None = None, images: bool = False
) -> Collected:
    """Removes leftovers; with `older_than_s` also records of tasks that stopped longer ago (their
    logs and ledgers with them); with `images` also images and layers that no reference names.

    Groups of tasks of another run root on the same host are not told apart by name, so only ids
    that this data root knows (a writable layer, a slot) are taken for orphans.
    """
    report = Collected()
    RunDirectory.sweep_removed(settings.runs)
    for run in RunDirectory.list_all(settings.runs):
        _collect_task(settings, run, report)
    store = open_store(settings)
    for name in store.release_lost(
        Path(settings.run_root), lambda name: (settings.runs / name).exists()
    ):
        report.orphans.append(name)
    for task_id in sorted(_orphans(settings) & _known_ids(settings)):
        run = RunDirectory(settings.runs, task_id)
        failures = launch.remove_task(
            settings,
            run,
            detect_driver(),
            None,
            functools.partial(store.release, Path(settings.run_root), task_id),
            Timeline(),
        )
        report.orphans.append(str(task_id))
        report.failures += [f"task {task_id[:12]}: {failure}" for failure in failures]
    if older_than_s is not None:
        _collect_records(settings, time.time_ns() - int(older_than_s * 1e9), report)
    _collect_ledgers(settings, report)
    if images:
        try:
            report.images += [str(item) for item in open_store(settings).gc()]
        except FargateliteError as error:
            report.failures.append(f"images: {error}")
    return report


def _slot_owners(settings: Settings) -> set[TaskId]:
    from fargatelite.network import pool

    slots = pool.SlotPool(Path(settings.run_root))
    return {slot.task_id for slot in (*slots.list_own(), *slots.list_lost())}


def _known_ids(settings: Settings) -> set[TaskId]:
    found: set[TaskId] = _slot_owners(settings)
    for directory in (settings.layers, settings.records):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(directory):
                with contextlib.suppress(StateCorrupt):
                    found.add(names.parse_task_id(name))
    return found


def _collect_records(settings: Settings, before_ns: int, report: Collected) -> None:
    for found in record.list_records(settings, stopped=True):
        state = found.state
        if state.last_status != machine.TaskStatus.STOPPED or not state.stopped_at_ns:
            continue
        if state.stopped_at_ns >= before_ns:
            continue
        shutil.rmtree(settings.records / found.task_id)
        remove_ledger(settings.ledgers / f"{found.task_id}.ledger")
        report.records.append(found.task_id)


def _collect_ledgers(settings: Settings, report: Collected) -> None:
    """Rolls up ledgers that nobody writes any more, and drops raw data that has been kept long
    enough."""
    before_s = time.time() - settings.meter_raw_days * 86400
    for path in sorted(settings.ledgers.glob("*.ledger")):
        if "." in path.stem:
            continue  # a later segment: the first one stands for all
        try:
            if not rollup_path(path).exists():
                roll_up(path)
            if max(item.stat().st_mtime for item in list_segments(path)) < before_s:
                report.freed_bytes += drop_raw(path)
        except (FargateliteError, OSError) as error:
            report.failures.append(f"ledger {path.stem[:12]}: {error}")
