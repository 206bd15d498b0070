"""One pass of a model over runs of tokens, each after a past of its own, and a check that a model allows it.

Suffixes: B = rows computed together, N = new tokens of the longest row, W = slots of the longest row, past and new,
V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.retrieval.rerank.lm.kept_states import KeptStates, PastLayer, model_cache
from recsys.retrieval.rerank.lm.prefix_plan import PlannedRun

__all__ = ["check_runs", "compute_runs"]

Q = TypeVar("Q")

_MOST_DIFFERENCE = {torch.float32: 1e-3}
_MOST_ROUNDED_DIFFERENCE = 0.3


def compute_runs(
    model: Any, batch: Sequence[PlannedRun[Q]], check: Callable[[], None]
) -> tuple[Tensor, list[KeptStates]]:
    """Logits after each run, [B, V], and the states of its tokens, as parts of the batch's memory.

    Args:
        model: of transformers.
        batch: at least one run, each with its past.
        check: called before every layer; raises to give up.
    """
    lengths = [len(run) for run in batch]
    rows, longest = len(batch), max(lengths)
    widest = max(len(run.tokens) for run in batch)
    id_BN = torch.zeros((rows, longest), dtype=torch.int64)
    mask_BW = torch.zeros((rows, widest), dtype=torch.int64)
    place_BN = torch.zeros((rows, longest), dtype=torch.int64)
    for row, run in enumerate(batch):
        id_BN[row, longest - len(run) :] = torch.tensor(run.tokens[run.start :])
        place_BN[row, longest - len(run) :] = torch.arange(run.start, len(run.tokens))
        mask_BW[row, widest - len(run.tokens) :] = 1
    layers = []
    for at in range(model.config.get_text_config().num_hidden_layers):
        past = [[kept for part in run.past or [] for kept in (part.keys[at], part.values[at])] for run in batch]
        layers.append(PastLayer(past, lengths, check))
    logits_BV = model(
        input_ids=id_BN.to(model.device),
        attention_mask=mask_BW.to(model.device),
        position_ids=place_BN.to(model.device),
        past_key_values=model_cache(layers),
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    new = [layer.new for layer in layers if layer.new is not None]
    starts = [longest - length for length in lengths]
    states = [
        KeptStates([key[row, :, start:] for key, _ in new], [value[row, :, start:] for _, value in new])
        for row, start in enumerate(starts)
    ]
    return logits_BV, states


@torch.inference_mode()
def check_runs(model: Any, where: object) -> None:
    """Whether a model gives the same logits in batches and after kept keys and values as it does on its own.

    Raises:
        InputError: it does not: its layers keep something else, or it reads places from the mask or the slots.
    """
    kind = model.config.model_type
    tokens = [at % model.config.get_text_config().vocab_size for at in range(11, 22)]
    try:
        first: PlannedRun[None] = PlannedRun(tokens[:5], 0, [])
        _, states = compute_runs(model, [first], lambda: None)
        second: PlannedRun[None] = PlannedRun(tokens, 5, [states[0]])
        together_BV, _ = compute_runs(model, [PlannedRun(tokens[3:6], 0, []), second, second], lambda: None)
        alone_BV = torch.stack(
            [model(torch.tensor([ids], device=model.device)).logits[0, -1] for ids in (tokens[3:6], tokens)]
        )
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: a {kind} cannot go on from kept keys and values ({reason}); give another model"
        ) from None
    likeliest_BK = alone_BV.topk(min(50, alone_BV.shape[1])).indices
    one, other = (
        logits_BV.float().log_softmax(-1).gather(1, likeliest_BK) for logits_BV in (together_BV[:2], alone_BV)
    )
    difference = (one - other).abs().mean().item()
    if not difference <= _MOST_DIFFERENCE.get(model.dtype, _MOST_ROUNDED_DIFFERENCE):
        raise InputError(
            f"{where}: a {kind} answers otherwise in a batch than alone (log-probabilities differ by "
            f"{difference:.2g}); give another model"
        )
