"""Loads the profile of tasks once per boot, where this kernel enforces AppArmor.

By apparmor_parser, as Docker and podman do: it alone knows how to compile a profile for a kernel.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fargatelite.errors import HostUnsupported
from fargatelite.sandbox.apparmor import PROFILE_NAME, PROFILE_TEXT
from fargatelite.settings import Settings

__all__ = ["ensure_profile", "is_enabled", "load_profile"]

_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_TIMEOUT_S = 60.0


def is_enabled() -> bool:
    """Whether this kernel has AppArmor and was booted with it."""
    try:
        return _ENABLED.read_text().strip() == "Y"
    except FileNotFoundError:
        return False


def ensure_profile(settings: Settings) -> str:
    """The profile for a container's processes, loaded; empty where the settings want none, or are
    content with none and this host cannot have one.

    Raises: HostUnsupported when `apparmor` is "required" and cannot be had.
    """
    if settings.apparmor == "off" or (settings.apparmor == "auto" and not is_enabled()):
        return ""
    try:
        return load_profile()
    except HostUnsupported:
        if settings.apparmor == "auto":
            return ""  # `check` says it
        raise


def load_profile() -> str:
    """The profile's name; loads it when the kernel has not got it.

    Raises: HostUnsupported saying what is missing.
    """
    if not is_enabled():
        raise HostUnsupported(
            "AppArmor is not enabled in this kernel: boot with apparmor=1 security=apparmor, or "
            'set apparmor = "auto"'
        )
    try:
        loaded = _PROFILES.read_text()
    except OSError as error:
        raise HostUnsupported(
            f"cannot read {_PROFILES} ({error.strerror}): mount -t securityfs securityfs "
            "/sys/kernel/security, as root"
        ) from error
    if f"{PROFILE_NAME} (" in loaded:
        return PROFILE_NAME
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # not in every user's
    try:
        done = subprocess.run(
            ["apparmor_parser", "--skip-cache", "--replace"], input=PROFILE_TEXT,
            capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
            env={"PATH": path, "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise HostUnsupported(
            "apparmor_parser is missing, which loads profiles: apt-get install apparmor"
        ) from error
    if done.returncode != 0:
        raise HostUnsupported(
            f"apparmor_parser cannot load profile {PROFILE_NAME}: {done.stderr.strip()}"
        )
    return PROFILE_NAME
