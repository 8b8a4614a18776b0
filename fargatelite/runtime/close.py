"""Ends the record of a task that nobody can supervise any more."""

from __future__ import annotations

import msgspec

from fargatelite.rundir import EXITS_NAME, RunDirectory
from fargatelite.runtime import task as machine
from fargatelite.runtime.dependencies import ContainerStep
from fargatelite.shim import read_exit_records

__all__ = ["close_state"]


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
