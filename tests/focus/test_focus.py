"""FOCUS rows pass focus-validator 2.2.1, which runs as a task of fargatelite: `make test-focus`.

Not in the default suite: its image takes a minute and 300 MB to build.
"""

from __future__ import annotations

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

CONTRADICTORY = {"InvoiceId-C-005-C"}
"""InvoiceId must be null before there is an invoice (C-004) and not null once there is one (C-005):
the validator has no way to know and asks for both, so that one of the two always fails."""


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
    layer.write_bytes(tar_layer({"focus.csv": rows}))
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
            {
                "name": "validator",
                "image": reference,
                "entryPoint": ["python3", "-m", "focus_validator.main"],
                "command": [
                    "--data-file", "/focus.csv", "--validate-version", "1.2", "--block-download",
                    "--applicability-criteria", CRITERIA,
                ],
                "environment": [{"name": "PYTHONPATH", "value": "/site"}],
            }
        ],
    }  # fmt: skip
    with fargatelite_run(definition, settings) as task:
        task.wait(timeout=600)
        text = "\n".join(line.text.decode() for line in task.logs("validator"))
    assert task.stop_code == "EssentialContainerExited", task.stopped_reason
    total = re.search(r"Total: (\d+) \| Pass: (\d+) \| Fail: (\d+)", text)
    assert total is not None, (task.exit_code, task.stopped_reason, text)
    failed = set(re.findall(r"^❌ (\S+): FAIL", text, re.MULTILINE))
    assert failed == CONTRADICTORY, text
    assert int(total[2]) > 250


def fargatelite_run(definition: dict[str, object], settings: Settings) -> fargatelite.Task:
    """The library's, whose name the fixture has in the test."""
    return fargatelite.run_task(definition, settings=settings)
