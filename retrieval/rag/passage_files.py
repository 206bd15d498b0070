"""A store of passages as a folder: no pickle, every part with its hash, the whole folder there or not at all.

    store.json            format, hashes of the parts, which encoders made the vectors
    passages.parquet      id, text, source, item_id, tokens, gone
    vectors.safetensors   unit vectors of the text encoder, where there is one
    sparse.safetensors    weights of the sparse encoder (CSR), where there is one
    bm25_*                what bm25s counted, mapped when it is loaded
    dense/                the index of the vectors where it is one of FAISS's

Suffixes: P = passages, K = dimensions, T = weights.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recsys.errors import InputError
from recsys.files import atomic_folder, sha256_file
from recsys.index.exact import ExactIndex
from recsys.index.parts import checked_parts, write_parts
from recsys.index.registry import load_index
from recsys.index.stored_checks import check_header, check_ids, check_offsets, check_tensor
from recsys.retrieval.rag.keyword_index import PARTS, KeywordIndex
from recsys.retrieval.rag.passage import Passage
from recsys.retrieval.rag.passage_stock import PassageStock, check_item_ids

__all__ = ["MANIFEST", "encoder_hash", "load_stock", "save_stock"]

MANIFEST = "store.json"
_FORMAT, _FORMAT_VERSION = "recsys-passages", 1
_PASSAGES, _VECTORS, _SPARSE, _DENSE = "passages.parquet", "vectors.safetensors", "sparse.safetensors", "dense"
_COLUMNS = {"id": pl.String, "text": pl.String, "source": pl.String, "tokens": pl.Int64, "gone": pl.Boolean}
_READ_BY_ENCODERS = (".json", ".txt", ".safetensors", ".model")


def encoder_hash(folder: Path) -> str:
    """Equal for folders that hold the same model: SHA-256 over names and hashes of its files."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in _READ_BY_ENCODERS and not file.name.startswith("."):
            whole.update(f"{file.relative_to(folder).as_posix()} {sha256_file(file)}\n".encode())
    return whole.hexdigest()


def save_stock(stock: PassageStock, path: Path, header: dict[str, Any]) -> None:
    """Write a folder that takes the place of an older store.

    Raises:
        InputError: the path holds something else.
    """
    frame = pl.DataFrame(
        {
            **{name: [getattr(p, name) for p in stock.passages] for name in ("id", "text", "source")},
            "item_id": [passage.item_id for passage in stock.passages],
            "tokens": [passage.tokens for passage in stock.passages],
            "gone": stock.gone_P,
        },
        schema_overrides=_COLUMNS,
    )
    if frame["item_id"].dtype == pl.Null:
        frame = frame.with_columns(pl.col("item_id").cast(pl.String))
    parts: dict[str, Callable[[Path], object]] = {_PASSAGES: frame.write_parquet}
    if stock.vectors_PK is not None:
        tensors = {"vectors": stock.vectors_PK.contiguous()}
        parts[_VECTORS] = lambda file: save_file(tensors, file)
    if stock.sparse_PV is not None:
        weights = stock.sparse_PV
        csr = {
            "indptr": torch.from_numpy(weights.indptr.astype(np.int64)),
            "indices": torch.from_numpy(weights.indices.astype(np.int64)),
            "weights": torch.from_numpy(weights.data.astype(np.float32)),
        }
        parts[_SPARSE] = lambda file: save_file(csr, file)
        header = {**header, "sparse_dim": int(weights.shape[1])}
    kind = "none" if stock.index is None else stock.index.kind
    full = {
        **header, "format": _FORMAT, "format_version": _FORMAT_VERSION, "num_passages": len(stock.passages),
        "index": kind,
    }  # fmt: skip
    with atomic_folder(path, marker=MANIFEST) as folder, tempfile.TemporaryDirectory(dir=folder) as scratch:
        parts.update(stock.keywords.parts(Path(scratch)))
        if stock.index is not None and kind != ExactIndex.kind:
            stock.index.save(folder / _DENSE)
        write_parts(folder, MANIFEST, full, parts)


def load_stock(path: Path) -> tuple[PassageStock, dict[str, Any]]:
    """Read what :func:`save_stock` wrote; arrays are mapped where their format allows it.

    Raises:
        InputError: one line naming the part that is missing, damaged or foreign, and what to do.
    """
    try:
        return _load(path)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        line = " ".join(str(error).split())[:400]
        told = line if str(path) in line else f"{path} cannot be read ({line}); build and save the store again"
        raise InputError(told) from None


def _load(path: Path) -> tuple[PassageStock, dict[str, Any]]:
    header = checked_parts(path, MANIFEST, format=_FORMAT, format_version=_FORMAT_VERSION, parts=(_PASSAGES,))
    check_header(header, num_passages=int, index=str)
    frame = pl.read_parquet(path / _PASSAGES, glob=False)
    for name, kind in _COLUMNS.items():
        if frame.schema.get(name) != kind or frame[name].null_count():
            raise ValueError(f"{path / _PASSAGES} holds no column {name} of {kind} without gaps")
    if frame.height != header["num_passages"]:
        raise ValueError(f"{path / _PASSAGES} holds {frame.height} passages, {MANIFEST} says {header['num_passages']}")
    passages = tuple(
        Passage(id=name, text=text, source=source, item_id=item_id, tokens=tokens)
        for name, text, source, item_id, tokens in frame.select("id", "text", "source", "item_id", "tokens").iter_rows()
    )
    check_item_ids(passages)
    listed = set(header["parts"])
    keywords = KeywordIndex(None, len(passages))
    if listed & set(PARTS):
        if not set(PARTS) <= listed:
            raise ValueError(f"{path / MANIFEST} lists some of {', '.join(PARTS)} and not all")
        keywords = KeywordIndex.load(path, len(passages))
    vectors_PK = index = None
    if _VECTORS in listed:
        vectors_PK = check_tensor(
            f"{path / _VECTORS}: vectors", load_file(path / _VECTORS).get("vectors"), torch.float32, 2
        )
        if len(vectors_PK) != len(passages):
            raise ValueError(f"{path / _VECTORS} holds {len(vectors_PK)} vectors for {len(passages)} passages")
        index = ExactIndex(vectors_PK) if header["index"] == ExactIndex.kind else load_index(path / _DENSE)
        if (index.num_items, index.dim) != tuple(vectors_PK.shape):
            raise ValueError(f"{path / _DENSE} is no index of the vectors in {path / _VECTORS}")
    sparse_PV = _sparse(path / _SPARSE, len(passages), header) if _SPARSE in listed else None
    gone_P = frame["gone"].to_numpy().copy()
    return PassageStock(passages, gone_P, keywords, index, vectors_PK, sparse_PV), header


def _sparse(path: Path, num_passages: int, header: dict[str, Any]) -> scipy.sparse.csr_matrix:
    check_header(header, sparse_dim=int)
    tensors = load_file(path)
    weight_T = check_tensor(f"{path}: weights", tensors.get("weights"), torch.float32, 1)
    column_T = check_tensor(f"{path}: indices", tensors.get("indices"), torch.int64, 1)
    offsets = check_tensor(f"{path}: indptr", tensors.get("indptr"), torch.int64, 1)
    check_offsets(f"{path}: indptr", offsets, len(weight_T))
    check_ids(f"{path}: indices", column_T, 0, header["sparse_dim"])
    if len(column_T) != len(weight_T) or len(offsets) != num_passages + 1:
        raise ValueError(f"{path} does not hold weights of {num_passages} passages")
    shape = (num_passages, header["sparse_dim"])
    return scipy.sparse.csr_matrix((weight_T.numpy(), column_T.numpy(), offsets.numpy()), shape=shape)
