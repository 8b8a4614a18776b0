"""Images go by last use and by a budget, never one that is in use, and whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fargatelite.images.collect import JUST_USED_S, collect_images
from fargatelite.images.credentials import RegistryConfig
from fargatelite.images.image import Image
from fargatelite.images.mounted import MountedImages
from fargatelite.images.store import ImageStore
from fargatelite.images.verify import verify
from fargatelite.names import TaskId
from tests.fixtures.images import RunningRegistry, build_oci_layout, tar_layer

pytestmark = [pytest.mark.root, pytest.mark.registry]

SHARED = tar_layer({"shared": os.urandom(300_000)})


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    (tmp_path / "docker.json").write_text("{}")
    config = RegistryConfig(docker_config=str(tmp_path / "docker.json"))
    return ImageStore(tmp_path / "data", config=config)


@pytest.fixture
def images(registry: RunningRegistry, store: ImageStore, tmp_path: Path) -> list[Image]:
    """Three images with a layer that they share and one each; the first was used longest ago."""
    found = []
    for number in range(3):
        layers = [SHARED, tar_layer({"own": os.urandom(1_000_000)})]
        layout = build_oci_layout(tmp_path / f"layout{number}", layers, {"Cmd": [str(number)]})
        found.append(store.pull(registry.push(layout, f"collect/{tmp_path.name}{number}")))
    for number, image in enumerate(found):
        used_s = time.time() - JUST_USED_S - 1000 * (3 - number)
        os.utime(store.image_directory(image.image_id), (used_s, used_s))
    return found


def kept(store: ImageStore) -> list[str]:
    return [image.reference for image in store.list_images()]


def test_beyond_the_budget_the_least_recently_used_goes(
    store: ImageStore, images: list[Image]
) -> None:
    would = collect_images(store, max_bytes=2_500_000, dry_run=True)
    assert would.evicted == [images[0].reference]
    assert len(kept(store)) == 3
    done = collect_images(store, max_bytes=2_500_000)
    assert done == would
    assert done.layers == [images[0].diff_ids[1]]  # the shared one is another's too
    assert 1_000_000 <= done.freed_bytes < 1_100_000
    assert kept(store) == sorted(image.reference for image in images[1:])
    assert not verify(store).damage
    assert collect_images(store, max_bytes=2_500_000).evicted == []
    assert store.pull(images[0].reference).image_id == images[0].image_id
    assert not verify(store).damage


def test_what_was_not_used_for_long_goes(store: ImageStore, images: list[Image]) -> None:
    done = collect_images(store, unused_s=JUST_USED_S + 1500)
    assert sorted(done.evicted) == sorted(image.reference for image in images[:2])
    assert kept(store) == [images[2].reference]


def test_one_in_use_never_goes(store: ImageStore, images: list[Image], tmp_path: Path) -> None:
    task_id, run_root = TaskId("1" * 32), tmp_path / "run"
    target = MountedImages(store, run_root).ensure_mounted(images[0], task_id)
    try:
        os.utime(store.image_directory(images[0].image_id), (0, 0))
        done = collect_images(
            store, is_used=MountedImages(store, run_root).has_users, unused_s=1, max_bytes=1
        )
        assert sorted(done.evicted) == sorted(image.reference for image in images[1:])
        assert len((target / "own").read_bytes()) == 1_000_000
    finally:
        MountedImages(store, run_root).release(task_id)
    assert collect_images(
        store, is_used=MountedImages(store, run_root).has_users, unused_s=1
    ).evicted == [images[0].reference]  # fmt: skip
    assert kept(store) == []
    assert os.listdir(store.root / "layers") == os.listdir(store.root / "digests") == []


def test_a_pull_from_the_store_is_a_use(store: ImageStore, images: list[Image]) -> None:
    """Whoever pulled it is about to mount it."""
    store.pull(images[0].reference, policy="missing")
    store.pull(images[1].reference)
    done = collect_images(store, unused_s=1, max_bytes=1)
    assert done.evicted == [images[2].reference]


def test_nothing_goes_while_somebody_pulls(store: ImageStore, images: list[Image]) -> None:
    other = ImageStore(store.root)
    with other.shared():
        assert collect_images(store, unused_s=1, max_bytes=1).evicted == []
    with store.alone() as is_alone:
        assert is_alone
        with other.alone() as is_second:
            assert not is_second
    assert len(collect_images(store, unused_s=1).evicted) == 3


def test_a_removal_that_is_killed_leaves_no_part(store: ImageStore, images: list[Image]) -> None:
    """An image or a layer of which a file is missing would be taken for one that is there, by every
    pull from then on."""
    code = (
        "import os, shutil, signal\n"
        "from pathlib import Path\n"
        "from fargatelite.images.store import ImageStore\n"
        "from fargatelite.images.collect import collect_images\n"
        "real, calls = os.unlink, 0\n"
        "def unlink(path, *args, **more):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == {at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(path, *args, **more)\n"
        "os.unlink = unlink\n"
        f"collect_images(ImageStore(Path({str(store.root)!r})), unused_s=1)\n"
    )
    at = 1
    while True:
        done = subprocess.run([sys.executable, "-c", code.replace("{at}", str(at))])
        for image in images:
            again = store.pull(image.reference)
            assert again.image_id == image.image_id
        assert not verify(store).damage, at
        if done.returncode == 0:
            break
        for image in images:
            os.utime(store.image_directory(image.image_id), (0, 0))
        at += 1
    assert at > 6
