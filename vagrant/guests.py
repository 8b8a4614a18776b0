"""The guests: which user space and kernel, what is PID 1, what is taken away."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BUILD_REQUIRES",
    "COMPILER",
    "GUESTS",
    "PACKAGES",
    "USER_SPACES",
    "Guest",
    "UserSpace",
]

COMPILER = ("gcc", "libc6-dev", "python3-dev")
"""Debian packages that lie in /opt/debs, not installed: what the sdist needs beside."""

BUILD_REQUIRES = ("cffi", "hatchling")
"""What pip fetches to build the sdist; see pyproject.toml."""

PACKAGES = (
    # what fargatelite needs on a host
    "python3 python3-prctl python3-venv ca-certificates e2fsprogs libcap2 libnftables1 libseccomp2 "
    # what the tests use beside it
    "apparmor attr busybox-static docker-registry erofs-utils iproute2 kmod libcap2-bin nftables "
    "procps skopeo umoci xfsprogs zstd nfs-kernel-server nfs-common "
    # PID 1 of some guests, and what Vagrant expects in a box
    "dbus openssh-server rsync sudo systemd systemd-sysv udev"
).split()
"""Debian packages of every user space; their recommendations are left out."""


@dataclass(frozen=True, kw_only=True)
class UserSpace:
    """A Debian release, and the kernels that are kept beside it; all modules are in the image."""

    suite: str
    python: str
    kernels: tuple[str, ...]
    """Meta packages; `suite/package` takes it from another suite."""


@dataclass(frozen=True, kw_only=True)
class Guest:
    """One machine that tests run in."""

    user_space: str
    kernel: str
    why: str
    systemd: bool = False
    """Whether systemd is PID 1, and tests run as one of its services with delegation."""
    tests: str = "tests/root"
    before: str | None = None
    """Tests that run first; then the machine is restarted as it is, and `tests` run on its disk."""
    take_away: tuple[str, ...] = ()
    """Features that guest-run removes before the tests: its words for `take_away=`."""


USER_SPACES = {
    "bookworm": UserSpace(
        suite="bookworm",
        python="3.11",
        kernels=("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"),
    ),
    "trixie": UserSpace(
        suite="trixie",
        python="3.13",
        kernels=("linux-image-cloud-amd64", "trixie-backports/linux-image-cloud-amd64"),
    ),
}

GUESTS = {
    "default": Guest(
        user_space="bookworm",
        kernel="linux-image-6.12-cloud-amd64",
        why="cgroup v2 without systemd, Linux 6.12, Python 3.11",
    ),
    "debian12": Guest(
        user_space="bookworm",
        kernel="linux-image-cloud-amd64",
        why="Linux 6.1: EROFS only through loop devices",
    ),
    "debian13": Guest(
        user_space="trixie",
        kernel="linux-image-cloud-amd64",
        systemd=True,
        why="systemd as PID 1, Linux 6.12, Python 3.13",
    ),
    "nofeatures": Guest(
        user_space="bookworm",
        kernel="linux-image-6.12-cloud-amd64",
        tests="tests/root/host",
        take_away=("erofs", "nftables"),
        why="no EROFS, no nftables, no user namespaces: fallbacks and messages",
    ),
    "reboot": Guest(
        user_space="bookworm",
        kernel="linux-image-6.12-cloud-amd64",
        before="tests/reboot/test_before.py",
        tests="tests/reboot/test_after.py",
        why="restarted without warning while tasks run",
    ),
    "newest": Guest(
        user_space="trixie",
        kernel="trixie-backports/linux-image-cloud-amd64",
        why="the newest kernel that Debian builds for its stable release",
    ),
}
