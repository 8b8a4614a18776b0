"""Slots as data, and the texts that containers read."""

from __future__ import annotations

import ipaddress
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.names import TaskId
from fargatelite.network.slot import MAX_SLOTS, hosts_text, resolv_conf_text, slot_for

TASK = TaskId("0123456789abcdef" * 2)
SUBNET = "10.213.16.0/20"


def test_first_slot() -> None:
    slot = slot_for(0, TASK, SUBNET)
    assert (slot.address, slot.gateway, slot.mac) == (
        "10.213.16.2",
        "10.213.16.1",
        "0a:58:0a:d5:10:02",
    )
    assert (slot.uid_base, slot.uid_count) == (0x70000000, 65536)
    assert slot.host_interface == "flt0123456789a"


@given(st.integers(0, MAX_SLOTS - 1), st.integers(0, MAX_SLOTS - 1))
def test_slots_share_nothing(first: int, second: int) -> None:
    one, two = slot_for(first, TASK, SUBNET), slot_for(second, TASK, SUBNET)
    network = ipaddress.IPv4Network(SUBNET)
    for slot in (one, two):
        assert ipaddress.IPv4Address(slot.address) in list(network.hosts())
        assert slot.address != slot.gateway
        assert slot.uid_base + slot.uid_count <= 2**31
    if first != second:
        assert one.address != two.address
        assert abs(one.uid_base - two.uid_base) >= 65536


@pytest.mark.parametrize("index", [-1, MAX_SLOTS])
def test_index_beyond_the_subnet(index: int) -> None:
    with pytest.raises(ValueError, match="has no slot"):
        slot_for(index, TASK, SUBNET)


def test_hosts() -> None:
    assert hosts_text(slot_for(0, TASK, SUBNET), "web") == "127.0.0.1 localhost\n10.213.16.2 web\n"


@pytest.mark.parametrize(
    ("host", "upstream", "expected"),
    [
        ("nameserver 10.0.0.2\nsearch a.b\n", None, "nameserver 10.0.0.2\nsearch a.b\n"),
        (
            "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
            "nameserver 10.0.0.2\nnameserver fe80::1\n",
            "nameserver 10.0.0.2\noptions edns0 trust-ad\n",
        ),
        ("nameserver 127.0.0.1\n", None, ""),
        ("nameserver\n# nameserver 1.1.1.1\nnameserver nonsense\nsearch a\n", None, "search a\n"),
        (
            "".join(f"nameserver 10.0.0.{number}\n" for number in range(1, 6)),
            None,
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n",
        ),
        ("", None, ""),
    ],
    ids=["plain", "systemd-resolved", "loopback only", "nonsense", "three", "empty"],
)
def test_resolver(host: str, upstream: str | None, expected: str) -> None:
    assert resolv_conf_text(host, upstream) == expected


def test_importing_is_cheap() -> None:
    program = (
        "import sys, fargatelite.network.connect, fargatelite.network.pool\n"
        "assert not {'pyroute2', 'nftables'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
