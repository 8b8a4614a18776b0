"""What a task sends to others: real tasks on a host of their own, made of namespaces.

Beside the private host there is a "world" with a metadata service at 169.254.169.254. The second half
of each test takes the firewall away and sees the same packet arrive.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fargatelite.network.namespaces import run_in_namespace
from tests.attacks.conftest import TIMEOUT_S, container, task_of
from tests.fixtures.cli import CommandLine
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer
from tests.root.network.conftest import HOST_ADDRESS, IMDS, WORLD_ADDRESS, Net

pytestmark = [pytest.mark.root]


class Street:
    """Two tasks that are neighbours, seen from the private host."""

    def __init__(self, net: Net, command_line: CommandLine, path: Path, program: bytes) -> None:
        self.net, self._command_line = net, command_line
        layout = build_oci_layout(
            path / "layout", [tar_layer(busybox_files() | {"bin/attack": program})]
        )
        shown = self.command("image", "load", layout)
        image = shown.split()[0].removeprefix("sha256:")
        self.image = shown.splitlines()[0].split()[0]
        assert image, shown
        self.tasks = [self._start(path / f"task-{number}.json") for number in range(2)]
        self.addresses = [self._address(task) for task in self.tasks]

    def command(self, *arguments: str | Path) -> str:
        done = self.net.on_host(lambda: self._command_line(*arguments))
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def _start(self, path: Path) -> str:
        script = "httpd -p 80 -h /etc; attack sniff 60000"
        path.write_text(json.dumps(task_of(container(self.image, "sh", "-c", script))))
        return self.command("run", "--detach", "--pull", "never", path).split()[-1]

    def _address(self, task: str) -> str:
        return json.loads(self.command("describe", task))["tasks"][0]["attachments"][0]["details"][0]["value"]

    def attack(self, *arguments: str, by: int = 0) -> str:
        return self.command("exec", "--force", self.tasks[by], "attack", *arguments).strip()


@pytest.fixture(scope="module")
def street(
    tmp_path_factory: pytest.TempPathFactory, attack_program: bytes
) -> Iterator[Street]:
    path = tmp_path_factory.mktemp("street")
    with ExitStack() as stack:
        net = Net(stack)
        command_line = CommandLine(path / "data", path / "run")
        stack.callback(command_line.end)
        made = Street(net, command_line, path, attack_program)
        for task in made.tasks:
            stack.callback(made.command, "stop", task)
        yield made


def test_show(street: Street) -> None:
    print(street.image, street.tasks, street.addresses)
    print(street.command("describe", street.tasks[0]))
    assert 0
