"""What a definition names in AWS, as data: parameters, secrets, objects (contract 2.4, 2.5)."""

from __future__ import annotations

import re

from msgspec import Struct

from fargatelite.taskdef.fields import TaskDefinition

__all__ = [
    "ObjectReference",
    "ParameterReference",
    "Reference",
    "SecretReference",
    "parse_object_arn",
    "parse_secret_id",
    "parse_value_from",
    "secret_references",
]

_PARTITION, _ACCOUNT = r"arn:aws[a-z-]*", r"\d{12}"
_REGION = r"(?P<region>[a-z0-9-]+)"
_PARAMETER_NAME = r"(?P<name>[A-Za-z0-9_.\-/]{1,1011})(?::[A-Za-z0-9_.\-]{1,100})?"
_PARAMETER = re.compile(_PARAMETER_NAME, re.ASCII)
_PARAMETER_ARN = re.compile(
    rf"{_PARTITION}:ssm:{_REGION}:{_ACCOUNT}:parameter/{_PARAMETER_NAME}", re.ASCII
)
_SECRET_NAME = r"(?P<name>[A-Za-z0-9/_+=.@\-!]{1,519})"  # noqa: S105 a form, not a secret
_SECRET = re.compile(_SECRET_NAME, re.ASCII)
_SECRET_ARN = re.compile(
    rf"(?P<id>{_PARTITION}:secretsmanager:{_REGION}:{_ACCOUNT}:secret:{_SECRET_NAME})"
    r"(?::(?P<key>[^:]*):(?P<stage>[^:]*):(?P<version>[^:]*))?",
    re.ASCII,
)
_OBJECT_ARN = re.compile(rf"{_PARTITION}:s3:::(?P<bucket>[^/:*?\s]{{1,255}})/(?P<key>.{{1,1024}})")


class ParameterReference(Struct, frozen=True, kw_only=True):
    """A parameter of Systems Manager. `asked` is what GetParameters is asked for: a name or an ARN,
    with its selector; `region` None: the task's own."""

    asked: str
    name: str
    region: str | None = None


class SecretReference(Struct, frozen=True, kw_only=True):
    """A secret of Secrets Manager, or one key of it. `secret_id` is a name or an ARN."""

    secret_id: str
    name: str
    """With the six characters that an ARN's name ends in."""
    region: str | None = None
    json_key: str | None = None
    version_stage: str | None = None
    version_id: str | None = None


class ObjectReference(Struct, frozen=True, kw_only=True):
    """An object in S3."""

    bucket: str
    key: str


Reference = ParameterReference | SecretReference


def _secret(text: str) -> SecretReference:
    match = _SECRET_ARN.fullmatch(text)
    if match is None:
        raise ValueError(
            "arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX, then nothing or "
            ":JSON_KEY:VERSION_STAGE:VERSION_ID with all three colons"
        )
    if match["stage"] and match["version"]:
        raise ValueError("a version stage or a version id, not both")
    return SecretReference(
        secret_id=match["id"],
        name=match["name"],
        region=match["region"],
        json_key=match["key"] or None,
        version_stage=match["stage"] or None,
        version_id=match["version"] or None,
    )


def parse_value_from(text: str) -> Reference:
    """What a `valueFrom` names.

    Raises: ValueError with the form that is allowed.
    Source: contract 2.5.
    """
    if not text.startswith("arn:"):
        match = _PARAMETER.fullmatch(text)
        if match is None:
            raise ValueError("the name or ARN of a parameter, or the ARN of a secret")
        return ParameterReference(asked=text, name=match["name"])
    if text.split(":")[2:3] == ["secretsmanager"]:
        return _secret(text)
    match = _PARAMETER_ARN.fullmatch(text)
    if match is None:
        raise ValueError(
            "arn:PARTITION:ssm:REGION:ACCOUNT:parameter/NAME, or "
            "arn:PARTITION:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX"
        )
    return ParameterReference(asked=text, name=match["name"], region=match["region"])


def parse_secret_id(text: str) -> SecretReference:
    """The secret that a `credentialsParameter` names: ARN, or name in the same region.

    Raises: ValueError with the form that is allowed.
    """
    if text.startswith("arn:"):
        return _secret(text)
    if not _SECRET.fullmatch(text):
        raise ValueError("the ARN or the name of a secret")
    return SecretReference(secret_id=text, name=text)


def parse_object_arn(text: str) -> ObjectReference:
    """The object that an environment file's `value` names.

    Raises: ValueError with the form that is allowed.
    """
    match = _OBJECT_ARN.fullmatch(text)
    if match is None:
        raise ValueError("arn:PARTITION:s3:::BUCKET/KEY.env")
    return ObjectReference(bucket=match["bucket"], key=match["key"])


def secret_references(definition: TaskDefinition) -> dict[str, Reference]:
    """Every secret that the containers and their log drivers name, by `valueFrom`."""
    found: dict[str, Reference] = {}
    for container in definition.containers:
        logging = container.log_configuration
        for secret in (*container.secrets, *(logging.secret_options if logging else ())):
            found[secret.value_from] = parse_value_from(secret.value_from)
    return found
