"""Secrets of this host in place of AWS: files of one directory, variables of one prefix.

The definition's author chooses the names and need not be the host's owner: a file is found by
walking its name below the directory, one component at a time, through no link and no `..`; only
variables with the prefix are looked at.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping

from fargatelite.errors import AwsFailed
from fargatelite.settings import SecretSettings
from fargatelite.taskdef.references import ParameterReference, Reference

__all__ = ["read_local_secret"]

MAX_SECRET_BYTES = 65536  # what Secrets Manager takes
_SUFFIX = re.compile(r"-[A-Za-z0-9]{6}", re.ASCII)


def _candidates(reference: Reference) -> tuple[str, tuple[str, ...]]:
    """The folder, and the names to try in it. An ARN's name ends in six random characters that
    nobody wants in a file's name."""
    if isinstance(reference, ParameterReference):
        return "ssm", (reference.name.removeprefix("/"),)
    names = [reference.name]
    if _SUFFIX.fullmatch(reference.name[-7:]):
        names.append(reference.name[:-7])
    version = reference.version_id or reference.version_stage
    if version and version != "AWSCURRENT":
        names = [f"{name}:{version}" for name in names]
    return "secretsmanager", tuple(names)


def _variable(prefix: str, name: str) -> str:
    return prefix + re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def _open_beneath(directory: str, parts: list[str]) -> int:
    """Descriptor of a regular file below `directory`; openat2's RESOLVE_BENEATH and
    RESOLVE_NO_SYMLINKS, by hand (CVE-2025-24965). FileNotFoundError for whatever is not one."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(
                part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
            )
            os.close(fd)
            fd = below
        # O_NONBLOCK: a FIFO that nobody writes to must not hold the task.
        file = os.open(
            parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd
        )
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, "not a regular file")
    return file


def _read_file(directory: str, folder: str, name: str) -> str | None:
    parts = [folder, *name.split("/")]
    if any(part in ("", ".", "..") for part in parts):
        return None
    shown = os.path.join(directory, *parts)
    try:
        with open(_open_beneath(directory, parts), "rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise AwsFailed(
            f"cannot read local secret {shown}: {error.strerror}", errno=error.errno, path=shown
        ) from error
    if len(data) > MAX_SECRET_BYTES:
        raise AwsFailed(f"local secret {shown} has over {MAX_SECRET_BYTES} bytes", path=shown)
    try:
        # Editors and echo end a file with a newline that nobody means.
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise AwsFailed(
            f"local secret {shown} is not UTF-8 text: only text secrets can be injected", path=shown
        ) from None


def read_local_secret(
    settings: SecretSettings, reference: Reference, environment: Mapping[str, str] | None = None
) -> str:
    """The whole text of a secret: a variable first, then a file.

    `/app/db` is $PREFIX_APP_DB or DIRECTORY/ssm/app/db; secret `db-Ab12Cd` is $PREFIX_DB_AB12CD,
    $PREFIX_DB, DIRECTORY/secretsmanager/db-Ab12Cd or .../db; a version stage or id other than
    AWSCURRENT is appended after a colon.
    Raises: AwsFailed naming every place that was looked at.
    """
    environment = os.environ if environment is None else environment
    folder, names = _candidates(reference)
    looked = []
    if settings.local_environment_prefix is not None:
        for name in names:
            variable = _variable(settings.local_environment_prefix, name)
            if variable in environment:
                return environment[variable]
            looked.append(f"${variable}")
    if settings.local_directory is not None:
        for name in names:
            text = _read_file(settings.local_directory, folder, name)
            if text is not None:
                return text
            looked.append(os.path.join(settings.local_directory, folder, name))
    raise AwsFailed(f"no local secret at {' or '.join(looked)}")
