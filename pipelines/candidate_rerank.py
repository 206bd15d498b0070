"""Candidates of a batch in the order of a reranker.

Suffixes: B = requests of a batch, K = hits, C = hits that are reordered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import History, Requests
from recsys.pipelines.language_model import cost_text
from recsys.retrieval.reordering import Reordered, ShortList
from recsys.retrieval.rerank.chain import RerankChain

__all__ = ["ListReorder"]

Ints = NDArray[np.int64]

_AT_ONCE = 16
"""Lists that are put to the reranker together."""


class ListReorder:
    """What ``recsys candidates`` asks about the first hits of every request, the same that a request would."""

    def __init__(self, chain: RerankChain, bundle: Bundle) -> None:
        """Reorder with a chain.

        Args:
            bundle: that retrieves; its item table has the texts.
        """
        self.chain, self._bundle = chain, bundle
        self._notes: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def __call__(
        self,
        histories: Sequence[History],
        requests: Requests,
        item_BK: Ints,
        score_BK: NDArray[np.float32] | None,
        user_BF: NDArray[np.float32] | None,
    ) -> Ints:
        """[B, K] places of the hits, the new first one first.

        Args:
            histories: of the requests.
            item_BK: internal items, empty places (-1) at the end.
            score_BK: falling; None where those of several retrievers do not compare: then the hit at place p counts
                1 / p.
            user_BF: [B, F] features of the users; None = unknown.
        """
        place_BK = np.broadcast_to(np.arange(item_BK.shape[1]), item_BK.shape).copy()
        lists: dict[int, ShortList] = {}
        for row, history in enumerate(histories):
            row_C = item_BK[row, : self.chain.num_reordered]
            row_C = row_C[row_C >= 0].astype(np.int64)
            if len(row_C) < 2:
                continue
            score_C = 1.0 / np.arange(1.0, len(row_C) + 1) if score_BK is None else score_BK[row, : len(row_C)]
            lists[row] = ShortList(
                items=self._bundle.items,
                words=self._bundle.vocabulary,
                row_C=row_C,
                score_C=score_C.astype(np.float64),
                history=history,
                at=int(requests.timestamp[row]),
                surface=int(requests.surface[row]),
                user_K=None if user_BF is None else user_BF[row],
            )
        for row, order in self.orders(lists).items():
            place_BK[row, : len(order.places)] = order.places
        return place_BK

    def orders(self, lists: Mapping[int, ShortList]) -> dict[int, Reordered]:
        """The order of every list, by any key; counted for :meth:`check` and :meth:`report`."""
        rows, found = list(lists), dict[int, Reordered]()
        for low in range(0, len(rows), _AT_ONCE):
            part = rows[low : low + _AT_ONCE]
            orders = self.chain.reorder([lists[row] for row in part], deadline=None)
            for row, order in zip(part, orders, strict=True):
                found[row] = order
                self._notes.update(order.notes)
                self._counts.update(order.counts)
                self._counts["lists"] += 1
                unchanged = list(order.places) == list(range(len(order.places)))
                self._counts["silent"] += unchanged and order.counts.get("rerank_failed", 0) > 0
        return found

    def check(self) -> None:
        """Refuse to go on where the reranker has not answered about a single list.

        Raises:
            InputError: it says why.
        """
        if self._counts["lists"] and self._counts["silent"] == self._counts["lists"]:
            reason = self._notes.most_common(1)[0][0]
            raise InputError(f"--rerank: none of {self._counts['lists']} lists got an answer ({reason})")

    def report(self) -> Iterator[str]:
        """What it took and what was wrong, in lines."""
        lists = max(self._counts["lists"], 1)
        cost = self._counts["rerank_cost_millionths"] / 1e6
        prompt, reused = self._counts["rerank_prompt_tokens"], self._counts["rerank_reused_tokens"]
        yield (
            f"reranked {self._counts['lists']:,} lists with {self.chain.reranker.name}: "
            f"{self._counts['rerank_calls'] / lists:.1f} calls, {prompt / lists:,.0f} prompt tokens "
            f"({reused / lists:,.0f} of them reused) and {self._counts['rerank_generated_tokens'] / lists:.1f} "
            f"generated ones a list{f'; {cost_text(cost)} in all' if cost else ''}"
        )
        for note, count in self._notes.most_common(5):
            yield f"note: {note} ({count} lists)"
