"""FOCUS rows pass focus-validator 2.2.1, which runs as a task of fargatelite: `make test-focus`.

Not in the default suite: its image takes 51 s of CPU and 300 MB of packages to build, minutes where
those come slowly; the test itself takes 25 s.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
from pathlib import Path

import pytest

import fargatelite
from fargatelite import Settings
from tests.fixtures.cli import CommandLine
from tests.fixtures.images import RunningRegistry, tar_layer
from tests.fixtures.lives import write_life

pytestmark = [pytest.mark.root, pytest.mark.registry]
ROOT = Path(__file__).parents[2]

CRITERIA = (
    "ACCOUNT_NAMING_SUPPORTED,AVAILABILITY_ZONE_SUPPORTED,MULTIPLE_PRICING_CATEGORIES_SUPPORTED,"
    "PUBLIC_PRICE_LIST_SUPPORTED,USAGE_MEASUREMENT_SUPPORTED,UNIT_PRICING_SUPPORTED,"
    "SUB_ACCOUNT_SUPPORTED,BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED,"
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED,REGION_SUPPORTED,TAGGING_SUPPORTED"
)
"""What of the specification applies: no commitments, reservations, negotiated prices."""

WITHOUT_INVOICE, WITH_INVOICE = "InvoiceId-C-005-C", "InvoiceId-C-004-C"
"""Rules 1.2.0.1 say that InvoiceId must be null of a charge without an invoice (C-004) and not null
of one with (C-005), each without a condition: the validator does not know which charges have one.
Their parent asks for one of the two (C-003: OR) and passes, but both are reported, so that exactly
one of them fails whatever a row says. Ours have no invoice; with one it is the other way."""


@pytest.mark.timeout(900)
def test_the_validator_takes_our_rows(
    registry: RunningRegistry, settings: Settings, fargatelite: CommandLine, tmp_path: Path
) -> None:
    for number in range(5):
        write_life(
            settings,
            f"{number:x}" + "ab" * 15 + "c",
            seconds=(20, 90, 3600, 4000, 61)[number],
            tags={"team": f"t{number}"} if number else {},
            begin_ns=(1_796_083_200 - 900 * number) * 10**9,
        )
    rows = fargatelite("bill", "--output", "focus").stdout.encode()
    layer = tmp_path / "layer.tar"  # `umoci insert` of Debian 12 leaves a tar's padding out
    layer.write_bytes(tar_layer({"focus.csv": rows, "invoiced.csv": with_invoice(rows)}))
    layout = ROOT / "build" / "focus"
    subprocess.run([ROOT / "tests" / "focus" / "build.sh", layout], check=True)
    subprocess.run(
        ["umoci", "raw", "add-layer", "--image", f"{layout}/image:1", "--tag", "2", str(layer)],
        check=True,
    )
    reference = registry.push(layout / "image", "focus", "2")
    definition = {
        "family": "focus",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "2048",
        "memory": "4096",
        "containerDefinitions": [
            validator("invoiced", reference) | {"essential": False},
            validator("focus", reference)
            | {"dependsOn": [{"containerName": "invoiced", "condition": "COMPLETE"}]},
        ],
    }
    with fargatelite_run(definition, settings) as task:
        task.wait(timeout=600)
        texts = {
            name: "\n".join(line.text.decode() for line in task.logs(name))
            for name in ("focus", "invoiced")
        }
    assert task.stop_code == "EssentialContainerExited", task.stopped_reason
    for name, contradictory in (("focus", WITHOUT_INVOICE), ("invoiced", WITH_INVOICE)):
        text = texts[name]
        total = re.search(r"Total: (\d+) \| Pass: (\d+) \| Fail: (\d+)", text)
        assert total is not None, (name, task.exit_code, task.stopped_reason, text)
        assert set(re.findall(r"^❌ (\S+): FAIL", text, re.MULTILINE)) == {contradictory}, text
        assert int(total[2]) > 250
        assert "InvoiceId-C-003-C: PASS" in text, text  # one of the two is enough for their parent


def with_invoice(rows: bytes) -> bytes:
    """The same rows, as if they were on an invoice."""
    table = list(csv.DictReader(io.StringIO(rows.decode())))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]))
    writer.writeheader()
    writer.writerows(row | {"InvoiceId": "2026-11"} for row in table)
    return out.getvalue().encode()


def validator(name: str, image: str) -> dict[str, object]:
    """A container that checks `/<name>.csv`."""
    return {
        "name": name,
        "image": image,
        "entryPoint": ["python3", "-m", "focus_validator.main"],
        "command": [
            "--data-file", f"/{name}.csv", "--validate-version", "1.2", "--block-download",
            "--applicability-criteria", CRITERIA,
        ],
        "environment": [{"name": "PYTHONPATH", "value": "/site"}],
    }  # fmt: skip


def fargatelite_run(definition: dict[str, object], settings: Settings) -> fargatelite.Task:
    """The library's, whose name the fixture has in the test."""
    return fargatelite.run_task(definition, settings=settings)
