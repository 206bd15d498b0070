"""Keys and values of prompts that begin alike: computed once, found again, and nothing else changes."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.retrieval.rerank.lm import Chat, Message
from recsys.retrieval.rerank.lm.kept_states import KeptStates
from recsys.retrieval.rerank.lm.prefix_plan import PlannedRun, plan_runs
from recsys.retrieval.rerank.lm.prefix_store import PrefixStore, shared_length

pytest.importorskip("transformers", reason="needs the extra llm")

from recsys.retrieval.rerank.lm.local import LocalLanguageModel

PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=70), min_size=1, max_size=9)


def states_of(tokens: list[int], start: int = 0) -> KeptStates:
    """States that say which tokens they are of: a hash of all tokens until there."""
    marks = [float(hash(tuple(tokens[: at + 1])) % 1000) for at in range(start, len(tokens))]
    part_HND = torch.tensor(marks)[None, :, None]
    return KeptStates([part_HND, part_HND + 1], [part_HND + 2, part_HND + 3])


def marks(parts: list[KeptStates]) -> list[float]:
    return [value for part in parts for value in part.keys[0].flatten().tolist()]


@settings(deadline=None)
@given(prompts=PROMPTS, asked=PROMPTS, room=st.integers(0, 200))
def test_the_store_finds_true_prefixes_within_its_bytes(
    prompts: list[list[int]], asked: list[list[int]], room: int
) -> None:
    store = PrefixStore(max_bytes=room * 16)
    for prompt in prompts:
        store.add(prompt, states_of(prompt))
        assert store.num_bytes <= store.max_bytes
        assert store.num_bytes == 16 * store.num_tokens
    for prompt in [*asked, *prompts]:
        found = marks(store.match(prompt))
        assert found == marks([states_of(prompt)])[: len(found)]
        if room == 200 and sum(map(len, prompts)) * 16 <= store.max_bytes:
            longest = max(shared_length(prompt, other) for other in prompts)
            assert len(found) == longest


def test_what_is_asked_for_again_stays_longest() -> None:
    store = PrefixStore(max_bytes=16 * 30)
    shared = [1] * 10
    store.add(shared, states_of(shared))
    for at in range(2, 40):
        prompt = [*shared, *[at] * 5]
        store.match(prompt)
        store.add(prompt, states_of(prompt, 10))
    assert len(marks(store.match([*shared, 39]))) == 11
    assert len(marks(store.match([*shared, 2, 2]))) == 10
    assert store.num_bytes <= store.max_bytes


def test_states_after_unknown_tokens_are_not_kept() -> None:
    store = PrefixStore(max_bytes=1 << 20)
    store.add([1, 2, 3, 4], states_of([1, 2, 3, 4], 2))
    assert store.num_bytes == 0 and store.match([1, 2, 3]) == []


def all_runs(runs: list[PlannedRun[int]]) -> list[PlannedRun[int]]:
    return [run for top in runs for run in (top, *all_runs(top.children))]


@settings(deadline=None)
@given(prompts=PROMPTS, kept=PROMPTS, longest=st.integers(1, 40))
def test_plans_cover_every_prompt_once(prompts: list[list[int]], kept: list[list[int]], longest: int) -> None:
    store = PrefixStore(max_bytes=1 << 20)
    for prompt in kept:
        store.add(prompt, states_of(prompt))
    top = plan_runs([(prompt, at) for at, prompt in enumerate(prompts)], store, longest_run=longest)
    ends = []
    todo = [(run, 0 if run.past is None else sum(map(len, run.past))) for run in top]
    while todo:
        run, begins = todo.pop()
        assert run.start == begins and 1 <= len(run) <= longest
        for at in run.questions:
            assert prompts[at][: len(run.tokens)] == run.tokens
        for at in run.ending:
            assert prompts[at] == run.tokens and at in run.questions
        ends += run.ending
        todo += [(child, len(run.tokens)) for child in run.children]
    assert sorted(ends) == list(range(len(prompts)))
    assert sum(map(len, all_runs(top))) <= sum(map(len, prompts))


def workload(users: int, candidates: int, seed: int) -> list[Chat]:
    """Pointwise prompts: instructions for all, a history for every user, one candidate each."""
    rng = random.Random(seed)
    words = "red blue small large wooden train puzzle robot doll castle farm set game cards".split()
    chats: list[Chat] = []
    for _ in range(users):
        history = "\n".join(f"- {' '.join(rng.choices(words, k=5))}" for _ in range(8))
        for _ in range(candidates):
            title = " ".join(rng.choices(words, k=rng.randint(2, 6)))
            text = f"The user bought:\n{history}\nWill the user buy this next? {title}"
            chats.append(
                [Message("system", "You judge whether items fit a user. Answer yes or no."), Message("user", text)]
            )
    return chats


@pytest.mark.parametrize("batch_tokens", [40, 512, 100_000])
def test_reuse_changes_nothing_and_saves(small_lm_folder: Path, batch_tokens: int) -> None:
    chats = workload(users=3, candidates=6, seed=1)
    options = [["yes", "no"]] * len(chats)
    plain = LocalLanguageModel.load(small_lm_folder, device="cpu", reuse=False)
    reusing = LocalLanguageModel.load(small_lm_folder, device="cpu", batch_tokens=batch_tokens)
    expected = asyncio.run(plain.choose(chats, options))
    total = sum(choice.usage.prompt_tokens for choice in expected)
    assert plain.computed_tokens == total and all(choice.usage.reused_tokens == 0 for choice in expected)
    order = list(range(len(chats)))
    for seed in (0, 1):  # the second time across calls
        random.Random(seed).shuffle(order)
        before = reusing.computed_tokens
        choices = asyncio.run(reusing.choose([chats[at] for at in order], options))
        computed = reusing.computed_tokens - before
        for at, choice in zip(order, choices, strict=True):
            assert choice.log_probs == pytest.approx(expected[at].log_probs, abs=1e-4)
            assert choice.usage.prompt_tokens == expected[at].usage.prompt_tokens
        assert sum(choice.usage.prompt_tokens - choice.usage.reused_tokens for choice in choices) == computed
        assert computed < 0.35 * total
    assert computed == len(chats)  # one token each, for its logits


def test_reuse_changes_no_answer_and_keeps_within_its_bytes(small_lm_folder: Path) -> None:
    chats = workload(users=2, candidates=3, seed=2)
    plain = LocalLanguageModel.load(small_lm_folder, device="cpu", reuse=False)
    reusing = LocalLanguageModel.load(small_lm_folder, device="cpu", kept_bytes=100_000)
    expected = asyncio.run(plain.generate(chats, max_tokens=9))
    for _ in range(2):
        answers = asyncio.run(reusing.generate(chats, max_tokens=9))
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        assert reusing.kept_bytes <= 100_000
    longer = [
        [*chat, Message("assistant", answer.text), Message("user", "Why?")]
        for chat, answer in zip(chats, answers, strict=True)
    ]
    again = asyncio.run(reusing.generate(longer, max_tokens=9))
    assert [answer.text for answer in again] == [
        answer.text for answer in asyncio.run(plain.generate(longer, max_tokens=9))
    ]


def test_equal_prompts_are_computed_once(small_lm_folder: Path) -> None:
    lm = LocalLanguageModel.load(small_lm_folder, device="cpu")
    chats = workload(users=1, candidates=1, seed=3) * 4
    choices = asyncio.run(lm.choose(chats, [["A"], ["B"], ["A", "B"], ["yes"]]))
    assert lm.computed_tokens == choices[0].usage.prompt_tokens
    assert choices[2].log_probs == (choices[0].log_probs[0], choices[1].log_probs[0])
