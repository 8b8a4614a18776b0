"""Who we are to a registry: config.json, real helper programs, ECR's token from a moto server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fargatelite.errors import RegistryDenied
from fargatelite.images import credentials
from fargatelite.images.credentials import (
    Credentials,
    RegistryConfig,
    find_credentials,
    is_plain_http,
)

HOST = "registry.example.com"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
Write = Callable[[object], RegistryConfig]


def _auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(document: object) -> RegistryConfig:
        path = tmp_path / "config.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return RegistryConfig(docker_config=str(path))

    return to_file


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program docker-credential-test into PATH; what it is asked ends up in a file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def install(body: str) -> Path:
        asked = tmp_path / "asked"
        program = programs / "docker-credential-test"
        program.write_text(f"#!/bin/sh\necho \"$@\" >'{asked}'; cat >>'{asked}'\n{body}\n")
        program.chmod(0o755)
        return asked

    return install


@pytest.mark.parametrize(
    ("registry", "auths", "expected"),
    [
        (HOST, {HOST: {"auth": _auth("me:pass:word")}}, ("me", "pass:word", None)),
        (HOST, {f"https://{HOST}": {"auth": _auth("me:p")}}, ("me", "p", None)),
        (HOST, {f"https://{HOST}/v2/": {"auth": _auth("me:p")}}, ("me", "p", None)),
        (HOST, {HOST: {"username": "me", "password": "p"}}, ("me", "p", None)),
        (HOST, {HOST: {"auth": _auth("me:"), "identitytoken": "t"}}, ("me", "", "t")),
        ("docker.io", {"https://index.docker.io/v1/": {"auth": _auth("me:p")}}, ("me", "p", None)),
        (HOST, {"other.example.com": {"auth": _auth("me:p")}}, None),
        (HOST, {"example.com": {"auth": _auth("me:p")}}, None),
        (HOST, {f"{HOST}:5000": {"auth": _auth("me:p")}}, None),
        (HOST, {HOST: {}}, None),
        (HOST, {HOST: None}, None),
        (HOST, None, None),
        (HOST, [], None),
    ],
)
def test_auths(
    write: Write, registry: str, auths: object, expected: tuple[str, str, str | None] | None
) -> None:
    found = find_credentials(registry, write({"auths": auths}))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.username, found.password, found.identity_token) == expected


def test_no_file_is_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RegistryConfig(docker_config=str(tmp_path / "none"))
    assert find_credentials(HOST, config) is None
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {HOST: {"auth": _auth("a:b")}}}))
    found = find_credentials(HOST, RegistryConfig())
    assert found is not None
    assert found.username == "a"


@pytest.mark.parametrize(
    "document",
    ["", "{", "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), "[" * 100_000],
    ids=["empty", "cut", "bytes", "nested"],
)
def test_damaged_file_is_named(write: Write, document: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryDenied, match="cannot read registry credentials from ") as caught:
        find_credentials(HOST, write(document))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("auth", ["%%%", "a", _auth("x")[:-1] + "\u00e9", 5, "/////w=="])
def test_auth_that_is_no_base64(write: Write, auth: Any) -> None:
    with pytest.raises(RegistryDenied, match=f"credentials for {HOST} are not base64"):
        find_credentials(HOST, write({"auths": {HOST: {"auth": auth}}}))


def test_helper(write: Write, helper: Callable[[str], Path]) -> None:
    asked = helper('echo \'{"ServerURL": "x", "Username": "me", "Secret": "s"}\'')
    found = find_credentials(HOST, write({"credHelpers": {HOST: "test"}}))
    assert found == Credentials(username="me", password="s")
    assert asked.read_text() == f"get\n{HOST}"


def test_helper_goes_before_auths(write: Write, helper: Callable[[str], Path]) -> None:
    helper('echo \'{"Username": "<token>", "Secret": "refresh"}\'')
    document = {"credHelpers": {HOST: "test"}, "auths": {HOST: {"auth": _auth("a:b")}}}
    found = find_credentials(HOST, write(document))
    assert found is not None
    assert (found.username, found.identity_token) == ("", "refresh")


def test_credentials_store(write: Write, helper: Callable[[str], Path]) -> None:
    helper('echo \'{"Username": "me", "Secret": "s"}\'')
    found = find_credentials(HOST, write({"credsStore": "test", "auths": {HOST: {}}}))
    assert found == Credentials(username="me", password="s")
    assert find_credentials(HOST, write({"credsStore": "test", "auths": {}})) is None
    # `docker login` of older versions leaves no auths at all.
    assert find_credentials(HOST, write({"credsStore": "test"})) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'no access'; exit 1", f"docker-credential-test failed for {HOST}: no access"),
        ("echo '{}'", "docker-credential-test gave no credentials"),
        ("echo 'text'", "docker-credential-test gave no credentials"),
        ("echo '[]'", "docker-credential-test gave no credentials"),
        ("printf '\\377\\376'", "docker-credential-test gave no credentials"),
    ],
)
def test_helper_that_fails(
    write: Write, helper: Callable[[str], Path], body: str, words: str
) -> None:
    helper(body)
    with pytest.raises(RegistryDenied, match=words):
        find_credentials(HOST, write({"credHelpers": {HOST: "test"}}))


def test_helper_that_knows_nothing(write: Write, helper: Callable[[str], Path]) -> None:
    helper("echo 'credentials not found in native keychain'; exit 1")
    assert find_credentials(HOST, write({"credHelpers": {HOST: "test"}})) is None


def test_helper_that_never_answers(
    write: Write, helper: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "HELPER_TIMEOUT_S", 0.2)
    helper("exec sleep 20")
    with pytest.raises(RegistryDenied, match=r"docker-credential-test took over 0\.2 s"):
        find_credentials(HOST, write({"credHelpers": {HOST: "test"}}))


def test_helper_that_is_not_there(write: Write, helper: Callable[[str], Path]) -> None:
    with pytest.raises(RegistryDenied, match=f"for {HOST} is not installed"):
        find_credentials(HOST, write({"credHelpers": {HOST: "absent"}}))


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "a/b", "x" * 65, "a\n"])
def test_helper_names_that_are_paths(write: Write, name: str) -> None:
    with pytest.raises(RegistryDenied, match="is no program name"):
        find_credentials(HOST, write({"credHelpers": {HOST: name}}))


def test_secrets_are_not_printed() -> None:
    secret = Credentials(username="me", password="hidden", identity_token="hidden")
    assert "hidden" not in f"{secret!r} {secret}"
    assert secret.basic() == "Basic " + _auth("me:hidden")


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("127.0.0.1:5000", True), ("127.1.2.3", True), ("localhost", True), ("[::1]:5000", True),
        ("localhost.example.com", False), ("127.0.0.1.example.com", False), (HOST, False),
        ("10.0.0.1:5000", False), ("plain.example.com:80", True),
    ],
)  # fmt: skip
def test_plain_http_is_for_loopback_and_who_is_named(registry: str, expected: bool) -> None:
    config = RegistryConfig(insecure_registries=("plain.example.com:80",))
    assert is_plain_http(registry, config) is expected


# ---- ECR ----


@pytest.fixture
def ecr(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def test_ecr_token(ecr: str, tmp_path: Path) -> None:
    config = RegistryConfig(
        docker_config=str(tmp_path / "none"), ecr_endpoint_url=ecr,
        ecr_registries=("127.0.0.1:5000",),
    )  # fmt: skip
    for registry in (ECR, "127.0.0.1:5000"):
        found = find_credentials(registry, config)
        assert found is not None
        assert found.username == "AWS"
        assert found.password
    # A host that only looks like ECR's gets no token.
    for registry in (f"{ECR}.example.com", f"x{ECR}", "example.com"):
        assert find_credentials(registry, config) is None


def test_ecr_without_keys_says_what_fargate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    config = RegistryConfig(docker_config=str(tmp_path / "none"))
    with pytest.raises(
        RegistryDenied, match=r"unable to pull secrets or registry auth: "
    ) as caught:
        find_credentials(ECR, config)
    assert f"cannot get an ECR token for {ECR}: Unable to locate credentials" in str(caught.value)
