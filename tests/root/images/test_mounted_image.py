"""A mounted image is what GNU tar and a plain reading of the OCI whiteouts make of the same layers.

Random stacks of layers, each with a seed: a failure names the one to run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fargatelite.images.image import ImageBackend
from fargatelite.images.mounted import MountedImages
from fargatelite.images.store import ImageStore
from fargatelite.names import TaskId
from tests.fixtures.images import build_oci_layout
from tests.fixtures.patience import patient

pytestmark = pytest.mark.root
FSCK_VERSION = subprocess.run(
    ["fsck.erofs", "-V"], capture_output=True, text=True, check=False
).stdout

SEEDS = range(30)
TASK = TaskId("1" * 32)
NAMES = ["a", "b", "c", "dir", "lib", "long-" + "n" * 200, "ünïcode", "with space"]
# struct vfs_cap_data, revision 2, effective: net_bind_service; its bytes are UTF-8 as they are.
CAPABILITY = "\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
SPECIAL = {
    tarfile.CHRTYPE: (1, 3),
    tarfile.BLKTYPE: (259, 70_000),
    tarfile.FIFOTYPE: (0, 0),
}


def _attributes(info: tarfile.TarInfo, chance: random.Random) -> None:
    info.mode = chance.choice([0o644, 0o755, 0o600, 0o4755, 0o2750, 0o1777, 0o000])
    info.uid = chance.choice([0, 1, 1000, 65534, 3_000_000_000])
    info.gid = chance.choice([0, 5, 1000, 2_100_000])
    info.mtime = chance.choice([0, 1, 1_600_000_000, 2**31 + 5, 2**33])
    records = {}
    if info.type in (tarfile.REGTYPE, tarfile.DIRTYPE) and chance.random() < 0.3:
        for number in range(chance.choice([1, 1, 2, 40])):
            value = "v" * chance.choice([0, 1, 5, 60])
            records[f"SCHILY.xattr.user.name{number}"] = value
    if info.type == tarfile.REGTYPE and chance.random() < 0.2:
        records["SCHILY.xattr.security.capability"] = CAPABILITY
    info.pax_headers = records


class _Layer:
    """One random layer that GNU tar can extract over `known`, which it updates: path to type."""

    def __init__(self, chance: random.Random, known: dict[str, bytes], index: int) -> None:
        self._chance, self._known, self._index = chance, known, index
        self._made: set[str] = set()
        self._buffer = io.BytesIO()
        self._archive = tarfile.open(  # noqa: SIM115 - `build` closes it
            fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8"
        )

    def build(self) -> bytes:
        if self._index:
            self._hide()
        self._add(self._info("."), tarfile.DIRTYPE)
        for _ in range(self._chance.randrange(2, 25)):
            self._entry()
        if self._chance.random() < 0.15:
            # A directory of several blocks.
            self._directory("wide")
            for number in range(300):
                self._add(self._info(f"wide/file-with-a-long-name-{number:04}"), tarfile.REGTYPE)
        self._archive.close()
        return self._buffer.getvalue()

    def _info(self, path: str) -> tarfile.TarInfo:
        return tarfile.TarInfo(path)

    def _add(self, info: tarfile.TarInfo, kind: bytes, data: bytes = b"") -> None:
        info.type, info.size = kind, len(data)
        if kind != tarfile.LNKTYPE:
            _attributes(info, self._chance)
        self._archive.addfile(info, io.BytesIO(data))
        self._made.add(info.name)
        self._known[info.name] = kind

    def _forget(self, path: str) -> None:
        for name in [name for name in self._known if name == path or name.startswith(path + "/")]:
            del self._known[name]

    def _hide(self) -> None:
        old = sorted(self._known.keys() - {"."})
        for path in self._chance.sample(old, min(len(old), self._chance.randrange(4))):
            if path not in self._known:
                continue
            parent, _, name = path.rpartition("/")
            if self._known[path] == tarfile.DIRTYPE and self._chance.random() < 0.4:
                self._archive.addfile(tarfile.TarInfo(f"{path}/.wh..wh..opq"))
                for inner in [inner for inner in self._known if inner.startswith(path + "/")]:
                    del self._known[inner]
            else:
                self._archive.addfile(
                    tarfile.TarInfo(f"{parent}/.wh.{name}" if parent else f".wh.{name}")
                )
                self._forget(path)

    def _directory(self, path: str) -> None:
        if path != "." and self._known.get(path, tarfile.DIRTYPE) != tarfile.DIRTYPE:
            self._forget(path)
        self._add(self._info(path), tarfile.DIRTYPE)

    def _entry(self) -> None:
        chance = self._chance
        directories = sorted(
            name
            for name, kind in self._known.items()
            if kind == tarfile.DIRTYPE and name.count("/") < 5
        )
        parent = chance.choice(directories)
        name = chance.choice(NAMES)
        path = name if parent == "." else f"{parent}/{name}"
        if path in self._made:
            return  # what one archive says twice is tested by itself
        kind = chance.choice(
            [tarfile.REGTYPE] * 5 + [tarfile.DIRTYPE] * 4 + [tarfile.SYMTYPE] * 2
            + [tarfile.LNKTYPE] * 2 + list(SPECIAL)
        )  # fmt: skip
        if kind == tarfile.DIRTYPE:
            self._directory(path)
            return
        if self._known.get(path) == tarfile.DIRTYPE:
            return  # a file over a directory: GNU tar would not without --recursive-unlink
        info = self._info(path)
        if kind == tarfile.REGTYPE:
            length = chance.choice([0, 1, 100, 4095, 4096, 4097, 20_000])
            self._add(info, kind, chance.randbytes(length))
        elif kind == tarfile.SYMTYPE:
            info.linkname = chance.choice(
                ["a", "../x", "/etc/passwd", "t" * 300, "/" + "t/" * 2030, "ünï", "t" * 3900]
            )
            self._add(info, kind)
        elif kind == tarfile.LNKTYPE:
            targets = sorted(
                name
                for name, type_ in self._known.items()
                if type_ != tarfile.DIRTYPE and name != path
            )
            if targets:
                info.linkname = chance.choice(targets)
                self._add(info, kind)
        else:
            info.devmajor, info.devminor = SPECIAL[kind]
            self._add(info, kind)


def _stack(seed: int) -> list[bytes]:
    chance = random.Random(seed)
    known: dict[str, bytes] = {".": tarfile.DIRTYPE}
    return [_Layer(chance, known, index).build() for index in range(chance.randrange(1, 7))]


def _extract(layers: list[bytes], root: Path) -> None:
    """The reference: whiteouts first, then GNU tar over what is there. A directory that a layer
    does not name keeps its time, whatever happens in it."""
    root.mkdir()
    for layer in layers:
        times = {path: path.stat().st_mtime_ns for path in _directories(root)}
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            names = archive.getnames()
            directories = {root / info.name: info.mode for info in archive if info.isdir()}
        for name in names:
            parent, base = (root / name).parent, Path(name).name
            if base == ".wh..wh..opq":
                for path in list(parent.iterdir()):
                    _remove(path)
            elif base.startswith(".wh."):
                _remove(parent / base[4:])
        for path in directories:
            # A directory over one has its own attributes alone, as in overlayfs; tar adds them.
            for key in os.listxattr(path) if path in times and path.exists() else ():
                os.removexattr(path, key)
        subprocess.run(
            ["tar", "-x", "-C", root, "--same-permissions", "--same-owner", "--numeric-owner",
             "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "--delay-directory-restore"],
            input=layer, check=True, capture_output=True,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        for path, mode in directories.items():
            path.chmod(mode)  # GNU tar 1.34 leaves an inherited set-group-id on one of mode 0
        said = {root / name for name in names}
        for path, time_ns in times.items():
            if path not in said and not path.is_symlink() and path.is_dir():
                os.utime(path, ns=(time_ns, time_ns))


def _directories(root: Path) -> list[Path]:
    return [Path(path) for path, _, _ in os.walk(root)]


def _remove(path: Path) -> None:
    if not path.is_symlink() and path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _describe(root: Path) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    groups: dict[int, str] = {}
    paths = [Path(at, name) for at, inner, files in os.walk(root) for name in inner + files]
    for path in [root, *sorted(paths)]:
        name = str(path.relative_to(root))
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
            content = (len(data), status.st_size, hashlib.sha256(data).hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            content = sorted(os.listdir(path))
        found[name] = (
            stat.filemode(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime),
            (os.major(status.st_rdev), os.minor(status.st_rdev)), status.st_nlink,
            groups.setdefault(status.st_ino, name), content,
            {key: os.getxattr(path, key, follow_symlinks=False)
             for key in os.listxattr(path, follow_symlinks=False)},
        )  # fmt: skip
    return found


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fails the test that leaves a mount or loop device of its own."""
    yield
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert not [line for line in mounts if str(tmp_path) in line]
    # udev, where it runs, holds a device open while it looks at it.
    deadline = time.monotonic() + patient(5)
    while left := [text for text in _backing_files() if str(tmp_path) in text]:
        assert time.monotonic() < deadline, left


def _backing_files() -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it went away while we looked
            found.append(path.read_text())
    return found


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.vm] * (seed < 4)) for seed in SEEDS]
)
def test_mounted_image_is_what_tar_extracts(
    tmp_path: Path, nothing_left: None, seed: int, erofs_backends: tuple[ImageBackend, ...]
) -> None:
    layers = _stack(seed)
    _extract(layers, tmp_path / "reference")
    expected = _describe(tmp_path / "reference")
    layout = build_oci_layout(
        tmp_path / "layout", layers, tag="localhost/random:1", compression="none"
    )
    for backend in erofs_backends:
        store = ImageStore(tmp_path / "data", backend=backend)
        (image,) = store.load(layout)
        run = tmp_path / f"run-{backend}"
        try:
            seen = _describe(MountedImages(store, run).ensure_mounted(image, TASK))
        finally:
            MountedImages(store, run).release(TASK)
        assert seen.keys() == expected.keys()
        for name, description in expected.items():
            assert seen[name] == description, name


@pytest.mark.vm
@pytest.mark.skipif(
    " 1.5" not in FSCK_VERSION,
    reason="the way in which extra devices are shown to fsck.erofs here is that of 1.5",
)
@pytest.mark.parametrize("seed", [*range(4), 8, 21])
def test_fsck_finds_nothing(tmp_path: Path, seed: int) -> None:
    layers = _stack(seed)
    layout = build_oci_layout(tmp_path / "layout", layers, tag="localhost/random:1")
    store = ImageStore(tmp_path / "data")
    (image,) = store.load(layout)
    (made,) = (tmp_path / "data/images").glob("*/image.erofs")
    # erofs-utils 1.5 knows extra devices for chunked files alone: it gets the one address space as
    # one file, the blobs where their slots say that they are.
    whole = tmp_path / "whole.erofs"
    shutil.copyfile(made, whole)
    blobs = []
    with open(whole, "ab") as file:
        for diff_id in image.diff_ids:
            blobs.append(tmp_path / "data/layers" / diff_id.removeprefix("sha256:") / "blob")
            file.write(blobs[-1].read_bytes() or b"\0" * 4096)
    done = subprocess.run(
        ["fsck.erofs", f"--extract={tmp_path / 'extracted'}",
         *(f"--device={blob}" for blob in blobs), whole],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    _extract(layers, tmp_path / "reference")
    expected, seen = _describe(tmp_path / "reference"), _describe(tmp_path / "extracted")
    # fsck.erofs 1.5 copies hard links, and loses attributes and set-id bits.
    assert {name: (value[0][:1], value[7]) for name, value in seen.items()} == {
        name: (value[0][:1], value[7]) for name, value in expected.items()
    }
