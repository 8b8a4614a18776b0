"""Has `gc` happen by itself: after a task's end, so that no launch waits for it.

Whether it is time is one stat(2) of a file in the run root, whose lock says that somebody is at it.
What is removed then no task needs: nothing is ended, and it stops after a second, to go on when it
is time again. A process that ends meanwhile leaves what any killed one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

from fargatelite.settings import Settings

__all__ = ["collect_if_due", "is_due"]

BUDGET_S = 1.0
_STAMP = "collected"

logger = logging.getLogger(__name__)

_collecting = threading.Lock()


def is_due(settings: Settings) -> bool:
    """Whether `retention.every_minutes` have passed since the last time, on this run root."""
    every_s = settings.retention.every_minutes * 60
    if not every_s:
        return False
    try:
        # A clock that was set back must not put it off for ever.
        return not 0 <= time.time() - os.stat(_stamp(settings)).st_mtime < every_s
    except FileNotFoundError:
        return True


def collect_if_due(settings: Settings) -> None:
    """Removes what nobody needs any more if it is time and nobody else does.

    One after the other in a process: who calls this before it ends waits for one that goes on.
    """
    with _collecting:
        if is_due(settings):
            with contextlib.suppress(FileNotFoundError):  # the run root has gone
                _collect(settings)


def _stamp(settings: Settings) -> Path:
    return Path(settings.run_root, _STAMP)


def _collect(settings: Settings) -> None:
    from fargatelite.runtime.gc import collect_quietly

    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(_stamp(settings), flags | os.O_CREAT | os.O_EXCL, 0o600)
        os.utime(fd, (0, 0))  # it has not happened yet
    except FileExistsError:
        fd = os.open(_stamp(settings), flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_due(settings):
            return  # somebody has just done it
        report = collect_quietly(settings, BUDGET_S)
        os.utime(fd)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    for failure in report.failures:
        logger.warning("gc: %s", failure)
