"""Events, requests and their bounds; nothing is sent."""

from __future__ import annotations

import pytest

from fargatelite.logdrivers import awslogs
from fargatelite.logdrivers.awslogs import AwsLogs, _count_rejected
from fargatelite.logdrivers.driver import LogRecord, Message

HOUR_NS = 3600 * 10**9


def driver(**options: str) -> AwsLogs:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    base = {"awslogs-group": "g", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "ecs"}
    return AwsLogs(base | named, "web", "0123")


def shape(made: AwsLogs, *lines: str | bytes) -> list[str]:
    """The events, each line a nanosecond after the one before."""
    events: list[Message] = []
    for number, line in enumerate(lines):
        text = line.encode() if isinstance(line, str) else line
        events += made.shape(LogRecord(at_ns=number, stream="stdout", text=text))
    return [message.body.decode() for message in [*events, *made.flush()]]


def test_stream_name() -> None:
    assert driver().stream == "ecs/web/0123"


def test_a_line_is_an_event_and_an_empty_one_is_none() -> None:
    assert shape(driver(), "a", "", "b") == ["a", "b"]


def test_what_is_no_utf8_is_replaced_and_counted_as_sent() -> None:
    assert shape(driver(), b"\xff\xfe") == ["��"]


def test_a_pattern_begins_an_event() -> None:
    made = driver(awslogs_multiline_pattern="^START")
    assert shape(made, "before", "START 1", "  more", "START 2") == [
        "before\n", "START 1\n  more\n", "START 2\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (r"\[%b %d, %Y %H:%M:%S\]", "[Nov 24, 2026 11:50:40] text"),
        ("%Y-%m-%dT%H:%M:%S%z", "2026-11-24T11:50:40+0000 text"),
        ("%d/%m/%y %I:%M %p", "24/11/26 11:50 AM"),
        ("%A %j %L %f %Z %%", "Tuesday 328 .123 123456 CEST %"),
    ],
)
def test_a_time_begins_an_event(form: str, line: str) -> None:
    made = driver(awslogs_datetime_format=form)
    assert shape(made, line, "  at here", line) == [f"{line}\n  at here\n", f"{line}\n"]


def test_an_event_has_the_time_of_its_first_line() -> None:
    made = driver(awslogs_multiline_pattern="^S")
    made.shape(LogRecord(at_ns=7, stream="stdout", text=b"S"))
    made.shape(LogRecord(at_ns=9, stream="stdout", text=b"more"))
    assert made.flush() == [Message(7, b"S\nmore\n")]


def test_an_event_has_256_kib_with_its_overhead() -> None:
    made = driver(awslogs_multiline_pattern="^S")
    sizes = [len(event) for event in shape(made, "S", *["x" * 16000] * 20)]
    assert len(sizes) == 2
    assert max(sizes) <= 256 * 1024 - 26
    assert sum(sizes) == 2 + 20 * 16001


def test_a_single_text_beyond_an_event_is_split_between_characters() -> None:
    text = "é" * 300_000
    events = shape(driver(), text)
    assert "".join(events) == text
    assert max(len(event.encode()) for event in events) <= 256 * 1024 - 26


def test_a_request_has_one_mib_with_26_bytes_an_event() -> None:
    queue = [Message(0, b"x" * 998)] * 2000
    assert driver().cut(queue) == 2**20 // 1024
    assert driver().cut([Message(0, b"x" * awslogs.MAX_EVENT_BYTES)] * 9) == 4


def test_a_request_has_10000_events() -> None:
    assert driver().cut([Message(0, b"x")] * 10_001) == 10_000
    assert driver().cut([Message(0, b"x")] * 9) == 9


def test_a_request_spans_less_than_24_hours_in_either_direction() -> None:
    times = [30 * HOUR_NS, 31 * HOUR_NS, 7 * HOUR_NS + 1, 6 * HOUR_NS]
    assert driver().cut([Message(at_ns, b"x") for at_ns in times]) == 3
    assert driver().cut([Message(0, b"x"), Message(24 * HOUR_NS, b"x")]) == 1


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, 0),
        ({"tooOldLogEventEndIndex": 3}, 3),
        ({"expiredLogEventEndIndex": 4, "tooOldLogEventEndIndex": 3}, 4),
        ({"tooNewLogEventStartIndex": 8}, 2),
        ({"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 9}, 2),
    ],
)
def test_refused_events_are_counted(info: dict[str, int], expected: int) -> None:
    assert _count_rejected(info, 10) == expected


def test_buffers() -> None:
    assert driver().buffer.max_bytes == 10 * 2**20
    assert driver(max_buffer_size="512k").buffer.max_bytes == 512 * 1024
    assert not driver(mode="non-blocking").buffer.is_blocking
    assert driver(mode="blocking").buffer.is_blocking
