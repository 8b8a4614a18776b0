"""The bare limit of a launch: its system calls again, made by a C program (csrc/bench) that reads
no definition and decides nothing, with the same shim and the same plan.

A launch of ours is recorded (its groups' files, its image, its plan), and written down as steps
with what else it does to the kernel: state files, slot, storage, interface, firewall, endpoint.
Storage is made beside the rest by a thread, as ours is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from unittest import mock

import fargatelite
from benchmarks.report import BENCH
from fargatelite.cgroups import tree
from fargatelite.images import mount
from fargatelite.network import rules, task_rules
from fargatelite.network.slot import METADATA_ADDRESS, Slot
from fargatelite.runtime import launch
from fargatelite.settings import Settings
from fargatelite.shim import _PROGRAM, Shim
from fargatelite.storage.ephemeral import TEMPLATE_VERSION

SOURCE = Path(__file__).parent.parent / "csrc" / "bench" / "bare_launch.c"
TIMEOUT_S = 60
LEDGER_BYTES = 2**20
CONNECTIONS = 8192


class Recording:
    """What one launch told the kernel, as far as the steps need it."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.plan = b""
        self.image: list[Path] = []
        self.slot: Slot | None = None
        self.files: dict[str, int] = {}


@contextlib.contextmanager
def _recording(found: Recording) -> Iterator[None]:
    make, write, start, mounted = os.mkdir, tree.write_text, Shim.start_process, mount._mount_files
    provision = launch.provision

    def record_mkdir(path: Any, *more: Any, **named: Any) -> None:
        make(path, *more, **named)
        if str(path).startswith("/sys/fs/cgroup/"):
            found.groups.append(["mkdir", str(path)])

    def record_write(file: str, text: str) -> None:
        write(file, text)
        found.groups.append(["write", file, text])

    def record_start(self: Shim, number: int, plan: bytes, **named: Any) -> None:
        found.plan = plan
        start(self, number, plan, **named)

    def record_mount(image: Path, blobs: Sequence[Path], target: Path, *, loop: bool) -> None:
        mounted(image, blobs, target, loop=loop)
        found.image = [target, image, *blobs]

    def record_provision(settings: Settings, run: Any, *more: Any, **named: Any) -> Any:
        launched = provision(settings, run, *more, **named)
        found.slot = launched.slot
        return launched

    with (
        mock.patch.object(os, "mkdir", record_mkdir),
        mock.patch.object(tree, "write_text", record_write),
        mock.patch.object(Shim, "start_process", record_start),
        mock.patch.object(mount, "_mount_files", record_mount),
        mock.patch.object(launch, "provision", record_provision),
    ):
        yield


class _Steps:
    """Steps, and what undoes them."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.undo: list[list[str]] = []

    def add(self, *words: object, undo: tuple[object, ...] = ()) -> None:
        self.lines.append([str(word) for word in words])
        if undo:
            self.undo.append([str(word) for word in undo])

    def mkdir(self, path: Path) -> None:
        self.add("mkdir", path, undo=("rmdir", path))

    def create(self, path: Path, size: int) -> None:
        self.add("create", path, size, undo=("unlink", path))

    def text(self) -> str:
        lines = [*self.lines, ["shutdown"], *reversed(self.undo)]
        return "".join("\t".join(line) + "\n" for line in lines)


def _steps(base: Path, run: Path, settings: Settings, task_id: str, found: Recording) -> _Steps:
    slot = found.slot
    assert slot is not None
    steps = _Steps()
    own, records = settings.runs / task_id, settings.records / task_id
    layer, state, events = settings.layers / task_id, own / "state.json", records / "events.jsonl"
    container_groups = next(
        at for at, step in enumerate(found.groups) if step[1].endswith(f"{task_id}/main")
    )
    groups = [[], []]  # type: list[list[list[str]]]
    for at, step in enumerate(found.groups):
        groups[at >= container_groups].append(step)

    # By name of the host's end; `tasks` guards what comes from it.
    admission = [
        f"add element {rules.TABLE} {item.text()}" for item in rules.elements_of(slot, (), ())
    ]
    (base / "host.nft").write_text(
        "\n".join([*rules.base_rules(slot.gateway), *rules.count_rules(CONNECTIONS), *admission])
    )
    (base / "host-end.nft").write_text(f"delete table {rules.TABLE}")
    (base / "task.nft").write_text(task_rules._REDIRECT)
    (base / "plan").write_bytes(found.plan)

    def add_groups(made: list[list[str]]) -> None:
        for step in made:
            steps.add(*step, undo=("rmdir", step[1]) if step[0] == "mkdir" else ())
            if step[0] == "write" and "devices" not in step[1]:
                steps.add("read", step[1])

    steps.mkdir(own)
    steps.mkdir(own / "files")
    steps.mkdir(own / "requests")
    steps.create(own / "lock", 0)
    steps.mkdir(records)
    steps.mkdir(records / "logs")
    steps.add("replace", state, 3800, undo=("unlink", state))
    slots = run / "bare-slots"
    steps.mkdir(slots)
    steps.add("lock", slots / ".lock", undo=("unlink", slots / ".lock"))
    for name, size in (("network.json", 40), ("0.json", 93)):
        steps.add("create", slots / f".{name}", size)
        steps.add("link", slots / f".{name}", slots / name, undo=("unlink", slots / name))
    steps.add("symlink", "0.json", slots / task_id, undo=("unlink", slots / task_id))
    steps.add("unlock")
    for name in ("exits", "shim.sock"):
        steps.undo.append(["unlink", str(own / name)])
    steps.add("shim", own, slot.uid_base, slot.uid_count)
    backing = settings.storage / f"{task_id}.ext4"
    template = settings.cache / f"ephemeral-20-v{TEMPLATE_VERSION}.ext4"
    steps.undo += [["unlink", str(backing)], ["rmdir", str(layer)], ["umount", str(layer)]]
    steps.add("storage", template, backing, layer)
    add_groups(groups[0])
    steps.add("ready")
    steps.add("read", "/proc/thread-self/net/route")
    steps.add("nft", base / "host.nft", undo=("nft", base / "host-end.nft"))
    steps.add(
        "veth", slot.host_interface, slot.task_interface, slot.address, slot.gateway,
        METADATA_ADDRESS, undo=("unveth", slot.host_interface),
    )  # fmt: skip
    steps.add("endpoint", METADATA_ADDRESS, task_rules.METADATA_LISTEN_PORT, base / "task.nft")
    for name in ("hosts", "hostname", "resolv.conf"):
        steps.create(own / "files" / name, 60)
        steps.add("chown", own / "files" / name, slot.uid_base)
    add_groups(groups[1])
    steps.add("replace", state, 3800)
    steps.add("append", events, 1300, undo=("unlink", events))
    target, *sources = found.image
    for path in (target.parent, target.parent / "users", target):
        steps.mkdir(path)
    steps.create(target.parent / "users" / task_id, 0)
    steps.add("erofs", target, *sources, undo=("umount", target))
    for _ in range(3):
        steps.add("replace", state, 3800)
    steps.add("append", events, 1300)
    steps.add("stored")
    for path in ("", "lower", "upper", "work", "merged"):
        steps.add("mkdir", layer / "main" / path)
    steps.add("chown", layer / "main" / "upper", slot.uid_base)
    ledger = base / "bare.ledger"
    steps.add("ledger", ledger, LEDGER_BYTES, undo=("unlink", ledger))
    guest = own / "guest-main.plan"
    steps.add("replace", guest, 2000, undo=("unlink", guest))
    steps.undo.append(["unlink", str(records / "logs" / "main.log")])
    steps.add("start", base / "plan")
    steps.add("started")
    steps.add("exited")
    return steps


class BareLaunch:
    """The C program, waiting for rounds."""

    def __init__(
        self, base: Path, run: Path, settings: Settings, definition: dict[str, Any]
    ) -> None:
        """`settings`: of a store that has the image; nothing may run there. Raises: OSError,
        CalledProcessError."""
        base.mkdir(parents=True, exist_ok=True)
        found = Recording()
        with _recording(found):
            task = fargatelite.run_task(definition, pull="missing", settings=settings)
            if task.wait(TIMEOUT_S) != 0:
                raise RuntimeError(f"the recorded task failed: {task.stopped_reason}")
        shutil.rmtree(settings.records / task.id)
        steps = _steps(base, run, settings, task.id, found)
        (base / "steps").write_text(steps.text())
        program = BENCH / "bare_launch"
        subprocess.run(["gcc", "-O2", "-o", program, SOURCE, "-ldl", "-lpthread"], check=True)
        self._process = subprocess.Popen(
            [program, _PROGRAM, base / "steps"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def round(self) -> tuple[float, float]:
        """Milliseconds until the program ran, and until its end was known; all is removed then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        started, exited = self._process.stdout.readline().split()
        return float(started), float(exited)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=TIMEOUT_S)
