"""Every exception that fargatelite raises on purpose. Imports nothing of ours.

::

    FargateliteError
    ├── InvalidTaskDefinition   the definition or an override breaks a rule (all problems at once)
    ├── TaskDefinitionNotFound  no such family and revision is registered
    ├── TaskDefinitionInactive  it was deregistered
    ├── UnknownField            `definition explain`: no field has that name, or several have
    ├── HostUnsupported         this host lacks a kernel feature, a tool or a privilege
    ├── ConfigurationInvalid    a root, address range or other setting of the host is unusable
    ├── CapacityExceeded        the host's tasks may not be that large together
    ├── SecurityGroupNotFound   a task names a security group that is not defined
    ├── ImageError              ecs_name CannotPullContainerError
    │   ├── InvalidReference        the image name itself is malformed
    │   ├── ImageNotFound           the registry has no such repository, tag or platform
    │   ├── RegistryDenied          401 or 403: no or wrong credentials
    │   │   └── RegistryLoginFailed     ecs_name ResourceInitializationError: ECR gives no token
    │   ├── RegistryUnavailable     cannot connect, 429, 5xx, too slow; retried already
    │   ├── DigestMismatch          bytes are not what their digest says
    │   └── ImageInvalid            a manifest, config or layer breaks its format or a bound
    ├── SandboxFailed           an operation of a launch failed; names op, call, object, errno
    │   └── ExecFailed              the program of an `exec` never ran
    ├── NetworkFailed           ecs_name ResourceInitializationError
    ├── CgroupFailed            ecs_name ResourceInitializationError
    ├── StorageFailed           ecs_name ResourceInitializationError
    ├── AwsFailed               ecs_name ResourceInitializationError: secret, file or role
    ├── LogDriverFailed         ecs_name ResourceInitializationError
    │   └── LogEndpointUnavailable  nobody answers where logs go; retried
    ├── CopyFailed              `cp`: a file could not be copied
    ├── TaskNotFound            no live or recorded task has that id
    ├── TaskAmbiguous           a shortened id fits more than one task
    ├── TaskBusy                another process supervises the task
    └── StateCorrupt            a file of ours has a wrong magic, version, checksum or shape
"""

from __future__ import annotations

import os

__all__ = [
    "AwsFailed",
    "CapacityExceeded",
    "CgroupFailed",
    "ConfigurationInvalid",
    "CopyFailed",
    "DigestMismatch",
    "ExecFailed",
    "FargateliteError",
    "HostUnsupported",
    "ImageError",
    "ImageInvalid",
    "ImageNotFound",
    "InvalidReference",
    "InvalidTaskDefinition",
    "LogDriverFailed",
    "LogEndpointUnavailable",
    "NetworkFailed",
    "RegistryDenied",
    "RegistryLoginFailed",
    "RegistryUnavailable",
    "SandboxFailed",
    "SecurityGroupNotFound",
    "StateCorrupt",
    "StorageFailed",
    "TaskAmbiguous",
    "TaskBusy",
    "TaskDefinitionInactive",
    "TaskDefinitionNotFound",
    "TaskNotFound",
    "UnknownField",
]


class FargateliteError(Exception):
    """Root of the tree. A message says what failed, on what, and what to do.

    Attributes:
        ecs_name: what ECS puts before the text in `stoppedReason` or a container's `reason`
            (contract 3.2), None where ECS has no such prefix.
        retryable: whether the same call may succeed later with nothing changed.
        errno: the system call's error number, None where there was no system call.
        path: the file or object concerned, None where there is none.
    """

    ecs_name: str | None = None
    retryable: bool = False

    def __init__(
        self, message: str, *, errno: int | None = None, path: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(message)
        self.errno = errno
        self.path = os.fspath(path) if path is not None else None


class InvalidTaskDefinition(FargateliteError):
    """The definition or an override breaks one or more rules.

    `problems` are `fargatelite.taskdef.problems.Problem`, in the order of the document.
    """

    ecs_name = "ClientException"

    def __init__(
        self, message: str, *, problems: tuple[object, ...] = (), reported: str | None = None
    ) -> None:
        super().__init__(message)
        self.problems = problems
        self._reported = reported

    def client_exception(self) -> dict[str, dict[str, str]]:
        """What boto3 would have in `ClientError.response`: the service reports one problem, the
        first in its own order (contract 1, taskdef/rules.py)."""
        return {"Error": {"Code": "ClientException", "Message": self._reported or str(self)}}


class TaskDefinitionNotFound(FargateliteError):
    """No task definition of that family and revision is registered."""

    ecs_name = "ClientException"


class TaskDefinitionInactive(FargateliteError):
    """A deregistered task definition starts no new task (contract 2.10)."""

    ecs_name = "InvalidParameterException"


class UnknownField(FargateliteError):
    """No field of a task definition has that name, or several have."""


class HostUnsupported(FargateliteError):
    """This host lacks a kernel feature, a tool or a privilege; see `fargatelite check`."""

    ecs_name = "ResourceInitializationError"


class ConfigurationInvalid(FargateliteError):
    """A setting of the host (root directory, address range, registry option) is unusable."""


class SecurityGroupNotFound(FargateliteError):
    """A task names a security group that the configuration does not define."""

    ecs_name = "InvalidParameterException"


class ImageError(FargateliteError):
    """Anything that keeps an image from being pulled, loaded or mounted."""

    ecs_name = "CannotPullContainerError"


class InvalidReference(ImageError):
    """The text is not an image reference."""


class ImageNotFound(ImageError):
    """The registry (or, with pull policy `never`, the store) has no such image."""


class RegistryDenied(ImageError):
    """The registry answered 401 or 403."""


class RegistryLoginFailed(RegistryDenied):
    """The token for an ECR registry could not be had (contract 3.2)."""

    ecs_name = "ResourceInitializationError"


class RegistryUnavailable(ImageError):
    """The registry could not be reached, or went on failing or throttling after all retries."""

    retryable = True


class DigestMismatch(ImageError):
    """Bytes are not what their digest says."""


class ImageInvalid(ImageError):
    """A manifest, config or layer breaks its format or one of our bounds."""


class SandboxFailed(FargateliteError):
    """An operation of a plan failed inside the shim.

    Attributes: `op` (the operation as `describe()` prints it), `op_index`, `call` (system call),
    `errno`, `path` (its object).
    """

    ecs_name = "CannotStartContainerError"

    def __init__(
        self,
        message: str,
        *,
        op: str | None = None,
        op_index: int | None = None,
        call: str | None = None,
        errno: int | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message, errno=errno, path=path)
        self.op = op
        self.op_index = op_index
        self.call = call


class ExecFailed(SandboxFailed):
    """The program of an `exec` never ran; `exit_code` is 126 or 127 when it was to blame."""

    def __init__(self, text: str, exit_code: int | None) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class NetworkFailed(FargateliteError):
    """A task's network could not be set up."""

    ecs_name = "ResourceInitializationError"


class CgroupFailed(FargateliteError):
    """A control group could not be created, limited, read or removed."""

    ecs_name = "ResourceInitializationError"


class StorageFailed(FargateliteError):
    """A task's file system could not be made, mounted or removed."""

    ecs_name = "ResourceInitializationError"


class LogDriverFailed(FargateliteError):
    """A container's log driver could not be prepared: a group, an endpoint or an option."""

    ecs_name = "ResourceInitializationError"


class AwsFailed(FargateliteError):
    """What a definition takes from AWS, or from the host in its place, cannot be had: a secret, an
    environment file, a role's credentials."""

    ecs_name = "ResourceInitializationError"


class LogEndpointUnavailable(LogDriverFailed):
    """Nobody answers where logs go, or not now; the same may succeed later."""

    retryable = True


class CapacityExceeded(FargateliteError):
    """The task does not fit beside those of this host; retryable when some of them have ended.

    `reason` is ECS' own word for it in RunTask's failures: RESOURCE:CPU or RESOURCE:MEMORY.
    """

    retryable = True

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class CopyFailed(FargateliteError):
    """A file could not be copied into or out of a task; `path` is the one."""


class TaskNotFound(FargateliteError):
    """No live or recorded task has that id or ARN."""


class TaskAmbiguous(FargateliteError):
    """A shortened task id fits more than one task."""


class TaskBusy(FargateliteError):
    """Another process holds the task's lock: it supervises the task."""


class StateCorrupt(FargateliteError):
    """A file of ours has a wrong magic, an unknown version, a bad checksum or a wrong shape."""
