"""Finds and removes what is left of tasks whose supervisor is gone, and what nobody needs any more.

A task is left over when its run directory's lock is free. Its processes are killed, everything
that is named after it is removed, and it is recorded as STOPPED with the exit codes that its shim
wrote, so that its bill is right to the last second its shim saw. Doing it twice is no error.

`collect` is what `fargatelite gc` does, `collect_quietly` what happens by itself (`upkeep`).
"""

from __future__ import annotations

import contextlib
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
from fargatelite.runtime.capacity import remove_lost_tickets
from fargatelite.runtime.close import end_lost
from fargatelite.runtime.images import open_mounted, open_store
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import Settings

__all__ = ["Collected", "collect", "collect_quietly"]

_DAY_S = 86400
_LEFT_ASIDE_S = 3600
"""A file that is written aside is renamed within moments; what is older was left by a kill."""


class Collected(msgspec.Struct, kw_only=True, rename="camel"):
    """What was done, or with `dry_run` would be, and what could not be."""

    tasks: list[str] = []
    orphans: list[str] = []
    records: list[str] = []
    images: list[str] = []
    layers: list[str] = []
    freed_bytes: int = 0
    """Of layers, and of ledgers' raw data that has been rolled up."""
    failures: list[str] = []


class _Collection:
    """One pass. `deadline` is of the monotonic clock; None: to the end."""

    def __init__(self, settings: Settings, *, dry_run: bool, deadline: float | None = None) -> None:
        self.settings = settings
        self.report = Collected()
        self._dry_run = dry_run
        self._deadline = deadline

    def _has_time(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline

    # ---- tasks ----

    def end_tasks(self) -> None:
        """Ends tasks that nobody supervises."""
        for run in RunDirectory.list_all(self.settings.runs):
            if self._dry_run:
                if not run.is_supervised() and run.path.exists():
                    self.report.tasks.append(str(run.task_id))
                continue
            try:
                run.lock()
            except (TaskBusy, TaskNotFound):
                continue
            failures = end_lost(self.settings, run)
            self.report.tasks.append(str(run.task_id))
            self._fail(run.task_id, failures)

    def remove_orphans(self) -> None:
        """What is named after tasks that have no run directory: a crash while the run root was
        lost, as in a reboot, or in the last moments of a removal."""
        if not self._dry_run:
            RunDirectory.sweep_removed(self.settings.runs)
        mounted = open_mounted(self.settings)
        if not self._dry_run:
            self.report.orphans += mounted.release_lost(
                lambda name: (self.settings.runs / name).exists()
            )
        for task_id in sorted(_orphans(self.settings)):
            if task_id not in self.report.orphans:
                self.report.orphans.append(str(task_id))
            if self._dry_run:
                continue
            failures = launch.remove_task(
                self.settings, RunDirectory(self.settings.runs, task_id), detect_driver(), None,
                lambda task_id=task_id: mounted.release(task_id), Timeline(),  # type: ignore[misc]
            )  # fmt: skip
            self._fail(task_id, failures)

    def _fail(self, task_id: str, failures: list[str]) -> None:
        self.report.failures += [f"task {task_id[:12]}: {failure}" for failure in failures]

    # ---- records, logs, ledgers ----

    def remove_records(self, before_ns: int) -> None:
        """Records of tasks that stopped before then, with their logs and ledgers."""
        for directory in _directories(self.settings.records):
            if not self._has_time():
                return
            path = directory / "record.json"
            # Written once, when the task had stopped: most need not be read.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns >= before_ns:
                    continue
                try:
                    found = record.decode_record(path.read_bytes(), path)
                except StateCorrupt as error:
                    self.report.failures.append(f"record {directory.name[:12]}: {error}")
                    continue
                state = found.state
                stopped = state.last_status == machine.TaskStatus.STOPPED and state.stopped_at_ns
                if stopped and stopped < before_ns:
                    self._remove_record(directory)

    def remove_unrecorded(self) -> None:
        """Logs and ledgers of tasks that were lost before anything of them was recorded."""
        found = {item.name: item for item in _directories(self.settings.records)}
        for path in self.settings.ledgers.glob("*.ledger"):
            name = path.name.partition(".")[0]
            if names.is_task_id(name):
                found.setdefault(name, self.settings.records / name)
        # In this order: a task has its run directory before these, and until its record is there.
        for name, directory in sorted(found.items()):
            lives = (self.settings.runs / name).exists()
            if not lives and not (directory / "record.json").exists() and self._has_time():
                self._remove_record(directory)

    def _remove_record(self, directory: Path) -> None:
        self.report.records.append(directory.name)
        if not self._dry_run:
            # The ledger first: without its record nobody would look for it.
            remove_ledger(self.settings.ledgers / f"{directory.name}.ledger")
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)

    def remove_left_aside(self) -> None:
        """Slots and templates of file systems that a killed process was writing; its tickets."""
        from fargatelite.network.pool import SlotPool

        if self._dry_run:
            return
        SlotPool(Path(self.settings.run_root)).remove_left_aside()
        remove_lost_tickets(self.settings)
        before_s = time.time() - _LEFT_ASIDE_S
        with contextlib.suppress(FileNotFoundError):
            for path in self.settings.cache.iterdir():
                if path.name.startswith(".") and path.lstat().st_mtime < before_s:
                    path.unlink(missing_ok=True)

    def roll_up_ledgers(self) -> None:
        """Rolls up ledgers that nobody writes any more, and drops raw data that has been kept long
        enough."""
        before_s = time.time() - self.settings.meter_raw_days * _DAY_S
        for path in sorted(self.settings.ledgers.glob("*.ledger")):
            if "." in path.stem:
                continue  # a later segment: the first one stands for all
            if self._dry_run or not self._has_time():
                return
            try:
                if not rollup_path(path).exists():
                    roll_up(path)
                if max(item.stat().st_mtime for item in list_segments(path)) < before_s:
                    roll_up(path)  # again where a power cut has torn it
                    self.report.freed_bytes += drop_raw(path)
            except (FargateliteError, OSError) as error:
                self.report.failures.append(f"ledger {path.stem[:12]}: {error}")

    # ---- images ----

    def remove_images(self) -> None:
        """Images without a name or beyond what is kept, and layers without an image."""
        from fargatelite.images.collect import collect_images

        kept = self.settings.retention
        store = open_store(self.settings)
        try:
            done = collect_images(
                store,
                is_used=open_mounted(self.settings).has_users,
                unused_s=kept.image_days * _DAY_S or None,
                max_bytes=kept.images_mib * 2**20 or None,
                dry_run=self._dry_run,
            )
        except (FargateliteError, OSError) as error:
            self.report.failures.append(f"images: {error}")
            return
        self.report.images += [*done.images, *done.evicted]
        self.report.layers += done.layers
        self.report.freed_bytes += done.freed_bytes


def collect(
    settings: Settings,
    *,
    older_than_s: float | None = None,
    images: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Ends tasks that nobody supervises and removes leftovers; records (with logs and ledgers) of
    tasks that stopped longer ago than `older_than_s`, by default what `retention.record_days` says;
    images by `retention`, with `images` also those that no reference names.

    Groups of tasks of another run root on the same host are not told apart by name, so only ids
    that this data root knows (a writable layer, a slot) are taken for orphans.
    """
    collection = _Collection(settings, dry_run=dry_run)
    collection.end_tasks()
    collection.remove_orphans()
    if older_than_s is None and settings.retention.record_days:
        older_than_s = settings.retention.record_days * _DAY_S
    if older_than_s is not None:
        collection.remove_records(time.time_ns() - int(older_than_s * 1e9))
    collection.remove_unrecorded()
    collection.remove_left_aside()
    collection.roll_up_ledgers()
    if images or settings.retention.image_days or settings.retention.images_mib:
        collection.remove_images()
    return collection.report


def collect_quietly(settings: Settings, budget_s: float) -> Collected:
    """What `collect` does without ending tasks, which may be adopted; it stops after `budget_s`."""
    collection = _Collection(settings, dry_run=False, deadline=time.monotonic() + budget_s)
    collection.remove_orphans()
    if settings.retention.record_days:
        kept_ns = settings.retention.record_days * _DAY_S * 1_000_000_000
        collection.remove_records(time.time_ns() - kept_ns)
    collection.remove_unrecorded()
    collection.remove_left_aside()
    collection.roll_up_ledgers()
    if settings.retention.image_days or settings.retention.images_mib:
        collection.remove_images()
    return collection.report


def _directories(path: Path) -> list[Path]:
    """Those that are named after a task."""
    try:
        return [path / name for name in sorted(os.listdir(path)) if names.is_task_id(name)]
    except FileNotFoundError:
        return []


def _orphans(settings: Settings) -> set[TaskId]:
    """Tasks that have something on this host and no run directory: that is there before all else
    of a task and goes after it."""
    lost = {name for name in _named(settings) if not (settings.runs / name).exists()}
    # One that came to its end between the two looks has nothing any more.
    return {TaskId(name) for name in lost & _named(settings)} if lost else set()


def _named(settings: Settings) -> set[str]:
    """Task ids of ours that name a group, a slot or a writable layer."""
    found: set[str] = set(detect_driver().list_tasks())
    found |= _slot_owners(settings)
    with contextlib.suppress(FileNotFoundError):
        found |= set(os.listdir(settings.layers))
    with contextlib.suppress(FileNotFoundError):
        found |= {name.partition(".")[0] for name in os.listdir(settings.storage)}
    return found & _known_ids(settings)


def _slot_owners(settings: Settings) -> set[TaskId]:
    from fargatelite.network import pool

    slots = pool.SlotPool(Path(settings.run_root))
    return {slot.task_id for slot in (*slots.list_own(), *slots.list_lost())}


def _known_ids(settings: Settings) -> set[str]:
    found: set[str] = set(_slot_owners(settings))
    for directory in (settings.layers, settings.storage, settings.records):
        with contextlib.suppress(FileNotFoundError):
            found |= {name.partition(".")[0] for name in os.listdir(directory)}
    return {name for name in found if names.is_task_id(name)}
