"""Usage, exit codes, definitions, pipes, start-up time and completion; nothing here needs root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from tests.fixtures.cli import CommandLine, all_commands

EXAMPLES = Path(__file__).parents[3] / "examples"
HELLO = EXAMPLES / "hello.json"

BROKEN = """{
  "family": "bad family",
  "networkMode": "bridge",
  "cpu": "300",
  "memory": "512",
  "containerDefinitions": [
    {"name": "a", "image": "x",
     "colour": "red"}
  ]
}
"""


# ---- help and usage ----


@pytest.mark.parametrize("path", [path for path, _ in all_commands()], ids=" ".join)
def test_help_has_an_example(fargatelite: CommandLine, path: tuple[str, ...]) -> None:
    shown = fargatelite(*path, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Usage: {' '.join(('fargatelite', *path))} ")
    assert "Example:\n    fargatelite " in shown.stdout
    assert fargatelite(*path, "-h").stdout == shown.stdout


def test_help_examples_parse() -> None:
    """Each help's example is a command line that its own parser takes."""
    for path, command in all_commands():
        text = (command.help or "").split("Example:\n")[1].strip()
        program, *words = text.split("\n")[0].replace('"', "").split()
        assert program == "fargatelite"
        assert tuple(words[: len(path)]) == path
        if not isinstance(command, click.Group) and "--reason" not in words:
            existing = [str(HELLO) if "." in word and "/" not in word else word for word in words]
            command.make_context(" ".join(path), existing[len(path) :])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["image", "frobnicate"], "No such command 'frobnicate'"),
        (["run"], "Missing argument 'DEFINITION'"),
        (["run", "/no/such/file.json"], "no such file: /no/such/file.json"),
        (["definition", "validate", "/no/such/file.json"], "no such file"),
        (["run", str(HELLO), "--frobnicate"], "No such option"),
        (["run", str(HELLO), "--pull", "sometimes"], "'always', 'missing', 'never'"),
        (["run", str(HELLO), "--output", "yaml"], "'table', 'json'"),
        (["run", str(HELLO), "--overrides", "["], "--overrides: not JSON"),
        (["run", str(HELLO), "--overrides", "[" * 100_000], "--overrides: not JSON"),
        (["run", str(HELLO), "--overrides", "[]"], "must be a JSON object"),
        (["run", str(HELLO), "--overrides", "@/no/such/file"], "cannot read /no/such/file"),
        (["run", str(HELLO), "--tag", "novalue"], "'novalue' is not KEY=VALUE"),
        (["gc", "--older-than", "soon"], "'soon' is not of the form 90s, 15m, 12h or 7d"),
        (["wait", "1", "--timeout", "soon"], "'soon' is not a valid float"),
        (["image", "load", "/no/such/file"], "does not exist"),
        (["describe"], "Missing argument 'TASK...'"),
    ],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2(
    fargatelite: CommandLine, arguments: list[str], message: str
) -> None:
    ended = fargatelite(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Usage: fargatelite")
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", str(HELLO), "--publish", "80"], "cannot publish '80'"),
        (["run", str(EXAMPLES)], "Is a directory"),
        (["--data-root", "/proc/1/none", "image", "list"], "cannot create /proc/1/none"),
        (["--debug", "run", str(HELLO), "--publish", "80"], "Traceback"),
    ],
    ids=["publish", "directory", "root", "debug"],
)
def test_own_failure_exits_with_125(
    fargatelite: CommandLine, arguments: list[str], message: str
) -> None:
    ended = fargatelite(*arguments)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert message in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("Error: ")


def test_a_bug_exits_with_125_not_with_a_containers_code(fargatelite: CommandLine) -> None:
    """A command whose module is gone, as in a broken installation."""
    code = (
        "from fargatelite.cli import main\n"
        "main.COMMANDS['gone'] = ('gone', '')\n"
        "main.main(['gone'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode == 125
    assert ended.stderr.startswith("Traceback")
    assert "unexpected ModuleNotFoundError" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FARGATELITE_REGION": "nowhere"}, "region 'nowhere' is not of the form"),
        ({"FARGATELITE_CONFIG": "/no/such/file"}, "correct FARGATELITE_CONFIG"),
        ({"FARGATELITE_IMAGE_BACKEND": "tape"}, "configuration: "),
    ],
    ids=["region", "config", "backend"],
)
def test_wrong_configuration_names_the_setting(
    fargatelite: CommandLine, environment: dict[str, str], message: str
) -> None:
    ended = fargatelite("ps", environment=environment)
    assert ended.returncode == 125
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_options_beat_variables_beat_the_file(fargatelite: CommandLine, tmp_path: Path) -> None:
    """Seen from outside: which data root complains."""
    config = tmp_path / "config.toml"
    config.write_text('data_root = "/proc/1/file"\nregion = "eu-west-1"\n')
    del fargatelite.environment["FARGATELITE_DATA_ROOT"]
    fargatelite.environment["FARGATELITE_CONFIG"] = str(config)
    assert "/proc/1/file" in fargatelite("image", "list").stderr
    fargatelite.environment["FARGATELITE_DATA_ROOT"] = "/proc/1/variable"
    assert "/proc/1/variable" in fargatelite("image", "list").stderr
    ended = fargatelite("--data-root", "/proc/1/option", "image", "list")
    assert "/proc/1/option" in ended.stderr


def test_version(fargatelite: CommandLine) -> None:
    assert fargatelite("--version").stdout.startswith("fargatelite, version ")


# ---- definition validate ----


def test_all_problems_at_once_with_path_and_line(fargatelite: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(BROKEN)
    ended = fargatelite("definition", "validate", path)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert f"{path}: 4 problem(s) in the task definition:" in ended.stderr
    for place in (
        "family (line 2): ",
        "networkMode (line 3): ",
        "cpu (line 4): ",
        "containerDefinitions[0].colour (line 8): ",
    ):
        assert place in ended.stderr
    assert "found bridge; allowed: awsvpc" in ended.stderr


def test_valid_and_broken_definitions_in_one_call(fargatelite: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(BROKEN)
    ended = fargatelite("definition", "validate", path, HELLO)
    assert ended.returncode == 125
    assert ended.stdout == f"{HELLO}: valid: hello, 1 container(s), 0.25 vCPU, 512 MiB\n"
    assert str(path) in ended.stderr


def test_definition_from_standard_input(fargatelite: CommandLine) -> None:
    ended = fargatelite("definition", "validate", "-", input=HELLO.read_text())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("-: valid: hello,")


def test_standard_input_is_no_path(fargatelite: CommandLine) -> None:
    """Contents that happen to name a file are not read as that file."""
    ended = fargatelite("definition", "validate", "-", input=str(HELLO))
    assert ended.returncode == 125
    assert "not a JSON document: line 1, column 1" in ended.stderr


def test_validate_prints_one_json_document(fargatelite: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(BROKEN)
    ended = fargatelite("definition", "validate", HELLO, path, "--output", "json")
    assert ended.returncode == 125
    document = json.loads(ended.stdout)
    assert [item["family"] for item in document["taskDefinitions"]] == ["hello"]
    (failure,) = document["failures"]
    assert failure["definition"] == str(path)
    assert [(item["path"], item["line"]) for item in failure["problems"]] == [
        ("family", 2),
        ("networkMode", 3),
        ("cpu", 4),
        ("containerDefinitions[0].colour", 8),
    ]
    not_json = fargatelite("definition", "validate", "-", "--output", "json", input="{")
    (failure,) = json.loads(not_json.stdout)["failures"]
    assert failure["problems"] == []
    assert "not a JSON document" in failure["reason"]


def test_a_definition_cannot_drive_the_terminal(fargatelite: CommandLine) -> None:
    hostile = HELLO.read_text().replace('"family"', '"\\u001b]0;owned\\u0007": 1, "family"', 1)
    for command in (["definition", "validate", "-"], ["run", "-"]):
        ended = fargatelite(*command, input=hostile)
        assert ended.returncode == 125
        assert "owned" in ended.stderr
        assert "\x1b" not in ended.stderr
        assert "\x07" not in ended.stderr


# ---- data on stdout ----


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ps", "--output", "json"], {"taskArns": []}),
        (["image", "list", "--output", "json"], {"imageDetails": []}),
        (
            ["describe", "3f2a"],
            {"tasks": [], "failures": [{"arn": "3f2a", "reason": "MISSING"}]},
        ),
        (["stats", "--no-stream", "--output", "json"], {"tasks": {}}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_json_on_stdout_without_tasks(
    fargatelite: CommandLine, arguments: list[str], expected: dict[str, Any]
) -> None:
    ended = fargatelite(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == expected


@pytest.mark.parametrize(
    "environment",
    [{}, {"NO_COLOR": "1"}, {"COLUMNS": "40"}, {"TERM": "dumb"}],
    ids=["pipe", "no-color", "narrow", "dumb"],
)
def test_a_pipe_gets_all_text_and_no_escapes(
    fargatelite: CommandLine, tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "broken.json"
    path.write_text(BROKEN)
    shown = fargatelite("ps", environment=environment)
    assert shown.stdout.split() == [
        "TASK", "ID", "FAMILY", "STATUS", "DESIRED", "HEALTH", "ADDRESS", "AGE", "CONTAINERS"
    ]  # fmt: skip
    assert shown.stdout.count("\n") == 1
    refused = fargatelite("definition", "validate", path, environment=environment)
    assert "containerDefinitions[0].colour (line 8): Unknown parameter" in refused.stderr
    assert "\x1b" not in shown.stdout + shown.stderr + refused.stdout + refused.stderr


def test_what_is_not_utf8_is_shown_escaped(fargatelite: CommandLine) -> None:
    ended = fargatelite("describe", os.fsdecode(b"\xff"))
    assert json.loads(ended.stdout)["failures"][0]["arn"] == r"\xdcff"
    assert r"\udcff" in fargatelite("wait", os.fsdecode(b"\xff")).stderr


@pytest.mark.parametrize("command", ["logs", "stop", "wait", "bill", "stats"])
def test_unknown_task_says_where_to_look(fargatelite: CommandLine, command: str) -> None:
    ended = fargatelite(command, "3f2a")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr == "Error: no task '3f2a'; `fargatelite ps --all` lists them\n"


# ---- start-up ----


def _best_of(code: str, times: int = 5) -> float:
    """Seconds of the fastest run of a fresh interpreter."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=20)
        found.append(time.perf_counter() - started)
    return min(found)


def test_import_costs_next_to_nothing() -> None:
    assert _best_of("import fargatelite") - _best_of("pass") < 0.060


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import fargatelite", "pyroute2 rich click botocore urllib3 msgspec"),
        ("import fargatelite.cli.main", "pyroute2 rich botocore urllib3 msgspec"),
        ("import fargatelite.cli.ps", "pyroute2 rich botocore urllib3"),
    ],
)
def test_import_loads_no_heavy_library(code: str, absent: str) -> None:
    check = f"{code}, sys; print(sorted(set({absent.split()!r}) & set(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", check], capture_output=True, text=True, check=True, timeout=20
    )
    assert ended.stdout == "[]\n"


# ---- completion ----


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A `fargatelite` for the PATH of a shell."""
    path = tmp_path / "bin" / "fargatelite"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m fargatelite \"$@\"\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["fargatelite", "im"], ["image"]),
        (["fargatelite", "image", "l"], ["load", "list"]),
        (["fargatelite", "run", "--pu"], ["--pull", "--publish"]),
        (["fargatelite", "run", "--pull", "m"], ["missing"]),
        (["fargatelite", "gc", "--output", ""], ["table", "json"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_completes(
    fargatelite: CommandLine, program: Path, words: list[str], offered: list[str]
) -> None:
    script = (
        'eval "$(_FARGATELITE_COMPLETE=bash_source fargatelite)"\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        "_fargatelite_completion fargatelite\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{program.parent}:{fargatelite.environment['PATH']}"
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script, "bash", *words],
        env=fargatelite.environment | {"PATH": path},
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    assert ended.stderr == ""
    assert sorted(ended.stdout.split()) == sorted(offered)


def test_zsh_gets_a_completion_script(fargatelite: CommandLine) -> None:
    ended = fargatelite(environment={"_FARGATELITE_COMPLETE": "zsh_source"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("#compdef fargatelite\n")
    assert "_FARGATELITE_COMPLETE=zsh_complete" in ended.stdout
    offered = fargatelite(
        environment={
            "_FARGATELITE_COMPLETE": "zsh_complete",
            "COMP_WORDS": "fargatelite im",
            "COMP_CWORD": "1",
        }
    )
    assert offered.stdout.splitlines()[:2] == ["plain", "image"]
