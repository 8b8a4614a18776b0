"""Interfaces, addresses and routes: few sendmsg calls with a batch of messages each.

pyroute2's classes encode the messages; its sockets and its IPRoute are not used, as they cost
milliseconds per task (design: Network). A batch asks for an acknowledgement of its every message,
so a refusal names the message.

Source: rtnetlink(7), veth(4), Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from fargatelite.errors import NetworkFailed
from fargatelite.names import INTERFACE_PREFIX
from fargatelite.network.messages import ifaddrmsg, ifinfmsg, rtmsg
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.slot import METADATA_ADDRESS, Slot

__all__ = [
    "HostRoutes",
    "Message",
    "connect_link",
    "find_links",
    "open_socket",
    "read_answers",
    "read_host_routes",
    "remove_link",
    "send_batch",
]

_NLMSG_ERROR = 2
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE = 16, 17, 20, 24
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 1, 4, 0x100, 0x200, 0x400
_IFF_UP = 1
_TABLE_MAIN, _PROTO_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK, _TYPE_UNICAST = 254, 4, 0, 253, 1
_RTNH_F_ONLINK = 4
_SIOCGIFMTU = 0x8921
_RTF_REJECT = 0x200
_HEADER = struct.Struct("=IHHII")
_TIMEOUT_S = 10
"""The kernel answers at once; a lost answer must not hang a supervisor."""


class Message(Struct, frozen=True, kw_only=True):
    """One encoded request and the words for it in an error."""

    action: str
    kind: int
    body: bytes
    flags: int = 0


class HostRoutes(Struct, frozen=True, kw_only=True):
    """What the host's main table says about the ways out."""

    mtu_bytes: int
    """Of the default route's device; 1500 without one."""
    interfaces: tuple[str, ...]
    """Devices with any unicast route of the main table, without ours and loopback."""


def _body(message: ifinfmsg | ifaddrmsg | rtmsg) -> bytes:
    message.encode()
    return bytes(message.data[_HEADER.size :])


def _link(
    action: str,
    kind: int,
    flags: int,
    attributes: list[tuple[str, object]],
    *,
    index: int = 0,
    up: bool,
) -> Message:
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = message["change"] = _IFF_UP if up else 0
    message["attrs"] = attributes
    return Message(action=action, kind=kind, body=_body(message), flags=flags)


def _address(action: str, index: int, address: str, exists: int = _EXCL) -> Message:
    """`exists`: _EXCL refuses an address that is there, _REPLACE takes it."""
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["prefixlen"] = 32
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    return Message(action=action, kind=_NEWADDR, body=_body(message), flags=_CREATE | exists)


def _route(
    action: str, index: int, attributes: list[tuple[str, object]], *, prefix: int, scope: int
) -> Message:
    message = rtmsg()
    message["family"] = socket.AF_INET
    message["dst_len"] = prefix
    message["table"], message["proto"] = _TABLE_MAIN, _PROTO_STATIC
    message["scope"], message["type"] = scope, _TYPE_UNICAST
    message["flags"] = _RTNH_F_ONLINK if prefix == 0 else 0
    message["attrs"] = [*attributes, ("RTA_OIF", index)]
    return Message(action=action, kind=_NEWROUTE, body=_body(message), flags=_CREATE | _EXCL)


def open_socket() -> socket.socket:
    """A NETLINK_ROUTE socket in the calling thread's network namespace."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.settimeout(_TIMEOUT_S)
    opened.bind((0, 0))
    return opened


def read_answers(netlink: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, body) of each message that arrives."""
    while True:
        try:
            data = netlink.recv(1 << 18)
        except TimeoutError as error:
            raise NetworkFailed(f"no netlink answer within {_TIMEOUT_S} s") from error
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                raise NetworkFailed("netlink answered with a malformed message")
            yield kind, sequence, data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3


def send_batch(
    netlink: socket.socket, messages: Sequence[Message], *, ignore: tuple[int, ...] = ()
) -> None:
    """Sends the batch and reads every acknowledgement.

    Raises: NetworkFailed for the first refusal whose errno is not in `ignore`; messages after a
    refused one have been executed all the same.
    """
    batch = bytearray()
    for number, message in enumerate(messages, 1):
        length = _HEADER.size + len(message.body)
        flags = _REQUEST | _ACK | message.flags
        batch += _HEADER.pack(length, message.kind, flags, number, 0) + message.body
        batch += bytes(-length % 4)
    netlink.send(batch)
    missing = len(messages)
    refusal: NetworkFailed | None = None
    for kind, sequence, body in read_answers(netlink):
        if kind != _NLMSG_ERROR:
            continue
        code = -struct.unpack_from("=i", body)[0]
        if code and code not in ignore and refusal is None:
            action = messages[sequence - 1].action
            refusal = NetworkFailed(
                f"cannot {action}: {errno.errorcode.get(code)}: {os.strerror(code)}", errno=code
            )
        missing -= 1
        if missing == 0:
            break
    if refusal is not None:
        raise refusal


def connect_link(slot: Slot, netns_fd: int, mtu_bytes: int) -> None:
    """Makes the veth pair, its peer at once inside the task's namespace, and its routes.

    A leftover link of the same name is replaced. Raises: NetworkFailed.
    """
    name = slot.host_interface
    with closing(open_socket()) as host:
        send_batch(
            host, [_delete(name), _create(slot, netns_fd, mtu_bytes)], ignore=(errno.ENODEV,)
        )
        index = _index(name)
        _write_setting(f"ipv6/conf/{name}/disable_ipv6", "1")
        for setting in ("forwarding", "route_localnet"):
            _write_setting(f"ipv4/conf/{name}/{setting}", "1")
        send_batch(
            host,
            [
                _link(f"bring up {name}", _NEWLINK, 0, [], index=index, up=True),
                _address(f"give {name} address {slot.gateway}", index, slot.gateway),
                _route(
                    f"route {slot.address} to {name}",
                    index,
                    [("RTA_DST", slot.address), ("RTA_PREFSRC", slot.gateway)],
                    prefix=32,
                    scope=_SCOPE_LINK,
                ),
            ],
        )
    run_in_namespace(netns_fd, lambda: _configure_task_end(slot))


def _delete(name: str) -> Message:
    return _link(f"remove interface {name}", _DELLINK, 0, [("IFLA_IFNAME", name)], up=False)


def _create(slot: Slot, netns_fd: int, mtu_bytes: int) -> Message:
    peer = {
        "attrs": [
            ("IFLA_IFNAME", slot.task_interface),
            ("IFLA_ADDRESS", slot.mac),
            ("IFLA_MTU", mtu_bytes),
            ("IFLA_NET_NS_FD", netns_fd),
        ]
    }
    info = {
        "attrs": [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
        ]
    }
    return _link(
        f"create veth pair {slot.host_interface}",
        _NEWLINK,
        _CREATE | _EXCL,
        [
            ("IFLA_IFNAME", slot.host_interface),
            ("IFLA_MTU", mtu_bytes),
            ("IFLA_LINKINFO", info),
        ],
        up=False,
    )


def _configure_task_end(slot: Slot) -> None:
    """Addresses and routes of the task's end; runs inside its namespace."""
    name = slot.task_interface
    index = _index(name)
    _write_setting(f"ipv6/conf/{name}/disable_ipv6", "1")  # before it is up and gets an address
    with closing(open_socket()) as task:
        send_batch(
            task,
            [
                _link("bring up lo", _NEWLINK, 0, [], index=1, up=True),
                # A namespace that is connected again still has it: lo was not replaced.
                _address("give lo the metadata address", 1, METADATA_ADDRESS, _REPLACE),
                _link(f"bring up {name}", _NEWLINK, 0, [], index=index, up=True),
                _address(f"give {name} address {slot.address}", index, slot.address),
                _route(
                    f"route the task's traffic to {slot.gateway}",
                    index,
                    [("RTA_GATEWAY", slot.gateway)],
                    prefix=0,
                    scope=_SCOPE_UNIVERSE,
                ),
            ],
        )


def bring_up_loopback(netns_fd: int) -> None:
    """Raises: NetworkFailed."""

    def bring_up() -> None:
        with closing(open_socket()) as task:
            send_batch(task, [_link("bring up lo", _NEWLINK, 0, [], index=1, up=True)])

    run_in_namespace(netns_fd, bring_up)


def remove_link(name: str) -> None:
    """Removes the host's end, and the other with it; one that is not there is no error."""
    with closing(open_socket()) as host:
        send_batch(host, [_delete(name)], ignore=(errno.ENODEV,))


def find_links() -> list[str]:
    """Our host ends that exist in this network namespace."""
    return sorted(name for _, name in socket.if_nameindex() if name.startswith(INTERFACE_PREFIX))


def read_host_routes() -> HostRoutes:
    """The main table of the calling thread's network namespace, from /proc/net/route (proc(5)).

    Text, as decoding a dump of the local table's routes of every task took 0.9 ms.
    """
    interfaces: set[str] = set()
    default: str | None = None
    for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
        name, destination, _, flags, _, _, _, mask, *_ = line.split()
        if int(flags, 16) & _RTF_REJECT or name == "lo" or name.startswith(INTERFACE_PREFIX):
            continue
        interfaces.add(name)
        if int(destination, 16) == 0 and int(mask, 16) == 0:
            default = default or name
    mtu_bytes = _mtu_bytes(default) if default else 1500
    return HostRoutes(mtu_bytes=mtu_bytes, interfaces=tuple(sorted(interfaces)))


def _mtu_bytes(name: str) -> int:
    """By ioctl: /sys/class/net shows the namespace in which sysfs was mounted, not the thread's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16s16x", name.encode())
        answer = fcntl.ioctl(control, _SIOCGIFMTU, request)
    return int(struct.unpack_from("=i", answer, 16)[0])


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise NetworkFailed(f"interface {name} is gone", errno=error.errno, path=name) from error


def _write_setting(setting: str, value: str) -> None:
    """Writes below /proc/sys/net, which shows the calling thread's network namespace."""
    try:
        Path("/proc/sys/net", setting).write_text(value)
    except FileNotFoundError:
        if not setting.startswith("ipv6/"):  # a kernel without IPv6 has nothing to disable
            raise NetworkFailed(f"no /proc/sys/net/{setting}", path=setting) from None
    except OSError as error:
        raise NetworkFailed(
            f"cannot write {value} to /proc/sys/net/{setting}: {error.strerror}",
            errno=error.errno,
            path=setting,
        ) from error
