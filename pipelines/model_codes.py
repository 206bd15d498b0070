"""Semantic IDs made from the model's own item vectors.

Items that score alike for every user then share their first codes, which is what makes generation agree with dense
retrieval. After MSCGRec (arXiv 2509.22807), whose collaborative codes come from a trained sequential model. They are
made once the vectors are final (:mod:`recsys.pipelines.code_training`), or, where L_code trains the encoder too, anew
as the vectors settle, under numbers that agree with the old ones wherever possible.

Suffixes: I = items, D = width, K = codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.code_vectors import num_pairs
from recsys.dataset import Dataset
from recsys.files import read_json
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.pipelines.code_fitting import fit_fusion, fit_kind
from recsys.pipelines.code_settings import CodeSettings
from recsys.pipelines.item_codes import GivenCodes
from recsys.pipelines.made_codes import SIDS_FILE, MadeCodes, MadeKind, item_health, write_tokenizers
from recsys.tokenizers.item_tokenizer import FusedTokenizer, load_item_tokenizer
from recsys.tokenizers.residual_kmeans import ResidualKMeans
from recsys.tokenizers.semantic_ids import SemanticIds

CODE_HEADS = ("code_decoder.", "parallel_codes.", "set_codes.")
"""Where the names of their parameters begin."""

__all__ = [
    "CODE_HEADS",
    "MODEL_BLOCK",
    "carried_codes",
    "codes_of_model",
    "makes_codes_at",
    "refresh_codes",
    "set_codebooks",
    "start_code_heads",
    "with_codes",
]

MODEL_BLOCK = "model"
_SET_PARTS = 8
"""Codes of the set head. Residual codes are balanced by Sinkhorn where the catalogue is small (the default of the
settings): on Amazon Toys beams reached a test NDCG@10 of .044 with it and .041 without."""


def makes_codes_at(epoch: int, max_epochs: int | None) -> bool:
    """Whether codes are made anew before an epoch: the second, third, fifth, ninth, …, in the first two thirds.

    >>> [epoch for epoch in range(12) if makes_codes_at(epoch, 12)]
    [1, 2, 4, 8]
    """
    if max_epochs is not None and 0 < max_epochs and 3 * epoch > 2 * max_epochs:
        return False
    return epoch > 0 and epoch & (epoch - 1) == 0


def codes_of_model(
    model: UnifiedModel, dataset: Dataset, settings: CodeSettings, like: UnifiedModel | None = None
) -> GivenCodes | None:
    """Codes of the catalogue from a model's item vectors; None where these tell no two items apart.

    Args:
        model: of the dataset.
        dataset: for the items' ids.
        settings: of the codes; its blocks are not read.
        like: a model whose sizes are taken where it has codes.
    """
    blocks = _blocks(model)
    settings = replace(settings, set_parts=_SET_PARTS, whiten=not model.config.detach_codes)
    sizes = () if like is None else like.codes.sizes.get("codes", ())
    if sizes:
        settings = replace(settings, codebook_size=sizes[0], levels=len(sizes))
    kinds = {}
    try:
        fusion = fit_fusion(blocks, {}, settings.seed)
        for kind in settings.kinds:
            tokenizer = fit_kind(kind, blocks, fusion, settings)
            ids = SemanticIds.from_codes(tokenizer.assign(blocks), tokenizer.codebook_sizes)
            health = item_health(blocks, tokenizer, ids.codes_IL, fusion)
            kinds[kind] = MadeKind(ids, tokenizer, health, settings.method if kind == "codes" else "opq")
    except ValueError:
        return None
    about = {
        "data_hash": dataset.manifest.data_hash,
        "seed": settings.seed,
        "blocks": [{"name": MODEL_BLOCK, "kind": "item vectors", "scale": fusion.scales[MODEL_BLOCK]}],
    }
    return GivenCodes.of(MadeCodes(dataset.item_ids, kinds, about), settings.kinds)


def carried_codes(
    old: UnifiedModel,
    tokenizers: Mapping[str, Tensor] | None,
    network: UnifiedModel,
    dataset: Dataset,
    old_row_I: Tensor,
) -> GivenCodes | None:
    """The codes of a model that goes on with other data: its items keep theirs, new ones get theirs from its codebooks.

    Args:
        old: the model.
        tokenizers: of its codes, as its checkpoint keeps them.
        network: the one that goes on, whose item vectors are those of the old one where both know the item.
        dataset: that it will train on.
        old_row_I: [I] its row of each item in the old model, −1 = new.

    Returns:
        None where the old codes were not made of item vectors.
    """
    if not old.codes.sizes or tokenizers is None:
        return None
    blocks, kinds = _blocks(network), {}
    row_I = old_row_I.numpy()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizers(tokenizers, folder)
        about = read_json(folder / SIDS_FILE)
        if [block["name"] for block in about["blocks"]] != [MODEL_BLOCK]:
            return None
        fusion = fit_fusion(blocks, {}, int(about["seed"]))
        for kind in old.codes.sizes:
            tokenizer = load_item_tokenizer(folder / kind)
            codes_IL = tokenizer.encode(blocks)
            codes_IL[row_I >= 0] = old.codes.of(kind).cpu().numpy()[row_I[row_I >= 0]]
            ids = SemanticIds.from_codes(codes_IL, tokenizer.codebook_sizes)
            health = item_health(blocks, tokenizer, ids.codes_IL, fusion)
            kinds[kind] = MadeKind(ids, tokenizer, health, about["kinds"][kind]["method"])
    kept = {"data_hash": dataset.manifest.data_hash, "seed": about["seed"], "blocks": about["blocks"]}
    return GivenCodes.of(MadeCodes(dataset.item_ids, kinds, kept))


def _blocks(model: UnifiedModel) -> dict[str, NDArray[np.float32]]:
    trains = model.training
    model.eval()  # vectors of training have parts dropped at random
    vectors_ID = model.item_vectors().cpu().numpy()
    model.train(trains)
    return {MODEL_BLOCK: vectors_ID}


def refresh_codes(model: UnifiedModel, dataset: Dataset, seed: int) -> GivenCodes | None:
    """Make the codes of a model's heads anew from its item vectors and put them in place of the present ones, whose
    numbers they keep where possible.

    Args:
        model: with heads of semantic IDs.
        dataset: that it trains on.
        seed: of the codebooks.

    Returns:
        the codes; None where none of the same sizes could be made, and the present ones stay.
    """
    made = codes_of_model(model, dataset, CodeSettings(seed=seed, kinds=tuple(model.codes.sizes)), like=model)
    if made is None or made.sizes != model.codes.sizes:
        return None
    made = made.aligned(model, torch.arange(dataset.num_items))
    model.codes.fill(made.codes)
    set_codebooks(model, made)
    return made


def set_codebooks(model: UnifiedModel, codes: GivenCodes) -> None:
    """Give the decoder the residual codebooks, where its codes are those of the model's own item vectors."""
    if model.code_decoder is None:
        return
    tokenizer = None if codes.made is None else codes.made.kinds["codes"].tokenizer
    model.code_decoder.set_codebooks(None)
    if isinstance(tokenizer, FusedTokenizer) and isinstance(tokenizer.tokenizer, ResidualKMeans):
        if list(tokenizer.widths) == [MODEL_BLOCK]:
            scale = tokenizer.fusion.scales[MODEL_BLOCK]
            books = [torch.from_numpy(book / np.float32(scale)) for book in tokenizer.tokenizer.codebooks]
            model.code_decoder.set_codebooks(books)


@torch.no_grad()
def start_code_heads(model: UnifiedModel) -> None:
    """Let heads that leave the encoder alone start from what its finished item vectors say of each code, whatever the
    codes were made of."""
    trains = model.training
    model.eval()  # vectors of training have parts dropped at random
    vectors_ID = model.item_vectors()
    model.train(trains)
    for kind, head in (
        ("codes", model.code_decoder),
        ("parallel_codes", model.parallel_codes),
        ("set_codes", model.set_codes),
    ):
        if head is not None:
            head.start_from(vectors_ID, model.codes.of(kind).long())


def with_codes(config: ModelConfig, codes: GivenCodes | None, *, finished: bool = False) -> ModelConfig:
    """The configuration with a head for every kind of codes, or with none.

    Args:
        finished: whether item vectors are final, so that heads can start from them.
    """
    sizes = {} if codes is None else codes.sizes
    pairs = 0
    if codes is not None and "codes" in sizes and finished:
        pairs = num_pairs(codes.codes["codes"], sizes["codes"])
    return replace(
        config,
        code_pairs=pairs,
        code_score="dot" if codes is not None and finished else "cosine",
        code_sizes=sizes.get("codes", ()),
        parallel_sizes=sizes.get("parallel_codes", ()),
        set_sizes=sizes.get("set_codes", ()),
    )
