"""Linux capabilities by the names that task definitions use, and Fargate's set."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["CAPABILITIES", "FARGATE_DEFAULT", "capability_mask", "container_mask"]

# include/uapi/linux/capability.h: names in the order of their numbers.
_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE
""".split()

CAPABILITIES: dict[str, int] = {name: number for number, name in enumerate(_NAMES)}

FARGATE_DEFAULT = frozenset(
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW "
    "SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP".split()
)
"""Contract 4.2: 14 capabilities, mask 00000000a80425fb."""


def capability_mask(names: Iterable[str]) -> int:
    """The bit mask of capability names without `CAP_`.

    Raises: KeyError for a name that Linux does not have; taskdef has refused those before.
    """
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES[name]
    return mask


def container_mask(add: Collection[str], drop: Iterable[str]) -> int:
    """Fargate's default set after `drop`, then `add`: `drop: [ALL]` leaves only `add`; ALL may be
    added on EC2 only.

    Source: contract 2.7.
    """
    dropped = set(drop)
    kept = set() if "ALL" in dropped else set(FARGATE_DEFAULT) - dropped
    added = set(CAPABILITIES) if "ALL" in add else set(add)
    return capability_mask(kept | added)
