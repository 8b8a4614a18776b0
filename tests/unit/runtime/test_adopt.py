"""What an adopted task has missed: pure, from state, live processes and exit records."""

from __future__ import annotations

import msgspec
import pytest

from fargatelite.runtime import task as machine
from fargatelite.runtime.adopt import Adoption, Found, plan_adoption
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.runtime.task import ContainerState, HealthPolicy, TaskState, TaskStatus, TimerKey
from fargatelite.shim import ExitRecord

SECOND = 1_000_000_000
NOW = 100 * SECOND


def state(**changes: object) -> TaskState:
    container = ContainerState(
        name="app", essential=True, step=ContainerStep.RUNNING, pid=7, started_at_ns=10 * SECOND,
        stop_timeout_s=5,
    )  # fmt: skip
    made = TaskState(
        task_id="0" * 32, containers=(container,), last_status=TaskStatus.RUNNING,
        created_at_ns=SECOND,
    )  # fmt: skip
    of_container = {k: v for k, v in changes.items() if k in ContainerState.__struct_fields__}
    of_task = {k: v for k, v in changes.items() if k not in of_container}
    return msgspec.structs.replace(
        made, containers=(msgspec.structs.replace(container, **of_container),), **of_task
    )


def ended(started_s: int, stopped_s: int, code: int = 3) -> ExitRecord:
    return ExitRecord(
        number=0, pid=7, exit_code=code, started_at_ns=started_s * SECOND,
        stopped_at_ns=stopped_s * SECOND, user_us=0, system_us=0, max_rss_kib=0,
        read_bytes=0, written_bytes=0, dropped_log_bytes=0,
    )  # fmt: skip


ALIVE = Found(live={0: (7, 10 * SECOND)})


def plan(found: Found, **changes: object) -> Adoption:
    return plan_adoption(state(**changes), found, NOW)


def test_nothing_happened() -> None:
    assert plan(ALIVE) == Adoption()


def test_it_ended_meanwhile_at_its_own_time() -> None:
    (event,) = plan(Found(exits={0: ended(10, 42)})).events
    assert event == machine.ContainerExited(at_ns=42 * SECOND, name="app", exit_code=3, oom=False)


def test_its_shim_was_killed_with_it() -> None:
    (event,) = plan(Found(exits={0: ended(2, 8)})).events  # of a life before the last restart
    assert event == machine.ContainerExited(at_ns=NOW, name="app", exit_code=137, oom=False)


@pytest.mark.parametrize("is_restarting", [False, True])
def test_a_start_that_was_decided_on(is_restarting: bool) -> None:
    step = ContainerStep.RUNNING if is_restarting else ContainerStep.STARTING
    changes = {"step": step, "is_restarting": is_restarting}
    if not is_restarting:
        changes |= {"started_at_ns": None, "pid": None}
    again = machine.RestartContainer if is_restarting else machine.StartContainer
    assert plan(Found(), **changes).actions == (again("app"),)
    started = machine.ContainerStarted(at_ns=50 * SECOND, name="app", pid=9)
    assert plan(Found(live={0: (9, 50 * SECOND)}), **changes).events == (started,)
    first, second = plan(Found(exits={0: ended(50, 60)}), **changes).events
    assert (first.at_ns, second.at_ns) == (50 * SECOND, 60 * SECOND)
    assert isinstance(second, machine.ContainerExited)


def test_a_stop_is_asked_for_again_and_has_its_time_out() -> None:
    assert plan(ALIVE, is_signalled=True, desired_status="STOPPED").actions == (
        machine.SignalContainer("app"),
        machine.SetTimer(TimerKey("kill", "app"), NOW + 5 * SECOND),
    )


def test_checks_go_on() -> None:
    policy = HealthPolicy(interval_s=30, retries=3, start_period_s=0)
    (action,) = plan(ALIVE, health_policy=policy).actions
    assert action == machine.SetTimer(TimerKey("health", "app"), NOW + 30 * SECOND)


@pytest.mark.parametrize(
    ("pending", "action"),
    [("pull", machine.PullImages()), ("deprovision", machine.Deprovision())],
)
def test_a_step_that_was_on_its_way_is_done_again(pending: str, action: machine.Action) -> None:
    assert plan(ALIVE, pending=pending) == Adoption(actions=(action,))


def test_what_was_being_provisioned_has_failed() -> None:
    (event,) = plan(Found(), pending="provision").events
    assert isinstance(event, machine.ProvisionFailed)
    assert event.reason.startswith("ResourceInitializationError: ")
