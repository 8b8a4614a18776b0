"""Fargate's rules about values, a function each; messages are the service's (contract 1, 2.9)."""

from __future__ import annotations

import re
from collections.abc import Callable

from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.problems import Problem, Problems, each_container, problem
from fargatelite.taskdef.rules_container import CONTAINER_RULES
from fargatelite.taskdef.rules_resources import RESOURCE_RULES
from fargatelite.taskdef.sizes import SIZES

__all__ = ["check_network_mode", "check_platform", "check_rules"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)
_ECR = re.compile(r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/", re.ASCII)


def check_family(task: TaskDefinition) -> Problems:
    """Contract 2.1."""
    if not _NAME.fullmatch(task.family):
        yield problem(
            "family",
            "Family contains invalid characters." if task.family else "Family cannot be empty.",
            repr(task.family),
            "1 to 255 letters, digits, - and _",
        )


def check_containers(task: TaskDefinition) -> Problems:
    """1 to 10, one essential, unique names."""
    if not task.containers:
        yield problem("containerDefinitions", "Container list cannot be empty")
        return
    if len(task.containers) > 10:
        yield problem(
            "containerDefinitions",
            "Task definition has too many containers.",
            len(task.containers),
            "at most 10",
        )
    if not any(container.essential for container in task.containers):
        yield problem(
            "containerDefinitions", "Task definition doesn't have any essential container"
        )
    seen: set[str] = set()
    for path, container in each_container(task):
        if container.name and container.name in seen:
            yield problem(
                f"{path}.name",
                "Container names must be unique within a task definition",
                container.name,
            )
        seen.add(container.name)


def check_network_mode(task: TaskDefinition) -> Problems:
    """Only awsvpc, and not by default."""
    if task.network_mode != "awsvpc":
        yield problem(
            "networkMode",
            "Fargate only supports network mode ‘awsvpc’.",
            task.network_mode or "absent",
            "awsvpc",
        )


def check_compatibilities(task: TaskDefinition) -> Problems:
    """Contract 2.1: known names; a definition for EC2 alone is not one for Fargate."""
    known = ("EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES")
    for index, name in enumerate(task.requires_compatibilities):
        if name not in known:
            yield problem(
                f"requiresCompatibilities[{index}]", f"Invalid compatibility: {name}", name,
                ", ".join(known),
            )  # fmt: skip
    if task.requires_compatibilities and "FARGATE" not in task.requires_compatibilities:
        yield problem(
            "requiresCompatibilities",
            "Task definition does not support launch_type FARGATE.",
            ", ".join(task.requires_compatibilities),
            "FARGATE among them",
        )


def check_platform(task: TaskDefinition) -> Problems:
    """Linux on x86 or ARM; Windows is out of scope."""
    platform = task.runtime_platform
    if platform is None:
        return
    if platform.operating_system_family != "LINUX":
        yield problem(
            "runtimePlatform.operatingSystemFamily",
            "operatingSystemFamily is not supported on this host.",
            platform.operating_system_family,
            "LINUX",
        )
    if platform.cpu_architecture not in ("X86_64", "ARM64"):
        yield problem(
            "runtimePlatform.cpuArchitecture", "Invalid cpuArchitecture.",
            platform.cpu_architecture, "X86_64, ARM64",
        )  # fmt: skip


def check_size(task: TaskDefinition) -> Problems:
    """The 77 pairs, and what containers ask of them (contract 1)."""
    for path, container in each_container(task):
        has_memory = container.memory_mib is not None
        if not (has_memory or container.memory_reservation_mib is not None or task.memory_mib):
            yield problem(
                path,
                f"Invalid setting for container '{container.name}'. At least one of 'memory' "
                "or 'memoryReservation' must be specified.",
            )
    if not task.cpu_units:
        yield problem("cpu", "Fargate requires that 'cpu' be defined at the task level.")
    if not task.memory_mib:
        yield problem("memory", "Fargate requires that 'memory' be defined at the task level.")
    if not task.cpu_units or not task.memory_mib:
        return
    if task.memory_mib not in SIZES.get(task.cpu_units, ()):
        allowed = SIZES.get(task.cpu_units)
        yield problem(
            "memory" if allowed else "cpu",
            f"No Fargate configuration exists for given values: {task.cpu_units} CPU, "
            f"{task.memory_mib} memory. See the Amazon ECS documentation for the valid values.",
            f"{task.cpu_units} CPU, {task.memory_mib} memory",
            f"with {task.cpu_units} CPU: {', '.join(map(str, allowed))} MiB"
            if allowed
            else f"cpu: {', '.join(map(str, SIZES))}",
        )
    if sum(container.cpu_units for container in task.containers) > task.cpu_units:
        yield problem(
            "containerDefinitions",
            "The sum of all container 'cpu' values cannot be greater than the value of the task "
            "'cpu'.",
            sum(container.cpu_units for container in task.containers),
            f"at most {task.cpu_units}",
        )
    for path, container in each_container(task):
        if container.memory_mib is not None and container.memory_mib > task.memory_mib:
            yield problem(
                f"{path}.memory",
                f"The 'memory' setting for container '{container.name}' is greater than for the "
                "task",
                container.memory_mib,
                f"at most {task.memory_mib}",
            )


def check_ephemeral_storage(task: TaskDefinition) -> Problems:
    """21 to 200 GiB; 20 is the default and not a value."""
    if task.ephemeral_storage is None:
        return
    size = task.ephemeral_storage.size_gib
    path = "ephemeralStorage.sizeInGiB"
    if size < 21:
        yield problem(path, "EphemeralStorage size should be at least 21", size, "21 to 200")
    elif size > 200:
        yield problem(path, "EphemeralStorage size should be at most 200", size, "21 to 200")


def check_execution_role(task: TaskDefinition) -> Problems:
    """Contract 2.9: required for images in ECR."""
    if task.execution_role_arn:
        return
    for path, container in each_container(task):
        if _ECR.match(container.image):
            yield problem(
                f"{path}.image",
                "Fargate requires task definition to have execution role ARN to support ECR "
                "images.",
                container.image,
            )


def check_tags(task: TaskDefinition) -> Problems:
    """Contract 2.1: at most 50, key 1 to 128 and value up to 256 characters."""
    if len(task.tags) > 50:
        yield problem("tags", "Too many tags.", len(task.tags), "at most 50")
    for index, tag in enumerate(task.tags):
        if not 1 <= len(tag.key) <= 128:
            yield problem(f"tags[{index}].key", "Invalid tag key.", repr(tag.key), "1 to 128")
        if len(tag.value) > 256:
            yield problem(f"tags[{index}].value", "Invalid tag value.", None, "at most 256")


RULES: tuple[Callable[[TaskDefinition], Problems], ...] = (
    check_family,
    check_containers,
    check_network_mode,
    check_compatibilities,
    check_platform,
    check_size,
    check_ephemeral_storage,
    check_execution_role,
    check_tags,
    *CONTAINER_RULES,
    *RESOURCE_RULES,
)


def check_rules(task: TaskDefinition) -> list[Problem]:
    """All rules that the definition breaks."""
    return [found for rule in RULES for found in rule(task)]
