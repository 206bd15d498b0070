"""What machine and which versions a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["VERSIONED", "cpu_name", "device_name", "memory_gib", "multiplies_bfloat16", "versions"]

VERSIONED = ("torch", "lightning", "jsonargparse", "polars", "numpy", "scipy", "scikit-learn", "safetensors")
"""Packages whose versions stand beside measurements."""


def versions(packages: tuple[str, ...] = VERSIONED) -> dict[str, str]:
    """Installed versions by package name, Python's own first; a package that is not installed is absent."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def device_name() -> str:
    """The CUDA device that torch would use, else the processor."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu_name()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for matrix products of bfloat16 factors; elsewhere they are slow."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def memory_gib() -> float:
    """Main memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
