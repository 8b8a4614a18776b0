"""Second half of a restart: the run root is gone, disks are as they were."""

from __future__ import annotations

import json
import os

import pytest

from fargatelite.host import read_boot_id
from fargatelite.meter.ledger import read_ledger
from tests.fixtures.cli import CommandLine
from tests.fixtures.host import snapshot
from tests.reboot.places import DATA_ROOT, IDS, MARKS, RUN_ROOT
from tests.reboot.test_before import definition

pytestmark = MARKS


@pytest.fixture
def command_line() -> CommandLine:
    return CommandLine(DATA_ROOT, RUN_ROOT)


def test_ps_and_gc_are_right(command_line: CommandLine) -> None:
    ids = json.loads(IDS.read_text())
    live = set(ids["live"])
    assert not RUN_ROOT.exists()
    for task_id in live:
        # It was written by another boot, up to the moment that it stopped.
        ledger = read_ledger(DATA_ROOT / "ledger" / f"{task_id}.ledger")
        assert ledger.header.boot_id != read_boot_id()
        assert ledger.samples

    listed = command_line("ps", "--quiet")
    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "", "")
    stopped = command_line("ps", "--all", "--quiet")
    assert (stopped.returncode, stopped.stdout.split()) == (0, [ids["over"]])
    assert command_line("bill", ids["over"]).returncode == 0

    collected = command_line("gc", "--output", "json")
    assert collected.returncode == 0, collected.stderr
    report = json.loads(collected.stdout)
    assert set(report["orphans"]) == live
    assert (report["tasks"], report["failures"]) == ([], [])
    assert list((DATA_ROOT / "tasks").iterdir()) == []
    assert os.listdir(DATA_ROOT / "storage") == []
    again = command_line("gc", "--output", "json")
    assert json.loads(again.stdout)["orphans"] == []
    assert command_line("ps", "--all", "--quiet").stdout.split() == [ids["over"]]


def test_tasks_run_again(
    command_line: CommandLine, busybox: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = snapshot()
    file = tmp_path_factory.mktemp("definitions") / "task.json"
    file.write_text(json.dumps(definition(busybox, "test ! -e /file && exit 4")))
    ended = command_line("run", file)
    assert ended.returncode == 4, ended.stderr
    assert snapshot() == before
