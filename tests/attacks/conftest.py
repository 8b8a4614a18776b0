"""A hostile program in real tasks: with all defences, and with just one of them taken away.

`defended` and `weakened(...)` are the answers of every attempt of attack.c (`NAME RESULT`), of one
task each; tests pick what they are about. What is taken away is taken from the plan on its way to
the shim, or from the limits of the groups: nothing in the product can do that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, Task, run_task, shim
from fargatelite.runtime import launch, work
from fargatelite.sandbox.compile import ContainerSpec, compile_container
from fargatelite.sandbox.plan import Op, Plan
from tests.fixtures.host import snapshot
from tests.fixtures.images import RunningRegistry, build_oci_layout, busybox_files, tar_layer
from tests.fixtures.patience import patient

TIMEOUT_S = patient(60)
ROOT = Path(__file__).parents[2]
CLONE_NEWPID = 0x20000000
SOURCE = Path(__file__).parent / "attack.c"
EVERY_CAPABILITY = next(
    int(line.split()[1], 16)
    for line in Path("/proc/self/status").read_text().splitlines()
    if line.startswith("CapPrm:")
)
"""All that we have ourselves."""

Answers = dict[str, str]


@pytest.fixture(scope="session")
def attack_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """attack.c, static: it runs in any image."""
    program = tmp_path_factory.mktemp("attack") / "attack"
    command = ["cc", "-std=gnu11", "-O1", "-Wall", "-static", "-o", program, SOURCE]
    subprocess.run(command, check=True)
    return program.read_bytes()


@pytest.fixture(scope="session")
def attack_image(
    registry: RunningRegistry, attack_program: bytes, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """busybox with the program in it."""
    files = busybox_files() | {"bin/attack": attack_program}
    path = tmp_path_factory.mktemp("attack image") / "layout"
    return registry.push(build_oci_layout(path, [tar_layer(files)]), "attack")


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Roots for all tasks of this folder; nothing of them may be left at the end."""
    before = snapshot()
    path = tmp_path_factory.mktemp("attacked")
    yield Settings(data_root=str(path / "data"), run_root=str(path / "run"))
    after = snapshot()
    left = {kind: after[kind] - before[kind] for kind in ("groups", "interfaces", "shims")}
    assert not any(left.values()), left


def container(image: str, *command: str, name: str = "app", **more: Any) -> dict[str, Any]:
    """A container that runs a command and stops fast."""
    return {"name": name, "image": image, "command": list(command), "stopTimeout": 2, **more}


def task_of(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A Fargate task of them."""
    return {
        "family": "attack", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
        "cpu": "1024", "memory": "2048", "containerDefinitions": list(containers), **more,
    }  # fmt: skip


def text_of(task: Task, name: str = "app") -> str:
    """A container's output."""
    return "".join(
        line.text.decode("utf-8", "replace") + ("" if line.is_partial else "\n")
        for line in task.logs(name)
    )


def answers_of(text: str) -> Answers:
    """`NAME RESULT` lines; all of them are there."""
    lines = text.splitlines()
    assert "all done" in lines, text[-2000:]
    return dict(line.split(" ", 1) for line in lines if " " in line)


def until_line(task: Task, wanted: str, name: str = "app") -> list[str]:
    """A container's lines up to the one that holds `wanted`."""
    late = threading.Timer(TIMEOUT_S, task.stop)
    late.start()
    seen = []
    try:
        for line in task.logs(name, follow=True):
            seen.append(line.text.decode("utf-8", "replace"))
            if wanted in seen[-1]:
                return seen
    finally:
        late.cancel()
    raise AssertionError(f"no {wanted!r} in {seen}; {task.stopped_reason}, {task.containers}")


def run_cli(settings: Settings, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line with these roots."""
    return subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
         "--run-root", settings.run_root, *arguments],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def execute(settings: Settings, task: Task, *command: str, name: str = "app") -> str:
    """Output of a command through `fargatelite exec`."""
    done = run_cli(settings, "exec", "--force", task.id, "-c", name, *command)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def hostile_task(ground: Settings, attack_image: str) -> Iterator[Task]:
    """A task with every defence: root, another user, and one with SYS_PTRACE, all of which attack;
    their health check does so too."""
    script = "attack all; while :; do sleep 0.2; done"
    check = {"command": ["CMD", "attack", "all-to", "/proc/1/fd/1"], "interval": 5, "timeout": 4}
    made = run_task(
        task_of(
            container(attack_image, "sh", "-c", script),
            container(attack_image, "sh", "-c", script, name="user", user="app"),
            container(
                attack_image, "sh", "-c", script, name="debugger",
                linuxParameters={"capabilities": {"add": ["SYS_PTRACE"]}},
            ),
            container(
                attack_image, "sh", "-c", "while :; do sleep 0.2; done", name="checked",
                healthCheck=check,
            ),
        ),
        settings=ground,
    )  # fmt: skip
    with made as task:
        task.until("RUNNING", TIMEOUT_S)
        yield task


@pytest.fixture(scope="session")
def defended(hostile_task: Task) -> Answers:
    """As root of a container, with every defence."""
    return answers_of("\n".join(until_line(hostile_task, "all done")))


@pytest.fixture(scope="session")
def as_user(hostile_task: Task) -> Answers:
    """As another user."""
    return answers_of("\n".join(until_line(hostile_task, "all done", "user")))


@pytest.fixture(scope="session")
def as_debugger(hostile_task: Task) -> Answers:
    """As root with SYS_PTRACE."""
    return answers_of("\n".join(until_line(hostile_task, "all done", "debugger")))


@pytest.fixture(scope="session")
def in_health_check(hostile_task: Task) -> Answers:
    """As a health check."""
    return answers_of("\n".join(until_line(hostile_task, "all done", "checked")))


@pytest.fixture(scope="session")
def in_exec(ground: Settings, hostile_task: Task, defended: Answers) -> Answers:
    """As a process of `fargatelite exec`."""
    return answers_of(execute(ground, hostile_task, "attack", "all"))


def _everything(item: Op) -> Op:
    if item.name == "capabilities":
        return Op(item.name, (EVERY_CAPABILITY, *item.values[1:]))
    return item


def _inheritable(item: Op) -> Op:
    if item.name == "capabilities":
        return Op(item.name, (item.values[0], item.values[0], item.values[0]))
    return item


def _host_processes(item: Op) -> Op:
    if item.name == "namespaces" and isinstance(item.values[0], int):
        return Op(item.name, (item.values[0] & ~CLONE_NEWPID, *item.values[1:]))
    return item


DEFENCES: dict[str, tuple[str, ...]] = {
    "filter": ("seccomp",),
    "masks": ("mask", "readonly"),
    "user namespace": ("user_namespace",),
    "capabilities": ("bounding",),
    "network namespace": ("join_network",),
    "devices": (),
    "no inheritance": (),
    "pid namespace": (),
}
"""What a defence is in a plan; `devices` is in the groups."""

_CHANGED = {
    "capabilities": _everything, "no inheritance": _inheritable, "pid namespace": _host_processes,
}  # fmt: skip
"""Operations that stay and say something else."""


def edit_plans(patch: pytest.MonkeyPatch, edit: Callable[[Plan], Plan]) -> None:
    """Containers start by the edited plan until the patch is undone."""

    def compile_weakened(spec: ContainerSpec) -> Plan:
        return edit(compile_container(spec))

    patch.setattr(work, "compile_container", compile_weakened)


def before_the_root(plan: Plan) -> Plan:
    """The plan of a runtime that mounts by path, below the container's root, before it makes that
    the root: as all those did whose CVEs name a link."""
    names = [item.name for item in plan]
    at = names.index("pivot_root")
    layers = str(plan[names.index("chdir")].values[0])
    root = f"{layers}/{plan[at].values[0]}"
    moved, kept = [], []
    for item in plan[at + 1 :]:
        if item.name not in _PATHS:
            kept.append(item)
            continue
        values = list(item.values)
        path, resolve = _PATHS[item.name]
        values[path] = f"{root}{values[path]}"
        if resolve is not None:
            values[resolve] = 0
        moved.append(Op(item.name, tuple(values)))
    return (*plan[:at], *moved, plan[at], *kept)


_PATHS: dict[str, tuple[int, int | None]] = {
    "mkdir": (0, 4), "mount": (2, 4), "mknod": (0, None), "symlink": (1, None), "touch": (0, 4),
    "move_mount": (1, 2), "mask": (0, None), "readonly": (0, None),
}  # fmt: skip
"""Where an operation has its path, and where the flags of its resolution."""


def weaken_shim(patch: pytest.MonkeyPatch, directory: Path, *edits: tuple[str, str, str]) -> None:
    """Tasks get a shim with these changes (file, text, other text) until the patch is undone; it
    lies in `directory`. Each text is there once, so that a defence that moved is noticed."""
    copied = directory / "shim"
    shutil.copytree(ROOT / "csrc" / "shim", copied)
    for file, old, new in edits:
        text = (copied / file).read_text()
        assert text.count(old) == 1, (file, old)
        (copied / file).write_text(text.replace(old, new))
    program = directory / "weakened-shim"
    subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-static", "-I", ROOT / "csrc" / "formats", "-o", program,
         *sorted(copied.glob("*.c"))],
        check=True,
    )  # fmt: skip
    opened = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    number = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(opened)
    patch.setattr(shim, "_sealed_program", lambda: number)


class Weakness(msgspec.Struct, frozen=True):
    """Takes defences away from whatever is started while it is in force."""

    missing: frozenset[str]

    def edit(self, plan: Plan) -> Plan:
        """The plan without their operations."""
        gone = {name for defence in self.missing for name in DEFENCES[defence]}
        kept = tuple(item for item in plan if item.name not in gone)
        for defence in self.missing & _CHANGED.keys():
            kept = tuple(map(_CHANGED[defence], kept))
        return kept

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        """Until the patch is undone."""

        edit_plans(patch, self.edit)
        if "devices" in self.missing:
            for name in ("task_limits", "container_limits"):
                patch.setattr(launch, name, _without_devices(getattr(launch, name)))


def _without_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    def limits(*arguments: Any, **more: Any) -> Any:
        return msgspec.structs.replace(function(*arguments, **more), devices=False)

    return limits


@pytest.fixture(scope="session")
def weakened(ground: Settings, attack_image: str) -> Callable[..., Answers]:
    """The answers as root of a container without these defences (names of DEFENCES)."""
    known: dict[frozenset[str], Answers] = {}

    def answers(*missing: str) -> Answers:
        key = frozenset(missing)
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                Weakness(key).apply(patch)
                task = run_task(task_of(container(attack_image, "attack", "all")), settings=ground)
                task.wait(TIMEOUT_S)
            assert task.exit_code == 0, (task.stopped_reason, task.containers["app"].reason)
            known[key] = answers_of(text_of(task))
        return known[key]

    return answers


class Attempts:
    """The answers of each way in."""

    def __init__(
        self, ways: dict[str, Answers], debugger: Answers, weakened: Callable[..., Answers]
    ) -> None:
        self._ways = ways
        self.defended, self.as_user = ways["root"], ways["user"]
        self.in_exec = ways["exec"]
        self.as_debugger = debugger
        self.weakened = weakened

    def need(self, name: str, answer: str | None = None) -> None:
        """Skips on a machine that has no such entry to the kernel."""
        if name not in self.defended or (answer is not None and self.defended[name] != answer):
            pytest.skip(f"{name} is not of this machine: {self.defended.get(name)}")

    def fail(
        self,
        name: str,
        answer: str,
        *,
        without: tuple[str, ...] = (),
        then: Collection[str] = (),
        or_absent: bool = False,
    ) -> None:
        """Asserts the answer for each way in, and one of `then` without these defences. A user may
        be refused earlier; with `or_absent` this kernel may have no such file at all."""
        absent = {"ENOENT"} if or_absent else set()
        for way, answers in self._ways.items():
            allowed = {answer} | absent
            if way == "user":
                allowed |= {"EPERM", "EACCES", "cannot write the attribute", "zeroes"}
            assert answers[name] in allowed, (way, name, answers[name])
        if without:
            told = self.weakened(*without)[name]
            assert told in set(then) | absent, (name, told)
            if told in absent:
                assert self.defended[name] in absent


@pytest.fixture(scope="session")
def attempts(
    defended: Answers,
    as_user: Answers,
    in_exec: Answers,
    in_health_check: Answers,
    as_debugger: Answers,
    weakened: Callable[..., Answers],
) -> Attempts:
    """All of them."""
    ways = {"root": defended, "user": as_user, "exec": in_exec, "health check": in_health_check}
    return Attempts(ways, as_debugger, weakened)
