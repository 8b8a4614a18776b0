"""What a task sends to others: real tasks on a host of their own, made of namespaces.

Beside the private host there is a "world" with a metadata service at 169.254.169.254. The second
half of a test takes the firewall away and sees the same packet arrive.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fargatelite.names import INTERFACE_PREFIX
from fargatelite.network import firewall
from fargatelite.network.namespaces import run_in_namespace
from fargatelite.network.rules import parse_snapshot
from tests.attacks.conftest import TIMEOUT_S, container, task_of
from tests.fixtures.cli import CommandLine
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer
from tests.root.network.conftest import HOST_ADDRESS, IMDS, OPEN_DOOR, WORLD_ADDRESS, Net

pytestmark = [pytest.mark.root]

ETH_P_IP = 0x0800


class Street:
    """Two tasks that are neighbours, on a private host."""

    def __init__(self, net: Net, command_line: CommandLine, path: Path, program: bytes) -> None:
        self.net, self._command_line = net, command_line
        files = busybox_files() | {"bin/attack": program}
        layout = build_oci_layout(path / "layout", [tar_layer(files)])
        self._image = self.command("image", "load", layout).split()[0]
        self.tasks = [self._start(path / f"task-{number}.json") for number in range(2)]
        self.addresses = [self._address(task) for task in self.tasks]

    def command(self, *arguments: str | Path) -> str:
        """Output of the command line on the private host."""
        done = self.net.on_host(lambda: self._command_line(*arguments))
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def _start(self, path: Path) -> str:
        script = "httpd -p 80 -h /etc; attack sniff -1"
        path.write_text(json.dumps(task_of(container(self._image, "sh", "-c", script))))
        task = self.command("run", "--detach", "--pull", "never", path).split()[-1]
        self.until(lambda: "sniffing" in self.command("logs", task))
        return task

    def _address(self, task: str) -> str:
        (described,) = json.loads(self.command("describe", task))["tasks"]
        (interface,) = described["containers"][0]["networkInterfaces"]
        return str(interface["privateIpv4Address"])

    def attack(self, *arguments: str) -> str:
        """What the first task's attempt says."""
        return self.command("exec", "--force", self.tasks[0], "attack", *arguments).strip()

    def caught(self) -> int:
        """Packets of an attack that the second task has seen so far."""
        return self.command("logs", self.tasks[1]).count("caught")

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline

    @contextmanager
    def open_door(self) -> Iterator[None]:
        """Without the firewall; afterwards it is as it was."""
        self.nft("; ".join(OPEN_DOOR))
        try:
            yield
        finally:
            self.nft("delete", "table", *firewall.TABLE.split())
            self.until(self.is_guarded)

    def nft(self, *command: str) -> str:
        """Somebody else's nft on the private host."""
        done = self.net.on_host(
            lambda: subprocess.run(["nft", *command], capture_output=True, text=True, check=False)
        )
        return done.stdout

    def links(self) -> list[str]:
        """Host ends of the tasks' links."""
        listed = self.net.ip(self.net.host, "-o link show").splitlines()
        names = [line.split()[1].rstrip(":").split("@")[0] for line in listed]
        return [name for name in names if name.startswith(INTERFACE_PREFIX)]

    def is_advised(self, link: str) -> bool:
        """Whether the host has taken a task's advertisement, once more sent, for a router's."""
        for task in self.tasks:
            self.command("exec", "--force", task, "attack", "ra", "eth1")
        return f"fe80::66 dev {link}" in self.net.ip(self.net.host, "-6 route show")

    def is_guarded(self) -> bool:
        """Whether the rules are there, and both tasks in their sets."""
        listed = self.nft("--json", "list", "table", *firewall.TABLE.split())
        if not listed:
            return False
        found = parse_snapshot(listed)
        admitted = {address for _, address in found.of("tasks")}
        return not found.lacks_rules(()) and admitted.issuperset(self.addresses)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory, attack_program: bytes) -> Iterator[Street]:
    path = tmp_path_factory.mktemp("street")
    with ExitStack() as stack:
        net = Net(stack)
        command_line = CommandLine(path / "data", path / "run")
        stack.callback(command_line.end)
        made = Street(net, command_line, path, attack_program)
        for task in made.tasks:
            stack.callback(made.command, "stop", task)
        yield made


@contextmanager
def listening(namespace: int, address: str, port: int) -> Iterator[socket.socket]:
    """A TCP server there."""
    with run_in_namespace(namespace, lambda: socket.create_server((address, port))) as server:
        yield server


def test_another_task(street: Street) -> None:
    """A connection to a neighbour's port."""
    to = (street.addresses[1], "80")
    assert street.attack("connect", *to) == "ETIMEDOUT"
    with street.open_door():
        assert street.attack("connect", *to) == "OK"
    assert street.attack("connect", *to) == "ETIMEDOUT"


@pytest.mark.parametrize("address", ["gateway", HOST_ADDRESS])
def test_services_of_the_host(street: Street, address: str) -> None:
    """A port of the host, at either of its addresses."""
    if address == "gateway":
        address = street.addresses[0].rpartition(".")[0] + ".1"
    with listening(street.net.host, "0.0.0.0", 2222):
        assert street.attack("connect", address, "2222") == "ETIMEDOUT"
        with street.open_door():
            assert street.attack("connect", address, "2222") == "OK"


def test_instance_metadata(street: Street) -> None:
    """169.254.169.254: the credentials of a cloud host. Without the rule the packet leaves, with a
    source that the world cannot answer: that nothing comes back is no defence."""
    with listening(street.net.world, IMDS, 80) as server:
        assert street.attack("connect", IMDS, "80") == "ETIMEDOUT"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()

    def sniffer() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        opened.settimeout(TIMEOUT_S)
        return opened

    with street.net.on_world(sniffer) as packets, street.open_door():
        street.attack("connect", IMDS, "80")
        while socket.inet_ntoa(packets.recv(64)[16:20]) != IMDS:
            pass


def test_metadata_of_another_task(street: Street) -> None:
    """ECScape (2025) and kin: the endpoint knows its task by the namespace; a neighbour's id says
    nothing there, and a neighbour's own endpoint is out of reach."""
    script = "wget -q -O - $ECS_CONTAINER_METADATA_URI_V4 | wc -l; wget -O - {} 2>&1; true"
    url = f"http://169.254.170.2/v4/{street.tasks[1].split('/')[-1]}-0000000000"
    shown = street.command(
        "exec", "--force", street.tasks[0], "sh", "-c", script.format(url)
    ).splitlines()
    assert "404" in shown[-1], shown
    assert street.attack("connect", street.addresses[1], "51679") == "ETIMEDOUT"
    with street.open_door():  # nobody listens at that address, which is said at once
        assert street.attack("connect", street.addresses[1], "51679") == "ECONNREFUSED"


def test_cve_2025_54388_flushed_rules(street: Street) -> None:
    """CVE-2025-54388: a reload of the host's firewall took the isolation of containers with it."""
    to = (street.addresses[1], "80")
    table = firewall.TABLE.split()
    for command in (
        ("flush", "ruleset"),
        ("delete", "table", *table),
        ("flush", "table", *table),
        ("flush", "chain", *table, "egress"),
        ("flush", "set", *table, "tasks"),
    ):
        street.nft(*command)
        street.until(street.is_guarded)
        assert street.attack("connect", *to) == "ETIMEDOUT"


def test_spoofed_source_to_another_task(street: Street) -> None:
    """A raw packet with somebody else's source address (NET_RAW is in Fargate's set)."""
    before = street.caught()
    for source in ("198.51.100.66", "10.213.0.1", street.addresses[1], street.addresses[0]):
        assert street.attack("spoof", source, street.addresses[1], "9") == "OK"
    with street.open_door():
        assert street.attack("spoof", street.addresses[0], street.addresses[1], "9") == "OK"
        street.until(lambda: street.caught() > before)
    assert street.caught() == before + 1, "only what was sent through the open door"


def test_spoofed_source_to_the_world(street: Street) -> None:
    """In a neighbour's name to others."""

    def receiver() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((WORLD_ADDRESS, 5300))
        made.settimeout(TIMEOUT_S)
        return made

    with street.net.on_world(receiver) as server:
        street.attack("spoof", street.addresses[1], WORLD_ADDRESS, "5300")
        street.attack("spoof", street.addresses[0], WORLD_ADDRESS, "5300")
        assert server.recvfrom(100)[1][0] == HOST_ADDRESS, "the honest one, masqueraded"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(100)
        server.settimeout(TIMEOUT_S)
        with street.open_door():
            street.attack("spoof", street.addresses[1], WORLD_ADDRESS, "5300")
            assert server.recvfrom(100)[1][0] == street.addresses[1]


@pytest.mark.parametrize("address", ["10.213.0.1", "neighbour", HOST_ADDRESS])
def test_arp_spoof(street: Street, address: str) -> None:
    """ "That address is mine." Each task has a link of its own to the host, no bridge: there is
    nobody on it to be told, and the host learns nothing unasked (arp_accept, since 2.6.33)."""
    mine = street.addresses[1] if address == "neighbour" else address
    before = street.net.ip(street.net.host, "-o neigh show")
    assert street.attack("arp", "eth1", mine) == "OK"
    after = street.net.ip(street.net.host, "-o neigh show")
    assert "02:00:00:00:00:66" not in after, (before, after)
    with listening(street.net.host, "0.0.0.0", 2223):
        run_in_namespace(
            street.net.host, lambda: socket.create_connection((street.addresses[1], 80), 5).close()
        )


def test_cve_2020_13401_router_advertisement(street: Street) -> None:
    """CVE-2020-13401: an IPv6 router advertisement makes the task the host's router. IPv6 is off on
    the links of tasks, in the kernel, firewall or not."""
    with street.open_door():
        for _ in range(3):
            street.attack("ra", "eth1")
        assert "fe80::66" not in street.net.ip(street.net.host, "-6 route show")
    link = street.links()[0]
    settings = Path("/proc/sys/net/ipv6/conf", link)

    def take_advice(value: str) -> None:
        (settings / "accept_ra").write_text("2" if value == "0" else "0")
        (settings / "disable_ipv6").write_text(value)

    with street.open_door():
        street.net.on_host(lambda: take_advice("0"))
        try:
            street.until(lambda: street.is_advised(link))
        finally:
            street.net.on_host(lambda: take_advice("1"))
    for name in street.links():
        assert "inet6" not in street.net.ip(street.net.host, f"addr show {name}")
