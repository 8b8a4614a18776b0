"""HTTP/1.1 with hostile containers: bytes to a request, an answer to bytes. Pure.

Own and small, as every bound must hold while bytes arrive: http.server reads lines from a blocking
file and so takes a thread per client. One request per connection, bodies with Content-Length only.
Source: RFC 9112.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import msgspec
from msgspec import Struct

__all__ = ["MAX_BODY_BYTES", "MAX_HEAD_BYTES", "Answer", "BadRequest", "Request", "parse_request"]

MAX_HEAD_BYTES = 8192
"""Request line and headers; SDKs send some 300 bytes."""

MAX_BODY_BYTES = 16384
"""The largest body that the API knows is a fault's list of addresses."""

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,10}")


class Request(Struct, frozen=True, kw_only=True):
    """One whole request. Headers are checked for form and dropped: no answer depends on them."""

    method: str
    path: str
    """As sent, without the query; never decoded, so that no path has two spellings."""
    body: bytes


class Answer(Struct, frozen=True, kw_only=True):
    """Status and the value whose JSON is the body."""

    status: int
    body: object

    def encode(self) -> bytes:
        """The whole response; it tells the client that the connection ends."""
        body = msgspec.json.encode(self.body)
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode("ascii") + body


class BadRequest(Exception):
    """The bytes are no request that we answer; `answer` says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(status=status, body=text)


def parse_request(data: bytes) -> Request | None:
    """The request in `data`, None while it is not complete.

    Raises: BadRequest, as soon as `data` cannot become a request within the bounds.
    """
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        if len(data) > MAX_HEAD_BYTES:
            raise BadRequest(431, "request header fields too large")
        return None
    if len(head) > MAX_HEAD_BYTES:
        raise BadRequest(431, "request header fields too large")
    first, *lines = head.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequest(400, "malformed request line")
    length_bytes = _content_length(lines)
    if len(body) < length_bytes:
        return None
    return Request(
        method=line[1].decode("ascii"),
        path=line[2].decode("ascii").partition("?")[0],
        body=body[:length_bytes],
    )


def _content_length(lines: list[bytes]) -> int:
    """What the headers promise; two lengths or a transfer coding are refused (smuggling)."""
    length_bytes: int | None = None
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadRequest(400, "malformed header")
        name = header[1].lower()
        if name == b"transfer-encoding":
            raise BadRequest(411, "send a Content-Length")
        if name == b"content-length":
            if length_bytes is not None or _LENGTH.fullmatch(header[2]) is None:
                raise BadRequest(400, "malformed Content-Length")
            length_bytes = int(header[2])
    if length_bytes is not None and length_bytes > MAX_BODY_BYTES:
        raise BadRequest(413, "request body too large")
    return length_bytes or 0
