"""The mounts of images: one per image and run root, as long as a task uses it.

::

    <run root>/images/<image id>/{lock,users/<task id>,fs}

Several processes share them: a lock per image, held by whoever mounts, unmounts or adds a user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

from fargatelite.errors import HostUnsupported, ImageNotFound
from fargatelite.images.image import Image, ImageBackend
from fargatelite.images.layer import read_table
from fargatelite.images.store import ImageStore, StoredImage
from fargatelite.names import TaskId

__all__ = ["MountedImages", "is_bound"]

_GONE = ".gone-"  # the directory of a mount that has ended


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove_mount_directory(path: Path) -> None:
    """Never recursively: what is mounted is not ours to delete. May be repeated."""
    for name in ("fs", "users", ""):
        with contextlib.suppress(FileNotFoundError):
            if not name:
                (path / "lock").unlink(missing_ok=True)
            (path / name).rmdir()


def is_bound(image_directory: Path) -> bool:
    """Whether the unpacked files are some task's: unlike EROFS, nothing else holds them."""
    # Field 4 of a line is the mounted directory, within its own file system (proc(5)).
    end = f"/{image_directory.parent.name}/{image_directory.name}/root"
    with open("/proc/self/mountinfo") as file:
        return any(line.split(" ", 4)[3].endswith(end) for line in file)


class MountedImages:
    """What is mounted of a store under one run root. Usable from any thread and process."""

    def __init__(self, store: ImageStore, run_root: Path) -> None:
        self._store = store
        self._directory = run_root / "images"

    def ensure_mounted(self, image: Image, task_id: TaskId) -> Path:
        """Mounts the image once per host and notes the task as its user; returns the mount point.

        Raises: ImageError.
        """
        stored = self._store.read_image(image.image_id)
        if stored is None:
            raise ImageNotFound(f"{image.reference} is not in the store any more")
        directory = self._directory / image.image_id.removeprefix("sha256:")
        with self._mount_lock(directory):
            # The user first: a crash after it leaves a name that `release` and gc know.
            (directory / "users" / task_id).touch(mode=0o600)
            target = directory / "fs"
            if not os.path.ismount(target):
                self._mount(stored, target)
        self._store.note_use(image.image_id)
        return target

    def has_users(self, name: str) -> bool:
        """Whether a task of this run root uses the image of that hexadecimal id."""
        try:
            return bool(os.listdir(self._directory / name / "users"))
        except FileNotFoundError:
            return False

    def _mount(self, stored: StoredImage, target: Path) -> None:
        """Mounts by the store's backend; `auto` falls back to a directory."""
        from fargatelite.images.directory import bind_directory
        from fargatelite.images.mount import mount_erofs

        blobs = [self._store.layer_directory(diff_id) / "blob" for diff_id in stored.diff_ids]
        if self._store.backend is not ImageBackend.DIRECTORY:
            loop = (
                None
                if self._store.backend is ImageBackend.AUTO
                else self._store.backend is ImageBackend.LOOP
            )
            try:
                mount_erofs(
                    self._store.image_directory(stored.image_id) / "image.erofs",
                    blobs,
                    target,
                    loop=loop,
                )
            except HostUnsupported:
                if self._store.backend is not ImageBackend.AUTO:
                    raise
            else:
                return
        with self._store.lock(stored.image_id):
            bind_directory(self._unpack(stored, blobs), target)

    def _unpack(self, stored: StoredImage, blobs: Sequence[Path]) -> Path:
        """The image's files in a directory, made at their first use; the caller holds its lock."""
        from fargatelite.images.directory import unpack_image
        from fargatelite.images.merge import merge_layers

        unpacked = self._store.image_directory(stored.image_id) / "root"
        if not unpacked.is_dir():
            tables = [read_table(blob.with_name("table")) for blob in blobs]
            with self._store.scratch() as scratch:
                (scratch / "root").mkdir()
                unpack_image(merge_layers(tables), blobs, scratch / "root")
                os.rename(scratch / "root", unpacked)
        return unpacked

    @contextlib.contextmanager
    def _mount_lock(self, directory: Path) -> Iterator[None]:
        """The lock of one image's mount. Whoever removes the directory holds it, so the file may be
        gone when we get it: then again."""
        while True:
            try:
                directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                for name in ("", "users", "fs"):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(directory / name, 0o700)
                fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_at(fd, directory / "lock"):
                    yield
                    return
            finally:
                os.close(fd)

    def release(self, task_id: TaskId) -> None:
        """Ends all uses of a task; the last user's end unmounts. May be repeated."""
        for directory in self._list():
            if (directory / "users" / task_id).exists():
                self._end_uses(directory, {task_id})

    def release_lost(self, is_live: Callable[[str], bool]) -> list[str]:
        """Ends the uses of tasks that are not live, and mounts that have no user: a process was
        killed while it released them. The names of those tasks.

        A task has to be live before it uses an image, and as long as it does.
        """
        lost: set[str] = set()
        for directory in self._list():
            users: set[str] = set()
            with contextlib.suppress(FileNotFoundError):
                users = set(os.listdir(directory / "users"))
            gone = {name for name in users if not is_live(name)}
            if gone or not users:
                self._end_uses(directory, gone)
            lost |= gone
        for path in self._directory.glob(f"{_GONE}*"):
            _remove_mount_directory(path)
        return sorted(lost)

    def _list(self) -> list[Path]:
        try:
            found = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in found if not path.name.startswith(_GONE)]

    def _end_uses(self, directory: Path, ended: Set[str]) -> None:
        from fargatelite.images.mount import unmount

        with self._mount_lock(directory):
            users = set(os.listdir(directory / "users"))
            for name in users & ended:
                (directory / "users" / name).unlink()
            if users - ended:
                return
            unmount(directory / "fs")
            # Out of sight whole: who wants it now makes another one.
            gone = directory.with_name(f"{_GONE}{directory.name}-{os.urandom(4).hex()}")
            os.rename(directory, gone)
            _remove_mount_directory(gone)
