"""Who a task's calls to AWS are made as: the host, or a role that the host assumes.

Everything about the host comes from AWS's own configuration (environment, profile, shared files,
`AWS_ENDPOINT_URL` and its variants per service) as botocore reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from fargatelite.errors import AwsFailed
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import TaskDefinition

__all__ = ["Session", "execution_session", "explain", "role_arn_of"]

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ATTEMPTS = 5, 10, 3


def role_arn_of(settings: Settings, role: str) -> str:
    """The ARN of a role that a definition gives by ARN or by name (contract 2.1)."""
    if role.startswith("arn:"):
        return role
    partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(
        settings.region.rsplit("-", 2)[0], "aws"
    )
    return f"arn:{partition}:iam::{settings.account}:role/{role}"


def explain(error: Exception) -> str:
    """A failed call as Fargate words it: attempts, then the service's code and message."""
    from botocore.exceptions import (
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
    )

    if isinstance(error, ClientError):
        detail = error.response.get("Error", {})
        attempts = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) + 1
        text = f"{detail.get('Code', 'Unknown')}: {detail.get('Message', '')}"
    else:
        attempts = ATTEMPTS if isinstance(error, (ConnectionError, HTTPClientError)) else 1
        text = f"{type(error).__name__}: {error}"
    if isinstance(error, NoCredentialsError):
        text += "; configure AWS on this host as for its command line"
    return f"service call has been retried {attempts} time(s): {text}"


class Session:
    """Clients of one identity, made when they are first needed. Usable from any thread."""

    def __init__(
        self, settings: Settings, role_arn: str | None = None, session_name: str = "fargatelite"
    ) -> None:
        self._region = settings.region
        self._role_arn = role_arn
        self._session_name = session_name
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[tuple[str, str, str | None], Any] = {}

    def client(
        self, service: str, region: str | None = None, endpoint_url: str | None = None
    ) -> Any:
        """The client of a service in a region, by default the host's.

        Raises: AwsFailed when there is no identity to call as.
        """
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        key = (service, region or self._region, endpoint_url)
        with self._lock:  # making clients is not thread-safe, using them is
            if key not in self._clients:
                if self._session is None:
                    self._session = self._open()
                try:
                    self._clients[key] = self._session.create_client(
                        service,
                        region_name=key[1],
                        endpoint_url=endpoint_url,
                        config=Config(
                            connect_timeout=CONNECT_TIMEOUT_S,
                            read_timeout=READ_TIMEOUT_S,
                            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                            user_agent_extra="fargatelite",
                        ),
                    )
                except (BotoCoreError, ValueError) as error:
                    raise AwsFailed(f"cannot speak to {service}: {error}") from error
            return self._clients[key]

    def host_credentials(self) -> Any:
        """The identity's own credentials, None where there are none.

        Raises: AwsFailed when they cannot be read or refreshed.
        """
        from botocore.exceptions import BotoCoreError

        with self._lock:
            if self._session is None:
                self._session = self._open()
            try:
                return self._session.get_credentials()
            except BotoCoreError as error:
                raise AwsFailed(f"cannot read the host's AWS credentials: {error}") from error

    def _open(self) -> Any:
        import botocore.session
        from botocore.exceptions import BotoCoreError

        try:
            session = botocore.session.Session()
            if self._role_arn is not None:
                found = assume_role(
                    session.create_client("sts", region_name=self._region),
                    self._role_arn,
                    self._session_name,
                )
                session = botocore.session.Session()
                session.set_credentials(
                    found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"]
                )
        except (BotoCoreError, ValueError) as error:
            raise AwsFailed(f"cannot use the host's AWS configuration: {error}") from error
        return session


def assume_role(sts: Any, role_arn: str, session_name: str) -> Mapping[str, Any]:
    """`Credentials` of sts:AssumeRole.

    Raises: AwsFailed in ECS's own words, with what the service said.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = sts.assume_role(RoleArn=role_arn, RoleSessionName=session_name)
    except (BotoCoreError, ClientError) as error:
        raise AwsFailed(
            f"ECS was unable to assume the role '{role_arn}' that was provided for this task. "
            "Please verify that the role being passed has the proper trust relationship and "
            "permissions and that your IAM user has permissions to pass this role: "
            f"{explain(error)}"
        ) from error
    credentials: Mapping[str, Any] = answer["Credentials"]
    return credentials


def execution_session(settings: Settings, definition: TaskDefinition, task_id: str) -> Session:
    """Who secrets, environment files and registry logins are fetched as: the host itself, or with
    `assume_roles` the definition's execution role."""
    role = definition.execution_role_arn
    if settings.assume_roles and role:
        return Session(settings, role_arn_of(settings, role), task_id)
    return Session(settings)
