"""One image through every backend: what a task sees is the same."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, run_task
from fargatelite.errors import HostUnsupported, ImageError
from fargatelite.images import mount
from fargatelite.images.image import ImageBackend
from fargatelite.images.mount import unmount
from fargatelite.images.mounted import MountedImages
from fargatelite.images.store import ImageStore
from fargatelite.names import TaskId
from tests.fixtures.images import build_oci_layout, directory, link, tar_layer
from tests.fixtures.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.vm]

TASK = TaskId("0" * 32)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")[:20]  # cap_net_bind_service


def _special(name: str, kind: bytes, mode: int, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    for key, value in more.items():
        setattr(info, key, value)
    return info


def _layers() -> list[bytes]:
    lower = tar_layer(
        {
            "bin/tool": b"#!/bin/sh\n" * 2000,
            "bin/same": link("bin/same", "bin/tool", tarfile.LNKTYPE),
            "bin/name": link("bin/name", "tool"),
            "empty": b"",
            "private": directory("private", 0o1750, 1234),
            "private/deep": b"x" * 5000,
            "dev/random-device": _special(
                "dev/random-device", tarfile.CHRTYPE, 0o640, devmajor=1, devminor=8, gid=7
            ),
            "pipe": _special("pipe", tarfile.FIFOTYPE, 0o600),
            "suid": _special("suid", tarfile.REGTYPE, 0o4755, uid=33, mtime=1_000_000_000),
            "capable": _special(
                "capable", tarfile.REGTYPE, 0o755,
                pax_headers={
                    "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8"),
                    "SCHILY.xattr.user.note": "kept",
                },
            ),
            "gone": b"hidden by the next layer",
            "folder/old": b"hidden by an opaque directory",
        }
    )  # fmt: skip
    upper = tar_layer({".wh.gone": b"", "folder/.wh..wh..opq": b"", "folder/new": b"new"})
    return [lower, upper]


def _describe(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = str(path.relative_to(root))
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        names = first.setdefault(status.st_ino, name)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        found[name] = (
            oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev,
            None if stat.S_ISDIR(status.st_mode) else status.st_nlink,
            int(status.st_mtime), content, names, xattrs,
        )  # fmt: skip
    return found


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return build_oci_layout(tmp_path / "layout", _layers(), tag="localhost/made:1")


@pytest.fixture
def stores(
    tmp_path: Path, clean_host: None, erofs_backends: tuple[ImageBackend, ...]
) -> Iterator[dict[str, ImageStore]]:
    made = {
        backend.value: ImageStore(tmp_path / backend.value, backend=backend)
        for backend in (*erofs_backends, ImageBackend.DIRECTORY)
    }
    yield made
    for name, store in made.items():
        MountedImages(store, tmp_path / f"run-{name}").release(TASK)


def test_every_backend_shows_the_same_files(
    stores: dict[str, ImageStore], layout: Path, tmp_path: Path
) -> None:
    seen = {}
    for name, store in stores.items():
        (image,) = store.load(layout)
        seen[name] = _describe(
            MountedImages(store, tmp_path / f"run-{name}").ensure_mounted(image, TASK)
        )
    assert len(seen) >= 2
    assert all(found == seen["loop"] for found in seen.values())
    files = seen["directory"]
    assert "gone" not in files
    assert "folder/old" not in files
    assert files["bin/same"][4] == 2
    assert files["bin/same"][7] == "bin/same"  # the first of its two names in order
    assert files["bin/tool"][7] == "bin/same"
    assert files["suid"][:2] == (oct(0o104755), 33)
    assert files["capable"][8] == {"security.capability": CAPABILITY, "user.note": b"kept"}


def test_directory_is_read_only_and_its_devices_do_not_open(
    stores: dict[str, ImageStore], layout: Path, tmp_path: Path
) -> None:
    store = stores["directory"]
    (image,) = store.load(layout)
    root = MountedImages(store, tmp_path / "run-directory").ensure_mounted(image, TASK)
    with pytest.raises(OSError, match="Read-only file system"):
        (root / "new").write_text("x")
    with pytest.raises(PermissionError):
        (root / "dev/random-device").read_bytes()


def test_directory_stays_while_a_task_uses_it(
    stores: dict[str, ImageStore], layout: Path, tmp_path: Path
) -> None:
    store = stores["directory"]
    (image,) = store.load(layout)
    root = MountedImages(store, tmp_path / "run-directory").ensure_mounted(image, TASK)
    store.remove(image.reference)
    assert (root / "private/deep").read_bytes() == b"x" * 5000
    MountedImages(store, tmp_path / "run-directory").release(TASK)
    assert store.gc() == [image.image_id]
    assert list((store.root / "images").iterdir()) == []


def test_auto_falls_back_where_the_kernel_has_no_erofs(
    layout: Path, tmp_path: Path, clean_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that no kernel knows: fsopen(2) answers what it answers without EROFS.
    monkeypatch.setattr(mount, "_FILE_SYSTEM", "no-such-fs")
    store = ImageStore(tmp_path / "auto")
    (image,) = store.load(layout)
    try:
        root = MountedImages(store, tmp_path / "run").ensure_mounted(image, TASK)
        assert (root / "bin/name").read_bytes() == b"#!/bin/sh\n" * 2000
    finally:
        MountedImages(store, tmp_path / "run").release(TASK)
    chosen = ImageStore(tmp_path / "auto", backend="file")
    with pytest.raises(HostUnsupported, match=r"cannot mount EROFS images .*fargatelite check"):
        MountedImages(chosen, tmp_path / "run").ensure_mounted(image, TASK)
    MountedImages(chosen, tmp_path / "run").release(TASK)


def test_damaged_image_is_named(layout: Path, tmp_path: Path, clean_host: None) -> None:
    store = ImageStore(tmp_path / "store")
    store.load(layout)
    path = next((tmp_path / "store/images").glob("*/image.erofs"))
    path.write_bytes(b"\0" * path.stat().st_size)
    target = tmp_path / "target"
    target.mkdir()
    try:
        with pytest.raises(ImageError, match=r"cannot mount image .*image\.erofs: .*fargatelite"):
            mount.mount_erofs(path, [], target)
    finally:
        unmount(target)


@pytest.mark.registry
@pytest.mark.parametrize("backend", ["loop", "directory"])
def test_task_runs_on_every_backend(settings: Settings, busybox: str, backend: str) -> None:
    chosen = msgspec.structs.replace(settings, image_backend=backend)
    script = "id -u && echo x >/bin/new && ls -n /bin/new"
    task = run_task(
        {
            "family": "backend",
            "networkMode": "awsvpc",
            "requiresCompatibilities": ["FARGATE"],
            "cpu": "256",
            "memory": "512",
            "containerDefinitions": [
                {"name": "main", "image": busybox, "command": ["sh", "-c", script]}
            ],
        },
        settings=chosen,
    )
    task.wait(patient(60))
    assert task.containers["main"].exit_code == 0, task.describe()
    lines = [line.text for line in task.logs("main")]
    assert lines[0] == b"0"
    assert lines[1].split()[2:4] == [b"0", b"0"]
