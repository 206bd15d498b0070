"""Which passages go into a prompt: what they are worth together, and a greedy choice under a token budget.

Suffixes: N = passages, W = words of the question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.retrieval.rag.words import content_words

__all__ = ["PassageUtility", "Selection", "affordable", "greedy", "text_similarity", "utility_of"]

Floats = NDArray[np.float64]
SetValue = Callable[[Sequence[int]], float]
"""What a set of passages is worth, whatever its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Passages that were chosen."""

    chosen: tuple[int, ...]
    """Numbers of the passages, in the order of the choice; places in the list that was chosen from."""
    value: float
    """What they are worth together."""
    tokens: int
    evaluations: int
    """Sets or orders whose value was computed."""
    complete: bool = True
    """False where a deadline ended the search."""


@dataclass(frozen=True, slots=True)
class PassageUtility:
    """U(S) = Σ r_i + γ Σ_w v_w·[some i in S has w] − λ Σ_{i<j} s_ij·min(r_i, r_j), for i, j in S.

    What fits the question counts, what covers its words counts once, and what says the same twice counts less. The
    sum can fall when a passage is added.
    """

    relevance_N: Floats
    """r, from 0 to 1."""
    similarity_NN: Floats
    """s, symmetric, from 0 to 1."""
    covers_NW: NDArray[np.bool_]
    """Which passage has which word of the question."""
    word_weight_W: Floats
    """v, of sum 1 where there are words."""
    redundancy: float = 1.0
    """λ."""
    coverage: float = 1.0
    """γ."""

    def __call__(self, chosen: Sequence[int]) -> float:
        if not len(chosen):
            return 0.0
        of = list(chosen)
        relevance_n = self.relevance_N[of]
        pair_nn = self.similarity_NN[np.ix_(of, of)] * np.minimum(relevance_n[:, None], relevance_n[None])
        twice = float(np.triu(pair_nn, 1).sum())
        covered = float(self.word_weight_W[self.covers_NW[of].any(0)].sum())
        return float(relevance_n.sum()) + self.coverage * covered - self.redundancy * twice


def utility_of(
    question: str,
    texts: Sequence[str],
    relevance: Sequence[float],
    similarity_NN: Floats | None = None,
    *,
    redundancy: float = 1.0,
    coverage: float = 1.0,
) -> PassageUtility:
    """The utility of passages for a question.

    A word of the question weighs log(1 + N / number of the passages that have it); one that none has weighs nothing.

    Args:
        relevance: of each passage, from 0 to 1, as :func:`recsys.retrieval.rag.passage.relevance` gives it.
        similarity_NN: None = :func:`text_similarity`.
    """
    asked = list(dict.fromkeys(content_words(question)))
    sets = [set(content_words(text)) for text in texts]
    covers_NW = np.array([[word in has for word in asked] for has in sets], dtype=np.bool_).reshape(
        len(texts), len(asked)
    )
    count_W = covers_NW.sum(0)
    weight_W = np.where(count_W > 0, np.log1p(len(texts) / np.maximum(count_W, 1)), 0.0)
    total = weight_W.sum()
    return PassageUtility(
        np.asarray(relevance, dtype=np.float64),
        text_similarity(texts) if similarity_NN is None else similarity_NN,
        covers_NW,
        weight_W / total if total > 0 else weight_W,
        redundancy,
        coverage,
    )


def text_similarity(texts: Sequence[str]) -> Floats:
    """[N, N] cosine of the sets of content words; 0 beside a text without any.

    >>> text_similarity(["red train", "red ship", "red train", ""]).round(2).tolist()[0]
    [1.0, 0.5, 1.0, 0.0]
    """
    sets = [frozenset(content_words(text)) for text in texts]
    made = np.zeros((len(sets), len(sets)))
    for i, one in enumerate(sets):
        for j in range(i + 1):
            if one and sets[j]:
                made[i, j] = made[j, i] = len(one & sets[j]) / math.sqrt(len(one) * len(sets[j]))
    return made


def affordable(tokens: Sequence[int], budget_tokens: int) -> list[int]:
    """Numbers of the passages that fit by themselves."""
    return [number for number, cost in enumerate(tokens) if cost <= budget_tokens]


def greedy(value: SetValue, tokens: Sequence[int], budget_tokens: int, *, most: int | None = None) -> Selection:
    """Add what gains most until nothing gains or fits.

    Done twice, by gain and by gain per token, and the better set of the two is taken, as in Lin and Bilmes,
    "Multi-document Summarization via Budgeted Maximization of Submodular Functions" (2010). Equal gains go to the
    smaller number.

    Args:
        value: of a set of numbers; of the empty one 0.
        tokens: cost of each passage, at least 0.
        budget_tokens: most of the sum.
        most: most passages; None = as many as fit.
    """
    if any(cost < 0 for cost in tokens):
        raise ValueError("a passage cannot cost less than 0 tokens")
    evaluations = 0
    best: tuple[float, list[int]] = (0.0, [])
    for by_token in (False, True):
        chosen: list[int] = []
        now, left = 0.0, budget_tokens
        free = affordable(tokens, budget_tokens)
        while free and (most is None or len(chosen) < most):
            gains = [value([*chosen, number]) - now for number in free]
            evaluations += len(gains)
            rates = [gain / max(1, tokens[free[at]]) if by_token else gain for at, gain in enumerate(gains)]
            at = max(range(len(free)), key=lambda at: (rates[at], -free[at]))
            if not gains[at] > 0:
                break
            now, left = now + gains[at], left - tokens[free[at]]
            chosen.append(free[at])
            free = [number for number in free if number not in chosen and tokens[number] <= left]
        if now > best[0]:
            best = now, chosen
    return Selection(
        chosen=tuple(best[1]),
        value=value(best[1]) if best[1] else 0.0,
        tokens=sum(tokens[number] for number in best[1]),
        evaluations=evaluations,
    )
