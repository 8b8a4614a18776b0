"""Forgets the connections of an address, by connection tracking's own netlink messages.

An address is the next task's a moment later, and what the firewall takes for an established
connection is let through.

Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing

from fargatelite.errors import NetworkFailed
from fargatelite.network.rtnetlink import read_answers

__all__ = ["forget_connections"]

_NETLINK_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18  # CTA_*
_TUPLE_IP, _V4_SRC, _V4_DST = 1, 1, 2
_TIMEOUT_S = 10


def _attributes(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(type, payload, whole) of each attribute."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            raise NetworkFailed("connection tracking answered with a malformed attribute")
        end = length + 3 & ~3
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length], data[:end]
        data = data[end:]


def _has_address(tuple_attribute: bytes, address: bytes) -> bool:
    return any(
        payload == address
        for kind, nested, _ in _attributes(tuple_attribute)
        if kind == _TUPLE_IP
        for ip_kind, payload, _ in _attributes(nested)
        if ip_kind in (_V4_SRC, _V4_DST)
    )


def _send(opened: socket.socket, kind: int, flags: int, sequence: int, body: bytes = b"") -> None:
    length = _HEADER.size + len(_NFGENMSG) + len(body)
    header = _HEADER.pack(length, kind, _REQUEST | flags, sequence, 0)
    opened.send(header + _NFGENMSG + body)


def _find(opened: socket.socket, address: bytes) -> Iterator[bytes]:
    """What names each connection of the address in a request to delete it."""
    _send(opened, _GET, _DUMP, 0)
    for kind, _, body in read_answers(opened):
        if kind == _DONE:
            return
        if kind == _ERROR:
            code = -struct.unpack_from("=i", body)[0]
            raise NetworkFailed(f"cannot list connections: {os.strerror(code)}", errno=code)
        parts = {number: (inner, whole) for number, inner, whole in _attributes(body[4:])}
        if any(
            _has_address(parts[number][0], address)
            for number in (_TUPLE_ORIG, _TUPLE_REPLY)
            if number in parts
        ):
            yield b"".join(parts[n][1] for n in (_TUPLE_ORIG, _ID, _ZONE) if n in parts)


def forget_connections(address: str) -> None:
    """Removes every tracked connection from or to the IPv4 address; none is no error.

    In the calling thread's network namespace. Raises: NetworkFailed.
    """
    opened = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )
    with closing(opened):
        opened.settimeout(_TIMEOUT_S)
        opened.bind((0, 0))
        for sequence, name in enumerate(list(_find(opened, socket.inet_aton(address))), 1):
            _send(opened, _DELETE, _ACK, sequence, name)
            _, _, body = next(read_answers(opened))
            code = -struct.unpack_from("=i", body)[0]
            if code not in (0, errno.ENOENT):  # it ended by itself meanwhile
                raise NetworkFailed(f"cannot forget a connection: {os.strerror(code)}", errno=code)
