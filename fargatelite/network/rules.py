"""The firewall's rules, and what each task adds to its sets: as data and text. Pure.

One base set of rules serves all tasks. A task adds elements and nothing else: itself to `tasks`,
its ports to `published`, and with security groups itself to `grouped`, to each group's members and
to verdict maps that lead its packets through its groups' chains (`ingress1` for the first group and
so on: a group's chain that lets nothing through returns, and the next one is asked).

A group's chains are named by a digest of its rules. So a chain that exists has the right rules, two
processes with different configurations do not undo each other's, and a task keeps the rules with
which it started. Its members are a set named by its id: a reference means whoever is in it now.

Egress is judged before ingress, in base chains one after the other, since `accept` ends only its
own. Rules whose range is a single address (/32) stand in chains of their own (`named`): they alone
open services of the host and link-local addresses.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from fargatelite.names import INTERFACE_PREFIX
from fargatelite.network.slot import PortPublication, Slot
from fargatelite.security_groups import MAX_GROUPS, Permission, SecurityGroup

__all__ = [
    "BASE_CHAINS",
    "OURS",
    "TABLE",
    "Element",
    "Snapshot",
    "base_rules",
    "chain_commands",
    "count_rules",
    "elements_of",
    "group_chains",
    "group_rules",
    "parse_snapshot",
]

TABLE = "inet fargatelite"
COMMENT = "fargatelite"
"""On each of our rules: what an administrator adds is told apart from what we miss."""

_COUNTED = "counted"
"""The chain that bounds each task's connections, and, with this name, its set of counters."""
OURS = f'"{INTERFACE_PREFIX}*"'
_PUBLISHED = "inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service"
_TO_PUBLISHED = "dnat ip to meta l4proto . ip daddr . th dport map @published"
_LINK_LOCAL = "169.254.0.0/16"
_STAGES = ("ingress", "egress", "named")
_KEY_LENGTHS = {"tasks": 2, "published": 3}
_PROTOCOLS = {"6": "tcp", "17": "udp"}
_SETS = (
    "set tasks { type ifname . ipv4_addr; }",
    "set opened { type ifname; }",
    "set grouped { type ipv4_addr; }",
    f"map published {{ type {_PUBLISHED}; }}",
    *(
        f"map {stage}{number} {{ type ipv4_addr : verdict; }}"
        for stage in _STAGES
        for number in range(1, MAX_GROUPS + 1)
    ),
)


def _through(stage: str, address: str) -> tuple[str, ...]:
    """Asks each of the task's groups in turn; none of them accepts: dropped."""
    asked = (f"ip {address} vmap @{stage}{number}" for number in range(1, MAX_GROUPS + 1))
    return (*asked, "drop")


# Chains without a hook come first: others lead to them.
_CHAINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "group_named": ("", _through("named", "saddr")),
    "group_egress": (
        "",
        (f"ip daddr {_LINK_LOCAL} goto group_named", *_through("egress", "saddr")),
    ),
    "group_ingress": ("", _through("ingress", "daddr")),
    "arriving": (
        "type filter hook prerouting priority raw; policy accept;",
        (
            f"iifname != {OURS} return",
            "meta nfproto != ipv4 drop",
            "iifname . ip saddr != @tasks drop",
            "ip daddr 127.0.0.0/8 drop",
        ),
    ),
    "input": (
        "type filter hook input priority filter; policy accept;",
        (
            f"iifname != {OURS} return",
            "ct state established,related accept",
            "ip daddr %(gateway)s icmp type echo-request accept",
            "ip saddr @grouped goto group_named",
            "drop",
        ),
    ),
    "egress": (
        "type filter hook forward priority filter - 1; policy accept;",
        (
            f"iifname != {OURS} return",
            # Before the connections that exist: one that was made while the rules were gone ends.
            f"oifname {OURS} ip saddr != @grouped drop",
            f"oifname {OURS} ip daddr != @grouped drop",
            f"ip daddr {_LINK_LOCAL} ip saddr != @grouped drop",
            "ct state established,related accept",
            "ip saddr @grouped goto group_egress",
        ),
    ),
    "forward": (
        "type filter hook forward priority filter; policy accept;",
        (
            f"iifname {OURS} oifname != {OURS} accept",
            f"oifname {OURS} ct state established,related accept",
            f"oifname {OURS} ip daddr @grouped goto group_ingress",
            f"oifname {OURS} iifname {OURS} drop",
            f"oifname {OURS} ct status dnat accept",
            f"oifname {OURS} drop",
            "iifname @opened drop",
        ),
    ),
    "translate": (
        "type nat hook prerouting priority dstnat; policy accept;",
        (f"iifname != {OURS} {_TO_PUBLISHED}",),
    ),
    "translate_local": ("type nat hook output priority -100; policy accept;", (_TO_PUBLISHED,)),
    "leaving": (
        "type nat hook postrouting priority srcnat; policy accept;",
        (
            f"oifname {OURS} ip saddr 127.0.0.0/8 masquerade",
            f"iifname {OURS} oifname != {OURS} masquerade",
        ),
    ),
}
BASE_CHAINS = tuple(_CHAINS)


class Element(msgspec.Struct, frozen=True, kw_only=True):
    """An element of a set, or of a map where it has a value."""

    name: str
    key: tuple[str, ...]
    value: str | None = None

    def text(self) -> str:
        """As nft(8) reads it."""
        key = " . ".join(f'"{part}"' if self.name == "opened" else part for part in self.key)
        if self.name == "tasks":
            key = f'"{self.key[0]}" . {self.key[1]}'
        value = "" if self.value is None else f" : {self.value}"
        return f"{self.name} {{ {key}{value} }}"


def chain_commands(name: str, rules: Sequence[str], hook: str = "") -> list[str]:
    """Made, or brought back to what it was."""
    return [
        f"add chain {TABLE} {name}" + (f" {{ {hook} }}" if hook else ""),
        f"flush chain {TABLE} {name}",
        *(f'add rule {TABLE} {name} {rule} comment "{COMMENT}"' for rule in rules),
    ]


def base_rules(gateway: str) -> list[str]:
    """Commands that make table, sets and base chains, or restore them; sets keep elements."""
    commands = [f"add table {TABLE}"]
    for item in _SETS:
        kind, rest = item.split(" ", 1)
        commands.append(f"add {kind} {TABLE} {rest}")
    for name, (hook, rules) in _CHAINS.items():
        commands += chain_commands(name, [rule % {"gateway": gateway} for rule in rules], hook)
    return commands


def count_rules(connections: int) -> list[str]:
    """Commands that bound the connections which each task has tracked at a time: the table of the
    host's connection tracking is one for all. Apart from the base rules, since a kernel may be
    without CONFIG_NFT_CONNLIMIT (`ct count`, Linux 4.18)."""
    counter = f"@connections {{ ip saddr ct count over {connections} }}"
    return [
        f"add set {TABLE} connections {{ type ipv4_addr; size 65535; flags dynamic; }}",
        *chain_commands(
            _COUNTED,
            (f"iifname != {OURS} return", f"ct state new add {counter} drop"),
            "type filter hook prerouting priority mangle; policy accept;",
        ),
    ]


def _members(group_id: str) -> str:
    return f"members_{group_id.removeprefix('sg-')}"


def _is_single(cidr: str) -> bool:
    return cidr.endswith("/32")


def _matches(item: Permission) -> str:
    if item.protocol == "-1":
        return ""
    if item.protocol in ("tcp", "udp"):
        return f"{item.protocol} dport {item.from_port}-{item.to_port} "
    if item.protocol == "icmp":
        kind = "" if item.from_port is None else f"icmp type {item.from_port} "
        code = "" if item.to_port is None else f"icmp code {item.to_port} "
        return "meta l4proto icmp " + kind + code
    return f"meta l4proto {item.protocol} "


def _rules(items: Sequence[Permission], address: str) -> Iterator[str]:
    for item in items:
        if item.cidrs:
            # Without overlaps: an anonymous set of intervals takes none.
            ranges = [
                str(network)
                for network in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, item.cidrs))
            ]
            match = "" if ranges == ["0.0.0.0/0"] else f"ip {address} {{ {', '.join(ranges)} }} "
            yield f"{_matches(item)}{match}accept"
        for group_id in item.group_ids:
            yield f"{_matches(item)}ip {address} @{_members(group_id)} accept"


def _named(group: SecurityGroup) -> list[Permission]:
    return [
        msgspec.structs.replace(item, cidrs=single, group_ids=())
        for item in group.egress
        if (single := tuple(cidr for cidr in item.cidrs if _is_single(cidr)))
    ]


def group_chains(group: SecurityGroup) -> dict[str, list[str]]:
    """Each chain of the group and its rules, by stage; a stage without rules is left out."""
    found = {
        "ingress": list(_rules(group.ingress, "saddr")),
        "egress": list(_rules(group.egress, "daddr")),
        "named": list(_rules(_named(group), "daddr")),
    }
    return {stage: rules for stage, rules in found.items() if rules}


def _chain_name(stage: str, rules: Sequence[str]) -> str:
    return f"{stage}_{hashlib.sha256(chr(10).join(rules).encode()).hexdigest()[:16]}"


def group_rules(group: SecurityGroup) -> dict[str, list[str]]:
    """Commands for the group's chains, by chain, and under "" those for its sets."""
    referred = {group_id for item in (*group.ingress, *group.egress) for group_id in item.group_ids}
    sets = [
        f"add set {TABLE} {_members(group_id)} {{ type ipv4_addr; }}"
        for group_id in sorted({group.group_id, *referred})
    ]
    chains = {
        name: chain_commands(name, rules)
        for stage, rules in group_chains(group).items()
        for name in [_chain_name(stage, rules)]
    }
    return {"": sets, **chains}


def elements_of(
    slot: Slot, publish: Sequence[PortPublication], groups: Sequence[SecurityGroup]
) -> list[Element]:
    """All that a task adds."""
    key = (slot.address,)
    found = [Element(name="tasks", key=(slot.host_interface, slot.address))]
    found += [
        Element(
            name="published",
            key=(port.protocol.value, port.host_address, str(port.host_port)),
            value=f"{slot.address} . {port.container_port}",
        )
        for port in publish
    ]
    if groups:
        found.append(Element(name="grouped", key=key))
    for number, group in enumerate(groups, 1):
        found.append(Element(name=_members(group.group_id), key=key))
        found += [
            Element(name=f"{stage}{number}", key=key, value=f"jump {_chain_name(stage, rules)}")
            for stage, rules in group_chains(group).items()
        ]
    return found


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel has of our table."""

    rules: dict[str, int]
    """Number of rules of ours in each chain that exists."""
    elements: frozenset[Element]

    def lacks_rules(self, groups: Sequence[SecurityGroup]) -> bool:
        """Whether a rule, chain or set is not there that was."""
        wanted = {name: len(rules) for name, (_, rules) in _CHAINS.items()}
        for group in groups:
            for stage, rules in group_chains(group).items():
                wanted[_chain_name(stage, rules)] = len(rules)
        return any(self.rules.get(name, 0) < number for name, number in wanted.items())

    def lacks_counting(self) -> bool:
        """Whether connections are not counted."""
        return self.rules.get(_COUNTED, 0) < 2

    def of_address(self, address: str) -> list[Element]:
        """Every element that is of that address's task."""
        return [
            item
            for item in self.elements
            if address in item.key or (item.value or "").split(" . ")[0] == address
        ]

    def of(self, name: str) -> list[tuple[str, ...]]:
        """Keys of a set."""
        return sorted(item.key for item in self.elements if item.name == name)


def parse_snapshot(output: str) -> Snapshot:
    """From `nft -j list table` (libnftables-json(5))."""
    rules: Counter[str] = Counter()
    elements = set()
    for item in json.loads(output)["nftables"]:
        if "chain" in item:
            rules[item["chain"]["name"]] += 0
        elif "rule" in item and item["rule"].get("comment") == COMMENT:
            rules[item["rule"]["chain"]] += 1
        else:
            for kind in ("set", "map"):
                if item.get(kind, {}).get("name") == "connections":
                    continue  # the kernel's own, which come and go with packets
                for element in item.get(kind, {}).get("elem", []):
                    elements.add(_element(item[kind]["name"], _flatten(element)))
    return Snapshot(rules=dict(rules), elements=frozenset(elements))


def _element(name: str, parts: tuple[str, ...]) -> Element:
    length = _KEY_LENGTHS.get(name, 1)
    if name == "published":
        parts = (_PROTOCOLS.get(parts[0], parts[0]), *parts[1:])
    return Element(name=name, key=parts[:length], value=" . ".join(parts[length:]) or None)


def _flatten(element: Any) -> tuple[str, ...]:
    """A concatenation is {"concat": [...]}, a map's element [key, value]."""
    if isinstance(element, dict):
        if "concat" in element:
            return tuple(part for item in element["concat"] for part in _flatten(item))
        if "elem" in element:
            return _flatten(element["elem"]["val"])
        if "jump" in element:
            return (f"jump {element['jump']['target']}",)
    if isinstance(element, list):
        return tuple(part for item in element for part in _flatten(item))
    return (str(element),)
