"""Detached tasks: they outlive who started them, and their supervisor is there only for them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fargatelite import RecordedTask, Settings, find_task, run_task
from fargatelite.errors import ConfigurationInvalid
from fargatelite.runtime import detached
from tests.fixtures.cli import CommandLine

from .test_container_features import TIMEOUT_S, definition, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]


def supervisors(settings: Settings) -> list[int]:
    """Processes that supervise this run root."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        if b"fargatelite.runtime.detached" in words and settings.run_root.encode() in words:
            found.append(int(path.parent.name))
    return found


def await_end(settings: Settings) -> None:
    deadline = time.monotonic() + detached.LINGER_S + 20
    while supervisors(settings):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def roots(settings: Settings) -> Iterator[Settings]:
    yield settings
    await_end(settings)
    assert not (Path(settings.run_root) / "supervisor.sock").exists()


def test_a_task_outlives_who_started_it(roots: Settings, busybox: str, tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(
        json.dumps(definition(busybox, shell("app", "echo up; sleep 300", stopTimeout=2)))
    )
    code = (
        "import fargatelite, sys\n"
        f"data, run = {roots.data_root!r}, {roots.run_root!r}\n"
        "settings = fargatelite.Settings(data_root=data, run_root=run)\n"
        f"task = fargatelite.run_task({str(path)!r}, detach=True, settings=settings)\n"
        "print(task.until('RUNNING', 60).id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    task = find_task(done.stdout.strip()[:12], settings=roots)
    assert isinstance(task, RecordedTask)
    assert task.last_status == "RUNNING"
    assert [line.text for line in task.logs("app")] == [b"up"]
    assert task.stats()["app"]["cpu_usage_ns"] > 0
    assert task.address is not None
    (process,) = supervisors(roots)
    assert os.getsid(process) != os.getsid(0)
    task.stop("enough")
    assert (task.last_status, task.stop_code, task.stopped_reason) == (
        "STOPPED", "UserInitiated", "enough",
    )  # fmt: skip
    assert task.exit_code == 137
    assert task.bill().is_final


def test_many_callers_share_one_supervisor(roots: Settings, busybox: str) -> None:
    def run(code: int) -> tuple[int | None, int]:
        task = run_task(
            definition(busybox, shell("app", f"sleep 0.5; exit {code}")),
            detach=True, settings=roots,
        )  # fmt: skip
        return task.wait(TIMEOUT_S), code

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(run, code) for code in range(8)]
        for answer in answers:
            exit_code, code = answer.result()
            assert exit_code == code
    assert len(supervisors(roots)) == 1


def test_one_after_the_other_meets_one_that_ends(
    roots: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        task = run_task(definition(busybox, shell("app", "exit 4")), detach=True, settings=roots)
        assert task.wait(TIMEOUT_S) == 4
        await_end(roots)


def test_logs_are_followed_to_the_end(roots: Settings, busybox: str) -> None:
    task = run_task(
        definition(busybox, shell("app", "for i in 1 2 3; do echo $i; sleep 0.2; done")),
        detach=True, settings=roots,
    )  # fmt: skip
    assert [line.text for line in task.logs("app", follow=True)] == [b"1", b"2", b"3"]


def test_a_supervisor_that_is_asked_to_end_stops_its_tasks(roots: Settings, busybox: str) -> None:
    task = run_task(
        definition(busybox, shell("app", "sleep 300", stopTimeout=2)), detach=True, settings=roots
    ).until("RUNNING", TIMEOUT_S)
    (process,) = supervisors(roots)
    soft, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
    assert soft == hard, "a shell's 1,024 descriptors are 40 tasks"
    os.kill(process, signal.SIGTERM)
    task.wait(TIMEOUT_S)
    assert task.stopped_reason == "the process that ran the task ended"


def test_the_command_line(
    roots: Settings, fargatelite: CommandLine, busybox: str, tmp_path: Path
) -> None:
    path = tmp_path / "task.json"
    path.write_text(
        json.dumps(definition(busybox, shell("app", "echo up; sleep 300", stopTimeout=2)))
    )
    done = fargatelite("run", "--detach", "--wait-for", "RUNNING", path)
    assert done.returncode == 0, done.stderr
    task_id = done.stdout.strip()
    assert fargatelite("ps", "--quiet").stdout.split() == [task_id]
    assert fargatelite("logs", task_id[:6]).stdout == "up\n"
    done = fargatelite("run", "-d", "--output", "json", path)
    other = json.loads(done.stdout)["tasks"][0]["taskArn"]
    assert fargatelite("stop", task_id, other).returncode == 0
    assert fargatelite("wait", task_id).returncode == 137

    path.write_text(json.dumps(definition(busybox, {"name": "app", "command": ["/nothing"]})))
    done = fargatelite("run", "-d", "--wait-for", "RUNNING", path)
    assert done.returncode == 127
    assert len(done.stdout.strip()) == 32
    assert done.stderr.startswith("Error: ")
    path.write_text("{}")
    done = fargatelite("run", "-d", path)
    assert done.returncode == 125
    assert "problem(s) in the task definition" in done.stderr


def test_what_calls_back_is_refused(settings: Settings, busybox: str) -> None:
    with pytest.raises(ConfigurationInvalid, match="calls nobody in this process"):
        run_task(
            definition(busybox, shell("app", "true")), detach=True, on_event=print,  # type: ignore[call-overload]
            settings=settings,
        )  # fmt: skip


def test_a_request_that_is_none_is_answered(roots: Settings, busybox: str) -> None:
    task = run_task(
        definition(busybox, shell("app", "sleep 300", stopTimeout=2)), detach=True, settings=roots
    )
    path = Path(roots.run_root) / "supervisor.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    for message, words in (
        (b"{}", "a request that is none"),
        (b"\xff" * 9, "a request that is none"),
    ):
        connection = detached._connect(path)
        assert connection is not None
        answer = detached._ask(connection, message)
        assert answer is not None
        assert words in (answer.error or "")
    task.stop()
