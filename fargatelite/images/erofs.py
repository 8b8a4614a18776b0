"""Writes a metadata-only EROFS image over the layers' blobs.

Two movements: everything is placed (`_place`), then everything is written. Inodes are extended (64
bytes) and plain or inline; a file's blocks lie in a blob, which has a range of its own in the one
block address space (`mapped_blkaddr` of its device slot), so no chunk indexes are needed. Never
compression, never unsorted names: what the kernel has had holes in, it is not given.

Format: Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h (Linux 5.16 for the device table).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from fargatelite.errors import ImageInvalid
from fargatelite.images.layer import BLOCK_BYTES, Kind
from fargatelite.images.merge import Inode, walk

__all__ = ["write_erofs"]

_SUPER_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
_COMPAT_MTIME = 0x2
_INCOMPAT_DEVICE_TABLE = 0x8
_SLOT_BYTES = 128
_FIRST_SLOT = (_SUPER_OFFSET + 128) // _SLOT_BYTES
MAX_LAYERS = 512  # device slots; a manifest of 4 MiB could name more, no real image does
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT = struct.Struct("<QHBx")
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_NID_BYTES = 32
_LAYOUT_PLAIN, _LAYOUT_INLINE = 0, 2
_EXTENDED = 1

_MODES = {
    Kind.FILE: (stat.S_IFREG, 1),
    Kind.DIRECTORY: (stat.S_IFDIR, 2),
    Kind.CHAR: (stat.S_IFCHR, 3),
    Kind.BLOCK: (stat.S_IFBLK, 4),
    Kind.FIFO: (stat.S_IFIFO, 5),
    Kind.SYMLINK: (stat.S_IFLNK, 7),
}
_XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"security.", 6),
)


def _encode_device(major: int, minor: int) -> int:
    """new_encode_dev() of the kernel."""
    return (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xFFF00) << 12)


def _encode_xattrs(xattrs: Sequence[tuple[bytes, bytes]]) -> bytes:
    body = b""
    for name, value in xattrs:
        for prefix, index in _XATTR_PREFIXES:
            if name.startswith(prefix):
                suffix = name[len(prefix) :]
                entry = struct.pack("<BBH", len(suffix), index, len(value)) + suffix + value
                body += entry + b"\0" * (-len(entry) % 4)
                break
    return b"\0" * 12 + body if body else b""


class _Placed:
    """Where an inode and its data go in the metadata file."""

    __slots__ = ("blocks", "data", "inode", "layout", "nid", "offset", "tail", "xattrs")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.xattrs = _encode_xattrs(inode.record.xattrs)
        self.data = b""
        self.tail = b""
        self.layout = _LAYOUT_PLAIN
        self.offset = self.nid = self.blocks = 0


def _sorted_names(inode: Inode, parent: Inode) -> list[tuple[bytes, Inode]]:
    assert inode.children is not None
    return sorted([(b".", inode), (b"..", parent), *inode.children.items()])


def _directory_blocks(names: list[tuple[bytes, Inode]]) -> list[list[tuple[bytes, Inode]]]:
    """The names of a directory, block by block: records first, names behind them."""
    blocks: list[list[tuple[bytes, Inode]]] = []
    current: list[tuple[bytes, Inode]] = []
    used = 0
    for name, child in names:
        need = _DIRENT.size + len(name)
        if current and used + need > BLOCK_BYTES:
            blocks.append(current)
            current, used = [], 0
        current.append((name, child))
        used += need
    blocks.append(current)
    return blocks


def _directory_size(blocks: list[list[tuple[bytes, Inode]]]) -> int:
    last = sum(_DIRENT.size + len(name) for name, _ in blocks[-1])
    return (len(blocks) - 1) * BLOCK_BYTES + last


def _encode_directory(blocks: list[list[tuple[bytes, Inode]]]) -> bytes:
    out = []
    for index, names in enumerate(blocks):
        offset = len(names) * _DIRENT.size
        records, texts = [], []
        for name, child in names:
            kind = _MODES[child.record.kind][1]
            records.append(_DIRENT.pack(child.number, offset, kind))
            texts.append(name)
            offset += len(name)
        block = b"".join(records) + b"".join(texts)
        if index + 1 < len(blocks):
            block += b"\0" * (BLOCK_BYTES - len(block))
        out.append(block)
    return b"".join(out)


def _parents(root: Inode) -> dict[int, Inode]:
    parents = {id(root): root}
    stack = [root]
    while stack:
        node = stack.pop()
        for child in (node.children or {}).values():
            if child.children is not None:
                parents[id(child)] = node
                stack.append(child)
    return parents


def write_erofs(root: Inode, blob_blocks: Sequence[int], destination: Path) -> int:
    """Writes the image of a merged tree; returns the number of inodes.

    `blob_blocks` are the lengths of the layers' blobs in blocks, in the order of the layers; the
    mount must name them in that order as devices. Layers without a blob (0) still have their slot.
    Raises: ImageInvalid for more layers or blocks than the format holds; OSError.
    """
    if len(blob_blocks) > MAX_LAYERS:
        raise ImageInvalid(f"{len(blob_blocks)} layers; at most {MAX_LAYERS}")
    head = _SUPER_OFFSET + 128 + _SLOT_BYTES * len(blob_blocks)
    meta_block = -(-head // BLOCK_BYTES)
    parents = _parents(root)
    placed: list[_Placed] = []
    directories: dict[int, list[list[tuple[bytes, Inode]]]] = {}

    # Place: inodes in order of the walk (the root first, its number must fit 16 bits).
    cursor = 0
    for inode in walk(root):
        item = _Placed(inode)
        length = 0
        if inode.children is not None:
            blocks = _directory_blocks(_sorted_names(inode, parents[id(inode)]))
            directories[id(inode)] = blocks
            length = _directory_size(blocks)
        elif inode.record.kind == Kind.SYMLINK:
            length = len(inode.record.link)
        base = _INODE.size + len(item.xattrs)
        tail = length % BLOCK_BYTES
        if length and base + tail <= BLOCK_BYTES and tail:
            item.layout = _LAYOUT_INLINE
        else:
            tail = 0
        # The tail must not cross a block (erofs_map_blocks refuses it).
        cursor = -(-cursor // _NID_BYTES) * _NID_BYTES
        if tail:
            start = cursor + base
            if start // BLOCK_BYTES != (start + tail - 1) // BLOCK_BYTES:
                cursor = -(-(cursor + base) // BLOCK_BYTES) * BLOCK_BYTES - base
                cursor = -(-cursor // _NID_BYTES) * _NID_BYTES
                if (cursor + base) // BLOCK_BYTES != (cursor + base + tail - 1) // BLOCK_BYTES:
                    cursor = -(-cursor // BLOCK_BYTES) * BLOCK_BYTES
        item.offset = cursor
        item.nid = inode.number = cursor // _NID_BYTES
        item.blocks = -(-(length - tail) // BLOCK_BYTES)
        cursor += base + tail
        placed.append(item)
    if root.number > 0xFFFF:
        raise AssertionError("the root is placed first")

    # Plain data (large directories, long links) follows the inodes; blobs follow the file.
    data_block = meta_block + -(-cursor // BLOCK_BYTES)
    next_block = data_block
    plain_at: dict[int, int] = {}
    for item in placed:
        if item.blocks and item.inode.record.kind != Kind.FILE:
            plain_at[id(item.inode)] = next_block
            next_block += item.blocks
    own_blocks = next_block
    device_at: list[int] = []
    for blocks_of_blob in blob_blocks:
        device_at.append(next_block)
        next_block += max(1, blocks_of_blob)
    if next_block >= 2**32 - 1:
        raise ImageInvalid(f"an image of {next_block} blocks; EROFS addresses 2^32")

    # Write.
    fd = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as out:
        out.truncate(own_blocks * BLOCK_BYTES)
        out.seek(_SUPER_OFFSET)
        out.write(
            _SUPER.pack(
                _MAGIC, 0, _COMPAT_MTIME, 12, 0, root.number, len(placed), 0, 0, own_blocks,
                meta_block, 0, b"\0" * 16, b"fargatelite".ljust(16, b"\0"),
                _INCOMPAT_DEVICE_TABLE, 0, len(blob_blocks), _FIRST_SLOT, 0, 0, 0, 0, 0,
            )
        )  # fmt: skip
        for index, (start, count) in enumerate(zip(device_at, blob_blocks, strict=True)):
            out.write(struct.pack("<64sII56x", b"layer%d" % index, max(1, count), start))
        out.seek(meta_block * BLOCK_BYTES)
        position = 0
        for item in placed:
            out.write(b"\0" * (item.offset - position))
            written = _encode_inode(item, directories, plain_at, device_at)
            out.write(written)
            position = item.offset + len(written)
        for item in placed:
            start = plain_at.get(id(item.inode), 0)
            if start:
                out.seek(start * BLOCK_BYTES)
                whole = item.blocks * BLOCK_BYTES
                out.write(_data_of(item.inode, directories)[:whole])
    return len(placed)


def _data_of(inode: Inode, directories: dict[int, list[list[tuple[bytes, Inode]]]]) -> bytes:
    if inode.children is not None:
        return _encode_directory(directories[id(inode)])
    return inode.record.link


def _encode_inode(
    item: _Placed,
    directories: dict[int, list[list[tuple[bytes, Inode]]]],
    plain_at: dict[int, int],
    device_at: list[int],
) -> bytes:
    inode, record = item.inode, item.inode.record
    size, address, tail = 0, 0, b""
    if inode.children is not None or record.kind == Kind.SYMLINK:
        data = _data_of(inode, directories)
        size = len(data)
        address = plain_at.get(id(inode), 0)
        if item.layout == _LAYOUT_INLINE:
            tail = data[len(data) - len(data) % BLOCK_BYTES :]
    elif record.kind == Kind.FILE:
        size = record.size
        address = device_at[inode.layer] + record.block if size else 0
    elif record.kind in (Kind.CHAR, Kind.BLOCK):
        address = _encode_device(*record.device)
    xattr_count = (len(item.xattrs) - 12) // 4 + 1 if item.xattrs else 0
    return (
        _INODE.pack(
            _EXTENDED | item.layout << 1,
            xattr_count,
            _MODES[record.kind][0] | (0o777 if record.kind == Kind.SYMLINK else record.mode),
            0,
            size,
            address,
            item.nid & 0xFFFFFFFF,
            record.uid,
            record.gid,
            record.mtime_s,
            0,
            inode.links,
        )
        + item.xattrs
        + tail
    )
