"""A container that writes without end takes no more of the disk than it may."""

from __future__ import annotations

from pathlib import Path

import pytest

from fargatelite import Settings, run_task
from fargatelite.logdrivers.lines import LineAssembler
from tests.root.logdrivers.conftest import TIMEOUT_S, definition, local_lines, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]
MAX_BYTES, MAX_FILES = 2**18, 3


@pytest.fixture
def small(settings: Settings) -> Settings:
    return Settings(
        data_root=settings.data_root, run_root=settings.run_root,
        log_max_bytes=MAX_BYTES, log_max_files=MAX_FILES,
    )  # fmt: skip


def log_files(settings: Settings, task_id: str) -> list[Path]:
    return sorted((settings.records / task_id / "logs").iterdir())


def test_the_bound_holds_and_the_end_is_kept(small: Settings, busybox: str) -> None:
    task = run_task(
        definition(busybox, shell("app", "seq 1 100000; echo end")), settings=small
    )  # fmt: skip
    task.wait(TIMEOUT_S)
    files = log_files(small, task.id)
    assert len(files) == MAX_FILES
    assert all(path.stat().st_size <= MAX_BYTES for path in files)
    lines = local_lines(task, "app")
    assert lines[-1] == "end"
    numbers = [int(line) for line in lines[1:-1]]  # the first may have lost its beginning
    assert numbers == list(range(100001 - len(numbers), 100001))


def test_nothing_but_newlines_keeps_the_bound(small: Settings, busybox: str) -> None:
    """The least a line can be: its record is 43 times as long."""
    task = run_task(
        definition(busybox, shell("app", "head -c 300000 /dev/zero | tr '\\000' '\\n'")),
        settings=small,
    )
    task.wait(TIMEOUT_S)
    files = log_files(small, task.id)
    assert len(files) == MAX_FILES
    assert all(path.stat().st_size <= MAX_BYTES for path in files)


def test_a_follower_that_keeps_up_sees_every_line_once(small: Settings, busybox: str) -> None:
    """The writer waits now and then, as long as a follower needs to have read what was written."""
    script = (
        "n=0; while [ $n -lt 200 ]; do "
        "seq $((n*200+1)) $((n*200+200)); n=$((n+1)); sleep 0.005; done"
    )
    task = run_task(definition(busybox, shell("app", script)), settings=small)
    lines = LineAssembler()
    seen = [
        record.text.decode()
        for line in task.logs("app", follow=True)
        for record in lines.feed(line)
    ]
    task.wait(TIMEOUT_S)
    assert seen == [*map(str, range(1, 40001))]
    assert len(log_files(small, task.id)) == MAX_FILES, "it was rotated meanwhile"


def test_a_restarted_container_goes_on_in_its_log(small: Settings, busybox: str) -> None:
    policy = {"enabled": True, "restartAttemptPeriod": 60}
    task = run_task(
        definition(busybox, shell("app", "seq 1 20000", restartPolicy=policy)), settings=small
    )
    task.wait(TIMEOUT_S)
    assert local_lines(task, "app")[-1] == "20000"
