"""What a guest's tests came to, from the reports that it left: junit.xml of the run, and again.xml
of its failed tests when those had a second try.

A guest on a software CPU is slow and shares its host: a test of times may miss once. It passes when
it passes alone right afterwards, and is named. What hung or broke the run has no second try.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Report", "read_report"]

_TIMED_OUT = re.compile(r"\bTimeout \(?>\d")
"""How pytest-timeout ends a test."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """`failed` counts for the whole run; `second_try` are the names that failed and then passed."""

    summary: str
    failed: tuple[str, ...]
    second_try: tuple[str, ...]


def read_report(results: Path) -> Report | None:
    """None without a junit.xml that has tests.

    Raises: ElementTree.ParseError for a report that was cut off.
    """
    first = _cases(results / "junit.xml")
    if not first:
        return None
    again = _cases(results / "again.xml")
    bad = [name for name, case in first.items() if _complaint(case) is not None]
    second_try = tuple(
        name
        for name in bad
        if not _TIMED_OUT.search(_complaint(first[name]) or "")
        and name in again
        and again[name].find("skipped") is None
        and _complaint(again[name]) is None
    )
    # Something that only the second try had wrong is wrong.
    failed = [name for name in bad if name not in second_try]
    failed += [name for name, case in again.items() if name not in bad and _complaint(case)]
    skipped = sum(case.find("skipped") is not None for case in first.values())
    passed = len(first) - skipped - len(bad) + len(second_try)
    return Report(
        summary=f"{len(first)} tests, {passed} passed, {len(failed)} failed, {skipped} skipped",
        failed=tuple(failed),
        second_try=second_try,
    )


def _cases(file: Path) -> dict[str, ElementTree.Element]:
    """Test cases by name; one that fails and whose teardown fails too is written twice, of which
    the first counts."""
    cases: dict[str, ElementTree.Element] = {}
    if file.exists():
        for case in ElementTree.parse(file).getroot().iter("testcase"):  # noqa: S314  our guest's
            name = f"{case.get('classname')}::{case.get('name')}"
            if name not in cases or _complaint(cases[name]) is None:
                cases[name] = case
    return cases


def _complaint(case: ElementTree.Element) -> str | None:
    """What a test failed with, None when it did not."""
    found = [*case.findall("failure"), *case.findall("error")]
    return "\n".join(f"{item.get('message')}\n{item.text}" for item in found) if found else None
