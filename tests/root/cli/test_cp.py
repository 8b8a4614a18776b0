"""`fargatelite cp`, also with a container that wants something else of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fargatelite import Settings, Task, run_task
from tests.fixtures.patience import patient
from tests.root.runtime.test_container_features import TIMEOUT_S, definition, shell

pytestmark = [pytest.mark.root, pytest.mark.registry]

SCRIPT = """
mkdir -p /data/sub/empty /data/more; echo hello > /data/file; echo deep > /data/sub/deep
chmod 4755 /data/file; chown 1000:1001 /data/file; ln -s /etc/passwd /data/link
mkfifo /data/fifo; truncate -s 5G /data/sparse; ln -s /data /way
ln -s /proc/1/root/etc /magic; ln -s / /data/sub/up
echo ready; while :; do sleep 0.1; done
"""


@pytest.fixture
def task(settings: Settings, busybox: str) -> Iterator[Task]:
    with run_task(
        definition(busybox, shell("app", SCRIPT, stopTimeout=2)), settings=settings
    ) as made:
        for line in made.logs("app", follow=True):
            if line.text == b"ready":
                break
        made.until("RUNNING", TIMEOUT_S)
        yield made


def cp(settings: Settings, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root,
         "--run-root", settings.run_root, "cp", *arguments],
        capture_output=True, text=True, timeout=patient(60), check=False,
    )  # fmt: skip


def inside(settings: Settings, task: Task, script: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "fargatelite", "--data-root", settings.data_root, "--run-root",
         settings.run_root, "exec", "--force", task.id, "sh", "-c", script],
        capture_output=True, text=True, timeout=patient(60), check=True,
    ).stdout  # fmt: skip


@pytest.mark.vm
def test_a_tree_comes_out(task: Task, settings: Settings, tmp_path: Path) -> None:
    done = cp(settings, f"{task.id[:8]}:/data", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "skipped, no file or directory: /data/fifo\n"
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "file", "link", "more", "sparse", "sub",
    ]  # fmt: skip
    assert (out / "file").read_text() == "hello\n"
    info = (out / "file").stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (os.geteuid(), 0o755)
    assert os.readlink(out / "link") == "/etc/passwd"
    assert (out / "sub/deep").read_text() == "deep\n"
    assert (out / "sub/empty").is_dir()
    assert os.readlink(out / "sub/up") == "/"
    sparse = (out / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks) == (5 << 30, 0)


def test_into_a_directory_and_by_a_link(task: Task, settings: Settings, tmp_path: Path) -> None:
    assert cp(settings, f"{task.arn}:way/file", tmp_path).returncode == 0
    assert (tmp_path / "file").read_text() == "hello\n"
    assert cp(settings, f"{task.id}:/data/sub/.", tmp_path / "new").returncode == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"deep", "empty", "up"}
    assert cp(settings, f"{task.id}:/proc/1/comm", tmp_path / "comm").returncode == 0
    assert (tmp_path / "comm").read_text() == "sh\n"


@pytest.mark.vm
def test_files_go_in(task: Task, settings: Settings, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "program").write_text("#!/bin/sh\necho ran\n")
    (tree / "program").chmod(0o755)
    (tree / "sub/file").write_text("in")
    assert cp(settings, tree, f"{task.id}:/opt").returncode == 0
    assert cp(settings, tree, f"{task.id}:/data/more").returncode == 0
    assert cp(settings, f"{tree}/.", f"{task.id}:/data/more").returncode == 0
    script = (
        "/opt/program; cat /data/more/tree/sub/file; stat -c '%u %g' /opt/program; ls /data/more"
    )
    assert inside(settings, task, script).splitlines() == [
        "ran", "in0 0", "program", "sub", "tree",
    ]  # fmt: skip


def test_a_link_in_the_container_leads_nowhere_on_the_host(
    task: Task, settings: Settings, tmp_path: Path
) -> None:
    """The host's file of that name is neither read nor written (CVE-2018-15664)."""
    secret = tmp_path / "secret"
    secret.write_text("host")
    inside(settings, task, f"ln -s {secret} /data/more/trap; ln -s {tmp_path} /data/more/dir")
    done = cp(settings, f"{task.id}:/data/more/dir/secret", tmp_path / "stolen")
    assert done.returncode == 125
    assert "No such file or directory" in done.stderr
    assert not (tmp_path / "stolen").exists()

    (tmp_path / "in").write_text("changed")
    assert cp(settings, tmp_path / "in", f"{task.id}:/data/more/trap").returncode == 0
    assert secret.read_text() == "host"
    assert inside(settings, task, "cat /data/more/trap; ls -l /data/more/trap").startswith(
        "changed-"
    )
    done = cp(settings, tmp_path / "in", f"{task.id}:/data/more/dir/x")
    assert done.returncode == 125
    assert not (tmp_path / "x").exists()


def test_magic_links_are_refused(task: Task, settings: Settings, tmp_path: Path) -> None:
    for path in ("/magic/passwd", "/proc/1/root/etc/passwd", "/proc/1/cwd/etc/passwd"):
        done = cp(settings, f"{task.id}:{path}", tmp_path / "out")
        assert done.returncode == 125, path
        assert "Too many levels of symbolic links" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_fifo_does_not_hold_it_and_a_device_is_not_opened(
    task: Task, settings: Settings, tmp_path: Path
) -> None:
    for path in ("/data/fifo", "/dev/zero"):
        done = cp(settings, f"{task.id}:{path}", tmp_path / "out")
        assert done.stderr == f"skipped, no file or directory: {path}\n"
        assert not (tmp_path / "out").exists()


def test_a_tree_that_changes_meanwhile_stays_inside(
    task: Task, settings: Settings, tmp_path: Path
) -> None:
    """A directory that becomes a link to a directory of the host's name, over and over, also while
    each copy is made."""
    bait = tmp_path / "bait"
    bait.mkdir()
    (bait / "host-only").write_text("host")
    inside(
        settings, task,
        "mkdir -p /race/d; echo c > /race/d/own; (cd /race; while :; do"
        f" ln -s {bait} l 2>/dev/null; mv d e; mv l d; mv d l; mv e d; printf . >> /swaps; done)"
        " >/dev/null 2>&1 &",
    )  # fmt: skip

    def swaps() -> int:
        return (settings.layers / task.id / "app" / "upper" / "swaps").stat().st_size

    during = []
    for number in range(12):
        out = tmp_path / f"out-{number}"
        before = swaps()
        cp(settings, f"{task.id}:/race", out)
        during.append(swaps() - before)
        found = [path for path in out.rglob("*") if not path.is_symlink()]
        assert "host-only" not in {path.name for path in found}
    (tmp_path / "in").write_text("x")
    for _ in range(12):
        before = swaps()
        cp(settings, tmp_path / "in", f"{task.id}:/race/d/planted")
        during.append(swaps() - before)
    assert min(during) > 0, during
    assert [path.name for path in bait.iterdir()] == ["host-only"]


def test_depth_is_bounded(task: Task, settings: Settings, tmp_path: Path) -> None:
    inside(settings, task, "mkdir /deep; cd /deep; for i in $(seq 200); do mkdir d; cd d; done")
    done = cp(settings, f"{task.id}:/deep", tmp_path / "out")
    assert done.returncode == 125
    assert "more than 128 directories deep" in done.stderr


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("a", "b", "exactly one"),
        ("{id}:/a", "{id}:/b", "exactly one"),
        ("{id}:/nothing", "x", "cannot read from container app /nothing: No such file"),
        ("/nothing-here", "{id}:/x", "cannot read /nothing-here: No such file"),
        ("/etc/hostname", "{id}:/no/dir/x", "cannot write in container app /no/dir/x"),
    ],
)
def test_wrong_use(task: Task, settings: Settings, source: str, target: str, words: str) -> None:
    done = cp(settings, source.format(id=task.id), target.format(id=task.id))
    assert done.returncode == (2 if words == "exactly one" else 125)
    assert words in done.stderr


def test_a_read_only_root_stays_so(settings: Settings, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    container = shell("app", "sleep 300", readonlyRootFilesystem=True, stopTimeout=2)
    with run_task(definition(busybox, container), settings=settings) as made:
        made.until("RUNNING", TIMEOUT_S)
        done = cp(settings, tmp_path / "in", f"{made.id}:/tmp/x")
    assert done.returncode == 125
    assert "Read-only file system" in done.stderr
