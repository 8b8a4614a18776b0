"""What goes wrong around a task: disks fill, descriptors run out, processes are killed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite.mounts import attach_loop, mount_filesystem, unmount_detached
from fargatelite.settings import Settings

from .conftest import Driver, Promises, task_of

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.timeout(300)]

DISK_MIB = 96


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, as a small disk has it: with blocks that only root may take left out."""
    backing, target = tmp_path / "disk", tmp_path / "small"
    with open(backing, "xb") as file:
        file.truncate(DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", backing], check=True)
    target.mkdir()
    device, name = attach_loop(backing, read_only=False)
    try:
        mount_filesystem("ext4", name, target)
    finally:
        os.close(device)
    try:
        yield target
    finally:
        unmount_detached(target)


@pytest.fixture
def on_small_disk(
    injector: Path, small_disk: Path, tmp_path: Path, clean_host: None, busybox: str
) -> Iterator[Promises]:
    """A driver whose data root is on the small disk."""
    (tmp_path / "driver").mkdir()
    settings = Settings(data_root=str(small_disk / "data"), run_root=str(tmp_path / "run"))
    driver = Driver(injector, tmp_path / "driver", settings)
    try:
        assert "imageId" in driver.do("pull", reference=busybox)
        first = driver.do("run", definition=task_of(busybox, "exit 7"))
        assert first["exitCode"] == 7, first
        promises = Promises(driver, busybox)
        promises.known.add(first["id"])
        yield promises
    finally:
        driver.end()


class _Filler:
    """Takes all of a disk but so many KiB."""

    def __init__(self, disk: Path, leave_kib: int) -> None:
        self._path = disk / "filler"
        self._disk, self._leave = disk, leave_kib << 10

    def __enter__(self) -> None:
        with open(self._path, "xb") as file:
            for step in (1 << 20, 1 << 12):
                while True:
                    found = os.statvfs(self._disk)
                    if found.f_bavail * found.f_frsize < self._leave + step:
                        break
                    file.write(bytes(step))
                    file.flush()
                    os.fsync(file.fileno())

    def __exit__(self, *_: object) -> None:
        self._path.unlink()


@pytest.mark.parametrize("piece", ["run", "pull"])
def test_the_disk_fills(
    on_small_disk: Promises, small_disk: Path, busybox: str, piece: str
) -> None:
    """At each of these sizes another write is the first that has no room: layer, image, log,
    record, ledger, the task's own file system."""
    promises = on_small_disk
    script = "i=0; while [ $i -lt 40 ]; do head -c 8192 /dev/zero; i=$((i + 1)); done; exit 7"
    for leave_kib in (0, 4, 16, 64, 128, 256, 512, 1024):
        if piece == "pull":
            promises.driver.do("remove", reference=busybox)
        with _Filler(small_disk, leave_kib):
            answer = promises.driver.do(
                piece, definition=task_of(busybox, script), reference=busybox
            )
        if piece == "pull":
            assert "imageId" in promises.driver.do("pull", reference=busybox)
        promises.check(f"{piece}: {leave_kib} KiB left", answer, (7,))
    promises.assert_kept(at_least=8)


def test_descriptors_run_out(promises: Promises, busybox: str) -> None:
    """The limit stands at another moment of the life each time."""
    for descriptors in range(10, 70, 4):
        answer = promises.driver.do(
            "run", definition=task_of(busybox, "exit 7"), descriptors=descriptors
        )
        promises.check(f"{descriptors} descriptors", answer, (7,))
    promises.assert_kept(at_least=15)


@pytest.mark.parametrize("who", ["shim", "init"])
def test_the_shim_or_the_containers_first_process_is_killed(
    promises: Promises, busybox: str, who: str
) -> None:
    answer = promises.driver.do("run", definition=task_of(busybox, "sleep 300"), kill=who)
    assert answer["exitCode"] == 137, answer
    assert answer["stopCode"] == "EssentialContainerExited"
    promises.check(f"{who} killed", answer, (137,))
    promises.assert_kept(at_least=1)
