"""What counts of a guest's two tries, told from the reports that pytest itself writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vagrant.report import read_report

TESTS = """
import os, pathlib, time, pytest
def first_time(name):
    mark = pathlib.Path(name)
    is_first = not mark.exists()
    mark.touch()
    return is_first
def test_right(): pass
def test_skipped(): pytest.skip("not here")
def test_misses_once(): assert not first_time("missed")
def test_wrong(): assert False
def test_hangs_once():
    if first_time("hung"): time.sleep(60)
@pytest.fixture
def leaving():
    yield
    assert not first_time("left")
def test_leaves_something_once(leaving): pass
def test_fails_and_is_skipped():
    if first_time("skipping"): assert False
    pytest.skip("no second time")
"""


def run(directory: Path, *arguments: str) -> int:
    """pytest as a guest runs it; its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-o",
         "cache_dir=cache", "--timeout=1", *arguments],
        cwd=directory, capture_output=True, check=False, timeout=60,
    ).returncode  # fmt: skip


def two_tries(directory: Path, *names: str) -> None:
    chosen = [f"test_it.py::{name}" for name in names]
    (directory / "test_it.py").write_text(TESTS)
    assert run(directory, "--junitxml=junit.xml", *chosen) == 1
    again = ("--last-failed", "--last-failed-no-failures=none", "--junitxml=again.xml")
    run(directory, *again, *chosen)


def test_a_miss_is_forgiven_and_named(tmp_path: Path) -> None:
    two_tries(
        tmp_path, "test_right", "test_skipped", "test_misses_once", "test_leaves_something_once"
    )
    report = read_report(tmp_path)
    assert report is not None
    assert report.failed == ()
    assert report.second_try == ("test_it::test_misses_once", "test_it::test_leaves_something_once")
    assert report.summary == "4 tests, 3 passed, 0 failed, 1 skipped"


@pytest.mark.parametrize("name", ["test_wrong", "test_hangs_once", "test_fails_and_is_skipped"])
def test_a_fault_is_not(tmp_path: Path, name: str) -> None:
    two_tries(tmp_path, "test_right", "test_misses_once", name)
    report = read_report(tmp_path)
    assert report is not None
    assert report.failed == (f"test_it::{name}",)
    assert report.second_try == ("test_it::test_misses_once",)


def test_failures_without_a_second_try_stay(tmp_path: Path) -> None:
    two_tries(tmp_path, "test_right", "test_misses_once")
    (tmp_path / "again.xml").unlink()
    report = read_report(tmp_path)
    assert report is not None
    assert (report.failed, report.second_try) == (("test_it::test_misses_once",), ())


def test_no_report_is_none(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    (tmp_path / "junit.xml").write_text('<testsuites><testsuite tests="0"/></testsuites>')
    assert read_report(tmp_path) is None
