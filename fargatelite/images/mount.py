"""Mounts an EROFS image, from files (Linux >= 6.12) or through loop devices, and unmounts it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from fargatelite.errors import HostUnsupported, ImageError
from fargatelite.mounts import (
    LOOP_CONTROL,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_RDONLY,
    attach_loop,
    mount_filesystem,
    unmount_detached,
)

__all__ = ["mount_erofs", "unmount"]

_FILE_SYSTEM = "erofs"


def _mount_files(image: Path, blobs: Sequence[Path], target: Path, *, loop: bool) -> None:
    held: list[int] = []
    try:
        if loop:
            names = []
            for path in (image, *blobs):
                descriptor, name = attach_loop(path, read_only=True)
                held.append(descriptor)
                names.append(name)
        else:
            # By descriptor: an option's value holds 255 bytes, a path may be longer.
            held += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (image, *blobs)]
            names = [f"/proc/self/fd/{descriptor}" for descriptor in held]
        mount_filesystem(
            _FILE_SYSTEM,
            names[0],
            target,
            attributes=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
            flags=("ro",),
            options=[("device", name) for name in names[1:]],
        )
    finally:
        for descriptor in held:
            os.close(descriptor)


def mount_erofs(
    image: Path, blobs: Sequence[Path], target: Path, *, loop: bool | None = None
) -> None:
    """Mounts `image` with its blobs as devices, in order, read-only and without device files.

    `loop`: through loop devices; None: only where the kernel cannot mount a file (before Linux
    6.12, which answers ENOTBLK).
    Raises: HostUnsupported where the kernel has neither EROFS nor loop devices; ImageError naming
    the image, the call's errno and what the kernel said.
    """
    try:
        try:
            _mount_files(image, blobs, target, loop=bool(loop))
        except OSError as error:
            if loop is not None or error.errno != errno.ENOTBLK:
                raise
            _mount_files(image, blobs, target, loop=True)
    except OSError as error:
        # fsopen(2) does not know EROFS, or there is no /dev/loop-control.
        if error.errno == errno.ENODEV or error.filename == LOOP_CONTROL:
            raise HostUnsupported(
                f"this kernel cannot mount EROFS images ({error.strerror}); see "
                "`fargatelite check`",
                errno=error.errno,
            ) from error
        raise ImageError(
            f"cannot mount image {image}: {error.strerror}; see `fargatelite check`",
            errno=error.errno,
            path=image,
        ) from error


def unmount(target: Path) -> None:
    """Unmounts what is mounted at `target`; that nothing is, is no error.

    Detached: a task's own clone of the mount may live a moment longer.
    Raises: ImageError.
    """
    try:
        unmount_detached(target)
    except OSError as error:
        raise ImageError(
            f"cannot unmount {target}: {error.strerror}", errno=error.errno, path=target
        ) from error
