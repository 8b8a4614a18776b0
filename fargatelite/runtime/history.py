"""Reads what happened to one task or to all, and follows it: inotify(7), never polling."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

from fargatelite import names
from fargatelite.errors import StateCorrupt
from fargatelite.rundir import ensure_private_directory
from fargatelite.runtime.events import Event, decode_event, events_path
from fargatelite.settings import Settings

__all__ = ["EventFollower"]

_CHUNK_BYTES = 1 << 20


class _Tail:
    """What has been read of one task's events."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def read(self) -> Iterator[Event]:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return
        while chunk := os.read(self._fd, _CHUNK_BYTES):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                yield decode_event(line)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class EventFollower:
    """Events of one task, or with `task_id` None of all, those of tasks yet to come included."""

    def __init__(self, settings: Settings, task_id: str | None) -> None:
        import inotify_simple

        self._records = settings.records
        self._only = task_id
        self._tails: dict[str, _Tail] = {}
        self._flags = inotify_simple.flags
        self._inotify = inotify_simple.INotify(nonblocking=True)
        ensure_private_directory(Path(settings.data_root))
        self._records.mkdir(mode=0o700, exist_ok=True)
        # Before the first look, so that nothing comes between.
        self._inotify.add_watch(os.fspath(self._records), self._flags.CREATE)
        self._find_tasks()

    def _find_tasks(self) -> None:
        wanted = [self._only] if self._only is not None else os.listdir(self._records)
        for name in wanted:
            if name in self._tails:
                continue
            with contextlib.suppress(StateCorrupt, FileNotFoundError):
                directory = self._records / names.parse_task_id(name)
                self._inotify.add_watch(
                    os.fspath(directory), self._flags.CREATE | self._flags.MODIFY
                )
                self._tails[name] = _Tail(events_path(self._records, name))

    def read_new(self) -> list[Event]:
        """Events since the last call, in the order of their times.

        Raises: StateCorrupt for a line that is none of ours.
        """
        self._inotify.read(timeout=0)  # the events only say that something is there
        self._find_tasks()
        found = [event for tail in self._tails.values() for event in tail.read()]
        return sorted(found, key=lambda event: event.at_ns)

    def follow(self, is_over: Callable[[], bool], wake_fd: int) -> Iterator[Event]:
        """Events until `is_over()`; `wake_fd` becomes readable when that may have changed."""
        while True:
            last = is_over()  # before the read: what was written until then is in it
            yield from self.read_new()
            if last:
                return
            select.select([self._inotify.fileno(), wake_fd], [], [])

    def close(self) -> None:
        """Closes all files."""
        self._inotify.close()
        for tail in self._tails.values():
            tail.close()
