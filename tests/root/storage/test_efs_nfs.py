"""efsVolumeConfiguration over NFS 4.1: a server of the kernel, on loopback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from fargatelite import Settings
from fargatelite.settings import EfsFileSystem
from tests.root.runtime.test_container_features import check, lines_of, run
from tests.root.storage.test_efs import ID, document

pytestmark = [pytest.mark.root, pytest.mark.registry, pytest.mark.vm]

UID, GID = 1234, 1235
OPTIONS = f"rw,no_subtree_check,all_squash,anonuid={UID},anongid={GID},insecure,fsid=1234"
COMMAND_S = 120


def _command(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=COMMAND_S)


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Path]:
    """A directory that this kernel's NFS server exports to 127.0.0.1."""
    if shutil.which("rpc.nfsd") is None or shutil.which("rpc.mountd") is None:
        pytest.skip("no NFS server is installed (Debian: nfs-kernel-server)")
    if subprocess.run(["modprobe", "nfsd"], capture_output=True).returncode:
        pytest.skip("this kernel has no NFS server")
    directory = tmp_path / "exported"
    directory.mkdir()
    directory.chmod(0o777)
    with ExitStack() as stack:
        control = Path("/proc/fs/nfsd")
        if not (control / "threads").exists():
            _command("mount", "-t", "nfsd", "nfsd", control)
            stack.callback(_command, "umount", control)
        stack.callback(_command, "rpc.nfsd", "0")
        _command("exportfs", "-o", OPTIONS, f"127.0.0.1:{directory}")
        stack.callback(_command, "exportfs", "-u", f"127.0.0.1:{directory}")
        mountd = subprocess.Popen(["rpc.mountd", "--foreground", "--no-nfs-version", "3"])
        stack.callback(mountd.wait, COMMAND_S)
        stack.callback(mountd.terminate)
        _command("rpc.nfsd", "--no-nfs-version", "3", "--host", "127.0.0.1", "2")
        yield directory


@pytest.mark.field("volumes[].efsVolumeConfiguration.fileSystemId")
def test_tasks_share_an_export(settings: Settings, busybox: str, export: Path) -> None:
    """The server says who everybody is: nobody's ids leave the host."""
    system = EfsFileSystem(file_system_id=ID, nfs=f"127.0.0.1:{export}")
    configured = msgspec.structs.replace(settings, efs=(system,))
    check(run(configured, document(busybox, "echo first > /shared/file; mkdir /shared/made")))
    made = (export / "file").stat()
    assert (made.st_uid, made.st_gid) == (UID, GID)
    second = run(
        configured, document(busybox, "cat /shared/file; echo more >> /shared/file", user="app")
    )
    check(second)
    assert lines_of(second, "app") == ["first"]
    assert (export / "file").read_text() == "first\nmore\n"
    assert not settings.efs_mounts.exists()


def test_a_server_that_refuses_is_named(settings: Settings, busybox: str, export: Path) -> None:
    system = EfsFileSystem(file_system_id=ID, nfs=f"127.0.0.1:{export.parent / 'other'}")
    task = run(msgspec.structs.replace(settings, efs=(system,)), document(busybox, "true"))
    assert task.stop_code == "TaskFailedToStart"
    assert task.stopped_reason is not None
    assert f"failed to set up the EFS volume shared ({ID})" in task.stopped_reason
