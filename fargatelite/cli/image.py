"""`fargatelite image`: pull, load, list, verify, remove."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fargatelite.cli.tables import (
    format_bytes,
    is_terminal,
    make_printable,
    print_json,
    print_table,
)
from fargatelite.runtime.images import open_store
from fargatelite.settings import Settings

if TYPE_CHECKING:
    from fargatelite.images.image import Image, PullProgress


def _detail(image: Image) -> dict[str, Any]:
    """Member names of ECR's ImageDetail (contract 6.4), and the reference."""
    return {
        "imageUri": image.reference,
        "imageDigest": image.digest,
        "imageId": image.image_id,
        "imageSizeInBytes": image.compressed_bytes,
        "layers": len(image.diff_ids),
    }


@click.group("image")
def command() -> None:
    """Pull, load, list, verify and remove images.

    \b
    Example:
      fargatelite image list
    """


@command.command("pull")
@click.argument("reference")
@click.option("--platform", default="linux/amd64", show_default=True)
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def pull(settings: Settings, reference: str, platform: str, output: str) -> None:
    """Pull an image into the store.

    \b
    Example:
      fargatelite image pull 127.0.0.1:5000/web:1
    """
    store = open_store(settings)
    if is_terminal(sys.stderr):
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            console=Console(file=sys.stderr),
            transient=True,
        ) as progress:
            bars: dict[str, Any] = {}

            def show(event: PullProgress) -> None:
                if event.phase == "image":
                    return
                if event.layer not in bars:
                    short = event.layer.removeprefix("sha256:")[:12]
                    bars[event.layer] = progress.add_task(short, total=event.total_bytes)
                progress.update(bars[event.layer], completed=event.done_bytes)

            image = store.pull(reference, platform=platform, on_progress=show)
    else:
        image = store.pull(reference, platform=platform)
    if output == "json":
        print_json(_detail(image))
    else:
        sys.stdout.write(f"{image.digest}\n")


@command.command("load")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.pass_obj
def load(settings: Settings, path: Path) -> None:
    """Load images from a docker-archive or an OCI layout (directory or tar).

    \b
    Example:
      fargatelite image load image.tar
    """
    for image in open_store(settings).load(path):
        sys.stdout.write(f"{image.reference}\n")


@command.command("list")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def list_images(settings: Settings, output: str) -> None:
    """List the images in the store.

    \b
    Example:
      fargatelite image list --output json
    """
    images = open_store(settings).list_images()
    if output == "json":
        print_json({"imageDetails": [_detail(image) for image in images]})
        return
    print_table(
        ("REFERENCE", "DIGEST", "LAYERS", "SIZE"),
        [
            (
                image.reference,
                image.digest.removeprefix("sha256:")[:12],
                str(len(image.diff_ids)),
                format_bytes(image.compressed_bytes),
            )
            for image in images
        ],
        right=("LAYERS", "SIZE"),
    )


@command.command("verify")
@click.option("--repair", is_flag=True, help="Pull again the images that are damaged.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def verify_store(settings: Settings, repair: bool, output: str) -> int:
    """Read all layers and images and compare them with their checksums.

    \b
    Example:
      fargatelite image verify --repair
    """
    from fargatelite.images import verify

    store = open_store(settings)
    found = verify.verify(store)
    if repair and found.damage:
        verify.repair(store, found)
    if output == "json":
        print_json(found)
    else:
        if found.damage:
            print_table(
                ("WHERE", "WHAT", "FILE", "IMAGES"),
                [
                    (item.path, item.what, make_printable(item.file or ""),
                     " ".join(item.references))
                    for item in found.damage
                ],
            )  # fmt: skip
        for reference in found.repaired:
            sys.stdout.write(f"pulled again: {reference}\n")
        for failure in found.failures:
            sys.stderr.write(f"not repaired: {failure}\n")
        for layer in found.unchecked:
            sys.stderr.write(f"no checksums, pull its image again: layer {layer}\n")
        sys.stdout.write(
            f"{found.layers} layers and {found.images} images, {format_bytes(found.read_bytes)} "
            f"read: {len(found.damage) or 'no'} damaged\n"
        )
    return 1 if found.failures or (found.damage and not repair) else 0


@command.command("remove")
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.pass_obj
def remove(settings: Settings, references: tuple[str, ...]) -> None:
    """Remove images by reference or digest; layers that no image needs go with them.

    \b
    Example:
      fargatelite image remove 127.0.0.1:5000/web:1
    """
    store = open_store(settings)
    for reference in references:
        store.remove(reference)
        sys.stdout.write(f"{reference}\n")
