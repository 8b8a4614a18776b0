"""How a failure is worded and numbered where users of ECS, Docker and podman look for it."""

from __future__ import annotations

import errno
import os
import signal

from fargatelite.sandbox.compile import describe_rlimit
from fargatelite.sandbox.plan import Plan, describe_op
from fargatelite.shim import Failure

__all__ = ["describe_failure", "reason_of", "start_failure_exit_code", "stop_signal_of"]

_SIGNALS = dict(signal.Signals.__members__)


def stop_signal_of(text: str | None) -> int:
    """The number of an image's STOPSIGNAL (`SIGQUIT`, `QUIT` or `3`); SIGTERM for none or an
    unknown one (contract 3.6)."""
    if not text:
        return signal.SIGTERM
    if text.isascii() and text.isdigit():
        number = int(text)
        return number if 0 < number < signal.NSIG else signal.SIGTERM
    name = text.upper()
    return _SIGNALS.get(name if name.startswith("SIG") else f"SIG{name}", signal.SIGTERM)


def describe_failure(failure: Failure, plan: Plan, what: str) -> str:
    """What failed, on what, as one line for `reason`."""
    error = os.strerror(failure.errno)
    if failure.op_index is None or failure.op_index >= len(plan):
        return f"{what}: {failure.call} {failure.path}: {error}"
    item = plan[failure.op_index]
    if item.name.startswith("exec"):
        # The text that Docker and Fargate users know.
        return f'{what}: exec: "{failure.path}": {_exec_error(failure.errno, failure.path)}'
    if item.name == "rlimit" and failure.errno == errno.EPERM:
        return (
            f"{what}: ulimit {describe_rlimit(item)} is more than this host may give: run with "
            "CAP_SYS_RESOURCE or a higher hard limit, or ask for less; see `fargatelite check`"
        )
    if failure.call == "mount_setattr (id-map)" and failure.errno == errno.EINVAL:
        error = "its file system cannot be mounted with mapped user ids"
    return (
        f"{what}: {failure.call} {failure.path}: {error} "
        f"(operation {failure.op_index}: {describe_op(item)[:200]})"
    )


def _exec_error(number: int, program: str) -> str:
    if number in (errno.ENOENT, errno.ENOTDIR):
        return (
            "no such file or directory" if "/" in program else "executable file not found in $PATH"
        )
    if number == errno.ENOEXEC:
        return "exec format error"
    return os.strerror(number).lower()


def start_failure_exit_code(failure: Failure, plan: Plan) -> int | None:
    """127 for a program that is not there, 126 for one that cannot be run, as podman and sh; None
    when the sandbox failed before."""
    if failure.op_index is None or not plan[failure.op_index].name.startswith("exec"):
        return None
    return 127 if failure.errno in (errno.ENOENT, errno.ENOTDIR) else 126


def reason_of(error: Exception, prefix: str) -> str:
    """`Prefix: detail`, as ECS words it (contract 3.2)."""
    name = getattr(error, "ecs_name", None) or prefix
    return f"{name}: {error}"
