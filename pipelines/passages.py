"""The command ``passages``: what ``ask`` searches in, made once and saved."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl

from recsys.bundle import Bundle
from recsys.errors import InputError, shown
from recsys.files import check_file_output, check_folder_output, write_json
from recsys.index.registry import INDEX_KINDS
from recsys.pipelines.console import progress_bar, stderr_console, stdout_console
from recsys.retrieval.rag.passage_files import MANIFEST
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.passages_of import ITEM, document_passages, item_passages, read_documents

__all__ = ["open_passages", "passages"]


def passages(
    output: Path,
    bundle: Path | None = None,
    documents: Path | None = None,
    columns: str | None = None,
    encoder: Path | None = None,
    sparse_encoder: Path | None = None,
    index: str = "exact",
    json: Path | None = None,
) -> None:
    """Save the texts of items and documents as passages, for `recsys ask --store`.

    Long texts are cut into pieces. Words are always searched; meaning with --encoder, learned words with
    --sparse-encoder. Needs recsys[rag].

    Args:
        output: folder to write; an older store there is replaced.
        bundle: take title and text of its items.
        documents: other texts, as Parquet or JSON lines with the columns id, text and, for one about an item, item_id.
        columns: of the items, to append to their texts, A,B.
        encoder: folder of a sentence-transformers model, for search by meaning; give it to `recsys ask` as well.
        sparse_encoder: folder of a SPLADE model; give it to `recsys ask` as well.
        index: of the encoder's vectors: exact, or one of FAISS (extra `faiss`): flat, ivf, hnsw, pq.
        json: write the figures to this file too.
    """
    if bundle is None and documents is None:
        raise InputError("give --bundle for the texts of its items, --documents for others, or both")
    if columns is not None and bundle is None:
        raise InputError("--columns are of items; give --bundle, or leave them out")
    if index not in INDEX_KINDS:
        raise InputError(f"--index: there is no index {shown(index)}; choose one of {', '.join(INDEX_KINDS)}")
    if index != "exact" and encoder is None:
        raise InputError(f"--index {index} is of the vectors of --encoder; give one, or leave it out")
    if json is not None:
        check_file_output(json, "--json")
    check_folder_output(output, marker=MANIFEST)
    began = time.perf_counter()
    items = None if bundle is None else Bundle.open(bundle).items
    made = []
    if items is not None:
        names = [] if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
        made += item_passages(items, columns=names)
    strange = 0
    if documents is not None:
        frame = read_documents(documents)
        of_documents = document_passages(frame if items is None else _with_ids_like(frame, items, documents))
        if items is not None:
            known = set(items["item_id"])
            strange = len({one.source for one in of_documents if one.item_id is not None and one.item_id not in known})
        made += of_documents
    if not made:
        raise InputError("there is no text to search in: neither items nor documents hold any")
    with nullcontext(None) if encoder is None else progress_bar("passages", len(made), "texts") as advance:
        store = PassageStore.build(
            made, encoder=encoder, sparse_encoder=sparse_encoder, index=index, advance=advance
        )  # fmt: skip
    store.save(output)
    figures = {
        "num_passages": len(store),
        "num_items": len({one.item_id for one in store.passages if one.source == ITEM}),
        "num_documents": len({one.source for one in store.passages if one.source != ITEM}),
        "num_documents_of_unknown_items": strange,
        "retrievers": list(store.retrievers),
        "tokens": sum(one.tokens for one in store.passages),
        "seconds": time.perf_counter() - began,
    }
    console = stdout_console()
    console.print(
        f"passages {output}: {figures['num_passages']:,} of {figures['num_items']:,} items and "
        f"{figures['num_documents']:,} documents, about {figures['tokens']:,} tokens; found by "
        f"{', '.join(store.retrievers)}; {figures['seconds']:.1f} s"
    )
    if strange:
        console.print(f"note: {strange:,} documents are about items that the bundle does not hold")
    if json is not None:
        write_json(json, figures)


def open_passages(
    items: pl.DataFrame | None,
    store: Path | None,
    encoder: Path | None,
    sparse_encoder: Path | None,
    known: Collection[Any] | None = None,
) -> PassageStore:
    """The passages that a command searches: a saved store, or those of an item table.

    Args:
        items: to make a store of; read where there is no ``store``.
        store: a folder of :func:`passages`.
        encoder, sparse_encoder: of the flags of these names.
        known: ids of the catalogue, of which some must have passages; None = it does not matter.

    Raises:
        InputError: the store cannot be opened, was made with other models, or is of another catalogue.
    """
    if store is None:
        assert items is not None
        return PassageStore.build(item_passages(items), encoder=encoder, sparse_encoder=sparse_encoder)
    found = PassageStore.load(store, encoder=encoder, sparse_encoder=sparse_encoder)
    if known is not None and not _any_known((one.item_id for one in found.passages), known):
        raise InputError(
            f"--store {store}: none of its {len(found):,} passages is about an item of the bundle; "
            "make it with `recsys passages --bundle`"
        )
    flags = {"dense": "--encoder", "sparse": "--sparse-encoder"}
    for name in found.without_model:
        stderr_console().print(f"note: {store} is searched without {name}, whose model {flags[name]} did not name")
    return found


def _any_known(item_ids: Iterable[Any], known: Collection[Any]) -> bool:
    ids = set(known)
    return any(item_id in ids for item_id in item_ids if item_id is not None)


def _with_ids_like(frame: pl.DataFrame, items: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The documents with item ids of the type that the catalogue's have, as far as they are ids at all."""
    kind = items["item_id"].dtype
    given = frame.schema.get("item_id", pl.Null())
    if not (given == pl.String or given.is_integer()):
        return frame
    cast = frame["item_id"].cast(kind, strict=False)
    lost = (cast.is_null() & frame["item_id"].is_not_null()).arg_true()
    if len(lost):
        row = int(lost[0])
        odd = shown(frame["item_id"][row])
        raise InputError(f"--documents: row {row} of {path} has item_id {odd}, and those of the bundle are integers")
    return frame.with_columns(item_id=cast)
