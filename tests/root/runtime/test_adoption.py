"""Tasks change hands: whoever supervises is killed, and the task goes on as if nothing happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fargatelite import RecordedTask, Settings, find_task, run_task
from fargatelite.runtime import detached
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.runtime.detached import ensure_supervised
from fargatelite.runtime.remote import is_one_lost

from .test_container_features import TIMEOUT_S, definition, shell
from .test_detached import await_end, supervisors

pytestmark = [pytest.mark.root, pytest.mark.registry]


@pytest.fixture
def roots(settings: Settings) -> Iterator[Settings]:
    yield settings
    await_end(settings)


def start(settings: Settings, document: dict[str, Any], status: str = "RUNNING") -> RecordedTask:
    return run_task(document, detach=True, settings=settings).until(status, TIMEOUT_S)


def kill_supervisor(settings: Settings) -> None:
    """SIGKILL, and waits until nobody has its locks any more."""
    for process in supervisors(settings):
        pidfd = os.pidfd_open(process)
        os.kill(process, signal.SIGKILL)
        import select

        select.select([pidfd], [], [], TIMEOUT_S)
        os.close(pidfd)
    assert is_one_lost(settings)


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_running_task_goes_on(roots: Settings, busybox: str) -> None:
    script = "echo up; while [ ! -e /go ]; do sleep 0.1; done; echo down; exit 6"
    task = start(roots, definition(busybox, shell("app", script)))
    before = task.record()
    kill_supervisor(roots)
    ensure_supervised(roots)
    assert not is_one_lost(roots)
    assert task.last_status == "RUNNING"
    assert task.record().state.started_at_ns == before.state.started_at_ns
    assert task.stats()["app"]["memory_bytes"] > 0
    done = subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", roots.data_root, "--run-root",
         roots.run_root, "exec", "--force", task.id, "touch", "/go"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert task.wait(TIMEOUT_S) == 6
    assert [line.text for line in task.logs("app")] == [b"up", b"down"]
    assert task.stopped_reason == "Essential container in task exited"
    bill = task.bill()
    assert bill.is_final
    assert bill.billed_seconds >= 60


def test_a_container_that_had_just_been_started_is_metered(roots: Settings, busybox: str) -> None:
    """The supervisor was killed before it had heard of the start: so says the recorded state."""
    burn = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"
    script = f"while [ ! -e /go ]; do sleep 0.1; done; {burn}; exit 6"
    task = start(roots, definition(busybox, shell("app", script)))
    pid = task.state.container("app").pid
    kill_supervisor(roots)
    path = roots.runs / task.id / "state.json"
    recorded = json.loads(path.read_bytes())
    recorded["state"]["last_status"] = "ACTIVATING"
    recorded["state"]["started_at_ns"] = None
    (app,) = recorded["state"]["containers"]
    app |= {"step": ContainerStep.STARTING, "pid": None, "started_at_ns": None}
    path.write_bytes(json.dumps(recorded).encode())
    ensure_supervised(roots)
    task.until("RUNNING", TIMEOUT_S)
    assert task.state.container("app").pid == pid
    Path(f"/proc/{pid}/root/go").touch()
    assert task.wait(TIMEOUT_S) == 6
    used = task.bill().containers[0].cpu_seconds
    assert used is not None
    assert used > 0.1


def test_an_exit_that_nobody_saw_has_its_own_time(roots: Settings, busybox: str) -> None:
    task = start(roots, definition(busybox, shell("app", "sleep 1.5; exit 5")))
    kill_supervisor(roots)
    log = roots.runs / task.id / "exits"
    await_that(lambda: log.stat().st_size > 0)
    seen_at_ns = time.time_ns()
    time.sleep(0.3)
    ensure_supervised(roots)
    assert task.wait(TIMEOUT_S) == 5
    finished = task.state.container("app").finished_at_ns
    assert finished is not None
    assert finished <= seen_at_ns


def test_an_exit_while_the_task_is_adopted(roots: Settings, busybox: str) -> None:
    """After the exits of the gap were looked at, and before the shim said what lives."""
    task = start(roots, definition(busybox, shell("app", "while [ ! -e /go ]; do :; done; exit 5")))
    pid = task.state.container("app").pid
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    kill_supervisor(roots)

    def connections() -> int:
        return Path("/proc/net/unix").read_text().count("shim.sock")

    before = connections()
    os.kill(shim, signal.SIGSTOP)
    try:
        ensure_supervised(roots)
        await_that(lambda: connections() > before)  # it waits for the shim's answer
        Path(f"/proc/{pid}/root/go").touch()
        await_that(lambda: " Z " in Path(f"/proc/{pid}/stat").read_text())
    finally:
        os.kill(shim, signal.SIGCONT)
    assert task.wait(TIMEOUT_S) == 5


def test_health_checks_and_dependencies_go_on(roots: Settings, busybox: str) -> None:
    check = {"command": ["CMD-SHELL", "test -e /ready"], "interval": 5, "retries": 3}
    web = shell("web", "while [ ! -e /go ]; do sleep 0.1; done; touch /ready; sleep 300",
                healthCheck=check, stopTimeout=2, essential=False)  # fmt: skip
    after = shell(
        "after", "echo after", dependsOn=[{"containerName": "web", "condition": "HEALTHY"}]
    )
    task = run_task(definition(busybox, web, after), detach=True, settings=roots)
    await_that(lambda: task.containers["web"].last_status == "RUNNING")
    kill_supervisor(roots)
    ensure_supervised(roots)
    subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", roots.data_root, "--run-root",
         roots.run_root, "exec", "--force", "-c", "web", task.id, "touch", "/go"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert task.wait(TIMEOUT_S) == 0
    assert [line.text for line in task.logs("after")] == [b"after"]
    assert task.containers["web"].health_status == "HEALTHY"


def test_the_metadata_endpoint_is_there_again(roots: Settings, busybox: str) -> None:
    # Adoption is under way when it is answered: as an SDK does, a client tries again.
    script = (
        "while [ ! -e /go ]; do sleep 0.1; done; for i in 0 1 2 3 4 5 6 7 8 9; do "
        "wget -q -O - $ECS_CONTAINER_METADATA_URI_V4/task && exit; sleep 0.3; done; exit 9"
    )
    task = start(roots, definition(busybox, shell("app", script)))
    kill_supervisor(roots)
    ensure_supervised(roots)
    subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", roots.data_root, "--run-root",
         roots.run_root, "exec", "--force", task.id, "touch", "/go"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert task.wait(TIMEOUT_S) == 0
    (line,) = task.logs("app")
    assert json.loads(line.text)["TaskARN"] == task.arn


def test_a_stop_that_was_under_way_comes_to_its_end(roots: Settings, busybox: str) -> None:
    script = "trap 'echo asked' TERM; echo up; while :; do sleep 0.1; done"
    task = start(roots, definition(busybox, shell("app", script, stopTimeout=3)))
    task.stop("enough", wait=False)
    await_that(lambda: task.last_status == "STOPPING")
    kill_supervisor(roots)
    ensure_supervised(roots)
    assert task.wait(TIMEOUT_S) == 137
    assert (task.stop_code, task.stopped_reason) == ("UserInitiated", "enough")


def test_a_stop_that_is_asked_for_in_the_gap(roots: Settings, busybox: str) -> None:
    task = start(roots, definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
    kill_supervisor(roots)
    task.stop("in the gap")
    assert task.stopped_reason == "in the gap"


def test_the_shim_is_gone_too(roots: Settings, busybox: str) -> None:
    task = start(roots, definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
    kill_supervisor(roots)
    for path in Path("/proc").glob("[0-9]*/comm"):
        if path.read_text().startswith("fargatelite-shi"):
            os.kill(int(path.parent.name), signal.SIGKILL)
    ensure_supervised(roots)
    assert task.wait(TIMEOUT_S) == 137
    assert task.stop_code == "EssentialContainerExited"


def test_a_program_that_ends_without_a_word_loses_no_task(roots: Settings, busybox: str) -> None:
    """Not a detached task: the library's user was killed."""
    document = json.dumps(definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
    code = (
        "import fargatelite, os, signal\n"
        f"data, run = {roots.data_root!r}, {roots.run_root!r}\n"
        "settings = fargatelite.Settings(data_root=data, run_root=run)\n"
        f"task = fargatelite.run_task({document!r}, settings=settings)\n"
        "task.until('RUNNING', 60)\n"
        "print(task.id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    task = find_task(done.stdout.strip(), settings=roots)
    assert is_one_lost(roots)
    task.stop("found again")
    assert task.stopped_reason == "found again"


def test_many_look_and_one_adopts(roots: Settings, busybox: str) -> None:
    tasks = [
        start(roots, definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
        for _ in range(3)
    ]
    kill_supervisor(roots)
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "fargatelite", "--data-root", roots.data_root, "--run-root",
             roots.run_root, "ps", "--quiet"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    for command in commands:
        out, err = command.communicate(timeout=60)
        assert (command.returncode, err) == (0, "")
        assert set(out.split()) == {task.id for task in tasks}
    assert not is_one_lost(roots)
    assert len(supervisors(roots)) == 1
    for task in tasks:
        task.stop()


def test_a_kill_at_any_moment_of_a_launch_loses_nothing(roots: Settings, busybox: str) -> None:
    """Every task ends as STOPPED, once, and the fixture finds nothing left of it."""
    document = definition(busybox, shell("app", "exit 0", stopTimeout=2))
    for delay_s in (0.0, 0.01, 0.02, 0.04, 0.08, 0.16):
        task = run_task(document, detach=True, settings=roots)
        time.sleep(delay_s)
        for process in supervisors(roots):
            os.kill(process, signal.SIGKILL)
        task.wait(TIMEOUT_S)
        assert task.last_status == "STOPPED"
        assert task.exit_code == 0 or task.stop_code == "TaskFailedToStart"


def test_what_is_written_by_another_version_is_named(roots: Settings, busybox: str) -> None:
    task = start(roots, definition(busybox, shell("app", "sleep 300", stopTimeout=2)))
    kill_supervisor(roots)
    path = roots.runs / task.id / "state.json"
    good = path.read_bytes()
    path.write_bytes(json.dumps(json.loads(good) | {"version": 99}).encode())
    with pytest.raises(Exception, match="is of version 99, this reads"):
        detached.ensure_supervised(roots)
    path.write_bytes(good)
    task.stop()
