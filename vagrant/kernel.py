"""Kernels as QEMU boots them: the ELF inside vmlinuz, and an initramfs that mounts the disk."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import zstandard

__all__ = ["extract_vmlinux", "write_initramfs"]

MODULES = ("virtio_pci", "virtio_blk", "ext4")
"""What has to be there before the disk's own modules can be read."""


def extract_vmlinux(vmlinuz: bytes) -> bytes:
    """The ELF kernel inside a bzImage: entered directly (PVH), it saves up to 1.5 s of a boot.

    A kernel that is packed otherwise than with zstd, xz or gzip (Debian 12's 6.1: LZ4) stays as it
    is; QEMU boots both. Source: Documentation/arch/x86/boot.rst (setup_sects, payload_offset).
    """
    setup_sectors = vmlinuz[0x1F1] or 4
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = vmlinuz[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    if payload.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload[:-4])  # four bytes of size follow the stream
    return vmlinuz


def needed_modules(directory: Path) -> list[Path]:
    """MODULES and what they depend on, in the order in which they load; built-in ones are left out.

    `directory` is lib/modules/<release> after depmod(8).
    """
    dependencies: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        name = path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
        paths[name] = path
        dependencies[path] = others.split()
    ordered: list[str] = []

    def add(path: str) -> None:
        for other in reversed(dependencies[path]):
            add(other)
        if path not in ordered:
            ordered.append(path)

    for name in MODULES:
        if name in paths:
            add(paths[name])
    return [directory / path for path in ordered]


def write_initramfs(target: Path, init: Path, busybox: Path, modules: list[Path]) -> None:
    """Writes an uncompressed initramfs: busybox, `init` and decompressed modules in order."""
    with open(target, "wb") as file:
        for name in ("bin", "dev", "modules", "proc", "root", "sys"):
            file.write(_entry(name, 0o040755, b""))
        file.write(_entry("init", 0o100755, init.read_bytes()))
        file.write(_entry("bin/busybox", 0o100755, busybox.read_bytes()))
        for index, module in enumerate(modules):
            data = module.read_bytes()
            if module.suffix == ".xz":
                data = lzma.decompress(data)
            elif module.suffix == ".zst":
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            file.write(_entry(f"modules/{index:02}.ko", 0o100644, data))
        file.write(_entry("TRAILER!!!", 0, b""))


def _entry(name: str, mode: int, data: bytes) -> bytes:
    """One entry of a cpio archive in newc form. Source: initramfs buffer format (kernel)."""
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
