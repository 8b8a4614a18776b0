"""Fargate's rules about what a definition names in AWS (contract 2.4, 2.5, 2.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fargatelite.taskdef.fields import Secret, TaskDefinition
from fargatelite.taskdef.problems import Problem, Problems, each_container, problem
from fargatelite.taskdef.references import parse_object_arn, parse_secret_id, parse_value_from

__all__ = ["AWS_RULES"]

MAX_ENVIRONMENT_FILES = 10
_NEEDS_ROLE = "you must also specify a value for 'executionRoleArn'"


def _form(where: str, text: str, parse: Callable[[str], Any]) -> Problem | None:
    try:
        parse(text)
    except ValueError as error:
        return problem(where, "Invalid arn syntax.", repr(text), str(error))
    return None


def _each_secret(task: TaskDefinition) -> list[tuple[str, Secret]]:
    found = []
    for path, container in each_container(task):
        found += [(f"{path}.secrets[{i}]", item) for i, item in enumerate(container.secrets)]
        if container.log_configuration is not None:
            options = container.log_configuration.secret_options
            where = f"{path}.logConfiguration.secretOptions"
            found += [(f"{where}[{i}]", item) for i, item in enumerate(options)]
    return found


def check_secrets(task: TaskDefinition) -> Problems:
    """Known forms; a name that no other variable of the container has."""
    for where, secret in _each_secret(task):
        if not secret.name or "=" in secret.name or "\0" in secret.name:
            yield problem(
                f"{where}.name", "Secret name is invalid.", repr(secret.name),
                "not empty, without =",
            )  # fmt: skip
        found = _form(f"{where}.valueFrom", secret.value_from, parse_value_from)
        if found is not None:
            yield found
    for path, container in each_container(task):
        taken = {item.name for item in container.environment}
        for index, secret in enumerate(container.secrets):
            if secret.name in taken:
                yield problem(
                    f"{path}.secrets[{index}].name",
                    "The secret name must be unique and not shared with any new or existing "
                    f"environment variables set on the container, such as '{secret.name}'.",
                )
            taken.add(secret.name)


def check_environment_files(task: TaskDefinition) -> Problems:
    """At most ten objects in S3 whose names end in .env."""
    for path, container in each_container(task):
        files = container.environment_files
        if len(files) > MAX_ENVIRONMENT_FILES:
            yield problem(
                f"{path}.environmentFiles",
                "The maximum number of environment files was exceeded. Specify ten or less and "
                "try again.",
                len(files), f"at most {MAX_ENVIRONMENT_FILES}",
            )  # fmt: skip
        for index, file in enumerate(files):
            where = f"{path}.environmentFiles[{index}]"
            found = _form(f"{where}.value", file.value, parse_object_arn)
            if found is not None:
                yield found
            elif not file.value.endswith(".env"):
                yield problem(
                    f"{where}.value", "The environment file must have the extension .env.",
                    file.value, "arn:PARTITION:s3:::BUCKET/KEY.env",
                )  # fmt: skip


def check_repository_credentials(task: TaskDefinition) -> Problems:
    """The ARN or the name of a secret."""
    for path, container in each_container(task):
        credentials = container.repository_credentials
        if credentials is not None:
            where = f"{path}.repositoryCredentials.credentialsParameter"
            found = _form(where, credentials.credentials_parameter, parse_secret_id)
            if found is not None:
                yield found


def check_execution_role_of_inputs(task: TaskDefinition) -> Problems:
    """Whatever is fetched before a container starts is fetched with the execution role. Only the
    wording for container secrets is known."""
    if task.execution_role_arn:
        return
    for path, container in each_container(task):
        log = container.log_configuration
        options = log.secret_options if log is not None else ()
        for member, value, words in (
            ("secrets", container.secrets, "container secrets"),
            ("logConfiguration.secretOptions", options, "container secrets"),
            ("environmentFiles", container.environment_files, "environment files"),
            ("repositoryCredentials", container.repository_credentials, "repository credentials"),
        ):
            if value:
                yield problem(f"{path}.{member}", f"When you are specifying {words}, {_NEEDS_ROLE}")


AWS_RULES = (
    check_secrets,
    check_environment_files,
    check_repository_credentials,
    check_execution_role_of_inputs,
)
