"""Directories and files of a cgroup file system: make, write, read back, remove.

What both drivers need and nothing that knows a controller. Each function names the file and the
errno when the kernel refuses. The loops against a concurrent `remove` of the project's root are
here: the last task of one process removes `fargatelite/` while another one creates below it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import PurePosixPath

from fargatelite.errors import CgroupFailed
from fargatelite.names import CGROUP_ROOT

__all__ = [
    "CREATE_ATTEMPTS",
    "REMOVE_DEADLINE_S",
    "check_path",
    "failed",
    "groups_below",
    "list_children",
    "make_group",
    "read_number",
    "read_pids",
    "read_text",
    "remove_tree",
    "write_if_there",
    "write_text",
    "write_verified",
]

CREATE_ATTEMPTS = 100
"""Each lost race needs another process's last task to end within microseconds: 100 is for ever."""

REMOVE_DEADLINE_S = 5.0
"""A killed process that frees many GiB keeps its group busy well under a second per 10 GiB."""


def check_path(path: str) -> str:
    """`path` itself when it is a group below the project's root.

    Raises: CgroupFailed for anything else, such as one with `..`: a wrong path could kill or remove
    what is not ours.
    """
    parts = path.split("/")
    if len(parts) < 2 or parts[0] != CGROUP_ROOT or not all(parts) or {".", ".."} & set(parts):
        raise CgroupFailed(f"{path!r} is not a group below {CGROUP_ROOT}/", path=path)
    return path


def failed(action: str, path: str, error: OSError, hint: str = "") -> CgroupFailed:
    """The CgroupFailed for `error`; `hint` says what to do."""
    name = errno.errorcode.get(error.errno or 0, "?")
    text = f"cannot {action} {path}: {name}: {error.strerror}"
    return CgroupFailed(f"{text}: {hint}" if hint else text, errno=error.errno, path=path)


def make_group(root: str, path: str) -> None:
    """Makes `root`/`path` and its parents below `root`; those that exist are left.

    Raises: CgroupFailed.
    """
    absolute = f"{root}/{path}"
    for _ in range(CREATE_ATTEMPTS):
        try:
            os.mkdir(absolute, 0o755)
        except FileExistsError:
            return
        except FileNotFoundError as error:
            parent = str(PurePosixPath(path).parent)
            if parent == ".":  # the hierarchy itself is gone
                raise failed("create group", absolute, error) from error
            make_group(root, parent)
        except OSError as error:
            raise failed("create group", absolute, error, "is the hierarchy writable?") from error
        else:
            return
    raise CgroupFailed(
        f"cannot create group {absolute}: its parent was removed {CREATE_ATTEMPTS} times meanwhile",
        errno=errno.ENOENT,
        path=absolute,
    )


def write_text(file: str, text: str) -> None:
    """Writes `text` in one write(2), as cgroup files want it. Raises: CgroupFailed."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failed(f"write {text!r} to", file, error) from error


def write_if_there(file: str, text: str) -> None:
    """As write_text, but that there is no such file (any more) is no error."""
    try:
        write_text(file, text)
    except CgroupFailed as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def read_text(file: str) -> str:
    """The whole file. Raises: CgroupFailed."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            chunks = []
            while chunk := os.read(descriptor, 65536):
                chunks.append(chunk)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failed("read", file, error) from error
    return b"".join(chunks).decode()


def read_number(file: str) -> int:
    """The file's one decimal number. Raises: CgroupFailed also when there is none."""
    text = read_text(file).strip()
    try:
        return int(text)
    except ValueError as error:
        raise CgroupFailed(f"{file} holds {text[:80]!r}, not a number", path=file) from error


def write_verified(file: str, text: str, expected: str | None = None) -> None:
    """Writes `text` and compares what the kernel then holds with `expected` (or `text`).

    Raises: CgroupFailed.
    """
    write_text(file, text)
    found = read_text(file).strip()
    if found != (expected or text):
        raise CgroupFailed(
            f"wrote {text!r} to {file} and the kernel holds {found!r} instead of "
            f"{expected or text!r}: a parent group may limit it",
            path=file,
        )


def list_children(directory: str) -> list[str]:
    """Names of the groups directly below `directory`, none when it does not exist.

    Raises: CgroupFailed.
    """
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ENODEV:  # removed while we read
            return []
        raise failed("list", directory, error) from error


def groups_below(directory: str) -> Iterator[str]:
    """`directory` and every group below it, parents first."""
    pending = [directory]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(f"{current}/{name}" for name in list_children(current))


def read_pids(directory: str) -> list[int]:
    """Process ids in the groups at and below `directory`; a group that is gone has none.

    Raises: CgroupFailed when a process is not in our pid namespace (the kernel shows 0): it could
    be neither signalled nor waited for.
    """
    pids: list[int] = []
    for group in groups_below(directory):
        try:
            text = read_text(f"{group}/cgroup.procs")
        except CgroupFailed as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                continue
            raise
        pids.extend(int(line) for line in text.split())
    if 0 in pids:
        raise CgroupFailed(
            f"a process in {directory} is outside this pid namespace: run fargatelite where the "
            f"task was started",
            path=directory,
        )
    return sorted(set(pids))


def remove_tree(root: str, path: str, deadline_s: float = REMOVE_DEADLINE_S) -> None:
    """Removes the group and all below it, children first, then the project's root if it is empty.

    EBUSY is retried until `deadline_s`, as an exiting process leaves its group a little after its
    parent learns of the exit. Raises: CgroupFailed.
    """
    absolute = f"{root}/{path}"
    give_up_at = time.monotonic() + deadline_s
    pause_s = 0.0005
    while True:
        refusal = _remove_once(absolute)
        if refusal is None:
            break
        if refusal.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > give_up_at:
            inside = read_pids(absolute)[:8]
            hint = f"processes {inside} are still inside" if inside else ""
            raise failed("remove group", absolute, refusal, hint) from refusal
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
    # Another task may be there or just arriving: then the group stays (rmdir(2) is atomic).
    try:
        os.rmdir(f"{root}/{CGROUP_ROOT}")
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT):
            raise failed("remove group", f"{root}/{CGROUP_ROOT}", error) from error


def _remove_once(absolute: str) -> OSError | None:
    """Tries to remove each group once; the first error other than "already gone"."""
    first: OSError | None = None
    for group in reversed(list(groups_below(absolute))):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            continue
        except OSError as error:
            first = first or error
    return first
