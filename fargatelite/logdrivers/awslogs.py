"""`awslogs`: CloudWatch Logs, by botocore (its environment variables, AWS_ENDPOINT_URL too).

Sent from this host, not from the task's network. Requests keep PutLogEvents' bounds: 1 MiB with 26
bytes for each event, 10,000 events, 24 hours, an event of 256 KiB, in order of time. Empty lines
are no events, as in moby's driver.

On Fargate a task whose stream cannot be made does not start. Here it does start when nobody answers
at all and the driver does not block: an endpoint that is down loses only what the buffer cannot
hold. An answer (no such group, access denied) stops it as on Fargate.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from fargatelite.errors import LogDriverFailed, LogEndpointUnavailable
from fargatelite.logdrivers.driver import BLOCKING_BYTES, Buffer, LogRecord, Message, Request
from fargatelite.logdrivers.lines import cut_text
from fargatelite.taskdef.log_options import buffer_bytes, datetime_pattern, is_true, stream_name

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.session import Session

__all__ = ["AwsLogs", "Role"]

EVENT_OVERHEAD_BYTES = 26
MAX_EVENT_BYTES = 256 * 1024 - EVENT_OVERHEAD_BYTES
MAX_REQUEST_BYTES = 2**20
MAX_REQUEST_EVENTS = 10_000
MAX_SPAN_NS = 24 * 3600 * 10**9
MULTILINE_HOLD_S = 5.0  # moby: an event ends when no line came for that long
_OPEN_TIMEOUTS_S = (2.0, 3.0)  # connect, read
_SEND_TIMEOUTS_S = (3.0, 10.0)


def _session(role: Role | None, region: str) -> Session:
    """Of the host's own identity, or of the role's, assumed anew before it expires."""
    import botocore.session
    from botocore.credentials import (
        AssumeRoleCredentialFetcher,
        CredentialProvider,
        CredentialResolver,
        DeferredRefreshableCredentials,
    )

    session = botocore.session.get_session()
    if role is None:
        return session
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=functools.partial(session.create_client, region_name=region),
        source_credentials=session.get_credentials(),
        role_arn=role.arn,
        extra_args={"RoleSessionName": role.session_name},
    )

    class Provider(CredentialProvider):
        METHOD = "assume-role"

        def load(self) -> DeferredRefreshableCredentials:
            return DeferredRefreshableCredentials(
                method=self.METHOD, refresh_using=fetcher.fetch_credentials
            )

    assumed = botocore.session.get_session()
    assumed.register_component("credential_provider", CredentialResolver([Provider()]))
    return assumed


@functools.lru_cache(maxsize=16)  # a client takes 50 ms, and threads may share it
def _client(
    region: str, endpoint: str | None, timeouts_s: tuple[float, float], role: Role | None
) -> BaseClient:
    from botocore.config import Config

    return _session(role, region).create_client(
        "logs",
        region_name=region,
        endpoint_url=endpoint,
        config=Config(
            connect_timeout=timeouts_s[0],
            read_timeout=timeouts_s[1],
            retries={"total_max_attempts": 1},  # the shipper retries
            tcp_keepalive=True,
        ),
    )


def _endpoint() -> str | None:
    # botocore reads them too; here they tell one cached client from another.
    return os.environ.get("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS") or os.environ.get("AWS_ENDPOINT_URL")


class Role(NamedTuple):
    """The task's execution role, as which logs are sent where the host's configuration assumes
    roles; the session is named after the task, as ECS does."""

    arn: str
    session_name: str


class AwsLogs:
    """See the module; `options` are checked (taskdef/rules_logging.py)."""

    name = "awslogs"

    def __init__(
        self, options: dict[str, str], container: str, task_id: str, role: Role | None = None
    ) -> None:
        self._role = role
        self._group = options["awslogs-group"]
        self._region = options["awslogs-region"]
        self.stream = stream_name(options["awslogs-stream-prefix"], container, task_id)
        self._creates_group = is_true(options, "awslogs-create-group", False)
        is_blocking = options.get("mode") == "blocking"
        self.buffer = Buffer(
            is_blocking=is_blocking,
            max_bytes=BLOCKING_BYTES if is_blocking else buffer_bytes(options),
        )
        self.request = Request(
            max_bytes=MAX_REQUEST_BYTES, max_messages=MAX_REQUEST_EVENTS, linger_s=1.0
        )
        self._starts_event = _matcher(options)
        self.hold_s = MULTILINE_HOLD_S if self._starts_event is not None else 0.0
        self._held = b""
        self._held_since_ns = 0
        self._is_created = False

    # ---- shape ----

    def shape(self, record: LogRecord) -> list[Message]:
        """One event a line, or, with a pattern, one from each line that matches to the next."""
        text = record.text.decode("utf-8", "replace")
        if self._starts_event is None:
            return _events(record.at_ns, text.encode())
        # The newline belongs to the event, as moby has it.
        line = (text + "\n").encode()
        done: list[Message] = []
        if self._starts_event(text) or len(self._held) + len(line) > MAX_EVENT_BYTES:
            done = self.flush()
        if not self._held:
            self._held_since_ns = record.at_ns
        self._held += line
        return done

    def flush(self) -> list[Message]:
        """The event that is being put together."""
        held, self._held = self._held, b""
        return _events(self._held_since_ns, held)

    # ---- send ----

    def cut(self, queue: Sequence[Message]) -> int:
        """The bounds of PutLogEvents."""
        total, first, last = 0, queue[0].at_ns, queue[0].at_ns
        for count, message in enumerate(islice(queue, MAX_REQUEST_EVENTS)):
            total += len(message.body) + EVENT_OVERHEAD_BYTES
            first, last = min(first, message.at_ns), max(last, message.at_ns)
            if total > MAX_REQUEST_BYTES or last - first >= MAX_SPAN_NS:
                return max(1, count)
        return min(len(queue), MAX_REQUEST_EVENTS)

    def open(self) -> None:
        """Makes the stream, and with awslogs-create-group its group."""
        try:
            self._create(_OPEN_TIMEOUTS_S)
        except LogEndpointUnavailable as error:
            if self.buffer.is_blocking:
                raise _refused(str(error)) from error
        except LogDriverFailed as error:
            raise _refused(str(error)) from error

    def _create(self, timeouts_s: tuple[float, float]) -> None:
        names = {"logGroupName": self._group, "logStreamName": self.stream}
        for is_again in (False, True):
            try:
                self._call("create_log_stream", timeouts_s, **names)
            except _Answer as answer:
                if answer.code == "ResourceAlreadyExistsException":
                    break
                if answer.code != "ResourceNotFoundException" or is_again:
                    raise answer.failure from answer
                if self._creates_group:
                    self._create_group(timeouts_s)
            else:
                break
        self._is_created = True

    def _create_group(self, timeouts_s: tuple[float, float]) -> None:
        try:
            self._call("create_log_group", timeouts_s, logGroupName=self._group)
        except _Answer as answer:
            if answer.code != "ResourceAlreadyExistsException":  # another task was quicker
                raise answer.failure from answer

    def send(self, messages: list[Message]) -> int:
        """One PutLogEvents. Its sequence tokens have no meaning since 2023."""
        try:
            if not self._is_created:
                self._create(_SEND_TIMEOUTS_S)
            accepted = self._call(
                "put_log_events",
                _SEND_TIMEOUTS_S,
                logGroupName=self._group,
                logStreamName=self.stream,
                logEvents=[
                    {"timestamp": message.at_ns // 10**6, "message": message.body.decode()}
                    for message in sorted(messages, key=lambda message: message.at_ns)
                ],
            )
        except _Answer as answer:
            if answer.code in ("InvalidParameterException", "DataAlreadyAcceptedException"):
                raise answer.failure from answer
            self._is_created = self._is_created and answer.code != "ResourceNotFoundException"
            raise LogEndpointUnavailable(str(answer.failure)) from answer
        except LogEndpointUnavailable:
            raise
        except LogDriverFailed as error:
            # It was there when the task started; it may come again.
            raise LogEndpointUnavailable(str(error)) from error
        return _count_rejected(accepted.get("rejectedLogEventsInfo") or {}, len(messages))

    def _call(self, operation: str, timeouts_s: tuple[float, float], **arguments: Any) -> Any:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
        )

        try:
            client = _client(self._region, _endpoint(), timeouts_s, self._role)
            return getattr(client, operation)(**arguments)
        except ClientError as error:
            answer = error.response["Error"]
            raise _Answer(answer.get("Code", "Unknown"), answer.get("Message", "")) from error
        except (ConnectionError, HTTPClientError) as error:
            raise LogEndpointUnavailable(f"{type(error).__name__}: {error}") from error
        except BotoCoreError as error:
            # No credentials, an endpoint that is no URL: the same at the next attempt. A later task
            # of this process may find what this one lacked: botocore looks once.
            _client.cache_clear()
            raise LogDriverFailed(
                f"{type(error).__name__}: {error}; configure AWS as for its command line, or "
                'keep logs on this host: log_drivers = "local", FARGATELITE_LOG_DRIVERS=local'
            ) from error

    def close(self) -> None:
        """Connections are the shared client's."""


class _Answer(Exception):
    """The service's refusal."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.failure = LogDriverFailed(f"{code}: {message}")
        super().__init__(str(self.failure))


def _refused(detail: str) -> LogDriverFailed:
    """In Fargate's words (observed)."""
    return LogDriverFailed(
        "failed to validate logger args: create stream has been retried 1 times: failed to create "
        f"Cloudwatch log stream: {detail} : exit status 1"
    )


def _matcher(options: dict[str, str]) -> Any:
    """What tells the first line of an event; None without a pattern."""
    pattern = options.get("awslogs-multiline-pattern")
    if "awslogs-datetime-format" in options:
        pattern = datetime_pattern(options["awslogs-datetime-format"])
    if pattern is None:
        return None
    import re2

    return re2.compile(pattern).search


def _events(at_ns: int, text: bytes) -> list[Message]:
    events = []
    while text:
        at = cut_text(text, MAX_EVENT_BYTES)
        events.append(Message(at_ns, text[:at]))
        text = text[at:]
    return events


def _count_rejected(info: dict[str, int], count: int) -> int:
    """Events too old, expired (both before an index) or too new (from an index on)."""
    before = max(info.get("tooOldLogEventEndIndex", 0), info.get("expiredLogEventEndIndex", 0))
    return min(count, before + count - min(count, info.get("tooNewLogEventStartIndex", count)))
