"""What one task can use up: for itself only."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.runtime import launch
from tests.attacks.conftest import (
    TIMEOUT_S,
    container,
    execute,
    run_cli,
    task_of,
    text_of,
    until_line,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]


@contextlib.contextmanager
def two_tasks(settings: Settings, image: str, *hostile: str) -> Iterator[tuple[str, Task]]:
    """A task that keeps what it got, what it said, and a victim beside it."""
    with (
        run_task(task_of(container(image, *hostile)), settings=settings) as attacker,
        run_task(task_of(container(image, "sleep", "300")), settings=settings) as victim,
    ):
        victim.until("RUNNING", TIMEOUT_S)
        yield until_line(attacker, "E")[-1], victim


def count_of(text: str) -> int:
    return int(text.split()[0])


def own_inotify_instances() -> int:
    """How many instances this process gets, up to 8."""
    library = ctypes.CDLL(None, use_errno=True)
    got = []
    while len(got) < 8 and (fd := library.inotify_init1(os.O_CLOEXEC)) >= 0:
        got.append(fd)
    for fd in got:
        os.close(fd)
    return len(got)


def test_inotify_instances_are_the_tasks_own(ground: Settings, attack_image: str) -> None:
    """fs.inotify.max_user_instances is of a user on the host; a user namespace's use is also
    charged to whoever made it (ucounts, Linux 4.9). Made by root, 128 instances of one task were
    all that root's programs and every other task had."""
    with two_tasks(ground, attack_image, "attack", "inotify-hold") as (said, victim):
        assert said.endswith(errno.errorcode[errno.EMFILE]), said
        got = count_of(execute(ground, victim, "attack", "inotify"))
        assert got == count_of(said)
        assert own_inotify_instances() == 8


def test_message_queues_are_the_tasks_own(ground: Settings, attack_image: str) -> None:
    """RLIMIT_MSGQUEUE counts the same way (Linux 5.14): 819,200 bytes for root and all tasks."""
    hold = "attack queues; echo End; while :; do sleep 0.2; done"
    with two_tasks(ground, attack_image, "sh", "-c", hold) as (_, victim):
        got = execute(ground, victim, "attack", "queues")
        assert count_of(got) > 0, got


def test_queued_signals_are_the_tasks_own(ground: Settings, attack_image: str) -> None:
    """RLIMIT_SIGPENDING counts the same way (Linux 5.14)."""
    with two_tasks(ground, attack_image, "attack", "signals-hold") as (said, victim):
        assert said.endswith(errno.errorcode[errno.EAGAIN]), said
        assert count_of(execute(ground, victim, "attack", "signals")) == count_of(said)
