"""When a command that follows a task is done: its end, the loss of its supervisor, or a signal."""

from __future__ import annotations

import os
import signal
import threading

from fargatelite.errors import FargateliteError
from fargatelite.runtime.remote import wait_stopped
from fargatelite.settings import Settings

__all__ = ["End"]


class End:
    """Waits on a thread for the end of a task: STOPPED, or its supervisor lost, after which it
    would write no more state and a follower would wait for ever. Without a task only for signals.

    `wake` is readable then, and at a signal: one that comes between Python's look for signals and
    the wait itself would interrupt nothing (signal.set_wakeup_fd).
    """

    def __init__(self, settings: Settings, task_id: str | None) -> None:
        self.is_there = threading.Event()
        self.failure: FargateliteError | None = None
        self.wake, self._tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        if task_id is not None:
            threading.Thread(target=self._wait, args=(settings, task_id), daemon=True).start()

    def _wait(self, settings: Settings, task_id: str) -> None:
        try:
            wait_stopped(settings, task_id, None)
        except FargateliteError as error:
            self.failure = error
        self.is_there.set()
        os.write(self._tell, b"\0")
