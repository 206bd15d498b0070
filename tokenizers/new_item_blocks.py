"""The blocks of vectors of items that a catalogue does not know yet, for the tokenizers made with it.

Suffixes: J = new items, C = content columns, W = entries of one block, D = width of a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTENT", "ITEM_VECTORS", "PART", "blocks_of_new_items", "hash_of_content"]

CONTENT, PART, ITEM_VECTORS = "content", "part", "item vectors"
"""Kinds of blocks that a new item has: all of its content, some columns of it, its vectors in the model that serves."""

Floats = NDArray[np.float32]


def blocks_of_new_items(
    about: Mapping[str, Mapping[str, Any]],
    content_JC: Floats | None,
    num_items: int,
    vectors_JD: Floats | None = None,
) -> dict[str, Floats]:
    """Blocks of items that a catalogue does not know yet.

    Args:
        about: name -> what the codes say of their blocks.
        content_JC: content of the items, as the dataset's own transform makes it; None = nothing is known.
        num_items: J.
        vectors_JD: item vectors of the model that the codes were made for; None = it is not at hand.

    Returns:
        Name -> [J, W]; what only events or another model could tell is missing.
    """
    blocks = {}
    for name, block in about.items():
        if block["kind"] == ITEM_VECTORS and vectors_JD is not None:
            blocks[name] = vectors_JD
            continue
        rows_JW = np.zeros((num_items, block["width"]), np.float32)
        if content_JC is not None and block["kind"] == CONTENT:
            rows_JW = content_JC
        elif content_JC is not None and block["kind"] == PART:
            rows_JW = content_JC[:, block["start"] : block["stop"]]
        blocks[name] = rows_JW
    return blocks


def hash_of_content(blocks: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    """Equal where content was made by one transform, so that its columns mean the same.

    Args:
        blocks: what a dataset or a bundle says of its content.
        files: SHA-256 of its files by name.
    """
    digest = hashlib.sha256(repr(list(blocks)).encode())
    for name, checksum in sorted(files.items()):
        if name.startswith("text/"):
            digest.update(f"{name} {checksum}\n".encode())
    return digest.hexdigest()
