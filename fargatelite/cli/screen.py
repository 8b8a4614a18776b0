"""What `run` shows while a task lives: pull progress, states, log lines, CPU and memory.

On a terminal, bars and a status line stay below the scrolling text (rich); in a pipe or file each
change is one plain line. States and progress are talk and go to stderr; log lines are data.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from fargatelite.cli.tables import (
    format_bytes,
    is_terminal,
    make_printable,
    print_table,
)
from fargatelite.runtime.events import (
    ContainerEvent,
    Event,
    LogsDroppedEvent,
    PullEvent,
    TaskEvent,
    WaitingEvent,
)
from fargatelite.runtime.handle import Task
from fargatelite.runtime.logs import LogLine

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["STATS_PERIOD_S", "Screen", "make_progress"]

STATS_PERIOD_S = 1.0

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


_ROOM_FOR_ALL_COLUMNS = 80  # a pull's row has 75; a narrower one would be cut with an ellipsis


def make_progress(stream: IO[str], columns: int | None = None) -> Progress:
    """The bars of a pull, as wide as the terminal allows; `columns` None: ask it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    console = Console(file=stream, highlight=False, width=columns)
    name = TextColumn("{task.description}")
    if console.width < _ROOM_FOR_ALL_COLUMNS:
        part = TextColumn("{task.percentage:>3.0f}%")
        return Progress(name, BarColumn(bar_width=8), part, console=console)
    return Progress(
        name,
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
    )


class Screen:
    """Shows events and log lines of one task; a context manager, used from one thread."""

    def __init__(self, task: Task, logs: IO[str]) -> None:
        self._task = task
        self._logs = logs
        self._talk = sys.stderr
        self._is_live = is_terminal(self._talk)
        self._width = max(len(name) for name in ("task", *task.containers))
        self._log_width = max(map(len, task.containers))
        self._colours = dict(zip(task.containers, _COLOURS * 2, strict=False))
        self._partial: dict[tuple[str, str], bytes] = {}
        self._layers: dict[str, Any] = {}
        self._known_layers: set[str] = set()
        self._next_stats = 0.0
        self._last_stats: dict[str, tuple[float, int]] = {}
        self._live: Any = None
        self._console: Any = None

    def __enter__(self) -> Screen:
        if self._is_live:
            from rich.console import Group
            from rich.live import Live
            from rich.text import Text

            self._progress = make_progress(self._talk)
            self._console = self._progress.console
            self._status = Text(style="dim")
            self._live = Live(
                Group(self._progress, self._status),
                console=self._console,
                transient=True,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for container, stream in list(self._partial):
            self._write_log(container, self._partial.pop((container, stream)))
        if self._live is not None:
            self._live.stop()

    # ---- events ----

    def show(self, item: Event | LogLine) -> None:
        """Shows one event or log record."""
        match item:
            case LogLine():
                self._show_log(item)
            case PullEvent():
                self._show_pull(item)
            case ContainerEvent():
                self._show_container(item)
            case TaskEvent():
                self._say("task", f"{item.last_status}", style="bold")
            case WaitingEvent():
                self._say("task", f"waits for capacity: {item.reason}, {item.ahead} ahead")
            case LogsDroppedEvent():
                unread = f" and {item.unread_bytes} unread bytes" if item.unread_bytes else ""
                self._say(
                    item.container,
                    f"{item.log_driver} lost {item.records} records{unread}: {item.reason}",
                )

    def _say(self, name: str, text: str, style: str = "") -> None:
        text = make_printable(text)
        if self._console is not None:
            from rich.text import Text

            label = (f"{name:<{self._width}}  ", self._colours.get(name, "bold"))
            self._console.print(Text.assemble(label, (text, style)), soft_wrap=True)
        else:
            self._talk.write(f"{name:<{self._width}}  {text}\n")
            self._talk.flush()

    def _show_container(self, event: ContainerEvent) -> None:
        words = [event.last_status]
        if event.health_status != "UNKNOWN":
            words.append(event.health_status)
        if event.exit_code is not None:
            words.append(f"exit code {event.exit_code}")
        if event.reason:
            words.append(f"({event.reason})")
        self._say(event.container, " ".join(words), style="dim")

    def _show_pull(self, event: PullEvent) -> None:
        short = event.layer.removeprefix("sha256:")[:12]
        if self._console is None:
            if event.phase in ("done", "exists") and event.layer not in self._known_layers:
                self._known_layers.add(event.layer)
                self._say("pull", f"{short} {event.phase} {format_bytes(event.total_bytes)}")
            return
        if event.phase not in ("download", "done"):
            return
        bar = self._layers.get(event.layer)
        if bar is None:
            bar = self._layers[event.layer] = self._progress.add_task(
                f"pull {short}", total=event.total_bytes
            )
        self._progress.update(
            bar,
            completed=event.total_bytes if event.phase == "done" else event.done_bytes,
            visible=event.phase != "done",
        )
        if event.phase == "done" and event.layer not in self._known_layers:
            self._known_layers.add(event.layer)
            self._say("pull", f"{short} {format_bytes(event.total_bytes)}", style="dim")

    # ---- logs ----

    def _show_log(self, line: LogLine) -> None:
        key = (line.container, line.stream)
        text = self._partial.pop(key, b"") + line.text
        # A line without end must not wait for ever: what is longer than a screen goes out.
        if line.is_partial and len(text) < 8192:
            self._partial[key] = text
            return
        self._write_log(line.container, text)

    def _write_log(self, container: str, text: bytes) -> None:
        shown = text.decode("utf-8", "replace")
        # What a container prints must not drive the user's terminal; a pipe gets it unchanged.
        if self._console is not None and is_terminal(self._logs):
            from rich.text import Text

            label = (f"{container:<{self._log_width}} | ", self._colours.get(container, ""))
            written = Text.from_ansi(_without_controls(shown))
            self._console.print(Text.assemble(label, written), soft_wrap=True)
        else:
            self._logs.write(f"{container:<{self._log_width}} | {shown}\n")
            self._logs.flush()

    # ---- stats ----

    def refresh_stats(self) -> None:
        """Shows CPU and memory in the status line, read anew when the last reading is a second old;
        nothing in a pipe."""
        now = time.monotonic()
        if self._live is None or now < self._next_stats:
            return
        self._next_stats = now + STATS_PERIOD_S
        parts = []
        for name, values in self._task.stats().items():
            if not name or self._task.containers[name].last_status != "RUNNING":
                continue
            cpu = values["cpu_usage_ns"]
            before = self._last_stats.get(name)
            self._last_stats[name] = (now, cpu)
            if before is not None and now > before[0]:
                percent = (cpu - before[1]) / 1e9 / (now - before[0]) * 100
                parts.append(
                    f"{name} cpu {percent:.0f}% mem {format_bytes(values['memory_bytes'])}"
                )
        self._status.plain = "   ".join(parts)

    # ---- the end ----

    def summarise(self, *, with_trace: bool) -> None:
        """Exit codes, where the launch time went, and the bill, on stderr."""
        out, task = self._talk, self._task
        out.write("\n")
        if task.stopped_reason:
            out.write(f"{task.stop_code}: {make_printable(task.stopped_reason)}\n\n")
        print_table(
            ("CONTAINER", "EXIT CODE", "HEALTH", "REASON"),
            [
                (
                    container.name,
                    "-" if container.exit_code is None else str(container.exit_code),
                    container.health_status,
                    container.reason or "",
                )
                for container in task.containers.values()
            ],
            right=("EXIT CODE",),
            stream=out,
        )
        out.write("\n")
        self._print_phases(with_trace)
        self._print_bill()

    def _print_phases(self, with_trace: bool) -> None:
        phases = sorted(self._task.phases, key=lambda phase: phase.started_us)
        shown = [phase for phase in phases if with_trace or not phase.name.startswith("remove ")]
        print_table(
            ("LAUNCH PHASE", "AT", "TOOK"),
            [
                (
                    phase.name,
                    f"{phase.started_us / 1000:.1f} ms",
                    f"{phase.duration_us / 1000:.2f} ms",
                )
                for phase in shown
            ],
            right=("AT", "TOOK"),
            stream=self._talk,
        )
        self._talk.write("\n")
        if with_trace:
            for name, rows in self._task.op_traces.items():
                print_table(
                    (f"PLAN OF {name}", "US"),
                    [(text[:140], str(us)) for text, us in rows],
                    right=("US",),
                    stream=self._talk,
                )
                self._talk.write("\n")

    def _print_bill(self) -> None:
        from fargatelite.cli.bill import print_bill

        print_bill(self._task.bill(), self._talk)


def _without_controls(text: str) -> str:
    """Colours may stay (rich parses them); what moves the cursor or sets a title may not."""
    return "".join(
        c if c.isprintable() or c in "\t\x1b" else f"\\x{ord(c):02x}" for c in text.rstrip("\r")
    )
