"""Mounts an EROFS image, from its files (Linux >= 6.12) or through loop devices, and unmounts it.

By system call, never mount(8): that would make a loop device without saying so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from fargatelite.errors import HostUnsupported, ImageError

__all__ = ["mount_erofs", "unmount"]

_libc = ctypes.CDLL(None, use_errno=True)

# x86-64 and arm64 agree from 424 on (asm-generic/unistd.h).
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NODEV = 1, 4
_AT_FDCWD = -100
_FILE_SYSTEM = b"erofs"
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_CONTROL = "/dev/loop-control"
_LOOP_ATTEMPTS = 64  # another process may take the free device between the two calls


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _context_message(context: int) -> str:
    try:
        return os.read(context, 512).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _mount(source: str, devices: Sequence[str], target: Path) -> None:
    context = _call(_SYS_FSOPEN, _FILE_SYSTEM, _FSOPEN_CLOEXEC)
    try:

        def set_string(key: bytes, value: str) -> None:
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key, os.fsencode(value), 0)

        set_string(b"source", source)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0)
        for device in devices:
            set_string(b"device", device)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        made = _call(
            _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NODEV
        )
    except OSError as error:
        message = _context_message(context)
        if message:
            error.strerror = f"{error.strerror} ({message})"
        raise
    finally:
        os.close(context)
    try:
        _call(_SYS_MOVE_MOUNT, made, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(made)


def _attach_loop(path: Path) -> tuple[int, str]:
    """A loop device that goes away with its last user; the descriptor is the first of them."""
    backing = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_LOOP_ATTEMPTS):
                name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
                # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at 52), reserved.
                info = bytearray(232)
                struct.pack_into("<I", info, 52, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
                config = struct.pack("<II", backing, 0) + bytes(info) + b"\0" * 64
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                except OSError as error:
                    os.close(device)
                    if error.errno == errno.EBUSY:
                        continue
                    raise
                return device, name
        finally:
            os.close(control)
    finally:
        os.close(backing)
    raise HostUnsupported(f"no free loop device after {_LOOP_ATTEMPTS} attempts")


def _mount_files(image: Path, blobs: Sequence[Path], target: Path, *, loop: bool) -> None:
    held: list[int] = []
    try:
        if loop:
            names = []
            for path in (image, *blobs):
                descriptor, name = _attach_loop(path)
                held.append(descriptor)
                names.append(name)
        else:
            # By descriptor: an option's value holds 255 bytes, a path may be longer.
            held += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (image, *blobs)]
            names = [f"/proc/self/fd/{descriptor}" for descriptor in held]
        _mount(names[0], names[1:], target)
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
        if error.errno == errno.ENODEV or error.filename == _LOOP_CONTROL:
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
    if _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | _MNT_DETACH) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOENT):
        raise ImageError(
            f"cannot unmount {target}: {os.strerror(number)}", errno=number, path=target
        )
