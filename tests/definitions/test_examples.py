"""examples/*.json as they are, with the images that examples/images/build.sh makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.fixtures.cli import CommandLine, lines_until
from tests.fixtures.images import RunningRegistry

pytestmark = [pytest.mark.root, pytest.mark.registry]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
IMAGES = ROOT / "build" / "images"

# What a run prints, and its exit code.
EXPECTED: dict[str, tuple[int, tuple[str, ...]]] = {
    "hello": (0, ("hello from AWS_ECS_FARGATE", "uid=0(root)")),
    "web-and-probe": (0, ("GET http://127.0.0.1/: 200, 32 bytes", "burned 3.0")),
    "migrate-then-serve": (0, ("migrated", "schema 42")),
    "read-only-root": (
        0,
        ("uid=33(www-data)", "CapBnd:\t0000000000000000", "1024", "the root is read-only",
         "/tmp is not"),
    ),
    "debug-sidecar": (0, ("BUILD=9f3c2ab", "/meet/seen")),
    "batch-disk": (3, ("shard 3 with 50 GiB of disk",)),
}  # fmt: skip


@pytest.fixture(scope="session")
def example_host(registry: RunningRegistry) -> str:
    """The registry, with the examples' images. They are made of Debian packages, which takes a
    mirror: `make test` has them made."""
    for name in ("web", "probe"):
        if not (IMAGES / f"{name}.done").exists():
            pytest.skip(f"no image {name}: run examples/images/build.sh")
        registry.push(IMAGES / name, name)
    return registry.host


@pytest.fixture
def examples(example_host: str, tmp_path: Path) -> Path:
    """The examples with this registry in the place of the demo's."""
    copies = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copies, ignore=shutil.ignore_patterns("images"))
    for path in copies.glob("*.json"):
        path.write_text(path.read_text().replace("127.0.0.1:5055", example_host))
    return copies


def test_each_example_is_known() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.json")}
    assert names == {*EXPECTED, "queue-worker"}
    assert all(f"examples/{name}.json" in (EXAMPLES / "README.md").read_text() for name in names)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.usefixtures("settings")
def test_an_example_runs(fargatelite: CommandLine, examples: Path, name: str) -> None:
    ran = fargatelite("run", examples / f"{name}.json")
    code, lines = EXPECTED[name]
    assert ran.returncode == code, ran.stdout + ran.stderr
    for line in lines:
        assert line in ran.stdout, ran.stdout


@pytest.mark.usefixtures("settings")
def test_the_worker_drains(fargatelite: CommandLine, examples: Path) -> None:
    process = fargatelite.start("run", examples / "queue-worker.json")
    assert process.stdout is not None
    lines_until(process.stdout, "polling")
    process.terminate()
    rest = process.stdout.read()
    assert "finishing the message in hand" in rest
    assert "drained" in rest
    assert process.wait(20) == 143


def test_they_are_what_the_aws_tools_print() -> None:
    for path in EXAMPLES.glob("*.json"):
        assert json.loads(path.read_text())["family"] == path.stem
