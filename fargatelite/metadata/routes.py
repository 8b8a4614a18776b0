"""Which answer a request gets: every path, status and error text of the endpoint (contract 5).

A `Source` stands for one task, the one whose namespace the request came from. Nothing here can
reach another task, so an id that is not this task's is an unknown id, whoever else has it.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from typing import Protocol as Interface

import msgspec
from msgspec import Struct

from fargatelite.aws.credentials import Credentials
from fargatelite.errors import FargateliteError
from fargatelite.metadata.faults import FaultInjector, answer_fault
from fargatelite.metadata.shapes import (
    MetadataContainer,
    MetadataTask,
    container_response,
    format_time,
    task_response,
)
from fargatelite.metadata.stats import Reading, docker_stats
from fargatelite.metadata.wire import Answer, Request

__all__ = ["Credentials", "Protection", "Source", "answer"]

_logger = logging.getLogger(__name__)

_CREDENTIALS = "/v2/credentials"
_DEFAULT_PROTECTION_MINUTES, _MOST_PROTECTION_MINUTES = 120, 2880


class Protection(Struct, frozen=True, kw_only=True):
    """Whether scaling in spares the task, and until when."""

    is_enabled: bool
    expires_at_ns: int | None = None


class Source(Interface):
    """What the endpoint asks about one task.

    Called in the server's only thread: answer from memory, every task waits meanwhile. A
    FargateliteError or OSError becomes the agent's answer 500.
    """

    def describe(self) -> MetadataTask:
        """The task as it is now; `containers` decide which ids are known."""
        ...

    def readings(self, name: str) -> tuple[Reading | None, Reading] | None:
        """A container's last but one and last reading, None before the first."""
        ...

    @property
    def credentials_id(self) -> str | None:
        """The uuid4 in `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, None without a task role."""
        ...

    def credentials(self) -> Credentials | None:
        """Current ones, None while there are none yet (answer 503)."""
        ...

    def protection(self) -> Protection | None:
        """None for a task outside a service (answer `TASK_NOT_VALID`)."""
        ...

    def protect(self, is_enabled: bool, expires_in_minutes: int) -> Protection | None:
        """Sets it; None as in `protection`."""
        ...

    @property
    def faults(self) -> FaultInjector | None:
        """None unless the definition has enableFaultInjection."""
        ...


def answer(source: Source, request: Request) -> Answer:
    """The answer to one request of one task; never raises for what a container sends."""
    first, _, rest = request.path[1:].partition("/")
    if first in ("v3", "v4"):
        return _metadata(source, request, int(first[1]), rest)
    if request.path == _CREDENTIALS or request.path.startswith(_CREDENTIALS + "/"):
        return _credentials(source, request)
    if first == "api":
        return _api(source, request, rest)
    return _not_found()


def _not_found() -> Answer:
    return Answer(status=404, body="404 page not found")


def _wrong_method() -> Answer:
    return Answer(status=405, body="method not allowed")


def _find(task: MetadataTask, runtime_id: str) -> MetadataContainer | None:
    return next((item for item in task.containers if item.runtime_id == runtime_id), None)


def _guarded(failure: str, work: Callable[[], Answer]) -> Answer:
    """The agent's 500 for what fails behind the endpoint; the cause stays on the host's side."""
    try:
        return work()
    except (FargateliteError, OSError) as error:
        _logger.warning("%s: %s", failure, error)
        return Answer(status=500, body=failure)


def _metadata(source: Source, request: Request, version: int, rest: str) -> Answer:
    runtime_id, _, what = rest.partition("/")
    failures = {
        "": "failed to get container metadata",
        "task": "failed to get task metadata",
        "taskWithTags": "failed to get task metadata",
        "stats": "failed to get stats",
        "task/stats": "failed to get stats",
    }
    if what not in failures:
        return _not_found()
    if request.method != "GET":
        return _wrong_method()

    def look() -> Answer:
        task = source.describe()
        container = _find(task, runtime_id)
        if container is None:
            return _unknown_id(version, what, runtime_id)
        if what == "":
            return Answer(status=200, body=container_response(container, version=version))
        if what == "stats":
            return Answer(status=200, body=_stats(source, container))
        if what == "task/stats":
            return Answer(
                status=200,
                body={item.runtime_id: _stats(source, item) for item in task.containers},
            )
        tagged = what == "taskWithTags"
        return Answer(status=200, body=task_response(task, version=version, with_tags=tagged))

    return _guarded(failures[what], look)


def _unknown_id(version: int, what: str, runtime_id: str) -> Answer:
    """The agent's words (contract 5.1), with `task`/`container`/`stats` as it asks for."""
    asked = {"": "container metadata", "stats": "container stats", "task/stats": "task stats"}
    kind = asked.get(what, "task metadata")
    wanted = "container ID" if what in ("", "stats") else "task ARN"
    lookup = "docker ID" if what in ("", "stats") else "task ARN"
    return Answer(
        status=404,
        body=f"V{version} {kind} handler: unable to get {wanted} from request: "
        f"unable to get {lookup} from v3 endpoint ID: {runtime_id}",
    )


def _stats(source: Source, container: MetadataContainer) -> dict[str, object] | None:
    found = source.readings(container.name)
    if found is None:
        return None
    previous, current = found
    return docker_stats(previous, current, name=container.name, runtime_id=container.runtime_id)


def _credentials_failure(status: int, code: str, message: str) -> Answer:
    return Answer(status=status, body={"code": code, "message": message, "HTTPErrorCode": status})


def _credentials(source: Source, request: Request) -> Answer:
    if request.method != "GET":
        return _wrong_method()
    asked = request.path[len(_CREDENTIALS) + 1 :]
    if not asked:
        return _credentials_failure(
            400, "NoIdInRequest", "CredentialsV2Request: No Credential ID in the request"
        )
    expected = source.credentials_id
    # In constant time: the id is all that stands between a container's user and the role.
    if expected is None or not hmac.compare_digest(asked.encode(), expected.encode()):
        return _credentials_failure(
            400, "InvalidIdInRequest", "CredentialsV2Request: Credentials not found"
        )
    try:
        found = source.credentials()
    except (FargateliteError, OSError) as error:
        _logger.warning("cannot get the task role's credentials: %s", error)
        return _credentials_failure(500, "InternalServerError", "Internal server error")
    if found is None:
        return _credentials_failure(
            503,
            "CredentialsUninitialized",
            "CredentialsV2Request: Credentials uninitialized for ID",
        )
    return Answer(
        status=200,
        body={
            "RoleArn": found.role_arn,
            "AccessKeyId": found.access_key_id,
            "SecretAccessKey": found.secret_access_key,
            "Token": found.token,
            # Whole seconds: `2006-01-02T15:04:05Z`, and early rather than late.
            "Expiration": format_time(found.expires_at_ns // 10**9 * 10**9),
        },
    )


def _api(source: Source, request: Request, rest: str) -> Answer:
    runtime_id, _, what = rest.partition("/")
    if what == "task-protection/v1/state":
        return _protection(source, request, runtime_id)
    parts = what.split("/")
    if len(parts) == 4 and parts[:2] == ["fault", "v1"]:
        return _fault(source, request, runtime_id, parts[2], parts[3])
    return _not_found()


def _fault(source: Source, request: Request, runtime_id: str, fault: str, verb: str) -> Answer:
    if request.method != "POST":
        return _wrong_method()

    def find() -> tuple[str, FaultInjector | None] | Answer:
        task = source.describe()
        if _find(task, runtime_id) is None:
            text = f"unable to lookup container: {runtime_id}"
            return Answer(status=404, body={"Error": text})
        return task.task_arn, source.faults

    return answer_fault(fault, verb, request.body, find) or _not_found()


class _ProtectionRequest(
    Struct, frozen=True, kw_only=True, rename="pascal", forbid_unknown_fields=True
):
    protection_enabled: bool | None = None
    expires_in_minutes: int | None = None


def _protection_failure(status: int, code: str, message: str, arn: str | None = None) -> Answer:
    members = {"Arn": arn} if arn else {}
    return Answer(status=status, body={"error": {**members, "Code": code, "Message": message}})


def _protection(source: Source, request: Request, runtime_id: str) -> Answer:
    if request.method not in ("GET", "PUT"):
        return _wrong_method()
    asked = _ProtectionRequest()
    if request.method == "PUT":
        try:
            asked = msgspec.json.decode(request.body, type=_ProtectionRequest)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _protection_failure(
                400,
                "InvalidParameterException",
                "UpdateTaskProtection: failed to decode request",
            )
    try:
        return _protect(source, request.method, asked, runtime_id)
    except (FargateliteError, OSError) as error:
        _logger.warning("task protection: %s", error)
        return _protection_failure(500, "ServerException", "Failed to find a task for the request")


def _protect(source: Source, method: str, asked: _ProtectionRequest, runtime_id: str) -> Answer:
    task = source.describe()
    if _find(task, runtime_id) is None:
        return _protection_failure(
            404, "ResourceNotFoundException", "Failed to find a task for the request"
        )
    if method == "PUT" and asked.protection_enabled is None:
        return _protection_failure(
            400,
            "InvalidParameterException",
            "Invalid request: does not contain 'ProtectionEnabled' field",
            task.task_arn,
        )
    if source.credentials_id is None:
        return _protection_failure(
            403,
            "AccessDeniedException",
            "Invalid Request: no task IAM role credentials available for task",
            task.task_arn,
        )
    minutes = asked.expires_in_minutes
    if minutes is None:
        minutes = _DEFAULT_PROTECTION_MINUTES
    if not 1 <= minutes <= _MOST_PROTECTION_MINUTES:
        return _protection_failure(
            400,
            "InvalidParameterException",
            f"ExpiresInMinutes must be between 1 and {_MOST_PROTECTION_MINUTES}",
            task.task_arn,
        )
    if asked.protection_enabled is None:
        state = source.protection()
    else:
        state = source.protect(asked.protection_enabled, minutes)
    if state is None:
        failure = {
            "Arn": task.task_arn,
            "Detail": "Task protection is only supported for tasks of a service",
            "Reason": "TASK_NOT_VALID",
        }
        return Answer(status=200, body={"failure": failure})
    shown: dict[str, object] = {"ProtectionEnabled": state.is_enabled, "TaskArn": task.task_arn}
    if state.expires_at_ns is not None:
        shown["ExpirationDate"] = format_time(state.expires_at_ns // 10**9 * 10**9)
    return Answer(status=200, body={"protection": shown})
