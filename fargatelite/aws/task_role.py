"""Credentials for the application in a task's containers (contract 5.5).

`credentials.source` of the host's configuration says whose they are:

* `none` (default): nobody's; containers see no endpoint for them.
* `host`: the host's own. Long-lived keys are not handed out: sts:GetSessionToken makes temporary
  ones of them, which can call no IAM and of STS only AssumeRole.
* `assume`: `taskRoleArn`'s, by sts:AssumeRole, as on Fargate.
* `static`: those of a JSON file in the form of the endpoint's answer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from fargatelite.aws.credentials import Credentials
from fargatelite.aws.session import Session, assume_role, explain, role_arn_of
from fargatelite.errors import AwsFailed
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import TaskDefinition

__all__ = ["TaskRole", "open_task_role"]

logger = logging.getLogger(__name__)

REFRESH_BEFORE_S = 900  # SDKs ask again when 15 minutes are left
RETRY_AFTER_S = 5
WAIT_S = 1.0
"""What a caller waits for when there are none: the endpoint serves all tasks of a host."""
SESSION_SECONDS = 21600  # contract 5.5: about 6 h
UNKNOWN_LIFETIME_S = 3600
MAX_FILE_BYTES = 65536
_NS = 10**9


class _Origin(Protocol):
    def fetch(self) -> Credentials:
        """Fresh ones. Raises: AwsFailed."""
        ...

    def is_changed(self) -> bool:
        """Whether there may be others, at the cost of one stat."""
        ...


class _Assumed:
    def __init__(self, settings: Settings, role_arn: str, session_name: str) -> None:
        self._settings = settings
        self._role_arn, self._session_name = role_arn, session_name

    def is_changed(self) -> bool:
        return False

    def fetch(self) -> Credentials:
        session = Session(self._settings)  # the host's files may have changed since
        found = assume_role(session.client("sts"), self._role_arn, self._session_name)
        return Credentials(
            role_arn=self._role_arn,
            access_key_id=found["AccessKeyId"],
            secret_access_key=found["SecretAccessKey"],
            token=found["SessionToken"],
            expires_at_ns=int(found["Expiration"].timestamp()) * _NS,
        )


class _OfHost:
    def __init__(self, settings: Settings, role_arn: str) -> None:
        self._settings, self._role_arn = settings, role_arn

    def is_changed(self) -> bool:
        return False

    def fetch(self) -> Credentials:
        from botocore.exceptions import BotoCoreError, ClientError

        session = Session(self._settings)  # the host's files may have changed since
        own = session.host_credentials()
        if own is None:
            raise AwsFailed("the host has no AWS credentials to give to the task; configure some")
        try:
            frozen = own.get_frozen_credentials()
            if frozen.token:
                expiry = getattr(own, "_expiry_time", None)  # botocore shows it nowhere else
                lifetime_ns = UNKNOWN_LIFETIME_S * _NS
                return Credentials(
                    role_arn=self._role_arn,
                    access_key_id=frozen.access_key,
                    secret_access_key=frozen.secret_key,
                    token=frozen.token,
                    expires_at_ns=int(expiry.timestamp()) * _NS
                    if isinstance(expiry, datetime)
                    else time.time_ns() + lifetime_ns,
                )
            answer = session.client("sts").get_session_token(DurationSeconds=SESSION_SECONDS)
        except (BotoCoreError, ClientError) as error:
            raise AwsFailed(
                f"cannot make temporary credentials of the host's for the task: {explain(error)}"
            ) from error
        found = answer["Credentials"]
        return Credentials(
            role_arn=self._role_arn,
            access_key_id=found["AccessKeyId"],
            secret_access_key=found["SecretAccessKey"],
            token=found["SessionToken"],
            expires_at_ns=int(found["Expiration"].timestamp()) * _NS,
        )


class _Document(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    access_key_id: str
    secret_access_key: str
    token: str
    expiration: datetime
    role_arn: str | None = None


class _InFile:
    def __init__(self, path: str, role_arn: str) -> None:
        self._path, self._role_arn = path, role_arn
        self._seen: tuple[int, int, int] | None = None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            info = os.stat(self._path)
        except OSError:
            return None  # `fetch` says why
        return info.st_ino, info.st_mtime_ns, info.st_size

    def is_changed(self) -> bool:
        return self._stamp() != self._seen

    def fetch(self) -> Credentials:
        self._seen = self._stamp()  # before the reading: a later change is seen as one
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise AwsFailed(
                f"cannot read the task role's credentials from {self._path}: {error.strerror}",
                errno=error.errno,
                path=self._path,
            ) from error
        try:
            found = msgspec.json.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            # The words name a member, never its value; not chained all the same.
            raise AwsFailed(
                f"{self._path} is not the JSON of a credentials endpoint: {error}", path=self._path
            ) from None
        expiration = found.expiration
        if expiration.tzinfo is None:
            expiration = expiration.replace(tzinfo=UTC)
        return Credentials(
            role_arn=found.role_arn or self._role_arn,
            access_key_id=found.access_key_id,
            secret_access_key=found.secret_access_key,
            token=found.token,
            expires_at_ns=int(expiration.timestamp()) * _NS,
        )


class TaskRole:
    """Current credentials of one task's role; usable from any thread.

    A thread of its own fetches them, one at a time, so that who asks reads memory: only while there
    are none that are valid does it wait, for `WAIT_S` at most.
    """

    def __init__(self, origin: _Origin, role_arn: str) -> None:
        self.role_arn = role_arn
        self._origin = origin
        self._condition = threading.Condition()
        self._current: Credentials | None = None
        self._error: AwsFailed | None = None
        self._is_fetching = False
        self._retry_at = 0.0

    def credentials(self) -> Credentials | None:
        """Valid ones, or None while there are none yet.

        Raises: AwsFailed when the last attempt failed and nothing valid is left.
        """
        with self._condition:
            is_changed = self._origin.is_changed()
            if not self._is_fetching and (is_changed or self._is_due()):
                self._begin()
            if self._is_valid() and not is_changed:
                return self._current
            self._condition.wait_for(lambda: not self._is_fetching, WAIT_S)
            if self._is_valid():
                return self._current
            if self._error is not None:
                raise self._error
            return None

    def prepare(self) -> None:
        """Fetches the first ones in the caller's thread, so that a role that cannot be had is told
        before a container starts.

        Raises: AwsFailed.
        """
        self._fetch()
        with self._condition:
            if self._error is not None:
                raise self._error

    def _is_valid(self) -> bool:
        return self._current is not None and self._current.expires_at_ns > time.time_ns()

    def _is_due(self) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        if self._current is None:
            return True
        return self._current.expires_at_ns - time.time_ns() < REFRESH_BEFORE_S * _NS

    def _begin(self) -> None:
        self._is_fetching = True
        threading.Thread(target=self._fetch, name="task-role", daemon=True).start()

    def _fetch(self) -> None:
        found, failure = None, None
        try:
            found = self._origin.fetch()
        except AwsFailed as error:
            failure = error
            logger.warning("%s", error)
        finally:
            with self._condition:
                self._error = failure
                if found is not None:
                    self._current = found
                # Also after a success: a file may hold what has expired already.
                self._retry_at = time.monotonic() + RETRY_AFTER_S
                self._is_fetching = False
                self._condition.notify_all()


def open_task_role(
    settings: Settings, definition: TaskDefinition, session_name: str = "fargatelite"
) -> TaskRole | None:
    """The provider of a task's role credentials; `session_name` is the task id, as ECS has it.

    None without `taskRoleArn`, and with `credentials.source` `none`: then no
    AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is injected. Nothing is fetched yet.
    """
    role, source = definition.task_role_arn, settings.credentials.source
    if not role or source == "none":
        return None
    arn = role_arn_of(settings, role)
    origin: _Origin
    if source == "assume":
        origin = _Assumed(settings, arn, session_name)
    elif source == "host":
        origin = _OfHost(settings, arn)
    else:
        assert settings.credentials.static_file is not None
        origin = _InFile(settings.credentials.static_file, arn)
    return TaskRole(origin, arn)
