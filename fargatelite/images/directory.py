"""The last resort where the kernel has no EROFS: the merged tree as files in a directory.

Slower by what creating its inodes costs (design, "Images"), and the same to a task: the directory
is bind-mounted, read-only and without device files, where the EROFS image would be.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from fargatelite.errors import ImageError
from fargatelite.images.layer import BLOCK_BYTES, Kind
from fargatelite.images.merge import Inode
from fargatelite.sparse import copy_data

__all__ = ["bind_directory", "unpack_image"]

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 0x1, 0x4, 0x20, 0x1000

ID_COUNT = 65536  # ids of a task (design, "Sandbox")
_NOBODY = 65534
# include/uapi/linux/capability.h
_VFS_CAP_REVISION_MASK, _VFS_CAP_REVISION_2, _VFS_CAP_REVISION_3 = 0xFF000000, 0x2000000, 0x3000000

_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


def _copy(node: Inode, blob: int, path: bytes, root: int) -> None:
    """A file's contents, holes kept: the blob's own are found by SEEK_DATA."""
    fd = os.open(
        path,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=root,
    )
    try:
        copy_data(blob, fd, node.record.block * BLOCK_BYTES, node.record.size)
    finally:
        os.close(fd)


def _make(node: Inode, path: bytes, root: int, blobs: Sequence[int]) -> None:
    record = node.record
    if record.kind == Kind.DIRECTORY:
        os.mkdir(path, 0o700, dir_fd=root)
    elif record.kind == Kind.SYMLINK:
        os.symlink(record.link, path, dir_fd=root)
    elif record.kind == Kind.FILE:
        _copy(node, blobs[node.layer], path, root)
    else:
        os.mknod(path, _TYPES[record.kind] | 0o600, os.makedev(*record.device), dir_fd=root)


def _shift(number: int, id_base: int) -> int:
    """An id of the image as the host's; one that the task's range has no place for is nobody's."""
    if not id_base:
        return number
    return id_base + (number if number < ID_COUNT else _NOBODY)


def _shift_capability(value: bytes, id_base: int) -> bytes:
    """security.capability that counts in the namespace whose root is `id_base`: version 3 of
    struct vfs_ns_cap_data names it (capabilities(7), Linux 4.14)."""
    revision = int.from_bytes(value[:4], "little")
    if not id_base or revision & _VFS_CAP_REVISION_MASK != _VFS_CAP_REVISION_2:
        return value
    flags = revision & ~_VFS_CAP_REVISION_MASK | _VFS_CAP_REVISION_3
    return flags.to_bytes(4, "little") + value[4:20] + id_base.to_bytes(4, "little")


def _dress(node: Inode, path: bytes, root: int, anchor: bytes, id_base: int) -> None:
    """Owner, mode, xattrs and time, in this order: chown(2) clears set-id bits and capabilities."""
    record = node.record
    uid, gid = _shift(record.uid, id_base), _shift(record.gid, id_base)
    os.chown(path, uid, gid, dir_fd=root, follow_symlinks=False)
    if record.kind != Kind.SYMLINK:
        # No parent of `path` is a link: all are directories made here.
        os.chmod(path, record.mode & 0o7777, dir_fd=root)
    for name, value in record.xattrs:
        is_capability = name == b"security.capability"
        shifted = _shift_capability(value, id_base) if is_capability else value
        os.setxattr(anchor + path, name, shifted, follow_symlinks=False)
    time_ns = record.mtime_s * 1_000_000_000
    os.utime(path, ns=(time_ns, time_ns), dir_fd=root, follow_symlinks=False)


def unpack_image(root: Inode, blobs: Sequence[Path], target: Path, id_base: int = 0) -> None:
    """Makes the merged tree's files in the empty directory `target`, contents from the blobs.

    `id_base`: the host's id of the container's root, where nothing maps ids later.
    Every path is made of names of the tree below directories made here, so that no link of an image
    is ever followed.
    Raises: ImageError naming the path within the image.
    """
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    opened: list[int] = []
    path = b""
    try:
        opened += [os.open(blob, os.O_RDONLY | os.O_CLOEXEC) for blob in blobs]
        anchor = b"/proc/self/fd/%d/" % top
        directories: list[tuple[bytes, Inode]] = []
        names: dict[int, bytes] = {}
        stack: list[tuple[bytes, Inode]] = [(b".", root)]
        while stack:
            parent, directory = stack.pop()
            directories.append((parent, directory))
            for name, node in (directory.children or {}).items():
                path = name if directory is root else parent + b"/" + name
                first = names.get(id(node))
                if first is not None:
                    os.link(first, path, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
                    continue
                _make(node, path, top, opened)
                if node.children is not None:
                    stack.append((path, node))
                    continue
                names[id(node)] = path
                _dress(node, path, top, anchor, id_base)
        for path, directory in reversed(directories):
            _dress(directory, path, top, anchor, id_base)
        os.fsync(top)
    except OSError as error:
        raise ImageError(
            f"cannot unpack /{path[:200].decode('utf-8', 'replace')} of an image below {target}: "
            f"{error.strerror}",
            errno=error.errno,
            path=target,
        ) from error
    finally:
        for fd in (*opened, top):
            os.close(fd)


def bind_directory(source: Path, target: Path) -> None:
    """Mounts a directory at `target`, read-only and without device files.

    Raises: ImageError.
    """
    for flags in (_MS_BIND, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NODEV):
        if _libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None) < 0:
            number = ctypes.get_errno()
            _libc.umount2(os.fsencode(target), 0)
            raise ImageError(
                f"cannot mount {source} at {target}: {os.strerror(number)}",
                errno=number,
                path=target,
            )
