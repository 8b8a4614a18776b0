"""What benchmarks wrote down has the promised shape, and says itself whether it is enough."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.rows import RESULTS, SCHEMA, SCHEMED, Results, Row, judge, schema
from benchmarks.tables import DOCUMENT, fill

FILES = [RESULTS / f"{name}.json" for name in SCHEMED]


def test_the_schema_is_that_of_the_types() -> None:
    assert SCHEMA.read_bytes() == schema(), "python -m benchmarks.rows writes it anew"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_have_the_shape(path: object) -> None:
    results = msgspec.json.decode(path.read_bytes(), type=Results)  # type: ignore[attr-defined]
    assert results.rows
    assert results.host.keys() >= {"kernel", "cpu", "memory", "load", "commit", "at"}
    for row in results.rows:
        assert (row.goal is None) == (row.met is None), row.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_goal_is_met_or_not_by_its_figures(path: object) -> None:
    results = msgspec.json.decode(path.read_bytes(), type=Results)  # type: ignore[attr-defined]
    judged = [row for row in results.rows if row.goal and row.goal.split()[0] in ("value", "ratio")]
    for row in judged:
        assert judge(row.goal, row.value, row.ratio) is row.met, row.name
        if row.ratio is not None and row.peer_value is not None:
            assert row.ratio == pytest.approx(row.value / row.peer_value)


def test_the_document_has_the_figures() -> None:
    assert DOCUMENT.read_text() == fill(DOCUMENT.read_text()), "python -m benchmarks.tables"


def test_judging() -> None:
    row = Row(name="", unit="", value=3, ratio=0.5)
    assert judge("value <= 3", row.value, row.ratio)
    assert not judge("ratio >= 2", row.value, row.ratio)
    assert judge(None, 1, None) is None
