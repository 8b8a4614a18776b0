"""What does connecting a task cost, beside what the kernel itself takes for the same veth pair?

Run as root; everything happens in namespaces of its own. Removing a link is one netlink message:
its time is the kernel's own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable

from fargatelite.names import new_task_id
from fargatelite.network import firewall, rtnetlink
from fargatelite.network.connect import connect, disconnect
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.slot import Slot, slot_for

ROUNDS = 100
NEIGHBOURS = 20


def new_namespace() -> int:
    """A descriptor of a new network namespace."""
    found: list[int] = []

    def work() -> None:
        if ctypes.CDLL(None).unshare(0x40000000) != 0:
            raise OSError("cannot unshare: run as root")
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def timed_us(call: Callable[[], object]) -> float:
    """Microseconds that one call takes."""
    started_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started_ns) / 1000


def show(name: str, values: list[float]) -> None:
    """One line: median, 99th percentile."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    print(f"{name:34} p50 {statistics.median(ordered):7.0f} us   p99 {p99:7.0f} us")


def measure(parts: dict[str, list[float]]) -> None:
    """Runs in the private host."""
    neighbours = [(slot_for(index, new_task_id(), "10.213.0.0/20")) for index in range(NEIGHBOURS)]
    for slot in neighbours:
        connect(slot, new_namespace())
    slot = slot_for(NEIGHBOURS, new_task_id(), "10.213.0.0/20")
    for _ in range(ROUNDS):
        measure_round(slot, parts)
    for slot in neighbours:
        disconnect(slot)


def measure_round(slot: Slot, parts: dict[str, list[float]]) -> None:
    """One connection as a whole, then each of its parts alone."""
    namespace = new_namespace()
    try:
        parts["connect"].append(timed_us(lambda: connect(slot, namespace)))
        parts["disconnect"].append(timed_us(lambda: disconnect(slot)))
        parts["  link"].append(timed_us(lambda: rtnetlink.connect_link(slot, namespace, 1500)))
        parts["  link removed"].append(timed_us(lambda: rtnetlink.remove_link(slot.host_interface)))
        parts["  routes read"].append(timed_us(rtnetlink.read_host_routes))
        parts["  firewall admit"].append(
            timed_us(lambda: firewall.admit(firewall.Admission(slot=slot), ()))
        )
        parts["  firewall expel"].append(timed_us(lambda: firewall.expel(slot)))
        parts["  thread into namespace"].append(
            timed_us(lambda: run_in_namespace(namespace, lambda: None))
        )
    finally:
        os.close(namespace)


def main() -> None:
    """Prints the table."""
    names = ("connect", "  routes read", "  firewall admit", "  link", "  thread into namespace")
    parts: dict[str, list[float]] = {
        name: [] for name in (*names, "disconnect", "  link removed", "  firewall expel")
    }
    host = new_namespace()
    run_in_namespace(host, lambda: measure(parts))
    print(f"Linux {platform.release()}, {os.cpu_count()} cores, {NEIGHBOURS} other tasks connected")
    for name, values in parts.items():
        show(name, values)


if __name__ == "__main__":
    main()
