"""What one task can use up: for itself only."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.cgroups.detect import detect_driver
from fargatelite.host import Host
from fargatelite.names import cgroup_path
from fargatelite.runtime import launch
from fargatelite.sandbox.plan import Op, Plan
from tests.attacks.conftest import (
    TIMEOUT_S,
    Weakness,
    container,
    edit_plans,
    execute,
    task_of,
    text_of,
    until_line,
)

pytestmark = [pytest.mark.root, pytest.mark.registry]

LINUX = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


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
    all that root's programs and every other task had. No second half: without the namespace every
    program of the host's root that watches files would fail meanwhile, this test's runtime first;
    message queues and signals, which are counted the same way, have theirs."""
    with two_tasks(ground, attack_image, "attack", "inotify-hold") as (said, victim):
        assert said.endswith(errno.errorcode[errno.EMFILE]), said
        got = count_of(execute(ground, victim, "attack", "inotify"))
        assert got == count_of(said)
        assert own_inotify_instances() == 8


def left_to_the_next(
    settings: Settings, image: str, patch: pytest.MonkeyPatch, attempt: str
) -> int:
    """How many of a count a task gets beside one that has all of it, both without namespaces of
    users: root of each is the host's."""
    edit_plans(patch, Weakness(frozenset({"user namespace"})).edit)
    hold = f"attack {attempt}-hold" if attempt == "signals" else f"attack {attempt}; sleep 300"
    with run_task(task_of(container(image, "sh", "-c", hold)), settings=settings) as attacker:
        assert count_of(until_line(attacker, "E")[-1]) > 0
        return count_of(text_of(run(settings, image, "attack", attempt)))


def test_message_queues_are_the_tasks_own(
    ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_MSGQUEUE counts the same way (Linux 5.14): 819,200 bytes for root and all tasks."""
    hold = "attack queues; echo End; while :; do sleep 0.2; done"
    with two_tasks(ground, attack_image, "sh", "-c", hold) as (_, victim):
        got = execute(ground, victim, "attack", "queues")
        assert count_of(got) > 0, got
    assert left_to_the_next(ground, attack_image, monkeypatch, "queues") == 0


def test_queued_signals_are_the_tasks_own(
    ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_SIGPENDING counts the same way (Linux 5.14)."""
    with two_tasks(ground, attack_image, "attack", "signals-hold") as (said, victim):
        assert said.endswith(errno.errorcode[errno.EAGAIN]), said
        assert count_of(execute(ground, victim, "attack", "signals")) == count_of(said)
    assert left_to_the_next(ground, attack_image, monkeypatch, "signals") == 0


def run(settings: Settings, image: str, *command: str, **more: object) -> Task:
    task = run_task(task_of(container(image, *command, **more)), settings=settings)
    task.wait(TIMEOUT_S)
    return task


def test_fork_bomb(ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pids.max of the task's group (Linux 4.3). With the bound out of the way the same bomb makes
    all that it wants; with it at 64 it ends there."""
    assert text_of(run(ground, attack_image, "attack", "processes")) == "5000 0\n"
    monkeypatch.setattr(launch, "PIDS_PER_TASK", 64)
    assert text_of(run(ground, attack_image, "attack", "processes")) == "63 EAGAIN\n"


@pytest.mark.parametrize(
    ("attempt", "free"),
    [
        (("memory",), None), (("sockets",), "EMFILE"), (("fill", "/dev/shm/file"), "ENOSPC"),
        (("inodes", "/dev/mqueue"), None),
    ],
    ids=["memory", "sockets", "fill", "inodes"],
)  # fmt: skip
def test_memory_bomb(
    ground: Settings,
    attack_image: str,
    attempt: tuple[str, ...],
    free: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Anonymous memory, kernel memory of unread sockets, files in memory: all of it is charged to
    the container's group, and only that container pays. Without the group's limit what has another
    bound goes on to that; endless memory would be the host's."""
    task = run(ground, attack_image, "attack", *attempt, memory=24, ulimits=[
        {"name": "nofile", "softLimit": 1024, "hardLimit": 1024}])  # fmt: skip
    said = text_of(task)
    if attempt[0] in ("sockets", "inodes") and said:
        assert said.split()[1] in {"EMFILE", "EACCES", "EPERM", "ENOSPC"}, said
    else:
        assert task.exit_code == 137, said
        reason = task.containers["app"].reason or ""
        assert "OutOfMemory" in reason, reason
    if free is None:
        return
    limits = launch.container_limits
    monkeypatch.setattr(
        launch, "container_limits",
        lambda item: msgspec.structs.replace(limits(item), memory_bytes=None),
    )  # fmt: skip
    task = run(ground, attack_image, "attack", *attempt, memory=24, ulimits=[
        {"name": "nofile", "softLimit": 1024, "hardLimit": 1024}])  # fmt: skip
    assert (task.exit_code, text_of(task).split()[1]) == (0, free)


def test_files_in_memory_have_a_size(
    ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/shm is 64 MiB (contract 4.3); /dev too, where anything may be made. It is the size of
    the mount that says so: with another one the same attempt goes on."""
    script = "attack fill /dev/shm/a; attack fill /dev/a; attack fill /sys/fs/cgroup/a"
    said = text_of(run(ground, attack_image, "sh", "-c", script)).splitlines()
    assert said == ["64 ENOSPC", "64 ENOSPC", "EROFS"]

    def enlarge(plan: Plan) -> Plan:
        return tuple(
            Op("mount", (*item.values[:-1], tuple(map(_enlarged, item.values[-1]))))
            if item.name == "mount"
            else item
            for item in plan
        )

    edit_plans(monkeypatch, enlarge)
    said = text_of(run(ground, attack_image, "sh", "-c", script)).splitlines()
    assert said == ["96 ENOSPC", "96 ENOSPC", "EROFS"]


def _enlarged(option: str) -> str:
    return option.replace(f"size={64 << 20}", f"size={96 << 20}")


def test_inodes_in_memory_are_charged(ground: Settings, attack_image: str) -> None:
    """An endless number of empty files in /dev/shm: kernel memory (Linux 4.5). What takes this away
    is `cgroup.memory=nokmem` at boot, which `check --security` names; there is no second half."""
    task = run(ground, attack_image, "attack", "inodes", "/dev/shm", memory=24)
    assert (task.exit_code, text_of(task)) == (137, "")


@pytest.mark.skipif(detect_driver().version != 1, reason="cgroup v2 bounds this by itself (4.2)")
@pytest.mark.skipif(LINUX < (6, 2), reason="strict_limit of a device came with Linux 6.2")
def test_what_the_disk_has_not_yet(
    ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory full of what is to be written: reclaim, which finds nothing else in the group, has
    every disk of the host written back, and other tasks wait for theirs (25 times their p99). A
    fifth of the task's memory is all that may wait for its disk."""

    def unwritten_mib() -> int:
        script = "dd if=/dev/zero of=/file bs=1M count=600 2>/dev/null; echo End; exec sleep 300"
        made = run_task(
            task_of(container(attack_image, "sh", "-c", script), cpu="512", memory="1024"),
            settings=ground,
        )
        with made as task:
            task.until("RUNNING", TIMEOUT_S)
            group = detect_driver().directory("memory", cgroup_path(task.state.task_id))
            most = 0
            is_over = False
            while not is_over:
                is_over = "End" in text_of(task)
                found = dict(
                    line.split() for line in Path(f"{group}/memory.stat").read_text().splitlines()
                )
                most = max(most, int(found["total_dirty"]) + int(found["total_writeback"]))
            return most >> 20

    # What one process has in its hands comes on top: the kernel looks every now and then.
    assert unwritten_mib() <= 1024 // 5 + 16
    monkeypatch.setattr(launch, "_bound_unwritten", lambda *_: None)
    assert unwritten_mib() > 1024 // 5 + 64


def test_descriptors(ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as Fargate gives (contract 4.3), or this host may; with another limit, so many."""
    limit = int(text_of(run(ground, attack_image, "sh", "-c", "ulimit -n")))
    assert limit <= 65535
    said = text_of(run(ground, attack_image, "attack", "descriptors-all"))
    assert said == f"{limit - 3} EMFILE\n"
    nofile = resource.RLIMIT_NOFILE
    other = limit + 1000 if Host.probe().can_raise_limits else limit - 1000

    def change_limit(plan: Plan) -> Plan:
        return tuple(
            Op("rlimit", (nofile, other, other))
            if item.name == "rlimit" and item.values[0] == nofile
            else item
            for item in plan
        )

    edit_plans(monkeypatch, change_limit)
    said = text_of(run(ground, attack_image, "attack", "descriptors-all"))
    assert said == f"{other - 3} EMFILE\n"


def test_the_host_is_not_touched_by_a_full_log(
    ground: Settings, attack_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of output is bounded per container (`log_max_bytes`), whatever it writes; a shim that
    is told of no bound keeps all of it."""
    settings = Settings(
        data_root=ground.data_root, run_root=ground.run_root, log_max_bytes=1 << 20, log_max_files=2
    )
    script = (
        "i=0; while [ $i -lt 200 ]; do head -c 65536 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done"
    )

    def kept_bytes() -> int:
        task = run(settings, attack_image, "sh", "-c", script)
        assert task.exit_code == 0
        return sum(path.stat().st_size for path in (settings.records / task.id / "logs").iterdir())

    assert kept_bytes() <= 3 << 20, "12.5 MiB were written"

    def unbound(plan: Plan) -> Plan:
        return tuple(
            Op("log", (item.values[0], 0, 0)) if item.name == "log" else item for item in plan
        )

    edit_plans(monkeypatch, unbound)
    assert kept_bytes() > 12 << 20
