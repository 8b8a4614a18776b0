"""`bill` and `estimate` as a user has them, over tasks that nobody ran."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import pytest

from fargatelite.billing.cur import CUR_COLUMNS
from fargatelite.billing.focus import FOCUS_COLUMNS
from fargatelite.settings import Settings
from tests.fixtures.cli import CommandLine
from tests.fixtures.cli import fargatelite as fargatelite
from tests.fixtures.ledgers import SECOND_NS, START_NS
from tests.fixtures.lives import write_life

IDS = [f"{number:x}{'0' * 31}" for number in range(1, 6)]
EXAMPLE = Path(__file__).parents[3] / "examples" / "web-and-probe.json"
MONTH_END_S = 1_796_083_200  # 2026-12-01


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    settings = Settings(data_root=str(tmp_path / "data root"), run_root=str(tmp_path / "run root"))
    write_life(settings, IDS[0], seconds=300, tags={"team": "a"})
    write_life(settings, IDS[1], seconds=90, family="batch", tags={"team": "b"})
    write_life(settings, IDS[2], seconds=10, family="batch", with_ledger=False)
    # Over the end of a day and a month.
    write_life(settings, IDS[3], seconds=1000, begin_ns=(MONTH_END_S - 400) * SECOND_NS)
    return IDS[:4]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("family", {"shop", "batch"}),
        ("tag:team", {"a", "b", ""}),
        ("task", set(IDS[:4])),
        ("day", {"2026-11-18", "2026-11-30", "2026-12-01"}),
        ("container", {"shop/web", "shop/worker", "batch/web", "batch/worker"}),
    ],
)
def test_every_grouping_has_the_same_total(
    fargatelite: CommandLine, by: str, keys: set[str]
) -> None:
    whole = json.loads(fargatelite("bill", "--output", "json").stdout)
    shown = json.loads(fargatelite("bill", "--by", by, "--output", "json").stdout)
    assert {group["key"] for group in shown["groups"]} == keys
    assert shown["cost"] == whole["cost"]
    # 300 s, 90 s, the minimum, 1000 s.
    hour = Decimal("0.04048") + 2 * Decimal("0.004445")
    assert abs(Decimal(shown["cost"]) - hour * 1450 / 3600) < Decimal("1E-12")


@pytest.mark.usefixtures("tasks")
def test_exports_add_up_to_the_bill(fargatelite: CommandLine) -> None:
    cost = Decimal(json.loads(fargatelite("bill", "--output", "json").stdout)["cost"])
    focus = rows(fargatelite("bill", "--output", "focus").stdout)
    assert tuple(focus[0]) == FOCUS_COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in focus) == cost
    assert len(focus) == 2 * 5  # one of four tasks lies in two months
    for row in focus:
        expected = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
        assert abs(expected - Decimal(row["ListCost"])) < Decimal("1E-14")
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"]
        assert row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
    cur = rows(fargatelite("bill", "--output", "cur").stdout)
    assert tuple(cur[0]) == CUR_COLUMNS
    assert sum(Decimal(row["line_item_unblended_cost"]) for row in cur) == cost
    split = [row for row in cur if row["split_line_item_parent_resource_id"]]
    parts = [Decimal(row[f"split_line_item_{name}"]) for row in split
             for name in ("split_cost", "unused_cost")]  # fmt: skip
    assert sum(parts) == cost
    assert {row["line_item_usage_type"] for row in cur} == {
        "USE1-Fargate-vCPU-Hours:perCPU", "USE1-Fargate-GB-Hours",
    }  # fmt: skip
    table = rows(fargatelite("bill", "--by", "family", "--output", "csv").stdout)
    assert sum(Decimal(row["cost"]) for row in table) == cost


@pytest.mark.usefixtures("tasks")
def test_since_and_until(fargatelite: CommandLine) -> None:
    def keys(*arguments: str) -> set[str]:
        shown = json.loads(fargatelite("bill", *arguments, "--output", "json").stdout)
        return {group["key"] for group in shown["groups"]}

    assert keys("--since", "2026-11-30") == {IDS[3]}
    assert keys("--until", "2026-11-30T00:00") == set(IDS[:3])
    assert keys("--since", "2027-01-01") == set()
    wrong = fargatelite("bill", "--since", "lately")
    assert (wrong.returncode, "neither a date nor an age" in wrong.stderr) == (2, True)
    wrong = fargatelite("bill", "--by", "colour")
    assert (wrong.returncode, "none of task, family, tag:KEY" in wrong.stderr) == (2, True)


@pytest.mark.usefixtures("tasks")
def test_one_task_in_full_with_own_prices(fargatelite: CommandLine, tmp_path: Path) -> None:
    book = tmp_path / "prices.toml"
    book.write_text(
        'source = "ours"\neffective = "2026-01-01"\ncurrency = "EUR"\nminimum_s = 1\n'
        "[rates.X86_64]\nvcpu_hour = 0.036\ngb_hour = 0\n"
    )
    shown = json.loads(fargatelite("bill", IDS[2][:8], "--prices", book, "--output", "json").stdout)
    assert (shown["currency"], shown["billedSeconds"]) == ("EUR", 10)
    assert Decimal(shown["cost"]) == Decimal("0.0001")
    by_setting = fargatelite("bill", IDS[2], environment={"FARGATELITE_PRICE_BOOK": str(book)})
    assert "COST EUR" in by_setting.stdout
    text = fargatelite("bill", IDS[0]).stdout
    assert "its CPU limit held it back" in text


def test_nothing_to_bill(fargatelite: CommandLine) -> None:
    done = fargatelite("bill")
    assert (done.returncode, done.stderr) == (0, "")
    assert fargatelite("bill", "--output", "focus").stdout.count("\n") == 1


def test_estimate(fargatelite: CommandLine) -> None:
    shown = json.loads(
        fargatelite("estimate", EXAMPLE, "--for", "8h/day", "--output", "json").stdout
    )
    assert Decimal(shown["hourlyCost"]) == Decimal("0.04937")
    assert Decimal(shown["dailyCost"]) == Decimal("0.39496")
    assert Decimal(shown["monthlyCost"]).quantize(Decimal("0.01")) == Decimal("12.01")
    text = fargatelite("estimate", EXAMPLE, "--spot", "--region", "us-west-2").stdout
    assert "0.012144" in text
    assert "sampled in 2023" in text
    unknown = fargatelite("estimate", EXAMPLE, "--spot")
    assert (unknown.returncode, "no price is known" in unknown.stderr) == (125, True)
    wrong = fargatelite("estimate", EXAMPLE, "--for", "25h/day")
    assert wrong.returncode == 2


def test_begin_is_before_the_month_end() -> None:
    assert START_NS // SECOND_NS < MONTH_END_S - 400
