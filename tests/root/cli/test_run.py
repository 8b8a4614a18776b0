"""`fargatelite run` as a process: exit codes, streams, signals at every stage, options."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fargatelite import Settings
from tests.fixtures.cli import TIMEOUT_S, CommandLine, lines_until
from tests.fixtures.images import RunningRegistry, free_port
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.usefixtures("settings")]


def definition(image: str, *containers: dict[str, Any], **more: Any) -> str:
    return json.dumps(
        {
            "family": "test",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "256",
            "memory": "512",
            "containerDefinitions": [{"image": image, **container} for container in containers],
            **more,
        }
    )


def shell(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "entryPoint": ["/bin/sh", "-c"], "command": [script], **more}


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    return tmp_path / "task file.json"


class PassingRegistry:
    """Passes requests on to a registry and keeps their paths; blobs over `stall_over_bytes` stop
    in the middle until `release`."""

    def __init__(self, upstream: str, stall_over_bytes: int) -> None:
        self.paths: list[str] = []
        self.is_stalled = threading.Event()
        self.release = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.paths.append(self.path)
                kept = {key: value for key, value in self.headers.items() if key != "Host"}
                request = urllib.request.Request(
                    f"http://{upstream}{self.path}", headers=kept, method=self.command
                )
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(request, timeout=patient(10)) as response:
                    body = response.read()
                    self.send_response(response.status)
                    for key, value in response.headers.items():
                        self.send_header(key, value)
                    self.end_headers()
                if self.command == "HEAD":
                    return
                if "/blobs/" in self.path and len(body) > stall_over_bytes:
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    outer.is_stalled.set()
                    outer.release.wait(TIMEOUT_S)
                    self.close_connection = True
                    return
                self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Lets go of every request and ends."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def passing(registry: RunningRegistry) -> Iterator[PassingRegistry]:
    server = PassingRegistry(registry.host, sys.maxsize)
    yield server
    server.close()


@pytest.fixture
def stalling(registry: RunningRegistry) -> Iterator[PassingRegistry]:
    server = PassingRegistry(registry.host, 100_000)
    yield server
    server.close()


# ---- exit codes ----


@pytest.mark.parametrize(
    ("container", "code"),
    [
        (shell("app", "exit 0"), 0),
        (shell("app", "exit 42"), 42),
        ({"name": "app", "entryPoint": ["/no/such/program"]}, 127),
        ({"name": "app", "entryPoint": ["/etc/passwd"]}, 126),
        ({"name": "app", "user": "nobody-knows", "command": ["true"]}, 125),
    ],
    ids=["0", "42", "not-found", "not-executable", "unknown-user"],
)
@pytest.mark.vm
def test_exit_code(
    fargatelite: CommandLine, busybox: str, container: dict[str, Any], code: int
) -> None:
    ended = fargatelite("run", "-", input=definition(busybox, container))
    assert ended.returncode == code, ended.stderr
    if code in (125, 126, 127):
        assert "TaskFailedToStart: " in ended.stderr
        assert "Traceback" not in ended.stderr


def test_exit_code_is_that_of_the_essential_container(
    fargatelite: CommandLine, busybox: str
) -> None:
    ended = fargatelite(
        "run",
        "-",
        input=definition(
            busybox,
            shell("side", "exit 3", essential=False),
            shell("app", "exit 4", dependsOn=[{"containerName": "side", "condition": "COMPLETE"}]),
        ),
    )
    assert ended.returncode == 4


def test_unknown_image_and_dead_registry(
    fargatelite: CommandLine, registry: RunningRegistry
) -> None:
    for image in (f"{registry.host}/none:1", f"127.0.0.1:{free_port()}/none:1"):
        ended = fargatelite("run", "-", input=definition(image, {"name": "app"}))
        assert ended.returncode == 125
        assert "TaskFailedToStart: CannotPullContainerError: " in ended.stderr
        assert image.rpartition(":")[0] in ended.stderr
        assert "Traceback" not in ended.stderr


def test_broken_definition_starts_nothing(fargatelite: CommandLine, settings: Settings) -> None:
    ended = fargatelite("run", "-", input='{"family": "x"}')
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith("Error: ")
    assert not settings.runs.exists()


# ---- streams ----


def test_logs_on_stdout_talk_on_stderr(fargatelite: CommandLine, busybox: str) -> None:
    ended = fargatelite("run", "-", input=definition(busybox, shell("app", "echo hi; echo ho >&2")))
    assert sorted(ended.stdout.splitlines()) == ["app | hi", "app | ho"]
    assert "EssentialContainerExited: Essential container in task exited" in ended.stderr
    talk = [line.split(None, 1) for line in ended.stderr.splitlines() if line]
    states = [words[1] for words in talk if words[0] == "task" and words[1].isupper()]
    assert states[0] in ("PROVISIONING", "PENDING")
    assert states[-1] == "STOPPED"
    assert ["app", "STOPPED exit code 0"] in talk
    assert "0 B" not in ended.stderr.partition("USED USD")[2]
    assert "\x1b" not in ended.stdout + ended.stderr


@pytest.mark.vm
def test_json_is_one_document_on_stdout(fargatelite: CommandLine, busybox: str) -> None:
    ended = fargatelite(
        "run", "-", "--output", "json", "--tag", "team=blue", "--started-by", "me",
        "--group", "batch", input=definition(busybox, shell("app", "echo hi; exit 5")),
    )  # fmt: skip
    assert ended.returncode == 5
    document = json.loads(ended.stdout)
    assert set(document) == {"task", "bill"}
    task = document["task"]
    assert task["lastStatus"] == "STOPPED"
    assert task["containers"][0]["exitCode"] == 5
    assert task["tags"] == [{"key": "team", "value": "blue"}]
    assert (task["startedBy"], task["group"]) == ("me", "batch")
    assert Decimal(document["bill"]["cost"]) > 0
    assert "app | hi" in ended.stderr


def test_json_of_a_failed_start(fargatelite: CommandLine, registry: RunningRegistry) -> None:
    document = definition(f"{registry.host}/none:1", {"name": "app"})
    ended = fargatelite("run", "-", "--output", "json", input=document)
    assert ended.returncode == 125
    assert json.loads(ended.stdout)["task"]["stopCode"] == "TaskFailedToStart"


@pytest.mark.parametrize(
    "variables", [{"NO_COLOR": "1"}, {"COLUMNS": "40"}], ids=["NO_COLOR", "COLUMNS"]
)
def test_narrow_pipe_loses_nothing(
    fargatelite: CommandLine, busybox: str, variables: dict[str, str]
) -> None:
    long = "x" * 300
    ended = fargatelite(
        "run", "-", input=definition(busybox, shell("app", f"echo {long}")), environment=variables
    )
    assert ended.stdout == f"app | {long}\n"
    assert "\x1b" not in ended.stderr
    assert "paid for what was not used" in ended.stderr


def test_a_reader_that_leaves_stops_the_task(fargatelite: CommandLine, busybox: str) -> None:
    """`run | head -1`: nothing may be left running."""
    script = "while true; do echo line; done"
    process = fargatelite.start("run", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(definition(busybox, shell("app", script, stopTimeout=2)))
    process.stdin.close()
    assert process.stdout.readline() == "app | line\n"
    process.stdout.close()
    talk = process.stderr.read()
    process.stderr.close()
    process.wait(TIMEOUT_S)
    assert "Traceback" not in talk


def test_a_reader_that_waits_does_not_fill_memory(
    fargatelite: CommandLine, busybox: str, task_file: Path
) -> None:
    """What the reader has not taken stays in the log file; the task does not wait for it."""
    task_file.write_text(definition(busybox, shell("app", "seq 1 400000; exit 4")))
    process = fargatelite.start("run", task_file)
    assert process.stdout is not None
    assert process.stdout.readline() == "app | 1\n"
    (task_id,) = fargatelite("ps", "--all", "--quiet").stdout.split()
    assert fargatelite("wait", task_id).returncode == 4
    for _ in range(200_000):
        last = process.stdout.readline()
    assert last == "app | 200001\n"
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_kib < 80 * 1024
    rest = process.stdout.read()
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 4
    assert rest.count("\n") == 199_999
    assert rest.endswith("app | 400000\n")


# ---- options ----


def test_overrides_inline_and_from_a_file(
    fargatelite: CommandLine, busybox: str, task_file: Path, tmp_path: Path
) -> None:
    task_file.write_text(definition(busybox, shell("app", "exit 1")))
    change = json.dumps({"containerOverrides": [{"name": "app", "command": ["exit 9"]}]})
    assert fargatelite("run", task_file, "--overrides", change).returncode == 9
    path = tmp_path / "overrides.json"
    path.write_text(change)
    assert fargatelite("run", task_file, "--overrides", f"@{path}").returncode == 9
    unknown = json.dumps({"containerOverrides": [{"name": "nobody", "command": ["x"]}]})
    refused = fargatelite("run", task_file, "--overrides", unknown)
    assert refused.returncode == 125
    assert "nobody" in refused.stderr


def test_pull_policies(
    fargatelite: CommandLine, busybox: str, task_file: Path, passing: PassingRegistry
) -> None:
    image = f"{passing.host}/{busybox.partition('/')[2]}"
    task_file.write_text(definition(image, shell("app", "exit 6")))
    refused = fargatelite("run", task_file, "--pull", "never")
    assert (refused.returncode, passing.paths) == (125, [])
    assert "TaskFailedToStart: CannotPullContainerError: " in refused.stderr

    assert fargatelite("run", task_file, "--pull", "missing").returncode == 6
    assert any("/blobs/" in path for path in passing.paths)

    passing.paths.clear()
    for policy in ("missing", "never"):
        assert fargatelite("run", task_file, "--pull", policy).returncode == 6
    assert passing.paths == []

    assert fargatelite("run", task_file).returncode == 6
    assert any("/manifests/" in path for path in passing.paths)
    assert not any("/blobs/" in path for path in passing.paths)


def test_dry_run_prints_the_plan_and_makes_nothing(
    fargatelite: CommandLine, busybox: str, settings: Settings
) -> None:
    secret = [{"name": "PASSWORD", "value": "hidden-value"}]
    document = definition(busybox, shell("app", "exit 1", environment=secret))
    ended = fargatelite("run", "-", "--dry-run", input=document)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"# app: {busybox} (sha256:")
    assert any("pivot_root" in line for line in lines)
    assert len(lines) > 20
    assert "hidden-value" not in ended.stdout
    assert not settings.runs.exists() or not list(settings.runs.iterdir())
    assert not settings.records.exists()
    assert fargatelite("ps", "--all", "--quiet").stdout == ""


def test_trace_prints_phases_and_operations(fargatelite: CommandLine, busybox: str) -> None:
    plain = fargatelite("run", "-", input=definition(busybox, shell("app", "exit 0")))
    traced = fargatelite("run", "-", "--trace", input=definition(busybox, shell("app", "exit 0")))
    assert "LAUNCH PHASE" in plain.stderr
    assert "PLAN OF app" not in plain.stderr
    table = traced.stderr.partition("PLAN OF app")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) > 20
    assert all(line.split()[-1].isdigit() for line in table)
    assert any("pivot_root" in line for line in table)


def test_publish(fargatelite: CommandLine, busybox: str, task_file: Path) -> None:
    port = free_port()
    script = "echo page > /index.html; echo ready; exec httpd -f -p 80 -h /"
    task_file.write_text(definition(busybox, shell("app", script, stopTimeout=2)))
    process = fargatelite.start("run", task_file, "-p", f"{port}:80")
    assert process.stdout is not None
    lines_until(process.stdout, "ready")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = threading.Event()
    timer = threading.Timer(10, deadline.set)
    timer.start()
    try:
        while True:
            try:
                with opener.open(f"http://127.0.0.1:{port}/", timeout=patient(2)) as response:
                    assert response.read() == b"page\n"
                break
            except OSError:  # httpd says nothing once it listens
                assert not deadline.is_set()
    finally:
        timer.cancel()


# ---- signals ----


def _assert_all_gone(fargatelite: CommandLine, settings: Settings) -> None:
    assert list(settings.runs.iterdir()) == []
    assert json.loads(fargatelite("ps", "--output", "json").stdout) == {"taskArns": []}
    (task_id,) = fargatelite("ps", "--all", "--quiet").stdout.split()
    (task,) = json.loads(fargatelite("describe", task_id).stdout)["tasks"]
    assert (task["lastStatus"], task["stopCode"]) == ("STOPPED", "UserInitiated")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_signal_during_the_pull(
    fargatelite: CommandLine,
    settings: Settings,
    stalling: PassingRegistry,
    busybox: str,
    task_file: Path,
    number: signal.Signals,
) -> None:
    image = f"{stalling.host}/{busybox.partition('/')[2]}"
    task_file.write_text(definition(image, shell("app", "exit 1")))
    process = fargatelite.start("run", task_file)
    assert stalling.is_stalled.wait(TIMEOUT_S)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (128 + number, "")
    assert f"UserInitiated: stopped by {number.name}" in err
    assert "Traceback" not in err
    _assert_all_gone(fargatelite, settings)


def test_interrupt_while_pending(
    fargatelite: CommandLine, settings: Settings, busybox: str, task_file: Path
) -> None:
    never = {"command": ["CMD-SHELL", "exit 1"], "interval": 60}
    task_file.write_text(
        definition(
            busybox,
            shell("db", "echo up; exec sleep 600", healthCheck=never, stopTimeout=2),
            shell("app", "true", dependsOn=[{"containerName": "db", "condition": "HEALTHY"}]),
        )
    )
    process = fargatelite.start("run", task_file)
    assert process.stdout is not None
    lines_until(process.stdout, "db  | up")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "task  RUNNING" not in err
    _assert_all_gone(fargatelite, settings)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
@pytest.mark.vm
def test_signal_while_running(
    fargatelite: CommandLine,
    settings: Settings,
    busybox: str,
    task_file: Path,
    number: signal.Signals,
    code: int,
) -> None:
    """The container hears SIGTERM and has its time to say goodbye."""
    script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    task_file.write_text(definition(busybox, shell("app", script)))
    process = fargatelite.start("run", task_file)
    assert process.stdout is not None
    lines_until(process.stdout, "app | up")
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code
    assert out == "app | bye\n"
    assert f"UserInitiated: stopped by {number.name}" in err
    _assert_all_gone(fargatelite, settings)


def test_a_storm_of_signals_is_one_stop(
    fargatelite: CommandLine, settings: Settings, busybox: str, task_file: Path
) -> None:
    task_file.write_text(definition(busybox, shell("app", "echo up; sleep 600", stopTimeout=2)))
    process = fargatelite.start("run", task_file)
    assert process.stdout is not None
    lines_until(process.stdout, "app | up")
    for _ in range(50):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_S)
    # Which of three pending signals a process sees first is the kernel's to say.
    first = err.partition("UserInitiated: stopped by ")[2].split()[0]
    assert process.returncode == 128 + signal.Signals[first]
    _assert_all_gone(fargatelite, settings)


def test_an_early_interrupt_is_not_lost(
    fargatelite: CommandLine, busybox: str, task_file: Path
) -> None:
    """Sent as soon as the definition is asked for, before there is a task."""
    os.mkfifo(task_file)
    process = fargatelite.start("run", task_file)
    with open(task_file, "w") as pipe:  # returns once `run` has opened it to read
        process.send_signal(signal.SIGINT)
        pipe.write(definition(busybox, shell("app", "sleep 600", stopTimeout=2)))
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert fargatelite("ps", "--quiet").stdout == ""


# ---- registered definitions ----


def test_a_registered_definition_runs_by_its_name(fargatelite: CommandLine, busybox: str) -> None:
    for code in (3, 4):
        document = definition(busybox, shell("app", f"exit {code}"))
        assert fargatelite("definition", "register", "-", input=document).returncode == 0
    arn = "arn:aws:ecs:us-east-1:000000000000:task-definition/test"
    for name, revision, code in (("test", 2, 4), ("test:1", 1, 3), (f"{arn}:1", 1, 3)):
        shown = fargatelite("run", name, "--output", "json")
        assert shown.returncode == code, shown.stderr
        task = json.loads(shown.stdout)["task"]
        assert task["taskDefinitionArn"] == f"{arn}:{revision}"
        assert task["group"] == "family:test"
    fargatelite("definition", "deregister", "test:2")
    assert fargatelite("run", "test").returncode == 3


def test_launch_type_ec2(fargatelite: CommandLine, busybox: str) -> None:
    document = json.dumps(
        {
            "family": "own",
            "containerDefinitions": [{"image": busybox, **shell("app", "exit 6"), "memory": 32}],
        }
    )
    shown = fargatelite("run", "-", "--launch-type", "EC2", "--output", "json", input=document)
    assert shown.returncode == 6, shown.stderr
    assert json.loads(shown.stdout)["task"]["launchType"] == "EC2"
    assert fargatelite("run", "-", input=document).returncode == 125
    listed = fargatelite("run", "-", "--launch-type", "EC2", "--dry-run", input=document)
    assert listed.returncode == 0
    assert "AWS_EXECUTION_ENV" in listed.stdout
    refused = fargatelite("run", "-", "--address", "10.213.0.9", input=definition(busybox))
    assert refused.returncode == 125
