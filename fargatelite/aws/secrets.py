"""The values of secrets: Systems Manager, Secrets Manager, or this host in their place.

Each is read once per task. Values are in the answer only: no error, log or file has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from fargatelite.aws.local import read_local_secret
from fargatelite.aws.session import Session, execution_session, explain
from fargatelite.errors import AwsFailed
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.references import (
    ParameterReference,
    Reference,
    SecretReference,
    parse_secret_id,
    secret_references,
)

__all__ = ["UNABLE", "fetch_secrets", "resolve_secrets"]

UNABLE = "unable to pull secrets or registry auth: execution resource retrieval failed: "
_FROM_SSM = f"{UNABLE}unable to retrieve secrets from ssm: "
_FROM_ASM = f"{UNABLE}unable to retrieve secret from asm: "
_ONCE = "service call has been retried 1 time(s): "
PARAMETERS_PER_CALL = 10
PARALLEL_CALLS = 8

_OR_LOCAL = ", or keep secrets on this host: [secrets] in its configuration file"

_Values = dict[Reference, str]


def _explain(error: Exception) -> str:
    from botocore.exceptions import NoCredentialsError

    return explain(error) + (_OR_LOCAL if isinstance(error, NoCredentialsError) else "")


def _get_parameters(
    session: Session, region: str | None, references: list[ParameterReference]
) -> _Values:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = session.client("ssm", region).get_parameters(
            Names=[reference.asked for reference in references], WithDecryption=True
        )
    except (BotoCoreError, ClientError) as error:
        raise AwsFailed(f"{_FROM_SSM}{_explain(error)}") from error
    # A parameter that was asked for by ARN answers by name. The newest comes last: emulators leave
    # out the selector of an older one.
    found: dict[str, str] = {}
    for item in sorted(answer["Parameters"], key=lambda item: item.get("Version", 0)):
        for name in (item["Name"], item.get("ARN", item["Name"])):
            found[f"{name}:{item.get('Version')}"] = item["Value"]
            found[name + item.get("Selector", "")] = item["Value"]
    missing = [item.asked for item in references if item.asked not in found]
    if missing:
        raise AwsFailed(f"{_FROM_SSM}{_ONCE}invalid ssm parameters: {','.join(missing)}")
    return {item: found[item.asked] for item in references}


def _get_secret(session: Session, reference: SecretReference) -> str:
    from botocore.exceptions import BotoCoreError, ClientError

    asked = {"SecretId": reference.secret_id}
    if reference.version_stage is not None:
        asked["VersionStage"] = reference.version_stage
    if reference.version_id is not None:
        asked["VersionId"] = reference.version_id
    what = f"failed to fetch secret {reference.secret_id} from secrets manager: "
    try:
        answer = session.client("secretsmanager", reference.region).get_secret_value(**asked)
    except (BotoCoreError, ClientError) as error:
        attempts, _, text = _explain(error).partition(": ")
        raise AwsFailed(f"{_FROM_ASM}{attempts}: {what}{text}") from error
    if "SecretString" not in answer:
        raise AwsFailed(f"{_FROM_ASM}{_ONCE}{what}it is binary; only text secrets can be injected")
    whole: str = answer["SecretString"]
    return whole


def _take_key(text: str, reference: SecretReference) -> str:
    """One member of a secret that is a JSON object: a string's text, any other value's JSON."""
    key = reference.json_key
    if key is None:
        return text
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        # Not chained: the parser's words may quote the secret.
        raise AwsFailed(
            f"{_FROM_ASM}{_ONCE}invalid character looking for beginning of value: secret "
            f"{reference.secret_id} is not the JSON object that json key {key} asks for"
        ) from None
    if key not in members:
        raise AwsFailed(
            f"{_FROM_ASM}{_ONCE}retrieved secret from Secrets Manager did not contain json key "
            f"{key}"
        )
    raw = bytes(members[key]).strip()
    return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()


def _read_local(settings: Settings, reference: Reference) -> str:
    try:
        return read_local_secret(settings.secrets, reference)
    except AwsFailed as error:
        raise AwsFailed(f"{UNABLE}{error}", errno=error.errno, path=error.path) from error


def _parameters(
    settings: Settings, session: Session, region: str | None, batch: list[ParameterReference]
) -> _Values:
    if settings.secrets.is_local:
        return {item: _read_local(settings, item) for item in batch}
    return _get_parameters(session, region, batch)


def _secret(
    settings: Settings, session: Session, whole: SecretReference, keys: list[SecretReference]
) -> _Values:
    is_local = settings.secrets.is_local
    text = _read_local(settings, whole) if is_local else _get_secret(session, whole)
    return {item: _take_key(text, item) for item in keys}


def _jobs(
    settings: Settings, references: Iterable[Reference], session: Session
) -> list[Callable[[], _Values]]:
    parameters: dict[str | None, list[ParameterReference]] = defaultdict(list)
    secrets: dict[SecretReference, list[SecretReference]] = defaultdict(list)
    for reference in dict.fromkeys(references):
        if isinstance(reference, ParameterReference):
            parameters[reference.region].append(reference)
        else:
            secrets[msgspec.structs.replace(reference, json_key=None)].append(reference)
    jobs: list[Callable[[], _Values]] = []
    for region, items in parameters.items():
        for start in range(0, len(items), PARAMETERS_PER_CALL):
            batch = items[start : start + PARAMETERS_PER_CALL]
            jobs.append(partial(_parameters, settings, session, region, batch))
    for whole, keys in secrets.items():
        jobs.append(partial(_secret, settings, session, whole, keys))
    return jobs


def fetch_secrets(
    settings: Settings, references: Iterable[Reference], session: Session
) -> Mapping[Reference, str]:
    """The value of each reference, fetched in parallel: parameters by ten, a secret once however
    many of its keys are wanted. With a local provider AWS is not asked.

    Raises: AwsFailed for the first one that cannot be had, in Fargate's words (contract 3.2).
    """
    jobs = _jobs(settings, references, session)
    values: _Values = {}
    if not jobs:
        return values
    with ThreadPoolExecutor(min(PARALLEL_CALLS, len(jobs))) as pool:
        for future in [pool.submit(job) for job in jobs]:
            values.update(future.result())
    for reference, value in values.items():
        if "\0" in value:  # execve(2) cannot carry it
            name = reference.name
            raise AwsFailed(f"{UNABLE}secret {name} holds a NUL byte, which no variable can")
    return values


def resolve_secrets(settings: Settings, definition: TaskDefinition) -> Mapping[str, str]:
    """The value of every `valueFrom` of containers and log drivers, and of every
    `credentialsParameter` (a name that is both names a parameter).

    Raises: AwsFailed.
    """
    references = {
        item.repository_credentials.credentials_parameter: parse_secret_id(
            item.repository_credentials.credentials_parameter
        )
        for item in definition.containers
        if item.repository_credentials is not None
    } | secret_references(definition)
    session = execution_session(settings, definition, "fargatelite")
    values = fetch_secrets(settings, references.values(), session)
    return {text: values[reference] for text, reference in references.items()}
