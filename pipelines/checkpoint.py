"""Reading a model out of a checkpoint, without a pickle and without Lightning, and the names its numbers stand for."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.tokenizers.table_columns import column_labels

__all__ = ["StoredNames", "load_model", "names_to_store", "stored_names"]


_STRANGE = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError,
    struct.error,
)  # fmt: skip
"""What torch's reader of plain tensors trips over in bytes that are none; its own advice is to unpickle them."""


@dataclass(frozen=True, slots=True)
class StoredNames:
    """The caller's ids and names that a checkpoint's numbers stand for, in the order of those numbers."""

    item_ids: pl.Series
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    user_columns: tuple[str, ...] = ()
    """What the columns of the users' features say."""


def names_to_store(dataset: Dataset) -> dict[str, Any]:
    """The entry ``names`` of a checkpoint: tensors and plain lists, a few bytes an item."""
    ids = dataset.item_ids
    stored: dict[str, Any]
    if ids.dtype == pl.String:
        text = "".join(ids.to_list()).encode("utf-8")
        ends = ids.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy()
        stored = {"utf8": torch.frombuffer(bytearray(text or b"\0"), dtype=torch.uint8), "ends": torch.tensor(ends)}
    else:
        stored = {"integers": torch.tensor(ids.to_numpy().astype(np.int64)), "type": str(ids.dtype)}
    return {
        "item_ids": stored,
        "actions": list(dataset.manifest.actions),
        "surfaces": list(dataset.manifest.surfaces),
        "user_columns": column_labels(dataset.user_blocks),
    }


def stored_names(meta: dict[str, Any], path: Path) -> StoredNames:
    """The names in a checkpoint.

    Args:
        meta: the second part of what :func:`load_model` returned.
        path: the checkpoint, for the message.

    Raises:
        InputError: an older checkpoint, which holds none.
    """
    names = meta.get("names")
    if names is None:
        raise InputError(
            f"{path} holds no item ids, so that its items cannot be found in other data: it was written by an older "
            "version; train it again"
        )
    stored = names["item_ids"]
    if "utf8" in stored:
        text, ends = stored["utf8"].numpy().tobytes(), stored["ends"].tolist()
        ids = pl.Series(
            [text[low:high].decode("utf-8") for low, high in zip([0, *ends[:-1]], ends, strict=True)], dtype=pl.String
        )
    else:
        # Astype and not a cast: large unsigned ids are kept as the integers with the same bits.
        kind = pl.Series(dtype=getattr(pl, stored["type"])).to_numpy().dtype
        ids = pl.Series(stored["integers"].numpy().astype(kind))
    return StoredNames(ids, tuple(names["actions"]), tuple(names["surfaces"]), tuple(names.get("user_columns", ())))


def load_model(path: Path | str, device: str = "cpu") -> tuple[UnifiedModel, dict[str, Any]]:
    """The network of a checkpoint, in evaluation mode, and what it says of itself (``config``, ``data_hash``, …).

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
    except (RuntimeError, EOFError, OSError, BadZipFile) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise _unreadable(path, reason) from None
    except _STRANGE:
        raise _unreadable(path, "no file of tensors") from None
    meta = checkpoint.get("recsys") if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or "config" not in meta:
        raise InputError(f"{path} is no checkpoint of `recsys fit`; give RUN/checkpoints/best.ckpt")
    stored = checkpoint.get("state_dict")
    if not isinstance(meta["config"], dict) or not isinstance(stored, dict):
        raise InputError(f"{path} is no checkpoint of `recsys fit`; give RUN/checkpoints/best.ckpt")
    tensors = {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    weights = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    try:
        model = UnifiedModel.of_weights(ModelConfig.from_dict(meta["config"]), weights, str(path), "train again")
    except InputError:
        raise
    except (RuntimeError, *_STRANGE) as error:
        raise InputError(f"{path} holds no model ({' '.join(str(error).split())[:200]}); train again") from None
    return model.to(device), dict(meta)


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be read as a checkpoint ({reason}); train again or resume from another")
