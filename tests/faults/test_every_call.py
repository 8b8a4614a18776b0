"""Every system call of a task's life fails once, and every one is its caller's last once.

The points are those that the injector counts in a life without a fault: each system call that
Python makes from `run_task` on and each that the shim makes, in launch and removal alike. `make
faults` tries all of them; `make test` one of every kind of call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from .conftest import CHOSEN, KILL, PYTHON, SHIM, Answer, Driver, Fault, Promises, task_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.registry,
    pytest.mark.timeout(7200 if CHOSEN else 300),
]

SCRIPT = "echo out; exit 7"


def points(
    promises: Promises, image: str, program: int, *, last: bool, piece: str = "run"
) -> Iterator[tuple[str, Fault]]:
    """Names and places; unless all are wanted, one of each kind of call: the first, or with `last`
    the last."""
    driver = promises.driver
    for _ in range(2):  # the second life makes no template, no directory that stays
        life = live(driver, piece, image, Fault(0, program=program))
        promises.known.add(life.get("id", ""))
    counted = Counter((call.number, call.name) for call in driver.hit())
    for (number, name), count in sorted(counted.items(), key=lambda item: item[0][1]):
        if CHOSEN:
            wanted = range(1, count + 1) if CHOSEN == "all" or name in CHOSEN.split(",") else []
        else:
            wanted = [count if last else 1]
        for at in wanted:
            yield f"{name} {at}/{count}", Fault(at, program=program, call=number)


def live(driver: Driver, piece: str, image: str, fault: Fault) -> Answer:
    script = "sleep 300" if piece == "stop" else SCRIPT
    return driver.do(piece, definition=task_of(image, script), reference=image, fault=fault)


def describe(driver: Driver) -> str:
    return " ".join(f"{call.name} {call.what}" for call in driver.hit())


@pytest.mark.parametrize("program", [PYTHON, SHIM], ids=["python", "shim"])
def test_every_call_fails_once(promises: Promises, busybox: str, program: int) -> None:
    driver = promises.driver
    for name, fault in points(promises, busybox, program, last=program == PYTHON):
        answer = driver.do("run", definition=task_of(busybox, SCRIPT), fault=fault)
        what = describe(driver)
        promises.check(f"{name} fails: {what}", answer, (7, 126, 127))
    promises.assert_kept(at_least=1 if CHOSEN else 30)


@pytest.mark.parametrize("program", [PYTHON, SHIM], ids=["python", "shim"])
def test_a_kill_at_every_call(promises: Promises, busybox: str, program: int) -> None:
    """The process that supervises, or the shim, dies instead of the call; odd points are adopted,
    even ones are left to gc."""
    driver = promises.driver
    for name, fault in points(promises, busybox, program, last=False):
        fatal = Fault(fault.at, KILL, program, fault.call)
        answer = driver.do("run", definition=task_of(busybox, SCRIPT), fault=fatal)
        what = describe(driver)
        if promises.tried % 2:
            adopted = driver.do("adopt")
            assert "adopted" in adopted, (name, what, adopted)
        promises.check(f"killed at {name}: {what}", answer, (7, 126, 127))
    promises.assert_kept(at_least=1 if CHOSEN else 30)


@pytest.mark.parametrize("piece", ["pull", "stop"])
def test_faults_of_a_pull_and_of_a_stop(promises: Promises, busybox: str, piece: str) -> None:
    """A call that fails and a kill, by turns. A pull's worker process counts as Python too."""
    driver = promises.driver
    chosen = list(points(promises, busybox, PYTHON, last=piece == "stop", piece=piece))
    for name, fault in chosen if CHOSEN else chosen[:: len(chosen) // 12]:
        for what in (fault.what, KILL) if CHOSEN else (KILL if promises.tried % 2 else fault.what,):
            answer = live(driver, piece, busybox, Fault(fault.at, what, PYTHON, fault.call))
            said = f"{piece}: {'killed at' if what == KILL else 'fails:'} {name} {describe(driver)}"
            promises.check(said, answer, (137,))
    promises.assert_kept(at_least=1 if CHOSEN else 10)


def test_a_pull_without_a_thread(promises: Promises, busybox: str) -> None:
    """It was no error of ours that told so."""
    driver = promises.driver
    for name, fault in points(promises, busybox, PYTHON, last=False, piece="pull"):
        if name.startswith("clone3 "):
            answer = live(driver, "pull", busybox, fault)
            promises.check(f"pull: fails: {name}", answer, ())
            assert "cannot fetch or load an image" in answer["message"]
    promises.assert_kept(at_least=1)
