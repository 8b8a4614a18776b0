"""Where systemd owns the cgroup tree: a subtree that it has delegated to us.

A group has one writer: what others make beside systemd's own groups, it may change or remove at
its next reload. Only services and scopes can be delegated, and both lose their group with their
last process; so ours is a service whose one process sleeps in a leaf of its own (0.5 MB, started
with the first task after a boot). It is kept over daemon-reload and daemon-reexec, `systemctl
status` and systemd-cgls show tasks below it, and `systemctl stop fargatelite` ends them all.

It is asked for with systemd-run, once per boot: a D-Bus library would be a dependency for one call.

Source: systemd's CGROUP_DELEGATION; systemd.resource-control(5), Delegate=; systemd-run(1).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fargatelite.cgroups import tree
from fargatelite.errors import HostUnsupported

__all__ = ["UNIT", "claim_subtree", "is_running", "subtree"]

UNIT = "fargatelite.service"
_LEAF = "sleeper"
_DEADLINE_S = 30.0


def is_running() -> bool:
    """Whether systemd is PID 1 of this host or container (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def subtree(top: str) -> str:
    """The unit's group below the hierarchy mounted at `top`, whether it exists or not."""
    return f"{top}/system.slice/{UNIT}"


def claim_subtree(top: str) -> None:
    """Makes the delegated group exist, without a process in it; one read when it does.

    Raises: HostUnsupported with what systemd said, CgroupFailed.
    """
    group = Path(subtree(top))
    if not group.exists():
        _ask(group)
    # A group with processes can give no controllers to its children (DelegateSubgroup= does this
    # from systemd 254 on).
    for pid in tree.read_text(f"{group}/cgroup.procs").split():
        leaf = group / _LEAF
        leaf.mkdir(exist_ok=True)
        tree.write_text(f"{leaf}/cgroup.procs", pid)


def _ask(group: Path) -> None:
    command = [
        "systemd-run", "--quiet", f"--unit={UNIT}", "--slice=system.slice",
        "--description=Tasks of fargatelite", "--property=Type=exec",
        "--property=Delegate=yes", "--property=OOMPolicy=continue",
        # A task's own limit counts; systemd's default would hold all tasks together to 15 % of the
        # host's process ids.
        "--property=TasksMax=infinity", "sleep", "infinity",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    # Another process may have asked at the same moment; what counts is that it is there.
    if not group.exists():
        raise HostUnsupported(
            f"systemd gives no cgroup subtree to {UNIT}: {said or 'its group does not exist'}: run "
            f"as root where systemd-run works, and see `systemctl status {UNIT}`",
            path=group,
        )
