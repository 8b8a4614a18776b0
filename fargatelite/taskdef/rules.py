"""Fargate's rules about values, a function each; messages are the service's (contract 1, 2.9)."""

from __future__ import annotations

import re
from collections.abc import Callable

from fargatelite.taskdef.fields import TaskDefinition
from fargatelite.taskdef.launch_type import Policy
from fargatelite.taskdef.problems import Problem, Problems, each_container, problem
from fargatelite.taskdef.rules_aws import AWS_RULES
from fargatelite.taskdef.rules_container import CONTAINER_RULES, check_names
from fargatelite.taskdef.rules_host import check_host_members, check_modes
from fargatelite.taskdef.rules_logging import check_logging
from fargatelite.taskdef.rules_resources import RESOURCE_RULES
from fargatelite.taskdef.sizes import SIZES

__all__ = ["check_compatibilities", "check_network_mode", "check_platform", "check_rules"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)
_TAG = re.compile(r"[\w\s.:/=+@-]*")
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


def check_network_mode(task: TaskDefinition, policy: Policy) -> Problems:
    """On Fargate only awsvpc, and not by default."""
    if task.network_mode not in policy.network_modes:
        yield problem(
            "networkMode",
            "Fargate only supports network mode ‘awsvpc’.",
            task.network_mode or "absent",
            "awsvpc",
        )


def check_compatibilities(task: TaskDefinition, policy: Policy) -> Problems:
    """Contract 2.1: a definition for EC2 alone is not one for Fargate."""
    if task.requires_compatibilities and policy.name not in task.requires_compatibilities:
        yield problem(
            "requiresCompatibilities",
            f"Task definition does not support launch_type {policy.name}.",
            ", ".join(task.requires_compatibilities),
            f"{policy.name} among them",
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


def check_memory(task: TaskDefinition) -> Problems:
    """Somewhere there must be a limit; the service looks at this before the pair (contract 1)."""
    for path, container in each_container(task):
        has_memory = container.memory_mib is not None
        if not (has_memory or container.memory_reservation_mib is not None or task.memory_mib):
            yield problem(
                path,
                f"Invalid setting for container '{container.name}'. At least one of 'memory' "
                "or 'memoryReservation' must be specified.",
            )


def check_size(task: TaskDefinition, policy: Policy) -> Problems:
    """The 77 pairs (contract 1)."""
    if not policy.has_sizes:
        return
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


def check_shares(task: TaskDefinition) -> Problems:
    """What containers ask of their task's size (contract 1)."""
    asked = sum(container.cpu_units for container in task.containers)
    if task.cpu_units and asked > task.cpu_units:
        yield problem(
            "containerDefinitions",
            "The sum of all container 'cpu' values cannot be greater than the value of the task "
            "'cpu'.",
            asked,
            f"at most {task.cpu_units}",
        )
    for path, container in each_container(task):
        hard = container.memory_mib
        if hard is not None and task.memory_mib and hard > task.memory_mib:
            yield problem(
                f"{path}.memory",
                f"The 'memory' setting for container '{container.name}' is greater than for the "
                "task",
                hard,
                f"at most {task.memory_mib}",
            )


def check_ephemeral_storage(task: TaskDefinition, policy: Policy) -> Problems:
    """21 to 200 GiB; 20 is the default and not a value."""
    if task.ephemeral_storage is None:
        return
    size = task.ephemeral_storage.size_gib
    path = "ephemeralStorage.sizeInGiB"
    if size < 21:
        yield problem(path, "EphemeralStorage size should be at least 21", size, "21 to 200")
    elif policy.max_ephemeral_storage_gib is not None and size > policy.max_ephemeral_storage_gib:
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
        if not tag.key:
            yield problem(
                f"tags[{index}].key",
                f"Invalid length for parameter tags[{index}].key, value: 0, valid min length: 1",
                repr(tag.key), "1 to 128 characters",
            )  # fmt: skip
        if len(tag.key) > 128:
            yield problem(f"tags[{index}].key", "Invalid tag key.", repr(tag.key), "1 to 128")
        if not _TAG.fullmatch(tag.key + tag.value):
            yield problem(
                f"tags[{index}]", "Tag contains invalid characters.", repr(tag.key),
                "letters, digits, spaces and _ . : / = + - @",
            )  # fmt: skip
        if len(tag.value) > 256:
            yield problem(f"tags[{index}].value", "Invalid tag value.", None, "at most 256")


Rule = Callable[[TaskDefinition, Policy], Problems]


def _for_any(rule: Callable[[TaskDefinition], Problems]) -> Rule:
    return lambda task, policy: rule(task)


def _proxy(task: TaskDefinition) -> Problems:
    """Contract 2.1: the proxy is one of the containers."""
    proxy = task.proxy_configuration
    names = {container.name for container in task.containers}
    if proxy is not None and proxy.container_name not in names:
        yield problem(
            "proxyConfiguration.containerName",
            f"Proxy container '{proxy.container_name}' is not a container in the TaskDefinition.",
            proxy.container_name, ", ".join(sorted(names)),
        )  # fmt: skip


# In the order in which the service looks, as far as it is known (contract 1: memory before the
# pair); unknown places follow the tables of contract 2.9. Members that a launch type refuses as a
# whole are looked at between FIRST_RULES and the others.
FIRST_RULES: tuple[Rule, ...] = (
    _for_any(check_family),
    _for_any(check_containers),
    _for_any(check_names),
    _for_any(check_memory),
    check_compatibilities,
    check_network_mode,
)
LATER_RULES: tuple[Rule, ...] = (
    check_size,
    _for_any(check_shares),
    *CONTAINER_RULES,
    check_ephemeral_storage,
    _for_any(check_execution_role),
    _for_any(check_platform),
    _for_any(_proxy),
    *(_for_any(rule) for rule in (*AWS_RULES, *RESOURCE_RULES, check_logging)),
    check_modes,
    check_host_members,
    _for_any(check_tags),
)


def check_rules(task: TaskDefinition, policy: Policy) -> tuple[list[Problem], list[Problem]]:
    """All rules that the definition breaks: those that the service looks at before the members that
    the launch type refuses, and those after."""
    return (
        [found for rule in FIRST_RULES for found in rule(task, policy)],
        [found for rule in LATER_RULES for found in rule(task, policy)],
    )
