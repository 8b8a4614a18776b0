"""`splunk`: the HTTP Event Collector, as Docker's driver speaks to it.

Sent from this host, not from the task's network. A request is a sequence of JSON objects, up to
1,000 as Docker has it. `splunk-verify-connection` (on by default) asks before the container starts,
and stops the task when there is no good answer.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from fargatelite.errors import LogDriverFailed, LogEndpointUnavailable
from fargatelite.logdrivers.driver import BLOCKING_BYTES, Buffer, LogRecord, Message, Request
from fargatelite.taskdef.log_options import buffer_bytes, expand_tag, is_true

if TYPE_CHECKING:
    import urllib3

__all__ = ["Source", "Splunk"]

PATH = "/services/collector/event/1.0"
MAX_REQUEST_EVENTS = 1000
MAX_REQUEST_BYTES = 2**20
_TIMEOUTS_S = (3.0, 10.0)  # connect, read
_ANSWER_CHARACTERS = 200


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What of a container a driver may tell. `environment` is the definition's own, without
    secrets."""

    container_id: str
    name: str
    image: str
    hostname: str
    labels: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}


class Splunk:
    """See the module; `options` are checked, `token` comes from them or from secretOptions."""

    name = "splunk"

    def __init__(self, options: dict[str, str], token: str, source: Source) -> None:
        self._url = options["splunk-url"].rstrip("/") + PATH
        self._options = options
        self._headers = {"Authorization": f"Splunk {token}", "Content-Type": "application/json"}
        self._gzip_level: int | None = None
        if is_true(options, "splunk-gzip", False):
            level = int(options.get("splunk-gzip-level", "-1"))
            self._gzip_level = 6 if level < 0 else level
            self._headers["Content-Encoding"] = "gzip"
        self._format = options.get("splunk-format", "inline")
        self._tag = _tag(options.get("tag", "{{.ID}}"), source)
        self._attributes = _attributes(options, source)
        self._common = {"host": source.hostname} | {
            member: options[f"splunk-{member}"]
            for member in ("source", "sourcetype", "index")
            if options.get(f"splunk-{member}")
        }
        is_blocking = options.get("mode") == "blocking"
        self.buffer = Buffer(
            is_blocking=is_blocking,
            max_bytes=BLOCKING_BYTES if is_blocking else buffer_bytes(options),
        )
        self.request = Request(
            max_bytes=MAX_REQUEST_BYTES, max_messages=MAX_REQUEST_EVENTS, linger_s=1.0
        )
        self.hold_s = 0.0
        self._pool: urllib3.PoolManager | None = None

    # ---- shape ----

    def shape(self, record: LogRecord) -> list[Message]:
        """One event a line; a line of nothing but space is none."""
        if not record.text.strip():
            return []
        text = record.text.decode("utf-8", "replace")
        event: Any
        if self._format == "raw":
            words = [self._tag, *(f"{name}={value}" for name, value in self._attributes.items())]
            event = " ".join([*filter(None, words), text])
        else:
            line: Any = text
            if self._format == "json":
                try:
                    line = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(record.text)))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    line = text
            event = {"line": line, "source": record.stream}
            if self._tag:
                event["tag"] = self._tag
            if self._attributes:
                event["attrs"] = self._attributes
        time = f"{record.at_ns // 10**9}.{record.at_ns % 10**9 // 1000:06d}"
        return [
            Message(
                record.at_ns,
                msgspec.json.encode({"event": event, "time": time, **self._common}),
            )
        ]

    def flush(self) -> list[Message]:
        """Nothing is kept back."""
        return []

    # ---- send ----

    def cut(self, queue: Sequence[Message]) -> int:
        """1,000 events, or 1 MiB."""
        total = 0
        for count, message in enumerate(islice(queue, MAX_REQUEST_EVENTS)):
            total += len(message.body)
            if total > MAX_REQUEST_BYTES:
                return max(1, count)
        return min(len(queue), MAX_REQUEST_EVENTS)

    def open(self) -> None:
        """Loads certificate authorities, and asks whether the collector is there."""
        if not is_true(self._options, "splunk-verify-connection", True):
            self._connect()
            return
        try:
            status, answer = self._request("OPTIONS", b"")
        except LogEndpointUnavailable as error:
            raise LogDriverFailed(f"failed to initialize logging driver: {error}") from error
        if status != 200:
            raise LogDriverFailed(
                "failed to initialize logging driver: splunk: failed to verify connection - "
                f"{status} - {answer}"
            )

    def send(self, messages: list[Message]) -> int:
        """One POST."""
        body = b"".join(message.body for message in messages)
        if self._gzip_level is not None:
            body = gzip.compress(body, self._gzip_level)
        status, answer = self._request("POST", body)
        if status == 200:
            return 0
        detail = f"splunk: failed to send event - {status} - {answer}"
        # 400: these events; anything else (403 token, 429, 5xx) may be put right.
        raise (LogDriverFailed if status == 400 else LogEndpointUnavailable)(detail)

    def _connect(self) -> urllib3.PoolManager:
        import ssl

        import urllib3

        if self._pool is None:
            authorities = self._options.get("splunk-capath")
            try:
                context = ssl.create_default_context(cafile=authorities)
            except OSError as error:
                raise LogDriverFailed(
                    f"failed to initialize logging driver: splunk-capath {authorities}: "
                    f"{error.strerror or 'not a file of certificates'}"
                ) from error
            name = self._options.get("splunk-caname")
            more: dict[str, Any] = (
                {"assert_hostname": name, "server_hostname": name} if name else {}
            )
            if is_true(self._options, "splunk-insecureskipverify", False):
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                more["assert_hostname"] = False
            if not self._url.startswith("https:"):
                more = {}
            self._pool = urllib3.PoolManager(
                ssl_context=context, retries=False, maxsize=1, headers=self._headers, **more
            )
        return self._pool

    def _request(self, method: str, body: bytes) -> tuple[int, str]:
        import urllib3

        pool = self._connect()
        timeout = urllib3.Timeout(connect=_TIMEOUTS_S[0], read=_TIMEOUTS_S[1])
        try:
            answer = pool.request(
                method, self._url, body=body or None, timeout=timeout, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise LogEndpointUnavailable(f"{method} {self._url}: {error}") from error
        return answer.status, answer.data[:_ANSWER_CHARACTERS].decode("utf-8", "replace")

    def close(self) -> None:
        """Closes the connection."""
        if self._pool is not None:
            self._pool.clear()


def _tag(text: str, source: Source) -> str:
    fields = {
        "ID": source.container_id[:12],
        "FullID": source.container_id,
        "Name": source.name,
        "ImageName": source.image,
        "DaemonName": "fargatelite",
    }
    return expand_tag(text, fields)


def _attributes(options: Mapping[str, str], source: Source) -> dict[str, str]:
    """The labels and variables that `labels`, `env` and their -regex name."""
    chosen: dict[str, str] = {}
    for option, values in (("labels", source.labels), ("env", source.environment)):
        names = [name for name in options.get(option, "").split(",") if name]
        chosen |= {name: values[name] for name in names if name in values}
        pattern = options.get(f"{option}-regex")
        if pattern:
            import re2

            search = re2.compile(pattern).search
            chosen |= {name: value for name, value in values.items() if search(name)}
    return chosen
