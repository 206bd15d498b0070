"""What a model may know of items besides who took them: their text, and the columns that were asked for.

Every block is scaled so that its entries are about 1 in size; an item that lacks something has zeros there.
Suffixes: I = items, C = content columns, K = dimensions of one block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.pipelines.prepare.columns import is_text
from recsys.pipelines.prepare.settings import PrepareSettings
from recsys.tokenizers.text_svd import TextSvd

__all__ = ["MAX_CATEGORIES", "Content", "item_content", "item_texts"]

MAX_CATEGORIES = 64
"""The most frequent values of a categorical column that get a content column."""

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Content:
    """Item features, and how they were made."""

    content_IC: Floats | None = None
    blocks: list[dict[str, Any]] = field(default_factory=list)
    """Name, kind and column range of each block, with the numbers that made it."""
    sparse_text: scipy.sparse.csr_matrix | None = None
    transform: TextSvd | None = None
    text: dict[str, Any] | None = None
    """What the manifest says of the text."""
    notes: list[str] = field(default_factory=list)


def item_texts(items: pl.DataFrame) -> list[str | None]:
    """Title and text of every item as one text; None where both are missing."""
    if "title" not in items.columns and "text" not in items.columns:
        return [None] * items.height
    title, text = (
        pl.col(name) if name in items.columns else pl.lit(None, dtype=pl.String) for name in ("title", "text")
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


def item_content(items: pl.DataFrame, settings: PrepareSettings, file: str) -> Content:
    """Content of a catalogue.

    Args:
        items: one row per item, in internal order.
        settings: which columns and which encoder were asked for.
        file: what messages call the items table.

    Raises:
        InputError: a column or the encoder cannot be used.
    """
    content = Content()
    parts: list[Floats] = []

    def add(block_IK: Floats, **what: Any) -> None:
        start = sum(part.shape[1] for part in parts)
        parts.append(block_IK)
        content.blocks.append({**what, "start": start, "stop": start + block_IK.shape[1]})

    texts = item_texts(items)
    content.transform = TextSvd.fit(texts)
    if content.transform is not None:
        transform = content.transform
        content.sparse_text = transform.sparse(texts)
        add(transform.dense(content.sparse_text) * np.float32(transform.dim**0.5), name="text", kind="tfidf-svd")
        content.text = {"kind": "tfidf-svd", "dim": transform.dim, "num_terms": len(transform.vocabulary)}
    elif "title" in items.columns or "text" in items.columns:
        content.notes.append("No item has a word of text, so that items are known by who took them alone.")
    if settings.text_encoder is not None:
        if content.text is None:
            raise InputError(f"--text-encoder: {file} has no text to encode; leave the flag out")
        vector_IK = _encoded(texts, Path(settings.text_encoder))
        add(vector_IK, name="text_encoder", kind="vector")
        content.text["encoder"] = {"name": Path(settings.text_encoder).name, "dim": vector_IK.shape[1]}
    for name in settings.item_features:
        if name not in items.columns or name == "item_id":
            there = ", ".join(column for column in items.columns if column != "item_id") or "none"
            raise InputError(f"--item-features {name}: {file} has no such column (there are: {there}); check the name")
        block_IK, what = _column_block(items[name], file)
        add(block_IK, name=name, **what)
        if not block_IK.any():
            content.notes.append(f"The item feature {name} says nothing: it is empty or the same for every item.")
    if parts:
        content.content_IC = np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)
    return content


def _encoded(texts: list[str | None], folder: Path) -> Floats:
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise InputError("--text-encoder needs sentence-transformers; pip install 'recsys[text]'") from None
    if not folder.is_dir():
        raise InputError(f"--text-encoder {folder} is no folder; give the folder of a sentence-transformers model")
    given = np.array([bool(text) for text in texts])
    model = SentenceTransformer(str(folder), device="cpu")
    made = model.encode([text for text in texts if text], batch_size=64, show_progress_bar=True, convert_to_numpy=True)
    return _directions(np.asarray(made, dtype=np.float64), given)


def _directions(given_GK: NDArray[np.float64], given_I: NDArray[np.bool_]) -> Floats:
    """Vectors centred and brought to length sqrt(K); zero rows for items without one."""
    centred_GK = given_GK - given_GK.mean(axis=0)
    length_G1 = np.linalg.norm(centred_GK, axis=1, keepdims=True)
    whole_IK = np.zeros((len(given_I), given_GK.shape[1]), dtype=np.float32)
    whole_IK[given_I] = centred_GK / np.maximum(length_G1, 1e-12) * given_GK.shape[1] ** 0.5
    return whole_IK


def _column_block(column: pl.Series, file: str) -> tuple[Floats, dict[str, Any]]:
    kind = column.dtype
    if isinstance(kind, pl.Array):
        column = column.arr.to_list()
        kind = column.dtype
    if isinstance(kind, pl.List):
        if isinstance(kind.inner, (pl.Float32, pl.Float64)):
            return _vectors(column, file), {"kind": "vector"}
        if is_text(kind.inner) or kind.inner.is_integer():
            flat = pl.DataFrame(
                {"item": pl.int_range(len(column), eager=True), "value": column.cast(pl.List(pl.String))}
            )
            return _categories(flat.explode("value").drop_nulls(), len(column))
    elif kind.is_numeric() or kind == pl.Boolean or kind in (pl.Date, pl.Datetime):
        return _standardised(column)
    elif is_text(kind):
        flat = pl.DataFrame({"item": pl.int_range(len(column), eager=True), "value": column.cast(pl.String)})
        return _categories(flat.drop_nulls(), len(column))
    raise InputError(
        f"{file}, column {column.name}: a feature of type {kind} cannot be read; "
        "give numbers, text, dates, or lists of names or numbers"
    )


def _standardised(column: pl.Series) -> tuple[Floats, dict[str, Any]]:
    if column.dtype in (pl.Date, pl.Datetime):
        column = column.dt.epoch("s")
    value_I = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    known_I = np.isfinite(value_I)
    mean = float(value_I[known_I].mean()) if known_I.any() else 0.0
    std = float(value_I[known_I].std()) if known_I.any() else 0.0
    scaled_I = np.where(known_I, (np.where(known_I, value_I, mean) - mean) / (std if std > 0 else 1.0), 0.0)
    return scaled_I.astype(np.float32)[:, None], {"kind": "number", "mean": mean, "std": std}


def _categories(flat: pl.DataFrame, num_items: int) -> tuple[Floats, dict[str, Any]]:
    flat = flat.unique(["item", "value"], maintain_order=True)
    counts = flat.group_by("value").len().filter(pl.col("len") > 1)
    # Ties by name, so that the same table gives the same columns.
    names = counts.sort(["len", "value"], descending=[True, False])["value"].head(MAX_CATEGORIES).to_list()
    hot_IK = np.zeros((num_items, len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        hot_IK[flat.filter(pl.col("value") == name)["item"].to_numpy(), place] = 1.0
    return hot_IK, {"kind": "categories", "categories": names}


def _vectors(column: pl.Series, file: str) -> Floats:
    length = column.list.len()
    longest = length.drop_nulls().max()
    expected = int(longest) if isinstance(longest, int) else 0
    broken = length.is_not_null() & (length != expected) | column.list.eval(~pl.element().is_finite()).list.any()
    if expected == 0:
        return np.zeros((len(column), 0), dtype=np.float32)
    if broken.fill_null(False).any():
        row = int(broken.fill_null(False).arg_true()[0]) + 1
        raise InputError(
            f"{file}, column {column.name}, row {row}: a vector must hold {expected} finite numbers; "
            "mend it or leave it empty"
        )
    given_I = column.is_not_null().to_numpy()
    vector_GK = np.array(column.drop_nulls().explode().to_numpy(), dtype=np.float64).reshape(-1, expected)
    return _directions(vector_GK, given_I)
