"""Business rules of a run of ``recsys candidates``: those of a request, the same for everybody.

Suffixes: B = requests of a batch, C = candidates of a request, E = exclusions, K = hits, A = actions, I = items,
N = allowed items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import History, Requests
from recsys.pipelines.candidate_rerank import ListReorder
from recsys.retrieval.answer import of_rows, padded, search_lists
from recsys.retrieval.protocol import Retriever
from recsys.retrieval.question import Found, Question, candidates_wanted, sorted_ids
from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.request import Request
from recsys.retrieval.rules import Boost, Floor, Pin, Rule
from recsys.retrieval.rules.apply import Chosen, Probabilities, choose_pages
from recsys.retrieval.rules.plan import RulePlan
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.timings import BatchTimings
from recsys.state_store import UserStateStore
from recsys.user_state import UserStates

__all__ = ["ListRules", "Rank"]

Ints = NDArray[np.int64]
Rank = Callable[[Any, Ints, Ints, Ints], NDArray[np.float32]]
"""From states, [B, C] items (-1 = empty), [B] times and [B] surfaces to [B, C, A] probabilities."""

_ALLOWED = "allowed"
"""Stands for the items of all requests, which are the same."""


class ListRules:
    """Rules checked against a bundle, and what they make of the candidates of a batch: the pages that the same rules
    give to requests."""

    def __init__(
        self,
        path: Path,
        rules: Sequence[Rule],
        bundle: Bundle,
        names: Sequence[str],
        *,
        k: int,
        rank: int,
        allow_N: Ints | None,
    ) -> None:
        """Check, before anything is computed.

        Args:
            path: the file of the rules, for messages.
            rules: from :func:`recsys.pipelines.rule_file.read_rules`, in its order.
            bundle: loaded.
            names: retrievers.
            k: hits per user.
            rank: how many of them get probabilities.
            allow_N: the only items that may be returned, strictly rising; None = all.

        Raises:
            InputError: one line naming the rule that cannot be meant here: a column, item or action that the bundle
                does not have, a score that lists do not have, filters that no item passes.
        """
        self._bundle, self.path = bundle, path
        self._snapshot = Snapshot(
            bundle=bundle,
            retrievers={},
            length_I=bundle.vectors.norm(dim=1),
            states=UserStateStore(bundle.model, model_hash=bundle.model_hash, max_bytes=0, host_bytes=0),
        )
        self._request = Request(k=k, retrievers=tuple(names), rank=rank > 0)
        for number, rule in enumerate(rules, start=1):
            try:
                self._check(rule, rank)
                RulePlan.of(self._snapshot, replace(self._request, rules=(rule,)))
            except InputError as error:
                raise InputError(f"{path}, rule {number}: {error}") from error
        try:
            self._request = replace(self._request, rules=tuple(rules))
            self._plan = RulePlan.of(self._snapshot, self._request)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        self.allow_N = allow_N
        self._notes: list[str] = [note for rule in rules for note in self._unknown(rule)]
        if self._plan.allowed is not None:
            nobody = np.zeros(0, dtype=np.int64)
            self.allow_N, num_reachable, said = self._plan.allow(allow_N, nobody)
            self._notes += said
            if not num_reachable:
                raise InputError(f"{path}: {said[0]}; every list would be empty")
        self._can_return_I = np.zeros(len(bundle.vocabulary.items), dtype=np.bool_)
        self._can_return_I[slice(None) if self.allow_N is None else self.allow_N] = True
        self._can_return_I[bundle.withdrawn_G] = False
        self._num_reachable = int(self._can_return_I.sum())
        index = bundle.vocabulary.items.index
        self._notes += [
            f"pinned item {rule.item!r} is withdrawn, or left out by filters or lists, and will not be shown"
            for rule in rules
            if isinstance(rule, Pin) and not self._can_return_I[index([rule.item])[0]]
        ]
        self._reorder: ListReorder | None = None
        self._num_lists = self._num_short = 0

    def _check(self, rule: Rule, rank: int) -> None:
        """Refuse what means nothing for lists in the order of retrieval, and items that are none."""
        index = self._bundle.vocabulary.items.index
        if isinstance(rule, Floor) and rule.on == "rank_by":
            raise InputError("a floor on rank_by needs an order by probabilities, and candidates have none; use an "
                             'action: {"on": "action", "action": NAME}')  # fmt: skip
        if isinstance(rule, Floor) and rule.on == "action" and not rank:
            raise InputError("a floor on an action needs probabilities; give --rank")
        if isinstance(rule, Pin) and index([rule.item])[0] < 0:
            raise InputError(f"pinned item {rule.item!r} is not in the catalogue of {self._bundle.path}")
        if isinstance(rule, Boost) and rule.items and (index(rule.items) < 0).all():
            raise InputError(f"the catalogue of {self._bundle.path} holds none of the items to boost")

    def _unknown(self, rule: Rule) -> Iterator[str]:
        if isinstance(rule, Boost):
            found = self._bundle.vocabulary.items.index(rule.items)
            if (found < 0).any():
                yield f"{int((found < 0).sum())} of {len(found)} items to boost are not in the catalogue"

    @property
    def chooses(self) -> bool:
        """Whether there is anything but filters, which :attr:`allow_N` says."""
        return self._plan.may_run_short or self._plan.needs_pool

    @property
    def explores(self) -> bool:
        """Whether chance has a part, so that propensities are told."""
        return self._plan.explore is not None

    @property
    def retrievers_of_pins(self) -> tuple[str, ...]:
        """Who scores pinned items beside those who find the others."""
        return ("dense",) if self._plan.pins else ()

    def open(self, retrievers: Mapping[str, Retriever], reorder: ListReorder | None) -> None:
        """Say who finds the items, and who reorders them before the rules choose."""
        self._snapshot = replace(self._snapshot, retrievers=retrievers)
        self._reorder = reorder
        if reorder is not None:
            self._request = replace(self._request, reranker=reorder.chain)

    def choose(
        self,
        states: Any,
        histories: Sequence[History],
        requests: Requests,
        user_ids: Sequence[Any],
        user_BK: NDArray[np.float32] | None,
        rank: Rank,
    ) -> list[Chosen]:
        """The list of every request of a batch.

        Args:
            states: of the histories.
            histories: whole ones; their items are not returned.
            requests: whose times and surfaces count.
            user_ids: in the callers' words, for what is left to chance.
            user_BK: features of the users, which rerankers read; None = unknown.
            rank: gives probabilities.
        """
        at, surface = requests.timestamp.tolist(), requests.surface.tolist()
        if user_BK is None:
            user_BK = np.zeros((len(histories), self._bundle.model.config.user_dim), dtype=np.float32)
        questions = [self._question(*row) for row in zip(histories, user_ids, at, surface, user_BK, strict=True)]
        reads_probabilities = any(floor.on == "action" for floor in self._plan.floors)
        timings = BatchTimings(questions)

        def look(rows: list[int], asked: list[Question]) -> tuple[list[Found], list[Probabilities]]:
            mine: UserStates = of_rows(self._snapshot, states, rows)
            found = search_lists(self._snapshot, mine, asked, timings, rows)
            item_BC = padded([np.array([hit[0] for hit in hits], dtype=np.int64) for hits in found])
            if not reads_probabilities or not item_BC.shape[1]:
                return found, [None] * len(rows)
            prob_BCA = rank(mine, item_BC, requests.timestamp[rows], requests.surface[rows])
            return found, [prob_CA[: len(hits)] for prob_CA, hits in zip(prob_BCA, found, strict=True)]

        def reorder(lists: dict[int, ShortList]) -> dict[int, Reordered]:
            assert self._reorder is not None
            return self._reorder.orders(lists)

        with torch.inference_mode():
            chosen = choose_pages(self._snapshot, questions, look, reorder)
        self._num_lists += len(chosen)
        self._num_short += sum(len(one.found) < self._request.k for one in chosen)
        return chosen

    def _question(self, history: History, user_id: Any, at: int, surface: int, user_K: NDArray[np.float32]) -> Question:
        exclude_E = sorted_ids(history.item)
        return Question(
            request=replace(self._request, user_id=user_id) if self.explores else self._request,
            history=history,
            exclude_E=exclude_E,
            allow_N=self.allow_N,
            allow_key=_ALLOWED,
            rules=self._plan,
            at=at,
            surface=surface,
            num_wanted=candidates_wanted(self._request, self._plan),
            num_reachable=self._num_reachable - int(self._can_return_I[exclude_E].sum()),
            notes=[],
            user_K=user_K,
            state_key=None,
        )

    def notes(self) -> list[str]:
        """What is to be said before anything is computed."""
        return self._notes

    def report(self) -> Iterator[str]:
        """What the rules did, in lines."""
        if self._num_short:
            yield (
                f"note: the rules of {self.path} left {self._num_short:,} of {self._num_lists:,} lists shorter than "
                f"{self._request.k}"
            )
