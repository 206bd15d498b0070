"""Lists as what a language model learns from: the tokens of the reranker's own question, and what is right.

Suffixes: B = lists of a batch, N = tokens of the longest, C = candidates of the longest list, A = tokens of the longest
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.pipelines.rerank_lists import RerankLists
from recsys.retrieval.rerank.first import FirstReranker
from recsys.retrieval.rerank.full_list import FullListReranker
from recsys.retrieval.rerank.item_lines import labels
from recsys.retrieval.rerank.lm.chat_tokens import ChatTokens
from recsys.retrieval.rerank.request import RerankRequest

__all__ = ["Batch", "Example", "ExampleMaker", "collate", "wanted_ranks", "within_budget"]

NO_TOKEN = -1
SEPARATOR = 0


class _Counted(Protocol):
    @property
    def num_tokens(self) -> int: ...


_One = TypeVar("_One", bound=_Counted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One list. Its first parts are of the candidates, in the order in which the question names them."""

    ranks: tuple[int, ...]
    """Wanted places from 1; equal ones where it does not matter."""
    gains: tuple[float, ...]
    prompt_ids: tuple[int, ...]
    option_ids: tuple[int, ...] = ()
    """Tokens of the labels, where the first token of the answer is what orders them."""
    answer_ids: tuple[int, ...] = ()
    """Tokens of the written order, where it is written out."""
    answer_ranks: tuple[int, ...] = ()
    """Place that each token of the answer names; 0 = a separator."""
    reference: tuple[float, ...] = ()
    """Log-probabilities of the labels by the model as it was before training."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side, padded on the left, so that all answers end in the last column."""

    ids_BN: Tensor
    mask_BN: Tensor
    """[B, N] int64, 0 = padding."""
    place_BN: Tensor
    """[B, N] int64 positions."""
    option_BC: Tensor
    """[B, C] int64 tokens of the labels; 0 where there is none."""
    there_BC: Tensor
    """[B, C] bool."""
    rank_BC: Tensor
    gain_BC: Tensor
    reference_BC: Tensor
    answer_rank_BA: Tensor
    """[B, A] of the last A tokens: place named, 0 = separator, −1 = not of the answer."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__slots__})

    def __len__(self) -> int:
        return len(self.ids_BN)


def wanted_ranks(gains: Sequence[float], *, strict: bool) -> tuple[int, ...]:
    """Wanted places of a list's candidates, from what was chosen.

    >>> wanted_ranks([0.0, 0.0, 1.0], strict=False), wanted_ranks([0.0, 0.0, 1.0], strict=True)
    ((2, 2, 1), (2, 3, 1))

    Args:
        gains: in the given order.
        strict: an order without ties, the given one where nothing else decides; else 1 for what was chosen and 2 for
            all others.
    """
    if not strict:
        return tuple(1 if gain > 0 else 2 for gain in gains)
    order = sorted(range(len(gains)), key=lambda place: -gains[place])
    ranks = [0] * len(gains)
    for rank, place in enumerate(order, start=1):
        ranks[place] = rank
    return tuple(ranks)


class ExampleMaker:
    """Asks a reranker what it would ask, and adds what would be right."""

    def __init__(
        self, reranker: FirstReranker | FullListReranker, tokens: ChatTokens, *, shuffle: bool = False
    ) -> None:
        """
        Args:
            reranker: that is to be trained.
            tokens: of its language model.
            shuffle: show the candidates in another order than the given one.
        """
        self._reranker, self._tokens, self._shuffle = reranker, tokens, shuffle

    def of(
        self, lists: RerankLists, teacher: Sequence[Sequence[int] | None] | None = None, *, seed: int = 0
    ) -> list[Example]:
        """An example of every list that has two candidates or more.

        Args:
            lists: with what was chosen.
            teacher: wanted places from 1 of each list's candidates; None where none are known, or for all.
            seed: of the shuffling.

        Raises:
            InputError: a question is longer than the model reads, or the model lacks tokens for its labels.
        """
        strict = isinstance(self._reranker, FullListReranker)
        made = []
        for row, (request, gains) in enumerate(zip(lists.requests, lists.gains, strict=True)):
            if len(request.candidates) < 2:
                continue
            given = None if teacher is None else teacher[row]
            ranks = wanted_ranks(gains, strict=strict) if given is None else tuple(given)
            if self._shuffle:
                order = np.random.default_rng([seed, row]).permutation(len(gains)).tolist()
                request = replace(request, candidates=[request.candidates[place] for place in order])
                gains, ranks = tuple(gains[place] for place in order), tuple(ranks[place] for place in order)
            made.append(self._example(request, tuple(gains), ranks))
            most = self._reranker.lm.context_tokens
            if made[-1].num_tokens > most:
                raise InputError(
                    f"the question about the list of user {lists.user_ids[row]} is {made[-1].num_tokens} tokens, and "
                    f"the model reads {most}; ask for fewer candidates with --k"
                )
        return made

    def _example(self, request: RerankRequest, gains: tuple[float, ...], ranks: tuple[int, ...]) -> Example:
        reranker = self._reranker
        count, prefill = len(gains), reranker.prompt.prefill
        if isinstance(reranker, FirstReranker):
            ids, before = self._tokens.encode(reranker.question(request, tuple(range(count))), prefill)
            options = self._tokens.option_ids(labels(count, letters=True), before)
            return Example(ranks=ranks, gains=gains, prompt_ids=tuple(ids), option_ids=tuple(options))
        ids, _ = self._tokens.encode(reranker.question(request), prefill)
        answer_ids, answer_ranks = self._answer(reranker.names(count), ranks, prefill)
        return Example(
            ranks=ranks, gains=gains, prompt_ids=tuple(ids), answer_ids=answer_ids, answer_ranks=answer_ranks
        )

    def _answer(self, names: Sequence[str], ranks: Sequence[int], prefill: str) -> tuple[tuple[int, ...], ...]:
        """Tokens of ``[b] > [a]`` after the prefill, which may hold the first bracket, and the places they name."""
        order = sorted(range(len(names)), key=lambda place: ranks[place])
        pieces: list[tuple[str, int]] = []
        for rank, place in enumerate(order, start=1):
            pieces += [("[" if rank == 1 else "] > [", SEPARATOR), (names[place], rank)]
        pieces.append(("]", SEPARATOR))
        ids: list[int] = []
        named: list[int] = []
        before = prefill
        for text, rank in pieces[1:] if prefill.endswith("[") else pieces:
            found = self._tokens.next_ids(text, before)
            ids += found
            named += [rank] * len(found)
            before = text
        stop = min(self._tokens.stop_ids)
        return (*ids, stop), (*named, SEPARATOR)


def within_budget(examples: Sequence[_One], max_tokens: int) -> list[_One]:
    """As many of the first examples as have so many tokens together.

    Raises:
        InputError: not even the first does.
    """
    kept: list[_One] = []
    total = 0
    for example in examples:
        total += example.num_tokens
        if total > max_tokens:
            break
        kept.append(example)
    if not kept:
        first = f"the first list alone has {examples[0].num_tokens}" if examples else "there are no lists"
        raise InputError(f"--max-tokens leaves {max_tokens} tokens an epoch, and {first}; give more")
    return kept


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Examples as tensors."""
    width = max(example.num_tokens for example in examples)
    candidates = max(len(example.gains) for example in examples)
    answer = max(len(example.answer_ids) for example in examples)
    ids_BN = torch.full((len(examples), width), pad_id)
    mask_BN = torch.zeros_like(ids_BN)
    option_BC = torch.zeros((len(examples), candidates), dtype=torch.int64)
    there_BC = torch.zeros_like(option_BC, dtype=torch.bool)
    rank_BC = torch.full_like(option_BC, candidates + 1)
    gain_BC, reference_BC = torch.zeros(option_BC.shape), torch.zeros(option_BC.shape)
    answer_rank_BA = torch.full((len(examples), answer), NO_TOKEN)
    for row, one in enumerate(examples):
        count = len(one.gains)
        ids_BN[row, width - one.num_tokens :] = torch.tensor(one.prompt_ids + one.answer_ids)
        mask_BN[row, width - one.num_tokens :] = 1
        there_BC[row, :count] = True
        rank_BC[row, :count], gain_BC[row, :count] = torch.tensor(one.ranks), torch.tensor(one.gains)
        if one.option_ids:
            option_BC[row, :count] = torch.tensor(one.option_ids)
        if one.reference:
            reference_BC[row, :count] = torch.tensor(one.reference)
        if one.answer_ids:
            answer_rank_BA[row, answer - len(one.answer_ids) :] = torch.tensor(one.answer_ranks)
    return Batch(
        ids_BN=ids_BN,
        mask_BN=mask_BN,
        place_BN=(mask_BN.cumsum(1) - 1).clamp(min=0),
        option_BC=option_BC,
        there_BC=there_BC,
        rank_BC=rank_BC,
        gain_BC=gain_BC,
        reference_BC=reference_BC,
        answer_rank_BA=answer_rank_BA,
    )
