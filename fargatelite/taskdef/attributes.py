"""What ECS derives from a definition when it is registered: `requiresAttributes` and
`compatibilities`. Pure. Names are of contract 2.1."""

from __future__ import annotations

from fargatelite.taskdef.fields import ContainerDefinition, TaskDefinition

__all__ = ["required_attributes"]

_CAPABILITY = "com.amazonaws.ecs.capability."
_ECR = ".dkr.ecr"


def _of_container(container: ContainerDefinition, *, has_role: bool) -> set[str]:
    names = set()
    if _ECR in container.image.partition("/")[0]:
        names.add(f"{_CAPABILITY}ecr-auth")
        if has_role:
            names.add("ecs.capability.execution-role-ecr-pull")
    log = container.log_configuration
    if log is not None:
        names.add(f"{_CAPABILITY}logging-driver.{log.log_driver}")
        if log.log_driver == "awslogs" and has_role:
            names.add("ecs.capability.execution-role-awslogs")
    if container.depends_on:
        names.add("ecs.capability.container-ordering")
    if container.health_check is not None:
        names.add("ecs.capability.container-health-check")
    for secret in container.secrets:
        service = "asm" if ":secretsmanager:" in secret.value_from else "ssm"
        names.add(f"ecs.capability.secrets.{service}.environment-variables")
    if container.repository_credentials is not None:
        names.add("ecs.capability.private-registry-authentication.secretsmanager")
    if container.restart_policy is not None and container.restart_policy.enabled:
        names.add("ecs.capability.container-restart-policy")
    if container.firelens_configuration is not None:
        names.add(f"ecs.capability.firelens.{container.firelens_configuration.type}")
    return names


def required_attributes(definition: TaskDefinition) -> list[dict[str, str]]:
    """`requiresAttributes`, by name."""
    has_role = bool(definition.execution_role_arn)
    names = {f"{_CAPABILITY}docker-remote-api.1.18"}
    if definition.network_mode == "awsvpc":
        names.add("ecs.capability.task-eni")
    if definition.task_role_arn:
        names.add(f"{_CAPABILITY}task-iam-role")
    for container in definition.containers:
        names |= _of_container(container, has_role=has_role)
    return [{"name": name} for name in sorted(names)]
