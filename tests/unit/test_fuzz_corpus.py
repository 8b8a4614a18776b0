"""The fuzzers' seeds and finds, through the parsers: each raises only what it says it does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.fuzz.parsers import TARGETS
from tests.fuzz.run import C_TARGETS, ROOT

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def test_each_target_has_seeds() -> None:
    assert {path.name for path in CORPUS.iterdir()} >= set(TARGETS)


@pytest.mark.parametrize("name", C_TARGETS)
def test_each_c_target_has_all_that_it_links_to(name: str, tmp_path: Path) -> None:
    """`make fuzz` needs clang, which this does not: a function of the shim had no stand-in."""
    fuzz = ROOT / "csrc" / "fuzz"
    subprocess.run(
        ["gcc", "-std=gnu11", "-shared", "-fPIC", "-Wl,-z,defs", "-I", ROOT / "csrc/formats",
         "-o", tmp_path / name, *(fuzz / source for source in C_TARGETS[name])],
        check=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_corpus(path: Path) -> None:
    if path.parent.name in TARGETS:
        TARGETS[path.parent.name](path.read_bytes())
