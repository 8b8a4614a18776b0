"""Environment files: which lines count, and which file (contract 2.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.aws.environment_files import merge_environment_files, parse_environment_file
from fargatelite.errors import AwsFailed


def test_lines() -> None:
    data = (
        b'A=1\n# B=comment\n#C=comment\n D = spaces \nE="quoted"\nF=a=b=c\nG=$A # not a comment\n'
        b"H=\n=nothing\nno equals sign\n\nI=windows\r\nJ=vertical\x0btab\nK=\xc3\xa4\nA=again\n"
        b"export L=1\nM=no newline at the end"
    )
    assert parse_environment_file(data, "f.env") == {
        "A": "again", " D ": " spaces ", "E": '"quoted"', "F": "a=b=c", "G": "$A # not a comment",
        "I": "windows", "J": "vertical\x0btab", "K": "ä", "export L": "1",
        "M": "no newline at the end",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"A=1\nB=\xff\n", "byte 6 is not UTF-8"), (b"A=\0\n", "holds a NUL byte")],
)
def test_what_is_no_environment_file(data: bytes, words: str) -> None:
    with pytest.raises(AwsFailed, match=f"^failed to download env files: f.env.*{words}"):
        parse_environment_file(data, "f.env")


def test_the_first_file_that_has_a_name_gives_its_value() -> None:
    assert merge_environment_files([{"A": "1", "B": "1"}, {"B": "2", "C": "2"}]) == {
        "A": "1", "B": "1", "C": "2",
    }  # fmt: skip


@given(st.binary(max_size=200))
def test_any_bytes_give_variables_that_execve_can_carry(data: bytes) -> None:
    try:
        found = parse_environment_file(data, "f.env")
    except AwsFailed:
        return
    for name, value in found.items():
        assert name
        assert value
        assert "=" not in name
        assert "\0" not in name + value
        assert "\n" not in name + value
