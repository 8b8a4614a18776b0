"""What a program did to a directory, as strace(1) saw it, and what a power cut could leave of it.

As ALICE has it (Pillai et al., OSDI 2014): the operations on names and the syncs are recorded; a
state that a disk may be in after a power cut is a prefix of them in which any one operation that no
fsync(2) of its directory has made durable is missing, and in which a file that was not synced is
empty, zeros, or whole.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,"
    "fsync,fdatasync"
)
_LINE = re.compile(r"^(\d+\.\d+) (\w+)\((.*)\)\s+= (-?\d+)(?:<(.*)>)?")
_ARGUMENT = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^>]|>(?!,))*)>, )?"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"^\d+<(.*)>$")


@dataclass(frozen=True)
class Operation:
    """`mkdir`, `create`, `rename`, `link`, `unlink`, or `sync` of a file or a directory."""

    kind: str
    path: str
    to: str = ""


@dataclass(frozen=True)
class State:
    """What the disk may hold: `files` whole, `torn` as a power cut leaves what was not synced."""

    what: str
    directories: frozenset[str]
    files: frozenset[tuple[str, int]]
    torn: frozenset[str]


def record(command: Sequence[str | Path], root: Path, log: Path) -> list[Operation]:
    """Runs a command and returns what it, and all that came of it, did below `root`, in order."""
    log.mkdir()
    subprocess.run(
        ["strace", "-ff", "-y", "-qq", "-s", "4096", "--seccomp-bpf", "-e", f"trace={CALLS}",
         "--absolute-timestamps=format:unix,precision:ns", "-o", log / "of", *command],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    lines: list[tuple[float, str]] = []
    for path in log.iterdir():
        for line in path.read_text(errors="replace").splitlines():
            found = _LINE.match(line)
            if found and int(found[4]) >= 0:
                lines.append((float(found[1]), line))
    known: set[str] = set()
    made = []
    for _, line in sorted(lines):
        for operation in _parse(line, os.fspath(root) + "/", known):
            made.append(operation)
    return made


def _parse(line: str, root: str, known: set[str]) -> Iterator[Operation]:
    found = _LINE.match(line)
    assert found is not None
    call, arguments, result = found[2], found[3], found[5]
    paths = [
        name if name.startswith("/") else f"{base}/{name}"
        for base, name in _ARGUMENT.findall(arguments)
    ]
    if call in ("fsync", "fdatasync"):
        descriptor = _DESCRIPTOR.match(arguments)
        paths = [descriptor[1]] if descriptor else []
    if call in ("openat", "open", "creat"):
        if "O_CREAT" not in arguments or result in known:
            return
        paths = [result] if result else []
    if not paths or not all((path + "/").startswith(root) for path in paths):
        return
    short = [(path + "/").removeprefix(root).rstrip("/") for path in paths]
    if call in ("openat", "open", "creat"):
        known.add(paths[0])
        yield Operation("create", short[0])
    elif call.startswith("mkdir"):
        yield Operation("mkdir", short[0])
    elif call.startswith("rename"):
        yield Operation("rename", short[0], short[1])
        for path in [item for item in known if (item + "/").startswith(paths[0] + "/")]:
            known.discard(path)
            known.add(paths[1] + path.removeprefix(paths[0]))
    elif call.startswith("link"):
        yield Operation("link", short[0], short[1])
    elif call in ("unlink", "unlinkat", "rmdir"):
        known.discard(paths[0])
        yield Operation("unlink", short[0])
    else:
        yield Operation("sync", short[0])


class _Disk:
    """Names after some operations; a file is the number of the operation that created it."""

    def __init__(self) -> None:
        self.directories: set[str] = {""}
        self.files: dict[str, int] = {}
        self.synced: set[int] = set()

    def apply(self, number: int, operation: Operation) -> None:
        path, to = operation.path, operation.to
        has_parent = os.path.dirname(to or path) in self.directories
        match operation.kind:
            case "mkdir" if has_parent:
                self.directories.add(path)
            case "create" if has_parent and path not in self.files:
                self.files[path] = number
            case "rename" if has_parent and path in self.files:
                self.files[to] = self.files.pop(path)
            case "rename" if has_parent and path in self.directories:
                self.directories = {_moved(item, path, to) for item in self.directories}
                self.files = {_moved(item, path, to): file for item, file in self.files.items()}
            case "link" if has_parent and path in self.files:
                self.files[to] = self.files[path]
            case "unlink" if path in self.files:
                del self.files[path]
            case "unlink" if not any(
                item.startswith(path + "/") for item in (*self.files, *self.directories)
            ):
                self.directories.discard(path)
            case "sync" if path in self.files:
                self.synced.add(self.files[path])


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(old + "/") else path


def final_names(operations: Sequence[Operation]) -> dict[int, str]:
    """Where each file that still has a name is at the end."""
    disk = _Disk()
    for number, operation in enumerate(operations):
        disk.apply(number, operation)
    return {file: path for path, file in disk.files.items()}


def crash_states(operations: Sequence[Operation]) -> Iterator[State]:
    """Every state that differs from those before."""
    seen: set[tuple[frozenset[str], frozenset[tuple[str, int]], frozenset[str]]] = set()
    for end in range(len(operations) + 1):
        for dropped in (None, *_droppable(operations, end)):
            disk = _Disk()
            for number, operation in enumerate(operations[:end]):
                if number != dropped:
                    disk.apply(number, operation)
            torn = frozenset(p for p, file in disk.files.items() if file not in disk.synced)
            state = (frozenset(disk.directories), frozenset(disk.files.items()), torn)
            if state not in seen:
                seen.add(state)
                without = f" without {operations[dropped]}" if dropped is not None else ""
                last = operations[end - 1] if end else "nothing"
                yield State(f"up to {end}: {last}{without}", *state)


def _droppable(operations: Sequence[Operation], end: int) -> Iterator[int]:
    """Operations on names that no sync of their directory follows. What was moved on exists, and
    where it was made existed: of it the move alone may be missing."""
    synced: set[str] = set()
    moved: set[str] = set()
    for number in range(end - 1, -1, -1):
        operation = operations[number]
        if operation.kind == "sync":
            synced.add(operation.path)
        elif operation.path in moved and operation.kind in ("create", "mkdir"):
            continue
        elif os.path.dirname(operation.to or operation.path) not in synced:
            yield number
        if operation.kind in ("rename", "link"):
            moved |= {operation.path, os.path.dirname(operation.path)}


def write_state(state: State, contents: Mapping[int, bytes], root: Path, how: str) -> None:
    """Makes the state below `root`; torn files are `empty`, `zeros` or `whole`."""
    root.mkdir(mode=0o700)
    for path in sorted(state.directories):
        (root / path).mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, file in state.files:
        data = contents.get(file, b"lost in the end")
        if path in state.torn:
            data = {"empty": b"", "zeros": bytes(len(data)), "whole": data}[how]
        (root / path).write_bytes(data)
