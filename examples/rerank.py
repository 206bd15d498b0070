"""A reranker of one's own beside retrieval: within a deadline, fused with the score before it, and never a wrong item.

recsys demo --output demo
python examples/rerank.py demo/bundle                                    # shorter titles first: needs no model
python examples/rerank.py demo/bundle --method first --lm models/small   # a language model of a folder
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recsys import Recommender
from recsys.retrieval.rerank import Reranker, RerankRequest, RerankResult
from recsys.retrieval.rerank.chain import RerankChain
from recsys.retrieval.rerank.open import METHODS, open_reranker


class ShorterFirst(Reranker):
    """Anything that orders a list can be a reranker: it is handed items with their texts, and the user's events."""

    name = "shorter-first"

    async def rerank_async(
        self, requests: Sequence[RerankRequest], *, deadline: float | None = None
    ) -> list[RerankResult]:
        """One score for every candidate, higher is better; the result checks that it holds exactly the candidates."""
        results = []
        for request in requests:
            scores = {item.item_id: -float(len(item.text)) for item in request.candidates}
            ids = tuple(sorted(scores, key=lambda item_id: -scores[item_id]))
            results.append(RerankResult(ids=ids, candidates=request.ids, scores=tuple(scores.values())))
        return results


def main(argv: Sequence[str]) -> int:
    """Print the pages of some stored users before and after; how many pages differ."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("bundle", help="what `recsys export --histories` wrote")
    flags.add_argument("--method", choices=METHODS, help="a reranker of this package instead of the one above")
    flags.add_argument("--lm", help="its language model: a folder, or http(s)://host/v1#model")
    flags.add_argument("--users", type=int, default=3)
    flags.add_argument("--deadline-ms", type=float, default=5_000.0)
    given = flags.parse_args(argv)

    rec = Recommender.load(given.bundle)
    reranker = open_reranker(given.method, lm=given.lm, bundle=rec.bundle) if given.method else ShorterFirst()
    chain = RerankChain(reranker, top=20, weight=0.5, deadline_ms=given.deadline_ms)
    different = 0
    for user_id in rec.user_ids.head(given.users):
        before = rec.recommend(user_id, k=10)
        after = rec.recommend(user_id, k=10, reranker=chain)
        different += before.item_ids != after.item_ids
        tokens = after.timings["counts"].get("rerank_prompt_tokens", 0)
        milliseconds = after.timings["batch_ms"]["rerank"]
        print(f"{user_id}: {before.item_ids} -> {after.item_ids}, {milliseconds:.0f} ms, {tokens} tokens")
        for note in after.notes:
            print(f"  note: {note}")
    return different


if __name__ == "__main__":
    main(sys.argv[1:])
