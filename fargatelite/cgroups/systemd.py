"""Where systemd owns the cgroup tree: a subtree that it has delegated to us.

A group has one writer: what others make beside systemd's own groups, it may change or remove at
its next reload. Only services and scopes can be delegated, and both lose their group with their
last process; so ours is a service whose one process sleeps in a leaf of its own (0.5 MB, started
with the first task after a boot). It is kept over daemon-reload and daemon-reexec, `systemctl
status` and systemd-cgls show tasks below it, and `systemctl stop fargatelite` ends them all.
Shims and the supervisor of detached tasks move there too: in the group of the unit that started
them they would end with it, and the tasks with them.

It is asked for with systemd-run, once per boot: a D-Bus library would be a dependency for one call.

Source: systemd's CGROUP_DELEGATION; systemd.resource-control(5), Delegate=; systemd-run(1).
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

from fargatelite.cgroups import tree
from fargatelite.errors import CgroupFailed, HostUnsupported

__all__ = ["UNIT", "claim_subtree", "is_running", "shelter", "subtree"]

UNIT = "fargatelite.service"
_LEAF = "sleeper"
_KEEPERS = "keepers"
_DEADLINE_S = 30.0
_claiming = threading.Lock()


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
    group = subtree(top)
    with _claiming:
        if _has_process(f"{group}/{_LEAF}"):
            return
        _ask(Path(group))
        # A group with processes can give no controllers to its children (DelegateSubgroup= does
        # this from systemd 254 on).
        tree.make_group(group, _LEAF)
        for pid in tree.read_text(f"{group}/cgroup.procs").split():
            tree.write_text(f"{group}/{_LEAF}/cgroup.procs", pid)


def _has_process(group: str) -> bool:
    """Of whatever pid namespace; False also when the group does not exist."""
    try:
        return bool(tree.read_text(f"{group}/cgroup.procs"))
    except CgroupFailed as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise


def shelter(top: str, pid: int) -> None:
    """Moves a process, of whatever unit, to a group of its own kind beside the tasks'.

    The kernel waits for an RCU grace period (some 10 ms) with its cgroup mutex held: not for a
    thread that somebody waits for. It does not for a process that is there, as a child of one is.
    Raises: as `claim_subtree`; CgroupFailed also when there is no such process.
    """
    claim_subtree(top)
    if tree.read_text(f"/proc/{pid}/cgroup").strip().endswith(f"/{UNIT}/{_KEEPERS}"):
        return
    tree.make_group(subtree(top), _KEEPERS)
    tree.write_text(f"{subtree(top)}/{_KEEPERS}/cgroup.procs", str(pid))


def _ask(group: Path) -> None:
    """Returns when the service's process is where it stays. Before that it must not be moved: its
    last step before execve(2) is to enter the group, which a group that has given controllers to
    its children refuses, and the service would have failed."""
    said = _tell(
        "systemd-run", "--quiet", f"--unit={UNIT}", "--slice=system.slice",
        "--description=Tasks of fargatelite", "--property=Type=exec", "--collect",
        "--property=Delegate=yes", "--property=OOMPolicy=continue",
        # A task's own limit counts; systemd's default would hold all tasks together to 15 % of the
        # host's process ids.
        "--property=TasksMax=infinity", "sleep", "infinity",
    )  # fmt: skip
    if said is not None:
        # Another process has asked already: this waits for a start that is under way.
        refused = _tell("systemctl", "start", UNIT)
        said = None if refused is None else f"{said}; {refused}"
    if said is None and group.exists():
        return
    raise HostUnsupported(
        f"systemd gives no cgroup subtree to {UNIT}: {said or 'its group does not exist'}: run "
        f"as root where systemd-run works, and see `systemctl status {UNIT}`",
        path=group,
    )


def _tell(*command: str) -> str | None:
    """None when the command was carried out, else what it said."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"
