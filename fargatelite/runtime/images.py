"""The image store of these settings, opened once per process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from fargatelite.rundir import ensure_private_directory
from fargatelite.settings import Settings

if TYPE_CHECKING:
    from fargatelite.images.mounted import MountedImages
    from fargatelite.images.store import ImageStore

__all__ = ["open_mounted", "open_store"]

_lock = threading.Lock()
_stores: dict[Settings, ImageStore] = {}


def open_mounted(settings: Settings) -> MountedImages:
    """What tasks of the run root have mounted of it. Raises: as `open_store`."""
    from fargatelite.images.mounted import MountedImages

    return MountedImages(open_store(settings), Path(settings.run_root))


def open_store(settings: Settings) -> ImageStore:
    """The store below the data root, with the host's registry settings.

    Raises: ConfigurationInvalid when the data root cannot be made.
    """
    from fargatelite.images.credentials import RegistryConfig
    from fargatelite.images.store import ImageStore

    with _lock:
        store = _stores.get(settings)
        if store is None:
            ensure_private_directory(settings.images.parent)
            store = _stores[settings] = ImageStore(
                settings.images,
                config=RegistryConfig(
                    insecure_registries=settings.insecure_registries,
                    ecr_endpoint_url=settings.ecr_endpoint_url,
                ),
                backend=settings.image_backend,
            )
        return store
