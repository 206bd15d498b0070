"""The blocks of vectors that semantic IDs of a dataset's items are made from.

Suffixes: I = items, C = content columns, W = entries of one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import sha256_file
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.console import progress_bar
from recsys.pipelines.transition_vectors import transition_vectors
from recsys.tokenizers.item_columns import directions
from recsys.tokenizers.item_content import item_texts
from recsys.tokenizers.new_item_blocks import CONTENT, hash_of_content
from recsys.tokenizers.text_encoder import TextEncoder, encoder_name

__all__ = ["CONTENT", "MODEL", "TRANSITION", "CodeBlocks", "code_blocks"]

TRANSITION = "transition"
MODEL = "model"

Floats = NDArray[np.float32]


@dataclass(slots=True)
class CodeBlocks:
    """Blocks of all items of a dataset."""

    vectors: dict[str, Floats] = field(default_factory=dict)
    """Name -> [I, W]; a row of zeros = the item has no such block."""
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> kind and what made it: plain JSON."""

    def add(self, name: str, vectors_IW: Floats, about: Mapping[str, Any]) -> None:
        """Take a block, unless no item has it."""
        if vectors_IW.shape[1] and vectors_IW.any():
            self.vectors[name] = np.ascontiguousarray(vectors_IW, dtype=np.float32)
            self.about[name] = {
                **about,
                "width": int(vectors_IW.shape[1]),
                "num_missing": int((~vectors_IW.any(axis=1)).sum()),
            }


def code_blocks(
    dataset: Dataset,
    names: Sequence[str] | None = None,
    *,
    checkpoint: Path | None = None,
    text_encoder: str | None = None,
    seed: int = 0,
) -> CodeBlocks:
    """Make the blocks of a dataset's items. Events of validation and test are not read.

    Args:
        dataset: whose items.
        names: ``content`` (all that a model reads of items), ``transition`` (what follows what in training events),
            ``model`` (vectors of a trained model), blocks of the content by name, the name of the text encoder. None =
            content and transition, and model and text encoder where they are given.
        checkpoint: of a model trained on this dataset, for ``model``.
        text_encoder: PATH or NAME=PATH of a sentence-transformers model for the item texts.
        seed: of the randomised SVD of transitions.

    Returns:
        The blocks, in the order of the names; without names, those that no item has are left out.

    Raises:
        InputError: an unknown name, a block that no item has, or a model or encoder that does not fit.
    """
    encoder = None if text_encoder is None else _named_encoder(text_encoder)
    parts = {
        block["name"]: block for block in dataset.content_blocks if block["name"] not in (CONTENT, TRANSITION, MODEL)
    }
    wanted = list(names) if names is not None else _defaults(checkpoint, encoder)
    known = [CONTENT, TRANSITION, *([MODEL] if checkpoint else []), *parts, *([encoder[0]] if encoder else [])]
    blocks = CodeBlocks()
    for name in wanted:
        if name not in known:
            remedy = " (it needs --checkpoint)" if name == MODEL else ""
            raise InputError(f"{dataset.path} has no block {name!r}{remedy}; choose some of {', '.join(known)}")
        if encoder is not None and name == encoder[0]:
            _add_texts(blocks, dataset, *encoder)
        elif name == CONTENT:
            if dataset.content is not None:
                blocks.add(CONTENT, dataset.content, {"kind": CONTENT, "made_by": content_hash(dataset)})
        elif name == TRANSITION:
            vectors_IW = transition_vectors(dataset, seed=seed)
            if vectors_IW is not None:
                blocks.add(TRANSITION, vectors_IW, {"kind": TRANSITION, "made_by": dataset.manifest.data_hash})
        elif name == MODEL:
            assert checkpoint is not None
            blocks.add(MODEL, _model_vectors(checkpoint, dataset), {"kind": MODEL, "made_by": sha256_file(checkpoint)})
        else:
            assert dataset.content is not None
            start, stop = parts[name]["start"], parts[name]["stop"]
            about = {"kind": "part", "made_by": content_hash(dataset), "start": start, "stop": stop}
            blocks.add(name, dataset.content[:, start:stop], about)
        if names is not None and name not in blocks.vectors:
            raise InputError(f"no item of {dataset.path} has the block {name}; leave it out of --blocks")
    return blocks


def content_hash(dataset: Dataset) -> str:
    """Equal for datasets whose content was made by one transform, so that their columns mean the same."""
    return hash_of_content(dataset.content_blocks, dataset.manifest.files)


def _defaults(checkpoint: Path | None, encoder: tuple[str, Path] | None) -> list[str]:
    return [CONTENT, TRANSITION, *([MODEL] if checkpoint else []), *([encoder[0]] if encoder else [])]


def _named_encoder(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    if not equals or Path(given).is_dir():
        name, path = encoder_name(Path(given)), given
    if name in (CONTENT, TRANSITION, MODEL) or not name:
        raise InputError(f"--text-encoder {given}: the name {name!r} is taken; choose one, as in my_encoder={path}")
    return name, Path(path).expanduser()


def _add_texts(blocks: CodeBlocks, dataset: Dataset, name: str, folder: Path) -> None:
    texts = item_texts(dataset.items)
    given = np.array([bool(text and text.strip()) for text in texts])
    if not given.any():
        raise InputError(f"--text-encoder: the items of {dataset.path} have no text; leave the flag out")
    try:
        encoder = TextEncoder.load(folder, device="cuda" if torch.cuda.is_available() else "cpu")
        with progress_bar(f"encode texts: {name}", int(given.sum()), "texts") as advance:
            raw_IK = encoder.encode(texts, progress=advance)
    except ValueError as error:
        raise InputError(f"--text-encoder: {error}") from error
    mean_K = raw_IK[given].astype(np.float64).mean(axis=0)
    vectors_IW = np.zeros_like(raw_IK)
    vectors_IW[given] = directions(raw_IK[given], mean_K)
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(sha256_file(file).encode())
    blocks.add(name, vectors_IW, {"kind": "text-encoder", "made_by": digest.hexdigest(), "mean": mean_K.tolist()})


def _model_vectors(checkpoint: Path, dataset: Dataset) -> Floats:
    model, meta = load_model(checkpoint)
    if meta.get("data_hash") != dataset.manifest.data_hash:
        raise InputError(f"{checkpoint} was not trained on {dataset.path}; give a checkpoint that was")
    with torch.inference_mode():
        vectors: Floats = model.item_vectors().cpu().numpy()
    return vectors
