"""First half of a restart: tasks that run when the machine stops without a word."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.fixtures.cli import CommandLine
from tests.fixtures.patience import patient
from tests.reboot.places import DATA_ROOT, IDS, MARKS, RUN_ROOT

pytestmark = MARKS


def definition(image: str, script: str) -> dict[str, Any]:
    return {
        "family": "reboot", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": "256", "memory": "512",
        "containerDefinitions": [
            {"name": "app", "image": image, "entryPoint": ["sh", "-c"], "command": [script],
             "portMappings": [{"containerPort": 80}]},
        ],
    }  # fmt: skip


def test_tasks_run_when_the_machine_stops(busybox: str, tmp_path_factory: Any) -> None:
    command_line = CommandLine(DATA_ROOT, RUN_ROOT)
    file = tmp_path_factory.mktemp("definitions") / "task.json"
    file.write_text(json.dumps(definition(busybox, "echo over; exit 3")))
    assert command_line("run", file).returncode == 3
    (over,) = command_line("ps", "--all", "--quiet").stdout.split()
    file.write_text(
        json.dumps(definition(busybox, "echo x > /file; while true; do echo live; sleep 1; done"))
    )
    live = [
        command_line("run", "--detach", "--wait-for", "RUNNING", file).stdout.strip()
        for _ in range(2)
    ]
    assert sorted(command_line("ps", "--quiet").stdout.split()) == sorted(live)
    follower = command_line.start("logs", "-f", live[1])
    assert follower.stdout is not None
    assert "live" in follower.stdout.readline()
    IDS.write_text(json.dumps({"over": over, "live": live}))
    subprocess.run(["sync"], check=True, timeout=patient(20))
    command_line.end()
    assert all((DATA_ROOT / "tasks" / task_id).exists() for task_id in live)
