"""Models that make vectors of passages and questions, and what tells them apart.

Suffixes: N = texts, K = dimensions.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.retrieval.rag.learned_sparse import SparseEncoder
from recsys.retrieval.rag.passage_files import encoder_hash
from recsys.tokenizers.text_encoder import TextEncoder, check_encoder, encoder_name

__all__ = ["Encoder", "needed", "sparse_encoder_of", "text_encoder", "unit_rows"]


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded model."""

    model: Any
    name: str
    hash: str
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Tokenizers of transformers may fail where two threads use one."""


def unit_rows(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """[N, K] float32 vectors of length 1; zero rows of blank texts."""
    with encoder.lock:
        made_NK = encoder.model.encode(list(texts))
    raw_NK = torch.from_numpy(np.ascontiguousarray(made_NK, dtype=np.float32))
    unit: Tensor = torch.nn.functional.normalize(raw_NK, dim=1)
    return unit


def text_encoder(folder: Path | str, device: str) -> Encoder:
    """Load a sentence-transformers model for :func:`unit_rows`.

    Raises:
        InputError: the folder holds no model, or one that would run code; or sentence-transformers is missing.
    """
    folder = Path(folder)
    try:
        check_encoder(folder)
        model = TextEncoder.load(folder, device=device)
    except ValueError as error:
        raise InputError(str(error)) from None
    return Encoder(model, encoder_name(folder), encoder_hash(folder))


def sparse_encoder_of(folder: Path | str, device: str) -> Encoder:
    """Load a :class:`~recsys.retrieval.rag.learned_sparse.SparseEncoder`.

    Raises:
        InputError: as its ``load``.
    """
    folder = Path(folder)
    return Encoder(SparseEncoder.load(folder, device=device), encoder_name(folder), encoder_hash(folder))


def needed(encoder: Encoder | None, name: str) -> Encoder:
    """The encoder, where it was given.

    Raises:
        InputError: it was not.
    """
    if encoder is None:
        raise InputError(f"the store was loaded without its {name}; give {name}=FOLDER to add passages")
    return encoder
