"""What a process can do with a task that another one supervises: wait for its end.

Waiting is inotify(7) on the run directory, never polling.
"""

from __future__ import annotations

import contextlib
import os
import time

from fargatelite import names
from fargatelite.errors import TaskBusy
from fargatelite.rundir import RunDirectory
from fargatelite.runtime.record import TaskRecord, read_record
from fargatelite.settings import Settings

__all__ = [
    "LOOK_AGAIN_S",
    "StateWatch",
    "ensure_task_supervised",
    "is_one_lost",
    "wait_stopped",
]


LOOK_AGAIN_S = 2.0


class StateWatch:
    """Tells when a task's recorded state may have changed; `fileno()` is for select."""

    def __init__(self, settings: Settings, task_id: str) -> None:
        import inotify_simple

        self._settings = settings
        self._task_id = task_id
        self._inotify = inotify_simple.INotify(nonblocking=True)
        flags = inotify_simple.flags
        run = RunDirectory(settings.runs, names.parse_task_id(task_id))
        with contextlib.suppress(FileNotFoundError):  # over already: the record says so
            self._inotify.add_watch(
                os.fspath(run.path), flags.MOVED_TO | flags.DELETE_SELF | flags.DELETE
            )

    def fileno(self) -> int:
        """Readable when something changed."""
        return int(self._inotify.fileno())

    def read(self, timeout_s: float | None) -> TaskRecord:
        """The record after at most `timeout_s` (None: without bound) or the next change."""
        timeout_ms = None if timeout_s is None else max(0, int(timeout_s * 1000))
        self._inotify.read(timeout=timeout_ms)
        return read_record(self._settings, self._task_id)

    def close(self) -> None:
        """Ends the watch."""
        self._inotify.close()


def is_one_lost(settings: Settings) -> bool:
    """Whether a task of this run root has nobody who supervises it; some 20 us per task."""
    return any(
        not run.is_supervised() and run.path.exists()
        for run in RunDirectory.list_all(settings.runs)
    )


def wait_stopped(settings: Settings, task_id: str, timeout_s: float | None) -> TaskRecord:
    """Waits until a task is STOPPED and returns its record. One that loses its supervisor meanwhile
    is adopted.

    Raises: TimeoutError; TaskNotFound; FargateliteError when nobody can adopt it.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    watch = StateWatch(settings, task_id)
    run = RunDirectory(settings.runs, names.parse_task_id(task_id))
    try:
        record = read_record(settings, task_id)
        while record.state.last_status != "STOPPED" or run.path.exists():
            ensure_task_supervised(settings, run)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"task {task_id[:12]} is still {record.state.last_status}")
            # A supervisor that is killed changes no file: look again now and then.
            record = watch.read(min(left, LOOK_AGAIN_S) if left is not None else LOOK_AGAIN_S)
        return record
    finally:
        watch.close()


def ensure_task_supervised(settings: Settings, run: RunDirectory) -> None:
    """Has a task adopted that nobody supervises.

    Raises: TaskBusy when that is not possible; FargateliteError with the reason.
    """
    # In this order: a task that ends meanwhile is gone before its lock is free.
    if run.is_supervised() or not run.path.exists():
        return
    from fargatelite.runtime.detached import ensure_supervised

    ensure_supervised(settings)
    if not run.is_supervised() and run.path.exists():
        raise TaskBusy(
            f"task {run.task_id[:12]} has lost its supervisor and nobody takes it over: see "
            "supervisor.log in the run root; `fargatelite gc` ends it"
        )
