"""Launches that wait: in order of arrival among all processes, within bounds, and gone with their
process; and the bound on those that one process prepares at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, Task, find_task, run_task
from fargatelite.errors import CapacityExceeded, ConfigurationInvalid
from fargatelite.runtime import waiting
from fargatelite.runtime.events import Event, TaskEvent, WaitingEvent
from fargatelite.runtime.gc import collect
from fargatelite.runtime.record import list_records
from fargatelite.settings import Capacity
from tests.fixtures.cli import CommandLine
from tests.fixtures.patience import patient

from .test_run_task import TIMEOUT_S, definition, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]

_WAITER = """
import sys, json, fargatelite
from fargatelite.settings import Capacity
settings = fargatelite.Settings(
    data_root=sys.argv[1], run_root=sys.argv[2], capacity=Capacity(cpu_units=int(sys.argv[3]))
)
task = fargatelite.run_task(
    json.loads(sys.argv[4]), settings=settings, pull="missing", wait_for_capacity_s=300
)
print(task.id, flush=True)
print(task.wait(300), flush=True)
"""


class Waiters:
    """Processes that launch one task each."""

    def __init__(self, settings: Settings, cpu_units: int) -> None:
        self.settings = msgspec.structs.replace(settings, capacity=Capacity(cpu_units=cpu_units))
        self.processes: list[subprocess.Popen[str]] = []
        self.ids: list[str] = []

    def start(self, document: dict[str, object]) -> subprocess.Popen[str]:
        """The next in line; returns when its task is there."""
        capacity = self.settings.capacity
        process = subprocess.Popen(
            [sys.executable, "-c", _WAITER, self.settings.data_root, self.settings.run_root,
             str(capacity.cpu_units), json.dumps(document)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        self.ids.append(process.stdout.readline().strip())
        return process

    def in_line(self) -> list[str]:
        """Ids of the tasks that have a ticket, first come first."""
        names = os.listdir(Path(self.settings.run_root, "waiting"))
        return [name.partition("-")[2] for name in sorted(names)]


@pytest.fixture
def waiters(settings: Settings, busybox: str) -> Iterator[Callable[[int], Waiters]]:
    made: list[Waiters] = []
    with run_task(definition(busybox, shell("app", "true")), settings=settings) as first:
        first.wait(TIMEOUT_S)  # the image is there

    def make(cpu_units: int) -> Waiters:
        made.append(Waiters(settings, cpu_units))
        return made[-1]

    yield make
    for item in made:
        for process in item.processes:
            process.kill()
            process.communicate()
    collect(settings)


def small(image: str, script: str, cpu: int = 512) -> dict[str, object]:
    memory = {512: "1024", 1024: "2048"}[cpu]
    return definition(image, shell("app", script, stopTimeout=2), cpu=str(cpu), memory=memory)


def bounded(settings: Settings, **capacity: int) -> Settings:
    return msgspec.structs.replace(settings, capacity=Capacity(**capacity))


def statuses(settings: Settings) -> Counter[str]:
    return Counter(str(record.state.last_status) for record in list_records(settings))


def lives_of(settings: Settings, ids: list[str]) -> list[tuple[int, int]]:
    """When each task was provisioned and when it was STOPPED, in ns."""
    found = []
    for task_id in ids:
        lines = Path(settings.records, task_id, "events.jsonl").read_bytes().splitlines()
        events = [msgspec.json.decode(line, type=Event) for line in lines]
        at = {e.last_status: e.at_ns for e in events if isinstance(e, TaskEvent)}
        found.append((at["PENDING"], at["STOPPED"]))
    return found


@pytest.mark.parametrize("at_once", [1, 2])
def test_many_processes_keep_the_order_and_the_sum(
    waiters: Callable[[int], Waiters], busybox: str, at_once: int
) -> None:
    queue = waiters(512 * at_once)
    for _ in range(10):
        queue.start(small(busybox, "sleep 0.2; exit 3"))
    for process in queue.processes:
        assert process.communicate(timeout=TIMEOUT_S * 2)[0] == "3\n"
    lives = lives_of(queue.settings, queue.ids)
    for begin, _ in lives:
        assert sum(first <= begin < last for first, last in lives) <= at_once
    if at_once == 1:
        assert lives == sorted(lives)
    assert queue.in_line() == []


def test_a_killed_waiter_does_not_hold_up_the_line(
    waiters: Callable[[int], Waiters], busybox: str
) -> None:
    """The first in line wants all, so that the second waits though there is room for it."""
    queue = waiters(1024)
    queue.start(small(busybox, "sleep 300"))
    large = queue.start(small(busybox, "exit 4", cpu=1024))
    behind = queue.start(small(busybox, "exit 5"))
    assert queue.in_line() == queue.ids[1:]
    deadline = time.monotonic() + patient(10)
    while (waits := statuses(queue.settings)) != {"RUNNING": 1, "PROVISIONING": 2}:
        assert time.monotonic() < deadline, waits
    large.send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert behind.communicate(timeout=TIMEOUT_S)[0] == "5\n"
    assert time.monotonic() - began < patient(10)
    assert queue.in_line() == []
    assert queue.ids[1] in collect(queue.settings).tasks
    assert find_task(queue.ids[1], settings=queue.settings).last_status == "STOPPED"


def test_all_killed_leave_an_empty_line(waiters: Callable[[int], Waiters], busybox: str) -> None:
    queue = waiters(512)
    for _ in range(4):
        queue.start(small(busybox, "sleep 300"))
    for number in (signal.SIGSTOP, signal.SIGKILL):  # else the last one tidies up
        for process in queue.processes:
            process.send_signal(number)
    for process in queue.processes:
        process.wait(TIMEOUT_S)
    assert len(queue.in_line()) == 3
    assert len(collect(queue.settings).tasks) == 4
    assert queue.in_line() == []
    last = queue.start(small(busybox, "exit 6"))
    assert last.communicate(timeout=TIMEOUT_S)[0] == "6\n"
    assert queue.in_line() == []


def test_nobody_passes_the_line(settings: Settings, busybox: str) -> None:
    host = bounded(settings, cpu_units=1024)
    with run_task(small(busybox, "sleep 300"), settings=host):
        large = run_task(small(busybox, "exit 4", cpu=1024), settings=host, wait_for_capacity_s=300)
        with pytest.raises(CapacityExceeded, match="RESOURCE:CPU: 1 launches wait for room ahead"):
            run_task(small(busybox, "exit 5"), settings=host)
    assert large.wait(TIMEOUT_S) == 4


def test_the_line_is_bounded(settings: Settings, busybox: str) -> None:
    host = bounded(settings, cpu_units=512, max_waiting=2, wait_s=300)
    document = small(busybox, "sleep 300")
    with run_task(document, settings=host) as first:
        others = [run_task(document, settings=host) for _ in range(2)]
        with pytest.raises(
            CapacityExceeded,
            match=r"RESOURCE:CPU: .*and 2 launches wait already \(capacity\.max_waiting\)",
        ):
            run_task(document, settings=host)
        assert sorted(os.listdir(settings.runs)) == sorted(task.id for task in [first, *others])
        for task in others:
            task.stop("no longer wanted")
            assert task.wait(TIMEOUT_S) is None
            assert (task.stop_code, task.stopped_reason) == ("UserInitiated", "no longer wanted")
            assert task.containers["app"].last_status == "STOPPED"
    assert os.listdir(Path(settings.run_root, "waiting")) == []


def test_who_waits_too_long_is_told_why(settings: Settings, busybox: str) -> None:
    host = bounded(settings, memory_mib=1024)
    document = small(busybox, "sleep 300")
    events: list[Event] = []
    with run_task(document, settings=host):
        began = time.monotonic()
        late = run_task(document, settings=host, wait_for_capacity_s=0.5, on_event=events.append)
        assert late.wait(TIMEOUT_S) is None
        assert time.monotonic() - began >= 0.5
    assert late.stop_code == "TaskFailedToStart"
    assert late.stopped_reason is not None
    assert late.stopped_reason.startswith("RESOURCE:MEMORY: no room within the time that it may")
    assert [e.reason for e in events if isinstance(e, WaitingEvent)] == ["RESOURCE:MEMORY"]
    assert late.bill().billed_seconds == 0


def test_what_never_fits_does_not_wait(settings: Settings, busybox: str) -> None:
    with pytest.raises(CapacityExceeded, match="ask for less, or raise the bound"):
        run_task(
            small(busybox, "true"), settings=bounded(settings, cpu_units=511),
            wait_for_capacity_s=300,
        )  # fmt: skip


@pytest.mark.parametrize("wait_s", [-1, float("nan"), 1e9])
def test_a_wait_has_bounds(settings: Settings, busybox: str, wait_s: float) -> None:
    with pytest.raises(ConfigurationInvalid, match="expected 0 to 604800 seconds"):
        run_task(small(busybox, "true"), settings=settings, wait_for_capacity_s=wait_s)


def test_a_process_prepares_a_few_at_a_time(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of many is not half made while the first has not begun."""
    monkeypatch.setattr(waiting, "MAX_PREPARING", 2)
    states: dict[str, str] = {}
    most = 0

    def note(event: Event) -> None:
        nonlocal most
        if isinstance(event, TaskEvent):
            states[event.task_id] = event.last_status
            most = max(most, list(states.values()).count("PENDING"))

    tasks: list[Task] = [
        run_task(small(busybox, "exit 3"), settings=settings, on_event=note) for _ in range(8)
    ]
    tasks[-1].stop("before its turn")
    assert [task.wait(TIMEOUT_S) for task in tasks] == [3] * 7 + [None]
    assert tasks[-1].stopped_reason == "before its turn"
    assert 1 <= most <= 2


def test_the_command_line_waits_and_shows_it(
    fargatelite: CommandLine, busybox: str, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("[capacity]\nmemory_mib = 1024\n")
    (tmp_path / "task.json").write_text(json.dumps(small(busybox, "sleep 300")))
    (tmp_path / "short.json").write_text(json.dumps(small(busybox, "exit 7")))
    environment = {"FARGATELITE_CONFIG": str(tmp_path / "config.toml")}
    said = fargatelite(
        "run", "-d", "--wait-for", "RUNNING", tmp_path / "task.json", environment=environment
    )
    assert said.returncode == 0, said.stderr
    first = said.stdout.strip()
    said = fargatelite(
        "run", "--wait-for-capacity", "1", tmp_path / "short.json", environment=environment
    )
    assert said.returncode == 125
    assert "task  waits for capacity: RESOURCE:MEMORY, 0 ahead" in said.stdout + said.stderr
    assert "RESOURCE:MEMORY: no room within the time" in said.stdout + said.stderr
    waiter = fargatelite.start(
        "run", "-d", "--wait-for-capacity", "300", "--wait-for", "RUNNING",
        tmp_path / "task.json", environment=environment,
    )  # fmt: skip
    deadline = time.monotonic() + patient(20)
    while "PROVISIONING" not in (shown := fargatelite("ps").stdout):
        assert time.monotonic() < deadline, shown
    assert fargatelite("stop", first).returncode == 0
    second = waiter.communicate(timeout=TIMEOUT_S)[0].strip()
    assert waiter.returncode == 0
    shown = fargatelite("ps").stdout
    assert "RUNNING" in shown
    assert first[:12] not in shown
    assert "waits for capacity: RESOURCE:MEMORY, 0 ahead" in fargatelite("events", second).stdout
    assert fargatelite("stop", second).returncode == 0
