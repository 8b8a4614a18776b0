"""The forms in which a definition names parameters, secrets and objects (contract 2.4, 2.5)."""

from __future__ import annotations

import pytest

from fargatelite.taskdef.references import (
    ObjectReference,
    ParameterReference,
    SecretReference,
    parse_object_arn,
    parse_secret_id,
    parse_value_from,
)

PARAMETER = "arn:aws:ssm:eu-west-1:123456789012:parameter/app/db"
SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-Ab12Cd"


def _secret(**more: str) -> SecretReference:
    return SecretReference(secret_id=SECRET, name="prod/db-Ab12Cd", region="eu-west-1", **more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DB", ParameterReference(asked="DB", name="DB")),
        ("/app/db", ParameterReference(asked="/app/db", name="/app/db")),
        ("/app/db:3", ParameterReference(asked="/app/db:3", name="/app/db")),
        (PARAMETER, ParameterReference(asked=PARAMETER, name="app/db", region="eu-west-1")),
        (
            PARAMETER.replace("arn:aws:", "arn:aws-us-gov:"),
            ParameterReference(
                asked=PARAMETER.replace("arn:aws:", "arn:aws-us-gov:"),
                name="app/db",
                region="eu-west-1",
            ),
        ),
        (SECRET, _secret()),
        (f"{SECRET}:user::", _secret(json_key="user")),
        (f"{SECRET}::AWSPREVIOUS:", _secret(version_stage="AWSPREVIOUS")),
        (f"{SECRET}:user::id-1", _secret(json_key="user", version_id="id-1")),
        (f"{SECRET}:::", _secret()),
    ],
)  # fmt: skip
def test_value_from(text: str, expected: object) -> None:
    assert parse_value_from(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "name\0", "näme", "/app/db\n", "arn:", "arn:aws:s3:::b/k.env",
        "arn:aws:ssm:eu-west-1:123456789012:parameter", f"{PARAMETER}:1:2",
        "arn:aws:ssm:eu-west-1:1234:parameter/x", "arn:gcp:ssm:eu-west-1:123456789012:parameter/x",
        f"{SECRET}:user", f"{SECRET}:user:", f"{SECRET}:user:::", f"{SECRET}:k:STAGE:id",
        "arn:aws:secretsmanager:eu-west-1:123456789012:role:x",
    ],
)  # fmt: skip
def test_what_is_no_value_from(text: str) -> None:
    with pytest.raises(ValueError):
        parse_value_from(text)


def test_secret_id() -> None:
    assert parse_secret_id(SECRET) == _secret()
    assert parse_secret_id("prod/login") == SecretReference(
        secret_id="prod/login", name="prod/login"
    )
    for text in ("", "a b", PARAMETER, "a:b"):
        with pytest.raises(ValueError):
            parse_secret_id(text)


def test_object_arn() -> None:
    for partition in ("aws", "aws-cn", "aws-us-gov"):
        assert parse_object_arn(f"arn:{partition}:s3:::bucket/a/b c.env") == ObjectReference(
            bucket="bucket", key="a/b c.env"
        )
    for text in (
        "",
        "bucket/a.env",
        "arn:aws:s3:::bucket",
        "arn:aws:s3:eu-west-1::b/a.env",
        SECRET,
    ):
        with pytest.raises(ValueError):
            parse_object_arn(text)
