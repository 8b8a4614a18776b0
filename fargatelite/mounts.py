"""Mounts file systems by system call, from block devices, files, or loop devices over files.

Never mount(8): that would make a loop device without saying so. Errors are OSErrors with what the
kernel wrote to the mount context; who calls knows what they mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "LOOP_CONTROL",
    "MOUNT_ATTR_NOATIME",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_RDONLY",
    "attach_loop",
    "bind_descriptor",
    "mount_filesystem",
    "unmount_detached",
]

_libc = ctypes.CDLL(None, use_errno=True)

# x86-64 and arm64 agree from 424 on (asm-generic/unistd.h).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOATIME = 0x1, 0x4, 0x10
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 1, 4, 16
LOOP_CONTROL = "/dev/loop-control"
_MODPROBE_DEADLINE_S = 30.0
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


def mount_filesystem(
    kind: str,
    source: str,
    target: Path,
    *,
    attributes: int = 0,
    flags: Sequence[str] = (),
    options: Sequence[tuple[str, str]] = (),
) -> None:
    """Mounts a file system of type `kind` at `target`: fsopen(2) to move_mount(2), Linux 5.2.

    `attributes` are MOUNT_ATTR_*; `flags` and `options` are the file system's own.
    Raises: OSError, ENODEV for a type that the kernel does not know.
    """
    context = _call(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:

        def set_string(key: str, value: str) -> None:
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)

        set_string("source", source)
        for flag in flags:
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, flag.encode(), None, 0)
        for key, value in options:
            set_string(key, value)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        made = _call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
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


def bind_descriptor(fd: int, target: Path) -> None:
    """Mounts the directory that an O_PATH descriptor stands for at `target` too. Raises: OSError.

    Source: open_tree(2), Linux 5.2. Nothing can be put in its place meanwhile, as under a path.
    """
    made = _call(_SYS_OPEN_TREE, fd, b"", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH)
    try:
        _call(_SYS_MOVE_MOUNT, made, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(made)


def attach_loop(path: Path, *, read_only: bool, direct_io: bool = False) -> tuple[int, str]:
    """A loop device over a file: descriptor and name. It goes away with its last user, the
    descriptor being the first of them.

    Raises: OSError; `filename` is LOOP_CONTROL where the kernel has no loop devices.
    Source: LOOP_CONFIGURE, Linux 5.8; struct loop_config in include/uapi/linux/loop.h.
    """
    mode = os.O_RDONLY if read_only else os.O_RDWR
    wanted = _LO_FLAGS_AUTOCLEAR
    wanted |= _LO_FLAGS_READ_ONLY if read_only else 0
    wanted |= _LO_FLAGS_DIRECT_IO if direct_io else 0
    backing = os.open(path, mode | os.O_CLOEXEC)
    try:
        control = _open_loop_control()
        try:
            for _ in range(_LOOP_ATTEMPTS):
                name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                device = os.open(name, mode | os.O_CLOEXEC)
                # fd, block_size, struct loop_info64 (lo_flags at 52), reserved.
                info = bytearray(232)
                struct.pack_into("<I", info, 52, wanted)
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
    raise OSError(errno.EBUSY, f"no free loop device after {_LOOP_ATTEMPTS} attempts", LOOP_CONTROL)


def _open_loop_control() -> int:
    """A descriptor of LOOP_CONTROL. Opening its node loads the module, but only udev makes the node
    beforehand: elsewhere the module is loaded by name. Raises: OSError.
    """
    try:
        return os.open(LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):  # no modprobe: the kernel has what it has
            subprocess.run(
                ["modprobe", "-q", "loop"], check=False, timeout=_MODPROBE_DEADLINE_S,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return os.open(LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)


def unmount_detached(target: Path) -> bool:
    """Unmounts what is mounted at `target` and tells whether there was something.

    Detached: a clone of the mount in another namespace may live a moment longer. Raises: OSError.
    """
    if _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | _MNT_DETACH) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOENT):
        raise OSError(number, os.strerror(number), os.fspath(target))
    return False
