"""Security groups of tasks: from RunTask's networkConfiguration and the command line to packets."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, find_task, prepare_sandboxes, run_task
from fargatelite.errors import ConfigurationInvalid, SecurityGroupNotFound
from fargatelite.network import firewall
from fargatelite.runtime.api import Task
from fargatelite.runtime.detached import ensure_supervised
from fargatelite.runtime.prepared import get_pool
from fargatelite.runtime.supervise import get_supervisor
from fargatelite.security_groups import GroupDefinition
from tests.fixtures.cli import CommandLine
from tests.fixtures.patience import patient

from .test_adoption import await_that, kill_supervisor
from .test_detached import await_end

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

TIMEOUT_S = patient(60)
TIMED_OUT = 128 + 15
"""What timeout(1) of busybox makes of a connection that nobody answers."""
FILE = """
strict_isolation = false
[security_groups.client]
[[security_groups.web.ingress]]
IpProtocol = "tcp"
FromPort = 80
ToPort = 80
UserIdGroupPairs = [{ GroupName = "client" }]
"""
logger = logging.getLogger(__name__)

SERVE = "httpd -p 80 -h /etc; echo ready; sleep 300"


def document(image: str, script: str, **more: Any) -> dict[str, Any]:
    return {
        "family": "groups", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": "256", "memory": "512", **more,
        "containerDefinitions": [
            {"name": "c", "image": image, "entryPoint": ["sh", "-c"], "command": [script],
             "stopTimeout": 2}
        ],
    }  # fmt: skip


def in_groups(*names: str) -> dict[str, Any]:
    return {"awsvpcConfiguration": {"securityGroups": list(names), "subnets": ["subnet-12345678"]}}


@pytest.fixture
def grouped(settings: Settings) -> Settings:
    web = {
        "ingress": [
            {"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80,
             "UserIdGroupPairs": [{"GroupName": "client"}]}
        ]
    }  # fmt: skip
    named = [{"name": "client"}, web | {"name": "web"}]
    groups = msgspec.convert(named, tuple[GroupDefinition, ...])
    return msgspec.structs.replace(settings, security_groups=groups)


def _ask(settings: Settings, image: str, address: str, *groups: str) -> int | None:
    task = run_task(
        document(image, f"timeout 1 wget -q -O - http://{address}/passwd; exit $?"),
        settings=settings,
        network_configuration=in_groups(*groups) if groups else None,
    )
    code = task.wait(TIMEOUT_S)
    logger.info("%s: %s", code, task.describe())  # pytest shows it with a failure
    return code


def _serve(stack: ExitStack, settings: Settings, image: str) -> Task:
    task = stack.enter_context(
        run_task(document(image, SERVE), settings=settings, network_configuration=in_groups("web"))
    )
    next(line for line in task.logs("c", follow=True) if b"ready" in line.text)
    return task


@pytest.mark.parametrize("prepared", [0, 1])
def test_only_the_named_group_reaches_the_task(
    grouped: Settings, busybox: str, prepared: int
) -> None:
    settings = msgspec.structs.replace(grouped, prepared_sandboxes=prepared)
    with ExitStack() as stack:
        if prepared:
            pool = get_pool(get_supervisor(settings))
            stack.callback(lambda: pool.wait_finished(TIMEOUT_S))
            stack.callback(pool.stop_for_exit)
            assert prepare_sandboxes(settings, timeout_s=TIMEOUT_S)
        task = _serve(stack, settings, busybox)
        assert task.address is not None
        assert _ask(settings, busybox, task.address, "client") == 0
        assert _ask(settings, busybox, task.address) == TIMED_OUT
        assert _ask(settings, busybox, task.address, "web") == TIMED_OUT
        described = task.describe()
        (attachment,) = described["attachments"]
        assert {"name": "subnetId", "value": "subnet-12345678"} in attachment["details"]
        (shown,) = [
            item["value"]
            for item in described["attributes"]
            if item["name"] == "fargatelite.security-group"
        ]
        assert shown.startswith("web (sg-")


def test_what_run_task_refuses(grouped: Settings, busybox: str) -> None:
    asked = document(busybox, "exit 0")
    with pytest.raises(SecurityGroupNotFound, match=r"InvalidGroup\.NotFound.*'nobody'"):
        run_task(asked, settings=grouped, network_configuration=in_groups("nobody"))
    for given, said in (
        ({"awsvpcConfiguration": {"assignPublicIp": "ENABLED"}}, "public address"),
        ({"awsvpcConfiguration": {"securityGroup": ["web"]}}, "unknown field"),
        ({"vpc": {}}, "unknown field"),
    ):
        with pytest.raises(ConfigurationInvalid, match=said):
            run_task(asked, settings=grouped, network_configuration=given)
    bridged = document(busybox, "exit 0") | {
        "networkMode": "bridge", "requiresCompatibilities": ["EC2"]
    }  # fmt: skip
    with pytest.raises(ConfigurationInvalid, match="not valid for the given networkMode"):
        run_task(
            bridged, settings=grouped, launch_type="EC2", network_configuration=in_groups("web")
        )


@pytest.fixture
def command_line(tmp_path: Path) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path / "data", tmp_path / "run")
    config = tmp_path / "config.toml"
    config.write_text(FILE)
    made.environment["FARGATELITE_CONFIG"] = str(config)
    yield made
    made.end()


def test_the_command_line_and_a_supervisor_that_is_killed(
    command_line: CommandLine, busybox: str, tmp_path: Path
) -> None:
    """The groups of a detached task are in its record: whoever adopts it needs no configuration."""
    (tmp_path / "web.json").write_text(json.dumps(document(busybox, SERVE)))
    done = command_line(
        "run", "--detach", "--wait-for", "RUNNING", "--security-group", "web", tmp_path / "web.json"
    )
    assert done.returncode == 0, done.stderr
    task = done.stdout.split()[-1]
    record = tmp_path / "run" / "tasks" / task / "state.json"
    address = json.loads(record.read_text())["slot"]["address"]
    (tmp_path / "ask.json").write_text(
        json.dumps(document(busybox, f"timeout 1 wget -q -O - http://{address}/passwd; exit $?"))
    )

    def ask(*options: str) -> int:
        return command_line("run", "--pull", "never", *options, tmp_path / "ask.json").returncode

    assert ask("--security-group", "client") == 0
    assert ask() == TIMED_OUT
    unknown = command_line("run", "--security-group", "nobody", tmp_path / "ask.json")
    assert unknown.returncode == 125
    assert "InvalidGroup.NotFound: The security group 'nobody' does not exist" in unknown.stderr
    roots = Settings(data_root=str(tmp_path / "data"), run_root=str(tmp_path / "run"))
    kill_supervisor(roots)
    subprocess.run(["nft", "flush", "table", *firewall.TABLE.split()], check=True)
    ensure_supervised(roots)
    slot = find_task(task, settings=roots).record().slot
    assert slot is not None
    await_that(lambda: firewall.is_in_force(slot))
    assert ask("--security-group", "client") == 0
    assert ask() == TIMED_OUT
    assert command_line("stop", task).returncode == 0
    await_end(roots)
