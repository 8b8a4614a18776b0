"""`run --dry-run`: the plans of a task, with nothing but the images fetched."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fargatelite import names
from fargatelite.cgroups.cgroup import Cgroup
from fargatelite.host import Host
from fargatelite.network.slot import slot_for
from fargatelite.rundir import RunDirectory
from fargatelite.runtime.images import open_store
from fargatelite.runtime.inputs import ContainerInputs, TaskInputs
from fargatelite.runtime.launch import make_spec, platform_of
from fargatelite.runtime.trace import Timeline
from fargatelite.sandbox.compile import compile_container
from fargatelite.sandbox.plan import describe_op
from fargatelite.sandbox.seccomp_profile import SeccompProfile
from fargatelite.settings import Settings
from fargatelite.taskdef.launch_type import FARGATE, Policy
from fargatelite.taskdef.load import load_definition
from fargatelite.taskdef.overrides import apply_overrides
from fargatelite.taskdef.store import find_source

__all__ = ["print_plans"]

TASK_ID = names.TaskId("0" * 32)


def print_plans(
    settings: Settings,
    source: Any,
    overrides: Mapping[str, Any] | None,
    pull: str,
    out: IO[str],
    policy: Policy = FARGATE,
    seccomp: SeccompProfile | None = None,
) -> int:
    """Writes each container's plan, one operation a line; values of variables are not shown.

    Ids, address and paths are those of a made-up task. Images are pulled into the store (the plan
    depends on their configuration), with the definition's logins; no secret or environment file is
    read, nothing is mounted, no group, interface or process is made.
    """
    loaded = load_definition(find_source(settings, source), policy)
    definition = apply_overrides(loaded, dict(overrides) if overrides else None, policy)
    store = open_store(settings)
    host = Host.probe()
    run = RunDirectory(settings.runs, TASK_ID)
    slot = slot_for(0, TASK_ID, "192.0.2.0/24")
    inputs = TaskInputs(settings, definition, TASK_ID, Timeline(), threading.Event())
    inputs.begin(only_logins=True)
    for number, container in enumerate(definition.containers):
        image = store.pull(
            container.image,
            policy=pull,
            platform=platform_of(definition),
            credentials=inputs.registry_credentials(container),
        )
        path = names.cgroup_path(TASK_ID, container.name)
        spec = make_spec(
            settings=settings,
            host=host,
            run=run,
            slot=slot,
            cgroup=Cgroup(
                path=path,
                version=2,
                join_files=(),
                clone_into=f"/sys/fs/cgroup/{path}",
                cpu_usage_file="",
                memory_usage_file="",
                memory_peak_file=None,
            ),
            definition=definition,
            container=container,
            number=number,
            image=image,
            image_path=Path(settings.run_root, "images", image.image_id.partition(":")[2], "fs"),
            inputs=ContainerInputs(secrets={item.name: "<secret>" for item in container.secrets}),
            trace=False,
            launch_type=policy.name,
            seccomp=seccomp,
        )
        out.write(f"# {container.name}: {container.image} ({image.digest})\n")
        if seccomp is not None:
            out.write("# system calls are filtered by the profile of --seccomp\n")
        for file in container.environment_files:
            out.write(f"# variables of {file.value}, read when the task starts\n")
        for secret in container.secrets:
            out.write(f"# {secret.name}=<secret> of {secret.value_from}\n")
        for item in compile_container(spec):
            out.write(describe_op(item) + "\n")
        out.write("\n")
    return 0
