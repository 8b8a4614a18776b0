"""What of the promised isolation is weaker on this host, and why; and tasks that refuse to run so.

What a host must have (user namespaces, filter, groups, firewall) no task runs without, so it cannot
be weaker in silence: `check` tries it, and a launch fails without it. This module looks at what a
host may lack or grant while tasks run all the same. A look costs some 17 ms, most of it a
transaction of the firewall.

Names and states are stable: scripts and the setting `accepted_weaknesses` use them.
"""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import msgspec

from fargatelite.errors import HostUnsupported
from fargatelite.settings import Settings

__all__ = ["Defence", "HostFacts", "judge_defences", "look_at_defences", "require_isolation"]

IN_FORCE, WEAKER, ACCEPTED, MISSING = "in force", "weaker", "accepted", "missing"

_MANDATORY = {
    "privileges": "privileges",
    "user namespaces": "user namespace of each task",
    "namespaces": "namespaces of each task",
    "seccomp": "system-call filter",
    "cgroups": "limits of each task",
    "nftables": "firewall",
    "id-mapped mounts": "owners of image files",
}
"""Of `check`: what a launch fails without, and the name of the defence that it is."""


class Defence(msgspec.Struct, frozen=True, kw_only=True):
    """A promise and how it stands. `remedy` says what to do and is empty when it is in force."""

    name: str
    state: str
    detail: str
    remedy: str = ""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the judgements depend on, as the kernel tells it."""

    command_line: tuple[str, ...]
    has_swap: bool
    has_swap_limit: bool
    core_pattern: str
    vulnerable: tuple[str, ...]
    """`NAME: what the kernel says`, of what it calls vulnerable."""
    exposed: tuple[str, ...]
    """State directories that somebody else can enter, or owns."""
    can_count_connections: bool
    """Whether the firewall bounds the connections that each task has tracked (`ct count`)."""

    @classmethod
    def read(cls, settings: Settings, root: Path = Path("/")) -> HostFacts:
        """Reads below `root`, where /proc and /sys are. A file that this kernel has not says
        nothing.

        Raises: HostUnsupported without control groups.
        """
        command_line = tuple(_read(root / "proc/cmdline").split())
        return cls(
            command_line=command_line,
            has_swap=len(_read(root / "proc/swaps").splitlines()) > 1,
            has_swap_limit=_has_swap_limit(command_line),
            core_pattern=_read(root / "proc/sys/kernel/core_pattern").strip(),
            vulnerable=tuple(
                f"{path.name}: {text}"
                for path in sorted((root / "sys/devices/system/cpu/vulnerabilities").glob("*"))
                if (text := _read(path).strip()).startswith("Vulnerable")
            ),
            exposed=tuple(
                path for path in (settings.data_root, settings.run_root) if _is_exposed(Path(path))
            ),
            can_count_connections=_can_count_connections(),
        )


def _read(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return path.read_text()
    return ""


def _can_count_connections() -> bool:
    from fargatelite.network.firewall import can_bound_connections

    return can_bound_connections()


def _has_swap_limit(command_line: tuple[str, ...]) -> bool:
    """Whether a group's swap is limited with its memory (CONFIG_MEMCG_SWAP, swapaccount=0)."""
    from fargatelite.cgroups.detect import detect_driver

    driver = detect_driver()
    if driver.version == 1:
        own = driver.directory("memory", "")
        return own is not None and Path(own, "memory.memsw.limit_in_bytes").exists()
    return "swapaccount=0" not in command_line


def _is_exposed(path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False  # we shall make it, with mode 0700
    return found.st_uid != 0 or bool(stat.S_IMODE(found.st_mode) & 0o077)


def judge_defences(
    settings: Settings, facts: HostFacts, *, has_own_filter: bool = False
) -> list[Defence]:
    """How each defence stands that a task would run without; in a fixed order. Pure."""
    kmem = [word for word in facts.command_line if word.startswith("cgroup.memory=")]
    uncounted = [word for word in kmem if "nokmem" in word or "nosocket" in word]
    found = [
        _judge(
            "storage limit", settings.storage_backend != "unlimited",
            "each task has a file system of its size",
            'storage_backend is "unlimited": a task can fill the disk and the inodes of the host',
            'set storage_backend = "auto"',
        ),
        _judge(
            "swap limit", not facts.has_swap or facts.has_swap_limit,
            "swap counts with a task's memory" if facts.has_swap else "the host has no swap",
            "the host has swap and the kernel does not count it per group: a task's memory can "
            "spill into it",
            "boot with swapaccount=1, or switch swap off",
        ),
        _judge(
            "kernel memory", not uncounted, "the kernel's memory for a task counts as the task's",
            f"the kernel was booted with {' '.join(uncounted)}: kernel memory that a task takes is "
            "nobody's",
            "boot without it",
        ),
        _judge(
            "cpu cap", not settings.beyond_fargate.cpu_burst, "a task has at most its cpu size",
            "beyond_fargate.cpu_burst: a task takes what CPU is idle, and slows who comes next",
            "switch it off",
        ),
        _judge(
            "privileged containers", not settings.allow_privileged, "refused",
            "allow_privileged: such containers have every capability and no system-call filter",
            "switch it off",
        ),
        _judge(
            "built-in filter", not has_own_filter,
            "tasks have it, unless `run --seccomp` puts a profile in its place",
            "a seccomp profile of one's own takes the place of the filter that refuses what the "
            "page-cache attacks of 2026 and kernel exploits start from",
            "leave --seccomp out",
        ),
        _judge(
            "core dumps", not facts.core_pattern.startswith(("|", "@")),
            "a crash is written by the kernel, if at all, into the task's own files",
            f"kernel.core_pattern is {facts.core_pattern!r}: a crash in a task makes a process of "
            "the host read the task's memory",
            "sysctl kernel.core_pattern=core",
        ),
        _judge(
            "state directories", not facts.exposed, "root's alone",
            f"others can enter {' and '.join(facts.exposed)}: setuid files of images and logs lie "
            "there",
            "chown root and chmod 0700",
        ),
        _judge(
            "connection tracking", facts.can_count_connections,
            "each task has an eighth of the host's table at most",
            "the kernel cannot count connections (nft_connlimit): one task can fill the host's "
            "table, and nobody connects any more",
            "modprobe nft_connlimit, or use a kernel with CONFIG_NFT_CONNLIMIT",
        ),
        _judge(
            "cpu side channels", not facts.vulnerable,
            "the kernel knows no open one of this CPU",
            f"the kernel says {'; '.join(facts.vulnerable)}: tasks may guess each other's memory",
            "update kernel and microcode, boot without mitigations=off, or accept it",
        ),
    ]  # fmt: skip
    return [
        msgspec.structs.replace(item, state=ACCEPTED)
        if item.state == WEAKER and item.name in settings.accepted_weaknesses
        else item
        for item in found
    ]


def _judge(name: str, holds: bool, good: str, bad: str, remedy: str) -> Defence:
    if holds:
        return Defence(name=name, state=IN_FORCE, detail=good)
    return Defence(name=name, state=WEAKER, detail=bad, remedy=remedy)


def look_at_defences(settings: Settings) -> list[Defence]:
    """All of them, those that `check` tries included; nothing is left behind."""
    from fargatelite.runtime.check import MISSING as NOT_THERE
    from fargatelite.runtime.check import run_checks

    tried = [
        Defence(
            name=_MANDATORY[row.name],
            state=MISSING if row.state == NOT_THERE else IN_FORCE,
            detail=f"no task runs here: {row.detail}" if row.state == NOT_THERE else row.detail,
            remedy=row.remedy if row.state == NOT_THERE else "",
        )
        for row in run_checks(settings)
        if row.name in _MANDATORY
    ]
    if any(row.name == _MANDATORY["cgroups"] and row.state == MISSING for row in tried):
        return tried
    return tried + judge_defences(settings, HostFacts.read(settings))


def require_isolation(
    settings: Settings, *, allow_privileged: bool = False, has_own_filter: bool = False
) -> None:
    """Refuses to go on where a defence is weaker that `accepted_weaknesses` does not name. A filter
    of the user's counts as weaker whatever it says: nobody can tell what it lets through.

    Raises: HostUnsupported, one line with each of them.
    """
    settings = msgspec.structs.replace(
        settings, allow_privileged=settings.allow_privileged or allow_privileged
    )
    weaker = [
        f"{item.name} ({item.detail})"
        for item in judge_defences(
            settings, HostFacts.read(settings), has_own_filter=has_own_filter
        )
        if item.state == WEAKER
    ]
    if weaker:
        raise HostUnsupported(
            f"strict isolation: weaker here: {'; '.join(weaker)}; see "
            '"fargatelite check --security", or name what you accept in accepted_weaknesses'
        )
