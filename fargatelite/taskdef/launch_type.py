"""What a launch type accepts, as data: rules and runtime read a policy, and branch on no name.

FARGATE is Fargate. EC2 is what ECS takes for one's own machine, as far as this host can do it: the
network of the host or of the task, directories of the host, sizes as one likes. What EC2 has and
this host has not yet is an error that says so.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from fargatelite.settings import BeyondFargate, Settings
from fargatelite.taskdef.markers import Marker, Refused

__all__ = ["EC2", "FARGATE", "LaunchType", "Policy", "policy_for"]

LaunchType = Literal["FARGATE", "EC2"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a task may ask for."""

    name: LaunchType
    network_modes: tuple[str | None, ...]
    pid_modes: tuple[str | None, ...]
    ipc_modes: tuple[str | None, ...]
    has_sizes: bool
    """Whether task cpu and memory must be one of Fargate's pairs; else both are free."""
    capabilities: frozenset[str] | None
    """What `capabilities.add` may name; None: any."""
    max_timeout_s: int | None = 120
    """Of stopTimeout and startTimeout (contract 2.2)."""
    max_stop_timeout_s: int | None = 120
    max_ephemeral_storage_gib: int | None = 200
    max_overrides_characters: int | None = 8192
    allow_privileged: bool = False

    def marker(self, marker: Marker) -> Marker:
        """What becomes of a member under this launch type."""
        if self.name == "EC2" and isinstance(marker, Refused):
            return marker.on_ec2
        return marker


FARGATE = Policy(
    name="FARGATE",
    network_modes=("awsvpc",),
    pid_modes=(None, "task"),
    ipc_modes=(None,),
    has_sizes=True,
    capabilities=frozenset({"SYS_PTRACE"}),
)

EC2 = Policy(
    name="EC2",
    network_modes=(None, "bridge", "host", "awsvpc", "none"),
    pid_modes=(None, "task", "host"),
    ipc_modes=(None, "none", "host"),
    has_sizes=False,
    capabilities=None,
    max_timeout_s=None,
    max_stop_timeout_s=None,
)


def policy_for(
    launch_type: LaunchType, settings: Settings | None = None, *, allow_privileged: bool = False
) -> Policy:
    """A launch type's policy on a host with these settings."""
    chosen = {"FARGATE": FARGATE, "EC2": EC2}[launch_type]
    beyond = settings.beyond_fargate if settings is not None else BeyondFargate()
    allow_privileged = allow_privileged or (settings is not None and settings.allow_privileged)
    if not allow_privileged and beyond == BeyondFargate():
        return chosen
    return msgspec.structs.replace(
        chosen,
        allow_privileged=allow_privileged,
        max_stop_timeout_s=None if beyond.stop_timeout_over_120 else chosen.max_stop_timeout_s,
        max_ephemeral_storage_gib=None
        if beyond.ephemeral_storage_over_200
        else chosen.max_ephemeral_storage_gib,
        max_overrides_characters=None
        if beyond.overrides_over_8192
        else chosen.max_overrides_characters,
    )
