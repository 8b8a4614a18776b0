"""The options of `logConfiguration`: which exist, and what their text means. Pure.

Options that Fargate does not take are refused at registration (`Log driver ... disallows options`);
for awsfirelens everything else is the router's output plugin's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fargatelite.taskdef.fields import ContainerDefinition, LogConfiguration

__all__ = [
    "ALLOWED_OPTIONS",
    "DEFAULT_BUFFER_BYTES",
    "DEFAULT_FIRELENS_EVENTS",
    "MAX_FIRELENS_EVENTS",
    "TAG_FIELDS",
    "buffer_bytes",
    "datetime_pattern",
    "expand_tag",
    "is_blocking",
    "is_true",
    "parse_bool",
    "parse_buffer_bytes",
    "pattern_error",
    "shown_options",
    "stream_name",
    "tag_problem",
]

DEFAULT_BUFFER_BYTES = 10 * 2**20  # contract 2.8
DEFAULT_FIRELENS_EVENTS = 1048576  # fluentd-buffer-limit of Docker's driver
MAX_FIRELENS_EVENTS = 536870911

_EVERY_DRIVER = ("mode", "max-buffer-size")
_AWSLOGS = (
    "awslogs-group awslogs-region awslogs-stream-prefix awslogs-create-group "
    "awslogs-datetime-format awslogs-multiline-pattern"
).split()
_SPLUNK = (
    "splunk-token splunk-url splunk-source splunk-sourcetype splunk-index splunk-capath "
    "splunk-caname splunk-insecureskipverify splunk-format splunk-verify-connection splunk-gzip "
    "splunk-gzip-level tag labels labels-regex env env-regex"
).split()
ALLOWED_OPTIONS: dict[str, frozenset[str]] = {
    "awslogs": frozenset((*_AWSLOGS, *_EVERY_DRIVER)),
    "splunk": frozenset((*_SPLUNK, *_EVERY_DRIVER)),
}

_SIZE = re.compile(r"(\d{1,15}) ?([kmgtp]?)(i?b)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}


def parse_buffer_bytes(text: str) -> int | None:
    """`10m`, `512k`, `25MB`, `1048576`, as Docker's RAMInBytes; None for anything else, and for
    zero."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    return int(match[1]) * _UNITS[match[2].lower()] or None


def parse_bool(text: str) -> bool | None:
    """As Go's ParseBool takes it; None for anything else."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    return False if text in ("0", "f", "F", "false", "FALSE", "False") else None


def is_true(options: dict[str, str], name: str, default: bool) -> bool:
    """A checked option that is a truth value."""
    value = options.get(name)
    return default if value is None else bool(parse_bool(value))


def is_blocking(log: LogConfiguration | None) -> bool:
    """Whether the container's writes wait for its driver; not by default since 2025-06-25
    (contract 2.8)."""
    return log is not None and log.options.get("mode") == "blocking"


def buffer_bytes(options: dict[str, str]) -> int:
    """`max-buffer-size` of checked options."""
    return parse_buffer_bytes(options.get("max-buffer-size", "")) or DEFAULT_BUFFER_BYTES


def stream_name(prefix: str, container: str, task_id: str) -> str:
    """The stream of an awslogs driver (contract 2.8)."""
    return f"{prefix}/{container}/{task_id}"


def shown_options(container: ContainerDefinition, task_id: str) -> dict[str, str]:
    """LogOptions of the metadata endpoint (contract 5.3): with the stream that was resolved,
    without a token."""
    log = container.log_configuration
    if log is None:
        return {}
    options = {name: value for name, value in log.options.items() if name != "splunk-token"}
    if log.log_driver == "awslogs":
        prefix = options.get("awslogs-stream-prefix", "")
        options["awslogs-stream"] = stream_name(prefix, container.name, task_id)
    return options


# moby daemon/logger/awslogs: strftimeToRegex. All else in a format is a regular expression already.
_DATETIME = {
    "a": "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)",
    "A": "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)",
    "b": "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)",
    "B": "(?:January|February|March|April|May|June|July|August|September|October|November|"
    "December)",
    "w": r"\d{1}", "d": r"\d{2}", "m": r"\d{2}", "Y": r"\d{4}", "y": r"\d{2}",
    "H": r"\d{2}", "I": r"\d{2}", "p": "(?:AM|PM)", "M": r"\d{2}", "S": r"\d{2}",
    "f": r"\d{6}", "L": r"\.\d{3}", "z": r"[+-]\d{4}", "Z": "[A-Z]{1,4}T", "j": r"\d{3}",
    "%": "%",
}  # fmt: skip


def datetime_pattern(text: str) -> str:
    """The regular expression of an awslogs-datetime-format."""
    return re.sub(r"%(.)", lambda match: _DATETIME.get(match[1], match[0]), text)


def pattern_error(pattern: str) -> str | None:
    """What is wrong with a regular expression, in the words of RE2, whose syntax is Go's; its time
    is linear, so that no pattern of one task can stop the log of another."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        return str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
    return None


TAG_FIELDS = ("ID", "FullID", "Name", "ImageName", "DaemonName")
"""What a splunk tag may name in `{{.Field}}` (Docker's log tags)."""

_TAG = re.compile(r"\{\{ *\.([A-Za-z]+) *\}\}", re.ASCII)


def expand_tag(text: str, fields: Mapping[str, str]) -> str:
    """A checked tag with the values of its fields."""
    return _TAG.sub(lambda match: fields[match[1]], text)


def tag_problem(text: str) -> str | None:
    """What of a tag is no field that there is."""
    rest = _TAG.sub(lambda match: "" if match[1] in TAG_FIELDS else match[0], text)
    return rest if "{{" in rest else None
