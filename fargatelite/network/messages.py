"""pyroute2's message classes without the rest of pyroute2.

Its package imports all that it has (NDB, IPDB, conntrack, asyncio: 160 modules, 57 ms) before it
gives a single class; three classes of messages need 26. So the package is put in place empty, able
to find its parts, and becomes whole when somebody asks for anything of its own: another user of
pyroute2 in the same program notices nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

__all__ = ["ifaddrmsg", "ifinfmsg", "rtmsg"]


class _Package(types.ModuleType):
    """A package that is executed at the first look for something that is no part of it."""

    def __getattr__(self, name: str) -> Any:
        if importlib.util.find_spec(f"{self.__name__}.{name}") is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _defer(name: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = _Package(name)
    package.__spec__, package.__loader__ = spec, spec.loader
    package.__file__ = spec.origin
    package.__package__ = name
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package


_defer("pyroute2")

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: E402
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402
