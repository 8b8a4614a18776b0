"""awslogs with real tasks: against moto, and endpoints that are slow, broken or not there."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.runtime.events import LogsDroppedEvent
from fargatelite.runtime.record import read_record
from tests.fixtures.images import free_port
from tests.root.logdrivers.conftest import (
    TIMEOUT_S,
    CloudWatch,
    Endpoint,
    awslogs,
    definition,
    local_lines,
    shell,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]


def run(settings: Settings, image: str, *containers: dict[str, Any], **more: Any) -> Task:
    task = run_task(definition(image, *containers), settings=settings, **more)
    task.wait(TIMEOUT_S)
    return task


def dropped(settings: Settings, task: Task) -> dict[str, LogsDroppedEvent]:
    return {item.container: item for item in read_record(settings, task.id).logs_dropped}


@pytest.mark.field("containerDefinitions[].logConfiguration")
@pytest.mark.field("containerDefinitions[].logConfiguration.logDriver")
@pytest.mark.field("containerDefinitions[].logConfiguration.options")
def test_all_lines_arrive_in_order(
    settings: Settings, busybox: str, cloudwatch: CloudWatch
) -> None:
    cloudwatch.client.create_log_group(logGroupName="app")
    task = run(
        settings, busybox,
        shell("app", "seq 1 3000; printf 'the end'", logConfiguration=awslogs()),
        shell("side", "echo beside >&2", essential=False, logConfiguration=awslogs()),
        shell("quiet", "echo nowhere", essential=False),
    )  # fmt: skip
    assert task.exit_code == 0
    wanted = [*map(str, range(1, 3001)), "the end"]
    assert cloudwatch.messages(task, "app") == wanted
    assert cloudwatch.messages(task, "side") == ["beside"]
    assert local_lines(task, "app") == wanted, "the local log is there all the same"
    assert local_lines(task, "quiet") == ["nowhere"]
    streams = cloudwatch.client.describe_log_streams(logGroupName="app")["logStreams"]
    assert sorted(s["logStreamName"] for s in streams) == [
        f"ecs/app/{task.id}", f"ecs/side/{task.id}",
    ]  # fmt: skip
    assert dropped(settings, task) == {}


def test_lines_arrive_while_the_task_runs(
    settings: Settings, busybox: str, cloudwatch: CloudWatch
) -> None:
    cloudwatch.client.create_log_group(logGroupName="app")
    script = "echo first; while :; do sleep 0.05; done"
    task = run_task(
        definition(busybox, shell("app", script, logConfiguration=awslogs())), settings=settings
    )
    try:
        task.until("RUNNING", TIMEOUT_S)
        deadline = time.monotonic() + 10
        while cloudwatch.messages(task, "app") != ["first"]:
            assert time.monotonic() < deadline
    finally:
        task.stop()


def test_a_missing_group_stops_the_task_with_fargates_words(
    settings: Settings, busybox: str, cloudwatch: CloudWatch
) -> None:
    task = run(settings, busybox, shell("app", "echo never", logConfiguration=awslogs()))
    assert (task.last_status, task.stop_code) == ("STOPPED", "TaskFailedToStart")
    assert task.stopped_reason == (
        "ResourceInitializationError: failed to validate logger args: create stream has been "
        "retried 1 times: failed to create Cloudwatch log stream: ResourceNotFoundException: The "
        "specified log group does not exist. : exit status 1"
    )
    assert local_lines(task, "app") == []


def test_a_group_is_made_when_asked(
    settings: Settings, busybox: str, cloudwatch: CloudWatch
) -> None:
    log = awslogs(create_group="true", group="/made/here")
    task = run(settings, busybox, shell("app", "echo a", logConfiguration=log))
    assert cloudwatch.messages(task, "app", "/made/here") == ["a"]


def test_lines_of_one_event(settings: Settings, busybox: str, cloudwatch: CloudWatch) -> None:
    script = "echo 'START 1'; echo '  at here'; echo '  at there'; echo 'START 2'"
    log = awslogs(create_group="true", multiline_pattern="^START")
    task = run(settings, busybox, shell("app", script, logConfiguration=log))
    assert cloudwatch.messages(task, "app") == ["START 1\n  at here\n  at there\n", "START 2\n"]


def test_an_endpoint_that_is_down_costs_the_task_nothing_but_its_lines(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    events: list[Any] = []
    began = time.monotonic()
    task = run(
        settings, busybox,
        shell("app", "seq 1 500; exit 3", logConfiguration=awslogs()),
        on_event=events.append,
    )  # fmt: skip
    assert task.exit_code == 3
    assert time.monotonic() - began < 15
    assert local_lines(task, "app") == [*map(str, range(1, 501))]
    lost = dropped(settings, task)["app"]
    assert (lost.records, lost.unread_bytes, lost.log_driver) == (500, 0, "awslogs")
    assert "127.0.0.1" in lost.reason
    assert [e for e in events if isinstance(e, LogsDroppedEvent)][-1] == lost


def test_blocking_mode_does_not_start_without_its_endpoint(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    log = awslogs(mode="blocking")
    task = run(settings, busybox, shell("app", "echo never", logConfiguration=log))
    assert (task.stopped_reason or "").startswith(
        "ResourceInitializationError: failed to validate logger args: "
    )


def test_a_full_buffer_drops_what_it_cannot_hold_and_counts_it(
    settings: Settings, busybox: str, endpoint: Endpoint
) -> None:
    """The endpoint stands still: what was sent and what was lost is all that was written."""
    endpoint.gate.clear()
    log = awslogs(mode="non-blocking", max_buffer_size="64k")
    line, count = "x" * 1000, 400
    script = f"i=0; while [ $i -lt {count} ]; do echo {line}; i=$((i+1)); done"
    task = run_task(
        definition(busybox, shell("app", script, logConfiguration=log)), settings=settings
    )
    assert endpoint.waiting.wait(TIMEOUT_S)
    task.until("DEPROVISIONING", TIMEOUT_S)  # the container has ended, its log is not sent yet
    endpoint.gate.set()
    task.wait(TIMEOUT_S)
    lost = dropped(settings, task)["app"]
    assert task.exit_code == 0
    assert 0 < len(endpoint.events()) <= 66
    assert len(endpoint.events()) + lost.records == count
    assert lost.bytes == lost.records * 1000
    assert len(local_lines(task, "app")) == count


def test_blocking_mode_holds_the_writer_back_and_loses_nothing(
    settings: Settings, busybox: str, endpoint: Endpoint
) -> None:
    endpoint.gate.clear()
    small = Settings(
        data_root=settings.data_root, run_root=settings.run_root,
        log_max_bytes=2**18, log_max_files=3,
    )  # fmt: skip
    line, count = "x" * 999, 8000
    script = f"i=0; while [ $i -lt {count} ]; do echo {line}; i=$((i+1)); done"
    log = awslogs(mode="blocking")
    task = run_task(definition(busybox, shell("app", script, logConfiguration=log)), settings=small)
    assert endpoint.waiting.wait(TIMEOUT_S)
    # 8 MB would be written in well under a second; 1 MiB is on its way, one waits in memory,
    # 256 KiB in the log and 64 KiB in the pipe. The endpoint answers no sooner than this.
    written, deadline = -1, time.monotonic() + 10
    logs = small.records / task.id / "logs"
    while (now := sum(path.stat().st_size for path in logs.iterdir())) != written:
        written = now
        assert time.monotonic() < deadline
        with pytest.raises(TimeoutError):
            task.wait(0.5)
    assert task.last_status == "RUNNING"
    endpoint.gate.set()
    task.wait(TIMEOUT_S)
    assert task.exit_code == 0
    assert endpoint.events() == [line] * count
    assert dropped(small, task) == {}


def test_throttling_and_faults_are_retried_in_order(
    settings: Settings, busybox: str, endpoint: Endpoint
) -> None:
    endpoint.answers = [503, 500, 429]
    task = run(settings, busybox, shell("app", "seq 1 50", logConfiguration=awslogs()))
    assert endpoint.events() == [*map(str, range(1, 51))]
    assert dropped(settings, task) == {}


def test_local_keeps_logs_on_this_host(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    local = Settings(data_root=settings.data_root, run_root=settings.run_root, log_drivers="local")
    log = awslogs(mode="blocking")
    task = run(local, busybox, shell("app", "echo here", logConfiguration=log))
    assert (task.exit_code, local_lines(task, "app")) == (0, ["here"])


@pytest.mark.field("executionRoleArn")
@pytest.mark.parametrize("assumes", [True, False])
def test_logs_are_sent_as_the_execution_role_where_roles_are_assumed(
    settings: Settings,
    busybox: str,
    endpoint: Endpoint,
    moto: str,
    monkeypatch: pytest.MonkeyPatch,
    assumes: bool,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto)
    chosen = msgspec.structs.replace(settings, assume_roles=assumes)
    task = run(chosen, busybox, shell("app", "echo as whom", logConfiguration=awslogs()))
    assert task.exit_code == 0, task.stopped_reason
    assert endpoint.events() == ["as whom"]
    signer = endpoint.posts[0][0]["Authorization"].partition("Credential=")[2]
    # moto's temporary keys begin as AWS' do; the host's own is `test`.
    assert signer.startswith("ASIA" if assumes else "test/")
