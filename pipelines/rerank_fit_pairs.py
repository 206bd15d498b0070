"""Lists as what a cross-encoder learns from: a pair of texts for every candidate, and the score before it.

The earlier score is an offset of what the network says, so that it learns what that score lacks:
score = scale * standardised earlier score + logit. The scale is fitted to the same lists beforehand.

Suffixes: B = lists of a batch, C = candidates of the longest list, P = pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recsys.pipelines.rerank_fit_examples import wanted_ranks
from recsys.pipelines.rerank_fit_module import RerankModule, Tuning
from recsys.pipelines.rerank_lists import RerankLists
from recsys.retrieval.rerank.cross_encoder import CrossEncoderReranker
from recsys.retrieval.rerank.fusion import standardised
from recsys.retrieval.rerank.item_lines import item_line

__all__ = ["CrossEncoderModule", "PairExample", "offset_scale", "pair_examples"]

_PART = 32
"""Pairs of like length that go through the network together."""
_KEPT_TOKENS = 16_384
"""Tokens with padding whose activations are kept for the gradient: lists beyond are another part of the step, and of a
list with more, further pairs are computed twice, so that memory stays bounded."""
_LARGEST_SCALE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """One list; every part is of its candidates, in their order."""

    ranks: tuple[int, ...]
    """Wanted places from 1; equal ones where it does not matter."""
    gains: tuple[float, ...]
    earlier: tuple[float, ...]
    """Standardised score that the list was ordered by."""
    pairs: tuple[dict[str, list[int]], ...]
    """What the tokenizer makes of (what the user took, candidate)."""

    @property
    def num_tokens(self) -> int:
        return sum(len(pair["input_ids"]) for pair in self.pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Examples side by side."""

    pairs: tuple[dict[str, list[int]], ...]
    """P, list after list."""
    earlier_BC: Tensor
    there_BC: Tensor
    """[B, C] bool, P of them True."""
    rank_BC: Tensor
    gain_BC: Tensor

    def __len__(self) -> int:
        return len(self.there_BC)


def pair_examples(
    reranker: CrossEncoderReranker, lists: RerankLists, teacher: Sequence[Sequence[int] | None] | None = None
) -> list[PairExample]:
    """An example of every list that has two candidates or more.

    Args:
        reranker: that words the pairs, and whose tokenizer cuts them.
        lists: with what was chosen.
        teacher: wanted places from 1 of each list's candidates; None where none are known, or for all.
    """
    made = []
    for row, (request, gains) in enumerate(zip(lists.requests, lists.gains, strict=True)):
        if len(request.candidates) < 2:
            continue
        given = None if teacher is None else teacher[row]
        query = reranker.query(request)
        texts = [item_line(item, reranker.item_chars) for item in request.candidates]
        encoded = reranker.model.tokenizer(
            [query] * len(texts), texts, truncation=True, max_length=reranker.model.max_length
        )
        made.append(
            PairExample(
                ranks=wanted_ranks(gains, strict=False) if given is None else tuple(given),
                gains=tuple(gains),
                earlier=tuple(standardised([item.score for item in request.candidates]).tolist()),
                pairs=tuple({name: rows[at] for name, rows in encoded.items()} for at in range(len(texts))),
            )
        )
    return made


def offset_scale(examples: Sequence[PairExample]) -> float:
    """What the standardised earlier scores are multiplied by to explain best, as a softmax over the list, what is
    wanted first; 0 where they explain nothing."""
    earlier = [np.array(one.earlier) for one in examples]
    best = [np.array(one.ranks) == 1 for one in examples]

    def nats(scale: float) -> float:
        rows = zip(earlier, best, strict=True)
        return float(sum(logsumexp(scale * row) - logsumexp(scale * row[first]) for row, first in rows))

    found = minimize_scalar(nats, bounds=(0.0, _LARGEST_SCALE), method="bounded")
    return float(found.x) if found.fun < nats(0.0) else 0.0


class CrossEncoderModule(RerankModule):
    """Trains a sequence classifier with one output on the scores of whole lists.

    Args:
        net: such a model of transformers.
        tokenizer: its own; it pads.
        examples: of training.
        judged: of validation; may be empty.
        tuning: how; the losses ``first`` and ``pg-rank``. The language model's part of ``first`` is the softmax over
            the candidates here, so that with a ``rank_weight`` of 0 it is the listwise cross entropy.
        scale: of the earlier scores.
    """

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        examples: Sequence[PairExample],
        judged: Sequence[PairExample],
        tuning: Tuning,
        *,
        scale: float,
    ) -> None:
        super().__init__(net, examples, judged, tuning)
        self._tokenizer, self._scale = tokenizer, scale

    @property
    def part_tokens(self) -> int:
        """Of a part of a step: this network is small beside a language model."""
        return _KEPT_TOKENS

    def _batch(self, examples: Sequence[PairExample]) -> PairBatch:
        def column(rows: Sequence[Sequence[Any]], fill: Any) -> Tensor:
            width = max(map(len, rows))
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=self.device)

        count = max(len(one.gains) for one in examples)
        return PairBatch(
            pairs=tuple(pair for one in examples for pair in one.pairs),
            earlier_BC=column([one.earlier for one in examples], 0.0),
            there_BC=column([[True] * len(one.gains) for one in examples], False),
            rank_BC=column([one.ranks for one in examples], count + 1),
            gain_BC=column([one.gains for one in examples], 0.0),
        )

    def _scores(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """[B, C] scores, the earlier ones in them, and [B, 1] their logsumexp."""
        logit_BC = torch.zeros_like(batch.earlier_BC).masked_scatter(batch.there_BC, self._logits(batch.pairs))
        score_BC = self._scale * batch.earlier_BC + logit_BC
        return score_BC, score_BC.masked_fill(~batch.there_BC, -torch.inf).logsumexp(dim=1, keepdim=True)

    def _logits(self, pairs: Sequence[dict[str, list[int]]]) -> Tensor:
        """[P] outputs of the network."""
        order = sorted(range(len(pairs)), key=lambda place: len(pairs[place]["input_ids"]))
        parts, seen = [], 0
        for low in range(0, len(order), _PART):
            rows = [pairs[place] for place in order[low : low + _PART]]
            padded = self._tokenizer.pad(rows, return_tensors="pt").to(self.device)
            seen += padded["input_ids"].numel()
            if torch.is_grad_enabled() and seen > _KEPT_TOKENS:
                parts.append(checkpoint(self._outputs, dict(padded), use_reentrant=False))
            else:
                parts.append(self._outputs(dict(padded)))
        back = torch.tensor(order, device=self.device).argsort()
        return torch.cat(parts)[back]

    def _outputs(self, padded: dict[str, Tensor]) -> Tensor:
        logit_P: Tensor = self.net(**padded).logits[:, 0].float()
        return logit_P
