"""Puts tasks back into the firewall when somebody takes its rules or elements away.

CVE-2025-54388: a reload of firewalld dropped the isolation of containers. Whatever leaves our table
(`nft flush ruleset`, `flush table`, a chain, a rule, an element, the table itself) is told by the
kernel (nfnetlink, group NFNLGRP_NFTABLES); a thread per network namespace that has tasks of this
process waits for that, looks what is missing and puts it back, within milliseconds. What an
administrator adds to the table stays, unless rules have to be put back.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading

from fargatelite.errors import FargateliteError
from fargatelite.network.firewall import TABLE, Admission, Opening, restore
from fargatelite.network.slot import Slot

__all__ = ["forget", "guard"]

logger = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
# NFNL_SUBSYS_NFTABLES, and NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET, DELSETELEM of
# include/uapi/linux/netfilter/nf_tables.h.
_DELETIONS = frozenset(10 << 8 | kind for kind in (2, 5, 8, 11, 14))
_NLMSG = struct.Struct("=IHHII")
_NFGENMSG_BYTES = 4
_TABLE_NAME = struct.pack("=HH", 5 + len(TABLE.split()[1]), 1) + TABLE.split()[1].encode() + b"\0"
"""The attribute that all these messages begin with: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and so on."""


class _Guard:
    """One namespace's tasks and the thread that waits there."""

    def __init__(self) -> None:
        self.tasks: dict[str, Admission] = {}
        self.opened: set[str] = set()
        self.lock = threading.Lock()
        self._told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._told.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
        self._wake, self._woken = socket.socketpair()
        # A thread begins in the network namespace of the one that starts it.
        threading.Thread(target=self._run, name="fargatelite-firewall", daemon=True).start()

    def look(self) -> None:
        """Has the thread look at once."""
        self._wake.send(b"1")

    def end(self) -> None:
        """Ends the thread; it closes what it waited on."""
        self._wake.close()

    def _run(self) -> None:
        import select

        with self._told, self._woken:
            while True:
                ready, _, _ = select.select([self._told, self._woken], [], [])
                if self._woken in ready:
                    if not self._woken.recv(64):
                        return
                    self._restore()
                elif self._is_deletion():
                    self._restore()

    def _is_deletion(self) -> bool:
        """Reads all that has been told, since one look answers it all."""
        found = False
        while True:
            try:
                data = self._told.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError:
                return True  # ENOBUFS: more was told than we could read
            while len(data) >= _NLMSG.size:
                length, kind, _, _, _ = _NLMSG.unpack_from(data)
                found = found or (
                    kind in _DELETIONS
                    and data.startswith(_TABLE_NAME, _NLMSG.size + _NFGENMSG_BYTES)
                )
                data = data[max(_NLMSG.size, length + 3 & ~3) :]

    def _restore(self) -> None:
        with self.lock:
            try:
                missing = restore(list(self.tasks.values()), self.opened)
            except (FargateliteError, OSError):
                logger.exception("tasks are not isolated: the firewall cannot be restored")
                return
        for name in missing:
            logger.warning("%s had been removed from the firewall; restored", name)


_guards: dict[tuple[int, int], _Guard] = {}
_lock = threading.Lock()


def _key() -> tuple[int, int]:
    return os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino


def guard(task: Admission, opening: Opening) -> None:
    """Keeps a task admitted, in the calling thread's network namespace, until `forget`.

    `opening`: what its admission answered. Raises: OSError.
    """
    with _lock:
        found = _guards.get(_key())
        if found is None:
            found = _guards[_key()] = _Guard()
        with found.lock:
            is_first = not found.tasks
            found.tasks[task.slot.host_interface] = task
            found.opened.update(opening.interfaces)
        if is_first and not opening.has_new_rules:
            # Somebody was here before: rules may have been lost while nobody looked.
            found.look()


def forget(slot: Slot) -> Admission | None:
    """Ends `guard`; before the task is expelled, and not while it is being restored. Returns what
    it guarded, if it did."""
    with _lock:
        found = _guards.get(_key())
        if found is None:
            return None
        with found.lock:
            task = found.tasks.pop(slot.host_interface, None)
        if not found.tasks:
            del _guards[_key()]
            found.end()
    return task
