"""How much memory a device, or the machine, can still give."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["free_bytes"]

_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""What a container may use and uses, by version of control groups."""


def free_bytes(
    device: torch.device, *, proc: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that may be allocated now: of a GPU, or of the machine within the limits of its container.

    Args:
        proc, groups: where Linux tells; elsewhere the free physical pages count.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    found = [left for names in _LIMITS if (left := _group_left(groups, *names)) is not None]
    return max(0, min([_machine(proc), *found]))


def _machine(proc: Path) -> int:
    if proc.is_file():
        for line in proc.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _group_left(groups: Path, limit: str, used: str) -> int | None:
    """None where nothing is limited."""
    try:
        texts = [(groups / name).read_text(encoding="ascii").strip() for name in (limit, used)]
    except OSError:
        return None
    return int(texts[0]) - int(texts[1]) if all(text.isdigit() for text in texts) else None
