"""What a task takes from AWS before a container starts: secrets, environment files, logins, and the
first credentials of its role.

Fetched beside the pull, once per task, and held in memory only. A pull waits for them where its
registry wants a login of the definition's; a container waits for all. A task that takes nothing
starts no thread and imports nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from fargatelite.errors import AwsFailed, FargateliteError
from fargatelite.names import TaskId
from fargatelite.runtime.trace import Timeline
from fargatelite.settings import Settings
from fargatelite.taskdef.fields import ContainerDefinition, Secret, TaskDefinition

if TYPE_CHECKING:
    from fargatelite.aws.session import Session
    from fargatelite.aws.task_role import TaskRole
    from fargatelite.images.credentials import Credentials
    from fargatelite.taskdef.references import Reference

__all__ = ["ContainerInputs", "TaskInputs"]

CANCEL_LOOK_S = 0.1
T = TypeVar("T")


class ContainerInputs(msgspec.Struct, frozen=True, kw_only=True):
    """Variables of one container: secrets by their variable's name."""

    secrets: Mapping[str, str] = {}
    environment_files: Mapping[str, str] = {}

    def __repr__(self) -> str:
        """Names only: a record ends up in tracebacks."""
        return f"ContainerInputs({[*self.secrets, *self.environment_files]})"


class _Login(msgspec.Struct, frozen=True):
    username: str
    password: str


class _Fetch(Generic[T]):
    """One kind of input on its way: a thread, and its outcome."""

    def __init__(self, name: str, work: Callable[[], T], timeline: Timeline) -> None:
        self._name, self._work, self._timeline = name, work, timeline
        self._done = threading.Event()
        self._outcome: T | None = None
        self.error: Exception | None = None

    def begin(self, cancelled: threading.Event) -> None:
        """Starts the thread; a failure sets `cancelled`, which breaks the pull off."""

        def fetch() -> None:
            try:
                with self._timeline.phase(self._name):
                    self._outcome = self._work()
            except Exception as error:  # noqa: BLE001 whoever waits raises it
                self.error = error
            finally:
                self._done.set()
            if self.error is not None:
                cancelled.set()

        # A daemon: a stop does not wait for a service that does not answer.
        threading.Thread(target=fetch, name=self._name, daemon=True).start()

    def result(self, cancelled: threading.Event) -> T:
        """The outcome, once it is there.

        Raises: what the work raised; AwsFailed when `cancelled` is set before.
        """
        while not self._done.wait(CANCEL_LOOK_S):
            if cancelled.is_set():
                raise AwsFailed(f"fetching {self._name} was cancelled")
        if self.error is not None:
            raise self.error
        return self._outcome  # type: ignore[return-value]


class TaskInputs:
    """The inputs of one task. `cancelled` ends every wait, and is set by a failure."""

    def __init__(
        self,
        settings: Settings,
        definition: TaskDefinition,
        task_id: TaskId,
        timeline: Timeline,
        cancelled: threading.Event,
    ) -> None:
        self._settings = settings
        self._definition = definition
        self._task_id = task_id
        self._timeline = timeline
        self._cancelled = cancelled
        self._session_lock = threading.Lock()
        self._session: Session | None = None
        self._secrets = _Fetch("secrets", self._fetch_secrets, timeline)
        self._files = _Fetch("environment files", self._fetch_files, timeline)
        self._logins = _Fetch("registry logins", self._fetch_logins, timeline)
        self._only_logins = False
        self._wanted: list[_Fetch[Any]] = []
        self.task_role = self._open_task_role()
        """What the metadata endpoint hands out; None where containers get no credentials."""
        _keep_bodies_out_of_logs()

    def begin(self, *, only_logins: bool = False) -> None:
        """Starts to fetch; returns at once. `only_logins`: what a pull needs and no more."""
        containers = self._definition.containers
        has_credentials = any(item.repository_credentials is not None for item in containers)
        self._only_logins = only_logins
        if has_credentials or (not only_logins and any(map(_names_secrets, containers))):
            self._wanted.append(self._secrets)
        if not only_logins and any(item.environment_files for item in containers):
            self._wanted.append(self._files)
        if self._assumes_role:
            self._wanted.append(self._logins)
        if not only_logins and self.task_role is not None:
            # A role that cannot be had ends the task before a container starts, as on Fargate.
            self._wanted.append(_Fetch("task role", self.task_role.prepare, self._timeline))
        for fetch in self._wanted:
            fetch.begin(self._cancelled)

    def wait(self) -> None:
        """Waits until all are there.

        Raises: AwsFailed; RegistryLoginFailed.
        """
        for fetch in self._wanted:
            fetch.result(self._cancelled)

    @property
    def failure(self) -> Exception | None:
        """Why an input cannot be had, as far as is known: the reason behind a broken-off pull."""
        return next((fetch.error for fetch in self._wanted if fetch.error is not None), None)

    def registry_credentials(self, container: ContainerDefinition) -> Credentials | None:
        """The login for a container's image that the definition gives: `repositoryCredentials`, or
        its execution role's for ECR. None: the host's own logins apply.

        Raises: AwsFailed; RegistryLoginFailed.
        """
        if container.repository_credentials is not None:
            from fargatelite.taskdef.references import parse_secret_id

            parameter = container.repository_credentials.credentials_parameter
            text = self._secrets.result(self._cancelled)[parse_secret_id(parameter)]
            return _parse_login(text, parameter)
        if self._logins not in self._wanted:
            return None
        from fargatelite.images.reference import parse_reference

        logins = self._logins.result(self._cancelled)
        return logins.get(parse_reference(container.image).registry)

    def of_container(self, container: ContainerDefinition) -> ContainerInputs:
        """A container's variables. After `wait`."""
        if not container.secrets and not container.environment_files:
            return ContainerInputs()
        from fargatelite.aws.environment_files import merge_environment_files

        files: dict[str, str] = {}
        if container.environment_files:
            found = self._files.result(self._cancelled)
            files = merge_environment_files(
                found[file.value] for file in container.environment_files
            )
        return ContainerInputs(secrets=self._values(container.secrets), environment_files=files)

    def fetch_again(self) -> dict[str, dict[str, str]]:
        """The secrets of all containers as they are now: by container, by variable.

        Raises: AwsFailed.
        """
        from fargatelite.aws.secrets import fetch_secrets
        from fargatelite.taskdef.references import parse_value_from

        named = {
            item.name: {secret.name: parse_value_from(secret.value_from) for secret in item.secrets}
            for item in self._definition.containers
        }
        wanted = {reference for secrets in named.values() for reference in secrets.values()}
        found = fetch_secrets(self._settings, wanted, self._open_session())
        return {
            container: {name: found[reference] for name, reference in secrets.items()}
            for container, secrets in named.items()
        }

    def secret_options(self, container: ContainerDefinition) -> Mapping[str, str]:
        """The values of a log driver's `secretOptions`, by option. After `wait`."""
        logging = container.log_configuration
        return self._values(logging.secret_options if logging is not None else ())

    def _values(self, secrets: tuple[Secret, ...]) -> dict[str, str]:
        if not secrets:
            return {}
        from fargatelite.taskdef.references import parse_value_from

        found = self._secrets.result(self._cancelled)
        return {item.name: found[parse_value_from(item.value_from)] for item in secrets}

    def _open_task_role(self) -> TaskRole | None:
        if not self._definition.task_role_arn or self._settings.credentials.source == "none":
            return None
        from fargatelite.aws.task_role import open_task_role

        return open_task_role(self._settings, self._definition, str(self._task_id))

    # ---- in threads ----

    @property
    def _assumes_role(self) -> bool:
        return self._settings.assume_roles and self._definition.execution_role_arn is not None

    def _open_session(self) -> Session:
        from fargatelite.aws.session import execution_session

        with self._session_lock:
            if self._session is None:
                self._session = execution_session(
                    self._settings, self._definition, str(self._task_id)
                )
            return self._session

    def _fetch_secrets(self) -> Mapping[Reference, str]:
        from fargatelite.aws.secrets import fetch_secrets
        from fargatelite.taskdef.references import parse_secret_id, secret_references

        wanted: list[Reference] = [
            parse_secret_id(item.repository_credentials.credentials_parameter)
            for item in self._definition.containers
            if item.repository_credentials is not None
        ]
        if not self._only_logins:
            wanted += secret_references(self._definition).values()
        return fetch_secrets(self._settings, wanted, self._open_session())

    def _fetch_files(self) -> Mapping[str, Mapping[str, str]]:
        from fargatelite.aws.environment_files import fetch_environment_files

        files = (file for item in self._definition.containers for file in item.environment_files)
        return fetch_environment_files(self._open_session(), (file.value for file in files))

    def _ecr_registries(self) -> dict[str, str]:
        """Registries of ECR among the images', with their regions."""
        from fargatelite.images.credentials import ecr_region
        from fargatelite.images.reference import parse_reference
        from fargatelite.runtime.images import open_store

        config, found = open_store(self._settings).config, {}
        for container in self._definition.containers:
            try:
                registry = parse_reference(container.image).registry
            except FargateliteError:
                continue  # the pull says what is wrong with it
            region = ecr_region(registry, config)
            if region is not None and container.repository_credentials is None:
                found[registry] = region
        return found

    def _fetch_logins(self) -> Mapping[str, Credentials]:
        from fargatelite.images.credentials import fetch_ecr_token

        session, endpoint = self._open_session(), self._settings.ecr_endpoint_url
        return {
            registry: fetch_ecr_token(session.client("ecr", region, endpoint), registry)
            for registry, region in self._ecr_registries().items()
        }


def _keep_bodies_out_of_logs() -> None:
    """At DEBUG botocore logs what services answer. Who sets its level on purpose is obeyed."""
    logger = logging.getLogger("botocore")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _names_secrets(container: ContainerDefinition) -> bool:
    logging = container.log_configuration
    return bool(container.secrets or (logging is not None and logging.secret_options))


def _parse_login(text: str, parameter: str) -> Credentials:
    from fargatelite.aws.secrets import UNABLE
    from fargatelite.images.credentials import Credentials

    try:
        login = msgspec.json.decode(text, type=_Login)
    except (msgspec.MsgspecError, RecursionError):
        # Not chained: the parser's words may quote the secret.
        raise AwsFailed(
            f'{UNABLE}secret {parameter} is not {{"username": ..., "password": ...}}'
        ) from None
    return Credentials(username=login.username, password=login.password)
