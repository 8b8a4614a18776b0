"""Connects a task's network namespace to the host and takes it off again.

No bridge: each task has a veth pair with a /32 on either end and a host route, so that there is no
shared segment on which one task could speak as another. pyroute2 and libnftables are imported by
the first call, since importing them takes a tenth of a second.

Measured: see benchmarks/network.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from fargatelite.network.slot import PortPublication, Slot
from fargatelite.security_groups import SecurityGroup

__all__ = [
    "connect",
    "connect_loopback",
    "disconnect",
    "leftover_addresses",
    "leftover_interfaces",
    "readmit",
]


def connect(
    slot: Slot,
    netns_fd: int,
    *,
    publish: Sequence[PortPublication] = (),
    groups: Sequence[SecurityGroup] = (),
    network_mbit: int = 0,
) -> None:
    """Gives the namespace behind `netns_fd` the slot's interface, routes and firewall entries.

    The firewall comes first: from the moment that an interface exists, it is guarded. After an
    error what was made is removed again. Raises: NetworkFailed; HostUnsupported.
    """
    from fargatelite.network import rtnetlink

    routes = rtnetlink.read_host_routes()
    try:
        readmit(slot, publish, groups, routes.interfaces, network_mbit=network_mbit)
        rtnetlink.connect_link(slot, netns_fd, routes.mtu_bytes)
    except BaseException as error:
        try:
            disconnect(slot)
        except Exception as cleanup:  # noqa: BLE001  the first error is the one to report
            error.add_note(f"cleaning up also failed: {cleanup}")
        raise


def readmit(
    slot: Slot,
    publish: Sequence[PortPublication] = (),
    groups: Sequence[SecurityGroup] = (),
    interfaces: Sequence[str] | None = None,
    *,
    network_mbit: int = 0,
) -> None:
    """Puts the task into the firewall and keeps it there as long as this process has it; also a
    task whose former supervisor did. `network_mbit` bounds what it sends and receives, 0 does not.
    Raises: NetworkFailed; HostUnsupported."""
    from fargatelite.network import firewall, guard, rtnetlink

    if interfaces is None:
        interfaces = rtnetlink.read_host_routes().interfaces
    task = firewall.Admission(
        slot=slot, publish=tuple(publish), groups=tuple(groups), network_mbit=network_mbit
    )
    guard.guard(task, firewall.admit(task, interfaces))


def connect_loopback(netns_fd: int) -> None:
    """Gives the namespace its loopback interface and nothing else (networkMode none).

    Raises: NetworkFailed.
    """
    from fargatelite.network import rtnetlink

    rtnetlink.bring_up_loopback(netns_fd)


def disconnect(slot: Slot) -> None:
    """Removes the interface and the firewall entries; what is not there is no error.

    Raises: NetworkFailed.
    """
    from fargatelite.network import firewall, guard, rtnetlink

    known = guard.forget(slot)
    rtnetlink.remove_link(slot.host_interface)
    firewall.expel(slot, known)


def leftover_interfaces() -> list[str]:
    """Host ends that exist now, for gc: each name tells its task (names.interface_name)."""
    from fargatelite.network import rtnetlink

    return rtnetlink.find_links()


def leftover_addresses() -> list[tuple[str, str]]:
    """(host interface, address) in the firewall now, for gc."""
    from fargatelite.network import firewall

    return firewall.list_admitted()
