"""fargatelite runs Amazon ECS task definitions on any Linux host with Fargate's semantics.

    import fargatelite

    with fargatelite.run_task("task.json") as task:
        print(task.wait(), task.bill().cost)

Names are loaded on first use (PEP 562), so importing this costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fargatelite.errors import FargateliteError, InvalidTaskDefinition
    from fargatelite.runtime.api import run_task
    from fargatelite.runtime.handle import Container, RecordedTask, Task, find_task
    from fargatelite.runtime.prepared import prepare_sandboxes
    from fargatelite.settings import Settings, load_settings
    from fargatelite.taskdef.fields import TaskDefinition
    from fargatelite.taskdef.load import load_definition

_MODULES = {
    "Container": "runtime.handle",
    "FargateliteError": "errors",
    "InvalidTaskDefinition": "errors",
    "RecordedTask": "runtime.handle",
    "Settings": "settings",
    "Task": "runtime.handle",
    "TaskDefinition": "taskdef.fields",
    "find_task": "runtime.handle",
    "load_definition": "taskdef.load",
    "load_settings": "settings",
    "prepare_sandboxes": "runtime.prepared",
    "run_task": "runtime.api",
}

__all__ = [
    "Container",
    "FargateliteError",
    "InvalidTaskDefinition",
    "RecordedTask",
    "Settings",
    "Task",
    "TaskDefinition",
    "find_task",
    "load_definition",
    "load_settings",
    "prepare_sandboxes",
    "run_task",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
