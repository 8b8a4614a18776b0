"""What a killed supervisor had not sent is sent by the one that takes its tasks over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite import RecordedTask, Settings, run_task
from fargatelite.names import parse_task_id
from fargatelite.rundir import RunDirectory
from fargatelite.runtime.detached import ensure_supervised
from tests.fixtures.images import free_port
from tests.fixtures.patience import patient
from tests.root.logdrivers.conftest import TIMEOUT_S, CloudWatch, awslogs, definition, shell
from tests.root.runtime.test_adoption import kill_supervisor
from tests.root.runtime.test_detached import await_end

pytestmark = [pytest.mark.root, pytest.mark.registry]

WAIT = "while [ ! -e /go ]; do sleep 0.05; done"


@pytest.fixture
def roots(settings: Settings) -> Iterator[Settings]:
    yield settings
    await_end(settings)


def start(settings: Settings, image: str, script: str, **more: object) -> RecordedTask:
    container = shell("app", script, logConfiguration=awslogs(), **more)
    task = run_task(definition(image, container), detach=True, settings=settings)
    return task.until("RUNNING", TIMEOUT_S)


def let_go(task: RecordedTask) -> None:
    pid = task.state.container("app").pid
    Path(f"/proc/{pid}/root/go").touch()


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patient(20)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_written(settings: Settings, task: RecordedTask, text: str) -> bool:
    log = settings.records / task.id / "logs" / "app.log"
    return f" {text}\n" in log.read_text()


def test_what_could_not_be_sent_is_sent_by_the_next(
    roots: Settings, busybox: str, cloudwatch: CloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first supervisor's endpoint is down; the container ends before the second is there."""
    cloudwatch.client.create_log_group(logGroupName="app")
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        task = start(roots, busybox, f"seq 1 3000; {WAIT}; echo last; exit 3")
        await_that(lambda: has_written(roots, task, "3000"))
    kill_supervisor(roots)
    let_go(task)
    await_that(lambda: (roots.runs / task.id / "exits").stat().st_size > 0)
    ensure_supervised(roots)
    assert task.wait(TIMEOUT_S) == 3
    assert cloudwatch.messages(task, "app") == [*map(str, range(1, 3001)), "last"]


def test_what_was_sent_is_not_sent_twice_once_it_is_written_down(
    roots: Settings, busybox: str, cloudwatch: CloudWatch
) -> None:
    cloudwatch.client.create_log_group(logGroupName="app")
    task = start(roots, busybox, f"seq 1 500; {WAIT}; echo last; sleep 300")
    run = RunDirectory(roots.runs, parse_task_id(task.id))
    log = roots.records / task.id / "logs" / "app.log"
    await_that(lambda: has_written(roots, task, "500"))
    await_that(lambda: run.read_sent("app") == log.stat().st_size)
    kill_supervisor(roots)
    let_go(task)
    await_that(lambda: has_written(roots, task, "last"))
    ensure_supervised(roots)
    await_that(lambda: cloudwatch.messages(task, "app")[-1] == "last")
    assert cloudwatch.messages(task, "app") == [*map(str, range(1, 501)), "last"]
    task.stop()
    assert task.wait(TIMEOUT_S) == 137


def test_when_the_shim_is_gone_too(
    roots: Settings, busybox: str, cloudwatch: CloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudwatch.client.create_log_group(logGroupName="app")
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        task = start(roots, busybox, "seq 1 200; sleep 300")
        await_that(lambda: has_written(roots, task, "200"))
    pid = task.state.container("app").pid
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    kill_supervisor(roots)
    os.kill(shim, signal.SIGKILL)
    ensure_supervised(roots)
    assert task.wait(TIMEOUT_S) == 137
    assert cloudwatch.messages(task, "app") == [*map(str, range(1, 201))]


def test_an_endpoint_that_is_down_ends_no_adopted_task(
    roots: Settings, busybox: str, cloudwatch: CloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocking mode it would end one that starts."""
    cloudwatch.client.create_log_group(logGroupName="app")
    log = awslogs(mode="blocking")
    task = run_task(
        definition(busybox, shell("app", f"echo a; {WAIT}; exit 3", logConfiguration=log)),
        detach=True, settings=roots,
    ).until("RUNNING", TIMEOUT_S)  # fmt: skip
    kill_supervisor(roots)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        ensure_supervised(roots)
    assert task.last_status == "RUNNING"
    let_go(task)
    assert task.wait(TIMEOUT_S) == 3


def test_a_place_of_another_version_sends_what_comes(
    roots: Settings, busybox: str, cloudwatch: CloudWatch
) -> None:
    cloudwatch.client.create_log_group(logGroupName="app")
    task = start(roots, busybox, f"echo first; {WAIT}; while :; do echo on; sleep 0.1; done")
    await_that(lambda: cloudwatch.messages(task, "app") == ["first"])
    kill_supervisor(roots)
    place = roots.runs / task.id / "sent" / "app"
    place.write_bytes(msgspec.json.encode({"version": 9, "place": 0}))
    ensure_supervised(roots)
    let_go(task)
    await_that(lambda: cloudwatch.messages(task, "app")[-1] == "on")
    assert cloudwatch.messages(task, "app").count("first") == 1
    said = Path(roots.run_root, "supervisor.log").read_text()
    assert "sent/app is of version 9" in said
    task.stop()
    assert task.wait(TIMEOUT_S) == 137
