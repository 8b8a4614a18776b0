"""The report's page: what is on it, and that nothing on it comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fargatelite.meter.rollup import drop_raw, roll_up
from fargatelite.report.charts import draw_curves, format_span
from fargatelite.report.page import make_page
from fargatelite.runtime.reporting import gather_report
from fargatelite.settings import Settings
from tests.fixtures.lives import copy_with, write_life

TASK = "0123456789abcdef" * 2


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    return Settings(data_root=str(tmp_path / "data"), run_root=str(tmp_path / "run"))


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "line", "rect"):
            self.open.append(tag)
        for name, _ in attrs:
            assert name not in ("src", "href", "onload", "onclick"), (tag, name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check(page: str) -> str:
    """All text of a page that is well-formed and asks nobody for anything."""
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.tags
    assert not re.search(r"url\(|@import|https?://", page)
    return " ".join(checker.texts)


def test_all_is_on_the_page(own_settings: Settings) -> None:
    record = write_life(own_settings, TASK, seconds=400)
    text = check(make_page(gather_report(own_settings, record), 0))
    for wanted in (
        "shop:7", TASK, "limit 1 vCPU", "limit 2 GiB", "Throttling", "pull started: billing begins",
        "HEALTHY", "OutOfMemoryError", "Essential container in task exited", "Launch phases",
        "pull registry.test/web:1", "823.2 ms", "vCPU-Hours", "total, 400 s billed",
        "Cheapest size that holds it", "Held back by its CPU limit", "401 samples",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_what_strangers_wrote_stays_text(own_settings: Settings) -> None:
    record = write_life(own_settings, TASK, seconds=60, tags={"<b>": "'><script>alert(1)</script>"})
    wild = copy_with(record, definition={**record.definition, "family": "<img src=x onerror=y>"})
    page = make_page(gather_report(own_settings, wild), 0)
    text = check(page)
    assert "<script" not in page
    assert "<img src=x onerror=y>" in text


def test_roll_ups_draw_minutes(own_settings: Settings) -> None:
    record = write_life(own_settings, TASK, seconds=600)
    path = own_settings.ledgers / f"{TASK}.ledger"
    before = gather_report(own_settings, record)
    assert roll_up(path)
    assert drop_raw(path) > 0
    data = gather_report(own_settings, record)
    assert data.is_by_minute
    assert data.bill == before.bill
    assert "means of minutes" in check(make_page(data, 0))


def test_nothing_measured(own_settings: Settings) -> None:
    record = write_life(own_settings, TASK, with_ledger=False)
    text = check(make_page(gather_report(own_settings, record), 0))
    assert "Nothing was measured of this task." in text
    assert "unknown" in text


@pytest.mark.parametrize("length_ns", [1, 10**8, 10**9, 61 * 10**9, 86400 * 10**9, 10**17])
@pytest.mark.parametrize("value", [0.0, 1e-9, 3.7, 1e12])
def test_any_chart_can_be_drawn(length_ns: int, value: float) -> None:
    for is_binary in (False, True):
        picture = draw_curves(
            title="x", series=[("a", "c0", [(0, value), (length_ns, None), (length_ns, value)])],
            length_ns=length_ns, limit=None, limit_text="", format_value=str, moments=(),
            is_binary=is_binary,
        )  # fmt: skip
        assert picture.count("<text") < 20
        assert "nan" not in picture


def test_spans() -> None:
    assert [format_span(value) for value in (0, 0.05, 4, 90, 7500)] == [
        "0 s", "0.05 s", "4 s", "1:30", "2:05:00",
    ]  # fmt: skip
