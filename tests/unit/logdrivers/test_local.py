"""Logs that are rotated while somebody reads: files as the shim leaves them, made here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fargatelite.logdrivers.local import LogTail, parse_log_line
from fargatelite.runtime.logs import LogFollower

STAMP = "2026-11-24T11:50:40.123456789Z"


def record(text: str, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"{STAMP} {stream} {tag} {text}\n".encode()


class Writer:
    """Writes and rotates as csrc/shim/logfile.c does."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "app.log"
        self.begin = 0
        self.path.touch()

    def write(self, *texts: str) -> None:
        with open(self.path, "ab") as file:
            for text in texts:
                file.write(record(text))

    def rotate(self) -> Path:
        rotated = self.path.with_name(f"app.log.{self.begin:020d}")
        os.rename(self.path, rotated)
        self.begin += rotated.stat().st_size
        self.path.touch()
        return rotated


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def texts(tail: LogTail) -> list[str]:
    return [line.text.decode() for line in tail.read()]


def test_a_line_of_the_format() -> None:
    line = parse_log_line("app", record("a b  c", "stderr", "P")[:-1])
    assert line is not None
    assert (line.at_ns, line.stream, line.is_partial, line.text) == (
        1795521040123456789, "stderr", True, b"a b  c",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", [b"", b"torn", b"2026-11-24T11:50:40.1Z stdout F x", b"x" * 30 + b" stdout F x",
             STAMP.encode() + b" stdin F x", STAMP.encode() + b" stdout X x"],
)  # fmt: skip
def test_what_is_no_record_is_none(text: bytes) -> None:
    assert parse_log_line("app", text) is None


def test_rotated_files_come_in_order(writer: Writer) -> None:
    for number in range(12):
        writer.write(str(number))
        writer.rotate()
    writer.write("last")
    tail = LogTail("app", writer.path)
    assert texts(tail) == [*map(str, range(12)), "last"]
    assert tail.missed_bytes == 0
    tail.close()


def test_reading_goes_on_across_rotation(writer: Writer) -> None:
    tail = LogTail("app", writer.path)
    writer.write("a")
    assert texts(tail) == ["a"]
    writer.write("b")
    writer.rotate()
    writer.write("c")
    writer.rotate()
    writer.write("d")
    assert texts(tail) == ["b", "c", "d"]
    assert texts(tail) == []
    assert (tail.missed_bytes, tail.place) == (0, 4 * len(record("a")))
    tail.close()


def test_a_file_that_is_open_is_read_to_its_end_though_removed(writer: Writer) -> None:
    tail = LogTail("app", writer.path)
    writer.write("a")
    assert texts(tail) == ["a"]
    writer.write("b")
    writer.rotate().unlink()
    writer.write("c")
    writer.rotate()
    assert texts(tail) == ["b", "c"]
    assert tail.missed_bytes == 0
    tail.close()


def test_what_was_removed_unread_is_counted(writer: Writer) -> None:
    tail = LogTail("app", writer.path)
    writer.write("a")
    assert texts(tail) == ["a"]
    writer.rotate()
    writer.write("lost", "lost")
    writer.rotate().unlink()
    writer.write("b")
    writer.rotate()
    writer.write("c")
    assert texts(tail) == ["b", "c"]
    assert tail.missed_bytes == 2 * len(record("lost"))
    tail.close()


def test_between_rename_and_creation_nothing_is_lost(writer: Writer) -> None:
    tail = LogTail("app", writer.path)
    writer.write("a")
    writer.rotate()
    writer.path.unlink()
    assert texts(tail) == ["a"]
    writer.path.touch()
    writer.write("b")
    assert texts(tail) == ["b"]
    tail.close()


@pytest.mark.parametrize("read", range(10))
def test_another_reader_goes_on_where_the_first_was(writer: Writer, read: int) -> None:
    """At the begin, within and at the end of a rotated file, of the current one."""
    written = [f"line {number}" for number in range(8)]
    for number, text in enumerate(written):
        writer.write(text)
        if number % 3 == 2:
            writer.rotate()
    tail = LogTail("app", writer.path)
    tail.go_to(read * len(record(written[0])))
    assert texts(tail) == written[read:]
    assert tail.missed_bytes == 0
    assert tail.place == tail.parsed_place == 8 * len(record(written[0]))
    tail.close()


def test_a_place_that_was_rotated_away_is_counted(writer: Writer) -> None:
    writer.write("a", "b", "c")
    writer.rotate().unlink()
    writer.write("d")
    writer.rotate()
    writer.write("e")
    tail = LogTail("app", writer.path)
    tail.go_to(len(record("a")))
    assert texts(tail) == ["d", "e"]
    assert tail.missed_bytes == 2 * len(record("b"))
    tail.close()


def test_files_of_other_names_are_left_alone(writer: Writer, tmp_path: Path) -> None:
    writer.write("a")
    for name in ("app.log.1", "app.log.0000000000000000000x", "app.logs", "other.log"):
        (tmp_path / name).write_bytes(record("no"))
    tail = LogTail("app", writer.path)
    assert texts(tail) == ["a"]
    tail.close()


def test_a_follower_is_woken_by_rotation(tmp_path: Path) -> None:
    directory = tmp_path / "task" / "logs"
    directory.mkdir(parents=True)
    writer = Writer(directory)
    follower = LogFollower(tmp_path, "task", ("app",))
    got: list[bytes] = []
    wake = os.eventfd(0)
    try:
        writer.write("a")
        for line in follower.follow(lambda: len(got) == 3, wake):
            got.append(line.text)
            if len(got) < 3:
                writer.rotate()
                writer.write(f"{len(got)}")
            else:
                os.eventfd_write(wake, 1)
    finally:
        follower.close()
        os.close(wake)
    assert got == [b"a", b"1", b"2"]
