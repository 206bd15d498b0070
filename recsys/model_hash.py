"""What tells one model from another."""

from __future__ import annotations

import hashlib
import json

import torch

from recsys.model import UnifiedModel

__all__ = ["model_hash"]


def model_hash(model: UnifiedModel) -> str:
    """SHA-256 of the configuration and of every weight and buffer, wherever they were loaded from."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
