"""Volumes, file systems that outlive a task, and roots that nobody can write to."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from fargatelite.settings import EfsAccessPoint, EfsFileSystem
from tests.fixtures.published import Published

pytestmark = [pytest.mark.root, pytest.mark.registry]

FILE_SYSTEM = "fs-0f1e2d3c4b5a69788"


@pytest.mark.field("volumes[].efsVolumeConfiguration.fileSystemId")
def test_efs_outlives_its_tasks(published: Published) -> None:
    assert published.run("efs-volume").lines("wordpress") == ["x"]
    assert published.run("efs-volume").lines("wordpress") == ["xx"]


@pytest.mark.field(
    "volumes[].efsVolumeConfiguration.authorizationConfig.accessPointId",
    "volumes[].efsVolumeConfiguration.rootDirectory",
)
def test_efs_access_point(published: Published, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "datasets").mkdir(parents=True)
    point = EfsAccessPoint(
        access_point_id="fsap-0a1b2c3d4e5f60718", root_directory="/home/ada", uid=5000, gid=5000,
        permissions="0700",
    )  # fmt: skip
    system = EfsFileSystem(
        file_system_id=FILE_SYSTEM, directory=str(shared), access_points=(point,)
    )
    settings = msgspec.structs.replace(published.settings, efs=(system,))
    ran = published.run("efs-access-point", settings=settings)
    assert ran.codes == {"notebook": 0}, (ran.why, ran.output("notebook"))
    written = os.stat(shared / "home/ada/a.ipynb")
    assert (written.st_uid, written.st_gid) == (5000, 5000)
    assert ran.lines("notebook")[-1] == "a.ipynb"
    assert "ro" in ran.mount("notebook", "/datasets")["flags"]
    assert ran.seen("notebook")["cwd"] == "/home/jovyan"


@pytest.mark.field(
    "containerDefinitions[].mountPoints[].sourceVolume",
    "containerDefinitions[].mountPoints[].containerPath",
    "containerDefinitions[].mountPoints[].readOnly",
)
def test_a_volume_between_two_containers(published: Published) -> None:
    ran = published.run("shared-volume")
    lines = sorted(ran.lines("uploader"))
    assert lines[:3] == ["jpg1", "jpg2", "jpg3"], ran.why
    assert "Read-only file system" in lines[3]
    assert "/spool" in ran.seen("resizer")["writable"]


@pytest.mark.field(
    "containerDefinitions[].readonlyRootFilesystem",
    "containerDefinitions[].linuxParameters.tmpfs[].containerPath",
    "containerDefinitions[].linuxParameters.tmpfs[].size",
    "containerDefinitions[].linuxParameters.tmpfs[].mountOptions",
)
def test_a_read_only_root(published: Published) -> None:
    ran = published.run("read-only-root")
    assert "refused" in ran.lines("payments"), ran.why
    seen = ran.seen("payments")
    assert sorted(seen["writable"]) == ["/run", "/tmp"]
    assert "ro" in ran.mount("payments", "/")["flags"]
    tmp, run = ran.mount("payments", "/tmp"), ran.mount("payments", "/run")
    assert {"noexec", "nosuid"} <= tmp["flags"]
    assert "size=65536k" in tmp["super"]
    assert "size=1024k" in run["super"]
    assert (seen["uid"], seen["cap_bounding"]) == (10001, "0" * 16)
