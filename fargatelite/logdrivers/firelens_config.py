"""The configuration of a FireLens router (Fluent Bit or Fluentd), as the ECS agent generates it.

Inputs: the Unix socket that the log driver writes to, and port 24224 for programs of the task.
Then filters, the user's file, and an output for each container from its options. Pure.

Source: contract 2.8; the agent's firelens resource and its tests, for order and names.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fargatelite.taskdef.log_options import is_true

__all__ = ["CONFIG_PATHS", "PORT", "SOCKET", "Routed", "generate_config", "secret_variable"]

SOCKET = "/var/run/fluent.sock"
PORT = 24224
HEALTH_PORT = 8877
CONFIG_PATHS = {
    "fluentbit": "/fluent-bit/etc/fluent-bit.conf",
    "fluentd": "/fluentd/etc/fluent.conf",
}
_OWN_OPTIONS = (
    "include-pattern", "exclude-pattern", "log-driver-buffer-limit", "mode", "max-buffer-size",
)  # fmt: skip


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """A container whose logs go through the router: its options, and names of its secretOptions
    with the variable of the router's environment that holds each."""

    container: str
    options: Mapping[str, str]
    secrets: Mapping[str, str] = {}


def secret_variable(name: str, index: int) -> str:
    """The router's variable for a secret option of the container at `index` in its task."""
    return f"{name}_{index}"


def _bit_section(kind: str, *pairs: tuple[str, str]) -> str:
    return "\n".join([f"[{kind}]", *(f"    {name} {value}" for name, value in pairs)])


def _fluent_bit(
    routed: list[Routed], metadata: Mapping[str, str], include: str | None
) -> list[str]:
    sections = [
        _bit_section("INPUT", ("Name", "forward"), ("unix_path", SOCKET)),
        _bit_section(
            "INPUT", ("Name", "forward"), ("Listen", "127.0.0.1"), ("Port", str(PORT))
        ),
        _bit_section(
            "INPUT", ("Name", "tcp"), ("Tag", "firelens-healthcheck"), ("Listen", "127.0.0.1"),
            ("Port", str(HEALTH_PORT)),
        ),
    ]  # fmt: skip
    for item in routed:
        match = ("Match", f"{item.container}-firelens*")
        for option, member in (("include-pattern", "Regex"), ("exclude-pattern", "Exclude")):
            if option in item.options:
                sections.append(
                    _bit_section(
                        "FILTER", ("Name", "grep"), match, (member, f"log {item.options[option]}")
                    )
                )
    if metadata:
        sections.append(
            _bit_section(
                "FILTER", ("Name", "record_modifier"), ("Match", "*"),
                *(("Record", f"{name} {value}") for name, value in metadata.items()),
            )
        )  # fmt: skip
    if include is not None:
        sections.append(f"@INCLUDE {include}")
    sections.append(_bit_section("OUTPUT", ("Name", "null"), ("Match", "firelens-healthcheck")))
    for item in routed:
        options = _plugin_options(item, "${%s}")
        if "Name" in options:
            sections.append(
                _bit_section(
                    "OUTPUT", ("Name", options.pop("Name")),
                    ("Match", f"{item.container}-firelens*"), *sorted(options.items()),
                )
            )  # fmt: skip
    return sections


def _xml(tag: str, *lines: str) -> str:
    kind = tag.split()[0]
    return "\n".join([f"<{tag}>", *(f"    {line}" for line in lines), f"</{kind}>"])


def _fluentd(routed: list[Routed], metadata: Mapping[str, str], include: str | None) -> list[str]:
    sections = [
        _xml("source", "@type unix", f"path {SOCKET}"),
        _xml("source", "@type forward", "bind 127.0.0.1", f"port {PORT}"),
    ]
    for item in routed:
        for option, member in (("include-pattern", "regexp"), ("exclude-pattern", "exclude")):
            if option in item.options:
                sections.append(
                    _xml(
                        f"filter {item.container}-firelens**", "@type grep", f"<{member}>",
                        "    key log", f"    pattern {item.options[option]}", f"</{member}>",
                    )
                )  # fmt: skip
    if metadata:
        sections.append(
            _xml(
                "filter **", "@type record_transformer", "<record>",
                *(f"    {name} {value}" for name, value in metadata.items()), "</record>",
            )
        )  # fmt: skip
    if include is not None:
        sections.append(f"@include {include}")
    for item in routed:
        options = _plugin_options(item, "\"#{ENV['%s']}\"")
        if "@type" in options:
            sections.append(
                _xml(
                    f"match {item.container}-firelens**", f"@type {options.pop('@type')}",
                    *(f"{name} {value}" for name, value in sorted(options.items())),
                )
            )  # fmt: skip
    return sections


def _plugin_options(item: Routed, placeholder: str) -> dict[str, str]:
    """What is the output plugin's; a secret stays in the router's environment."""
    options = {name: value for name, value in item.options.items() if name not in _OWN_OPTIONS}
    return options | {name: placeholder % variable for name, variable in item.secrets.items()}


def generate_config(
    kind: str,
    router_options: Mapping[str, str],
    routed: list[Routed],
    *,
    cluster: str,
    task_arn: str,
    task_definition: str,
) -> str:
    """The text of the file at `CONFIG_PATHS[kind]`.

    `router_options` are firelensConfiguration's; `task_definition` is `family:revision`.
    """
    metadata = {}
    if is_true(dict(router_options), "enable-ecs-log-metadata", True):
        metadata = {
            "ecs_cluster": cluster,
            "ecs_task_arn": task_arn,
            "ecs_task_definition": task_definition,
        }
    sections = (_fluent_bit if kind == "fluentbit" else _fluentd)(
        routed, metadata, router_options.get("config-file-value")
    )
    return "\n" + "\n\n".join(sections) + "\n"
