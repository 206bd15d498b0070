"""How well passages are found and chosen: the tables of ``docs/answers.md``.

``python -P -m recsys.pipelines.passage_table DATA --encoder FOLDER --name toys`` asks for known items by questions made
of their own text, and chooses passages for the same questions under a budget.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.bootstrap import mean_intervals
from recsys.dataset import Dataset
from recsys.pipelines.console import stdout_console
from recsys.pipelines.results import record
from recsys.retrieval.rag.chunk_search import of_sets, search_chunks
from recsys.retrieval.rag.chunking import ChunkLimits
from recsys.retrieval.rag.passage import relevance
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.passages_of import item_passages
from recsys.retrieval.rag.selection import PassageUtility, greedy, utility_of
from recsys.retrieval.rag.words import content_words

__all__ = ["main", "questions_of", "search_rows", "selection_rows"]

_COLUMNS = ("questions", "retrievers", "recall@1", "recall@10", "MRR@10", "ms per question")
_CHOICE_COLUMNS = ("set", "choice", "utility", "share of the optimum", "optimum found", "better than greedy", "ms")
_K = 10


def questions_of(text: str, draw: random.Random) -> dict[str, str] | None:
    """Questions whose answer is the item with this text; None for a text with fewer than four content words.

    ``four words``: of its content words, in any order. ``misspelt``: the same, two neighbouring letters of two of them
    exchanged. ``asked for``: "Do you have something like …?" with the first half of the title.
    """
    title = text.split(". ")[0]
    known = [word for word in dict.fromkeys(content_words(text)) if len(word) > 2]
    if len(known) < 4:
        return None
    four = draw.sample(known, 4)
    misspelt = [_exchanged(word, draw) for word in four[:2]] + four[2:]
    begin = " ".join(title.split()[: max(2, len(title.split()) // 2)])
    return {
        "four words": " ".join(four),
        "misspelt": " ".join(misspelt),
        "asked for": f"Do you have something like {begin}?",
    }


def _exchanged(word: str, draw: random.Random) -> str:
    at = draw.randrange(len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def search_rows(store: PassageStore, asked: Sequence[dict[str, str]], item_ids: Sequence[Any]) -> list[dict[str, Any]]:
    """Recall and reciprocal rank of the item that each question was made of, for each way to search.

    Args:
        asked: kind of question -> question, of each item.
        item_ids: what should be found.
    """
    ways = [(name,) for name in store.retrievers] + ([store.retrievers] if len(store.retrievers) > 1 else [])
    rows = []
    for kind in asked[0]:
        for way in ways:
            start = time.perf_counter()
            found = store.search_batch([one[kind] for one in asked], _K, retrievers=way)
            ms = 1000 * (time.perf_counter() - start) / len(asked)
            places = [
                next((place for place, hit in enumerate(hits) if hit.passage.item_id == wanted), None)
                for hits, wanted in zip(found, item_ids, strict=True)
            ]
            value_QM = np.array([[place == 0, place is not None, 0 if place is None else 1 / (place + 1)]
                                 for place in places], dtype=np.float64)  # fmt: skip
            row: dict[str, Any] = {
                "questions": kind, "retrievers": " + ".join(way) + (", fused" if len(way) > 1 else ""),
                "ms per question": ms,
            }  # fmt: skip
            _add(row, ("recall@1", "recall@10", "MRR@10"), value_QM)
            rows.append(row)
    return rows


def selection_rows(
    name: str, worlds: Sequence[tuple[PassageUtility, list[int]]], budget_tokens: int, *, exhaustive: bool
) -> list[dict[str, Any]]:
    """What greedy choice and tree search make of the same passages.

    Args:
        worlds: utility and costs of the passages of each question.
        exhaustive: whether every set is tried, for the optimum.
    """
    ways: dict[str, Callable[[PassageUtility, list[int]], Any]] = {
        "greedy": lambda utility, tokens: greedy(utility, tokens, budget_tokens),
        "tree": lambda utility, tokens: search_chunks(of_sets(utility), tokens, budget_tokens, any_order=True),
        "tree from greedy": lambda utility, tokens: search_chunks(
            of_sets(utility), tokens, budget_tokens, any_order=True, start=greedy(utility, tokens, budget_tokens).chosen
        ),
    }
    best = [_optimum(utility, tokens, budget_tokens) if exhaustive else None for utility, tokens in worlds]
    base: list[float] = []
    rows = []
    for way, choose in ways.items():
        start = time.perf_counter()
        value = [choose(utility, tokens).value for utility, tokens in worlds]
        ms = 1000 * (time.perf_counter() - start) / len(worlds)
        base = base or value
        row: dict[str, Any] = {"set": name, "choice": way, "ms": ms}
        better_Q1 = np.array([[one > other + 1e-9] for one, other in zip(value, base, strict=True)], dtype=np.float64)
        _add(row, ("utility",), np.array(value)[:, None])
        if way != "greedy":
            _add(row, ("better than greedy",), better_Q1)
        if exhaustive:
            share = np.array([[one / most] for one, most in zip(value, best, strict=True) if most])
            _add(row, ("share of the optimum",), share)
            _add(row, ("optimum found",), (share > 1 - 1e-9).astype(np.float64))
        rows.append(row)
    return rows


def made_worlds(count: int, num_passages: int = 10) -> list[tuple[PassageUtility, list[int]]]:
    """Random relevance, directions, words and costs of 20 to 119 tokens."""
    worlds = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        vector_NK = rng.normal(size=(num_passages, 6))
        vector_NK /= np.linalg.norm(vector_NK, axis=1, keepdims=True)
        covers_NW = rng.random((num_passages, 6)) < 0.3
        utility = PassageUtility(
            rng.random(num_passages), np.clip(vector_NK @ vector_NK.T, 0, 1), covers_NW, np.full(6, 1 / 6)
        )
        worlds.append((utility, rng.integers(20, 120, num_passages).tolist()))
    return worlds


def _optimum(utility: PassageUtility, tokens: Sequence[int], budget_tokens: int) -> float:
    every = range(len(tokens))
    sets = itertools.chain.from_iterable(itertools.combinations(every, size) for size in range(len(tokens) + 1))
    return max(utility(chosen) for chosen in sets if sum(tokens[number] for number in chosen) <= budget_tokens)


def _add(row: dict[str, Any], names: Sequence[str], value_QM: Any) -> None:
    intervals = mean_intervals(np.arange(len(value_QM)), value_QM, seed=0)
    for name, mean, interval in zip(names, value_QM.mean(0), intervals, strict=True):
        row[name], row[f"{name}_ci"] = float(mean), list(interval)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write two files under ``docs/results``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--items", type=int, help="of the catalogue, drawn with seed 0; all by default")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--choices", type=int, default=200, help="questions and made sets that passages are chosen for")
    parser.add_argument("--budget", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args(argv)
    data = Dataset.open(args.data)
    items = data.items if args.items is None else data.items.sample(args.items, seed=0)
    passages = item_passages(items, limits=ChunkLimits(max_tokens=args.max_tokens, overlap_tokens=12))
    start = time.perf_counter()
    store = PassageStore.build(passages, encoder=args.encoder)
    seconds = time.perf_counter() - start
    stdout_console().print(f"{len(store)} passages in {seconds:.0f} s")
    draw = random.Random(0)
    text_of: dict[Any, str] = {}
    for passage in store.passages:
        text_of.setdefault(passage.item_id, passage.text)
    drawn = draw.sample(sorted(text_of), len(text_of))
    made = [(item_id, questions) for item_id in drawn if (questions := questions_of(text_of[item_id], draw))]
    made = made[: args.questions]
    asked = [questions for _, questions in made]
    rows = search_rows(store, asked, [item_id for item_id, _ in made])
    model = " --encoder MINILM" if args.encoder else ""
    sizes = "" if args.items is None else f" --items {args.items}"
    sizes += f" --questions {args.questions} --choices {args.choices} --budget {args.budget}"
    command = f"python -P -m recsys.pipelines.passage_table DATA{model} --name {args.name}{sizes}"
    notes = [
        f"{len(made):,} items drawn with seed 0, {len(store):,} passages of {items.height:,} items, found by "
        "questions made of their own text: words as they stand there favour bm25. Four words: content words of the "
        "item, in any order. Misspelt: the same, two neighbouring letters of two of them exchanged. Asked for: “Do you "
        "have something like …?” with the first half of the title. 95 % bootstrap intervals over questions.",
        f"The store was built in {seconds:.0f} s on one core; all questions are searched as one batch.",
    ]
    record(f"passages-{args.name}", f"Known items found by made questions ({args.name})", command, rows, _COLUMNS,
           data_hash=data.manifest.data_hash, notes=notes)  # fmt: skip
    worlds = []
    for questions in asked[: args.choices]:
        found = store.search(questions["asked for"], 20)
        of_found = [hit.passage for hit in found]
        texts = [passage.text for passage in of_found]
        utility = utility_of(questions["asked for"], texts, relevance(found), store.similarity(of_found))
        worlds.append((utility, [passage.tokens for passage in of_found]))
    chosen = selection_rows("made, 10 passages", made_worlds(args.choices), 200, exhaustive=True)
    chosen += selection_rows(f"{args.name}, 20 found", worlds, args.budget, exhaustive=False)
    notes = [
        "Utility: relevance plus words of the question covered, less similarity between pairs "
        "(`PassageUtility`, all weights 1). Tree: 200 nodes opened, greedy's set not known to it; tree from greedy: it "
        "is. Made sets have 10 passages of 20 to 119 tokens and a budget of 200, and every set is tried for the "
        f"optimum; the others are what “asked for” questions find, with a budget of {args.budget} tokens. "
        f"{args.choices} of each.",
    ]
    record(f"passage-choice-{args.name}", f"Passages chosen under a budget ({args.name})", command, chosen,
           _CHOICE_COLUMNS, data_hash=data.manifest.data_hash, notes=notes)  # fmt: skip
    stdout_console().print([{key: row[key] for key in row if not key.endswith("_ci")} for row in rows + chosen])


if __name__ == "__main__":
    main()
