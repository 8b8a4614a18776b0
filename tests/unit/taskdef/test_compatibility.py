"""docs/fargate-compatibility.md is current, and what explain says is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fargatelite.errors import UnknownField
from fargatelite.taskdef.compatibility import (
    RECORDED_TEST,
    REFUSED_TEST,
    MarkUnknown,
    collect_marks,
    render,
    untested_fields,
)
from fargatelite.taskdef.explain import all_fields, explain, find_fields, texts

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "fargate-compatibility.md"

# Fields with code and no marked test. Take lines away, add none.
UNTESTED: set[str] = set()


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == render(collect_marks(ROOT / "tests")), "run: make docs"


def test_every_effect_has_a_test_or_is_known_to_have_none() -> None:
    assert set(untested_fields(collect_marks(ROOT / "tests"))) == UNTESTED


def test_a_field_without_a_test_is_not_called_supported() -> None:
    assert "supported: `" not in render({})
    assert "*no test*: `" in render({})


def test_every_field_has_its_text_and_no_other() -> None:
    assert set(texts()) == set(all_fields())


@pytest.mark.parametrize("test", [REFUSED_TEST, RECORDED_TEST])
def test_tests_that_stand_for_many_exist(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_a_mark_that_is_no_field_is_an_error(tmp_path: Path) -> None:
    for name in ("nothing", "name"):
        (tmp_path / "test_x.py").write_text(
            f"import pytest\n@pytest.mark.field({name!r})\ndef test_y() -> None: ...\n"
        )
        with pytest.raises(MarkUnknown, match=f"test_x.py::test_y: {name!r} is"):
            collect_marks(tmp_path)


def test_explain_knows_every_field_by_path_and_unique_end() -> None:
    ends: dict[str, list[str]] = {}
    for path in all_fields():
        found = explain(path)
        assert found.path == path
        assert found.fargate
        assert [found.function, found.message, found.reason].count(None) >= 2
        assert json.dumps(found.default) is not None
        assert explain(path.replace("[]", "[0]")).path == path
        assert explain(path.replace("[]", "")).path == path
        ends.setdefault(path.rpartition(".")[2], []).append(path)
    for end, paths in ends.items():
        if end in all_fields():
            assert find_fields(end) == [end]
        elif len(paths) == 1:
            assert explain(end).path == paths[0]
        else:
            with pytest.raises(UnknownField, match="may be any of") as caught:
                explain(end)
            assert all(path in str(caught.value) for path in paths)


def test_explain_says_what_there_is_to_say() -> None:
    found = explain("healthCheck.interval")
    assert (found.type, found.default, found.required) == ("integer", 30, False)
    assert found.function == "fargatelite.runtime.task.new_state"
    assert explain("networkMode").values == ("bridge", "host", "awsvpc", "none")
    assert explain("family").type == "string"
    assert explain("ulimits.name").required
    assert explain("links").message == "Links are not supported when networkMode=awsvpc."
    with pytest.raises(UnknownField, match="no field is named 'nope'"):
        explain("nope")
