"""Who we are to a registry: docker's config.json with its helpers, and ECR's tokens."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from fargatelite.errors import RegistryDenied, RegistryLoginFailed

__all__ = [
    "Credentials",
    "RegistryConfig",
    "ecr_region",
    "fetch_ecr_token",
    "find_credentials",
    "is_plain_http",
]

_ECR_HOST = re.compile(
    r"(?P<account>\d{12})\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|on\.aws)",
    re.ASCII,
)
_LOOPBACK = re.compile(r"(127(?:\.\d{1,3}){3}|localhost|\[::1\])(:\d+)?", re.ASCII)
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
HELPER_TIMEOUT_S = 30


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The host's settings for registries."""

    insecure_registries: tuple[str, ...] = ()
    ecr_endpoint_url: str | None = None
    ecr_registries: tuple[str, ...] = ()
    """Further hosts that take ECR's tokens (an emulator's)."""
    docker_config: str | None = None
    """Path of config.json; by default $DOCKER_CONFIG/config.json, else ~/.docker/config.json."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """For one host, never to be sent to another."""

    username: str
    password: str
    identity_token: str | None = None

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return f"<Credentials of {self.username}>"


def is_plain_http(registry: str, config: RegistryConfig) -> bool:
    """Whether the registry is spoken to without TLS: loopback, or named in the settings."""
    return registry in config.insecure_registries or _LOOPBACK.fullmatch(registry) is not None


def _docker_config(config: RegistryConfig) -> dict[str, Any]:
    if config.docker_config is not None:
        path = Path(config.docker_config)
    else:
        home = os.environ.get("DOCKER_CONFIG")
        path = Path(home) / "config.json" if home else Path.home() / ".docker" / "config.json"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RegistryDenied(f"cannot read registry credentials from {path}: {error}") from error
    return value if isinstance(value, dict) else {}


def _from_helper(name: str, registry: str) -> Credentials | None:
    """docker-credential-NAME of the host's own PATH (docker/docker-credential-helpers protocol)."""
    if not _HELPER_NAME.fullmatch(name):
        raise RegistryDenied(f"credential helper {name[:80]!r} is no program name")
    try:
        done = subprocess.run(
            [f"docker-credential-{name}", "get"],
            input=registry.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise RegistryDenied(
            f"credential helper docker-credential-{name} for {registry} is not installed"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RegistryDenied(
            f"credential helper docker-credential-{name} took over {HELPER_TIMEOUT_S} s"
        ) from error
    if done.returncode != 0:
        text = done.stdout.decode("utf-8", "replace").strip()
        if "not found" in text:
            return None
        raise RegistryDenied(f"docker-credential-{name} failed for {registry}: {text[:200]}")
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryDenied(f"docker-credential-{name} gave no credentials") from error
    if username == "<token>":
        return Credentials(username="", password="", identity_token=secret)
    return Credentials(username=username, password=secret)


def _from_config(registry: str, document: dict[str, Any]) -> Credentials | None:
    keys = [registry]
    if registry == "docker.io":
        keys += ["https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"]
    keys += [f"https://{registry}", f"https://{registry}/v2/", f"http://{registry}"]
    helpers = document.get("credHelpers") or {}
    for key in keys:
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return _from_helper(helpers[key], key)
    auths = document.get("auths") or {}
    for key in keys:
        entry = auths.get(key) if isinstance(auths, dict) else None
        if not isinstance(entry, dict):
            continue
        if entry.get("auth"):
            try:
                plain = base64.b64decode(entry["auth"], validate=True).decode()
            except (ValueError, TypeError) as error:
                raise RegistryDenied(f"credentials for {registry} are not base64") from error
            username, _, password = plain.partition(":")
            token = entry.get("identitytoken")
            return Credentials(username=username, password=password, identity_token=token)
        if entry.get("username"):
            return Credentials(username=entry["username"], password=str(entry.get("password", "")))
    if isinstance(document.get("credsStore"), str) and any(key in auths for key in keys):
        return _from_helper(document["credsStore"], registry)
    return None


def ecr_region(registry: str, config: RegistryConfig) -> str | None:
    """The region of a registry host that takes ECR's tokens; None for any other."""
    match = _ECR_HOST.fullmatch(registry)
    if match is not None:
        return match["region"]
    if registry in config.ecr_registries:
        return os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    return None


def fetch_ecr_token(client: Any, registry: str) -> Credentials:
    """A login for a registry from GetAuthorizationToken, asked with a client of the API `ecr`.

    Raises: RegistryLoginFailed.
    """
    import botocore.exceptions

    try:
        answer = client.get_authorization_token()
        token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise _no_token(registry, error) from error
    username, _, password = token.partition(":")
    return Credentials(username=username, password=password)


def _no_token(registry: str, error: Exception) -> RegistryLoginFailed:
    return RegistryLoginFailed(
        "unable to pull secrets or registry auth: execution resource retrieval failed: unable to "
        f"retrieve ecr registry auth: cannot get an ECR token for {registry}: {error}"
    )


def _from_ecr(registry: str, config: RegistryConfig) -> Credentials | None:
    region = ecr_region(registry, config)
    if region is None:
        return None
    import botocore.exceptions
    import botocore.session

    try:
        client = botocore.session.get_session().create_client(
            "ecr", region_name=region, endpoint_url=config.ecr_endpoint_url
        )
    except botocore.exceptions.BotoCoreError as error:
        raise _no_token(registry, error) from error
    return fetch_ecr_token(client, registry)


def find_credentials(registry: str, config: RegistryConfig) -> Credentials | None:
    """The credentials for a registry host: config.json first, then ECR's API for an ECR host.

    Raises: RegistryDenied when there should be some and they cannot be had.
    Source: contract 6.2.
    """
    found = _from_config(registry, _docker_config(config))
    return found if found is not None else _from_ecr(registry, config)
