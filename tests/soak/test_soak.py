"""Long life: task after task, many at once, and whoever looks at them and goes away. Nothing grows.

`make soak` runs 2,000 lives in a row and 2,000 by 50, and prints the table of docs/reliability.md;
`make test` a few of each.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fargatelite import RecordedTask, Settings, Task, run_task
from fargatelite.cgroups.detect import detect_driver
from fargatelite.runtime import upkeep
from fargatelite.settings import Retention
from tests.fixtures.patience import patient
from tests.root.runtime.test_detached import await_end, supervisors

LIVES = int(os.environ.get("FARGATELITE_SOAK_LIVES", "40"))
LOOKS = int(os.environ.get("FARGATELITE_SOAK_LOOKS", "100"))
IS_LONG = LIVES > 200

pytestmark = [
    pytest.mark.root,
    pytest.mark.registry,
    pytest.mark.timeout(14400 if IS_LONG else 300),
]

TIMEOUT_S = patient(60)
SPARE_THREADS = 16  # the supervisor's pool grows to that and stays


def definition(image: str, script: str) -> dict[str, object]:
    return {
        "family": "soak",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [
            {"name": "app", "image": image, "entryPoint": ["/bin/sh", "-c"], "command": [script],
             "stopTimeout": 2}
        ],
    }  # fmt: skip


def _kib_of(path: str, name: str) -> int:
    line = next(x for x in Path(path).read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1])


def _elements() -> int:
    said = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return said.stdout.count(":") + said.stdout.count(",")


class _MallInfo(ctypes.Structure):
    """mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    ]  # fmt: skip


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _MallInfo
PYTHON_BLOCKS, MALLOC, RESIDENT = (
    "blocks of Python's in use", "malloc in use, KiB", "memory of the process, KiB",
)  # fmt: skip


def measure() -> dict[str, int]:
    """What this process and the kernel have now. What is in use of Python's allocator and malloc's
    tells a leak; the resident memory has their holes too."""
    gc.collect()
    _libc.malloc_trim(0)
    return {
        PYTHON_BLOCKS: sys.getallocatedblocks(),
        MALLOC: _libc.mallinfo2().uordblks // 1024,
        RESIDENT: _kib_of("/proc/self/status", "RssAnon"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "groups": len(detect_driver().list_tasks()),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "interfaces": len(socket.if_nameindex()),
        "nft elements": _elements(),
        "kernel slab, KiB": _kib_of("/proc/meminfo", "SUnreclaim"),
    }


def assert_flat(before: dict[str, int], after: dict[str, int], lives: int) -> None:
    """Prints the table. Slab is the whole machine's, others' work included: told, not judged."""
    print(f"\n| after {lives} | at first | at the end | each |\n|---|---|---|---|")
    for name, first in before.items():
        each = (after[name] - first) / lives
        print(f"| {name} | {first:,} | {after[name]:,} | {each:+.3f} |")
    for name in ("descriptors", "groups", "mounts", "interfaces", "nft elements"):
        assert after[name] <= before[name], (name, before[name], after[name])
    assert after["threads"] <= before["threads"] + SPARE_THREADS
    # Less than one object for two lives, and 100 bytes for one, beside what a thread has.
    assert after[PYTHON_BLOCKS] - before[PYTHON_BLOCKS] <= 4000 + lives // 2
    assert after[MALLOC] - before[MALLOC] <= 1024 + lives // 10
    grown = after[RESIDENT] - before[RESIDENT]
    # Each thread of the pool has its stack and, but for MALLOC_ARENA_MAX=1 as `make soak` has it,
    # an arena whose holes malloc fills over thousands of lives: a bound, in the long run a rate.
    assert grown <= (2048 + lives if IS_LONG else 8192), grown


def live(settings: Settings, image: str) -> None:
    task = run_task(definition(image, "echo out; exit 3"), settings=settings, pull="missing")
    assert task.wait(TIMEOUT_S) == 3


@pytest.fixture
def quiet(settings: Settings) -> Settings:
    """Records are collected now and then, as in a long life."""
    import msgspec

    return msgspec.structs.replace(settings, retention=Retention(every_minutes=1))


@pytest.mark.parametrize("at_once", [1, 50 if IS_LONG else 5])
def test_lives_leave_nothing(quiet: Settings, busybox: str, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        # Caches, threads and their stacks, and the places that malloc and Python's own allocator
        # keep: they are there after some hundred lives, and stay.
        first = max(10, at_once * 2, LIVES // 4 if IS_LONG else 0)
        for _ in pool.map(lambda _: live(quiet, busybox), range(first)):
            pass
        upkeep.collect_if_due(quiet)
        before = measure()
        for _ in pool.map(lambda _: live(quiet, busybox), range(LIVES)):
            pass
        upkeep.collect_if_due(quiet)
        assert_flat(before, measure(), LIVES)


def _follow_and_drop(task: Task) -> None:
    lines = task.logs("app", follow=True)
    next(lines)
    lines.close()  # type: ignore[attr-defined]


def _wait_and_cancel(task: Task) -> None:
    with pytest.raises(TimeoutError):
        task.wait(0.0)


@pytest.mark.parametrize("look", [_follow_and_drop, _wait_and_cancel])
def test_who_looks_and_goes_away_leaves_nothing(
    settings: Settings, busybox: str, look: Callable[[Task], None]
) -> None:
    task = run_task(definition(busybox, "echo up; sleep 3600"), settings=settings)
    task.until("RUNNING", TIMEOUT_S)
    for _ in range(10):
        look(task)
    before = measure()
    for _ in range(LOOKS):
        look(task)
    assert_flat(before, measure(), LOOKS)
    task.stop()


_ABORTER = """
import os, signal, sys
import fargatelite.cli.execute, fargatelite.runtime.guest
from fargatelite.cli.main import cli
for _ in range(int(sys.argv[1])):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(theirs, 1)
        os.close(theirs)
        cli(sys.argv[2:])
        os._exit(1)
    os.close(theirs)
    assert os.read(ours, 16) == b"in\\n"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
"""  # a process for each, without its imports


def test_an_exec_that_is_aborted_leaves_nothing(settings: Settings, busybox: str) -> None:
    """Killed as it goes on; what it had started inside is gone, and the shim has it forgotten."""
    task = run_task(definition(busybox, "sleep 3600"), settings=settings)
    task.until("RUNNING", TIMEOUT_S)
    pid = task.state.container("app").pid
    assert pid is not None
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    arguments = ["--data-root", settings.data_root, "--run-root", settings.run_root,
                 "exec", "--force", task.id, "sh", "-c", "echo in; sleep 3600"]  # fmt: skip

    def abort(count: int) -> None:
        subprocess.run([sys.executable, "-c", _ABORTER, str(count), *arguments], check=True)

    def shims() -> int:
        deadline = time.monotonic() + patient(10)
        while children_of(shim) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        return len(os.listdir(f"/proc/{shim}/fd"))

    abort(10)
    before, descriptors = measure(), shims()
    abort(LOOKS)
    assert shims() <= descriptors
    assert children_of(shim) == 1
    assert_flat(before, measure(), LOOKS)
    task.stop()


def children_of(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_a_supervised_task_costs_little_memory(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the process that supervises detached tasks, as it is by default, from the twentieth task
    on: then it has all its threads. The goal is 100 KiB each."""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    tasks: list[RecordedTask] = []

    def start(_: int) -> RecordedTask:
        document = definition(busybox, "sleep 3600")
        task = run_task(document, settings=settings, detach=True, pull="missing")
        return task.until("RUNNING", TIMEOUT_S)

    def resident_with(count: int) -> int:
        with ThreadPoolExecutor(4) as pool:
            tasks.extend(pool.map(start, range(count - len(tasks))))
        (supervisor,) = supervisors(settings)
        return _kib_of(f"/proc/{supervisor}/status", "RssAnon")

    few, many = 20, 200 if IS_LONG else 50
    try:
        first, last = resident_with(few), resident_with(many)
    finally:
        for task in tasks:
            task.stop(wait=False)
        for task in tasks:
            task.wait(TIMEOUT_S)
        await_end(settings)
    each = (last - first) / (many - few)
    print(
        f"\nsupervisor: {first:,} KiB with {few} tasks, {last:,} KiB with {many}: "
        f"{each:.0f} KiB each"
    )
    # In the short run what the allocator keeps for later is a part of it.
    assert each <= (150 if IS_LONG else 300)


def test_fifty_fight_over_twenty_tasks(settings: Settings, busybox: str) -> None:
    """Each of fifty processes takes what it can of twenty tasks that have lost their supervisor;
    every task has one, and when they are killed too the next fifty find them again."""
    code = (
        "import fargatelite, os, signal\n"
        f"settings = fargatelite.Settings(data_root={settings.data_root!r},"
        f" run_root={settings.run_root!r})\n"
        f"document = {definition(busybox, 'sleep 3600')!r}\n"
        "for task in [fargatelite.run_task(document, settings=settings, pull='missing')"
        " for _ in range(20)]:\n"
        "    task.until('RUNNING', 60)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run_task(definition(busybox, "true"), settings=settings).wait(TIMEOUT_S)
    done = subprocess.run([sys.executable, "-c", code], timeout=patient(120))
    assert done.returncode == -signal.SIGKILL
    tasks = {path.name for path in settings.runs.iterdir() if len(path.name) == 32}
    assert len(tasks) == 20
    fight = (
        "import sys\n"
        "from fargatelite.settings import Settings\n"
        "from fargatelite.errors import TaskBusy, TaskNotFound\n"
        "from fargatelite.rundir import RunDirectory\n"
        "from fargatelite.runtime.request import adopt_task\n"
        f"settings = Settings(data_root={settings.data_root!r}, run_root={settings.run_root!r})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for run in RunDirectory.list_all(settings.runs):\n"
        "    try:\n"
        "        if adopt_task(settings, run) is not None: print(run.task_id)\n"
        "    except (TaskBusy, TaskNotFound): pass\n"
        "print('over', flush=True)\n"
        "sys.stdin.readline()\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(5 if IS_LONG else 1):
        fighters = [
            subprocess.Popen(
                [sys.executable, "-c", fight], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, bufsize=1,
            )
            for _ in range(50)
        ]  # fmt: skip
        try:
            for fighter in fighters:
                assert fighter.stdout is not None
                assert fighter.stdout.readline() == "ready\n"
            for fighter in fighters:
                assert fighter.stdin is not None
                fighter.stdin.write("\n")
            taken = []
            for fighter in fighters:
                assert fighter.stdout is not None
                while (line := fighter.stdout.readline()) != "over\n":
                    assert line
                    taken.append(line.strip())
            assert sorted(taken) == sorted(tasks)
        finally:
            for fighter in fighters:
                fighter.kill()
                fighter.communicate()
    from fargatelite.runtime.gc import collect

    report = collect(settings)
    assert sorted(report.tasks) == sorted(tasks)
    assert report.failures == []
