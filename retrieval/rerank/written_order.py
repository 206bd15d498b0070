"""Orders that a model writes down: what it is asked for, how long that may be, and what came."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.retrieval.rerank.lm.protocol import Generation, LanguageModel
from recsys.retrieval.rerank.order import read_order
from recsys.retrieval.rerank.tally import Tally

__all__ = ["answer_tokens", "example_answer", "written"]

_SPARE_TOKENS = 4


def example_answer(names: Sequence[str]) -> str:
    """What an answer looks like.

    Measured on SmolLM2-135M-Instruct: with "…" at its end a small model copies it and stops, without an example it
    copies items instead of labels.

    >>> example_answer("ABCD"), example_answer("AB"), example_answer("A")
    ('[B] > [C] > [A]', '[B] > [A]', '[A]')
    """
    return " > ".join(f"[{name}]" for name in (*names[1:3], *names[:1]))


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
    whole = tally.add(answer)
    order = read_order(prefill + answer.text, names, expected=expected)
    if prefill and order.faults.malformed:  # some servers begin anew instead of going on
        anew = read_order(answer.text, names, expected=expected)
        order = order if anew.faults.malformed else anew
    if whole:
        tally.faults += order.faults
    return order.places
