"""What this kernel and machine offer, found by looking or trying, once."""

from __future__ import annotations

import os
import platform
import resource
import struct
from pathlib import Path

import msgspec

__all__ = [
    "Host",
    "can_run_programs_of",
    "forbid_core_dumps",
    "matches_binfmt",
    "read_boot_id",
    "read_capabilities",
]

BINFMT = Path("/proc/sys/fs/binfmt_misc")
# e_machine in elf(5), and what uname(2) and OCI call the machine.
_ELF_MACHINES = {"amd64": 62, "arm64": 183}
_UNAME_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

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


def can_run_programs_of(architecture: str, binfmt: Path = BINFMT) -> bool:
    """Whether this host runs programs for `amd64` or `arm64`: its own kind, or by an interpreter
    that the kernel opened when it was registered (binfmt_misc with flag F), since a container has
    none. Source: Documentation/admin-guide/binfmt-misc.rst.
    """
    if platform.machine() == _UNAME_MACHINES[architecture]:
        return True
    try:
        entries = sorted(binfmt.iterdir())
    except FileNotFoundError:
        return False
    return any(
        matches_binfmt(entry.read_text(), architecture)
        for entry in entries
        if entry.name not in ("register", "status")
    )


def matches_binfmt(text: str, architecture: str) -> bool:
    """Whether an entry of binfmt_misc, as its file shows it, takes static programs of that kind."""
    lines = text.splitlines()
    found = dict(line.split(" ", 1) for line in lines if " " in line)
    if lines[:1] != ["enabled"] or "F" not in found.get("flags:", "") or "magic" not in found:
        return False
    # 64 bit, little-endian, version 1, System V; ET_EXEC.
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, _ELF_MACHINES[architecture])
    magic = bytes.fromhex(found["magic"])
    mask = bytes.fromhex(found["mask"]) if "mask" in found else b"\xff" * len(magic)
    if found.get("offset") != "0" or len(magic) > len(header):
        return False
    return all(
        byte & bits == wanted & bits
        for byte, bits, wanted in zip(header, mask, magic, strict=False)
    )
