"""Fargate's 77 task sizes, in every spelling (contract 1)."""

from __future__ import annotations

from typing import Any

import pytest

from fargatelite.errors import InvalidTaskDefinition
from fargatelite.taskdef.load import load_definition, to_wire
from fargatelite.taskdef.sizes import SIZES, parse_cpu, parse_memory

# The contract's table, written out once more: a slip in SIZES must not pass by itself.
TABLE = {
    256: "512 1024 2048",
    512: "1024 2048 3072 4096",
    1024: "2048 3072 4096 5120 6144 7168 8192",
    2048: "4096 5120 6144 7168 8192 9216 10240 11264 12288 13312 14336 15360 16384",
    4096: "8192 9216 10240 11264 12288 13312 14336 15360 16384 17408 18432 19456 20480 21504 22528 "
    "23552 24576 25600 26624 27648 28672 29696 30720",
    8192: "16384 20480 24576 28672 32768 36864 40960 45056 49152 53248 57344 61440",
    16384: "32768 40960 49152 57344 65536 73728 81920 90112 98304 106496 114688 122880",
    32768: "61440 122880 249856",
}
PAIRS = [(cpu, int(memory)) for cpu, text in TABLE.items() for memory in text.split()]


def sized(cpu: Any, memory: Any) -> dict[str, Any]:
    return {
        "family": "app",
        "networkMode": "awsvpc",
        "cpu": cpu,
        "memory": memory,
        "containerDefinitions": [{"name": "app", "image": "busybox"}],
    }


def test_there_are_77() -> None:
    assert len(PAIRS) == 77
    assert [(cpu, memory) for cpu, row in SIZES.items() for memory in row] == PAIRS


@pytest.mark.field("cpu")
@pytest.mark.field("memory")
@pytest.mark.parametrize(("cpu", "memory"), PAIRS)
def test_every_pair_in_every_spelling(cpu: int, memory: int) -> None:
    vcpu, gb = f"{cpu / 1024:g}", f"{memory / 1024:g}"
    for cpu_text in (str(cpu), f"{vcpu} vCPU", f"{vcpu}vcpu", f"{vcpu.removeprefix('0')} VCPU",
                     f"  {cpu} ", f"{float(vcpu):.4f} vCPU"):  # fmt: skip
        for memory_text in (str(memory), f"{gb}GB", f"{gb} GB", f"{gb.removeprefix('0')} gb"):
            loaded = load_definition(sized(cpu_text, memory_text))
            assert (loaded.cpu_units, loaded.memory_mib) == (cpu, memory)
            assert to_wire(loaded)["cpu"] == str(cpu)
            assert to_wire(loaded)["memory"] == str(memory)


@pytest.mark.parametrize(
    ("cpu", "memory"),
    [(1024, 2560), (8192, 17408), (16384, 36864), (1024, 9216), (4096, 31744), (16384, 131072),
     (256, 4096), (32768, 65536), (128, 512), (65536, 249856)],
)  # fmt: skip
def test_pairs_that_aws_refused(cpu: int, memory: int) -> None:
    message = (
        f"No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. See the "
        "Amazon ECS documentation for the valid values."
    )
    with pytest.raises(InvalidTaskDefinition) as caught:
        load_definition(sized(str(cpu), str(memory)))
    assert caught.value.client_exception()["Error"] == {
        "Code": "ClientException", "Message": message,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "units"),
    [("256", 256), (".25 vCPU", 256), ("0.25vCPU", 256), ("1 vcpu", 1024), ("1. vCPU", 1024),
     ("0.3 vCPU", None), ("", None), ("-1", None), ("1e3", None), ("٣", None), ("1 2", None),
     ("vCPU", None), (". vCPU", None), ("1 GB", None), ("9" * 40, None)],
)  # fmt: skip
def test_cpu_spellings(text: str, units: int | None) -> None:
    assert parse_cpu(text) == units


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("0.5GB", 512), (".5 GB", 512), ("1 GB", 1024), ("1GB", 1024), ("30 gb", 30720),
     ("1MB", None), ("1 GiB", None), ("0.0001 GB", None), ("1 vCPU", None)],
)  # fmt: skip
def test_memory_spellings(text: str, mib: int | None) -> None:
    assert parse_memory(text) == mib


@pytest.mark.parametrize(
    ("cpu", "memory", "word"), [("x", "512", "cpu"), ("256", "1 TB", "memory")]
)
def test_a_text_that_is_no_size(cpu: str, memory: str, word: str) -> None:
    with pytest.raises(InvalidTaskDefinition) as caught:
        load_definition(sized(cpu, memory))
    assert caught.value.client_exception()["Error"]["Message"] == (
        f"Invalid '{word}' setting for task. For more information, see the Troubleshooting section "
        "of the Amazon ECS Developer Guide."
    )
