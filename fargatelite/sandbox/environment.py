"""The environment of a container's process, in Fargate's order of precedence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["DEFAULT_PATH", "compose_environment", "exec_candidates"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Docker's, where neither image nor definition sets PATH."""


def compose_environment(
    *,
    image: Iterable[str],
    injected: Mapping[str, str],
    files: Mapping[str, str],
    definition: Iterable[tuple[str, str]],
    hostname: str,
    home: str,
) -> dict[str, str]:
    """The variables of a process: image ENV < injected < environment files < definition,
    overrides and secrets.

    PATH, HOSTNAME and HOME are there as Docker sets them. AWS_REGION and AWS_DEFAULT_REGION are
    not injected when image, file or definition sets either.
    Source: contract 4.7.
    """
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    from_image = dict(text.partition("=")[::2] for text in image)
    from_definition = dict(definition)
    variables.update(from_image)
    regions = {"AWS_REGION", "AWS_DEFAULT_REGION"}
    is_region_set = not regions.isdisjoint({*from_image, *files, *from_definition})
    for name, value in injected.items():
        if not (is_region_set and name in regions):
            variables[name] = value
    variables.update(files)
    variables.update(from_definition)
    variables.setdefault("HOME", home)
    return variables


def exec_candidates(program: str, path: str, working_directory: str) -> tuple[str, ...]:
    """The files to try for `program`, in order, as execvp(3) does with the container's PATH."""
    if "/" in program:
        return (program,)
    return tuple(
        f"{directory or working_directory}/{program}" for directory in path.split(":")
    ) or (program,)
