"""libnftables: contexts of a network namespace, opened and closed."""

from __future__ import annotations

import errno
import functools
import os
import queue
import threading
from typing import Any

from fargatelite.descriptors import FD_SETSIZE, can_open_low
from fargatelite.errors import HostUnsupported, NetworkFailed
from fargatelite.network.namespaces import run_in_namespace

__all__ = ["open_context", "run_commands"]


def open_context() -> Any:
    """A libnftables context, bound to the calling thread's network namespace.

    Raises: HostUnsupported without libnftables; NetworkFailed when the process has no descriptor
    left that libnftables can wait on: it would end the process (fargatelite.descriptors).
    """
    if not can_open_low():
        raise NetworkFailed(
            f"this process has used up its descriptors below {FD_SETSIZE}, which libnftables "
            "needs: allow it more (ulimit -n; fargatelite's own are moved above), close some, or "
            "run tasks from another process (run --detach)",
            errno=errno.EMFILE,
        )
    try:
        import nftables

        context = nftables.Nftables()
    except OSError as error:
        raise HostUnsupported("libnftables is missing: apt-get install libnftables1") from error
    context.set_json_output(True)
    return context


def run_commands(
    netns_fd: int, commands: str, opened: list[Any] | None = None
) -> tuple[int, str, str]:
    """What libnftables answers in a namespace: code, output, error.

    `opened`: a context that was opened there by who was there anyway, its only reference.
    Raises: as `open_context`; NetworkFailed when the namespace cannot be entered.
    """
    held = [run_in_namespace(netns_fd, open_context)] if opened is None else opened
    try:
        result: tuple[int, str, str] = held[0].cmd(commands)
    finally:
        _closer(os.getpid()).take(held)
    return result


class _Closer:
    """Closes contexts on a thread of its own: after a change that waits for an RCU grace period,
    some 10 ms, which is not to be a launch's business."""

    def __init__(self) -> None:
        self._held: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="fargatelite-nft", daemon=True).start()

    def take(self, held: list[Any]) -> None:
        """A list with the only reference to a context."""
        self._held.put(held)

    def _run(self) -> None:
        while True:
            self._held.get().clear()


@functools.cache
def _closer(process: int) -> _Closer:
    return _Closer()  # threads do not survive a fork
