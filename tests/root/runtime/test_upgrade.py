"""A newer version takes over what an older one has left.

`version1_task.tar.gz` is the run directory, ledger, events and logs of a task as the first revision
with `run --detach` (5ee9d4a) left them: its supervisor was killed while both containers ran, then
`app` ended with code 6, and then the machine took the rest.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, find_task, run_task
from fargatelite.errors import FargateliteError
from fargatelite.rundir import ensure_private_directory
from fargatelite.runtime import detached
from fargatelite.runtime.detached import ensure_supervised
from tests.fixtures.cli import CommandLine

from .test_adoption import roots
from .test_container_features import TIMEOUT_S, definition, shell

__all__ = ["roots"]

pytestmark = [pytest.mark.root, pytest.mark.registry]

OLD_TASK = Path(__file__).parents[2] / "fixtures" / "version1_task.tar.gz"
OLD_ID = "f0501bafaaed81575e3c8a019ceda4e5"


def lay_out(settings: Settings) -> None:
    """The old task's files where they were."""
    for directory in (
        Path(settings.data_root), settings.runs.parent, settings.runs, settings.records,
        settings.ledgers,
    ):  # fmt: skip
        ensure_private_directory(directory)
    with tarfile.open(OLD_TASK) as archive:
        for member in archive.getmembers():
            top, _, rest = member.name.partition("/")
            base = {"run": settings.runs, "records": settings.records}.get(top)
            place = settings.ledgers / top if base is None else base / OLD_ID / rest
            if member.isdir():
                place.mkdir(mode=0o700, exist_ok=True)
            else:
                content = archive.extractfile(member)
                assert content is not None
                place.write_bytes(content.read())


def test_an_old_task_is_read_and_adopted(roots: Settings, fargatelite: CommandLine) -> None:
    lay_out(roots)
    task = find_task(OLD_ID[:12], settings=roots)
    assert task.last_status == "RUNNING"
    described = task.describe()
    assert described["taskDefinitionArn"].endswith(":task-definition/upgrade:1")
    assert described["startedBy"] == "upgrade"
    assert described["containers"][1]["name"] == "side"
    fargatelite.environment |= {
        "FARGATELITE_DATA_ROOT": roots.data_root, "FARGATELITE_RUN_ROOT": roots.run_root,
    }  # fmt: skip
    shown = fargatelite("ps").stdout
    assert OLD_ID[:12] in shown
    assert "upgrade:1" in shown
    ensure_supervised(roots)
    assert task.wait(TIMEOUT_S) == 6
    assert (task.stop_code, task.stopped_reason) == (
        "EssentialContainerExited", "Essential container in task exited",
    )  # fmt: skip
    app, side = task.state.containers
    assert app.finished_at_ns == 1795643401876296089  # as the shim wrote it
    assert side.exit_code == 137  # its shim was not there any more
    assert [line.text for line in task.logs("app")] == [b"up", b"down"]
    bill = task.bill()
    assert bill.is_final
    state = task.state
    assert state.stopped_at_ns is not None
    assert state.pull_started_at_ns is not None
    lived_s = -(-(state.stopped_at_ns - state.pull_started_at_ns) // 1_000_000_000)
    assert bill.billed_seconds == max(60, lived_s)
    assert fargatelite("bill", OLD_ID).returncode == 0
    assert fargatelite("events", OLD_ID).returncode == 0
    assert not os.listdir(roots.runs)


def test_a_supervisor_of_another_version_says_so(
    roots: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run_task(
        definition(busybox, shell("app", "sleep 300", stopTimeout=2)), detach=True, settings=roots
    ).until("RUNNING", TIMEOUT_S)
    monkeypatch.setattr(detached, "PROTOCOL_VERSION", 99)

    class Order(detached._Order, frozen=True, kw_only=True):
        version: int = 99
        of_the_future: int = 1

    monkeypatch.setattr(detached, "_Order", Order)
    with pytest.raises(FargateliteError, match=r"speaks version 2, the request has 99; it is of"):
        run_task(definition(busybox, shell("app", "true")), detach=True, settings=roots)
    task.stop()
    assert task.wait(TIMEOUT_S) in (137, 143)


def test_what_version_1_answers_to_the_present_is_explained() -> None:
    """It refused the settings' new members before it looked at the version."""
    words = "a request that is none: Object contains unknown field `wait_s` - at `$.settings`"
    assert "kill it (SIGKILL), and the next command" in detached._advice_on(words)
    assert not detached._advice_on("RESOURCE:CPU: the task wants")
    assert msgspec.json.decode(b'{"version": 7, "new": 1}', type=detached._Head).version == 7
