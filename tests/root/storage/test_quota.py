"""ephemeralStorage by project quota: the same promises without a file system for each task."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite import Settings, run_task
from fargatelite.cgroups.detect import detect_driver
from fargatelite.errors import HostUnsupported
from fargatelite.mounts import attach_loop, mount_filesystem, unmount_detached
from fargatelite.names import cgroup_path, new_task_id
from fargatelite.storage import quota
from fargatelite.storage.ephemeral import create_storage, read_use, remove_storage
from tests.fixtures.patience import patient
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
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "lazy_itable_init=1"],
    "xfs": ["mkfs.xfs", "-q"],
}
REFUSAL = {"ext4": "Disk quota exceeded", "xfs": "No space left on device"}
"""The kernel's: __dquot_alloc_space says EDQUOT, xfs_trans_dqresv ENOSPC for projects."""


@pytest.fixture(params=MAKE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def held(tmp_path: Path, clean_host: None, kind: str) -> Iterator[Path]:
    """Where a file system of 24 GiB with project quota is mounted."""
    image, target = tmp_path / "image", tmp_path / "data root"
    with open(image, "xb") as file:
        file.truncate(24 * GIB)
    subprocess.run([*MAKE[kind], image], check=True)
    target.mkdir()
    device, name = attach_loop(image, read_only=False)
    try:
        mount_filesystem(kind, name, target, flags=("prjquota",))
    except OSError as error:
        if "FARGATELITE_TEST_GUEST" in os.environ:
            raise  # made for this
        pytest.skip(f"this kernel has no project quota on {kind}: {error.strerror}")
    finally:
        os.close(device)
    target.chmod(0o700)
    try:
        yield target
    finally:
        unmount_detached(target)


@pytest.fixture
def settings(held: Path, tmp_path: Path) -> Settings:
    return Settings(data_root=str(held), run_root=str(tmp_path / "run root"))


def limits_of(directory: Path, project: int) -> tuple[int, ...]:
    """Hard and soft blocks, bytes; hard, soft and used inodes."""
    found = bytearray(quota._LIMITS.size)
    with quota._opened(directory) as fd:
        quota._quotactl(fd, quota._Q_GETQUOTA, project, found)
    values: tuple[int, ...] = quota._LIMITS.unpack(found)[:6]
    return values


def project_of(directory: Path) -> int:
    with quota._opened(directory) as fd:
        return quota._read_attributes(fd)[3]


def run_without_privilege(script: str) -> str:
    """A shell without the capability that ignores quotas; what it writes."""
    return subprocess.run(
        ["setpriv", "--bounding-set=-sys_resource", "sh", "-c", script],
        capture_output=True, text=True, check=False, timeout=patient(20),
    ).stdout  # fmt: skip


def test_all_of_the_size_is_the_tasks_and_goes_with_it(held: Path) -> None:
    task_id, target = new_task_id(), held / "tasks" / "task"
    create_storage(held / "storage", held / "cache", target, task_id, 21)
    assert not os.path.ismount(target)
    use = read_use(target)
    assert (use.size_bytes, use.used_bytes < 1 << 20) == (21 * GIB, True)
    project = project_of(target)
    hard, _, _, files, _, _ = limits_of(held, project)
    assert (hard * 1024, files) == (21 * GIB, 21 * GIB // 16384)
    (target / "directory").mkdir()
    (target / "directory" / "file").write_bytes(b"x" * (4 << 20))
    assert project_of(target / "directory") == project
    os.sync()
    assert 4 << 20 <= read_use(target).used_bytes < 5 << 20
    for _ in range(2):
        remove_storage(held / "storage", target, task_id)
    assert not target.exists()
    with contextlib.suppress(FileNotFoundError):  # XFS has forgotten it
        give_up_at = time.monotonic() + patient(20)
        while any(limits_of(held, project)):  # XFS gives freed inodes back in the background
            assert time.monotonic() < give_up_at
            os.statvfs(held)  # which tells it to hurry


def test_bytes_and_files_are_held(held: Path, kind: str) -> None:
    directory = held / "small"
    directory.mkdir()
    quota.limit_directory(directory, 1 << 20, 10)
    said = run_without_privilege(
        f"cd '{directory}'; dd if=/dev/zero of=big bs=64k count=32 2>&1; stat -c %s big; rm big;"
        " for n in $(seq 12); do true > $n; done 2>&1; ls | wc -l"
    )
    assert said.count(REFUSAL[kind]) >= 2, said
    lines = said.splitlines()
    (size,) = (int(line) for line in lines[:-1] if line.isdigit())
    assert 0.8 * 2**20 < size <= 2**20
    assert lines[-1] == "9"  # and the directory itself


def test_a_limit_of_somebody_else_is_left_alone(held: Path) -> None:
    theirs = held / "theirs"
    theirs.mkdir()
    quota.limit_directory(theirs, 8 << 20, 100)
    project = project_of(theirs)
    inside = theirs / "inside"
    inside.mkdir()
    quota.lift_limit(inside)  # inherits the project, and is not its top
    quota.lift_limit(held)
    quota.lift_limit(held / "nothing")
    assert limits_of(held, project)[0] == 8 << 10
    quota.lift_limit(theirs)
    assert limits_of(held, project)[0] == 0


@pytest.mark.registry
@pytest.mark.field("ephemeralStorage.sizeInGiB")
def test_the_writer_is_refused_and_its_neighbours_are_not(
    settings: Settings, busybox: str, kind: str
) -> None:
    said = f"grep -o '{REFUSAL[kind]}'"
    script = (
        f"fallocate -l 20G /first && echo first; fallocate -l 2G /second 2>&1 | {said};"
        f" rm /second; fallocate -l 900M /data/third; dd if=/dev/zero of=/data/fourth bs=1M"
        f" count=200 2>&1 | {said}; rm /first; fallocate -l 2G /fifth && echo fifth;"
        " wget -q -O - $T/task"
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
    assert lines[:4] == ["first", REFUSAL[kind], REFUSAL[kind], "fifth"]
    metrics = json.loads(lines[4])["EphemeralStorageMetrics"]
    assert metrics["Reserved"] == 21 * 1024 + 16
    assert 2948 < metrics["Utilized"] < 3200
    assert not settings.storage.exists()
    assert list(settings.layers.iterdir()) == []


LEAVE = """
import fcntl, os, struct, sys
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDONLY)
    flags, a, b, project, c = struct.unpack("=5I8x", fcntl.ioctl(fd, 0x801C581F, bytes(28)))
    # Only directories have the flag that says that it is inherited.
    for wanted in {(flags, 0), (flags, 5), (flags & ~0x200, project)} - {(flags, project)}:
        try:
            fcntl.ioctl(fd, 0x401C5820, struct.pack("=5I8x", wanted[0], a, b, wanted[1], c))
            print("changed", path, wanted)
        except OSError as error:
            print("refused", error.errno)
"""


@pytest.mark.registry
def test_a_task_cannot_leave_its_project(settings: Settings, busybox: str) -> None:
    mounts = [{"sourceVolume": "data", "containerPath": "/data"}]
    script = "mkdir /own; echo x > /data/file; echo ready; sleep 300"
    with run_task(
        definition(
            busybox, shell("c", script, stopTimeout=2, mountPoints=mounts),
            volumes=[{"name": "data"}],
        ),
        settings=settings,
    ) as task:  # fmt: skip
        next(line for line in task.logs("c", follow=True) if line.text == b"ready")
        project = project_of(settings.layers / task.id)
        group = detect_driver().directory("pids", cgroup_path(task.id, "c"))
        assert group is not None
        pid = int(Path(group, "cgroup.procs").read_text().split()[0])
        # With all that root in the container has, and its way to the files.
        done = subprocess.run(
            ["nsenter", "--target", str(pid), "--user", sys.executable, "-I", "-c", LEAVE,
             *(f"/proc/{pid}/root/{name}" for name in ("", "own", "data", "data/file"))],
            capture_output=True, text=True, check=True, timeout=patient(20), cwd="/",
        )  # fmt: skip
        answers = done.stdout.splitlines()
        assert len(answers) == 3 + 3 + 3 + 2
        assert all(line.startswith("refused") for line in answers), answers
        volume = settings.layers / task.id / ".volumes" / "data"
        assert project_of(volume) == project
        assert project_of(settings.layers / task.id / "c" / "upper" / "own") == project


@pytest.mark.registry
def test_tasks_run_and_check_says_how(settings: Settings, busybox: str) -> None:
    check(run(settings, definition(busybox, shell("c", "mkdir /a && mv /a /b && rmdir /b"))))
    done = subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
         "--run-root", settings.run_root, "check", "--output", "json"],
        capture_output=True, text=True, check=False, timeout=patient(120),
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert rows["ephemeral storage"]["detail"] == "project quota"


def test_a_file_system_without_quota_is_named(tmp_path: Path) -> None:
    places = tmp_path / "s", tmp_path / "c", tmp_path / "m"
    if quota.enforces_quota(tmp_path):
        pytest.skip("this one has project quota")
    with pytest.raises(HostUnsupported, match=r'prjquota.*storage_backend = "loop"'):
        create_storage(*places, new_task_id(), 21, "quota")
    assert list(tmp_path.iterdir()) == []
