"""A layer in one pass: compressed bytes in, blob and table out.

The blob holds the contents of the regular files, each at a block of its own; the table one record
per tar entry. Nothing is created on a file system but these two files, which is what makes it fast
(design, "Images": creating 11,500 inodes costs more than inflating their 227 MB).
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import ImageInvalid, StateCorrupt
from fargatelite.images import tar
from fargatelite.names import DiffId, Digest

__all__ = [
    "BLOCK_BYTES",
    "Kind",
    "LayerResult",
    "LayerWriter",
    "Record",
    "add_zeros",
    "read_table",
]

BLOCK_BYTES = 4096  # of EROFS; one page on every architecture that we run on
MAX_ENTRIES = 10_000_000  # a distribution has 10^5; the table of 10^7 would be 1 GB
MAX_LAYER_BYTES = 200 * 2**30  # Fargate's largest ephemeral storage, in which images are counted
MAX_TABLE_BYTES = 2**30  # of names, links and xattrs, which are in memory until `finish`
# How much is inflated at once: a bomb is in memory before its ratio can be looked at. 4 bytes of
# zstd can be a block of 128 KiB, so that 2 KiB are 64 MiB; zlib takes a limit itself.
MAX_STEP_BYTES = 4 * 2**20
GZIP_STEP_BYTES = 65536
ZSTD_STEP_BYTES = 2048
MAX_RATIO = 1100  # deflate cannot do more than 1032:1; zstd beyond it is a bomb, not a layer

_TABLE_MAGIC = b"FLTB"
TABLE_VERSION = 2  # 2: files have the CRC of their blocks; 1 had none
_ZEROS = bytes(2**20)


class Kind:
    """What a record is."""

    FILE, DIRECTORY, SYMLINK, HARD_LINK, CHAR, BLOCK, FIFO, WHITEOUT, OPAQUE = range(9)


class Record(msgspec.Struct, array_like=True, gc=False):
    """One entry of a layer. `path` has no leading slash; `block` is where a file's contents begin
    in the blob, in blocks; `device` is major, minor; `crc` is that of a file's blocks in the blob
    (CRC-32, the zeros of its holes and of its last block included), None in tables of version 1."""

    path: bytes
    kind: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0
    size: int = 0
    block: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    crc: int | None = None


class LayerResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a layer turned out to be."""

    digest: Digest
    diff_id: DiffId
    compressed_bytes: int
    blob_bytes: int
    entries: int
    blob: Path
    table: Path


_KINDS = {
    0: Kind.FILE,
    tar.REGULAR: Kind.FILE,
    tar.CONTIGUOUS: Kind.FILE,
    tar.SPARSE: Kind.FILE,
    tar.HARD_LINK: Kind.HARD_LINK,
    tar.SYMLINK: Kind.SYMLINK,
    tar.CHAR: Kind.CHAR,
    tar.BLOCK_DEVICE: Kind.BLOCK,
    tar.DIRECTORY: Kind.DIRECTORY,
    tar.FIFO: Kind.FIFO,
}


def add_zeros(crc: int, count: int) -> int:
    """The CRC-32 of what `crc` is of, followed by `count` zeros (25 GB a second)."""
    from isal.isal_zlib import crc32

    while count > 0:
        crc = crc32(_ZEROS[:count], crc)
        count -= len(_ZEROS)
    return crc


def clean_path(path: bytes) -> bytes:
    """A member's path relative to the root: no leading slash, no `.`, no empty component.

    Raises: ImageInvalid for `..` and for a name that no file system takes (CVE-2007-4559).
    """
    parts = [part for part in path.split(b"/") if part and part != b"."]
    for part in parts:
        if part == b"..":
            raise ImageInvalid(f"{path[:80]!r} leads out of the image")
        if len(part) > tar.MAX_NAME_BYTES:
            raise ImageInvalid(f"a name of {len(part)} bytes in {path[:80]!r}; at most 255")
    return b"/".join(parts)


class _Gzip:
    """One gzip member. `step` takes bytes and gives some plain ones and what it did not take."""

    def __init__(self) -> None:
        from isal import isal_zlib

        self._stream: Any = isal_zlib.decompressobj(wbits=31)
        self._error: Any = isal_zlib.error

    @property
    def is_done(self) -> bool:
        return bool(self._stream.eof)

    def step(self, data: memoryview) -> tuple[bytes, bytes | memoryview]:
        piece, rest = data[:GZIP_STEP_BYTES], data[GZIP_STEP_BYTES:]
        try:
            plain = self._stream.decompress(piece, MAX_STEP_BYTES)
            while not (self.is_done or self._stream.unconsumed_tail or len(plain) < MAX_STEP_BYTES):
                more = self._stream.decompress(b"", MAX_STEP_BYTES)  # what it holds back
                plain += more
                if not more:
                    break
        except self._error as error:
            raise ImageInvalid(f"cannot decompress a layer: {error}") from error
        left = self._stream.unused_data if self.is_done else self._stream.unconsumed_tail
        return plain, data[len(piece) - len(left) :] if left else rest


class _Zstd:
    """One zstd frame; skippable ones are empty."""

    def __init__(self) -> None:
        import zstandard

        # Frames of up to 128 MiB window: the limit of zstd's own command line.
        self._stream = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
        self._error = zstandard.ZstdError

    @property
    def is_done(self) -> bool:
        return bool(self._stream.eof)

    def step(self, data: memoryview) -> tuple[bytes, bytes | memoryview]:
        piece, rest = data[:ZSTD_STEP_BYTES], data[ZSTD_STEP_BYTES:]
        try:
            plain = self._stream.decompress(piece)
        except self._error as error:
            raise ImageInvalid(f"cannot decompress a layer: {error}") from error
        left = self._stream.unused_data if self.is_done else b""
        return plain, data[len(piece) - len(left) :] if left else rest


def _decompressor(media_type: str) -> type[_Gzip | _Zstd] | None:
    """What inflates a layer of this type; None for plain tar."""
    if media_type.endswith(("tar+gzip", "tar.gzip")):
        return _Gzip
    if media_type.endswith("tar+zstd"):
        return _Zstd
    if media_type.endswith((".tar", "rootfs.diff.tar")):
        return None
    raise ImageInvalid(f"layers of type {media_type!r} are not supported: expected gzip, zstd, tar")


class LayerWriter:
    """Feed it a layer's bytes as they arrive, then `finish`; `abort` removes what was written."""

    def __init__(self, directory: Path, media_type: str) -> None:
        self._decompressor = _decompressor(media_type)
        self._stream = self._decompressor() if self._decompressor is not None else None
        self._blob_path, self._table_path = directory / "blob.tmp", directory / "table.tmp"
        self._blob = os.open(
            self._blob_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        self._compressed = hashlib.sha256()
        self._plain = hashlib.sha256()
        self._compressed_bytes = 0
        self._plain_bytes = 0
        self._records: list[Record] = []
        self._table_bytes = 0
        self._next_block = 0
        self._parser = self._parse()
        self._wanted = next(self._parser)
        self._buffer = bytearray()
        self._may_end = False
        self._is_finished = False

    def feed(self, chunk: bytes | memoryview) -> None:
        """The next compressed bytes.

        Raises: ImageInvalid; OSError (ENOSPC).
        """
        self._compressed.update(chunk)
        self._compressed_bytes += len(chunk)
        if self._decompressor is None:
            self._feed_plain(chunk)
            return
        data = memoryview(chunk)
        while data:
            if self._stream is None or self._stream.is_done:  # concatenated members or frames
                self._stream = self._decompressor()
            plain, left = self._stream.step(data)
            data = memoryview(left)
            self._feed_plain(plain)

    def _feed_plain(self, plain: bytes | memoryview) -> None:
        if not plain:
            return
        self._plain.update(plain)
        self._plain_bytes += len(plain)
        if self._plain_bytes > MAX_LAYER_BYTES:
            raise ImageInvalid(f"a layer of over {MAX_LAYER_BYTES} bytes uncompressed")
        if self._plain_bytes > 2**20 and self._plain_bytes > self._compressed_bytes * MAX_RATIO:
            raise ImageInvalid("a layer inflates more than any real one does")
        if self._wanted < 0:  # after the end of the archive: padding
            return
        if self._buffer:
            self._buffer += plain
            data = memoryview(bytes(self._buffer))
            self._buffer.clear()
        else:
            data = memoryview(plain)
        at = 0
        # A positive wish is exact; the parser takes file contents (wish 0) as they come.
        while True:
            available = len(data) - at
            if self._wanted > available or (self._wanted == 0 and not available):
                break
            if self._wanted < 0:
                return
            piece = data[at : at + self._wanted] if self._wanted else data[at:]
            taken, self._wanted = self._parser.send(piece), 0
            at += taken
            self._wanted = next(self._parser)
        if at < len(data):
            self._buffer += data[at:]

    def _parse(self) -> Generator[Any, Any, Any]:
        """A coroutine: yields how many bytes it wants (0: any, -1: it is done), is sent them, and
        yields how many of them it took."""
        state = tar.PaxState()
        while True:
            block = bytes((yield tar.BLOCK))
            yield tar.BLOCK
            header = tar.parse_header(block)
            if header is None:
                while True:
                    yield -1
            if header.kind in (tar.PAX, tar.PAX_GLOBAL, tar.LONG_NAME, tar.LONG_LINK):
                if header.size > tar.MAX_PAX_BYTES:
                    raise ImageInvalid(
                        f"an extended tar header of {header.size} bytes; at most "
                        f"{tar.MAX_PAX_BYTES}"
                    )
                data = b""
                if header.size:
                    padded = -(-header.size // tar.BLOCK) * tar.BLOCK
                    data = bytes((yield padded))[: header.size]
                    yield padded
                self.extend(state, header.kind, data)
                continue
            segments = None
            if header.kind == tar.SPARSE:
                found, more, real_size = tar.parse_old_sparse(block)
                while more:
                    extension = bytes((yield tar.BLOCK))
                    yield tar.BLOCK
                    added, more = tar.parse_sparse_extension(extension)
                    found += added
                    if len(found) > tar.MAX_SPARSE_SEGMENTS:
                        raise ImageInvalid("sparse file of too many segments")
                segments = tar.check_segments(found, real_size)
            entry = tar.apply_pax(header, state)
            if segments is not None:
                entry = entry._replace(sparse=segments, size=real_size)
            is_pax_1_0 = state.next.get(b"GNU.sparse.major") == b"1"
            state.clear()
            yield from self._entry(entry, is_pax_1_0)

    @staticmethod
    def extend(state: tar.PaxState, kind: int, data: bytes) -> None:
        """Notes what an extended header says about the next entry."""
        if kind == tar.PAX:
            state.next = tar.parse_pax(data)
        elif kind == tar.PAX_GLOBAL:
            state.add_global(tar.parse_pax(data))
        elif kind == tar.LONG_NAME:
            state.long_name = data.partition(b"\0")[0]
        else:
            state.long_link = data.partition(b"\0")[0]

    def _entry(self, entry: tar.Entry, is_pax_1_0: bool) -> Generator[Any, Any, Any]:
        kind = _KINDS.get(entry.kind)
        if kind is None:
            raise ImageInvalid(f"tar entry {entry.path[:80]!r} of unknown type {entry.kind:#x}")
        if kind == Kind.FILE and entry.path.endswith(b"/"):
            kind = Kind.DIRECTORY  # as tar(1): archives older than the type did so
        path = clean_path(entry.path)
        if len(self._records) >= MAX_ENTRIES:
            raise ImageInvalid(f"a layer of over {MAX_ENTRIES} entries")
        self._table_bytes += len(path) + len(entry.link)
        self._table_bytes += sum(len(name) + len(value) for name, value in entry.xattrs)
        if self._table_bytes > MAX_TABLE_BYTES:
            raise ImageInvalid(
                f"the entries of a layer have over {MAX_TABLE_BYTES} bytes of names and attributes"
            )
        parent, _, name = path.rpartition(b"/")
        if name.startswith(b".wh."):
            if name == b".wh..wh..opq":
                self._records.append(Record(parent, Kind.OPAQUE))
            elif not name.startswith(b".wh..wh."):  # others are aufs' own bookkeeping
                hidden = clean_path(name[4:])
                if not hidden:
                    raise ImageInvalid(f"whiteout {path[:80]!r} hides nothing")
                target = parent + b"/" + hidden if parent else hidden
                self._records.append(Record(target, Kind.WHITEOUT))
            yield from self._skip(entry.stored)
            return
        if not path and kind != Kind.DIRECTORY:
            raise ImageInvalid("the root of a layer is not a directory")
        record = Record(
            path, kind, entry.mode, entry.uid, entry.gid, entry.mtime_s,
            entry.size if kind == Kind.FILE else 0, 0,
            clean_path(entry.link) if kind == Kind.HARD_LINK else entry.link,
            entry.device, entry.xattrs, 0 if kind == Kind.FILE else None,
        )  # fmt: skip
        self._records.append(record)
        if kind != Kind.FILE:
            yield from self._skip(entry.stored)
            return
        blocks = -(-entry.size // BLOCK_BYTES)
        if (self._next_block + blocks) * BLOCK_BYTES > MAX_LAYER_BYTES:
            raise ImageInvalid(f"the files of a layer have over {MAX_LAYER_BYTES} bytes")
        record.block = self._next_block
        self._next_block += blocks
        record.crc = yield from self._contents(entry, record.block * BLOCK_BYTES, is_pax_1_0)
        # umoci insert ends its archives without the last padding, and Go reads them (archive/tar).
        self._may_end = True
        yield from self._skip_exact(-entry.stored % tar.BLOCK)
        self._may_end = False

    def _skip(self, length: int) -> Generator[Any, Any, Any]:
        left = -(-length // tar.BLOCK) * tar.BLOCK
        while left:
            piece = yield 0
            taken = min(left, len(piece))
            left -= taken
            yield taken

    def _contents(self, entry: tar.Entry, base: int, is_pax_1_0: bool) -> Generator[Any, Any, int]:
        """Writes a file's contents at `base`; returns the CRC of its blocks."""
        from isal.isal_zlib import crc32

        stored = entry.stored
        segments: tuple[tuple[int, int], ...] = ((0, stored),) if stored else ()
        if is_pax_1_0:
            segments, used = yield from self._read_sparse_1_0(entry)
            stored -= used
        elif entry.sparse is not None:
            segments = entry.sparse
        elif stored > entry.size:
            raise ImageInvalid(f"{entry.path[:80]!r} has more than its size of {entry.size} bytes")
        if sum(length for _, length in segments) > stored:
            raise ImageInvalid(f"sparse map of {entry.path[:80]!r} asks for more than is stored")
        crc, end = 0, 0
        for offset, length in segments:
            crc = add_zeros(crc, offset - end)
            end = offset + length
            at, left = base + offset, length
            stored -= length
            while left:
                piece = yield 0
                taken = min(left, len(piece))
                view = piece[:taken]
                written = 0
                while written < taken:
                    written += os.pwrite(self._blob, view[written:], at + written)
                crc = crc32(view, crc)
                at += taken
                left -= taken
                yield taken
        yield from self._skip_exact(stored)
        return add_zeros(crc, -(-entry.size // BLOCK_BYTES) * BLOCK_BYTES - end)

    def _skip_exact(self, left: int) -> Generator[Any, Any, Any]:
        while left:
            piece = yield 0
            taken = min(left, len(piece))
            left -= taken
            yield taken

    def _read_sparse_1_0(self, entry: tar.Entry) -> Generator[Any, Any, Any]:
        """The map at the head of the contents: decimal numbers, a line each, padded to a block."""
        text, used = b"", 0
        numbers: list[int] = []
        wanted: int | None = None
        while wanted is None or len(numbers) < wanted:
            if used + tar.BLOCK > entry.stored or used > 32 * tar.MAX_SPARSE_SEGMENTS:
                raise ImageInvalid("sparse map is longer than its file")
            text += bytes((yield tar.BLOCK))
            yield tar.BLOCK
            used += tar.BLOCK
            *lines, text = text.split(b"\n")
            for line in lines:
                if not line.isdigit() or len(line) > 19:
                    if wanted is not None and len(numbers) >= wanted:
                        break
                    raise ImageInvalid("sparse map: no number")
                if wanted is None:
                    wanted = 2 * int(line)
                    if wanted > 2 * tar.MAX_SPARSE_SEGMENTS:
                        raise ImageInvalid("sparse file of too many segments")
                else:
                    numbers.append(int(line))
        pairs = list(zip(numbers[:wanted:2], numbers[1:wanted:2], strict=True))
        return tar.check_segments(pairs, entry.size), used

    def finish(self) -> LayerResult:
        """Writes the table; the result's files are the caller's to publish.

        Raises: ImageInvalid when the stream ended early; OSError.
        """
        if self._stream is not None and not self._stream.is_done:
            raise ImageInvalid("a layer ends in the middle of its compressed stream")
        is_between = self._wanted < 0 or (self._wanted == tar.BLOCK and not self._buffer)
        if not is_between and not self._may_end:
            raise ImageInvalid("a layer ends in the middle of a tar entry")
        os.ftruncate(self._blob, self._next_block * BLOCK_BYTES)
        os.close(self._blob)
        self._blob = -1
        body = msgspec.msgpack.encode(self._records)
        with open(
            self._table_path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)
        ) as out:
            out.write(_TABLE_MAGIC + struct.pack("<HHI", TABLE_VERSION, 0, zlib.crc32(body)) + body)
        self._is_finished = True
        return LayerResult(
            digest=Digest(f"sha256:{self._compressed.hexdigest()}"),
            diff_id=DiffId(f"sha256:{self._plain.hexdigest()}"),
            compressed_bytes=self._compressed_bytes,
            blob_bytes=self._next_block * BLOCK_BYTES,
            entries=len(self._records),
            blob=self._blob_path,
            table=self._table_path,
        )

    def abort(self) -> None:
        """Removes the temporary files; may be repeated, and does nothing after `finish`."""
        if self._is_finished:
            return
        if self._blob >= 0:
            os.close(self._blob)
            self._blob = -1
        for path in (self._blob_path, self._table_path):
            path.unlink(missing_ok=True)


def read_table(path: Path) -> list[Record]:
    """The records of a table.

    Raises: StateCorrupt for a wrong magic, version or checksum.
    """
    data = path.read_bytes()
    if len(data) < 12 or data[:4] != _TABLE_MAGIC:
        raise StateCorrupt(f"{path} is no layer table", path=path)
    version, _, crc = struct.unpack_from("<HHI", data, 4)
    if version not in (1, TABLE_VERSION):
        raise StateCorrupt(
            f"{path} is of version {version}, this reads 1 and {TABLE_VERSION}; pull it again",
            path=path,
        )
    body = memoryview(data)[12:]
    if zlib.crc32(body) != crc:
        raise StateCorrupt(f"{path}: wrong CRC; pull the image again", path=path)
    return msgspec.msgpack.decode(body, type=list[Record])
