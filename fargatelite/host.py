"""What this kernel and machine offer, found by looking or trying, once."""

from __future__ import annotations

import os
import platform
import resource

import msgspec

__all__ = ["Host", "forbid_core_dumps", "read_boot_id", "read_capabilities"]

CAP_SYS_RESOURCE = 24


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that plans depend on. `nofile_hard` is this process's own hard limit."""

    kernel: str
    machine: str
    nofile_hard: int
    can_raise_limits: bool

    @classmethod
    def probe(cls) -> Host:
        """Reads the facts; costs some 30 us."""
        return cls(
            kernel=platform.release(),
            machine=platform.machine(),
            nofile_hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            can_raise_limits=bool(read_capabilities() >> CAP_SYS_RESOURCE & 1),
        )


def read_capabilities() -> int:
    """The effective capabilities of this process as a bit mask (proc(5), CapEff)."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapEff:"):
                return int(line.split()[1], 16)
    raise OSError(f"no CapEff in /proc/self/status of pid {os.getpid()}")


def read_boot_id() -> str:
    """The UUID of this boot: run roots and monotonic times of another one are void."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def forbid_core_dumps() -> None:
    """Keeps this process's memory, which holds its tasks' secrets, out of core dumps and away from
    debuggers without CAP_SYS_PTRACE (prctl(2), PR_SET_DUMPABLE); programs that it starts are as
    ever. For a process that is ours alone: a library leaves that to its user."""
    import prctl

    prctl.set_dumpable(0)
