"""What keys and values of common beginnings save a language model that judges candidates one by one.

Made users with histories of 12 items and 20 candidates each, every candidate in a prompt of its own: the instructions
are every prompt's beginning, the history every one of a user. Three ways of asking:

- *one call*: all users' prompts at once, nothing kept from before;
- *a call a user*: so that only the instructions come from earlier calls;
- *back again*: the same users with one item more in their histories and other candidates, kept from the first time.

``tokens`` are those that went through the model; the predicted ratio is theirs. Both ways' log-probabilities are
compared before anything is reported.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from recsys.pipelines.bench.case import Case
from recsys.pipelines.bench.made_language_model import made_language_model
from recsys.retrieval.rerank.background_loop import run
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Message

__all__ = ["bench_rerank_prefix", "prefix_reuse_case", "prefix_reuse_cases"]

_WORDS = (
    "red blue small large wooden soft train puzzle robot doll castle farm set game cards blocks car plush bear "
    "dinosaur magnetic building paint craft kit water garden tent ball bike play kitchen"
).split()
_OPTIONS = ("yes", "no")
_INSTRUCTIONS = (
    "You judge whether a customer of a shop will buy an item next. You are given what the customer bought, oldest "
    "first, and one item. Answer with one word, yes or no."
)
_TOLERANCE = {torch.float32: 1e-4}
_ROUNDED_TOLERANCE = 0.5


def bench_rerank_prefix(*, long: bool, lm: Path | None = None) -> list[Case]:
    """Cases of a made model, or of the one in the folder ``lm``; ``long``: more users and repeats."""
    return prefix_reuse_cases(lm, num_users=8 if long else 2, repeats=3 if long else 1)


def prefix_reuse_case(lm: Path | None = None, *, num_users: int = 2, num_candidates: int = 20) -> Case:
    """The first of :func:`prefix_reuse_cases`: one call."""
    return prefix_reuse_cases(lm, num_users=num_users, num_candidates=num_candidates, ways=("one call",))[0]


def prefix_reuse_cases(
    lm: Path | None,
    *,
    num_users: int,
    num_candidates: int = 20,
    repeats: int = 1,
    ways: Sequence[str] = ("one call", "a call a user", "back again"),
) -> list[Case]:
    """A case for each way of asking.

    Args:
        lm: folder of a model; None = a small made one.
        num_users: with ``num_candidates`` prompts each.
        repeats: of which the median time counts.
        ways: of those above.

    Raises:
        InputError: there is no such model.
    """
    if lm is None:
        reusing = made_language_model([*_WORDS, *_OPTIONS])
    else:
        reusing = LocalLanguageModel.load(lm)
    plain = LocalLanguageModel(reusing.model, reusing.tokenizer, name=reusing.name, reuse=False)
    users = _users(num_users, num_candidates)
    again = _users(num_users, num_candidates, more=1)
    calls = {
        "one call": [[chat for chats in users for chat in chats]],
        "a call a user": users,
        "back again": [[chat for chats in again for chat in chats]],
    }
    cases = []
    for way in ways:
        before = calls["one call"] if way == "back again" else []
        (ours_tokens, ours_s, ours), (all_tokens, all_s, others) = (
            _asked(model, before, calls[way], repeats) for model in (reusing, plain)
        )
        for one, other in zip(ours, others, strict=True):
            torch.testing.assert_close(
                torch.tensor(one.log_probs),
                torch.tensor(other.log_probs),
                rtol=0.0,
                atol=_TOLERANCE.get(reusing.model.dtype, _ROUNDED_TOLERANCE),
            )
        reused = sum(choice.usage.reused_tokens for choice in ours)
        cases.append(
            Case(
                name=way,
                shape={"model": reusing.name, "users": num_users, "candidates": num_candidates},
                ours={
                    "what": "common beginnings once",
                    "tokens": ours_tokens,
                    "tokens/s": ours_tokens / ours_s,
                    "seconds": ours_s,
                    "reused": reused / all_tokens,
                },
                other={
                    "what": "every token",
                    "tokens": all_tokens,
                    "tokens/s": all_tokens / all_s,
                    "seconds": all_s,
                },
                ratio=all_s / ours_s,
                predicted_ratio=all_tokens / ours_tokens,
            )
        )
    return cases


def _asked(
    lm: LocalLanguageModel, before: list[list[Chat]], calls: list[list[Chat]], repeats: int
) -> tuple[int, float, list[Choice]]:
    """Tokens computed by the calls, median seconds, answers."""
    seconds = []
    for _ in range(repeats):
        lm.forget()
        for chats in before:
            run(lm.choose(chats, [_OPTIONS] * len(chats)))
        tokens, start = lm.computed_tokens, time.perf_counter()
        choices = [choice for chats in calls for choice in run(lm.choose(chats, [_OPTIONS] * len(chats)))]
        seconds.append(time.perf_counter() - start)
        tokens = lm.computed_tokens - tokens
    return tokens, statistics.median(seconds), choices


def _users(num_users: int, num_candidates: int, *, more: int = 0) -> list[list[Chat]]:
    """Prompts of every user; ``more`` items after the first dozen of the history, and other candidates then."""
    out: list[list[Chat]] = []
    for user in range(num_users):
        rng = random.Random(user)
        history = [_title(rng) for _ in range(12)]
        rng = random.Random(1000 * (more + 1) + user)
        history += [_title(rng) for _ in range(more)]
        bought = "\n".join(f"- {title}" for title in history)
        out.append(
            [
                [
                    Message("system", _INSTRUCTIONS),
                    Message("user", f"Bought:\n{bought}\nWill the customer buy this next?\n- {_title(rng)}"),
                ]
                for _ in range(num_candidates)
            ]
        )
    return out


def _title(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(3, 9)))
