"""Writing tensors to a safetensors file without a second copy of them in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["write_tensors"]

_NAMES = {torch.int64: "I64", torch.int32: "I32", torch.float32: "F32"}
_BYTES_AT_ONCE = 2**24


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in the given order, the widest numbers first; mapped ones are read as they are written."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            step = _BYTES_AT_ONCE // tensor.element_size()
            for low in range(0, tensor.numel(), step):
                part = tensor.flatten()[low : low + step].cpu().contiguous()
                file.write(memoryview(part.numpy()).cast("B"))  # type: ignore[arg-type]
