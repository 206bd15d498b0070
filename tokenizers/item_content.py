"""What a model may know of items besides who took them, made alike for a catalogue and for items that come later.

A fitted content lives in the folder of a prepared dataset or of a bundle: the blocks in its manifest, the transform
of the text in ``text/``, each text encoder in ``text/encoders/NAME/``.
Directions have length sqrt(K), so that an entry of any block is about 1. How long the blocks of SVD and encoder are to
each other matters little: ridge regression on both to vectors of co-taken items (Amazon Toys, 128 and 384 columns)
recalled .1697 to .1706 of held-out items' neighbours for lengths of the encoder block from .7 to 2.5 times the other's.
Suffixes: I = items, C = content columns, K = columns of one block, V = terms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
from numpy.typing import NDArray

from recsys.tokenizers.item_columns import column_rows, directions, fit_column
from recsys.tokenizers.text_encoder import TextEncoder
from recsys.tokenizers.text_svd import TextSvd

__all__ = ["ENCODERS_FOLDER", "ItemContent", "ItemRows", "Progress", "item_texts"]

TEXT_FOLDER = "text"
ENCODERS_FOLDER = "text/encoders"
_MANIFESTS = ("bundle.json", "manifest.json")
_AGAIN = "prepare the data again, and fit and export anew"

Floats = NDArray[np.float32]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Called with a label and a number of texts; gives a context whose function takes how many more are done."""


def item_texts(items: pl.DataFrame) -> list[str | None]:
    """Title and text of every item as one text; None where both are missing."""
    if "title" not in items.columns and "text" not in items.columns:
        return [None] * items.height
    title, text = (
        pl.col(name).cast(pl.String) if name in items.columns else pl.lit(None, dtype=pl.String)
        for name in ("title", "text")
    )
    # Many tables repeat the title at the head of the text: counting it twice would say nothing new.
    joined = (
        pl.when(text.is_null())
        .then(title)
        .when(title.is_null() | text.str.starts_with(title))
        .then(text)
        .otherwise(title + pl.lit("\n") + text)
    )
    return items.select(joined.alias("joined"))["joined"].to_list()


@dataclass(slots=True)
class ItemRows:
    """What is known of some items, row by row in their order."""

    content_IC: Floats | None = None
    """All blocks side by side, as a dataset keeps them; None where there are none."""
    sparse_text_IV: scipy.sparse.csr_matrix | None = None
    """TF-IDF rows; None where the catalogue has no text."""
    vectors: dict[str, Floats] = field(default_factory=dict)
    """Name -> [I, K] unit rows of each text encoder and vector column, zero where unknown."""


@dataclass(slots=True)
class ItemContent:
    """Everything that turns rows of an items table into content."""

    blocks: list[dict[str, Any]] = field(default_factory=list)
    """Name, kind and column range of each block, with the numbers that made it."""
    transform: TextSvd | None = None
    folder: Path | None = None
    """Where the text encoders lie; loaded when a text is first encoded."""
    device: str = "cpu"
    _encoders: dict[str, TextEncoder] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        items: pl.DataFrame,
        *,
        features: Mapping[str, str | None] | None = None,
        encoders: Sequence[str] = (),
        folder: Path | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> tuple[ItemContent, ItemRows]:
        """Fit on a catalogue, and give its rows.

        Args:
            items: item_id and whatever else is known, one row per item.
            features: columns to read beside title and text, and how (see
                :func:`~recsys.tokenizers.item_columns.fit_column`).
            encoders: names of the models under ``folder/text/encoders``.
            folder: of the dataset that is being made.
            device: where texts are encoded.
            progress: shown while texts are encoded.

        Raises:
            ValueError: a column or an encoder cannot be used.
        """
        content = cls(folder=folder, device=device)
        texts = item_texts(items)
        content.transform = TextSvd.fit(texts)
        made: dict[str, Floats] = {}
        if content.transform is not None:
            content._add({"name": "text", "kind": "tfidf-svd"}, content.transform.dim)
        for name in encoders:
            raw_IK = content._encoded(name, texts, progress)
            given_I = _given(texts)
            made[name] = raw_IK
            mean_K = raw_IK[given_I].astype(np.float64).mean(axis=0) if given_I.any() else np.zeros(raw_IK.shape[1])
            content._add({"name": name, "kind": "text-encoder", "mean": mean_K.tolist()}, raw_IK.shape[1])
        for name, reading in (features or {}).items():
            try:
                fitted = fit_column(items[name], items["item_id"], reading)
                width = column_rows(fitted, items[name][:0], items["item_id"][:0]).shape[1]
            except ValueError as error:
                raise ValueError(f"column {name}: {error}") from error
            content._add({"name": name, **fitted}, width)
        return content, content._rows(items, made, None)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> ItemContent:
        """The content of a prepared dataset or a bundle.

        Raises:
            ValueError: the folder is neither, or one that an earlier version wrote without what new items need.
        """
        manifest = next((folder / name for name in _MANIFESTS if (folder / name).is_file()), None)
        if manifest is None:
            raise ValueError(f"{folder} is neither a prepared dataset nor a bundle")
        blocks = json.loads(manifest.read_text(encoding="utf-8")).get("content")
        if blocks is None:
            raise ValueError(f"{folder} does not say how its items were read; {_AGAIN}")
        for block in blocks:
            needed = {"vector": "mean", "text-encoder": "mean", "categories": "split"}.get(block["kind"], "name")
            if needed not in block:
                raise ValueError(f"{folder} does not say how {block['name']} was made; {_AGAIN}")
        has_text = any(block["kind"] == "tfidf-svd" for block in blocks)
        return cls(blocks, TextSvd.load(folder / TEXT_FOLDER) if has_text else None, folder, device)

    def encode(self, items: pl.DataFrame, *, progress: Progress | None = None) -> ItemRows:
        """Rows of any items, made as those of the catalogue were.

        Args:
            items: item_id, and those of the catalogue's columns that are known; what is missing counts as unknown.
            progress: shown while texts are encoded.

        Raises:
            ValueError: a column has values of another type, or a text encoder is needed and cannot be loaded.
        """
        return self._rows(items, {}, progress)

    def _add(self, block: dict[str, Any], width: int) -> None:
        start = self.blocks[-1]["stop"] if self.blocks else 0
        self.blocks.append({**block, "start": start, "stop": start + width})

    def _encoded(self, name: str, texts: Sequence[str | None], progress: Progress | None) -> Floats:
        if name not in self._encoders:
            assert self.folder is not None
            self._encoders[name] = TextEncoder.load(self.folder / ENCODERS_FOLDER / name, device=self.device)
        shown = progress or (lambda label, total: nullcontext(lambda done: None))
        with shown(f"encode texts: {name}", int(_given(texts).sum())) as done:
            return self._encoders[name].encode(texts, progress=done)

    def _rows(self, items: pl.DataFrame, made: Mapping[str, Floats], progress: Progress | None) -> ItemRows:
        rows = ItemRows()
        texts = item_texts(items)
        given_I = _given(texts)
        parts: list[Floats] = []
        for block in self.blocks:
            name, kind = block["name"], block["kind"]
            if kind == "tfidf-svd":
                assert self.transform is not None
                rows.sparse_text_IV = self.transform.sparse(texts)
                parts.append(self.transform.dense(rows.sparse_text_IV) * np.float32(self.transform.dim**0.5))
            elif kind == "text-encoder":
                mean_K = np.asarray(block["mean"])
                unit_IK = np.zeros((items.height, len(mean_K)), dtype=np.float32)
                if given_I.any():
                    raw_IK = made[name] if name in made else self._encoded(name, texts, progress)
                    unit_IK[given_I] = directions(raw_IK[given_I], mean_K)
                rows.vectors[name] = unit_IK
                parts.append(unit_IK * np.float32(len(mean_K) ** 0.5))
            elif name not in items.columns:
                parts.append(np.zeros((items.height, block["stop"] - block["start"]), dtype=np.float32))
            else:
                try:
                    parts.append(column_rows(block, items[name], items["item_id"]))
                except ValueError as error:
                    raise ValueError(f"column {name}: {error}") from error
            if kind == "vector" and parts[-1].shape[1]:
                rows.vectors[name] = parts[-1] / np.float32(parts[-1].shape[1] ** 0.5)
        if parts:
            rows.content_IC = np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)
        return rows


def _given(texts: Sequence[str | None]) -> NDArray[np.bool_]:
    return np.array([bool(text and text.strip()) for text in texts], dtype=np.bool_)
