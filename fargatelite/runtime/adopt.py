"""Takes over a task whose supervisor is gone: killed, upgraded, or a program that ended.

The run directory is the whole truth (design, "Any task can change hands"): the recorded state, the
shim's live processes and its exit records say what happened meanwhile. `plan_adoption` is pure:
from the state and what was found it tells which events the machine has missed and which actions
were decided on and never carried out. Whoever adopts holds the run directory's lock, so nobody else
does.

What an unsupervised gap costs: health checks of that time and memory samples (the ledger marks the
gap; CPU is a counter). Log records that a driver had not sent yet are sent by the next.
"""

from __future__ import annotations

import msgspec

from fargatelite.runtime import task as machine
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.shim import ExitRecord

__all__ = ["Adoption", "Found", "plan_adoption"]

_LOST = "ResourceInitializationError: the process that provisioned the task ended"
_SECOND_NS = 1_000_000_000
KILLED_EXIT_CODE = 137  # SIGKILL: how the kernel ends a container whose shim is gone


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the shim and its files say: live processes as (pid, started at ns) and the last exit
    record by process number."""

    live: dict[int, tuple[int, int]] = {}
    exits: dict[int, ExitRecord] = {}


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """What to do first with an adopted task, in this order."""

    events: tuple[machine.Event, ...] = ()
    actions: tuple[machine.Action, ...] = ()


def plan_adoption(state: machine.TaskState, found: Found, now_ns: int) -> Adoption:
    """What the machine has missed, and what must be carried out (again). The task is not STOPPED:
    of such a one only leftovers remain (close.end_lost)."""
    match state.pending:
        case "provision":
            return Adoption(events=(machine.ProvisionFailed(at_ns=now_ns, reason=_LOST),))
        case "pull":
            return Adoption(actions=(machine.PullImages(),))
        case "deprovision":
            return Adoption(actions=(machine.Deprovision(),))
    events: list[machine.Event] = []
    actions: list[machine.Action] = []
    for number, container in enumerate(state.containers):
        if container.step == ContainerStep.STARTING or container.is_restarting:
            _starting(container, number, found, events, actions)
        elif container.step == ContainerStep.RUNNING:
            _running(container, number, found, now_ns, events, actions)
    return Adoption(events=tuple(events), actions=tuple(actions))


def _exit_since(container: machine.ContainerState, number: int, found: Found) -> ExitRecord | None:
    record = found.exits.get(number)
    since = max(container.started_at_ns or 0, container.restarted_at_ns or 0)
    return record if record is not None and record.stopped_at_ns > since else None


def _starting(
    container: machine.ContainerState,
    number: int,
    found: Found,
    events: list[machine.Event],
    actions: list[machine.Action],
) -> None:
    """Its start was decided on; nobody wrote down whether it came to it."""
    live, ended = found.live.get(number), found.exits.get(number)
    known = max(container.started_at_ns or 0, container.restarted_at_ns or 0)
    if live is not None:
        pid, started_at_ns = live
        events.append(machine.ContainerStarted(at_ns=started_at_ns, name=container.name, pid=pid))
    elif ended is not None and ended.started_at_ns > known:
        events.append(
            machine.ContainerStarted(at_ns=ended.started_at_ns, name=container.name, pid=ended.pid)
        )
        events.append(_exited(container, ended))
    elif container.is_restarting:
        actions.append(machine.RestartContainer(container.name))
    else:
        actions.append(machine.StartContainer(container.name))


def _exited(container: machine.ContainerState, record: ExitRecord) -> machine.ContainerExited:
    return machine.ContainerExited(
        at_ns=record.stopped_at_ns, name=container.name, exit_code=record.exit_code, oom=False
    )


def _running(
    container: machine.ContainerState,
    number: int,
    found: Found,
    now_ns: int,
    events: list[machine.Event],
    actions: list[machine.Action],
) -> None:
    if number not in found.live:
        record = _exit_since(container, number, found)
        events.append(
            _exited(container, record)
            if record is not None
            else machine.ContainerExited(
                at_ns=now_ns, name=container.name, exit_code=KILLED_EXIT_CODE, oom=False
            )
        )
        return
    if container.is_signalled:
        # Its time-out may have passed unseen. A second stop signal changes nothing.
        actions.append(machine.SignalContainer(container.name))
        actions.append(
            machine.SetTimer(
                machine.TimerKey("kill", container.name),
                now_ns + container.stop_timeout_s * _SECOND_NS,
            )
        )
        return
    if container.health_policy is not None:
        actions.append(
            machine.SetTimer(
                machine.TimerKey("health", container.name),
                now_ns + container.health_policy.interval_s * _SECOND_NS,
            )
        )
    if container.start_timeout_s is not None and container.started_at_ns is not None:
        actions.append(
            machine.SetTimer(
                machine.TimerKey("start", container.name),
                container.started_at_ns + container.start_timeout_s * _SECOND_NS,
            )
        )
