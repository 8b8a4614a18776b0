"""A layer in one pass: every compression, every way to be broken, bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from isal import isal_zlib

from fargatelite.errors import ImageInvalid, StateCorrupt
from fargatelite.images import layer
from fargatelite.images.layer import (
    BLOCK_BYTES,
    Kind,
    LayerResult,
    LayerWriter,
    Record,
    clean_path,
    read_table,
)
from tests.fixtures.images import directory, link, tar_layer

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"

FILES: dict[str, bytes | tarfile.TarInfo] = {
    "etc": directory("etc", 0o750, 7),
    "etc/small": b"small",
    "etc/empty": b"",
    "bin/large": random.Random(1).randbytes(300_000),
    "bin/exact": b"x" * BLOCK_BYTES,
    "bin/name": link("bin/name", "large"),
    "bin/same": link("bin/same", "./bin/large", tarfile.LNKTYPE),
}


def _feed(tmp_path: Path, data: bytes, media_type: str, step: int) -> LayerResult:
    writer = LayerWriter(tmp_path, media_type)
    try:
        for at in range(0, len(data), step):
            writer.feed(data[at : at + step])
        return writer.finish()
    finally:
        writer.abort()


def _members(data: bytes, cuts: tuple[int, ...] = (1000, 200_000)) -> list[bytes]:
    return [data[a:b] for a, b in zip((0, *cuts), (*cuts, len(data)), strict=True)]


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _zstd(data: bytes) -> bytes:
    return zstandard.compress(data)


_SKIPPABLE = b"\x50\x2a\x4d\x18" + (20).to_bytes(4, "little") + b"s" * 20
PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": (OCI, lambda data: data),
    "docker-plain": (DOCKER, lambda data: data),
    "gzip": (OCI + "+gzip", _gzip),
    "docker-gzip": (DOCKER + ".gzip", _gzip),
    "gzip-members": (OCI + "+gzip", lambda data: b"".join(map(_gzip, _members(data)))),
    "zstd": (OCI + "+zstd", _zstd),
    "zstd-frames": (OCI + "+zstd", lambda data: b"".join(map(_zstd, _members(data)))),
    # zstd:chunked keeps its index in skippable frames (containers/storage).
    "zstd-chunked": (OCI + "+zstd", lambda data: _zstd(data) + _SKIPPABLE + _SKIPPABLE),
    "zstd-skippable-first": (OCI + "+zstd", lambda data: _SKIPPABLE + _zstd(data)),
}


@pytest.mark.parametrize("step", [1 << 20, 1000, 17])
@pytest.mark.parametrize("name", PACKED)
def test_compressions(tmp_path: Path, name: str, step: int) -> None:
    media_type, pack = PACKED[name]
    plain = tar_layer(FILES)
    packed = pack(plain)
    result = _feed(tmp_path, packed, media_type, step)
    assert result.digest == "sha256:" + hashlib.sha256(packed).hexdigest()
    assert result.diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()
    assert (result.compressed_bytes, result.entries) == (len(packed), len(FILES))
    records = {record.path.decode(): record for record in read_table(result.table)}
    assert list(records) == list(FILES)
    with open(result.blob, "rb") as blob:
        for path, value in FILES.items():
            if isinstance(value, bytes):
                blob.seek(records[path].block * BLOCK_BYTES)
                assert blob.read(records[path].size) == value, path
    assert (records["etc"].kind, records["etc"].mode, records["etc"].uid) == (1, 0o750, 7)
    assert (records["bin/name"].kind, records["bin/name"].link) == (Kind.SYMLINK, b"large")
    assert (records["bin/same"].kind, records["bin/same"].link) == (Kind.HARD_LINK, b"bin/large")
    assert result.blob.stat().st_mode & 0o777 == 0o600
    assert result.table.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("edge", ["gzip-members", "zstd-frames", "zstd-chunked"])
def test_chunks_that_end_with_a_frame(tmp_path: Path, edge: str) -> None:
    media_type, pack = PACKED[edge]
    plain = tar_layer(FILES)
    pieces = _members(plain) if edge != "zstd-chunked" else [plain]
    chunks = [(_gzip if edge == "gzip-members" else _zstd)(piece) for piece in pieces]
    if edge == "zstd-chunked":
        chunks += [_SKIPPABLE, _SKIPPABLE]
    assert b"".join(chunks) == pack(plain)
    writer = LayerWriter(tmp_path, media_type)
    for chunk in chunks:
        writer.feed(chunk)
    assert writer.finish().diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize("padding", [0, 1, 411])
def test_the_last_padding_may_be_missing(tmp_path: Path, padding: int) -> None:
    plain = tar_layer({"first": b"x" * 1000, "last": b"y" * 612})
    end = 512 + 1024 + 512 + 612
    result = _feed(tmp_path, plain[: end + padding], PACKED["plain"][0], 4096)
    assert [record.size for record in read_table(result.table)] == [1000, 612]
    whole = _feed(tmp_path, plain, PACKED["plain"][0], 4096)
    assert [record.crc for record in read_table(whole.table)] == [
        record.crc for record in read_table(result.table)
    ]
    with pytest.raises(ImageInvalid, match="a layer ends in the middle of"):
        _feed(tmp_path, plain[: end - 1], PACKED["plain"][0], 4096)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        # Not (plain, 0): no bytes are an empty archive, to GNU tar and Go as well.
        *[("gzip", keep) for keep in (0, 1, 9, 700, 100_000)],
        *[("zstd", keep) for keep in (0, 1, 9, 700, 100_000)],
        *[("plain", keep) for keep in (1, 9, 700, 100_000)],
    ],
)
def test_truncated_layers_are_refused(tmp_path: Path, name: str, keep: int) -> None:
    media_type, pack = PACKED[name]
    data = pack(tar_layer(FILES))[:keep]
    with pytest.raises(ImageInvalid, match="a layer ends in the middle of"):
        _feed(tmp_path, data, media_type, 4096)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("gzip", b"not gzip at all" * 50),
        ("zstd", b"not zstd at all" * 50),
        ("plain", b"not tar at all " * 50),
        ("gzip", _gzip(tar_layer(FILES)) + b"trailing bytes" * 10),
        ("zstd", _zstd(tar_layer(FILES)) + b"trailing bytes" * 10),
        ("plain", _gzip(tar_layer(FILES))),
        ("gzip", _gzip(_gzip(tar_layer(FILES)))),
    ],
)
def test_wrong_bytes_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(ImageInvalid):
        _feed(tmp_path, data, PACKED[name][0], 4096)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_damaged_bytes_are_refused_or_change_the_digest(
    tmp_path: Path, name: str, seed: int
) -> None:
    media_type, pack = PACKED[name]
    good = pack(tar_layer(FILES))
    bad = bytearray(good)
    bad[random.Random(seed).randrange(len(bad))] ^= 1 << seed % 8
    try:
        result = _feed(tmp_path, bytes(bad), media_type, 4096)
    except ImageInvalid:
        return
    assert result.digest != "sha256:" + hashlib.sha256(good).hexdigest()


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", OCI + "+bzip2", OCI + "+encrypted", "application/tar+xz"]
)
def test_unknown_media_types_are_named(tmp_path: Path, media_type: str) -> None:
    with pytest.raises(ImageInvalid, match="are not supported: expected gzip, zstd, tar"):
        LayerWriter(tmp_path, media_type)


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_bombs_do_not_fill_memory(tmp_path: Path, name: str) -> None:
    """512 MiB of zeros behind few bytes that come in one chunk."""
    zeros = b"\0" * (1 << 20)
    frame = (
        zstandard.ZstdCompressor(level=3).compressobj()
        if name == "zstd"
        else isal_zlib.compressobj(2, wbits=31)
    )
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 30
    parts = [frame.compress(info.tobuf()), *(frame.compress(zeros) for _ in range(512))]
    bomb = b"".join([*parts, frame.flush()])
    assert len(bomb) < 4 << 20
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what we have (proc(5))
    before = _peak_kib()
    # Deflate stays below the ratio that no layer has: there only its memory is at stake.
    words = "inflates more than any real one" if name == "zstd" else "in the middle of a tar entry"
    with pytest.raises(ImageInvalid, match=words):
        _feed(tmp_path, bomb, f"{OCI}+{name}", len(bomb))
    assert _peak_kib() - before < 150 * 1024
    assert not list(tmp_path.iterdir())


def test_bounds_of_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "MAX_ENTRIES", 2)
    with pytest.raises(ImageInvalid, match="a layer of over 2 entries"):
        _feed(tmp_path, tar_layer({"a": b"", "b": b"", "c": b""}), OCI, 4096)
    monkeypatch.undo()
    monkeypatch.setattr(layer, "MAX_TABLE_BYTES", 1000)
    with pytest.raises(ImageInvalid, match="over 1000 bytes of names and attributes"):
        _feed(tmp_path, tar_layer({"n" * 200 + str(i): b"" for i in range(9)}), OCI, 4096)
    monkeypatch.undo()
    monkeypatch.setattr(layer, "MAX_LAYER_BYTES", 20_000)
    with pytest.raises(ImageInvalid, match="a layer of over 20000 bytes uncompressed"):
        _feed(tmp_path, tar_layer({str(i): b"" for i in range(50)}), OCI, 4096)
    # A sparse file of 1 TiB costs nothing in the stream.
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.realsize": str(1 << 39), "GNU.sparse.map": "0,0"}
    with pytest.raises(ImageInvalid, match="the files of a layer have over 20000 bytes"):
        _feed(tmp_path, tar_layer({"sparse": info}), OCI, 1 << 20)
    assert not list(tmp_path.iterdir())


# ---- paths ----


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"a/b", b"a/b"), (b"./a//b/", b"a/b"), (b"/a", b"a"), (b"///./", b""),
        (b"..a/b..", b"..a/b.."),
        (b"a\\..\\b", b"a\\..\\b"), (b"\xff\xfe", b"\xff\xfe"), (b"n" * 255, b"n" * 255),
    ],
)  # fmt: skip
def test_paths(path: bytes, expected: bytes) -> None:
    assert clean_path(path) == expected


@pytest.mark.parametrize("path", [b"..", b"../a", b"a/..", b"/../a", b"a/./../b", b"n" * 256])
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: bytes) -> None:
    with pytest.raises(ImageInvalid):
        clean_path(path)
    name = path.decode()
    for info in (
        tarfile.TarInfo(name),
        directory(name),
        link(name, "x"),
        link("ok", name, tarfile.LNKTYPE),
        tarfile.TarInfo(f"{name}/.wh.x"),
    ):
        with pytest.raises(ImageInvalid):
            _feed(tmp_path, tar_layer({"x": b"", "entry": info}), OCI, 4096)


def test_symbolic_links_may_say_anything(tmp_path: Path) -> None:
    # They are followed in the container alone.
    result = _feed(tmp_path, tar_layer({"l": link("l", "../../../etc/shadow")}), OCI, 4096)
    assert read_table(result.table)[0].link == b"../../../etc/shadow"


def test_root_must_be_a_directory(tmp_path: Path) -> None:
    _feed(tmp_path, tar_layer({".": directory(".", 0o700)}), OCI, 4096)
    with pytest.raises(ImageInvalid, match="the root of a layer is not a directory"):
        _feed(tmp_path, tar_layer({".": link(".", "/etc")}), OCI, 4096)


# ---- whiteouts ----


def test_whiteouts(tmp_path: Path) -> None:
    names = [
        "a/.wh.gone",
        ".wh.top",
        "b/.wh..wh..opq",
        ".wh..wh..opq",
        ".wh..wh.plnk",
        "a/.wh..wh.aufs",
    ]
    result = _feed(tmp_path, tar_layer(dict.fromkeys(names, b"ignored")), OCI, 4096)
    assert [(record.path, record.kind) for record in read_table(result.table)] == [
        (b"a/gone", Kind.WHITEOUT), (b"top", Kind.WHITEOUT), (b"b", Kind.OPAQUE),
        (b"", Kind.OPAQUE),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [".wh.", "a/.wh.", ".wh..", ".wh...", "a/.wh..."])
def test_whiteouts_of_nothing_or_of_the_parent_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageInvalid):
        _feed(tmp_path, tar_layer({name: b""}), OCI, 4096)


# ---- table ----


def test_table_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    result = _feed(tmp_path, tar_layer(FILES), OCI, 4096)
    good = result.table.read_bytes()
    for bad, words in (
        (b"", "is no layer table"),
        (b"XXXX" + good[4:], "is no layer table"),
        (good[:4] + b"\x07\0" + good[6:], "is of version 7, this reads 1 and 2; pull it again"),
        (good[:-1], "wrong CRC; pull the image again"),
        (good[:40] + bytes([good[40] ^ 1]) + good[41:], "wrong CRC; pull the image again"),
    ):
        result.table.write_bytes(bad)
        with pytest.raises(StateCorrupt, match=words) as caught:
            read_table(result.table)
        assert caught.value.path == str(result.table)


@given(
    names=st.lists(st.text("ab/.", min_size=1, max_size=6), max_size=6),
    data=st.binary(max_size=9000),
    step=st.integers(1, 5000),
    packed=st.sampled_from(["plain", "gzip", "zstd", "zstd-chunked"]),
)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_steps_do_not_matter(
    tmp_path: Path, names: list[str], data: bytes, step: int, packed: str
) -> None:
    media_type, pack = PACKED[packed]
    stream = pack(tar_layer(dict.fromkeys(names, data)))

    def outcome(size: int) -> str | tuple[list[Record], bytes]:
        try:
            result = _feed(tmp_path, stream, media_type, size)
        except ImageInvalid as error:
            return str(error)
        return read_table(result.table), result.blob.read_bytes()

    assert outcome(step) == outcome(1 << 24)
