"""Which tokens of several prompts are computed together once, and what follows what."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from recsys.retrieval.rerank.lm.kept_states import KeptStates
from recsys.retrieval.rerank.lm.prefix_store import PrefixStore, shared_length

__all__ = ["PlannedRun", "plan_runs"]

Q = TypeVar("Q")

LEAST_SAVED_TOKENS = 32
"""A shared run is worth a pass of its own from here: with SmolLM2 on one core a pass costs about as much as 10 tokens
more in another one, and rows of one length fill a batch better."""


@dataclass(eq=False)
class PlannedRun(Generic[Q]):
    """Tokens of one or more prompts, computed once after those before them."""

    tokens: list[int]
    """From the beginning of the prompt to the end of the run."""
    start: int
    """First token of the run; those before it are there already or belong to the parents."""
    past: list[KeptStates] | None
    """Of all tokens before the run; None until the parent is computed."""
    questions: list[Q] = field(default_factory=list)
    """All whose prompts hold the run."""
    ending: list[Q] = field(default_factory=list)
    """Those whose prompts end with it."""
    children: list[PlannedRun[Q]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens) - self.start


def plan_runs(
    questions: list[tuple[list[int], Q]], store: PrefixStore | None, *, longest_run: int
) -> list[PlannedRun[Q]]:
    """Runs that can be computed at once; their ``children`` can after them.

    Args:
        questions: tokens of the prompt, at least one, and whose it is.
        store: what is known from earlier; None = nothing is shared at all.
        longest_run: tokens; a longer one becomes several that follow each other.
    """
    if store is None:
        runs = [PlannedRun(tokens, 0, [], [whose], [whose]) for tokens, whose in questions]
        return [_shortened(run, longest_run) for run in runs]
    asked: dict[tuple[int, ...], list[Q]] = defaultdict(list)
    for tokens, whose in questions:
        asked[tuple(tokens)].append(whose)
    # Prompts with the same kept prefix follow each other when sorted. The last token is computed in any case: its
    # logits are asked for.
    groups: list[tuple[list[KeptStates], int, list[list[int]]]] = []
    for prompt in map(list, sorted(asked)):
        past = store.match(prompt[:-1])
        known = sum(map(len, past))
        if groups and groups[-1][1] == known and groups[-1][2][0][:known] == prompt[:known]:
            groups[-1][2].append(prompt)
        else:
            groups.append((past, known, [prompt]))
    ready: list[PlannedRun[Q]] = []
    for past, known, prompts in groups:
        if len(prompts) > 1 and len(past) > 1:
            past = [KeptStates.joined(past)]  # once rather than for every one of them
        for run in _tree(prompts, known, asked):
            run.past = past
            ready.append(_shortened(run, longest_run))
    return ready


def _tree(prompts: list[list[int]], start: int, asked: dict[tuple[int, ...], list[Q]]) -> list[PlannedRun[Q]]:
    """Runs of sorted prompts that agree before ``start``."""
    top: list[PlannedRun[Q]] = []
    todo = [(prompts, start, top)]
    while todo:
        group, start, level = todo.pop()
        shared = shared_length(group[0], group[-1], start)
        if len(group) == 1 or (len(group) - 1) * (shared - start) >= LEAST_SAVED_TOKENS:
            whose = [question for prompt in group for question in asked[tuple(prompt)]]
            run = PlannedRun(group[0][:shared], start, None, whose)
            level.append(run)
            if len(group[0]) == shared:
                run.ending = asked[tuple(group[0])]
                group = group[1:]
            start, level = shared, run.children
        elif len(group[0]) == shared:  # the beginning of all others, too short to share
            todo.append((group[:1], start, level))
            group = group[1:]
        parts: dict[int, list[list[int]]] = defaultdict(list)
        for prompt in group:
            parts[prompt[shared]].append(prompt)
        todo += [(part, start, level) for part in parts.values()]
    return top


def _shortened(run: PlannedRun[Q], longest: int) -> PlannedRun[Q]:
    """The run, or the first of the shorter ones it becomes; the same for all that follow it."""
    todo = [run]
    while todo:
        part = todo.pop()
        if len(part) > longest:
            stop = part.start + longest
            rest = PlannedRun(part.tokens, stop, None, part.questions, part.ending, part.children)
            part.tokens, part.ending, part.children = part.tokens[:stop], [], [rest]
        todo += part.children
    return run
