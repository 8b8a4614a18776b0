"""Sandboxes made ahead: tasks that take them are like any others, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import msgspec
import pytest

from fargatelite import Settings, prepare_sandboxes, run_task
from fargatelite.rundir import RunDirectory
from fargatelite.runtime.gc import collect
from fargatelite.runtime.prepared import SandboxPool, get_pool
from fargatelite.runtime.record import list_records
from fargatelite.runtime.remote import is_one_lost
from fargatelite.runtime.request import adopt_task
from fargatelite.runtime.supervise import get_supervisor
from tests.fixtures.host import read_limit, snapshot

from .test_run_task import TIMEOUT_S, definition, run, shell, text_of

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]


def prepared_ids(settings: Settings) -> set[str]:
    """Run directories without a state."""
    found = {str(run.task_id) for run in RunDirectory.list_all(settings.runs)}
    return found - {record.task_id for record in list_records(settings)}


@pytest.fixture
def pool(settings: Settings) -> Iterator[SandboxPool]:
    ready = msgspec.structs.replace(settings, prepared_sandboxes=1)
    pool = get_pool(get_supervisor(ready))
    yield pool
    pool.stop_for_exit()
    assert pool.wait_finished(TIMEOUT_S)
    assert not prepared_ids(settings)


@pytest.fixture
def ready(pool: SandboxPool, settings: Settings) -> Settings:
    """Settings of a process that has one sandbox ready."""
    ready = msgspec.structs.replace(settings, prepared_sandboxes=1)
    assert prepare_sandboxes(ready, timeout_s=TIMEOUT_S)
    return ready


def test_a_task_takes_the_sandbox_and_another_is_made(
    ready: Settings, pool: SandboxPool, busybox: str
) -> None:
    (waiting,) = prepared_ids(ready)
    task = run(
        ready, busybox, shell("app", "echo $ECS_CONTAINER_METADATA_URI_V4; hostname; exit 4")
    )
    assert task.id == waiting
    assert task.exit_code == 4
    assert f"/v4/{task.id}-" in text_of(task, "app")
    made = {phase.name for phase in task.phases}
    assert "network" not in made
    assert "ephemeral storage" not in made
    assert pool.wait_filled(TIMEOUT_S)
    (following,) = prepared_ids(ready)
    assert following != waiting
    assert task.bill().is_final


def test_it_has_the_limits_network_and_endpoint_of_its_definition(
    ready: Settings, busybox: str
) -> None:
    script = (
        "df -k / | tail -1; wget -qO- $ECS_CONTAINER_METADATA_URI_V4/task;"
        "echo page > /index.html; httpd -p 8080 -h / -f & sleep 60"
    )
    waiting = prepared_ids(ready)
    with run_task(
        definition(busybox, shell("app", script)), settings=ready, publish=["18080:8080"]
    ) as task:
        assert {task.id} == waiting
        task.until("RUNNING", timeout=TIMEOUT_S)
        assert read_limit(task.id, v1="memory/memory.limit_in_bytes", v2="memory.max") == str(
            1024 * 2**20
        )
        assert read_limit(task.id, v1="cpu/cpu.cfs_quota_us", v2="cpu.max") == "50000"
        lines = []
        for line in task.logs("app", follow=True):
            lines.append(line.text.decode())
            if len(lines) == 2:
                break
        assert int(lines[0].split()[1]) >= 20 * 2**20
        assert task.arn in lines[1]
        assert task.address is not None
        for _ in range(100):
            try:
                with urllib.request.urlopen("http://127.0.0.1:18080/index.html", timeout=5) as got:
                    assert got.read() == b"page\n"
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail("the published port does not answer")


@pytest.mark.parametrize("more", [{"ephemeralStorage": {"sizeInGiB": 21}}], ids=["larger storage"])
def test_what_does_not_fit_gets_a_sandbox_of_its_own(
    ready: Settings, busybox: str, more: dict[str, object]
) -> None:
    waiting = prepared_ids(ready)
    task = run(ready, busybox, shell("app", "exit 0"), **more)
    assert task.exit_code == 0
    assert {task.id} != waiting
    assert prepared_ids(ready) == waiting


def test_a_sandbox_whose_shim_was_killed_is_not_used(
    ready: Settings, pool: SandboxPool, busybox: str
) -> None:
    (waiting,) = prepared_ids(ready)
    shim = pool._ready[0].launched.shim.pid
    assert shim is not None
    pidfd = os.pidfd_open(shim)
    os.kill(shim, signal.SIGKILL)
    import select

    select.select([pidfd], [], [], TIMEOUT_S)
    os.close(pidfd)
    task = run(ready, busybox, shell("app", "exit 0"))
    assert task.exit_code == 0
    assert task.id != waiting
    assert pool.wait_filled(TIMEOUT_S)
    assert waiting not in prepared_ids(ready)


_PREPARE = """
import sys, time, fargatelite
settings = fargatelite.Settings(data_root=sys.argv[1], run_root=sys.argv[2], prepared_sandboxes=2)
assert fargatelite.prepare_sandboxes(settings)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def killed(settings: Settings) -> set[str]:
    """What a process that had two ready left behind when it was killed.

    Their interfaces may be gone with their shims before anybody looks.
    """
    before = snapshot()["interfaces"]
    with subprocess.Popen(
        [sys.executable, "-c", _PREPARE, settings.data_root, settings.run_root],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(snapshot()["interfaces"] - before) == 2
        process.kill()
    left = prepared_ids(settings)
    assert len(left) == 2
    return left


def test_gc_removes_what_a_killed_process_had_ready(
    settings: Settings, killed: set[str], clean_host: None
) -> None:
    report = collect(settings)
    assert not report.failures
    assert set(report.tasks) == killed
    assert not prepared_ids(settings)


def test_whoever_adopts_removes_them_too(settings: Settings, killed: set[str]) -> None:
    assert is_one_lost(settings)
    for run_directory in RunDirectory.list_all(settings.runs):
        assert adopt_task(settings, run_directory) is None
    assert not is_one_lost(settings)
    assert not collect(settings).orphans  # and no interface: `settings` looks


def test_a_process_that_ends_leaves_none(settings: Settings, clean_host: None) -> None:
    script = _PREPARE.replace("time.sleep(600)", "")
    subprocess.run(
        [sys.executable, "-c", script, settings.data_root, settings.run_root], check=True,
        stdout=subprocess.DEVNULL, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert not list(RunDirectory.list_all(settings.runs))
