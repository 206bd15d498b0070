"""Vectors of a catalogue's texts by one model, so that catalogues of several datasets stand in one space.

Suffixes: I = items, K = dimensions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import sha256_file
from recsys.pipelines.console import progress_bar
from recsys.tokenizers.item_columns import directions
from recsys.tokenizers.item_content import ENCODERS_FOLDER, item_texts
from recsys.tokenizers.text_encoder import TextEncoder

__all__ = ["encoded_texts", "stored_vectors"]

Floats = NDArray[np.float32]


def stored_vectors(dataset: Dataset, name: str) -> Floats:
    """[I, K] vectors that a dataset was prepared with: centred over the catalogue, unit rows, zero where unknown.

    Raises:
        InputError: it has none of this name.
    """
    found = dataset.relation_vectors
    if name not in found:
        there = ", ".join(found) or "none"
        raise InputError(
            f"{dataset.path} has no item vectors called {name!r} (there are: {there}); prepare it with them"
        )
    return found[name]


def encoded_texts(dataset: Dataset, encoder: Path) -> Floats:
    """[I, K] vectors of the item texts: centred over the catalogue, unit rows, zero for items without text.

    Those of the dataset where it was prepared with the very same weights; else every text is encoded now.

    Args:
        encoder: folder of a sentence-transformers model.

    Raises:
        InputError: the catalogue has no text, or the folder cannot be used.
    """
    for name, vectors_IK in dataset.text_vectors.items():
        if _same_weights(dataset, name, encoder):
            return vectors_IK
    texts = item_texts(dataset.items)
    given_I = np.array([bool(text and text.strip()) for text in texts], dtype=np.bool_)
    if not given_I.any():
        raise InputError(f"the items of {dataset.path} have no text; prepare it with --items that have title or text")
    try:
        model = TextEncoder.load(encoder)
        with progress_bar(f"encode texts of {dataset.path.name}", int(given_I.sum()), "texts") as done:
            raw_IK = model.encode(texts, progress=done)
    except ValueError as error:
        raise InputError(f"--text-encoder: {error}") from error
    unit_IK = np.zeros_like(raw_IK)
    unit_IK[given_I] = directions(raw_IK[given_I], raw_IK[given_I].astype(np.float64).mean(axis=0))
    return unit_IK


def _same_weights(dataset: Dataset, name: str, encoder: Path) -> bool:
    """Whether the encoder that the dataset keeps under a name has the weights of a folder, by their hashes."""
    prefix = f"{ENCODERS_FOLDER}/{name}/"
    stored = {
        file.removeprefix(prefix): digest
        for file, digest in dataset.manifest.files.items()
        if file.startswith(prefix) and file.endswith(".safetensors")
    }
    return bool(stored) and all(
        (encoder / file).is_file() and sha256_file(encoder / file) == digest for file, digest in stored.items()
    )
