"""Reading a model out of a checkpoint, without a pickle and without Lightning."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig

__all__ = ["load_model"]


def load_model(path: Path | str, device: str = "cpu") -> tuple[UnifiedModel, dict[str, Any]]:
    """The network of a checkpoint, in evaluation mode, and what it says of itself (``config``, ``data_hash``).

    Raises:
        InputError: the file is missing, broken, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; give a checkpoint that `recsys fit` wrote, e.g. RUN/checkpoints/best.ckpt"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a checkpoint ({reason}); train again or resume from another"
        ) from None
    meta = checkpoint.get("recsys") if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or "config" not in meta:
        raise InputError(f"{path} is no checkpoint of `recsys fit`; give RUN/checkpoints/best.ckpt")
    model = UnifiedModel(ModelConfig.from_dict(meta["config"]))
    weights = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("net.")}
    model.load_state_dict(weights)
    return model.to(device).eval(), dict(meta)
