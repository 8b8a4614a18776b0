"""Compiles the two C products: the static shim and the meter extension.

Run by hatchling as a build hook (see pyproject.toml) and by hand (`python csrc/build.py`, what
`make build` does). A product is compiled again only when one of its inputs is newer.

Warnings are errors only with FARGATELITE_WERROR=1 (make and CI set it): an sdist must still build
with next year's compiler.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SHIM = ROOT / "fargatelite" / "_bin" / "fargatelite-shim"
METER = ROOT / "fargatelite" / "meter" / "_meter.abi3.so"

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wformat=2", "-Wvla", "-Wstrict-prototypes"]
HARDENING = ["-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-fno-plt"]


def compiler() -> list[str]:
    """The C compiler command: $CC, else cc."""
    return shlex.split(os.environ.get("CC", "cc"))


def flags() -> list[str]:
    """Compiler flags common to both products."""
    werror = ["-Werror"] if os.environ.get("FARGATELITE_WERROR") == "1" else []
    paths = f"-ffile-prefix-map={ROOT}=."  # the same bytes wherever it is built
    return [
        "-std=gnu11", "-O2", "-g", paths, *WARNINGS, *werror, *HARDENING,
        "-I", str(CSRC / "formats"),
    ]  # fmt: skip


def is_stale(product: Path, inputs: list[Path]) -> bool:
    """Whether `product` is missing or older than one of `inputs`."""
    if not product.exists():
        return True
    built_at = product.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > built_at for path in inputs)


def headers() -> list[Path]:
    """Format headers shared by both products, and this file: a change of flags rebuilds."""
    return [*sorted((CSRC / "formats").glob("*.h")), Path(__file__).resolve()]


def run(command: list[str]) -> None:
    """Runs one compiler command; its diagnostics go to the terminal.

    Raises: subprocess.CalledProcessError when the compiler fails.
    """
    subprocess.run(command, check=True, cwd=ROOT)


def build_shim() -> Path:
    """Compiles csrc/shim/*.c into one static program: it runs from a sealed memfd in any root."""
    sources = sorted((CSRC / "shim").glob("*.c"))
    if sources and is_stale(SHIM, [*sources, *sorted((CSRC / "shim").glob("*.h")), *headers()]):
        SHIM.parent.mkdir(exist_ok=True)
        temporary = SHIM.with_suffix(".new")
        run([*compiler(), *flags(), "-static", "-o", str(temporary), *map(str, sources)])
        temporary.replace(SHIM)
    return SHIM


def build_meter() -> Path:
    """Compiles the meter as a cffi API-mode extension against the stable ABI of Python 3.11."""
    sources = sorted((CSRC / "meter").glob("*.c"))
    bindings = CSRC / "meter" / "bindings.py"
    if not bindings.exists():
        return METER
    inputs = [*sources, *sorted((CSRC / "meter").glob("*.h")), bindings, *headers()]
    if is_stale(METER, inputs):
        namespace: dict[str, Any] = {}
        # The bindings are a script of ours beside this file, not a module of the package.
        exec(compile(bindings.read_text(), str(bindings), "exec"), namespace)  # noqa: S102
        generated = ROOT / "build" / "meter" / "_meter.c"
        generated.parent.mkdir(parents=True, exist_ok=True)
        namespace["ffibuilder"].emit_c_code(str(generated))
        temporary = METER.with_suffix(".new")
        run(
            [
                *compiler(),
                *[flag for flag in flags() if flag not in ("-Wshadow",)],
                "-Wno-unused-parameter",
                "-fPIC",
                "-shared",
                "-pthread",
                "-DPy_LIMITED_API=0x030b0000",
                "-I",
                sysconfig.get_path("include"),
                "-I",
                str(CSRC / "meter"),
                "-o",
                str(temporary),
                str(generated),
                *map(str, sources),
            ]
        )
        temporary.replace(METER)
    return METER


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run by hand, where the build backend need not be installed
    pass
else:

    class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]
        """hatchling's entry: compiles before the files of a wheel are collected."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel":
                build_shim()
                build_meter()
                build_data["pure_python"] = False
                share = ROOT / "share"
                if share.is_dir() and version != "editable":
                    build_data["shared_data"] = {str(share): "share"}
                build_data["tag"] = (
                    f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
                )


if __name__ == "__main__":
    print(build_shim())  # noqa: T201
    print(build_meter())  # noqa: T201
    sys.exit(0)
