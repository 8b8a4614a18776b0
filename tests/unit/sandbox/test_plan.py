"""The plan's wire form, its table, and the generated header."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fargatelite.sandbox.plan import (
    OPERATIONS,
    Op,
    decode_plan,
    describe_op,
    encode_plan,
    generate_header,
    op,
)

HEADER = Path(__file__).parents[3] / "csrc" / "formats" / "plan_ops.h"

_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
_kinds = {
    "u": st.integers(0, 2**64 - 1),
    "s": _text,
    "b": st.binary(max_size=60),
    "l": st.lists(_text, max_size=5).map(tuple),
}


@st.composite
def _ops(draw: st.DrawFn) -> Op:
    row = draw(st.sampled_from(list(OPERATIONS.values())))
    return Op(row.name, tuple(draw(_kinds[kind]) for _, kind in row.arguments))


@given(st.lists(_ops(), max_size=12).map(tuple))
def test_decode_is_the_inverse_of_encode(plan: tuple[Op, ...]) -> None:
    assert decode_plan(encode_plan(plan)) == plan


def test_header_is_generated_from_the_table() -> None:
    assert HEADER.read_text() == generate_header(), "run: python -m fargatelite.sandbox.plan"


def test_codes_are_unique() -> None:
    codes = [row.code for row in OPERATIONS.values()]
    assert len(codes) == len(set(codes))


def test_bytes_that_are_not_utf8_survive() -> None:
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert decode_plan(encode_plan((op("chdir", text),)))[0].values == (text,)


def test_nul_in_a_string_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode_plan((op("chdir", "/a\0b"),))


@pytest.mark.parametrize("values", [(), (1,), ("/", 2)], ids=["none", "wrong kind", "too many"])
def test_op_checks_its_arguments(values: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        op("chdir", *values)  # type: ignore[arg-type]


def test_a_plan_beyond_the_decoders_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 512"):
        encode_plan((op("keyring"),) * 513)


def test_describe_never_shows_a_value_of_the_environment() -> None:
    line = describe_op(op("exec", ("a",), ("TOKEN=hunter2",), ("/a",)))
    assert "TOKEN" in line
    assert "hunter2" not in line
