"""A program that runs pieces of tasks' lives, and a fault at a chosen system call of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fargatelite.settings import Settings
from tests.fixtures.patience import patient

SOURCE = Path(__file__).parent / "injector.c"
CHOSEN = os.environ.get("FARGATELITE_FAULTS", "")
"""`all`: every point, as `make faults` has it; names of system calls: every point of those; else a
choice of all that fits into `make test`."""

Answer = dict[str, Any]
PYTHON, SHIM = 0, 1
ANY_CALL = -1
OWN_ERRNO, KILL = 0, -1
SLOW_S = patient(8)
"""A life after a fault may wait for one time-out of ours, not for several."""


@dataclass(frozen=True)
class Fault:
    """The `at`-th of all calls that `program` makes (of `call`, or of the injector's table) fails
    with `what`: its own errno, another one, or SIGKILL for its process. `at` 0: none, all are
    counted."""

    at: int
    what: int = OWN_ERRNO
    program: int = PYTHON
    call: int = ANY_CALL


class Call(NamedTuple):
    """A system call that was counted."""

    number: int
    name: str
    what: str
    """A path, where it has one."""


class Driver:
    """`driver.py` below the injector."""

    def __init__(self, injector: Path, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self._report = directory / "report"
        self._stacks = directory / "stacks"
        self.log = directory / "stderr"
        with open(self.log, "wb") as stderr:
            self._process = subprocess.Popen(
                [injector, self._report, sys.executable, "-m", "tests.faults.driver"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
                cwd=Path(__file__).parents[2],
            )  # fmt: skip

    def do(self, piece: str, *, fault: Fault | None = None, **request: Any) -> Answer:
        """Runs a piece of a life in a process of its own; what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        message = {
            "piece": piece,
            "settings": {
                "data_root": self.settings.data_root, "run_root": self.settings.run_root,
            },
            "stacks": str(self._stacks),
            **request,
        }  # fmt: skip
        if fault is not None:
            message["fault"] = [fault.at, fault.what, fault.program, fault.call]
        began = time.monotonic()
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        answer: Answer = json.loads(line)
        answer["seconds"] = time.monotonic() - began
        return answer

    def hit(self) -> list[Call]:
        """The call that failed, or with `at` 0 all that were counted."""
        found = []
        for line in self._report.read_text(errors="replace").splitlines():
            number, name, what = line.split(" ", 2)
            found.append(Call(int(number), name, what))
        return found

    def end(self) -> None:
        """Ends the program and the injector, which kills what is left below it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(patient(20))
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()


@pytest.fixture(scope="session")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """injector.c, compiled."""
    program = tmp_path_factory.mktemp("injector") / "injector"
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", program],
        check=True,
    )
    return program


@pytest.fixture
def driver(injector: Path, settings: Settings, tmp_path: Path) -> Iterator[Driver]:
    """A driver with roots of this test's own."""
    (tmp_path / "driver").mkdir()
    made = Driver(injector, tmp_path / "driver", settings)
    try:
        yield made
    finally:
        made.end()


def task_of(image: str, script: str, **more: Any) -> Answer:
    """A definition with one container that runs `script`."""
    return {
        "family": "faults",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [
            {"name": "app", "image": image, "entryPoint": ["/bin/sh", "-c"], "command": [script],
             "stopTimeout": 2, **more}
        ],
    }  # fmt: skip


class Promises:
    """What holds after any fault: counts the points and keeps what broke, so that a run shows all
    of it. A point's life is said to be `expected` when its exit code is one of these."""

    def __init__(self, driver: Driver, image: str) -> None:
        self.driver = driver
        self.tried = 0
        self.broken: list[str] = []
        self.known: set[str] = set()
        """Tasks of which it has been seen how they ended."""
        self._image = image

    def check(self, point: str, answer: Answer, expected: tuple[int, ...]) -> Answer:
        """After a fault at `point` whose life gave `answer`; what `settle` found."""
        self.tried += 1
        problems = []
        if answer["seconds"] > SLOW_S:
            told = self.driver.log.read_text(errors="replace")[-2000:]
            problems.append(f"took {answer['seconds']:.1f} s: {answer.get('message')}; {told}")
        if "hung" in answer:
            problems.append(f"hung:\n{answer['hung']}")
        if answer.get("isUnexpected"):
            problems.append(f"{answer['traceback']}")
        settled = self.driver.do("settle", verify=True, known=sorted(self.known))
        if "first" not in settled:
            problems.append(f"gc: {settled}")
            self._note(point, problems)
            return settled
        new = [item for item in settled["records"] if item["id"] not in self.known]
        self.known |= {item["id"] for item in new}
        if settled["first"]["failures"] or settled["second"]:
            problems.append(f"one gc is not enough: {settled['first']}, then {settled['second']}")
        for name in ("left", "slots", "damage"):
            if settled[name]:
                problems.append(f"{name}: {settled[name]}")
        if len(new) > 1:
            problems.append(f"doubled: {new}")
        for item in new:
            problems += _problems_of(item, expected)
        if "id" in answer and answer["id"] not in self.known:
            problems.append(f"lost: {answer}")
        again = self.driver.do("run", definition=task_of(self._image, "exit 7"))
        if again.get("exitCode") != 7:
            problems.append(f"the next launch: {again}")
        self.known.add(again.get("id", ""))
        self._note(point, problems)
        return settled

    def _note(self, point: str, problems: list[str]) -> None:
        if problems:
            self.broken.append("\n  ".join([point, *problems]))
            print(self.broken[-1], flush=True)

    def assert_kept(self, at_least: int) -> None:
        """Fails with all that broke."""
        print(f"fault points tried: {self.tried}")
        assert self.tried >= at_least
        assert not self.broken, "\n".join(self.broken)


def _problems_of(record: Answer, expected: tuple[int, ...]) -> list[str]:
    """Right, or marked: an exit code that is the program's own, or a stop code and words that tell
    that it is not."""
    problems = []
    if record["status"] != "STOPPED" or not record["isFinal"]:
        problems.append(f"not over: {record}")
    if record["billedSeconds"] < 0 or record["billedSeconds"] > 120:
        problems.append(f"billed {record['billedSeconds']} s")
    if record["stopCode"] == "EssentialContainerExited":
        marked = record["exitCode"] == 137 or "InternalError" in (record["reason"] or "")
        if record["exitCode"] not in expected and not marked:
            problems.append(f"exit code {record['exitCode']}: {record}")
    elif not record["reason"]:
        problems.append(f"no reason: {record}")
    return problems


@pytest.fixture
def promises(driver: Driver, busybox: str) -> Promises:
    """With an image in the store of the driver's roots."""
    assert "imageId" in driver.do("pull", reference=busybox)
    first = driver.do("run", definition=task_of(busybox, "exit 7"))
    assert first["exitCode"] == 7
    made = Promises(driver, busybox)
    made.known.add(first["id"])
    return made
