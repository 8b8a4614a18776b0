"""A host's capacity: what does not fit is refused whole, from any process, and fits again later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.errors import CapacityExceeded
from fargatelite.settings import Capacity
from tests.fixtures.cli import CommandLine

from .test_run_task import TIMEOUT_S, definition, run, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]


def bounded(settings: Settings, **capacity: int) -> Settings:
    return msgspec.structs.replace(settings, capacity=Capacity(**capacity))


@pytest.mark.parametrize(
    ("capacity", "reason", "words"),
    [
        ({"memory_mib": 2047}, "RESOURCE:MEMORY", "wants 1024 MiB, and 1024 of this host's 2047"),
        ({"cpu_units": 1023}, "RESOURCE:CPU", "wants 512 CPU units, and 512 of this host's 1023"),
    ],
)
def test_the_sum_of_sizes_stays_within_it(
    settings: Settings, busybox: str, capacity: dict[str, int], reason: str, words: str
) -> None:
    small = bounded(settings, **capacity)
    wanted = definition(busybox, shell("app", "sleep 60", stopTimeout=2))
    with run_task(wanted, settings=small) as first:
        with pytest.raises(CapacityExceeded, match=words) as caught:
            run_task(wanted, settings=small)
        assert caught.value.reason == reason
        assert "stop a task, or wait for one to end" in str(caught.value)
        assert str(caught.value).startswith(f"{reason}: ")
        assert os.listdir(settings.runs) == [first.id]
        assert os.listdir(settings.records) == [first.id]
    assert run(small, busybox, shell("app", "exit 3")).exit_code == 3


def test_what_just_fits_is_taken(settings: Settings, busybox: str) -> None:
    just = bounded(settings, cpu_units=512, memory_mib=1024)
    assert run(just, busybox, shell("app", "exit 3")).exit_code == 3


_LAUNCH = """
import sys, fargatelite, json
from fargatelite.settings import Capacity
from fargatelite.errors import CapacityExceeded
settings = fargatelite.Settings(
    data_root=sys.argv[1], run_root=sys.argv[2], capacity=Capacity(memory_mib=3072)
)
tasks = refused = 0
held = []
for _ in range(3):
    try:
        held.append(fargatelite.run_task(json.loads(sys.argv[3]), settings=settings))
    except CapacityExceeded:
        refused += 1
print(len(held), refused, flush=True)
sys.stdin.read()
for task in held:
    task.stop()
    task.wait(60)
"""


def test_four_processes_at_once_stay_within_it(settings: Settings, busybox: str) -> None:
    wanted = msgspec.json.encode(
        definition(busybox, shell("app", "sleep 60", stopTimeout=2))
    ).decode()
    command = [sys.executable, "-c", _LAUNCH, settings.data_root, settings.run_root, wanted]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = []
    for process in processes:
        assert process.stdout is not None
        said.append(tuple(map(int, process.stdout.readline().split())))
    for process in processes:
        process.communicate(timeout=TIMEOUT_S)
    assert sum(started for started, _ in said) == 3
    assert sum(refused for _, refused in said) == 9
    assert not os.listdir(settings.runs)


def test_the_command_line_says_so(fargatelite: CommandLine, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[capacity]\nmemory_mib = 1000\n")
    (tmp_path / "task.json").write_bytes(
        msgspec.json.encode(definition(busybox, shell("app", "exit 0")))
    )
    environment = {"FARGATELITE_CONFIG": str(tmp_path / "config.toml")}
    said = fargatelite("run", tmp_path / "task.json", environment=environment)
    assert said.returncode == 125
    assert "RESOURCE:MEMORY: the task wants 1024 MiB" in said.stderr
    assert "ask for less, or raise the bound" in said.stderr
    said = fargatelite("run", "--detach", tmp_path / "task.json", environment=environment)
    assert said.returncode == 125
    assert "RESOURCE:MEMORY: the task wants 1024 MiB" in said.stderr
