"""How much a task may send and receive: nftables rules and elements, as text. Pure.

A packet over the rate is dropped, in either direction, at the host's end of the task's link, where
no task gets: TCP finds its rate by that, and nothing queues up. One pair of chains for each rate
serves all its tasks; each has a bucket of its own, an element of a dynamic set, which goes with the
task. A bucket holds what may pass in a second (nft_limit has none that is smaller): so much at once
after a pause, and the rate on average.

Not by tc: more kernels lack its police action and matchall classifier than `limit`, and a shaper at
the task's own end gives way to fault injection's (netem.py).

Source: nft(8), "LIMIT STATEMENT" and "SET STATEMENT"; CONFIG_NFT_LIMIT (Linux 3.13, in sets 5.7).
"""

from __future__ import annotations

from fargatelite.network.rules import OURS, TABLE, Element, Snapshot, chain_commands

__all__ = ["bandwidth_elements", "bandwidth_rules", "lacks_bandwidth"]

_BYTES_PER_MBIT = 125_000
# Direction: its base chain, hook, side of the task, map of tasks, buckets.
_DIRECTIONS = {
    # After `arriving` (raw, -300), where false sources die: what is counted is the task's.
    "send": (
        "sending", "type filter hook prerouting priority -290; policy accept;", "iifname", "saddr",
        "senders", "sent",
    ),
    "receive": (
        "receiving", "type filter hook postrouting priority mangle; policy accept;", "oifname",
        "daddr", "receivers", "received",
    ),
}  # fmt: skip


def bandwidth_rules(mbit: int) -> list[str]:
    """Commands for the chains of a rate; may be repeated. The table is there."""
    rate = mbit * _BYTES_PER_MBIT
    commands = []
    for name, (base, hook, interface, address, tasks, buckets) in _DIRECTIONS.items():
        bucket = f"@{buckets}_{mbit} {{ ip {address} limit rate over {rate} bytes/second"
        commands += [
            f"add map {TABLE} {tasks} {{ type ipv4_addr : verdict; }}",
            f"add set {TABLE} {buckets}_{mbit} {{ type ipv4_addr; size 65535; flags dynamic; }}",
            *chain_commands(
                base, (f"{interface} != {OURS} return", f"ip {address} vmap @{tasks}"), hook
            ),
            *chain_commands(f"{name}_{mbit}", (f"add {bucket} }} drop",)),
        ]
    return commands


def bandwidth_elements(address: str, mbit: int) -> list[Element]:
    """What a task of that rate adds; nothing for 0."""
    return [
        Element(name=tasks, key=(address,), value=f"jump {name}_{mbit}")
        for name, (_, _, _, _, tasks, _) in _DIRECTIONS.items()
        if mbit
    ]


def lacks_bandwidth(found: Snapshot, mbit: int) -> bool:
    """Whether a rule for that rate is not there."""
    return any(
        found.rules.get(base, 0) < 2 or found.rules.get(f"{name}_{mbit}", 0) < 1
        for name, (base, *_) in _DIRECTIONS.items()
    )
