"""Every kind of damage to the store is found, named, and mended by a new pull."""

from __future__ import annotations

import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.image import Image
from fargatelite.images.layer import BLOCK_BYTES, Record, read_table
from fargatelite.images.mounted import MountedImages
from fargatelite.images.store import ImageStore
from fargatelite.images.verify import repair, verify
from fargatelite.names import TaskId
from tests.fixtures.cli import CommandLine
from tests.fixtures.images import RunningRegistry, build_oci_layout, tar_layer

pytestmark = [pytest.mark.root, pytest.mark.registry]

LARGE = bytes(range(256)) * 40  # 10,240 bytes: two blocks and a half
LOWER = tar_layer({"etc/passwd": b"root:x:0:0::/:/bin/sh\n", "data/large": LARGE, "empty": b""})
UPPER = tar_layer({"data/small": b"small"})


def sparse_layer() -> bytes:
    """GNU's old format: 5 bytes at 8192 of a file of 20,000."""
    header = tarfile.TarInfo("sparse")
    header.size = 5
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[386:398] = b"00000020000\0"
    block[398:410] = b"00000000005\0"
    block[483:495] = b"00000047040\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"bytes".ljust(512, b"\0") + bytes(1024)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    (tmp_path / "docker.json").write_text("{}")
    config = RegistryConfig(docker_config=str(tmp_path / "docker.json"))
    return ImageStore(tmp_path / "data", config=config)


@pytest.fixture
def reference(registry: RunningRegistry, tmp_path: Path) -> str:
    layout = build_oci_layout(tmp_path / "layout", [LOWER, UPPER], {"Cmd": ["true"]}, tag="1")
    registry.push(layout, "verify/image", "1")
    return f"{registry.host}/verify/image:1"


@pytest.fixture
def image(store: ImageStore, reference: str) -> Image:
    return store.pull(reference)


def layer(store: ImageStore, image: Image, number: int = 0) -> Path:
    return store.layer_directory(image.diff_ids[number])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def place_of(table: Path, name: bytes) -> int:
    return next(item.block for item in read_table(table) if item.path == name) * BLOCK_BYTES


def test_a_whole_store_is_whole(store: ImageStore, image: Image) -> None:
    found = verify(store)
    assert (found.layers, found.images) == (2, 1)
    assert not found.damage
    assert not found.unchecked
    blobs = sum((layer(store, image, number) / "blob").stat().st_size for number in (0, 1))
    erofs = store.image_directory(image.image_id) / "image.erofs"
    assert found.read_bytes == blobs + erofs.stat().st_size


Harm = Callable[[ImageStore, Image], None]


def _first(directory: Path) -> Path:
    return next(path for path in directory.iterdir() if not path.name.startswith("."))


HARMS: dict[str, tuple[Harm, str, str | None, bool]] = {
    # what is done; where it is found; in which file of the image; whether an image's name is known
    "contents": (
        lambda s, i: flip(
            layer(s, i) / "blob", place_of(layer(s, i) / "table", b"data/large") + 5000
        ),
        "layers/", "data/large", True,
    ),
    "padding": (
        lambda s, i: flip(layer(s, i, 1) / "blob", 100), "layers/", "data/small", True,
    ),
    "short blob": (
        lambda s, i: os.truncate(layer(s, i) / "blob", BLOCK_BYTES), "layers/", None, True,
    ),
    "no blob": (lambda s, i: (layer(s, i) / "blob").unlink(), "layers/", None, True),
    "table": (lambda s, i: flip(layer(s, i) / "table", 30), "layers/", None, True),
    "no layer": (
        lambda s, i: os.rename(layer(s, i), s.root / "tmp" / "lost"), "layers/", None, True,
    ),
    "erofs": (
        lambda s, i: flip(s.image_directory(i.image_id) / "image.erofs", 1100),
        "images/", None, True,
    ),
    "no erofs": (
        lambda s, i: (s.image_directory(i.image_id) / "image.erofs").unlink(),
        "images/", None, True,
    ),
    "configuration": (
        lambda s, i: (p := s.image_directory(i.image_id) / "image.json").write_bytes(
            p.read_bytes().replace(b'"true"', b'"trve"')
        ) and None,
        "images/", None, True,
    ),
    "digest": (
        lambda s, i: _first(s.root / "digests").write_bytes(b"{") and None,
        "digests/", None, False,
    ),
    "name": (
        lambda s, i: _first(s.root / "references").write_bytes(b"{") and None,
        "references/", None, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_found_named_and_mended(
    store: ImageStore, image: Image, reference: str, harm: str, tmp_path: Path
) -> None:
    do, where, file, has_name = HARMS[harm]
    do(store, image)
    found = verify(ImageStore(store.root, config=store.config))
    assert len(found.damage) == 1, found.damage
    (damage,) = found.damage
    assert damage.path.startswith(where)
    assert damage.file == file
    assert damage.references == ((reference,) if has_name else ())

    repair(store, found)
    assert found.repaired == ([reference] if has_name else [])
    assert bool(found.failures) == (harm == "name")
    again = store.pull(reference)
    assert not verify(store).damage
    target = MountedImages(store, tmp_path / "run").ensure_mounted(again, TaskId("0" * 32))
    try:
        assert (target / "data/large").read_bytes() == LARGE
        assert (target / "data/small").read_bytes() == b"small"
        assert again.config.cmd == ("true",)
    finally:
        MountedImages(store, tmp_path / "run").release(TaskId("0" * 32))


def test_who_has_it_mounted_keeps_it(
    store: ImageStore, image: Image, reference: str, tmp_path: Path
) -> None:
    first, second = TaskId("1" * 32), TaskId("2" * 32)
    target = MountedImages(store, tmp_path / "run").ensure_mounted(image, first)
    try:
        flip(layer(store, image) / "table", 30)
        found = verify(store)
        repair(store, found)
        assert found.repaired == [reference]
        assert (target / "data/large").read_bytes() == LARGE
    finally:
        MountedImages(store, tmp_path / "run").release(first)
    target = MountedImages(store, tmp_path / "run").ensure_mounted(store.pull(reference), second)
    try:
        assert (target / "data/large").read_bytes() == LARGE
    finally:
        MountedImages(store, tmp_path / "run").release(second)


def test_files_that_a_task_has_unpacked_are_left(
    store: ImageStore, reference: str, tmp_path: Path
) -> None:
    store = ImageStore(store.root, config=store.config, backend="directory")
    image = store.pull(reference)
    target = MountedImages(store, tmp_path / "run").ensure_mounted(image, TaskId("1" * 32))
    try:
        flip(store.image_directory(image.image_id) / "image.erofs", 1100)
        found = verify(store)
        repair(store, found)
        assert found.failures == [f"{image.image_id[7:19]}: a task has its files; stop it first"]
        assert (target / "data/small").read_bytes() == b"small"
    finally:
        MountedImages(store, tmp_path / "run").release(TaskId("1" * 32))


def test_an_unreachable_registry_is_a_failure(
    store: ImageStore, image: Image, reference: str
) -> None:
    flip(layer(store, image) / "blob", 0)
    found = verify(store)
    name = next(store.list_references())
    stored = store.read_reference(name)
    assert stored is not None
    gone = "127.0.0.1:9/verify/image:1"
    name.write_bytes(msgspec.json.encode(msgspec.structs.replace(stored, reference=gone)))
    found = verify(store)
    repair(store, found)
    assert not found.repaired
    (failure,) = found.failures
    assert failure.startswith(gone)


def test_what_was_loaded_is_to_be_loaded_again(store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "layout", [LOWER], {"Cmd": ["true"]}, tag="loaded")
    (image,) = store.load(layout)
    flip(layer(store, image) / "blob", 0)
    found = verify(store)
    repair(store, found)
    assert found.failures == [f"{image.reference} was loaded: load it again"]
    (again,) = store.load(layout)
    assert again.image_id == image.image_id
    assert not verify(store).damage


def test_holes_have_a_checksum(store: ImageStore, tmp_path: Path) -> None:
    layout = build_oci_layout(tmp_path / "layout", [sparse_layer()], {}, tag="sparse")
    (image,) = store.load(layout)
    assert (layer(store, image) / "blob").stat().st_size == 5 * BLOCK_BYTES
    assert not verify(store).damage
    flip(layer(store, image) / "blob", 100)  # in the hole
    assert [item.file for item in verify(store).damage] == ["sparse"]


def test_a_table_without_checksums_is_told(store: ImageStore, image: Image) -> None:
    """As version 1 had them."""
    table = layer(store, image) / "table"
    fields = Record.__struct_fields__[:-1]
    body = msgspec.msgpack.encode(
        [[getattr(item, name) for name in fields] for item in read_table(table)]
    )
    table.write_bytes(b"FLTB" + struct.pack("<HHI", 1, 0, zlib.crc32(body)) + body)
    found = verify(store)
    assert not found.damage
    assert found.unchecked == [image.diff_ids[0]]


def test_the_command_says_where_and_fails(
    fargatelite: CommandLine, reference: str, tmp_path: Path
) -> None:
    fargatelite("image", "pull", reference)
    assert fargatelite("image", "verify").stdout.endswith("read: no damaged\n")
    blob = next(
        path for path in (tmp_path / "data root/images/layers").glob("*/blob")
        if path.stat().st_size == BLOCK_BYTES
    )  # fmt: skip
    flip(blob, 0)
    said = fargatelite("image", "verify")
    assert said.returncode == 1
    assert "blocks 0 to 0 changed" in said.stdout
    assert "data/small" in said.stdout
    assert reference in said.stdout
    said = fargatelite("image", "verify", "--output", "json")
    (damage,) = json.loads(said.stdout)["damage"]
    assert damage["file"] == "data/small"
    said = fargatelite("image", "verify", "--repair")
    assert said.returncode == 0
    assert f"pulled again: {reference}\n" in said.stdout
    assert fargatelite("image", "verify").stdout.endswith("read: no damaged\n")
