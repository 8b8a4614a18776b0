"""Headers of tar streams from strangers: bytes in, bounded entries out.

ustar, GNU long names and links, pax records (paths, sizes, times, ids, xattrs) and GNU/pax sparse
files. Never extracts anything. Every number, name and count is bounded by a named limit, since this
parser is the security boundary of the image store (attacks: CVE-2007-4559 and its family,
CVE-2025-4517, CVE-2017-14992).
"""

from __future__ import annotations

from typing import NamedTuple

from fargatelite.errors import ImageInvalid

__all__ = ["BLOCK", "Entry", "Header", "PaxState", "apply_pax", "parse_header", "parse_pax"]

BLOCK = 512
MAX_PATH_BYTES = 4095  # PATH_MAX - 1: nothing longer can be opened
MAX_NAME_BYTES = 255  # NAME_MAX of every Linux file system that we write
MAX_LINK_BYTES = 4095
MAX_PAX_BYTES = 1024 * 1024  # one extended header: 64 KiB of xattrs and long paths fit 10 times
MAX_XATTR_NAME_BYTES = 255  # XATTR_NAME_MAX
MAX_XATTR_VALUE_BYTES = 65535  # XATTR_SIZE_MAX
MAX_XATTRS = 256  # of one file
MAX_XATTRS_BYTES = 256_000  # of one file: EROFS counts them in 16 bits of 4 bytes
MAX_GLOBAL_RECORDS = 64  # of pax headers for all entries: they are merged into each of them
MAX_GLOBAL_BYTES = 65536
MAX_DIGITS = 20  # of 64 bits
MAX_TIME_S = 2**63 - 1  # time64_t
MAX_DEVICE = (2**12 - 1, 2**20 - 1)  # new_encode_dev() of the kernel
MAX_FILE_BYTES = 1 << 40  # 1 TiB; the layer's quota is lower

REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0123456"
CONTIGUOUS = ord("7")
LONG_NAME, LONG_LINK = ord("L"), ord("K")
PAX, PAX_GLOBAL, SPARSE = ord("x"), ord("g"), ord("S")
# What follows them is the next header, whatever their size says: so do Go's archive/tar (Docker,
# containerd) and Python's, and a reader that differs would see other members than they do.
_WITHOUT_CONTENTS = (HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO)


class Header(NamedTuple):
    """One 512-byte header. `size` is the length of what follows in the stream."""

    kind: int
    path: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    device_major: int
    device_minor: int


class Entry(NamedTuple):
    """One member of an archive, after long names and pax records; `size` is the file's own length,
    `stored` that of its bytes in the stream (smaller for a sparse file)."""

    kind: int
    path: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    stored: int
    mtime_s: int
    device: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]
    sparse: tuple[tuple[int, int], ...] | None


def _text(block: bytes, start: int, length: int) -> bytes:
    field = block[start : start + length]
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def _number(block: bytes, start: int, length: int, what: str) -> int:
    field = block[start : start + length]
    if field[0] & 0x80:  # GNU base-256: two's complement, the top bit is the mark
        value = int.from_bytes(field, "big")
        value &= (1 << (8 * length - 1)) - 1
        if field[0] & 0x40:
            value -= 1 << (8 * length - 1)
        return value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:  # int() takes signs, 0o and _ too
        raise ImageInvalid(f"tar header: {what} {bytes(digits)!r} is no octal number")
    return int(digits, 8)


def parse_header(block: bytes) -> Header | None:
    """The header in a 512-byte block; None for a block of zeros (the end).

    Raises: ImageInvalid for a wrong checksum, a number that is none, or a length out of bounds.
    """
    stored = _number(block, 148, 8, "checksum")
    computed = sum(block) - sum(block[148:156]) + 8 * 32
    if stored != computed:
        if not any(block):
            return None
        raise ImageInvalid("tar header: wrong checksum; the layer is damaged or not a tar archive")
    path = _text(block, 0, 100)
    if block[257:262] == b"ustar" and block[263:265] == b"00":
        prefix = _text(block, 345, 155)
        if prefix:
            path = prefix + b"/" + path
    size = _number(block, 124, 12, "size")
    if not 0 <= size <= MAX_FILE_BYTES:
        raise ImageInvalid(f"tar header: size {size} is outside 0..{MAX_FILE_BYTES}")
    return Header(
        kind=block[156],
        path=path,
        link=_text(block, 157, 100),
        mode=_number(block, 100, 8, "mode") & 0o7777,
        uid=_number(block, 108, 8, "uid"),
        gid=_number(block, 116, 8, "gid"),
        size=size,
        mtime_s=_number(block, 136, 12, "mtime"),
        device_major=_number(block, 329, 8, "major device number"),
        device_minor=_number(block, 337, 8, "minor device number"),
    )


class PaxState:
    """What extended headers said about the next entry, and about all that follow."""

    def __init__(self) -> None:
        self.everywhere: dict[bytes, bytes] = {}
        self.next: dict[bytes, bytes] = {}
        self.long_name: bytes | None = None
        self.long_link: bytes | None = None

    def add_global(self, records: dict[bytes, bytes]) -> None:
        """Records for all entries that follow. Raises: ImageInvalid when they pile up."""
        self.everywhere.update(records)
        length = sum(len(key) + len(value) for key, value in self.everywhere.items())
        if len(self.everywhere) > MAX_GLOBAL_RECORDS or length > MAX_GLOBAL_BYTES:
            raise ImageInvalid(
                f"global pax headers of over {MAX_GLOBAL_RECORDS} records or {MAX_GLOBAL_BYTES} "
                "bytes"
            )

    def clear(self) -> None:
        """After the entry that they were for."""
        self.next = {}
        self.long_name = self.long_link = None


_SPARSE_0_0 = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax extended header: `length key=value\\n`, length counting itself.

    GNU's sparse format 0.0 repeats two keys in turn; they come out as the map of format 0.1.
    Raises: ImageInvalid.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        if space < 0 or not data[at:space].isdigit():
            raise ImageInvalid("pax header: a record has no length")
        length = int(data[at:space])
        end = at + length
        if length <= space - at + 2 or end > len(data) or data[end - 1 : end] != b"\n":
            raise ImageInvalid(f"pax header: a record of {length} bytes does not fit")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise ImageInvalid("pax header: a record has no key")
        if key in _SPARSE_0_0:
            if key != _SPARSE_0_0[len(sparse) % 2]:
                raise ImageInvalid("pax header: a sparse map whose offsets and lengths do not pair")
            sparse.append(value)
        records[key] = value
        at = end
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _decimal(value: bytes, what: str) -> int:
    whole = value.partition(b".")[0]
    if not whole.removeprefix(b"-").isdigit() or len(whole) > MAX_DIGITS:
        raise ImageInvalid(f"pax header: {what} {value[:40]!r} is no number")
    return int(whole)


def _xattrs(records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in records.items():
        if key.startswith(b"SCHILY.xattr."):
            name = key[13:]
        elif key.startswith(b"LIBARCHIVE.xattr."):
            continue  # the same again, encoded
        else:
            continue
        if len(name) > MAX_XATTR_NAME_BYTES or len(value) > MAX_XATTR_VALUE_BYTES or b"\0" in name:
            raise ImageInvalid(f"xattr {name[:60]!r} is beyond the kernel's limits")
        # overlayfs would obey its own attributes, whoever wrote them.
        if name.startswith((b"trusted.", b"user.overlay.")):
            continue
        if name.partition(b".")[0] not in (b"user", b"security", b"system"):
            continue
        found.append((name, value))
    if len(found) > MAX_XATTRS:
        raise ImageInvalid(f"{len(found)} xattrs on one file; at most {MAX_XATTRS}")
    length = sum(len(name) + len(value) + 8 for name, value in found)
    if length > MAX_XATTRS_BYTES:
        raise ImageInvalid(f"{length} bytes of xattrs on one file; at most {MAX_XATTRS_BYTES}")
    return tuple(sorted(found))


def apply_pax(header: Header, state: PaxState) -> Entry:
    """The entry that header and extended headers describe; a pax record beats the header.

    Raises: ImageInvalid.
    """
    records = {**state.everywhere, **state.next} if state.everywhere else state.next
    path = state.long_name if state.long_name is not None else header.path
    link = state.long_link if state.long_link is not None else header.link
    uid, gid, stored, mtime = header.uid, header.gid, header.size, header.mtime_s
    size = stored
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    if records:
        path = records.get(b"path", path)
        link = records.get(b"linkpath", link)
        if b"uid" in records:
            uid = _decimal(records[b"uid"], "uid")
        if b"gid" in records:
            gid = _decimal(records[b"gid"], "gid")
        if b"mtime" in records:
            mtime = _decimal(records[b"mtime"], "mtime")
        if b"size" in records:
            size = stored = _decimal(records[b"size"], "size")
        for key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
            if key in records:
                size = _decimal(records[key], "sparse size")
        path = records.get(b"GNU.sparse.name", path)
        xattrs = _xattrs(records)
    if header.kind in _WITHOUT_CONTENTS:
        size = stored = 0
    if not 0 <= size <= MAX_FILE_BYTES or not 0 <= stored <= MAX_FILE_BYTES:
        raise ImageInvalid(f"size {size} of {path[:80]!r} is outside 0..{MAX_FILE_BYTES}")
    if b"\0" in path or b"\0" in link:
        raise ImageInvalid(f"NUL byte in a path: {path[:80]!r}")
    if len(path) > MAX_PATH_BYTES + 1 or len(link) > MAX_LINK_BYTES:
        raise ImageInvalid(f"a path of {max(len(path), len(link))} bytes; at most {MAX_PATH_BYTES}")
    if not (0 <= uid < 2**32 - 1 and 0 <= gid < 2**32 - 1):
        raise ImageInvalid(f"owner {uid}:{gid} of {path[:80]!r} is out of range")
    if mtime > MAX_TIME_S:
        raise ImageInvalid(f"time {mtime} of {path[:80]!r} is out of range")
    device = (0, 0)
    if header.kind in (CHAR, BLOCK_DEVICE):
        device = (header.device_major, header.device_minor)
        if not (0 <= device[0] <= MAX_DEVICE[0] and 0 <= device[1] <= MAX_DEVICE[1]):
            raise ImageInvalid(f"device {device[0]}:{device[1]} of {path[:80]!r} is out of range")
    return Entry(
        kind=header.kind,
        path=path,
        link=link,
        mode=header.mode,
        uid=uid,
        gid=gid,
        size=size,
        stored=stored,
        mtime_s=max(0, mtime),
        device=device,
        xattrs=xattrs,
        sparse=_sparse_map(records, size) if b"GNU.sparse.map" in records else None,
    )


MAX_SPARSE_SEGMENTS = 65536


def _check_segments(segments: list[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
    if len(segments) > MAX_SPARSE_SEGMENTS:
        raise ImageInvalid(
            f"sparse file of {len(segments)} segments; at most {MAX_SPARSE_SEGMENTS}"
        )
    if not 0 <= size <= MAX_FILE_BYTES:
        raise ImageInvalid(f"size {size} of a sparse file is outside 0..{MAX_FILE_BYTES}")
    end = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > size:
            raise ImageInvalid("sparse map: segments overlap or go beyond the file")
        end = offset + length
    return tuple(segments)


def _sparse_map(records: dict[bytes, bytes], size: int) -> tuple[tuple[int, int], ...]:
    """GNU.sparse.map of pax formats 0.1: offset,length,offset,length..."""
    numbers = [_decimal(word, "sparse map") for word in records[b"GNU.sparse.map"].split(b",")]
    if len(numbers) % 2:
        raise ImageInvalid("sparse map: an offset without length")
    return _check_segments(list(zip(numbers[::2], numbers[1::2], strict=True)), size)


def parse_old_sparse(block: bytes) -> tuple[list[tuple[int, int]], bool, int]:
    """Of an old GNU sparse header (type S): its segments, whether more follow, the real size."""
    segments = [
        (_number(block, 386 + 24 * i, 12, "offset"), _number(block, 398 + 24 * i, 12, "length"))
        for i in range(4)
        if block[386 + 24 * i]
    ]
    return segments, block[482] == 1, _number(block, 483, 12, "real size")


def parse_sparse_extension(block: bytes) -> tuple[list[tuple[int, int]], bool]:
    """A block that continues an old GNU sparse header: 21 segments, whether more follow."""
    segments = [
        (_number(block, 24 * i, 12, "offset"), _number(block, 12 + 24 * i, 12, "length"))
        for i in range(21)
        if block[24 * i]
    ]
    return segments, block[504] == 1


def check_segments(segments: list[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
    """Segments in order, without overlap, within the file. Raises: ImageInvalid."""
    return _check_segments(segments, size)
