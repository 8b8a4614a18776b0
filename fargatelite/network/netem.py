"""Latency and packet loss on a task's interfaces: tc's prio with a netem in its first band.

The same tree as the ECS agent's: everything goes through band 3, filters send chosen destinations
to band 1, where netem is; spared ones are matched before. Only packets that leave are impaired.

Source: amazon-ecs-agent, ecs-agent/tmds/handlers/fault/v1/handlers (tc commands); tc-netem(8),
tc-u32(8); include/uapi/linux/pkt_sched.h and pkt_cls.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing

from msgspec import Struct

from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.rtnetlink import Message, open_socket, read_answers, send_batch

__all__ = ["Impairment", "impair", "read_impairment", "restore"]

_NEWQDISC, _DELQDISC, _GETQDISC, _NEWFILTER = 36, 37, 38, 44
_DUMP, _CREATE, _EXCL = 0x300, 0x400, 0x200
_NLMSG_DONE = 3
_ROOT, _PRIO, _BAND_IMPAIRED, _BAND_REST, _NETEM = 0xFFFFFFFF, 0x10000, 0x10001, 0x10003, 0x100000
_KIND, _OPTIONS = 1, 2
_NETEM_LATENCY64, _NETEM_JITTER64 = 10, 11
_U32_CLASSID, _U32_SEL = 1, 5
_SPARED, _CHOSEN = 1, 2  # the order of filters
_QUEUE_PACKETS = 1000  # tc's default
_TCMSG = struct.Struct("=BxHiIII")


class Impairment(Struct, frozen=True, kw_only=True):
    """What happens to packets for the chosen destinations."""

    delay_ms: int = 0
    jitter_ms: int = 0
    loss_percent: int = 0


def impair(
    netns_fd: int, impairment: Impairment, chosen: Sequence[str], spared: Sequence[str]
) -> None:
    """Impairs packets to `chosen` networks without those of `spared`, on every interface but lo.

    Raises: NetworkFailed; errno is ENOENT where the kernel has no netem or prio (CONFIG_NET_SCH_*).
    Nothing of it stays then.
    """

    def work() -> None:
        with closing(open_socket()) as task:
            for index in _interfaces():
                messages = [_prio(index), _netem(index, impairment)]
                messages += [_filter(index, _SPARED, _BAND_REST, network) for network in spared]
                messages += [_filter(index, _CHOSEN, _BAND_IMPAIRED, network) for network in chosen]
                try:
                    # One by one: without netem the filters would send packets nowhere.
                    for message in messages:
                        send_batch(task, [message])
                except BaseException:
                    send_batch(task, [_removal(index)], ignore=_ABSENT)
                    raise

    run_in_namespace(netns_fd, work)


def restore(netns_fd: int) -> None:
    """Ends the impairment; that there is none is no error. Raises: NetworkFailed."""

    def work() -> None:
        with closing(open_socket()) as task:
            for index in _interfaces():
                send_batch(task, [_removal(index)], ignore=_ABSENT)

    run_in_namespace(netns_fd, work)


def read_impairment(netns_fd: int) -> str | None:
    """`latency` or `packet-loss`, whichever is in force; None. Raises: NetworkFailed."""

    def work() -> str | None:
        with closing(open_socket()) as task:
            request = _TCMSG.pack(0, 0, 0, 0, 0, 0)
            task.send(
                struct.pack("=IHHII", 16 + len(request), _GETQDISC, 1 | _DUMP, 1, 0) + request
            )
            found = None
            for kind, _, body in read_answers(task):
                if kind == _NLMSG_DONE:
                    return found
                attributes = dict(_attributes(body[_TCMSG.size :]))
                if attributes.get(_KIND) == b"netem\0":
                    (loss,) = struct.unpack_from("=8xI", attributes[_OPTIONS])
                    found = "packet-loss" if loss else "latency"
            return found

    return run_in_namespace(netns_fd, work)


_ABSENT = (errno.ENOENT, errno.EINVAL)
"""What the kernel says when the root qdisc is not ours or not there."""


def _interfaces() -> list[int]:
    return [index for index, name in socket.if_nameindex() if name != "lo"]


def _prio(index: int) -> Message:
    options = struct.pack("=i16B", 3, *[2] * 16)
    return _request(
        "add the prio qdisc of a fault", _NEWQDISC, index, _PRIO, _ROOT, "prio", options
    )


def _netem(index: int, impairment: Impairment) -> Message:
    loss = (2**32 - 1) * impairment.loss_percent // 100
    options = struct.pack("=6I", 0, _QUEUE_PACKETS, loss, 0, 0, 0)
    options += _attribute(_NETEM_LATENCY64, struct.pack("=q", impairment.delay_ms * 1_000_000))
    options += _attribute(_NETEM_JITTER64, struct.pack("=q", impairment.jitter_ms * 1_000_000))
    return _request(
        "add the netem qdisc of a fault", _NEWQDISC, index, _NETEM, _BAND_IMPAIRED, "netem", options
    )


def _filter(index: int, order: int, band: int, network: str) -> Message:
    """A u32 filter on the destination address, word by word."""
    parsed = ipaddress.ip_network(network)
    is_v4 = parsed.version == 4
    first, protocol = (16, 0x0800) if is_v4 else (24, 0x86DD)  # linux/if_ether.h, ETH_P_*
    address, mask = parsed.network_address.packed, parsed.netmask.packed
    keys = b"".join(
        mask[at : at + 4] + address[at : at + 4] + struct.pack("=ii", first + at, 0)
        for at in range(0, len(address), 4)
    )
    selector = struct.pack("=BBBxHHhhI", 1, 0, len(address) // 4, 0, 0, 0, 0, 0)  # 1: terminal
    options = _attribute(_U32_CLASSID, struct.pack("=I", band))
    options += _attribute(_U32_SEL, selector + keys)
    # Each protocol has an order of its own: the kernel refuses two in one.
    information = (order * 2 + (0 if is_v4 else 1)) << 16 | socket.htons(protocol)
    return _request(
        f"filter packets to {network}", _NEWFILTER, index, 0, _PRIO, "u32", options, information
    )


def _removal(index: int) -> Message:
    return Message(
        action="remove the qdiscs of a fault",
        kind=_DELQDISC,
        body=_TCMSG.pack(0, 0, index, _PRIO, _ROOT, 0),
    )


def _request(
    action: str,
    kind: int,
    index: int,
    handle: int,
    parent: int,
    name: str,
    options: bytes,
    information: int = 0,
) -> Message:
    body = _TCMSG.pack(0, 0, index, handle, parent, information)
    body += _attribute(_KIND, name.encode() + b"\0") + _attribute(_OPTIONS, options)
    return Message(action=action, kind=kind, body=body, flags=_CREATE | _EXCL)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3
