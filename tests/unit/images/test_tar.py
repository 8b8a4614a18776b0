"""Tar streams from strangers: bounded entries or ImageInvalid, never anything else."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fargatelite.errors import ImageInvalid
from fargatelite.images import tar
from fargatelite.images.layer import BLOCK_BYTES, Kind, LayerWriter, Record, read_table
from fargatelite.images.tar import PaxState, apply_pax, parse_header, parse_pax

PLAIN = "application/vnd.oci.image.layer.v1.tar"


def block_of(**fields: Any) -> bytes:
    """One header with a right checksum; a field given as bytes is taken as it is."""
    header = bytearray(512)

    def put(at: int, length: int, value: int | bytes) -> None:
        data = value if isinstance(value, bytes) else b"%0*o\0" % (length - 1, value)
        header[at : at + len(data)] = data

    put(0, 100, fields.get("name", b"file"))
    put(100, 8, fields.get("mode", 0o644))
    put(108, 8, fields.get("uid", 0))
    put(116, 8, fields.get("gid", 0))
    put(124, 12, fields.get("size", 0))
    put(136, 12, fields.get("mtime", 0))
    put(156, 1, fields.get("kind", b"0"))
    put(157, 100, fields.get("link", b""))
    put(257, 8, fields.get("magic", b"ustar\x0000"))
    put(329, 8, fields.get("major", 0))
    put(337, 8, fields.get("minor", 0))
    put(345, 155, fields.get("prefix", b""))
    for at, data in fields.get("raw", ()):
        header[at : at + len(data)] = data
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def member(data: bytes = b"", **fields: Any) -> bytes:
    """A header and its padded contents."""
    return block_of(**{"size": len(data), **fields}) + data + b"\0" * (-len(data) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax extended header."""
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        body += b"%d %s=%s\n" % (length, key, value)
    return member(body, kind=kind, name=b"pax")


def unpack(directory: Path, data: bytes) -> tuple[list[Record], bytes]:
    """The records and the blob of a plain layer."""
    writer = LayerWriter(directory, PLAIN)
    try:
        writer.feed(data)
        result = writer.finish()
    finally:
        writer.abort()
    records = read_table(result.table)
    blob = result.blob.read_bytes()
    assert len(blob) == result.blob_bytes
    return records, blob


def contents(record: Record, blob: bytes) -> bytes:
    """A file's bytes in the blob."""
    return blob[record.block * BLOCK_BYTES :][: record.size]


END = b"\0" * 1024

# ---- headers ----


def test_header() -> None:
    found = parse_header(
        block_of(
            name=b"a", prefix=b"long/way", mode=0o104755, uid=7, gid=8, size=9, mtime=10,
            kind=b"3", major=11, minor=12,
        )
    )  # fmt: skip
    assert found == tar.Header(
        kind=tar.CHAR, path=b"long/way/a", link=b"", mode=0o4755, uid=7, gid=8, size=9, mtime_s=10,
        device_major=11, device_minor=12,
    )  # fmt: skip


def test_prefix_is_of_ustar_only() -> None:
    # GNU's own format keeps other things there (`ustar  \0`).
    found = parse_header(block_of(name=b"a", prefix=b"12345", magic=b"ustar  \0"))
    assert found is not None
    assert found.path == b"a"


def test_zeros_are_the_end() -> None:
    assert parse_header(b"\0" * 512) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"\x80" + (0).to_bytes(3, "big") + (10**15).to_bytes(8, "big"), None),
        (b"\x80" + (10**10).to_bytes(11, "big"), 10**10),
        (b"\xff" * 12, None),
        (b"00000000017\0", 15),
        (b"         17 ", 15),
        (b"\0" * 12, 0),
        (b"0000000x\0\0\0\0", None),
        (b"0o17\0\0\0\0\0\0\0\0", None),
        (b"1_7\0\0\0\0\0\0\0\0\0", None),
        (b"-17\0\0\0\0\0\0\0\0\0", None),
        (b"+17\0\0\0\0\0\0\0\0\0", None),
        (b"\t17\0\0\0\0\0\0\0\0\0", None),
    ],
)
def test_numbers(field: bytes, value: int | None) -> None:
    block = block_of(size=field)
    if value is None:
        with pytest.raises(ImageInvalid, match="tar header: size"):
            parse_header(block)
    else:
        found = parse_header(block)
        assert found is not None
        assert found.size == value


def test_negative_time_of_base_256_is_the_epoch() -> None:
    header = parse_header(block_of(mtime=b"\xff" * 11 + b"\xfe"))
    assert header is not None
    assert header.mtime_s == -2
    assert apply_pax(header, PaxState()).mtime_s == 0


@pytest.mark.parametrize("numbers", [{"major": 4096}, {"minor": 1 << 20}, {"minor": b"\xff" * 8}])
def test_device_numbers_that_no_kernel_has(numbers: dict[str, Any]) -> None:
    header = parse_header(block_of(kind=b"3", **numbers))
    assert header is not None
    with pytest.raises(ImageInvalid, match=r"device .* is out of range"):
        apply_pax(header, PaxState())
    # Other types have no device: what stands there is nobody's business.
    assert apply_pax(header._replace(kind=tar.REGULAR), PaxState()).device == (0, 0)


def test_wrong_checksum_is_told() -> None:
    block = bytearray(block_of())
    block[0] ^= 1
    with pytest.raises(ImageInvalid, match="wrong checksum; the layer is damaged"):
        parse_header(bytes(block))


@given(st.binary(min_size=512, max_size=512))
def test_any_block_is_a_header_or_invalid(block: bytes) -> None:
    fixed = bytearray(block)
    fixed[148:156] = b" " * 8
    fixed[148:156] = b"%06o\0 " % sum(fixed)
    for candidate in (block, bytes(fixed)):
        try:
            header = parse_header(candidate)
            if header is not None:
                _check_bounds(apply_pax(header, PaxState()))
        except ImageInvalid:
            continue


def _check_bounds(entry: tar.Entry) -> None:
    assert 0 <= entry.size <= tar.MAX_FILE_BYTES
    assert 0 <= entry.stored <= tar.MAX_FILE_BYTES
    assert 0 <= entry.uid < 2**32 - 1
    assert 0 <= entry.gid < 2**32 - 1
    assert 0 <= entry.mtime_s < 2**63
    assert 0 <= entry.mode <= 0o7777
    # new_encode_dev() of the kernel: 12 bits and 20.
    assert 0 <= entry.device[0] < 2**12
    assert 0 <= entry.device[1] < 2**20
    assert b"\0" not in entry.path + entry.link


# ---- pax ----


def test_pax_records_beat_the_header_and_last_for_one_entry(tmp_path: Path) -> None:
    long = b"d/" * 100 + b"name"
    records, blob = unpack(
        tmp_path,
        pax(
            (b"path", long), (b"uid", b"4294967294"), (b"gid", b"3000000"), (b"size", b"5"),
            (b"mtime", b"1700000000.123456789"), (b"SCHILY.xattr.user.a", b"1=2\n\0"),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"), (b"comment", b"x"),
            (b"SCHILY.xattr.user.overlay.opaque", b"y"),
        )
        + block_of(size=0) + b"hello".ljust(512, b"\0") + member(b"next") + END,
    )  # fmt: skip
    first, second = records
    assert (first.path, first.uid, first.gid) == (long, 4294967294, 3000000)
    assert (first.mtime_s, first.xattrs) == (1700000000, ((b"user.a", b"1=2\n\0"),))
    assert contents(first, blob) == b"hello"
    assert (second.path, second.uid, second.xattrs) == (b"file", 0, ())
    assert contents(second, blob) == b"next"


def test_global_pax_records_last_until_the_next_ones(tmp_path: Path) -> None:
    records, _ = unpack(
        tmp_path,
        pax((b"uid", b"5"), (b"mtime", b"9"), kind=b"g") + member(name=b"a")
        + pax((b"uid", b"6")) + member(name=b"b") + member(name=b"c")
        + pax((b"uid", b"7"), kind=b"g") + member(name=b"d") + END,
    )  # fmt: skip
    assert [(r.path, r.uid, r.mtime_s) for r in records] == [
        (b"a", 5, 9), (b"b", 6, 9), (b"c", 5, 9), (b"d", 7, 9),
    ]  # fmt: skip


def test_pax_link_path(tmp_path: Path) -> None:
    target = b"t" * 300
    records, _ = unpack(tmp_path, pax((b"linkpath", target)) + member(kind=b"2") + END)
    assert (records[0].kind, records[0].link) == (Kind.SYMLINK, target)


@pytest.mark.parametrize(
    "data",
    [
        b"x", b"5\n", b" a=b\n", b"0 a=b\n", b"6 a=b", b"99 a=b\n", b"6 =bb\n", b"6 abb\n",
        b"5 a=b\n", b"-6 a=b\n", b"1234567890123 a=b\n", b"3 =\n", b"6 a=b\n6",
    ],
)  # fmt: skip
def test_bad_pax_headers(data: bytes) -> None:
    with pytest.raises(ImageInvalid, match="pax header"):
        parse_pax(data)


@pytest.mark.parametrize(
    "record",
    [
        (b"uid", b"-1"), (b"uid", b"4294967295"), (b"gid", b"1e3"), (b"size", b"-1"),
        (b"size", b"99999999999999"), (b"size", b""), (b"uid", b"1" * 5000), (b"mtime", b"now"),
        (b"path", b"a\0b"), (b"path", b"a" * 5000), (b"linkpath", b"a\0b"),
        (b"path", b"a/../../b"), (b"path", b"n" * 256), (b"path", b""),
        (b"mtime", b"99999999999999999999999999"), (b"uid", b"1_0"), (b"size", b"\xd9\xa3"),
        (b"SCHILY.xattr.user." + b"n" * 251, b""), (b"SCHILY.xattr.user.a", b"v" * 65536),
        (b"SCHILY.xattr.user.a\0b", b""),
        (b"GNU.sparse.realsize", b"-1"), (b"GNU.sparse.map", b"0"), (b"GNU.sparse.map", b"a,b"),
        (b"GNU.sparse.map", b"0,1,0,1"), (b"GNU.sparse.map", b"0,-1"), (b"GNU.sparse.map", b""),
        (b"GNU.sparse.map", b"0,99999999999999999999999"),
    ],
)  # fmt: skip
def test_pax_values_out_of_bounds(tmp_path: Path, record: tuple[bytes, bytes]) -> None:
    with pytest.raises(ImageInvalid):
        unpack(tmp_path, pax(record) + member(b"contents") + END)


def test_too_many_xattrs(tmp_path: Path) -> None:
    names = [(b"SCHILY.xattr.user.%d" % number, b"v") for number in range(257)]
    with pytest.raises(ImageInvalid, match="257 xattrs on one file; at most 256"):
        unpack(tmp_path, pax(*names) + member() + END)


def test_xattrs_that_no_inode_holds(tmp_path: Path) -> None:
    # EROFS counts them in 16 bits of 4 bytes.
    names = [(b"SCHILY.xattr.user.%d" % number, b"v" * 65000) for number in range(10)]
    with pytest.raises(ImageInvalid, match="bytes of xattrs on one file"):
        unpack(tmp_path, pax(*names) + member() + END)


def test_extended_header_that_never_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="an extended tar header of 1048577 bytes"):
        unpack(tmp_path, block_of(kind=b"x", size=tar.MAX_PAX_BYTES + 1))


def test_global_headers_do_not_pile_up(tmp_path: Path) -> None:
    writer = LayerWriter(tmp_path, PLAIN)
    writer.feed(pax((b"key", b"v" * 60_000), kind=b"g"))
    writer.feed(pax((b"key", b"w" * 60_000), kind=b"g"))
    with pytest.raises(ImageInvalid, match="global pax headers of over"):
        writer.feed(pax((b"other", b"v" * 60_000), kind=b"g"))
    writer.abort()
    with pytest.raises(ImageInvalid, match="global pax headers of over 64 records"):
        unpack(tmp_path, pax(*((b"%d" % number, b"") for number in range(65)), kind=b"g"))


@given(st.binary(max_size=80) | st.from_regex(rb"([0-9]{1,3} [a-z.A-Z]{1,6}=[^\n]{0,9}\n){0,4}"))
def test_any_pax_header_is_parsed_or_invalid(data: bytes) -> None:
    try:
        records = parse_pax(data)
    except ImageInvalid:
        return
    assert all(records)


# ---- GNU ----


def test_gnu_long_names_and_links(tmp_path: Path) -> None:
    name, target = b"a/" * 150 + b"b", b"t" * 200
    records, _ = unpack(
        tmp_path,
        member(name + b"\0", kind=b"L", name=b"././@LongLink")
        + member(target + b"\0", kind=b"K", name=b"././@LongLink")
        + member(name=b"short", link=b"short", kind=b"2") + member(name=b"after") + END,
    )  # fmt: skip
    assert (records[0].path, records[0].link) == (name, target)
    assert (records[1].path, records[1].link) == (b"after", b"")


def _gnu_tar(directory: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["tar", "-C", directory, "--sort=name", "-cf", "-", *arguments],
        check=True, capture_output=True,
    ).stdout  # fmt: skip


FORMATS = [
    ["--format=gnu"],
    ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"],
    ["--format=posix", "--sparse-version=1.0"],
]


@pytest.mark.parametrize("arguments", FORMATS, ids=" ".join)
@pytest.mark.parametrize("segments", [0, 1, 4, 30, 200])
def test_sparse_files_of_gnu_tar(tmp_path: Path, arguments: list[str], segments: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "holes", "wb") as file:
        for number in range(segments):
            file.seek((2 * number + 1) * 65536)
            file.write(b"%08d" % number * 700)
        file.truncate(segments * 131072 + 262144 + 7)
    (source / "x-after").write_bytes(b"after")
    archive = _gnu_tar(source, "--sparse", *arguments, "holes", "x-after")
    assert len(archive) < segments * 10240 + 65536  # GNU tar did keep the holes
    records, blob = unpack(tmp_path, archive)
    assert [record.path for record in records] == [b"holes", b"x-after"]
    assert contents(records[0], blob) == (source / "holes").read_bytes()
    assert contents(records[1], blob) == b"after"


def test_sparse_file_keeps_its_holes_in_the_blob(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "holes", "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    writer = LayerWriter(tmp_path, PLAIN)
    writer.feed(_gnu_tar(source, "--sparse", "--format=posix", "holes"))
    result = writer.finish()
    assert result.blob_bytes == 1 << 30
    assert result.blob.stat().st_blocks * 512 <= 65536


def old_sparse(size: int, real: int | bytes, *segments: tuple[int, int]) -> bytes:
    """The header of an old GNU sparse file."""
    raw = []
    for index, (offset, length) in enumerate(segments):
        raw.append((386 + 24 * index, b"%011o\0%011o\0" % (offset, length)))
    raw.append((483, real if isinstance(real, bytes) else b"%011o\0" % real))
    return block_of(kind=b"S", size=size, magic=b"ustar  \0", raw=raw)


@pytest.mark.parametrize(
    "header",
    [
        old_sparse(0, b"\xff" * 11 + b"\x00"),
        old_sparse(0, b"\x80" + b"\xff" * 11),
        old_sparse(512, 512, (0, 512), (0, 512)),
        old_sparse(512, 100, (0, 512)),
        old_sparse(512, 4096, (512, 512), (0, 512)),
        old_sparse(5, 4096, (0, 512)),
    ],
    ids=["negative", "huge", "overlap", "beyond", "disorder", "not-stored"],
)
def test_bad_old_sparse_maps(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ImageInvalid):
        unpack(tmp_path, member(b"first", name=b"a") + header + b"\0" * 512 + END)


@pytest.mark.parametrize(
    "text",
    [b"x\n", b"1\n0\n", b"-1\n", b"1\n0\n99999\n", b"99999999\n", b"\n", b"1\n5\n5\n",
     b"2\n0\n1\n"],
)  # fmt: skip
def test_bad_sparse_maps_of_pax_1_0(tmp_path: Path, text: bytes) -> None:
    head = pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"8")
    )
    with pytest.raises(ImageInvalid):
        unpack(tmp_path, head + member(text.ljust(512, b"\0")) + END)


def test_size_without_map_cannot_leave_a_file_shorter_than_its_bytes(tmp_path: Path) -> None:
    # The bytes would land in the blocks of the file behind it.
    with pytest.raises(ImageInvalid, match="more than its size"):
        unpack(tmp_path, pax((b"GNU.sparse.size", b"1")) + member(b"x" * 9000) + END)


# ---- the peer ----


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_size_of_what_has_no_contents_is_ignored(tmp_path: Path, kind: bytes) -> None:
    """As Go's archive/tar (Docker, containerd) and, for links, GNU tar do: a reader that skips the
    size would see other members than they do."""
    data = (
        member(name=b"target") + block_of(name=b"odd", link=b"target", kind=kind, size=512)
        + member(b"seen", name=b"hidden") + END
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["target", "odd", "hidden"]
    records, _ = unpack(tmp_path, data)
    assert [record.path for record in records] == [b"target", b"odd", b"hidden"]


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"N", b"Z", b"\xff"])
def test_unknown_types_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ImageInvalid, match="of unknown type"):
        unpack(tmp_path, member(kind=kind) + END)


_FIELD = st.binary(max_size=12) | st.integers(0, 8**7 - 1).map(lambda number: b"%o\0" % number)
_MEMBER = st.builds(
    lambda data, fields: member(data, **fields),
    st.binary(max_size=600),
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.binary(max_size=100),
            "kind": st.sampled_from([bytes([c]) for c in b"0123456 7xgLKSV\0"]),
            "link": st.binary(max_size=100),
            "size": _FIELD,
            "uid": _FIELD.map(lambda data: data[:8]),
            "mtime": _FIELD,
            "major": _FIELD.map(lambda data: data[:8]),
            "raw": st.lists(st.tuples(st.integers(386, 500), _FIELD), max_size=4),
        },
    ),
)
_KEYS = [
    b"path", b"linkpath", b"size", b"uid", b"mtime", b"GNU.sparse.major", b"GNU.sparse.map",
    b"GNU.sparse.realsize", b"GNU.sparse.size", b"GNU.sparse.name", b"SCHILY.xattr.user.a",
    b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.numblocks",
]  # fmt: skip
_PAX = st.builds(
    lambda records, kind: pax(*records, kind=kind),
    st.lists(
        st.tuples(
            st.sampled_from(_KEYS),
            st.binary(max_size=20)
            | st.integers(-5, 2000).map(lambda number: b"%d" % number)
            | st.lists(st.integers(0, 2000), max_size=6).map(
                lambda numbers: b",".join(b"%d" % number for number in numbers)
            ),
        ),
        max_size=5,
    ),
    st.sampled_from([b"x", b"g"]),
)


@given(
    parts=st.lists(_MEMBER | _PAX | st.binary(max_size=1200), max_size=6),
    cut=st.integers(0, 2000),
)
@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stream_gives_records_or_invalid(tmp_path: Path, parts: list[bytes], cut: int) -> None:
    data = b"".join(parts)
    data = data[: len(data) - cut] if cut < len(data) and cut % 3 == 0 else data + END
    try:
        records, blob = unpack(tmp_path, data)
    except ImageInvalid:
        assert not list(tmp_path.iterdir())
        return
    end = 0
    for record in records:
        assert b".." not in record.path.split(b"/")
        assert not record.path.startswith(b"/")
        if record.kind == Kind.FILE:
            assert record.block >= end
            end = record.block + -(-record.size // BLOCK_BYTES)
    assert end * BLOCK_BYTES <= len(blob)
    for path in tmp_path.iterdir():
        path.unlink()
