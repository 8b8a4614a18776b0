"""Paths that strangers had a hand in, resolved by the kernel below a directory: openat2(2)."""

from __future__ import annotations

import ctypes
import errno
import os

__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "open_path",
]

_SYS_OPENAT2 = 437  # the same on x86-64 and arm64
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x08, 0x10
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_path(directory: int, path: str, flags: int, resolve: int) -> int:
    """An O_PATH descriptor of `path` below the directory (Linux 5.6).

    Raises: OSError, whose `filename` is `path`.
    """
    how = _OpenHow(flags=os.O_PATH | os.O_CLOEXEC | flags, mode=0, resolve=resolve)
    while True:
        fd = int(
            _libc.syscall(
                ctypes.c_long(_SYS_OPENAT2), directory, os.fsencode(path), ctypes.byref(how),
                ctypes.sizeof(how),
            )
        )  # fmt: skip
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EAGAIN:  # something was renamed meanwhile; the kernel asks to try again
            raise OSError(number, os.strerror(number), path)
