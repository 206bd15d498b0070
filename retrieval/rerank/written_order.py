"""Orders that a model writes down: what it is asked for, how long that may be, and what came."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.retrieval.rerank.lm.protocol import Generation, LanguageModel
from recsys.retrieval.rerank.order import read_order
from recsys.retrieval.rerank.tally import Tally

__all__ = ["answer_tokens", "example_answer", "written"]

_SPARE_TOKENS = 4


def example_answer(names: Sequence[str]) -> str:
    """What an answer looks like, without naming an order that a model could take for the right one.

    >>> example_answer("ABCD"), example_answer("A")
    ('[B] > [A] > …', '[A]')
    """
    return f"[{names[1]}] > [{names[0]}]" + (" > …" if len(names) > 2 else "") if len(names) > 1 else f"[{names[0]}]"


def answer_tokens(lm: LanguageModel, names: Sequence[str]) -> int:
    """Tokens that an answer of these labels may have: what they take, and a few more."""
    return lm.count_tokens([" > ".join(f"[{name}]" for name in names)])[0] + _SPARE_TOKENS


def written(answer: Generation, prefill: str, names: Sequence[str], expected: int, tally: Tally) -> Sequence[int]:
    """The order of an answer, what was wrong with it counted.

    An answer that broke off counts as a failed call; what it says before that is used, and nothing counts as missing.

    Args:
        prefill: what stood at the beginning of the answer already.
        names: labels of the candidates.
        expected: how many of them the answer should hold.
    Returns:
        A permutation of 0 … len(names) - 1.
    """
    if not tally.add(answer):
        return read_order(prefill + answer.text, names).places if answer.text else range(len(names))
    order = read_order(prefill + answer.text, names, expected=expected)
    tally.faults += order.faults
    return order.places
