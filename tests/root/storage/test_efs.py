"""efsVolumeConfiguration: a directory of the host, shared by tasks, that no link leads out of."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fargatelite import Settings, Task, run_task
from fargatelite.settings import EfsAccessPoint, EfsFileSystem
from tests.root.runtime.test_container_features import (
    TIMEOUT_S,
    check,
    definition,
    lines_of,
    run,
    shell,
)

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

ID, POINT = "fs-0123456789abcdef0", "fsap-0123456789abcdef0"


def document(image: str, script: str, efs: dict[str, Any] | None = None, **more: Any) -> Any:
    mount = {"sourceVolume": "shared", "containerPath": "/shared"}
    return definition(
        image,
        shell("app", script, mountPoints=[mount], **more),
        volumes=[{"name": "shared", "efsVolumeConfiguration": {"fileSystemId": ID, **(efs or {})}}],
    )


@pytest.mark.field("volumes[].efsVolumeConfiguration.fileSystemId")
def test_it_outlives_tasks_and_is_shared_by_them(settings: Settings, busybox: str) -> None:
    script = (
        "stat -c '%u %g %a' /shared; echo by root > /shared/a; chmod 777 /shared;"
        " stat -c '%u %g' /shared/a"
    )
    first = run(settings, document(busybox, script))
    check(first)
    assert lines_of(first, "app") == ["0 0 755", "0 0"]
    second = run(
        settings,
        document(busybox, "cat /shared/a; stat -c '%u %g' /shared/a; id > /shared/b", user="app"),
    )
    check(second)
    assert lines_of(second, "app") == ["by root", "0 0"]
    directory = Path(settings.data_root) / "efs" / ID
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in directory.iterdir()}
    assert owners == {"a": (0, 0), "b": (1000, 1001)}
    assert not settings.efs_mounts.exists()


def test_two_tasks_have_it_at_once(settings: Settings, busybox: str) -> None:
    writer = document(busybox, "echo hello > /shared/word; sleep 300", stopTimeout=2)
    with run_task(writer, settings=settings) as first:
        first.until("RUNNING", TIMEOUT_S)
        script = "for i in $(seq 100); do cat /shared/word 2>/dev/null && break; sleep 0.1; done"
        second = run(settings, document(busybox, script))
        check(second)
        assert lines_of(second, "app") == ["hello"]


@pytest.mark.field("containerDefinitions[].mountPoints[].readOnly")
@pytest.mark.field("volumes[].efsVolumeConfiguration.rootDirectory")
def test_a_directory_of_the_configured_one_read_only(
    settings: Settings, busybox: str, tmp_path: Path
) -> None:
    shared = tmp_path / "srv"
    (shared / "team/data").mkdir(parents=True)
    (shared / "team/data/file").write_text("configured\n")
    named = msgspec.structs.replace(
        settings, efs=(EfsFileSystem(file_system_id=ID, directory=str(shared)),)
    )
    made = document(
        busybox,
        "cat /shared/file; touch /shared/x 2>&1; ls /shared/..",
        {"rootDirectory": "/team/data"},
    )
    made["containerDefinitions"][0]["mountPoints"][0]["readOnly"] = True
    task = run(named, made)
    lines = lines_of(task, "app")
    assert lines[0] == "configured"
    assert lines[1].endswith("Read-only file system")
    assert "team" not in lines
    assert list((shared / "team/data").iterdir()) == [shared / "team/data/file"]


def test_an_access_point_deep_in_a_file_system_is_made_whole(
    settings: Settings, busybox: str, tmp_path: Path
) -> None:
    point = EfsAccessPoint(
        access_point_id=POINT, root_directory="/teams/blue/data", uid=1000, gid=1001,
        permissions="0750",
    )  # fmt: skip
    (tmp_path / "top").mkdir()
    system = EfsFileSystem(
        file_system_id=ID, directory=str(tmp_path / "top"), access_points=(point,)
    )
    configured = msgspec.structs.replace(settings, efs=(system,))
    for _ in range(2):
        efs = {
            "transitEncryption": "ENABLED", "authorizationConfig": {"accessPointId": POINT},
        }  # fmt: skip
        check(run(configured, document(busybox, "touch /shared/file", efs)))
    for path in ("teams", "teams/blue", "teams/blue/data"):
        made = os.stat(tmp_path / "top" / path)
        assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (1000, 1001, 0o750)


@pytest.mark.field("volumes[].efsVolumeConfiguration.authorizationConfig.accessPointId")
@pytest.mark.field("volumes[].efsVolumeConfiguration.transitEncryption")
@pytest.mark.parametrize("user", ["root", "app"])
def test_an_access_point_says_who_everybody_is(
    settings: Settings, busybox: str, tmp_path: Path, user: str
) -> None:
    shared = tmp_path / "srv"
    shared.mkdir()
    point = EfsAccessPoint(
        access_point_id=POINT, root_directory="/made", uid=4242, gid=4343, permissions="0750"
    )
    named = msgspec.structs.replace(
        settings,
        efs=(EfsFileSystem(file_system_id=ID, directory=str(shared), access_points=(point,)),),
    )
    efs = {"transitEncryption": "ENABLED", "authorizationConfig": {"accessPointId": POINT}}
    script = (
        "echo mine > /shared/file; mkdir /shared/dir; touch /shared/dir/x; cat /shared/file;"
        " stat -c %U /shared/file; rm /shared/dir/x"
    )
    task = run(named, document(busybox, script, efs, user=user))
    check(task)
    assert lines_of(task, "app") == ["mine", user]
    made = (shared / "made").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (4242, 4343, 0o750)
    for path in (shared / "made").iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (4242, 4343)


def test_a_link_that_a_task_laid_leads_nowhere(
    settings: Settings, busybox: str, tmp_path: Path
) -> None:
    """The next definition's rootDirectory is resolved below the file system, never on the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("host")
    script = (
        f"ln -s {outside} /shared/absolute; ln -s ../../../../../../../../../../.. /shared/up;"
        " mkdir /shared/real; ln -s /real /shared/inside; echo ok > /shared/real/file"
    )
    check(run(settings, document(busybox, script)))
    for root in ("/absolute", "/up" + str(outside)):
        task = run(settings, document(busybox, "ls /shared", {"rootDirectory": root}))
        assert task.stop_code == "TaskFailedToStart", root
        assert task.stopped_reason is not None
        assert task.stopped_reason.startswith(
            f"ResourceInitializationError: failed to set up the EFS volume shared ({ID}): "
            "No such file or directory"
        )
    within = run(settings, document(busybox, "cat /shared/file", {"rootDirectory": "/inside"}))
    assert lines_of(within, "app") == ["ok"]


@pytest.mark.parametrize(
    ("efs", "words"),
    [
        ({"rootDirectory": "/missing"}, "No such file or directory: /missing"),
        (
            {"transitEncryption": "ENABLED", "authorizationConfig": {"accessPointId": POINT}},
            "access point fsap-0123456789abcdef0 is not known here: name it in [[efs]]",
        ),
    ],
)
def test_what_is_not_there_is_said(
    settings: Settings, busybox: str, efs: dict[str, Any], words: str
) -> None:
    task: Task = run(settings, document(busybox, "true", efs))
    assert task.stop_code == "TaskFailedToStart"
    assert task.stopped_reason is not None
    assert words in task.stopped_reason


def test_removal_never_walks_what_is_shared(settings: Settings, busybox: str) -> None:
    """A mount that is in use stays, with all that is in it, and `gc` takes it later."""
    from fargatelite.names import new_task_id
    from fargatelite.storage.efs import mount_efs, mounted_at, unmount_all
    from fargatelite.taskdef.fields import EfsVolume

    task_id = new_task_id()
    volume = EfsVolume(file_system_id=ID)
    Path(settings.run_root).mkdir()
    mount_efs(settings, task_id, "shared", volume)
    place = mounted_at(settings, task_id, "shared")
    (place / "file").write_text("kept")
    held = os.open(place / "file", os.O_RDONLY)
    try:
        unmount_all(settings, task_id)
    finally:
        os.close(held)
    unmount_all(settings, task_id)
    assert (Path(settings.data_root) / "efs" / ID / "file").read_text() == "kept"
    assert not settings.efs_mounts.exists()
