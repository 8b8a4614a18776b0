"""docs/cli.md says all that the command line takes, and nothing more."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

from fargatelite.cli.main import cli
from fargatelite.security_groups import GroupDefinition
from fargatelite.settings import (
    _VARIABLES,
    BeyondFargate,
    BlockIo,
    Capacity,
    CredentialSettings,
    EfsAccessPoint,
    EfsFileSystem,
    Retention,
    SecretSettings,
    Settings,
    load_settings,
)
from tests.fixtures.cli import all_commands

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"
CONFIGURATION = DOCS.with_name("configuration.md")
COMMANDS = {" ".join(path): command for path, command in all_commands()}
LEAVES = sorted(name for name, command in COMMANDS.items() if not isinstance(command, click.Group))


def sections() -> dict[str, str]:
    """Text by heading, of level 2 or 3."""
    parts = re.split(r"^###? (.+)$", DOCS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options_in_table(text: str) -> set[str]:
    """The options that begin a table's row."""
    found: set[str] = set()
    for row in re.findall(r"^\| (`-[^|]*?(?:\\\|[^|]*?)*) \|", text, re.MULTILINE):
        found |= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row))
    return found


def options_of(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }


@pytest.mark.parametrize("name", LEAVES)
def test_a_command_is_described_with_exactly_its_options(name: str) -> None:
    command = COMMANDS[name]
    text = sections()[name]
    assert options_in_table(text) == options_of(command)
    usage = re.search(rf"`fargatelite {name}( [^`]*)?`", text)
    assert usage is not None
    arguments = [
        parameter.make_metavar(click.Context(command))
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    optional = ["[OPTIONS]"] if options_of(command) else []
    assert (usage[1] or "").split() == optional + arguments


def test_options_for_all_commands() -> None:
    described = options_in_table(sections()["Options for all commands"])
    assert described == options_of(cli) | {"-h", "--help"}


def test_no_command_is_described_that_does_not_exist() -> None:
    headings = set(re.findall(r"^### (.+)$", DOCS.read_text(), re.MULTILINE))
    assert headings == set(LEAVES)


def test_choices_are_those_of_the_parser() -> None:
    for name in LEAVES:
        for parameter in COMMANDS[name].params:
            if isinstance(parameter.type, click.Choice):
                choices = r"\|".join(parameter.type.choices)
                assert f"`{parameter.opts[-1]} {choices}`" in sections()[name], name


def test_settings_with_variable_and_default() -> None:
    def shown(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            return str(value)
        return "" if value is None else "[]" if value == () else f'"{value}"'

    parts = re.split(r"^## (.+)$", CONFIGURATION.read_text(), flags=re.MULTILINE)
    text, named = parts[0], dict(zip(parts[1::2], parts[2::2], strict=True))
    nested: dict[str, type[msgspec.Struct]] = {
        "Secrets": SecretSettings,
        "Credentials": CredentialSettings,
        "Beyond Fargate": BeyondFargate,
        "Capacity": Capacity,
        "Retention": Retention,
        "Block I/O": BlockIo,
    }
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.*)$", text, re.MULTILINE))
    inner = {
        "beyond_fargate", "block_io", "capacity", "credentials", "efs", "retention", "secrets",
        "security_groups",
    }  # fmt: skip
    assert set(rows) == set(Settings.__struct_fields__) - inner
    for name, row in rows.items():
        variable, default = (cell.strip(" `") for cell in row.split("|")[:2])
        assert variable == _VARIABLES.get(name, "")
        assert default == shown(getattr(Settings(), name))
    for heading, kind in nested.items():
        rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.*)$", named[heading], re.MULTILINE))
        assert set(rows) == set(kind.__struct_fields__)
        for name, row in rows.items():
            assert row.split("|")[0].strip(" `") == shown(getattr(kind(), name))
    rows = dict(
        re.findall(r"^\| `([a-z0-9_]+)` \| (.*)$", named["File systems of EFS"], re.MULTILINE)
    )
    assert set(rows) == set(EfsFileSystem.__struct_fields__)
    for name in EfsAccessPoint.__struct_fields__:
        assert f"`{name}`" in rows["access_points"]


def test_a_security_group_has_the_described_keys_and_the_example_loads(tmp_path: Path) -> None:
    part = CONFIGURATION.read_text().split("## Security groups\n")[1].split("\n## ")[0]
    keys = set(re.findall(r"^\| `([a-z_]+)` \|", part, re.MULTILINE))
    assert keys == set(GroupDefinition.__struct_fields__) - {"name"}
    path = tmp_path / "config.toml"
    path.write_text(part.split("```toml\n")[1].split("```")[0])
    settings = load_settings(environment={"FARGATELITE_CONFIG": str(path)})
    assert {group.name for group in settings.security_groups} == {"balancer", "web"}
