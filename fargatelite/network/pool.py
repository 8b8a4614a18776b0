"""Which task has which slot, kept in files so that it survives any crash.

Addresses, interfaces and ids are the host's, so there is one directory for all run roots of a host:
two that chose for themselves would give the same ids to two tasks. `<index>.json` names the slot's
task and its run root, and the symbolic link `<task id>` leads to it, so that no launch reads the
files of all other tasks; `network.json` holds the subnet, chosen by the first task and dropped with
the last slot. All changes happen under one flock; a slot file is complete the moment that it has
its name (written aside, then linked), and exists before anything of the slot is made in the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from fargatelite.errors import ConfigurationInvalid, NetworkFailed, StateCorrupt
from fargatelite.names import TaskId
from fargatelite.network.slot import MAX_SLOTS, Slot, slot_for

__all__ = [
    "FORMAT_VERSION",
    "HOST_SLOTS",
    "SlotPool",
    "choose_subnet",
    "host_networks",
    "parse_fib_trie",
]

FORMAT_VERSION = 2  # 2: one directory per host; 1 was one per run root
HOST_SLOTS = Path("/run/fargatelite-slots")

_CANDIDATES = (
    "10.213.0.0/16",
    "172.29.0.0/16",
    "192.168.208.0/20",
    "100.96.0.0/16",
    "10.64.0.0/10",
)
"""Away from the defaults of Docker (172.17-20), podman (10.88-89), k3s (10.42-43), libvirt."""

_LEAF = re.compile(r"^\s*\|-- (\d+\.\d+\.\d+\.\d+)$")
_PREFIX = re.compile(r"^\s*/(\d+) \w+ (\w+)")


class _NetworkFile(Struct, frozen=True, kw_only=True):
    version: int
    subnet: str


class _SlotFile(Struct, frozen=True, kw_only=True):
    version: int
    task_id: str
    run_root: str


_File = TypeVar("_File", _NetworkFile, _SlotFile)


def parse_fib_trie(text: str) -> list[ipaddress.IPv4Network]:
    """Every IPv4 route and address in /proc/net/fib_trie, of all tables, but no default route."""
    networks: set[ipaddress.IPv4Network] = set()
    address = ""
    for line in text.splitlines():
        if leaf := _LEAF.match(line):
            address = leaf[1]
        elif (prefix := _PREFIX.match(line)) and address and int(prefix[1]) > 0:
            networks.add(ipaddress.IPv4Network(f"{address}/{prefix[1]}", strict=False))
    return sorted(networks)


def host_networks() -> list[ipaddress.IPv4Network]:
    """What a subnet must not overlap on this host: routes, addresses, nameservers."""
    networks = parse_fib_trie(Path("/proc/net/fib_trie").read_text())
    for file in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_text().splitlines():
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    with contextlib.suppress(ValueError):  # an IPv6 server
                        networks.append(ipaddress.IPv4Network(words[1]))
    return networks


def choose_subnet(taken: Iterable[ipaddress.IPv4Network]) -> str:
    """The first /20 of our candidates that overlaps nothing in `taken`.

    Raises: ConfigurationInvalid when all do.
    """
    occupied = list(taken)
    for candidate in _CANDIDATES:
        for subnet in ipaddress.IPv4Network(candidate).subnets(new_prefix=20):
            if not any(subnet.overlaps(network) for network in occupied):
                return str(subnet)
    raise ConfigurationInvalid(
        f"no free /20 for tasks in {', '.join(_CANDIDATES)}: the host routes all of them"
    )


def _index_of(address: str, subnet: str) -> int:
    try:
        index = int(ipaddress.IPv4Address(address)) - int(ipaddress.IPv4Network(subnet)[2])
        slot_for(index, TaskId(""), subnet)
    except ValueError as error:
        raise ConfigurationInvalid(
            f"{address} is no address of a task: this host's are in {subnet}, without the first "
            "two and the last"
        ) from error
    return index


class SlotPool:
    """The host's slots, as seen from one run root. Methods may be called from any thread and
    process at once."""

    def __init__(self, run_root: Path, directory: Path = HOST_SLOTS) -> None:
        self._run_root = str(run_root)
        self._directory = directory
        self._network_file = directory / "network.json"

    def allocate(self, task_id: TaskId, address: str | None = None) -> Slot:
        """The task's slot, a free one if it has none yet; recorded before this returns.

        `address` asks for the slot of that address.
        Raises: NetworkFailed when all slots, or the one that is asked for, are taken;
        ConfigurationInvalid without a free subnet, or for an address outside of it; StateCorrupt.
        """
        with self._locked():
            subnet = self._ensure_subnet()
            taken = self._taken()
            own = self._index_of_task(task_id)
            if own is not None:
                return slot_for(own, task_id, subnet)
            wanted = range(MAX_SLOTS) if address is None else (_index_of(address, subnet),)
            for index in wanted:
                if index not in taken:
                    content = _SlotFile(
                        version=FORMAT_VERSION, task_id=task_id, run_root=self._run_root
                    )
                    self._publish(self._directory / f"{index}.json", content)
                    os.symlink(f"{index}.json", self._directory / task_id)
                    return slot_for(index, task_id, subnet)
        if address is not None:
            raise NetworkFailed(f"address {address} is another task's: stop that task first")
        raise NetworkFailed(f"all {MAX_SLOTS} network slots are taken: stop a task or run gc")

    def release(self, task_id: TaskId) -> None:
        """Frees the task's slot, if it has one; call it when nothing of the slot is left."""
        with self._locked():
            index = self._index_of_task(task_id)
            if index is None:  # who made it was ended before the link was there
                owners = self._read_slots().items()
                index = next((at for at, owner in owners if owner.task_id == task_id), None)
            if index is not None:
                (self._directory / task_id).unlink(missing_ok=True)  # first: it never leads nowhere
                (self._directory / f"{index}.json").unlink()
            if not self._taken():
                self._network_file.unlink(missing_ok=True)

    def remove_left_aside(self) -> None:
        """Removes files that a killed process was about to publish."""
        with self._locked():
            for path in self._directory.glob(".*.json.*"):
                path.unlink()

    def list_own(self) -> list[Slot]:
        """The slots of this run root's tasks, by index."""
        return self._select(lambda owner: owner.run_root == self._run_root)

    def list_lost(self) -> list[Slot]:
        """Slots, of whichever run root, whose task has no run directory any more: that root was
        lost or removed by hand."""
        return self._select(lambda owner: not Path(owner.run_root, "tasks", owner.task_id).is_dir())

    def find(self, task_id: TaskId) -> Slot | None:
        """The task's slot, None when it has none."""
        found = self._select(lambda owner: owner.task_id == task_id)
        return found[0] if found else None

    def _select(self, is_wanted: Callable[[_SlotFile], bool]) -> list[Slot]:
        with self._locked():
            taken = self._read_slots()
            if not taken:
                return []
            subnet = self._ensure_subnet()
        return [
            slot_for(index, TaskId(owner.task_id), subnet)
            for index, owner in sorted(taken.items())
            if is_wanted(owner)
        ]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _ensure_subnet(self) -> str:
        try:
            stored = _decode(self._network_file, _NetworkFile)
        except FileNotFoundError:
            subnet = choose_subnet(host_networks())
            self._publish(self._network_file, _NetworkFile(version=FORMAT_VERSION, subnet=subnet))
            return subnet
        try:
            ipaddress.IPv4Network(stored.subnet)
        except ValueError as error:
            raise StateCorrupt(
                f"{self._network_file} holds subnet {stored.subnet!r}", path=self._network_file
            ) from error
        return stored.subnet

    def _index_of_task(self, task_id: TaskId) -> int | None:
        """Where its link leads; None without one."""
        try:
            index = int(os.readlink(self._directory / task_id).removesuffix(".json"))
        except FileNotFoundError:
            return None
        owner = _decode(self._directory / f"{index}.json", _SlotFile)
        if owner.task_id != task_id:
            raise StateCorrupt(
                f"slot {index} is task {owner.task_id}'s, and {task_id} leads to it",
                path=self._directory / task_id,
            )
        return index

    def _taken(self) -> set[int]:
        """The indices of all slots that are some task's."""
        found = set()
        for name in os.listdir(self._directory):
            stem, _, suffix = name.rpartition(".")
            if suffix != "json" or not stem or name.startswith(".") or stem == "network":
                continue
            if not stem.isdecimal() or int(stem) >= MAX_SLOTS:
                path = self._directory / name
                raise StateCorrupt(f"{path} is not the name of a slot", path=path)
            found.add(int(stem))
        return found

    def _read_slots(self) -> dict[int, _SlotFile]:
        return {
            index: _decode(self._directory / f"{index}.json", _SlotFile) for index in self._taken()
        }

    def _publish(self, path: Path, content: Struct) -> None:
        """Makes the whole file appear at once; refuses to replace one. Under the lock."""
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(content))
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _decode(path: Path, kind: type[_File]) -> _File:
    data = path.read_bytes()
    try:
        content = msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise StateCorrupt(f"{path} is damaged: {error}", path=path) from error
    if content.version != FORMAT_VERSION:
        raise StateCorrupt(
            f"{path} has version {content.version}, this fargatelite reads {FORMAT_VERSION}",
            path=path,
        )
    return content
