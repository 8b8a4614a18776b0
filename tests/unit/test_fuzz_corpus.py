"""The fuzzers' seeds and finds, through the parsers: each raises only what it says it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.parsers import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def test_each_target_has_seeds() -> None:
    assert {path.name for path in CORPUS.iterdir()} >= set(TARGETS)


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_corpus(path: Path) -> None:
    if path.parent.name in TARGETS:
        TARGETS[path.parent.name](path.read_bytes())
