"""docs/fargate-compatibility.md: a row per field, made from fields.py, compatibility.toml and the
marks of tests (`python -m fargatelite.taskdef.compatibility`, `make docs`).

A field appears as supported when a test is marked with it: `@pytest.mark.field("a.b", ...)`. Marks
are read from the source, so that no test is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from fargatelite.taskdef.explain import all_fields, find_fields, texts
from fargatelite.taskdef.markers import Effect, Marker, Recorded, Refused

__all__ = ["collect_marks", "render", "untested_fields"]

REFUSED_TEST = (
    "tests/unit/taskdef/test_properties.py::test_every_refused_member_is_refused_with_its_message"
)
RECORDED_TEST = "tests/unit/taskdef/test_properties.py::test_what_is_recorded_is_shown_again"

HEAD = """# Fargate compatibility

Made by `make docs` from `fargatelite/taskdef/fields.py`, `compatibility.toml` and the tests that
are marked with a field; do not edit. `fargatelite definition explain FIELD` shows a row with type,
default and values. Lists are written `[]`.

A field is *supported* only where a test shows its effect; *no test* means that there is code for it
and nothing that holds it. *Refused* is what Fargate refuses too, in the same words, or what this
host cannot have; *recorded* is kept and shown, and the reason says why there is nothing to do. What
launch type EC2 does with a refused field stands behind it.

"""


class MarkUnknown(ValueError):
    """A test is marked with what is no field, or may be several."""


def _names(decorator: ast.expr) -> list[str]:
    """The arguments of `pytest.mark.field(...)`."""
    if (
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr == "field"
        and isinstance(decorator.func.value, ast.Attribute)
        and decorator.func.value.attr == "mark"
    ):
        return [str(item.value) for item in decorator.args if isinstance(item, ast.Constant)]
    return []


def collect_marks(tests: Path) -> dict[str, list[str]]:
    """Tests by the path of the field that they are marked with, such as `tests/a.py::test_b`.

    Raises: MarkUnknown.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            test = f"{file.relative_to(tests.parent).as_posix()}::{node.name}"
            for decorator in node.decorator_list:
                for name in _names(decorator):
                    paths = find_fields(name)
                    if len(paths) != 1:
                        raise MarkUnknown(f"{test}: {name!r} is {' or '.join(paths) or 'no field'}")
                    found.setdefault(paths[0], []).append(test)
    return found


def _tests_of(path: str, marks: Mapping[str, list[str]]) -> list[str]:
    """A structure that has no test of its own is shown by whatever shows a member of it."""
    if path in marks:
        return marks[path]
    below = tuple(f"{path}{sign}" for sign in (".", "[]."))
    tests = [test for marked, found in marks.items() if marked.startswith(below) for test in found]
    return list(dict.fromkeys(tests))


def untested_fields(marks: Mapping[str, list[str]]) -> list[str]:
    """Fields with an effect, on Fargate or EC2, that no test shows."""
    return [
        path
        for path, member in all_fields().items()
        if isinstance(_effective(member.marker), Effect) and not _tests_of(path, marks)
    ]


def _effective(marker: Marker) -> Marker:
    return marker.on_ec2 if isinstance(marker, Refused) else marker


def _here(marker: Marker, *, is_tested: bool) -> str:
    match marker:
        case Effect(function=function):
            return f"{'supported' if is_tested else '*no test*'}: `{function}`"
        case Recorded(reason=reason):
            return f"recorded: {reason}"
        case Refused(message=message, on_ec2=Refused(message=second)):
            also = f"; EC2: refused: {second}" if second != message else ""
            return f"refused: {message}{also}"
        case Refused(message=message, on_ec2=on_ec2):
            return f"refused: {message}; EC2: {_here(on_ec2, is_tested=is_tested)}"
        case _:
            return "not supported yet"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def render(marks: Mapping[str, list[str]]) -> str:
    """The page."""
    rows = ["| Field | Fargate | Here | Shown by |", "|---|---|---|---|"]
    for path, member in all_fields().items():
        tests = _tests_of(path, marks)
        shown = tests[:3]
        if isinstance(member.marker, Refused):
            shown = [REFUSED_TEST, *tests[:2]]
        elif isinstance(member.marker, Recorded):
            shown = [RECORDED_TEST]
        listed = ", ".join(f"`{test.removeprefix('tests/')}`" for test in shown)
        if len(tests) > 3 and shown == tests[:3]:
            listed += f" and {len(tests) - 3} more"
        here = _here(member.marker, is_tested=bool(tests))
        rows.append(f"| `{path}` | {_cell(texts()[path])} | {_cell(here)} | {listed} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    """Writes the page of this clone."""
    root = Path(__file__).parents[2]
    page = render(collect_marks(root / "tests"))
    (root / "docs" / "fargate-compatibility.md").write_text(page)


if __name__ == "__main__":
    main()
