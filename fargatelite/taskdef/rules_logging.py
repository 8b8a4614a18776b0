"""Fargate's rules about log drivers and their options (contract 2.8, 2.9)."""

from __future__ import annotations

import re

from fargatelite.taskdef.fields import ContainerDefinition, LogConfiguration, TaskDefinition
from fargatelite.taskdef.log_options import (
    ALLOWED_OPTIONS,
    MAX_FIRELENS_EVENTS,
    TAG_FIELDS,
    datetime_pattern,
    parse_bool,
    parse_buffer_bytes,
    pattern_error,
    tag_problem,
)
from fargatelite.taskdef.problems import Problems, each_container, problem

__all__ = ["check_logging"]

LOG_DRIVERS = ("awslogs", "splunk", "awsfirelens")
_REQUIRED = {"awslogs": ("awslogs-group", "awslogs-region"), "splunk": ("splunk-url",)}
_BOOLS = {
    "awslogs": ("awslogs-create-group",),
    "splunk": ("splunk-insecureskipverify", "splunk-verify-connection", "splunk-gzip"),
}
_OUTPUT = {"fluentbit": "Name", "fluentd": "@type"}
_GROUP = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}", re.ASCII)
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d", re.ASCII)
_URL = re.compile(r"https?://[^/?#@\s]+/?")


def check_logging(task: TaskDefinition) -> Problems:
    """Drivers, their options, and the router that awsfirelens needs."""
    routers = [item for item in task.containers if item.firelens_configuration is not None]
    for path, container in each_container(task):
        log = container.log_configuration
        if log is not None:
            yield from _check_log(task, f"{path}.logConfiguration", container, log, routers)
        if container.firelens_configuration is not None:
            yield from _check_router(f"{path}.firelensConfiguration", container, routers)


def _check_router(
    where: str, container: ContainerDefinition, routers: list[ContainerDefinition]
) -> Problems:
    firelens = container.firelens_configuration
    assert firelens is not None
    if firelens.type not in _OUTPUT:
        yield problem(
            f"{where}.type", "Invalid firelens type.", firelens.type, "fluentd, fluentbit"
        )
    if container.name != routers[0].name:
        yield problem(where, "Only one container can have a firelens configuration.")
    kind, value = (firelens.options.get(f"config-file-{item}") for item in ("type", "value"))
    if kind not in (None, "file"):
        yield problem(
            f"{where}.options.config-file-type",
            "Fargate supports only the config-file-type 'file'.", kind, "file",
        )  # fmt: skip
    if (kind is None) != (value is None):
        yield problem(
            f"{where}.options", "config-file-type and config-file-value must be given together."
        )
    elif value is not None and (not value.startswith("/") or "\n" in value):
        yield problem(
            f"{where}.options.config-file-value", "Invalid config-file-value.", value,
            "an absolute path in the container",
        )  # fmt: skip
    metadata = firelens.options.get("enable-ecs-log-metadata")
    if metadata is not None and parse_bool(metadata) is None:
        yield problem(
            f"{where}.options.enable-ecs-log-metadata", "Invalid enable-ecs-log-metadata.",
            metadata, "true, false",
        )  # fmt: skip
    for name in firelens.options:
        if name not in ("enable-ecs-log-metadata", "config-file-type", "config-file-value"):
            yield problem(f"{where}.options.{name}", "Invalid firelens option.", name)


def _check_log(
    task: TaskDefinition,
    where: str,
    container: ContainerDefinition,
    log: LogConfiguration,
    routers: list[ContainerDefinition],
) -> Problems:
    driver, options = log.log_driver, log.options
    if driver not in LOG_DRIVERS:
        yield problem(
            f"{where}.logDriver",
            f"{driver} is not a valid log driver. Must be one of [awslogs,splunk,awsfirelens]",
            driver, ", ".join(LOG_DRIVERS),
        )  # fmt: skip
        return
    secret = {item.name for item in log.secret_options}
    missing = [name for name in _REQUIRED.get(driver, ()) if not options.get(name)]
    if driver == "splunk" and "splunk-token" not in secret and not options.get("splunk-token"):
        missing.append("splunk-token")
    if missing:
        yield problem(
            f"{where}.options", f"Log driver {driver} requires options: {', '.join(missing)}"
        )
    if driver in ALLOWED_OPTIONS:
        foreign = sorted(set(options) - ALLOWED_OPTIONS[driver])
        if foreign:
            yield problem(
                f"{where}.options", f"Log driver {driver} disallows options: {', '.join(foreign)}",
                None, ", ".join(sorted(ALLOWED_OPTIONS[driver])),
            )  # fmt: skip
    yield from _check_buffer(where, options)
    for name in _BOOLS.get(driver, ()):
        if name in options and parse_bool(options[name]) is None:
            yield problem(f"{where}.options.{name}", f"Invalid {name}.", options[name],
                          "true, false")  # fmt: skip
    if driver == "awslogs":
        yield from _check_awslogs(task, where, options)
    elif driver == "splunk":
        yield from _check_splunk(where, options)
    else:
        yield from _check_awsfirelens(task, where, container, log, routers)


def _check_buffer(where: str, options: dict[str, str]) -> Problems:
    mode, size = options.get("mode"), options.get("max-buffer-size")
    if mode not in (None, "blocking", "non-blocking"):
        yield problem(
            f"{where}.options.mode", "Invalid log driver mode.", mode, "blocking, non-blocking"
        )
    if size is not None and parse_buffer_bytes(size) is None:
        yield problem(
            f"{where}.options.max-buffer-size", "Invalid max-buffer-size.", size,
            "like 25m, 512k, 1048576",
        )  # fmt: skip
    if size is not None and mode == "blocking":
        # moby daemon/logger/factory.go: ValidateLogOpts
        yield problem(
            f"{where}.options.max-buffer-size",
            "max-buffer-size is only supported with mode non-blocking.", size,
        )  # fmt: skip


def _check_awslogs(task: TaskDefinition, where: str, options: dict[str, str]) -> Problems:
    if not options.get("awslogs-stream-prefix"):
        yield problem(
            f"{where}.options",
            "Fargate requires log configuration options to include awslogs-stream-prefix to "
            "support log driver awslogs.",
        )
    for name, form in (("awslogs-group", _GROUP), ("awslogs-region", _REGION)):
        if options.get(name) and not form.fullmatch(options[name]):
            yield problem(
                f"{where}.options.{name}", f"Invalid {name}.", options[name], form.pattern
            )
    if {"awslogs-datetime-format", "awslogs-multiline-pattern"} <= set(options):
        yield problem(
            f"{where}.options",
            "You cannot configure log opt awslogs-datetime-format and "
            "awslogs-multiline-pattern at the same time.",
        )
    for name in ("awslogs-datetime-format", "awslogs-multiline-pattern"):
        if name not in options:
            continue
        text = options[name]
        error = pattern_error(datetime_pattern(text) if "datetime" in name else text)
        if error is not None:
            yield problem(
                f"{where}.options.{name}",
                f"awslogs could not parse {name.removeprefix('awslogs-')} {text!r}: {error}",
                text, "a regular expression as RE2 and Go have it",
            )  # fmt: skip
    if not task.execution_role_arn:
        yield problem(
            where,
            "Fargate requires task definition to have execution role ARN to support log "
            "driver awslogs.",
        )


def _check_splunk(where: str, options: dict[str, str]) -> Problems:
    url, level = options.get("splunk-url"), options.get("splunk-gzip-level")
    if url and not _URL.fullmatch(url):
        yield problem(
            f"{where}.options.splunk-url",
            "splunk: expected format scheme://dns_name_or_ip:port for splunk-url", url,
        )  # fmt: skip
    if options.get("splunk-format") not in (None, "inline", "json", "raw"):
        yield problem(
            f"{where}.options.splunk-format",
            f"Unknown format specified {options['splunk-format']}, supported formats are inline, "
            "json and raw",
            options["splunk-format"],
            "inline, json, raw",
        )
    if level is not None and level not in [str(number) for number in range(-1, 10)]:
        yield problem(
            f"{where}.options.splunk-gzip-level",
            f"not supported level '{level}' for splunk-gzip-level (supported values between -1 "
            "and 9)",
            level, "-1 to 9",
        )  # fmt: skip
    unknown = tag_problem(options.get("tag", ""))
    if unknown is not None:
        yield problem(
            f"{where}.options.tag", "Invalid tag.", unknown,
            ", ".join("{{." + name + "}}" for name in TAG_FIELDS),
        )  # fmt: skip
    for name in ("labels-regex", "env-regex"):
        error = pattern_error(options.get(name, ""))
        if error is not None:
            yield problem(f"{where}.options.{name}", f"Invalid {name}: {error}", options[name])


def _check_awsfirelens(
    task: TaskDefinition,
    where: str,
    container: ContainerDefinition,
    log: LogConfiguration,
    routers: list[ContainerDefinition],
) -> Problems:
    if not routers:
        yield problem(
            where,
            "When awsfirelens log driver is specified in log configuration, a firelens "
            "configuration object must be configured in one of the containers.",
        )
        return
    router = routers[0]
    if container.name == router.name:
        yield problem(where, "The firelens container cannot send its own logs to itself.")
    limit = log.options.get("log-driver-buffer-limit")
    if limit is not None and not (
        limit.isascii() and limit.isdigit() and len(limit) < 10
        and int(limit) <= MAX_FIRELENS_EVENTS
    ):  # fmt: skip
        yield problem(
            f"{where}.options.log-driver-buffer-limit", "Invalid log-driver-buffer-limit.", limit,
            f"0 to {MAX_FIRELENS_EVENTS}",
        )  # fmt: skip
    # What is written into the router's configuration must stay in its line: a newline would add
    # sections of another container's choosing.
    for name, value in log.options.items():
        if not name or any(ord(letter) < 32 for letter in name + value) or " " in name:
            yield problem(
                f"{where}.options.{name}", "Invalid log option.", repr(value),
                "one line without control characters",
            )  # fmt: skip
    firelens = router.firelens_configuration
    assert firelens is not None
    needs = _OUTPUT.get(firelens.type)
    others = set(log.options) - {
        "include-pattern", "exclude-pattern", "log-driver-buffer-limit", "mode", "max-buffer-size",
    }  # fmt: skip
    if needs is not None and others and needs not in log.options:
        yield problem(
            f"{where}.options",
            f"missing output option {needs} which is required for firelens configuration of type "
            f"{firelens.type}",
        )
    if _reaches(task, router.name, container.name):
        yield problem(
            where, "Container dependencies must not form a cycle.",
            f"{container.name} -> {router.name} (awsfirelens) -> {container.name}",
        )  # fmt: skip


def _reaches(task: TaskDefinition, start: str, goal: str) -> bool:
    """Whether `start` waits for `goal`, directly or through others."""
    depends = {
        item.name: [
            *(entry.container_name for entry in item.depends_on),
            *(entry.source_container or "" for entry in item.volumes_from),
        ]
        for item in task.containers
    }
    seen: set[str] = set()
    waiting = list(depends.get(start, ()))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += depends.get(name, ())
    return goal in seen
