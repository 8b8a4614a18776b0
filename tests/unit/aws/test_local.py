"""Secrets of the host itself: which file or variable a name means, and that none is outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fargatelite.aws.local import read_local_secret
from fargatelite.aws.secrets import fetch_secrets
from fargatelite.aws.session import Session
from fargatelite.errors import AwsFailed, ConfigurationInvalid
from fargatelite.settings import SecretSettings, Settings, load_settings
from fargatelite.taskdef.references import ParameterReference, parse_value_from

ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/db-Ab12Cd"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "secrets"
    for path, text in {
        "ssm/app/db": "parameter\n",
        "ssm/two": "two\n\n",
        "secretsmanager/prod/db": '{"user": "u", "port": 5432}',
        "secretsmanager/prod/db:AWSPREVIOUS": "old",
        "secretsmanager/prod/db:id-1": "by id",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (tmp_path / "outside").write_text("outside")
    return root


def _read(directory: Path, text: str) -> str:
    return read_local_secret(SecretSettings(local_directory=str(directory)), parse_value_from(text))


@pytest.mark.parametrize(
    ("value_from", "expected"),
    [
        ("/app/db", "parameter"),
        ("app/db", "parameter"),
        ("arn:aws:ssm:us-east-1:123456789012:parameter/app/db", "parameter"),
        ("two", "two\n"),
        (ARN, '{"user": "u", "port": 5432}'),
        (f"{ARN}::AWSCURRENT:", '{"user": "u", "port": 5432}'),
        (f"{ARN}::AWSPREVIOUS:", "old"),
        (f"{ARN}:::id-1", "by id"),
    ],
)
def test_files(directory: Path, value_from: str, expected: str) -> None:
    assert _read(directory, value_from) == expected


def test_a_full_name_goes_before_the_one_without_suffix(directory: Path) -> None:
    (directory / "secretsmanager/prod/db-Ab12Cd").write_text("exact")
    assert _read(directory, ARN) == "exact"


@pytest.mark.parametrize(
    "name",
    ["../../outside", "/../outside", "..", ".", "app/../two", "app//db", "app/", "app", "link",
     "up/outside", "pipe", "loop", "a" * 300, "absolute"],
)  # fmt: skip
def test_nothing_outside_and_nothing_but_files(directory: Path, name: str) -> None:
    ssm = directory / "ssm"
    (ssm / "link").symlink_to("two")
    (ssm / "up").symlink_to("../..")
    (ssm / "loop").symlink_to("loop")
    (ssm / "absolute").symlink_to(directory.parent / "outside")
    os.mkfifo(ssm / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AwsFailed, match=r"^no local secret at "):
        read_local_secret(
            SecretSettings(local_directory=str(directory)),
            ParameterReference(asked=name, name=name),
        )
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_file_may_hold(directory: Path) -> None:
    (directory / "ssm/binary").write_bytes(b"\xff\xfe")
    with pytest.raises(AwsFailed, match="is not UTF-8 text: only text secrets"):
        _read(directory, "binary")
    (directory / "ssm/big").write_bytes(b"x" * 65537)
    with pytest.raises(AwsFailed, match="has over 65536 bytes"):
        _read(directory, "big")


def test_variables_of_the_prefix_only() -> None:
    settings = SecretSettings(local_environment_prefix="TEST_SECRET_")
    environment = {"TEST_SECRET_APP_DB_PASSWORD": "v", "TEST_SECRET_PROD_DB": "s", "HOME": "/root"}

    def read(text: str) -> str:
        return read_local_secret(settings, parse_value_from(text), environment)

    assert read("/app/db-password") == "v"
    assert read(ARN) == "s"
    with pytest.raises(AwsFailed, match=r"^no local secret at \$TEST_SECRET_HOME$"):
        read("HOME")


def test_a_variable_goes_before_a_file(directory: Path) -> None:
    settings = SecretSettings(local_directory=str(directory), local_environment_prefix="TEST_")
    reference = parse_value_from("/app/db")
    assert read_local_secret(settings, reference, {"TEST_APP_DB": "variable"}) == "variable"
    assert read_local_secret(settings, reference, {}) == "parameter"


def test_keys_of_a_local_secret_and_no_call_to_aws(directory: Path) -> None:
    settings = Settings(secrets=SecretSettings(local_directory=str(directory)))
    names = [f"{ARN}:user::", f"{ARN}:port::", "/app/db"]
    found = fetch_secrets(settings, map(parse_value_from, names), Session(settings))
    assert [found[parse_value_from(name)] for name in names] == ["u", "5432", "parameter"]
    for name, words in (
        (f"{ARN}:nope::", "retrieved secret from Secrets Manager did not contain json key nope"),
        (f"{ARN}:k:AWSPREVIOUS:", "invalid character looking for beginning of value"),
        ("/nope", f"no local secret at {directory}/ssm/nope"),
    ):
        with pytest.raises(AwsFailed) as caught:
            fetch_secrets(settings, [parse_value_from(name)], Session(settings))
        assert str(caught.value).startswith("unable to pull secrets or registry auth: ")
        assert words in str(caught.value)
        assert caught.value.ecs_name == "ResourceInitializationError"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[secrets]\nlocal_environment_prefix = ""', "local_environment_prefix '' is not"),
        ('[secrets]\nlocal_environment_prefix = "A"', "local_environment_prefix 'A' is not"),
        ('[secrets]\nlocal_directory = "secrets"', "'secrets' is not an absolute path"),
        ('[secrets]\nlocal_folder = "/x"', "unknown field `local_folder`"),
        ('[credentials]\nsource = "static"', "the source needs the file"),
        ('[credentials]\nstatic_file = "/x"', "belongs to credentials.source"),
        ('[credentials]\nsource = "mine"', "Invalid enum value 'mine'"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigurationInvalid, match=words):
        load_settings(environment={"FARGATELITE_CONFIG": str(tmp_path / "config.toml")})


def test_settings_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        'assume_roles = true\n[secrets]\nlocal_directory = "/s"\n'
        'local_environment_prefix = "FARGATELITE_SECRET_"\n[credentials]\nsource = "host"\n'
    )
    settings = load_settings(environment={"FARGATELITE_CONFIG": str(tmp_path / "config.toml")})
    assert settings.assume_roles
    assert settings.secrets == SecretSettings(
        local_directory="/s", local_environment_prefix="FARGATELITE_SECRET_"
    )
    assert settings.credentials.source == "host"
