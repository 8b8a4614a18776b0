"""Ends a task that nobody can supervise any more: what it has on this host, and its record."""

from __future__ import annotations

import time

import msgspec

from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import StateCorrupt
from fargatelite.rundir import EXITS_NAME, RunDirectory
from fargatelite.runtime import launch, record
from fargatelite.runtime import task as machine
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.runtime.images import open_mounted
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import Settings
from fargatelite.shim import read_exit_records

__all__ = ["close_state", "end_lost"]

LOST_REASON = "The process that supervised the task ended"
LOST_STOP_CODE = "TerminationNotice"


def end_lost(settings: Settings, run: RunDirectory) -> list[str]:
    """Removes all that is left of a task whose supervisor is gone and records it as STOPPED; the
    caller has its lock. One of which no state was ever written leaves no record.

    Returns what could not be done, for which the run directory stays.
    """
    failures = launch.remove_task(
        settings, run, detect_driver(), None,
        lambda: open_mounted(settings).release(run.task_id), Timeline(),
    )  # fmt: skip
    try:
        data = run.read_state()
        if data is not None:
            found = record.decode_record(data, run.path)
            state = found.state
            if state.last_status != machine.TaskStatus.STOPPED:
                state = close_state(
                    state, run, time.time_ns(), stop_code=LOST_STOP_CODE, reason=LOST_REASON
                )
            record.write_stopped(settings, msgspec.structs.replace(found, state=state))
    except (StateCorrupt, OSError) as error:
        failures.append(f"record: {error}")
    if failures:
        run.unlock()
    else:
        run.remove()
    return failures


def close_state(
    state: machine.TaskState, run: RunDirectory, now_ns: int, *, stop_code: str, reason: str
) -> machine.TaskState:
    """The state as STOPPED now, with the exits that the shim recorded. `stop_code` and `reason`
    count unless the task was stopping already."""
    exits = {item.number: item for item in read_exit_records(run.path / EXITS_NAME)}
    containers = []
    for number, container in enumerate(state.containers):
        ended = exits.get(number)
        changes: dict[str, object] = {"step": ContainerStep.STOPPED}
        if ended is not None:
            changes |= {
                "started_at_ns": container.started_at_ns or ended.started_at_ns,
                "finished_at_ns": ended.stopped_at_ns,
                "exit_code": ended.exit_code,
            }
        elif container.step != ContainerStep.STOPPED:
            changes |= {"finished_at_ns": now_ns}
            if container.step == ContainerStep.RUNNING:
                changes |= {"exit_code": 137}
        containers.append(msgspec.structs.replace(container, **changes))
    return msgspec.structs.replace(
        state,
        containers=tuple(containers),
        last_status=machine.TaskStatus.STOPPED,
        desired_status="STOPPED",
        version=state.version + 1,
        pending=None,
        stop_code=state.stop_code or stop_code,
        stopped_reason=state.stopped_reason or reason,
        stopping_at_ns=state.stopping_at_ns or now_ns,
        stopped_at_ns=now_ns,
    )
