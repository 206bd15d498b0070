"""One Recommender for a whole service: loaded once, asked from many threads, with stock and exclusions.

recsys demo --output demo
python examples/serve_threads.py demo/bundle
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from recsys import Event, Recommender


def main(argv: Sequence[str]) -> int:
    """Answer a request for every stored user, and print how long it took; the number of answers."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("bundle", help="what `recsys export --histories` wrote")
    flags.add_argument("--threads", type=int, default=4)
    given = flags.parse_args(argv)

    torch.set_num_threads(1)  # the threads of the service are the parallel part
    rec = Recommender.load(given.bundle)
    in_stock = rec.items["item_id"].head(len(rec.items) // 2).to_list()
    just_seen = Event(item_id=in_stock[0], actions=rec.bundle.vocabulary.actions[0], timestamp=int(time.time()))

    def answer(user_id: str) -> int:
        page = rec.recommend(user_id=user_id, new_events=[just_seen], allow=in_stock, k=5)
        assert just_seen.item_id not in page.item_ids  # what a user has met is never recommended again
        return len(page)

    users = rec.user_ids.to_list()
    began = time.perf_counter()
    with ThreadPoolExecutor(given.threads) as pool:
        answers = sum(1 for length in pool.map(answer, users) if length)
    milliseconds = 1000 * (time.perf_counter() - began) / max(1, len(users))
    print(f"{answers} of {len(users)} users answered by {given.threads} threads, {milliseconds:.1f} ms a request")
    return answers


if __name__ == "__main__":
    main(sys.argv[1:])
