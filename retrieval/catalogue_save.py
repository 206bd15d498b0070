"""Writing a bundle whose catalogue changed after it was loaded.

Suffixes: I = items.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
from safetensors.torch import save_file

from recsys.bundle import SPARSE_TEXT, WITHDRAWN, new_bundle
from recsys.errors import InputError
from recsys.files import sha256_file
from recsys.grown_items import whole_model
from recsys.retrieval.catalogue_update import CatalogueState
from recsys.sparse_rows import write_sparse

__all__ = ["save_state"]

_ANEW = (
    "model/", "items.parquet", "vectors.safetensors", "graph_now/", "graph_train/", "index/", "trie/", "neighbours/",
    WITHDRAWN,
)  # fmt: skip
"""Files written from memory; all others are copied."""
_HEADER = ("format", "format_version", "model_hash", "files", "checksum")


def save_state(state: CatalogueState, path: Path) -> None:
    """Write a bundle that loads as what answers requests now.

    Args:
        state: of which nothing changes.
        path: a folder to write; an older bundle there is replaced.

    Raises:
        InputError: the bundle that it was made from is gone, or was changed.
    """
    snapshot = state.snapshot
    bundle = snapshot.bundle
    if state.as_loaded:
        bundle.save(path)
        return
    if path.absolute() == bundle.path.absolute():
        raise InputError(f"{path} is the bundle that is served; save to another folder and swap to it")
    about = {name: value for name, value in bundle.manifest.items() if name not in _HEADER}
    with new_bundle(path, {**about, "num_items": len(bundle.vocabulary.items)}) as folder:
        for name, expected in bundle.manifest["files"].items():
            if name.startswith(_ANEW) or (name == SPARSE_TEXT and state.relations is not None):
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            source = bundle.path / name
            if not source.is_file() or sha256_file(source) != expected:
                raise InputError(f"{source} is missing or was changed, so that the bundle cannot be written again")
            shutil.copyfile(source, folder / name)
        whole_model(bundle.model).save(folder / "model")
        bundle.items.write_parquet(folder / "items.parquet")
        save_file({"vectors": bundle.vectors.cpu().contiguous()}, folder / "vectors.safetensors")
        bundle.index.save(folder / "index")
        bundle.graph_now.save(folder / "graph_now")
        bundle.graph_train.save(folder / "graph_train")
        if bundle.trie is not None:
            bundle.trie.whole().save(folder / "trie")
        for kind, found in bundle.neighbours.items():
            if found.fits(bundle.model.codes.of(kind)):
                found.save(folder / "neighbours" / kind)
        if SPARSE_TEXT in bundle.manifest["files"] and state.relations is not None:
            write_sparse(state.relations["text"].rows(), folder / SPARSE_TEXT)
        if len(bundle.withdrawn_G):
            ids = bundle.vocabulary.items.ids.gather(bundle.withdrawn_G)
            pl.DataFrame({"item_id": ids}).write_parquet(folder / WITHDRAWN)
