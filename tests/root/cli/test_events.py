"""`fargatelite events`, and the same events as EventBridge would deliver them."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fargatelite import Settings, run_task
from fargatelite.runtime.events import Event, StateChange
from tests.fixtures.cli import CommandLine, lines_until
from tests.fixtures.patience import patient
from tests.root.runtime.test_container_features import TIMEOUT_S, definition, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]


def test_a_life_in_eventbridges_shape(settings: Settings, busybox: str) -> None:
    seen: list[Event] = []
    task = run_task(
        definition(busybox, shell("app", "exit 3")), settings=settings, on_event=seen.append
    )
    task.wait(TIMEOUT_S)
    changes = [event.event for event in seen if isinstance(event, StateChange)]
    versions = [event["detail"]["version"] for event in changes]
    assert versions == sorted(set(versions))
    assert len({event["id"] for event in changes}) == len(changes)
    last = changes[-1]
    assert last["source"] == "aws.ecs"
    assert last["detail-type"] == "ECS Task State Change"
    assert last["resources"] == [task.arn]
    detail = last["detail"]
    assert (detail["lastStatus"], detail["stopCode"]) == ("STOPPED", "EssentialContainerExited")
    assert detail["containers"][0]["exitCode"] == 3
    assert detail["attachments"][0]["type"] == "eni"
    times = [detail[name] for name in ("createdAt", "pullStartedAt", "startedAt", "stoppedAt")]
    assert [datetime.fromisoformat(at) for at in times] == sorted(
        map(datetime.fromisoformat, times)
    )
    statuses = list(dict.fromkeys(event["detail"]["lastStatus"] for event in changes))
    assert statuses == [
        "PENDING", "ACTIVATING", "RUNNING", "DEPROVISIONING", "STOPPED",
    ]  # fmt: skip


def _file(tmp_path: Path, document: dict[str, Any]) -> Path:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(document))
    return path


def test_all_tasks_are_followed_those_to_come_too(
    fargatelite: CommandLine, clean_host: None, tmp_path: Path, busybox: str
) -> None:
    follower = fargatelite.start("events", "--follow", "--output", "json")
    assert follower.stdout is not None
    ids = []
    for code in (0, 5):
        done = fargatelite(
            "run", "--output", "json",
            _file(tmp_path, definition(busybox, shell("app", f"exit {code}"))),
        )  # fmt: skip
        assert done.returncode == code
        ids.append(json.loads(done.stdout)["task"]["taskArn"])
        lines = lines_until(follower.stdout, '"STOPPED", "launchType"')
        assert {json.loads(line)["resources"][0] for line in lines} == {ids[-1]}
    follower.send_signal(signal.SIGINT)
    assert follower.wait(patient(20)) == 130

    shown = fargatelite("events").stdout.splitlines()
    assert [line.split()[3] for line in shown if line.split()[2] == "task"].count("STOPPED") == 2
    one = fargatelite("events", ids[1]).stdout.splitlines()
    assert one[-1].endswith(
        "task STOPPED EssentialContainerExited: Essential container in task exited"
    )
    assert any(line.endswith("app STOPPED exit code 5") for line in one)


def test_following_one_task_ends_with_it(
    fargatelite: CommandLine, settings: Settings, busybox: str
) -> None:
    with run_task(
        definition(busybox, shell("app", "sleep 300", stopTimeout=2)), settings=settings
    ) as task:
        task.until("RUNNING", TIMEOUT_S)
        follower = fargatelite.start("events", "-f", task.id)
        assert follower.stdout is not None
        lines_until(follower.stdout, "task RUNNING")
        task.stop("enough")
        rest = follower.stdout.read().splitlines()
        assert rest[-1].endswith("task STOPPED UserInitiated: enough")
        assert follower.wait(patient(20)) == 0
