"""The heads of semantic IDs, trained on the encoder of a fit's best epoch.

With ``detach_codes`` L_code sends nothing into the encoder, so that its steps need not take turns with the others:
they come after the best epoch is known, on the item vectors that will be served and on larger batches.
Items whose vectors are close then share their first codes, which is what makes generation agree with dense retrieval:
on Amazon Toys the residual codebooks alone, read as a tree of mean vectors, find .123 of the validation targets among
ten items where codes of text and transitions find .077 (dense: .140).

Suffixes: I = items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recsys.code_accuracy import code_accuracy
from recsys.code_children import CodeChildren
from recsys.code_decoder import StateReader
from recsys.code_distillation import CodeDistillation
from recsys.dataset import Dataset
from recsys.files import atomic_file
from recsys.model import UnifiedModel
from recsys.objective import Objective
from recsys.pipelines.checkpoint import load_model, stored_names
from recsys.pipelines.console import progress_bar
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.item_codes import AUTO, GivenCodes
from recsys.pipelines.model_codes import CODE_HEADS, carried_codes, start_code_heads, with_codes
from recsys.pipelines.recipe import chosen_batch_tokens, validation_requests
from recsys.pipelines.request_tensors import request_tensors
from recsys.vocabulary import IdMap

__all__ = ["add_code_heads", "train_code_heads"]

_TIMES_TOKENS, _MOST_TOKENS = 4, 2048
_LR, _WEIGHT_DECAY, _CLIP = 1e-3, 0.1, 1.0
_WARMUP, _DECAY = 100, 0.3
_JUDGED_REQUESTS = 512
_SHARE = 0.9
"""Of a label that dense retrieval decides."""
_CANDIDATES = 1024
"""Items drawn for a step of the heads that score whole items."""
_MOST_TAUGHT = 50_000
"""Items up to which dense retrieval labels every prefix."""
_OF_HEADS = ("code_pairs", "code_score", "code_children")
_VECTORS = "codes_JKD"
"""Parameters that start from item vectors and are not pulled to zero."""
_OF_PREFIXES = ("code_decoder.pairs.", "code_decoder.codebook_")

Log = Callable[[dict[str, float], int], None]


def add_code_heads(
    checkpoint: Path,
    data: PreparedData,
    epochs: int,
    *,
    init_from: Path | None = None,
    moved: bool = True,
    log: Log = lambda figures, step: None,
) -> UnifiedModel | None:
    """Make semantic IDs for the model of a checkpoint, train its heads for them, and keep both in the checkpoint.

    A checkpoint that has heads is left as it is, so that a fit which was killed here goes on to the same bytes.

    Args:
        checkpoint: of a fit on this data.
        data: that it was trained on.
        epochs: passes over the training events.
        init_from: a checkpoint whose heads go on learning, with numbers of codes that agree with its own.
        moved: whether training has moved the weights since; if not, codes and heads of ``init_from`` stay as they are,
            unless the data names other codes.
        log: takes figures by name and the number of steps so far.

    Returns:
        the model with its heads; None where there are no codes to be had.
    """
    model, meta = load_model(checkpoint)
    if model.codes.sizes or not model.config.detach_codes:
        return model if model.codes.sizes else None
    old, old_row_I, codes = None, torch.zeros(0, dtype=torch.int64), None
    if init_from is not None:
        old, before = load_model(init_from)
        old_row_I = torch.from_numpy(IdMap(stored_names(before, init_from).item_ids).index(data.dataset.item_ids))
        if not moved and data.sids == AUTO:
            codes = carried_codes(old, before.get("tokenizers"), model, data.dataset, old_row_I)
    carried = codes is not None
    if codes is None:
        codes = data.codes(model, like=old)
        if codes is not None and old is not None:
            codes = codes.aligned(old, old_row_I)
    if codes is None:
        return None
    network = _with_heads(model, codes, data.seed, old, carried)
    if moved or not carried:
        train_code_heads(network, data, epochs, log=log)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["state_dict"] = {f"net.{name}": value for name, value in network.state_dict().items()}
    content["recsys"] |= {"config": network.config.to_dict(), "tokenizers": codes.tokenizers()}
    with atomic_file(checkpoint) as temporary:
        torch.save(content, temporary)
    return network


def _with_heads(
    model: UnifiedModel, codes: GivenCodes, seed: int, old: UnifiedModel | None, carried: bool
) -> UnifiedModel:
    """The model with heads for its codes, that start from its item vectors or go on from those of an old model.

    Args:
        carried: whether the codes are the old model's own: what the decoder knows of prefixes then stays, too.
    """
    config = with_codes(model.config, codes, finished=True)
    if carried:
        assert old is not None
        config = replace(config, **{name: getattr(old.config, name) for name in _OF_HEADS})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UnifiedModel(config)
    network.load_state_dict(model.state_dict(), strict=False)
    network.codes.fill(codes.codes)
    if not carried:
        start_code_heads(network)
    made_anew = () if carried else _OF_PREFIXES
    for prefix in CODE_HEADS if old is not None else ():
        assert old is not None
        before, after = (
            {name: value for name, value in one.state_dict().items() if name.startswith(prefix)}
            for one in (old, network)
        )
        before, after = (
            {n: value for n, value in one.items() if not n.startswith(made_anew)} for one in (before, after)
        )
        if {name: value.shape for name, value in before.items()} == {n: value.shape for n, value in after.items()}:
            network.load_state_dict(before, strict=False)
    return network


def train_code_heads(
    network: UnifiedModel, data: PreparedData, epochs: int, *, log: Log = lambda figures, step: None
) -> None:
    """Train the heads of a network in place; everything else stays as it is.

    AdamW at a peak rate of .001, warmed up over 100 steps and falling over the last 30 % of them. Which windows a batch
    holds and what dropout draws depend on the seed and the step alone.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).requires_grad_(False).eval()
    heads = [one for one in (network.code_decoder, network.parallel_codes, network.set_codes) if one is not None]
    parameters = [parameter.requires_grad_() for head in heads for parameter in head.parameters()]
    examples = data.examples(network.config, slates=False, batch_tokens=_tokens(data))
    objective = Objective(network, torch.from_numpy(data.dataset.train_item_counts()))
    objective.to(device)
    if network.config.code_score == "dot":
        objective.distillation = _distillation(network, data.dataset)
    vectors = {id(one) for head in heads for name, one in head.named_parameters() if name.endswith(_VECTORS)}

    def decays(parameter: Tensor) -> bool:
        return parameter.dim() > 1 and id(parameter) not in vectors

    optimizer = torch.optim.AdamW(
        [
            {"params": [one for one in parameters if decays(one)], "weight_decay": _WEIGHT_DECAY},
            {"params": [one for one in parameters if not decays(one)], "weight_decay": 0.0},
        ],
        lr=_LR,
    )
    total = epochs * examples.steps_per_epoch
    warmup, decay = min(_WARMUP, max(1, total // 5)), max(1.0, _DECAY * total)
    with progress_bar("semantic IDs", total) as advance, torch.random.fork_rng(devices=[]):
        for step in range(total):
            torch.manual_seed(data.seed * 1_000_003 + step)
            for head in heads:
                head.train()
            for group in optimizer.param_groups:
                group["lr"] = _LR * min(1.0, (step + 1) / warmup) * min(1.0, max(0.02, (total - step) / decay))
            loss, code = objective.code_loss(examples.batch(step).to(device))
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, _CLIP)
                optimizer.step()
            if code is not None and step % max(1, min(50, total // 20)) == 0:
                log({"train/code_nats": float(code)}, step)
            if (step + 1) % examples.steps_per_epoch == 0:
                network.eval()
                log(_accuracy(network, data.dataset), step)
            advance(1)
    network.requires_grad_().eval().to("cpu")


def _distillation(network: UnifiedModel, dataset: Dataset) -> CodeDistillation:
    children = None
    if network.code_decoder is not None and dataset.num_items <= _MOST_TAUGHT:
        children = CodeChildren.of(network.codes.of("codes"), network.config.code_sizes)
    count_I = torch.from_numpy(dataset.train_item_counts()).to(network.device)
    return CodeDistillation(network.item_vectors(), count_I, _SHARE, _CANDIDATES, children)


def _tokens(data: PreparedData) -> int:
    given = data.batch_tokens or chosen_batch_tokens(int(data.dataset.train_end.sum()))
    return min(_MOST_TOKENS, _TIMES_TOKENS * given)


@torch.no_grad()
def _accuracy(network: UnifiedModel, dataset: Dataset) -> dict[str, float]:
    """How often each code of the decoder is right, on validation; see :mod:`recsys.code_accuracy`."""
    requests = validation_requests(dataset)
    if network.code_decoder is None or not len(requests):
        return {}
    picked = np.unique(np.linspace(0, len(requests) - 1, min(len(requests), _JUDGED_REQUESTS)).astype(np.int64))
    requests = requests.rows(picked)
    histories, at_B, surface_B, target_B = request_tensors(dataset, requests, network.device)
    states = network.encode(histories, user_BK=dataset.user_rows(requests.user))
    codes = network.codes.of("codes")
    children = CodeChildren.of(codes, network.config.code_sizes) if network.config.code_children else None
    found = code_accuracy(
        network.code_decoder,
        network.query(states, at_B, surface_B),
        codes[target_B].long(),
        StateReader(states),
        None if children is None else children.to(network.device),
    )
    return {f"val/codes/{name}": value for name, value in found.figures().items()}
