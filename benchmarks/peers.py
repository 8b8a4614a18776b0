"""The contestants beside ours: crun, podman and unshare(1), in a mount namespace made for them.

crun 1.8 refuses a host with both kinds of cgroups ("cgroups in hybrid mode not supported"). Where
/sys/fs/cgroup is such a mixture, the peers see a copy of it with the v1 controllers only; ours
runs on the host as it is. podman's fixed places (its lock, its cache, /run) are covered by
directories of ours for the same thread, so that all it writes lies below the directory given here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.report import BENCH

T = TypeVar("T")

CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000
MNT_DETACH = 2
CGROUPS = Path("/sys/fs/cgroup")
COVERED = ("/dev/shm", "/run/crun", "/run/lock", "/var/lib/containers", "/etc/cni/net.d")
TIMEOUT_S = 300

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: Path, kind: str | None, flags: int, data: str | None) -> None:
    encoded = (None if text is None else text.encode() for text in (kind, data))
    kind_bytes, data_bytes = encoded
    target_bytes = os.fsencode(target)
    if _libc.mount(source.encode(), target_bytes, kind_bytes, ctypes.c_ulong(flags), data_bytes):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source}: {os.strerror(error)}", str(target))


def _enter_namespace(directory: Path, root: Path | None, visible: Sequence[str]) -> None:
    """Gives the calling thread, and what it starts, a mount namespace of its own, and `root` as
    their root directory, in which the host's other files are at their places."""
    if _libc.unshare(CLONE_NEWNS):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}; run as root")
    _mount("none", Path("/"), None, MS_REC | MS_PRIVATE, None)
    for place in COVERED:
        if Path(place).is_dir():
            cover = directory / "covers" / place.strip("/").replace("/", "-")
            cover.mkdir(parents=True, exist_ok=True)
            _mount(str(cover), Path(place), None, MS_BIND, None)
    if is_mixed():
        controllers = [
            line.split()[1]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[2] == "cgroup"
        ]
        # A file system over the old one: what is mounted there stays as it is for all others.
        descriptors = {Path(path).name: os.open(path, os.O_PATH) for path in controllers}
        _mount("tmpfs", CGROUPS, "tmpfs", 0, "mode=755")
        for name, descriptor in descriptors.items():
            (CGROUPS / name).mkdir()
            _mount(f"/proc/thread-self/fd/{descriptor}", CGROUPS / name, None, MS_BIND, None)
            os.close(descriptor)
    if root is not None:
        _mount(str(root), root, None, MS_BIND, None)  # programs want their root to be a mount
        for place in ("/proc", "/sys", "/dev", "/run", str(BENCH), *visible):
            target = root / place.strip("/")
            target.mkdir(parents=True, exist_ok=True)
            _mount(place, target, None, MS_BIND | MS_REC, None)
        os.chroot(root)  # of this thread: its unshare(2) gave it directories of its own
        os.chdir("/")


def leave_network() -> None:
    """Gives the calling thread, and what it starts, a network of its own, so that what a peer adds
    to one is added there."""
    if _libc.unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """A tmpfs, as /run is one, until the block ends; at a short path, since podman's run root may
    not be longer than 50 characters."""
    path = Path(tempfile.mkdtemp(prefix="flb"))
    _mount("tmpfs", path, "tmpfs", 0, "mode=700")
    try:
        yield path
    finally:
        if _libc.umount2(os.fsencode(path), MNT_DETACH):
            error = ctypes.get_errno()
            raise OSError(error, f"umount: {os.strerror(error)}", str(path))
        path.rmdir()


def is_mixed() -> bool:
    """Whether this host has v1 controllers and a v2 hierarchy at once."""
    kinds = {line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    return {"cgroup", "cgroup2"} <= kinds


class Peers:
    """Runs the peers' commands on one thread in the namespace made for them, with the programs of
    `root` if given."""

    def __init__(self, directory: Path, run: Path, root: Path | None = None) -> None:
        self.directory = directory
        self.run_directory = run
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.group = f"fargatelite/test-bench-peers-{os.getpid()}"
        self._thread = ThreadPoolExecutor(
            1, initializer=_enter_namespace, initargs=(directory, root, (str(run),))
        )

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` on the peers' thread."""
        return self._thread.submit(work).result()

    def run(self, command: Sequence[str | Path]) -> float:
        """Milliseconds from before the command starts until it has ended with 0.

        Raises: RuntimeError with what it wrote.
        """
        return self.call(lambda: timed_ms(command))

    def _podman_places(self, root: str) -> dict[str, Path]:
        return {
            "root": self.directory / f"{root}-root",
            "runroot": self.run_directory / f"{root}-runroot",
            "tmpdir": self.run_directory / f"{root}-tmpdir",
        }

    def podman(self, root: str = "podman") -> list[str]:
        """podman with all its state below the directory."""
        places = self._podman_places(root)
        return [
            "podman", *(f"--{option}={path}" for option, path in places.items()),
            "--cgroup-manager=cgroupfs", "--events-backend=none", "--log-level=error",
        ]  # fmt: skip

    def remove_podman(self, root: str = "podman") -> None:
        """Empties podman's storage, on the thread that sees its mounts."""

        def remove() -> None:
            timed_ms([*self.podman(root), "system", "reset", "--force"])
            for path in self._podman_places(root).values():
                # storage mounts its own directory onto itself
                while _libc.umount2(os.fsencode(path / "overlay"), MNT_DETACH) == 0:
                    pass
                subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)

        self.call(remove)

    def close(self) -> None:
        """Ends the thread; its mounts end with it. Removes the groups that peers left."""
        self._thread.shutdown()
        for top in [CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())]:
            group = top / self.group
            if (top / "cgroup.procs").exists() and group.is_dir():
                _remove_group(group)
                with contextlib.suppress(OSError):  # others may have groups in it
                    group.parent.rmdir()


def _remove_group(group: Path) -> None:
    for path, _, _ in os.walk(group, topdown=False):
        deadline = time.monotonic() + 10
        while True:
            try:
                os.rmdir(path)
                break
            except OSError:
                # conmon, the only one left in a group, ends by itself after its container.
                if time.monotonic() > deadline:
                    for pid in Path(path, "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    deadline = time.monotonic() + 10
                time.sleep(0.01)


def timed_ms(command: Sequence[str | Path]) -> float:
    """Milliseconds that a command takes, all of it: exec, work, exit."""
    started_ns = time.perf_counter_ns()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    took_ms = (time.perf_counter_ns() - started_ns) / 1e6
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {said}")
    return took_ms


@contextlib.contextmanager
def running_peers(directory: Path, run: Path, root: Path | None = None) -> Iterator[Peers]:
    """Peers that leave nothing behind; `run` is where they keep what others keep in /run."""
    if directory.exists():  # of a run that was ended: podman would not have it
        subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)
    peers = Peers(directory, run, root)
    try:
        yield peers
    finally:
        peers.close()


def write_bundle(bundle: Path, group: str, arguments: Sequence[str]) -> None:
    """An OCI bundle beside an existing `rootfs`: what `crun spec` proposes, with the smallest
    task's limits.

    Changed: no terminal, a writable root, the process, the group and its limits.
    """
    (bundle / "config.json").unlink(missing_ok=True)
    subprocess.run(["crun", "spec"], cwd=bundle, check=True, timeout=TIMEOUT_S)
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    config["process"].update(terminal=False, args=list(arguments))
    config["process"]["rlimits"] = []  # this test must also run without CAP_SYS_RESOURCE
    config["root"]["readonly"] = False
    config["linux"]["cgroupsPath"] = f"/{group}/crun"
    config["linux"]["resources"] = {
        "cpu": {"shares": 256, "quota": 25_000, "period": 100_000},
        "memory": {"limit": 512 << 20},
        "pids": {"limit": 32768},
    }
    (bundle / "config.json").write_text(json.dumps(config))
