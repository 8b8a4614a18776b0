"""`environmentFiles`: variables from objects in S3 (contract 2.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fargatelite.aws.session import Session, explain
from fargatelite.errors import AwsFailed
from fargatelite.taskdef.references import ObjectReference, parse_object_arn

__all__ = ["fetch_environment_files", "merge_environment_files", "parse_environment_file"]

FAILED = "failed to download env files: "
MAX_FILE_BYTES = 1 << 20
"""Not Fargate's: execve(2) carries some 2 MiB in all."""
PARALLEL_CALLS = 8


def parse_environment_file(data: bytes, name: str) -> dict[str, str]:
    """The variables of a file. Quotes and spaces are literal; lines that begin with `#`, have no
    `=`, or have nothing on one side of it say nothing; of a name given twice the last counts.

    Raises: AwsFailed when it is not UTF-8 or holds a NUL byte.
    Source: contract 2.4; amazon-ecs-agent's envfile.go.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise AwsFailed(f"{FAILED}{name}: byte {error.start} is not UTF-8") from None
    if "\0" in text:
        raise AwsFailed(f"{FAILED}{name} holds a NUL byte, which no variable can")
    variables = {}
    for line in text.split("\n"):
        variable, _, value = line.removesuffix("\r").partition("=")
        if variable and value and not variable.startswith("#"):
            variables[variable] = value
    return variables


def merge_environment_files(files: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Files from top to bottom: the first one that has a name gives its value."""
    variables: dict[str, str] = {}
    for file in files:
        for name, value in file.items():
            variables.setdefault(name, value)
    return variables


def _fetch(session: Session, arn: str, reference: ObjectReference) -> dict[str, str]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = session.client("s3").get_object(Bucket=reference.bucket, Key=reference.key)
        with answer["Body"] as body:
            data: bytes = body.read(MAX_FILE_BYTES + 1)
    except (BotoCoreError, ClientError) as error:
        raise AwsFailed(f"{FAILED}{arn}: {explain(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise AwsFailed(f"{FAILED}{arn} has over {MAX_FILE_BYTES} bytes")
    return parse_environment_file(data, arn)


def fetch_environment_files(
    session: Session, arns: Iterable[str]
) -> Mapping[str, Mapping[str, str]]:
    """The variables of each object, by its ARN; fetched in parallel, each once.

    Raises: AwsFailed for the first one that cannot be had or read.
    """
    wanted = {arn: parse_object_arn(arn) for arn in arns}
    if not wanted:
        return {}
    with ThreadPoolExecutor(min(PARALLEL_CALLS, len(wanted))) as pool:
        futures = {
            arn: pool.submit(_fetch, session, arn, reference) for arn, reference in wanted.items()
        }
        return {arn: future.result() for arn, future in futures.items()}
