"""The filter's lists and cache; what it refuses inside is in tests/root/sandbox."""

from __future__ import annotations

from pathlib import Path

from fargatelite.sandbox.capabilities import container_mask
from fargatelite.sandbox.seccomp import (
    ALLOWED,
    NEEDS_CAPABILITY,
    REFUSED,
    compile_profile,
    load_program,
)

DEFAULT = container_mask((), ())


def test_no_call_is_in_two_lists() -> None:
    listed = [
        *ALLOWED,
        *REFUSED,
        *(n for names in NEEDS_CAPABILITY.values() for n in names.split()),
    ]
    assert len(listed) == len(set(listed))


def test_program_is_whole_instructions() -> None:
    program = compile_profile(DEFAULT)
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS


def test_capabilities_change_the_program() -> None:
    assert compile_profile(DEFAULT) != compile_profile(container_mask((), ("ALL",)))


def test_cache_gives_the_same_and_heals(tmp_path: Path) -> None:
    program = load_program(tmp_path, DEFAULT)
    (file,) = tmp_path.iterdir()
    assert load_program(tmp_path, DEFAULT) == program
    file.write_bytes(file.read_bytes()[:-5])
    assert load_program(tmp_path, DEFAULT) == program
    assert file.stat().st_size == len(program) + 8
