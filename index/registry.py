"""Vector indexes by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.index.exact import FORMAT, FORMAT_VERSION, MANIFEST, ExactIndex
from recsys.index.parts import checked_parts
from recsys.index.protocol import VectorIndex

__all__ = ["INDEX_KINDS", "build_index", "load_index"]

INDEX_KINDS = ("exact", "flat", "ivf", "hnsw", "pq")
"""``exact`` needs nothing; the others are FAISS's."""


def _class_of(kind: str) -> Any:
    if kind == ExactIndex.kind:
        return ExactIndex
    if kind not in INDEX_KINDS:
        raise ValueError(f"there is no index kind {kind!r}; choose one of {', '.join(INDEX_KINDS)}")
    try:
        from recsys.index.faiss_index import FaissIndex
    except ImportError as error:
        raise ValueError(
            f"index kind {kind!r} needs FAISS ({error}); install it with: pip install 'recsys[faiss]' "
            "(with a GPU: 'recsys[gpu]'), or use kind 'exact'"
        ) from error
    return FaissIndex


def build_index(kind: str, vectors: Tensor | NDArray[Any], **options: Any) -> VectorIndex:
    """Build an index over item vectors.

    Args:
        kind: one of :data:`INDEX_KINDS`.
        vectors: [I, D] float32; row i is item i.
        options: of that kind; see the constructors of the classes.
    """
    chosen = _class_of(kind)
    index: VectorIndex = chosen(vectors, **options) if chosen is ExactIndex else chosen.build(kind, vectors, **options)
    return index


def load_index(folder: Path, *, device: str | torch.device = "cpu") -> VectorIndex:
    """Read an index of any kind; hashes are checked before anything else looks at a part.

    Raises:
        ValueError: one line naming the part that is missing, truncated, changed or foreign, and what to do.
    """
    header = checked_parts(folder, MANIFEST, format=FORMAT, format_version=FORMAT_VERSION, parts=())
    index: VectorIndex = _class_of(str(header.get("kind"))).load(folder, device=device)
    return index
