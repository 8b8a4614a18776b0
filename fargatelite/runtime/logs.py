"""Follows the logs of a task's containers while they grow and are rotated.

Waiting is inotify(7), never polling. The files are read by logdrivers/local.py.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

from fargatelite.logdrivers.local import LogLine, LogTail, log_path, read_log

__all__ = ["LogFollower", "LogLine", "log_path", "read_log"]


class LogFollower:
    """New records of several containers of a task, as they are written.

    `fileno()` is readable when `read_new` may have something.
    """

    def __init__(self, records: Path, task_id: str, containers: tuple[str, ...]) -> None:
        import inotify_simple

        directory = records / task_id / "logs"
        self._tails = [LogTail(name, log_path(records, task_id, name)) for name in containers]
        self._inotify = inotify_simple.INotify(nonblocking=True)
        flags = inotify_simple.flags
        # A rotated log is a new file, so CREATE tells of that too.
        self._inotify.add_watch(os.fspath(directory), flags.MODIFY | flags.CREATE)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return int(self._inotify.fileno())

    def read_new(self) -> Iterator[LogLine]:
        """Records written since the last call, per container in order."""
        self._inotify.read(timeout=0)  # the events only say that something is there
        for tail in self._tails:
            yield from tail.read()

    def follow(self, is_over: Callable[[], bool], wake_fd: int) -> Iterator[LogLine]:
        """Records until `is_over()`; `wake_fd` becomes readable when that may have changed."""
        while True:
            last = is_over()  # before the read: what was written until then is in it
            yield from self.read_new()
            if last:
                return
            select.select([self.fileno(), wake_fd], [], [])

    def close(self) -> None:
        """Closes all files."""
        self._inotify.close()
        for tail in self._tails:
            tail.close()
