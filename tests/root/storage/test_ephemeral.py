"""ephemeralStorage is a limit: for the writer only, in bytes and files, and gone with the task."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.errors import HostUnsupported
from fargatelite.names import new_task_id
from fargatelite.storage import ephemeral
from fargatelite.storage.ephemeral import (
    bound_unwritten,
    create_storage,
    read_use,
    remove_storage,
)
from tests.root.runtime.test_container_features import (
    TIMEOUT_S,
    check,
    definition,
    lines_of,
    run,
    shell,
)

pytestmark = [pytest.mark.root, pytest.mark.vm]

GIB = 2**30


@pytest.mark.parametrize("size_gib", [20, 21, 200])
def test_all_of_the_size_is_the_tasks(tmp_path: Path, clean_host: None, size_gib: int) -> None:
    task_id = new_task_id()
    mount_point = tmp_path / "task"
    create_storage(tmp_path / "storage", tmp_path / "cache", mount_point, task_id, size_gib, "loop")
    try:
        found = os.statvfs(mount_point)
        available = found.f_bavail * found.f_frsize
        assert size_gib * GIB <= available < size_gib * GIB + size_gib * GIB // 100
        assert found.f_favail >= size_gib * GIB // 16384 - 100
        backing = os.stat(tmp_path / "storage" / f"{task_id}.ext4")
        assert backing.st_blocks * 512 < 2 << 20
        assert read_use(mount_point).used_bytes < 1 << 20
    finally:
        remove_storage(tmp_path / "storage", mount_point, task_id)
    assert list((tmp_path / "storage").iterdir()) == []
    assert not mount_point.exists()
    remove_storage(tmp_path / "storage", mount_point, task_id)


def test_what_is_made_is_a_sound_file_system(tmp_path: Path, clean_host: None) -> None:
    task_id = new_task_id()
    mount_point = tmp_path / "task"
    create_storage(tmp_path / "storage", tmp_path / "cache", mount_point, task_id, 21, "loop")
    try:
        for number in range(200):
            (mount_point / f"file-{number}").write_bytes(os.urandom(10_000))
        os.sync()
        copy = tmp_path / "copy.ext4"
        subprocess.run(["cp", "--sparse=always", tmp_path / "storage" / f"{task_id}.ext4", copy],
                       check=True)  # fmt: skip
        checked = subprocess.run(["e2fsck", "-fn", copy], capture_output=True, text=True)
        # 0: clean. It was copied while it was mounted, which e2fsck may only remark.
        assert checked.returncode == 0, checked.stdout
    finally:
        remove_storage(tmp_path / "storage", mount_point, task_id)


def test_what_was_not_written_is_forgotten(tmp_path: Path, clean_host: None) -> None:
    """A task's end is no reason to write what is deleted with it."""
    task_id = new_task_id()
    mount_point, backing = tmp_path / "task", tmp_path / "storage" / f"{task_id}.ext4"
    create_storage(tmp_path / "storage", tmp_path / "cache", mount_point, task_id, 21, "loop")
    held = os.open(backing, os.O_RDONLY)
    try:
        (mount_point / "file").write_bytes(os.urandom(64 << 20))
        before = os.fstat(held).st_blocks
        remove_storage(tmp_path / "storage", mount_point, task_id)
        assert (os.fstat(held).st_blocks - before) * 512 < 16 << 20
    finally:
        os.close(held)


def test_a_file_system_that_is_not_the_tasks_is_left_alone(tmp_path: Path) -> None:
    """A directory of the host, and another task's mount, in the mount point's place."""
    root, task_id, other = tmp_path / "storage", new_task_id(), new_task_id()
    create_storage(root, tmp_path / "cache", tmp_path / "other", other, 21, "loop")
    try:
        ephemeral._forget_unwritten(root / f"{task_id}.ext4", tmp_path / "other")
        ephemeral._forget_unwritten(root / f"{task_id}.ext4", tmp_path)
        for directory in (tmp_path / "other", tmp_path):
            (directory / "still").write_text("writable")
            os.sync()
            assert (directory / "still").read_text() == "writable"
    finally:
        remove_storage(root, tmp_path / "other", other)


def test_a_bound_on_unwritten_data_ends_with_the_task(tmp_path: Path, clean_host: None) -> None:
    """The loop device outlives the task, and goes to whoever asks next."""
    root, mount_point, task_id = tmp_path / "storage", tmp_path / "task", new_task_id()
    create_storage(root, tmp_path / "cache", mount_point, task_id, 21, "loop")
    number = os.stat(mount_point).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/bdi").resolve()

    def limits() -> tuple[str, str]:
        return (device / "strict_limit").read_text(), (device / "max_ratio").read_text()

    try:
        if not (device / "strict_limit").exists():  # asked here: no loop device is there before
            pytest.skip("bdi/strict_limit came with Linux 6.2")
        before = limits()
        bound_unwritten(root, mount_point, task_id, 512 << 20)
        assert (device / "strict_limit").read_text() == "1\n"
        bound = int((device / "max_bytes").read_text())
        assert (512 << 20) // 5 * 0.9 < bound < (512 << 20) // 5 * 1.1  # kept as parts per million
        bound_unwritten(root, mount_point, task_id, 1 << 50)  # more than any host has: no bound
    finally:
        remove_storage(root, mount_point, task_id)
    assert limits() == before == ("0\n", "100\n")
    plain = tmp_path / "plain"
    plain.mkdir()
    bound_unwritten(root, plain, task_id, 512 << 20)  # the host's own file system is left alone
    assert limits() == before


@pytest.mark.registry
@pytest.mark.field("ephemeralStorage.sizeInGiB")
def test_the_writer_gets_enospc_and_its_neighbours_do_not(settings: Settings, busybox: str) -> None:
    script = (
        "fallocate -l 20G /first && echo first; fallocate -l 2G /second 2>&1; rm /second;"
        " fallocate -l 990M /data/third;"
        " dd if=/dev/zero of=/data/fourth bs=1M count=120 2>&1 | grep -o 'No space.*';"
        " rm /first; fallocate -l 2G /fifth && echo fifth; wget -q -O - $T/task"
    )
    volume = {"volumes": [{"name": "data"}], "ephemeralStorage": {"sizeInGiB": 21}}
    mounts = [{"sourceVolume": "data", "containerPath": "/data"}]
    neighbour = definition(
        busybox, shell("n", "while [ ! -e /stop ]; do echo x >> /log || exit 9; sleep 0.05; done",
                       stopTimeout=2))  # fmt: skip
    with run_task(neighbour, settings=settings) as other:
        other.until("RUNNING", TIMEOUT_S)
        task = run(
            settings,
            definition(
                busybox,
                shell("w", f"T=$ECS_CONTAINER_METADATA_URI_V4; {script}", mountPoints=mounts),
                **volume,
            ),
        )
        assert other.last_status == "RUNNING"
    lines = lines_of(task, "w")
    assert lines[0] == "first"
    assert "No space left on device" in lines[1]
    assert lines[2:4] == ["No space left on device", "fifth"]
    metrics = json.loads(lines[4])["EphemeralStorageMetrics"]
    assert metrics["Reserved"] == 21 * 1024 + 16
    assert 3020 < metrics["Utilized"] < 3200
    assert list(settings.storage.iterdir()) == []
    assert list(settings.layers.iterdir()) == []


@pytest.mark.registry
def test_what_is_deleted_is_given_back_to_the_host(settings: Settings, busybox: str) -> None:
    script = "dd if=/dev/urandom of=/big bs=1M count=64; sync; rm /big; sync; echo done; sleep 300"
    with run_task(
        definition(busybox, shell("w", script, stopTimeout=2)), settings=settings
    ) as task:
        for line in task.logs("w", follow=True):
            if line.text == b"done":
                break
        backing = settings.storage / f"{task.id}.ext4"
        assert backing.stat().st_blocks * 512 < 8 << 20


@pytest.mark.registry
def test_a_host_may_set_no_limit(settings: Settings, busybox: str) -> None:
    free = msgspec.structs.replace(settings, storage_backend="unlimited")
    task = run(free, definition(busybox, shell("w", "echo x > /file; mkdir /dir; ls /")))
    check(task)
    assert not free.storage.exists()
    assert list(free.layers.iterdir()) == []


@pytest.mark.registry
def test_a_host_without_mkfs_is_told_what_to_do(
    settings: Settings, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ephemeral, "_MKFS", "mkfs.nothing")
    task: Task = run(settings, definition(busybox, shell("w", "true")))
    assert task.stop_code == "TaskFailedToStart"
    assert task.stopped_reason is not None
    assert task.stopped_reason.startswith("ResourceInitializationError: mkfs.nothing is missing")
    assert 'storage_backend = "unlimited"' in task.stopped_reason


def test_the_error_is_a_lack_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemeral, "_MKFS", "mkfs.nothing")
    with pytest.raises(HostUnsupported, match="install e2fsprogs"):
        create_storage(tmp_path / "s", tmp_path / "c", tmp_path / "m", new_task_id(), 21, "loop")
    remove_storage(tmp_path / "s", tmp_path / "m", new_task_id())
