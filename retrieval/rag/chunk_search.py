"""Which passages, in which order: a tree search over their combinations under a token budget.

CORAG, "A Cost-Constrained Retrieval Optimization System for Retrieval-Augmented Generation", arXiv 2411.00744. A node
is an ordered list of passages. The next one to open has the largest mean reward + C·√(ln N / n) − λ·cost / budget,
with N and n the visits of the parent and of the node itself; all lists with one more passage are valued at once. The
answer is the best list seen at any depth, so that fewer passages may win.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from recsys.retrieval.rag.selection import Selection, SetValue, affordable

__all__ = ["Reward", "SearchSettings", "joined_texts", "of_sets", "search_chunks"]

Order = tuple[int, ...]
Reward = Callable[[Sequence[Order]], Sequence[float]]
"""Values of ordered lists of passages, several at once so that a model can score them as a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """Of one search."""

    iterations: int = 200
    """Nodes to open at most."""
    max_evaluations: int = 5000
    """Lists to value at most; of a cross-encoder each is one forward pass."""
    exploration: float = 0.3
    """C, in units of the spread of the rewards seen so far. The paper's √2 opens 20 passages breadth first and stays
    6 % below greedy on item text with 200 nodes; from .3 down to .1 it is above greedy."""
    cost_weight: float = 0.3
    """λ, in the same units; 1 in the paper."""
    most: int = 12
    """Passages of a list at most."""

    def __post_init__(self) -> None:
        for name in ("iterations", "max_evaluations", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"SearchSettings.{name} must be at least 1, got {getattr(self, name)!r}")


@dataclass(slots=True)
class _Node:
    order: Order
    cost: int
    visits: int = 0
    total: float = 0.0
    children: list[_Node] | None = None
    """None = not opened yet."""
    closed: bool = False
    """Nothing below is left to open."""


@dataclass(slots=True)
class _Seen:
    """Rewards of lists so far."""

    reward: Reward
    any_order: bool
    known: dict[Order, float] = field(default_factory=dict)
    best: tuple[float, Order] = (0.0, ())

    def __call__(self, orders: Sequence[Order]) -> list[float]:
        keys = [tuple(sorted(order)) if self.any_order else order for order in orders]
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            values = self.reward(new)
            self.known.update(zip(new, map(float, values), strict=True))
        made = [self.known[key] for key in keys]
        for order, value in zip(orders, made, strict=True):
            if value > self.best[0]:
                self.best = value, order
        return made

    @property
    def spread(self) -> float:
        return (max(self.known.values()) - min(0.0, *self.known.values())) or 1.0


def search_chunks(
    reward: Reward,
    tokens: Sequence[int],
    budget_tokens: int,
    *,
    settings: SearchSettings | None = None,
    start: Sequence[int] = (),
    any_order: bool = False,
    deadline: float | None = None,
) -> Selection:
    """Look for the list with the largest reward; the same input gives the same answer.

    Args:
        reward: of lists of passage numbers, whose tokens are within the budget. The empty list has 0.
        tokens: cost of each passage.
        budget_tokens: most of the sum.
        start: a list that is known to be good, such as that of :func:`~recsys.retrieval.rag.selection.greedy`: the
            answer is no worse, and it and its beginnings are opened first.
        any_order: whether the reward is one of sets, so that each set is valued once.
        deadline: a reading of :func:`time.monotonic`; past it the best so far is returned.
    """
    settings = settings or SearchSettings()
    seen = _Seen(reward, any_order)
    free = affordable(tokens, budget_tokens)
    root = _Node((), 0, visits=1)
    complete, placed = True, set[frozenset[int]]()
    lead = [number for number in start if number in free][: settings.most]
    if lead and sum(tokens[number] for number in lead) <= budget_tokens:
        seen([tuple(lead)])
    for iteration in range(settings.iterations):
        if deadline is not None and time.monotonic() >= deadline:
            complete = False
            break
        if root.closed or len(seen.known) >= settings.max_evaluations:
            break
        path = _guided(root, lead, iteration) or _most_promising(root, settings, budget_tokens, seen.spread)
        node = path[-1]
        left = budget_tokens - node.cost
        room = settings.max_evaluations - len(seen.known)
        extra = [number for number in free if number not in node.order and tokens[number] <= left][:room]
        if len(node.order) >= settings.most:
            extra = []
        node.children = [_Node((*node.order, number), node.cost + tokens[number]) for number in extra]
        if any_order:  # a set that stands elsewhere in the tree already is not opened a second time
            node.children = [child for child in node.children if frozenset(child.order) not in placed]
            placed.update(frozenset(child.order) for child in node.children)
        node.closed = not node.children
        rewards = seen([child.order for child in node.children])
        for child, value in zip(node.children, rewards, strict=True):
            child.visits, child.total = 1, value
        gained = max(rewards, default=node.total / node.visits)
        for above in reversed(path):
            above.visits += 1
            above.total += gained
            above.closed = above.children is not None and all(child.closed for child in above.children)
    value, order = seen.best
    return Selection(
        chosen=order,
        value=value,
        tokens=sum(tokens[number] for number in order),
        evaluations=len(seen.known),
        complete=complete,
    )


def of_sets(value: SetValue) -> Reward:
    """A reward out of the value of a set; use it with ``any_order=True``."""
    return lambda orders: [value(order) for order in orders]


T = TypeVar("T")


def joined_texts(
    question: str, texts: Sequence[str], score: Callable[[list[tuple[str, str]]], Sequence[float]]
) -> Reward:
    """A reward out of a model that scores a question with a text: of the passages of a list, joined in its order.

    Args:
        score: values of (question, text) pairs above 0, higher is better, such as ``predict`` of a cross-encoder whose
            output is a probability.
    """

    def reward(orders: Sequence[Order]) -> Sequence[float]:
        return score([(question, "\n".join(texts[number] for number in order)) for order in orders])

    return reward


def _guided(root: _Node, lead: Sequence[int], depth: int) -> list[_Node] | None:
    """The path to the first so many passages of a known list, while it is being opened."""
    if depth > len(lead):
        return None
    path = [root]
    for number in lead[:depth]:
        step = next((child for child in path[-1].children or [] if child.order[-1] == number), None)
        if step is None:
            return None
        path.append(step)
    return path if path[-1].children is None else None


def _most_promising(root: _Node, settings: SearchSettings, budget_tokens: int, spread: float) -> list[_Node]:
    """From the root to a node that is not opened yet, by the largest bound at every level."""
    path = [root]
    while path[-1].children is not None:
        parent = path[-1]
        log_visits = math.log(parent.visits)

        def bound(child: _Node, log_visits: float = log_visits) -> float:
            wide = settings.exploration * math.sqrt(log_visits / child.visits)
            dear = settings.cost_weight * child.cost / max(1, budget_tokens)
            return child.total / child.visits / spread + wide - dear

        path.append(max((child for child in parent.children or [] if not child.closed), key=bound))
    return path
