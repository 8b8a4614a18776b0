"""nftables rules inside one task's network namespace: the way to its metadata endpoint, and faults.

The endpoint's address is in the task's namespace, and so would be its port 80: a listener there
would refuse every web server that binds 0.0.0.0:80 (EADDRINUSE, also with SO_REUSEADDR). It listens
on `METADATA_LISTEN_PORT`, and ports are rewritten both ways on loopback. Rewritten, not NATed: a
nat hook would turn connection tracking on for all of the task's packets. Where the kernel lets only
the host's user namespace rewrite (seen with Linux 7.3), it is NAT, and all else stays untracked.

Every fault is a base chain of its own, so the kernel alone knows which faults are on: nothing is
lost when another process adopts the task. All of it ends with the namespace.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from typing import Any

from fargatelite.descriptors import move_high
from fargatelite.errors import NetworkFailed
from fargatelite.network.nft import run_commands
from fargatelite.network.slot import METADATA_ADDRESS

__all__ = ["METADATA_LISTEN_PORT", "METADATA_PORT", "TaskRules"]

METADATA_PORT = 80
"""Where containers find the endpoint (contract 5)."""

METADATA_LISTEN_PORT = 51679
"""Where it listens: the EC2 agent's port, which ECS reserves (contract 5)."""

_TABLE = "inet fargatelite_task"
_REDIRECT = f"""
add table {_TABLE}
add chain {_TABLE} metadata {{ type filter hook output priority raw; policy accept; }}
flush chain {_TABLE} metadata
add rule {_TABLE} metadata ip daddr {METADATA_ADDRESS} tcp dport {METADATA_PORT} \
tcp dport set {METADATA_LISTEN_PORT}
add rule {_TABLE} metadata ip saddr {METADATA_ADDRESS} tcp sport {METADATA_LISTEN_PORT} \
tcp sport set {METADATA_PORT}
"""
_IS_OTHER = f"ip saddr != {METADATA_ADDRESS} ip daddr != {METADATA_ADDRESS} notrack"
_REDIRECT_BY_NAT = (
    "".join(
        f"""
add table {_TABLE}
add chain {_TABLE} untracked_{hook} {{ type filter hook {hook} priority raw; policy accept; }}
flush chain {_TABLE} untracked_{hook}
add rule {_TABLE} untracked_{hook} {_IS_OTHER}
add rule {_TABLE} untracked_{hook} meta nfproto ipv6 notrack
"""
        for hook in ("output", "prerouting")
    )
    + f"""
add chain {_TABLE} metadata_nat {{ type nat hook output priority -100; policy accept; }}
flush chain {_TABLE} metadata_nat
add rule {_TABLE} metadata_nat ip daddr {METADATA_ADDRESS} tcp dport {METADATA_PORT} \
dnat ip to {METADATA_ADDRESS}:{METADATA_LISTEN_PORT}
"""
)


class TaskRules:
    """The rules of one namespace. Not thread-safe. Keeps a descriptor of it until `close`."""

    def __init__(self, netns_fd: int) -> None:
        self.netns_fd = move_high(os.dup(netns_fd))

    def redirect_metadata(self, opened: list[Any] | None = None) -> None:
        """Makes `METADATA_PORT` reach the listener; may be repeated.

        `opened`: see `nft.run_commands`.
        Raises: NetworkFailed.
        """
        code, _, error = run_commands(self.netns_fd, _REDIRECT, opened)
        if code == 0:
            return
        if os.strerror(errno.EPERM) not in error:
            raise _refused(error)
        self.redirect_metadata_by_nat()

    def redirect_metadata_by_nat(self) -> None:
        """The same with connection tracking, of those connections only. Raises: NetworkFailed."""
        self._run(_REDIRECT_BY_NAT)

    def drop(self, chain: str, hook: str, match: str, spared: Sequence[str]) -> None:
        """Drops what `match` matches at `hook`, except what matches a `spared` expression.

        A chain of that name that exists stays as it is. Raises: NetworkFailed.
        """
        if self.has_chain(chain):
            return
        commands = [
            f"add table {_TABLE}",
            f"add chain {_TABLE} {chain} {{ type filter hook {hook} priority filter; }}",
            *(f"add rule {_TABLE} {chain} {match} {item} accept" for item in spared),
            f"add rule {_TABLE} {chain} {match} drop",
        ]
        self._run("\n".join(commands))

    def remove(self, chain: str) -> None:
        """Ends a `drop`; one that is not there is no error. Raises: NetworkFailed."""
        if self.has_chain(chain):
            self._run(f"flush chain {_TABLE} {chain}\ndelete chain {_TABLE} {chain}")

    def has_chain(self, chain: str) -> bool:
        """Whether a `drop` of that name is in force. Raises: NetworkFailed."""
        listed = json.loads(self._run("list chains inet") or '{"nftables": []}')["nftables"]
        table = _TABLE.split()[1]
        return any(
            item["chain"]["name"] == chain and item["chain"]["table"] == table
            for item in listed
            if "chain" in item
        )

    def close(self) -> None:
        """Lets go of the namespace; rules stay as long as it does."""
        if self.netns_fd >= 0:
            os.close(self.netns_fd)
            self.netns_fd = -1

    def _run(self, commands: str) -> str:
        code, output, error = run_commands(self.netns_fd, commands)
        if code != 0:
            raise _refused(error)
        return str(output)


def _refused(error: str) -> NetworkFailed:
    return NetworkFailed(
        f"nftables refused a rule in the task's namespace: {error.strip()}", path=_TABLE
    )
