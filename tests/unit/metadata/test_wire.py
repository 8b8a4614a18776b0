"""Any bytes become a request, an answer or a wait for more; never anything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.metadata.wire import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    Answer,
    BadRequest,
    Request,
    parse_request,
)

_PIECES = st.sampled_from(
    [
        b"GET ",
        b"PUT ",
        b"/v4/x",
        b"?q",
        b" HTTP/1.1",
        b"\r\n",
        b"Content-Length: ",
        b"3",
        b"-",
        b":",
    ]
)
_ANY = st.binary(max_size=300) | st.lists(_PIECES | st.binary(max_size=3)).map(b"".join)


@given(_ANY)
def test_any_bytes_are_answered_or_waited_for(data: bytes) -> None:
    refusal: Answer | None = None
    try:
        request = parse_request(data)
    except BadRequest as bad:
        refusal, request = bad.answer, None
    if refusal is not None:
        assert refusal.encode().startswith(b"HTTP/1.1 4")
    elif request is None:
        assert len(data) <= MAX_HEAD_BYTES + MAX_BODY_BYTES + 4
    else:
        assert request.path.startswith("/")


@given(
    st.sampled_from(["GET", "PUT", "POST"]),
    st.from_regex(r"/[a-z0-9/-]{0,60}", fullmatch=True),
    st.binary(max_size=200),
)
def test_a_request_is_read_whole_however_it_arrives(method: str, path: str, body: bytes) -> None:
    data = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    data += body
    assert all(parse_request(data[:end]) is None for end in range(0, len(data), 7))
    assert parse_request(data) == Request(method=method, path=path, body=body)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        pytest.param(b"Content-Length: 1\r\nContent-Length: 1", 400, id="two lengths"),
        pytest.param(b"Content-Length: -1", 400, id="negative"),
        pytest.param(b"Content-Length: 16385", 413, id="too long"),
        pytest.param(b"Transfer-Encoding: chunked", 411, id="chunked"),
        pytest.param(b"a b: c", 400, id="space in a name"),
        pytest.param(b" folded", 400, id="folded"),
    ],
)
def test_refused_headers(head: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_request(b"GET / HTTP/1.1\r\n" + head + b"\r\n\r\n")
    assert refused.value.answer.status == status


def test_an_endless_head_is_refused() -> None:
    with pytest.raises(BadRequest) as refused:
        parse_request(b"GET /" + b"a" * MAX_HEAD_BYTES)
    assert refused.value.answer.status == 431


def test_an_answer_has_its_length() -> None:
    head, _, body = Answer(status=404, body="no").encode().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == "no"
