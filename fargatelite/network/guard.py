"""Puts tasks back into the firewall when somebody takes the table away.

CVE-2025-54388: a reload of firewalld dropped the isolation of containers. `nft flush ruleset` and
`nft delete table` are told by the kernel (nfnetlink, group NFNLGRP_NFTABLES); a thread per network
namespace that has tasks of this process waits for that and admits them again, within a millisecond.
Changes within the table (`nft flush table`, single rules) are an administrator's own and stay.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Sequence

from fargatelite.errors import FargateliteError
from fargatelite.network.slot import PortPublication, Slot

__all__ = ["forget", "guard"]

logger = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_NFT_MSG_DELTABLE = 10 << 8 | 2  # NFNL_SUBSYS_NFTABLES, include/uapi/linux/netfilter/nf_tables.h
_NLMSG = struct.Struct("=IHHII")


class _Guard:
    """One namespace's tasks and the thread that waits there."""

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[Slot, tuple[PortPublication, ...]]] = {}
        self.lock = threading.Lock()
        self._told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._told.bind((0, 1 << _NFNLGRP_NFTABLES - 1))
        self._wake, self._woken = socket.socketpair()
        # A thread begins in the network namespace of the one that starts it.
        threading.Thread(target=self._run, name="fargatelite-firewall", daemon=True).start()

    def end(self) -> None:
        """Ends the thread; it closes what it waited on."""
        self._wake.close()

    def _run(self) -> None:
        import select

        with self._told, self._woken:
            while True:
                ready, _, _ = select.select([self._told, self._woken], [], [])
                if self._woken in ready:
                    return
                if self._is_deletion():
                    self._restore()

    def _is_deletion(self) -> bool:
        try:
            data = self._told.recv(1 << 16)
        except OSError:
            return True  # ENOBUFS: more was told than we could read
        while len(data) >= _NLMSG.size:
            length, kind, _, _, _ = _NLMSG.unpack_from(data)
            if kind == _NFT_MSG_DELTABLE:
                return True
            data = data[max(_NLMSG.size, length + 3 & ~3) :]
        return False

    def _restore(self) -> None:
        from fargatelite.network import firewall, rtnetlink

        with self.lock:
            try:
                admitted = set(firewall.list_admitted()) if self.tasks else set()
                for slot, publish in self.tasks.values():
                    if (slot.host_interface, slot.address) in admitted:
                        continue
                    logger.warning(
                        "%s was removed from the firewall; restored", slot.host_interface
                    )
                    firewall.admit(slot, rtnetlink.read_host_routes().interfaces, publish)
            except (FargateliteError, OSError):
                logger.exception("tasks are not isolated: the firewall cannot be restored")


_guards: dict[tuple[int, int], _Guard] = {}
_lock = threading.Lock()


def _key() -> tuple[int, int]:
    return os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino


def guard(slot: Slot, publish: Sequence[PortPublication] = ()) -> None:
    """Keeps a task admitted, in the calling thread's network namespace, until `forget`.

    Raises: OSError.
    """
    with _lock:
        found = _guards.get(_key())
        if found is None:
            found = _guards[_key()] = _Guard()
        with found.lock:
            found.tasks[slot.host_interface] = (slot, tuple(publish))


def forget(slot: Slot) -> None:
    """Ends `guard`; before the task is expelled, and not while it is being restored."""
    with _lock:
        found = _guards.get(_key())
        if found is None:
            return
        with found.lock:
            found.tasks.pop(slot.host_interface, None)
        if not found.tasks:
            del _guards[_key()]
            found.end()
