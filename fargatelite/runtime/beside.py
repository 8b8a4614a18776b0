"""One call that blocks in the kernel, in a thread beside the caller's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["beside"]


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Runs `work` while the block runs; both are over afterwards.

    One after the other where there is no thread to be had (RLIMIT_NPROC, pids.max): what is removed
    this way must be removed then too.
    Raises: what the block raised, else what `work` raised. What else failed is a note on it.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="beside")
    try:
        thread.start()
    except RuntimeError:
        yield
        work()
        return
    try:
        yield
    except BaseException as error:
        thread.join()
        for failure in failures:
            error.add_note(f"meanwhile: {failure}")
        raise
    thread.join()
    if failures:
        raise failures[0]
