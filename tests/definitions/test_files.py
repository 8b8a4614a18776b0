"""The files themselves: each one is run by a test and is what the AWS tools take."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import botocore.session
import pytest
from botocore.validate import ParamValidator

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.json"))


def test_there_are_as_many_as_promised() -> None:
    assert len(NAMES) >= 40


def test_each_is_run() -> None:
    used = {
        node.value
        for file in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(NAMES) - used == set()


@pytest.mark.parametrize("name", NAMES)
def test_the_aws_tools_would_send_it(name: str) -> None:
    """`aws ecs register-task-definition --cli-input-json file://...` checks no more than this."""
    document = json.loads((HERE / f"{name}.json").read_text())
    model = botocore.session.Session().get_service_model("ecs")
    shape = model.operation_model("RegisterTaskDefinition").input_shape
    report = ParamValidator().validate(document, shape)
    # The JSON parser of the AWS CLI takes numbers for cpu and memory; boto3 does not.
    errors = [line for line in report.generate_report().splitlines() if "Invalid type" in line]
    allowed = [f"Invalid type for parameter {size}, " for size in ("cpu", "memory")]
    assert [line for line in errors if not line.startswith(tuple(allowed))] == []
    unknown = [line for line in report.generate_report().splitlines() if line not in errors]
    assert unknown == []
