"""Copies files with their holes: what is sparse stays so, on whatever file systems they lie."""

from __future__ import annotations

import errno
import os

__all__ = ["copy_data"]

_CHUNK_BYTES = 1 << 30  # copy_file_range(2) and sendfile(2) take at most 2 GiB at once


def _copy(source: int, target: int, at: int, to: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, at, to)
    except OSError as error:
        # Two file systems (all kernels but 5.3 to 5.18), or one that cannot.
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, at, count)


def copy_data(source: int, target: int, start: int, size_bytes: int) -> None:
    """Copies `size_bytes` from `start` of one file to the beginning of the other, which gets that
    size; ranges without data become holes.

    Raises: OSError, EIO when the source is shorter.
    """
    os.ftruncate(target, size_bytes)
    at, end = start, start + size_bytes
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole follows
            raise
        if at >= end:
            return
        stop = min(os.lseek(source, at, os.SEEK_HOLE), end)
        while at < stop:
            copied = _copy(source, target, at, at - start, min(_CHUNK_BYTES, stop - at))
            if not copied:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            at += copied
