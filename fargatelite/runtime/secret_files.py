"""Secrets as files that follow rotation: beyond Fargate, where variables are read once.
Source: contract 2.5.

Only with `beyond_fargate.secret_files_refresh_s`. Each container finds its `secrets` below
/run/secrets too, by the variable's name; they are fetched anew at that interval and replaced whole,
so that a reader sees the old or the new value. They lie in a tmpfs of the task's own, never on a
disk, and go with the task. Values that cannot be had stay as they are: a service that is down for
an hour takes no secret from anybody.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from fargatelite.errors import SandboxFailed, StorageFailed
from fargatelite.mounts import mount_filesystem, unmount_detached
from fargatelite.names import TaskId
from fargatelite.sandbox.mounts import VolumeMount
from fargatelite.settings import Settings

__all__ = ["SECRETS_PATH", "SecretFiles"]

SECRETS_PATH = "/run/secrets"  # where Docker has them
_TMPFS_OPTIONS = (("size", "8m"), ("nr_inodes", "4096"), ("mode", "0700"))


class SecretFiles:
    """The files of one task. Methods may be repeated; one thread at a time."""

    def __init__(self, settings: Settings, task_id: TaskId) -> None:
        self._root = Path(settings.run_root) / "secrets"
        self._path = self._root / task_id
        self._written: dict[tuple[str, str], str] = {}

    def create(self) -> None:
        """Mounts the task's tmpfs. Raises: StorageFailed."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._path.is_mount():
                mount_filesystem("tmpfs", "tmpfs", self._path, options=_TMPFS_OPTIONS)
        except OSError as error:
            raise StorageFailed(
                f"cannot mount a tmpfs for secrets at {self._path}: {error.strerror}",
                errno=error.errno,
                path=self._path,
            ) from error

    def write(self, container: str, values: Mapping[str, str], owner: int) -> VolumeMount:
        """Replaces the files whose values changed; `owner` is the container's root on the host.

        Raises: SandboxFailed for a variable whose name cannot be a file's; OSError.
        """
        directory = self._path / container
        directory.mkdir(mode=0o755, exist_ok=True)
        os.chown(directory, owner, owner)
        for name, value in values.items():
            if "/" in name or name in ("", ".", ".."):
                raise SandboxFailed(f"secret {name!r} of {container} cannot be a file of that name")
            if self._written.get((container, name)) == value:
                continue
            fresh = directory / f".{os.urandom(8).hex()}"
            with open(fresh, "x", encoding="utf-8", errors="surrogateescape") as file:
                file.write(value)
                os.fchown(file.fileno(), owner, owner)
                os.fchmod(file.fileno(), 0o444)
            os.rename(fresh, directory / name)
            self._written[container, name] = value
        return VolumeMount(source=str(directory), target=SECRETS_PATH, read_only=True)

    def remove(self) -> None:
        """Unmounts the tmpfs; one that is not there is no error. Raises: StorageFailed."""
        try:
            unmount_detached(self._path)
            with contextlib.suppress(FileNotFoundError):
                self._path.rmdir()
                self._root.rmdir()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # other tasks have theirs
                raise StorageFailed(
                    f"cannot unmount {self._path}: {error.strerror}", errno=error.errno
                ) from error
