"""The command ``export``: from a checkpoint and its dataset to a bundle."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recsys.bundle import HYBRID_HEAD, SPARSE_TEXT, USER_FEATURES, StoredHistories, new_bundle
from recsys.content_map import ContentMap
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.index.memory_terms import MemoryWeights
from recsys.index.registry import build_index
from recsys.model import UnifiedModel
from recsys.past_counts import PastTable
from recsys.pipelines.calibrate import fit_calibration
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.code_graphs import code_neighbours
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.hybrid_choice import code_trie
from recsys.pipelines.item_graphs import item_graphs, weighted_relations
from recsys.pipelines.made_codes import write_tokenizers
from recsys.retrieval.bundle_retrievers import code_retriever_names
from recsys.retrieval.code_walk import WALK_ABOVE
from recsys.sparse_rows import write_sparse

__all__ = ["export", "export_checkpoint", "export_model"]

RETRIEVERS = ("dense", "dense_learned", "memory")
"""Of every bundle."""


def export(
    checkpoint: Path,
    data: Path,
    output: Path,
    histories: bool = False,
    index: str = "exact",
    walk_above: int = WALK_ABOVE,
) -> None:
    """Write the bundle that serves a trained model, its probabilities calibrated on the validation slates.

    Args:
        checkpoint: what `recsys fit` wrote, such as runs/1/checkpoints/best.ckpt.
        data: the prepared dataset that the model was trained on.
        output: folder to write; an older bundle there is replaced.
        histories: keep every user's events in the bundle, so that it answers user ids.
        index: exact, or one of FAISS (extra `faiss`): flat, ivf, hnsw, pq.
        walk_above: items above which `parallel` and `set` walk over items with codes alike instead of scoring all.
    """
    if walk_above < 0:
        raise InputError(f"--walk-above must be at least 0, got {walk_above}")
    began = time.perf_counter()
    dataset = Dataset.open(data)
    export_checkpoint(checkpoint, dataset, output, histories=histories, index=index, walk_above=walk_above)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    stdout_console().print(
        f"bundle {output}: {dataset.num_items:,} items, {'with' if histories else 'without'} histories, index {index}, "
        f"{size / 1e6:,.1f} MB, {time.perf_counter() - began:.1f} s"
    )


def export_checkpoint(
    checkpoint: Path,
    dataset: Dataset,
    output: Path,
    *,
    histories: bool = False,
    index: str = "exact",
    walk_above: int = WALK_ABOVE,
) -> None:
    """Write a bundle of all that a checkpoint holds; see :func:`export`.

    Raises:
        InputError: the checkpoint cannot be read or is of other data; or as :func:`export_model`.
    """
    model, meta = load_model(checkpoint)
    if meta.get("data_hash") != dataset.manifest.data_hash:
        raise InputError(
            f"{checkpoint} was not trained on {dataset.path} (data hash {str(meta.get('data_hash'))[:12]}, the "
            f"dataset's {dataset.manifest.data_hash[:12]}); give the dataset it was trained on, or fit again"
        )
    weights = meta.get("memory_weights")
    export_model(
        model,
        dataset,
        output,
        histories=histories,
        index=index,
        memory_weights=None if weights is None else MemoryWeights.from_dict(weights),
        hybrid_weights=meta.get("hybrid_weights"),
        hybrid_head=meta.get("hybrid_head"),
        tokenizers=meta.get("tokenizers"),
        walk_above=walk_above,
    )


def export_model(
    model: UnifiedModel,
    dataset: Dataset,
    output: Path,
    *,
    histories: bool = False,
    index: str = "exact",
    memory_weights: MemoryWeights | None = None,
    hybrid_weights: dict[str, Any] | None = None,
    hybrid_head: dict[str, Any] | None = None,
    tokenizers: dict[str, Tensor] | None = None,
    walk_above: int = WALK_ABOVE,
) -> None:
    """Write a bundle of a model in memory; see :func:`export`.

    Args:
        memory_weights, hybrid_weights, hybrid_head, tokenizers: as the checkpoint holds them.
        walk_above: as in :func:`export`.

    Raises:
        InputError: the output folder holds something else, or the index cannot be built.
    """
    manifest = dataset.manifest
    if model.config.user_dim not in (0, dataset.user_dim):
        raise InputError(
            f"the model reads {model.config.user_dim} features of users and {dataset.path} holds {dataset.user_dim}; "
            "give the dataset it was trained on"
        )
    if model.config.num_items != dataset.num_items:
        raise InputError(
            f"the model knows {model.config.num_items} items and {dataset.path} holds {dataset.num_items}; "
            "give the dataset it was trained on"
        )
    model.eval()
    with progress_bar("item graphs and calibration", 2) as advance:
        graphs = item_graphs(dataset, weighted_relations(memory_weights, model.config.relations))
        advance(1)
        fitted = fit_calibration(model, dataset, graphs[0])
        advance(1)
    calibration = fitted.calibration
    about = {
        "data_hash": manifest.data_hash,
        "num_items": dataset.num_items,
        "num_users": dataset.num_users if histories else 0,
        "item_id_type": str(dataset.item_ids.dtype),
        "actions": list(manifest.actions),
        "positives": list(manifest.positives),
        "negatives": list(manifest.negatives),
        "surfaces": list(manifest.surfaces),
        "clock": manifest.clock,
        "max_timestamp": manifest.max_timestamp,
        "split": manifest.split,
        "retrievers": [*RETRIEVERS, *code_retriever_names(model)],
        "index": index,
        "memory_weights": None if memory_weights is None else memory_weights.to_dict(),
        "hybrid_weights": hybrid_weights,
        "hybrid_head": hybrid_head and {name: hybrid_head[name] for name in ("names", "weight", "knows_new")},
        "text": manifest.text,
        "content": dataset.content_blocks,
        "calibration": {manifest.actions[action]: figures for action, figures in fitted.figures.items()},
        "user_content": dataset.user_blocks if model.config.user_dim else [],
    }
    with new_bundle(output, about) as folder:
        model.save(folder / "model")
        dataset.items.write_parquet(folder / "items.parquet")
        with torch.inference_mode():
            vectors = model.item_vectors().cpu().contiguous()
        save_file({"vectors": vectors}, folder / "vectors.safetensors")
        try:
            build_index(index, vectors).save(folder / "index")
        except ValueError as error:
            raise InputError(f"--index {index}: {error}") from error
        for name, graph in zip(("graph_train", "graph_now"), graphs, strict=True):
            graph.save(folder / name)
        if dataset.text_transform is not None:
            shutil.copytree(dataset.text_transform, folder / "text")
        if dataset.sparse_text is not None and "text" in graphs[0].relations:
            write_sparse(dataset.sparse_text, folder / SPARSE_TEXT)
        if model.config.content_dim and dataset.content is not None:
            ContentMap.fit(dataset.content, model.items.content_IC).save(folder / "content_map.safetensors")
        if not calibration.is_identity:
            calibration.save(folder / "calibration.safetensors")
        trie = code_trie(model, dataset)
        if trie is not None:
            trie.save(folder / "trie")
        if hybrid_head is not None:
            save_file(hybrid_head["tensors"], folder / HYBRID_HEAD)
        if dataset.num_items > walk_above:
            for kind, neighbours in code_neighbours(model).items():
                neighbours.save(folder / "neighbours" / kind)
        if model.codes.sizes and tokenizers is not None:
            write_tokenizers(tokenizers, folder / "tokenizers")
        if model.config.past_rates:
            past = PastTable.build(dataset.events, len(manifest.actions), len(manifest.surfaces))
            past.save(folder / "past_counts.safetensors")
        if histories:
            StoredHistories.write(folder / "histories.parquet", dataset.user_ids, dataset.events)
            if model.config.user_dim and dataset.user_content is not None:
                save_file({"features": torch.from_numpy(dataset.user_content)}, folder / USER_FEATURES)
