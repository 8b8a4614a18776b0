"""Pieces become lines, and lines that are too long become pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fargatelite.logdrivers.driver import LogRecord
from fargatelite.logdrivers.lines import MAX_LINE_BYTES, LineAssembler, cut_text
from fargatelite.logdrivers.local import LogLine


def piece(text: bytes, *, more: bool = False, stream: str = "stdout", at_ns: int = 1) -> LogLine:
    return LogLine(container="app", at_ns=at_ns, stream=stream, is_partial=more, text=text)


def feed(*pieces: LogLine) -> list[LogRecord]:
    lines = LineAssembler()
    return [record for item in pieces for record in lines.feed(item)] + list(lines.flush())


def test_pieces_are_joined_per_stream() -> None:
    records = feed(
        piece(b"a", more=True, at_ns=5),
        piece(b"x", stream="stderr"),
        piece(b"b", more=True),
        piece(b"c"),
        piece(b"end", more=True),
    )
    assert [(r.text, r.stream) for r in records] == [
        (b"x", "stderr"), (b"abc", "stdout"), (b"end", "stdout"),
    ]  # fmt: skip
    assert records[1].at_ns == 5, "a line's time is that of its beginning"


def test_a_long_line_comes_in_numbered_pieces() -> None:
    records = feed(piece(b"x" * (2 * MAX_LINE_BYTES + 5)), piece(b"y"))
    assert [len(r.text) for r in records] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5, 1]
    partials = [r.partial for r in records]
    assert partials[3] is None
    assert [(p.ordinal, p.is_last) for p in partials[:3] if p] == [
        (1, False), (2, False), (3, True),
    ]  # fmt: skip
    assert len({p.id for p in partials[:3] if p}) == 1


def test_a_line_of_just_the_limit_is_whole() -> None:
    half = MAX_LINE_BYTES // 2
    (record,) = feed(piece(b"x" * half, more=True), piece(b"x" * half))
    assert (len(record.text), record.partial) == (MAX_LINE_BYTES, None)


@given(st.text(min_size=1), st.integers(4, 40))
def test_no_character_is_cut(text: str, limit: int) -> None:
    data, pieces = text.encode(), []
    while data:
        at = cut_text(data, limit)
        assert 0 < at <= limit
        pieces.append(data[:at].decode())
        data = data[at:]
    assert "".join(pieces) == text


@given(st.binary(min_size=1), st.integers(1, 40))
def test_any_bytes_can_be_cut(data: bytes, limit: int) -> None:
    assert 0 < cut_text(data, limit) <= max(limit, 1)
