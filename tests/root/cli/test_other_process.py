"""A task that one process runs, seen and stopped by others; records after it; images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fargatelite import Settings
from tests.fixtures.cli import TIMEOUT_S, CommandLine, lines_until
from tests.fixtures.images import build_oci_layout, busybox_files, tar_layer

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.usefixtures("settings")]

# Says what it hears; ends when the file is there or on SIGTERM.
SCRIPT = "trap 'echo bye; exit 9' TERM; echo up; echo err >&2; while true; do sleep 0.1; done"


def definition(image: str, **more: Any) -> str:
    return json.dumps(
        {
            "family": "other",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "256",
            "memory": "512",
            "containerDefinitions": [
                {
                    "name": "app",
                    "image": image,
                    "entryPoint": ["/bin/sh", "-c"],
                    "command": [SCRIPT],
                    **more,
                },
                {
                    "name": "side",
                    "image": image,
                    "essential": False,
                    "entryPoint": ["/bin/sh", "-c"],
                    "command": ["echo aside; exit 3"],
                },
            ],
        }
    )


class Running:
    """A task under way in a process of its own."""

    def __init__(self, fargatelite: CommandLine, path: Path) -> None:
        self.process = fargatelite.start("run", path)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        lines_until(self.process.stdout, "app  | up")
        lines_until(self.process.stderr, "task  RUNNING")
        (self.id, *_) = reversed(fargatelite("ps", "--quiet").stdout.split())

    def end(self) -> int:
        """Waits for the process, which reports to nobody any more."""
        self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode


@pytest.fixture
def task_file(tmp_path: Path, busybox: str) -> Path:
    path = tmp_path / "task.json"
    path.write_text(definition(busybox))
    return path


@pytest.fixture
def running(fargatelite: CommandLine, task_file: Path) -> Iterator[Running]:
    task = Running(fargatelite, task_file)
    yield task
    if task.process.poll() is None:
        task.process.terminate()
        task.end()


def rows(text: str) -> list[list[str]]:
    """A table's lines in words, without the heading."""
    return [line.split() for line in text.splitlines()[1:]]


@pytest.mark.vm
def test_ps_and_describe(fargatelite: CommandLine, running: Running) -> None:
    (row,) = rows(fargatelite("ps").stdout)
    assert row[:5] == [running.id[:12], "other:1", "RUNNING", "RUNNING", "UNKNOWN"]
    assert row[-1] in ("app,side", "app,side(3)")

    (arn,) = json.loads(fargatelite("ps", "--output", "json").stdout)["taskArns"]
    assert arn == f"arn:aws:ecs:us-east-1:000000000000:task/default/{running.id}"

    for name in (running.id, running.id[:6], arn):
        (task,) = json.loads(fargatelite("describe", name).stdout)["tasks"]
        assert (task["taskArn"], task["lastStatus"]) == (arn, "RUNNING")
    document = json.loads(fargatelite("describe", running.id, "ffff-none").stdout)
    assert len(document["tasks"]) == 1
    assert document["failures"] == [{"arn": "ffff-none", "reason": "MISSING"}]


def test_logs_of_a_running_task(fargatelite: CommandLine, running: Running) -> None:
    shown = fargatelite("logs", running.id[:12])
    assert set(shown.stdout.splitlines()) == {"app  | up", "side | aside"}
    assert shown.stderr == "app  | err\n"
    only = fargatelite("logs", running.id, "--container", "app")
    assert (only.stdout, only.stderr) == ("up\n", "err\n")
    stamped = fargatelite("logs", running.id, "-c", "app", "-t").stdout
    assert stamped[:2] == "20"
    assert stamped.endswith("+00:00 up\n")
    unknown = fargatelite("logs", running.id, "-c", "nobody")
    assert unknown.returncode == 125
    assert "has no container 'nobody'" in unknown.stderr
    assert "it has app, side" in unknown.stderr


def test_follow_logs_and_wait_until_a_stop(fargatelite: CommandLine, running: Running) -> None:
    follower = fargatelite.start("logs", running.id, "-f", "-c", "app")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "up\n"
    waiter = fargatelite.start("wait", running.id)

    stopped = fargatelite("stop", running.id[:8], "--reason", "rolling out")
    assert (stopped.returncode, stopped.stdout) == (0, f"{running.id}\n")
    rest, errors = follower.communicate(timeout=TIMEOUT_S)
    assert (follower.returncode, rest, errors) == (0, "bye\n", "err\n")
    waiter.communicate(timeout=TIMEOUT_S)
    assert waiter.returncode == 9
    assert running.end() == 9

    (task,) = json.loads(fargatelite("describe", running.id).stdout)["tasks"]
    assert (task["stopCode"], task["stoppedReason"]) == ("UserInitiated", "rolling out")
    again = fargatelite("stop", running.id)
    assert (again.returncode, again.stdout) == (0, f"{running.id}\n")


@pytest.mark.vm
def test_stop_without_waiting(fargatelite: CommandLine, running: Running) -> None:
    assert fargatelite("stop", "--no-wait", running.id).returncode == 0
    assert fargatelite("wait", running.id, "--timeout", "20").returncode == 9
    assert running.end() == 9


def test_wait_gives_up(fargatelite: CommandLine, running: Running) -> None:
    ended = fargatelite("wait", running.id, "--timeout", "0.2")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr == f"Error: task {running.id[:12]} is still RUNNING\n"


def test_interrupted_watchers_leave_the_task_alone(
    fargatelite: CommandLine, running: Running
) -> None:
    follower = fargatelite.start("logs", running.id, "-f", "-c", "app")
    assert follower.stdout is not None
    follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=TIMEOUT_S)
    assert follower.returncode == 130
    assert "Traceback" not in errors
    (row,) = rows(fargatelite("ps").stdout)
    assert row[2] == "RUNNING"


@pytest.mark.vm
def test_stats_and_bill_of_a_running_task(fargatelite: CommandLine, running: Running) -> None:
    table = fargatelite("stats", running.id[:12], "--no-stream")
    assert (table.returncode, table.stderr) == (0, "")
    found = {row[1]: row for row in rows(table.stdout)}
    assert {"(task)", "app"} <= set(found)
    assert all(row[0] == running.id[:12] for row in found.values())
    values = json.loads(fargatelite("stats", "--no-stream", "--output", "json").stdout)["tasks"]
    assert values[running.id]["app"]["cpu_usage_ns"] > 0
    assert values[running.id]["app"]["memory_bytes"] > 0

    bill = json.loads(fargatelite("bill", running.id, "--output", "json").stdout)
    assert bill["isFinal"] is False
    assert Decimal(bill["cost"]) > 0
    assert ", still running" in fargatelite("bill", running.id).stdout


def test_records_stay_until_gc(
    fargatelite: CommandLine, settings: Settings, task_file: Path
) -> None:
    running = Running(fargatelite, task_file)
    fargatelite("stop", running.id)
    assert running.end() == 9

    assert fargatelite("ps").stdout.count("\n") == 1
    (row,) = rows(fargatelite("ps", "--all").stdout)
    assert row[2] == "STOPPED"
    assert row[-1] == "app(9),side(3)"
    assert fargatelite("wait", running.id).returncode == 9
    assert "app  | bye" in fargatelite("logs", running.id, "--follow").stdout
    assert json.loads(fargatelite("bill", running.id, "--output", "json").stdout)["isFinal"] is True
    assert rows(fargatelite("stats", running.id, "--no-stream").stdout) == []

    kept = fargatelite("gc", "--older-than", "1d")
    assert (kept.returncode, kept.stdout) == (0, "")
    gone = json.loads(fargatelite("gc", "--older-than", "0", "--output", "json").stdout)
    assert gone["records"] == [running.id]
    assert gone["tasks"] == gone["orphans"] == gone["failures"] == []
    assert rows(fargatelite("ps", "--all").stdout) == []
    assert list(settings.records.iterdir()) == list(settings.ledgers.iterdir()) == []
    assert fargatelite("logs", running.id).returncode == 125


def test_ambiguous_ids(fargatelite: CommandLine, busybox: str, settings: Settings) -> None:
    """Until two tasks share a first character: 17 do at the latest."""
    quick = json.loads(definition(busybox))
    quick["containerDefinitions"] = [
        {"name": "app", "image": busybox, "command": ["/no/such/program"]}
    ]
    seen: dict[str, str] = {}
    for _ in range(17):
        ended = fargatelite("run", "-", "--output", "json", input=json.dumps(quick))
        task_id = json.loads(ended.stdout)["task"]["taskArn"].rpartition("/")[2]
        if task_id[0] in seen:
            break
        seen[task_id[0]] = task_id
    other = seen[task_id[0]]
    ended = fargatelite("bill", task_id[0])
    assert ended.returncode == 125
    first, second = sorted((task_id[:12], other[:12]))
    assert ended.stderr == (
        f"Error: '{task_id[0]}' fits 2 tasks ({first}, {second}); give more characters\n"
    )
    assert fargatelite("bill", task_id).returncode == 0
    assert fargatelite("describe", task_id[0]).returncode == 125


@pytest.mark.vm
def test_what_lost_its_supervisor_is_collected(fargatelite: CommandLine, running: Running) -> None:
    """`gc` ends it at once; any other command would have it adopted."""
    os.kill(running.process.pid, signal.SIGKILL)
    running.end()
    collected = fargatelite("gc")
    assert (collected.returncode, collected.stdout) == (0, f"ended {running.id}\n")
    assert fargatelite("wait", running.id).returncode == 137
    (task,) = json.loads(fargatelite("describe", running.id).stdout)["tasks"]
    assert task["lastStatus"] == "STOPPED"


@pytest.mark.vm
def test_the_next_command_has_it_adopted(fargatelite: CommandLine, running: Running) -> None:
    os.kill(running.process.pid, signal.SIGKILL)
    running.end()
    (task,) = json.loads(fargatelite("describe", running.id).stdout)["tasks"]
    assert task["lastStatus"] == "RUNNING"
    assert fargatelite("stop", running.id, "--reason", "adopted").returncode == 0
    (task,) = json.loads(fargatelite("describe", running.id).stdout)["tasks"]
    assert (task["lastStatus"], task["stoppedReason"]) == ("STOPPED", "adopted")


def test_a_follower_goes_on_when_the_supervisor_is_killed(
    fargatelite: CommandLine, running: Running
) -> None:
    follower = fargatelite.start("logs", running.id, "-f", "-c", "app")
    assert follower.stdout is not None
    follower.stdout.readline()
    os.kill(running.process.pid, signal.SIGKILL)
    running.end()
    assert fargatelite("stop", running.id).returncode == 0
    _, errors = follower.communicate(timeout=TIMEOUT_S)
    assert follower.returncode == 0
    assert "supervisor" not in errors


# ---- images ----


def test_images_pulled_loaded_listed_removed(
    fargatelite: CommandLine, busybox: str, tmp_path: Path
) -> None:
    pulled = fargatelite("image", "pull", busybox)
    assert (pulled.returncode, pulled.stderr) == (0, "")
    digest = pulled.stdout.strip()
    assert digest.startswith("sha256:")
    detail = json.loads(fargatelite("image", "pull", busybox, "--output", "json").stdout)
    assert (detail["imageUri"], detail["imageDigest"]) == (busybox, digest)

    archive = tmp_path / "archive.tar"
    layout = build_oci_layout(tmp_path / "layout", [tar_layer(busybox_files())], {"Env": ["A=1"]})
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci:{layout}:1", f"docker-archive:{archive}:loaded:2"],
        check=True, capture_output=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    loaded = fargatelite("image", "load", archive)
    assert (loaded.returncode, loaded.stderr) == (0, "")
    (name,) = loaded.stdout.split()
    assert name.endswith("loaded:2")

    details = json.loads(fargatelite("image", "list", "--output", "json").stdout)["imageDetails"]
    assert {item["imageUri"] for item in details} == {busybox, name}
    table = fargatelite("image", "list", environment={"COLUMNS": "40"}).stdout
    assert {row[0] for row in rows(table)} == {busybox, name}

    ended = fargatelite("run", "-", "--pull", "never", input=definition(name, command=["exit 8"]))
    assert ended.returncode == 8

    assert fargatelite("image", "remove", busybox, name).stdout == f"{busybox}\n{name}\n"
    assert rows(fargatelite("image", "list").stdout) == []
    unknown = fargatelite("image", "remove", busybox)
    assert unknown.returncode == 125
    assert busybox in unknown.stderr


@pytest.mark.parametrize(
    ("reference", "message"),
    [("{host}/none:1", "none:1"), ("Not A Reference", "Not A Reference")],
    ids=["unknown", "malformed"],
)
def test_failing_pull(fargatelite: CommandLine, busybox: str, reference: str, message: str) -> None:
    name = reference.format(host=busybox.partition("/")[0])
    ended = fargatelite("image", "pull", name)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith("Error: ")
    assert message in ended.stderr


def test_loading_what_is_no_image(fargatelite: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "no image"
    path.write_text("this is text")
    ended = fargatelite("image", "load", path)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert str(path) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_check_prints_the_same_in_both_forms(fargatelite: CommandLine) -> None:
    table = fargatelite("check")
    document = fargatelite("check", "--output", "json")
    assert table.returncode == document.returncode == 0
    checks = json.loads(document.stdout)["checks"]
    assert [line.split("  ")[0] for line in table.stdout.splitlines()[1 : len(checks) + 1]] == [
        item["name"] for item in checks
    ]
    assert {item["state"] for item in checks} <= {"ok", "degraded"}
