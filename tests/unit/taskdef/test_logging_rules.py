"""What Fargate refuses about logging, in its words (contract 2.9)."""

from __future__ import annotations

from typing import Any

import pytest

from fargatelite.errors import InvalidTaskDefinition
from fargatelite.taskdef.load import load_definition
from fargatelite.taskdef.log_options import parse_buffer_bytes

AWSLOGS = {"awslogs-group": "g", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "p"}
SPLUNK = {"splunk-url": "https://splunk.test:8088", "splunk-token": "t"}


def messages(log: dict[str, Any], *more: dict[str, Any], role: bool = True) -> list[str]:
    document = {
        "family": "app", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
        "containerDefinitions": [{"name": "app", "image": "i", "logConfiguration": log}, *more],
        **({"executionRoleArn": "arn:aws:iam::000000000000:role/r"} if role else {}),
    }  # fmt: skip
    try:
        load_definition(document)
    except InvalidTaskDefinition as error:
        return [problem.message for problem in error.problems]  # type: ignore[attr-defined]
    return []


def log(driver: str, **options: str) -> dict[str, Any]:
    base = {"awslogs": AWSLOGS, "splunk": SPLUNK}.get(driver, {})
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return {"logDriver": driver, "options": base | named}


def router(**more: Any) -> dict[str, Any]:
    return {"name": "r", "image": "i", "firelensConfiguration": {"type": "fluentbit"}, **more}


def test_what_is_right_is_taken() -> None:
    assert messages(log("awslogs", mode="non-blocking", max_buffer_size="25m")) == []
    assert messages(log("splunk", tag="{{.Name}}", splunk_format="json")) == []
    assert messages(log("awsfirelens", Name="stdout", log_driver_buffer_limit="9"), router()) == []


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (log("json-file"),
         "json-file is not a valid log driver. Must be one of [awslogs,splunk,awsfirelens]"),
        (log("awslogs", awslogs_group=""), "Log driver awslogs requires options: awslogs-group"),
        (log("awslogs", awslogs_stream_prefix=""),
         "Fargate requires log configuration options to include awslogs-stream-prefix to support "
         "log driver awslogs."),
        (log("awslogs", awslogs_endpoint="x"),
         "Log driver awslogs disallows options: awslogs-endpoint"),
        (log("awslogs", mode="quick"), "Invalid log driver mode."),
        (log("awslogs", max_buffer_size="much"), "Invalid max-buffer-size."),
        (log("awslogs", mode="blocking", max_buffer_size="1m"),
         "max-buffer-size is only supported with mode non-blocking."),
        (log("awslogs", awslogs_datetime_format="%Y", awslogs_multiline_pattern="^a"),
         "You cannot configure log opt awslogs-datetime-format and awslogs-multiline-pattern at "
         "the same time."),
        (log("awslogs", awslogs_multiline_pattern="("),
         "awslogs could not parse multiline-pattern '(': missing ): ("),
        (log("splunk", splunk_token=""), "Log driver splunk requires options: splunk-token"),
        (log("splunk", splunk_url="splunk.test/path"),
         "splunk: expected format scheme://dns_name_or_ip:port for splunk-url"),
        (log("splunk", splunk_format="xml"),
         "Unknown format specified xml, supported formats are inline, json and raw"),
        (log("splunk", tag="{{.Secret}}"), "Invalid tag."),
        (log("awsfirelens", Name="x"),
         "When awsfirelens log driver is specified in log configuration, a firelens configuration "
         "object must be configured in one of the containers."),
    ],
)  # fmt: skip
def test_refusals(configuration: dict[str, Any], message: str) -> None:
    assert message in messages(configuration)


def test_awslogs_needs_an_execution_role() -> None:
    assert messages(log("awslogs"), role=False) == [
        "Fargate requires task definition to have execution role ARN to support log driver awslogs."
    ]


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ({"region": "x"}, {},
         "missing output option Name which is required for firelens configuration of type "
         "fluentbit"),
        ({"Name": "x\n[OUTPUT]"}, {}, "Invalid log option."),
        ({"Name": "x", "log-driver-buffer-limit": "-1"}, {}, "Invalid log-driver-buffer-limit."),
        ({"Name": "x"}, {"dependsOn": [{"containerName": "app", "condition": "START"}]},
         "Container dependencies must not form a cycle."),
        ({"Name": "x"}, {"volumesFrom": [{"sourceContainer": "app"}]},
         "Container dependencies must not form a cycle."),
        ({"Name": "x"},
         {"firelensConfiguration": {"type": "fluentbit", "options":
          {"config-file-type": "s3", "config-file-value": "arn:aws:s3:::b/f"}}},
         "Fargate supports only the config-file-type 'file'."),
    ],
)  # fmt: skip
def test_firelens(options: dict[str, str], more: dict[str, Any], message: str) -> None:
    configuration = {"logDriver": "awsfirelens", "options": options}
    assert message in messages(configuration, router(**more))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), ("512k", 2**19), ("25m", 25 * 2**20), ("1GiB", 2**30), ("4 MB", 2**22),
     ("0", None), ("", None), ("-1", None), ("1x", None), ("m", None)],
)  # fmt: skip
def test_sizes(text: str, expected: int | None) -> None:
    assert parse_buffer_bytes(text) == expected
