"""Building the item graph block by block, against building it from whole matrices.

Every figure is of a process of its own. Memory is what the process held when it had its events and vectors (given) and
at most while it built (peak), libraries included and mapped files not (read every 10 ms, where the system tells; else
the peak of everything).

Transitions of 10 million items and 50 million events, run once (``measure("transitions", 10_000_000, 50_000_000)``) on
one core of a busy machine: 116 s, 221 million edges, 0.6 GiB given and 1.9 GiB at the peak. What the rest means for as
many items is a matter of counting and was not run: events and vectors stay in memory (12 bytes an
event, 8 a word of an item and three times that while they are compared, 4·V a dense vector and twice that for FAISS).
Every step works on a bounded number of pairs and passes its edges on to files, so that beyond the inputs only some tens
of bytes an item grow. Time grows in proportion to the pairs: those of transitions with the events, those of sparse text
with the items (at most 20,000 each on average), those of inverted lists with the power 1.5 of the items, so that dense
vectors of 10 million items take hours.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from recsys.index.edge_table import EdgeTable
from recsys.index.item_graph import ItemGraph
from recsys.index.relations import GAMMA, text_edges
from recsys.index.transitions import REVERSE, STEPS, TransitionLog, touched_items
from recsys.pipelines.bench.case import Case

__all__ = ["bench_graph", "measure"]

_NEIGHBOURS = 128
_EVENTS_OF_A_USER = 10
_DIM = 64
_WORDS_OF_AN_ITEM = 8


def bench_graph(*, long: bool) -> list[Case]:
    """Transitions (the headline), sparse text at two sizes, dense vectors, and appending to a graph."""
    num_items, num_texts, num_vectors = (1_000_000, 200_000, 50_000) if long else (200_000, 20_000, 20_000)
    num_events = 5 * num_items
    found = {
        name: _in_a_process(name, items=items, events=num_events)
        for name, items in {
            "transitions": num_items,
            "transitions_whole": num_items,
            "append": num_items,
            "rebuild": num_items,
            "text": num_texts,
            "text_small": num_texts // 4,
            "dense": num_vectors,
            "dense_exact": num_vectors,
        }.items()
    }
    found["dense"]["share_of_exact"] = found["dense"].pop("cosine_sum") / found["dense_exact"].pop("cosine_sum")
    shape = {"items": num_items, "events": num_events, "neighbours": _NEIGHBOURS}
    return [
        _faster("transitions", shape, found["transitions"], found["transitions_whole"]),
        _faster("append a hundredth of the events", shape, found["append"], found["rebuild"]),
        Case(
            name="sparse text, peak memory",
            shape={"items": num_texts, "other_items": num_texts // 4, "neighbours": _NEIGHBOURS},
            ours={"what": "all items"} | found["text"],
            other={"what": "a quarter of the items"} | found["text_small"],
            ratio=found["text_small"]["peak_mib"] / found["text"]["peak_mib"],
            predicted_ratio=1.0,
        ),
        _faster(
            "dense vectors",
            {"items": num_vectors, "dim": _DIM, "neighbours": _NEIGHBOURS},
            found["dense"],
            found["dense_exact"],
        ),
    ]


def _faster(name: str, shape: dict[str, Any], ours: dict[str, Any], other: dict[str, Any]) -> Case:
    return Case(
        name=name, shape=shape, ours=ours, other=other, ratio=other["seconds"] / ours["seconds"], predicted_ratio=None
    )


def _in_a_process(way: str, *, items: int, events: int) -> dict[str, Any]:
    code = f"from recsys.pipelines.bench.graph import measure; measure({way!r}, {items}, {events})"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(way: str, items: int, events: int) -> None:
    """Build one relation one way in this process, and write the figures as a line of JSON.

    Args:
        way: ``transitions``, ``transitions_whole``, ``append``, ``rebuild``, ``text``, ``text_small``, ``dense`` or
            ``dense_exact``.
        items: of the catalogue.
        events: of the log.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as name:
        what, build = _ways(items, events, Path(name))[way]()
        before_mib = _memory_mib()
        with _Peak() as peak:
            start = time.perf_counter()
            built = build()
            seconds = time.perf_counter() - start
        edges = built.num_edges if isinstance(built, ItemGraph) else len(built.id_T)
        figures: dict[str, Any] = {
            "what": what,
            "items": items,
            "edges": edges,
            "seconds": seconds,
            "given_mib": before_mib,
            "peak_mib": peak.mib,
        }
        if way.startswith("dense") and isinstance(built, EdgeTable):
            # Of the same number of neighbours, those found exactly have the largest cosines that there are.
            figures["cosine_sum"] = float(built.value_T.double().sum())
    sys.stdout.write(json.dumps(figures) + "\n")


Way = Callable[[], tuple[str, Callable[[], EdgeTable | ItemGraph]]]


def _ways(items: int, events: int, scratch: Path) -> dict[str, Way]:
    """By name, what makes the inputs; that says what it is and gives the work to be timed."""

    def transitions() -> tuple[str, Callable[[], ItemGraph]]:
        log = _made_log(items, events)
        return "counted by blocks of items", lambda: ItemGraph.build(
            items, transitions=TransitionLog.of(*log, num_items=items), max_neighbours=_NEIGHBOURS, scratch=scratch
        )

    def transitions_whole() -> tuple[str, Callable[[], EdgeTable]]:
        log = _made_log(items, events)
        return "whole matrices, one sort", lambda: _whole_transitions(*log, num_items=items)

    def grown(whole: bool) -> tuple[str, Callable[[], ItemGraph]]:
        offsets, item, positive = _made_log(items, events)
        known = np.diff(offsets)
        known[::100] = 0  # a hundredth of the users are new
        old = np.arange(events) - np.repeat(offsets[:-1], np.diff(offsets)) < np.repeat(known, np.diff(offsets))
        old_log = TransitionLog.of(np.concatenate([[0], np.cumsum(known)]), item[old], positive[old], num_items=items)
        graph = ItemGraph.build(items, transitions=old_log, max_neighbours=_NEIGHBOURS, scratch=scratch)
        now = TransitionLog.of(offsets, item, positive, num_items=items)
        if whole:
            return "build again", lambda: ItemGraph.build(
                items, transitions=now, max_neighbours=_NEIGHBOURS, scratch=scratch
            )
        return "append", lambda: graph.append(
            items,
            transitions=now,
            touched=touched_items(offsets, item, positive, known, num_items=items),
            scratch=scratch,
        )

    def text() -> tuple[str, Callable[[], EdgeTable]]:
        words = _made_words(items)
        return "sparse text", lambda: text_edges(words, _NEIGHBOURS, scratch)

    def dense(method: str) -> tuple[str, Callable[[], EdgeTable]]:
        vectors = _made_vectors(items)
        return method, lambda: text_edges(vectors, _NEIGHBOURS, scratch, method=method)

    return {
        "transitions": transitions,
        "transitions_whole": transitions_whole,
        "append": lambda: grown(whole=False),
        "rebuild": lambda: grown(whole=True),
        "text": text,
        "text_small": text,
        "dense": lambda: dense("ivf"),
        "dense_exact": lambda: dense("exact"),
    }


class _Peak:
    """The most memory held while it is open, read every 10 ms."""

    def __enter__(self) -> _Peak:
        self.mib = _memory_mib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.mib = max(self.mib, _memory_mib())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def _memory_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _made_log(items: int, events: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Users who walk about in the neighbourhood of a popular item."""
    draw = np.random.default_rng(0)
    users = events // _EVENTS_OF_A_USER
    home_U = (items * draw.random(users) ** 2).astype(np.int64)
    away_N = draw.geometric(0.01, users * _EVENTS_OF_A_USER) * draw.choice([-1, 1], users * _EVENTS_OF_A_USER)
    item_N = (np.repeat(home_U, _EVENTS_OF_A_USER) + away_N) % items
    offsets_U1 = np.arange(users + 1) * _EVENTS_OF_A_USER
    return offsets_U1, item_N, np.ones(len(item_N), dtype=np.bool_)


def _made_words(items: int) -> scipy.sparse.csr_matrix:
    """TF-IDF rows of eight words each, of which few are in very many texts."""
    draw = np.random.default_rng(0)
    vocabulary = max(1_000, items // 4)
    word_T = (vocabulary * draw.random(items * _WORDS_OF_AN_ITEM) ** 3).astype(np.int64)
    indptr = np.arange(items + 1) * _WORDS_OF_AN_ITEM
    share_V = np.bincount(word_T, minlength=vocabulary) / items
    weight_T = (1 - np.log(share_V[word_T])).astype(np.float32)
    rows = scipy.sparse.csr_matrix((weight_T, word_T.astype(np.int32), indptr), shape=(items, vocabulary))
    rows.sum_duplicates()
    return rows


def _made_vectors(items: int) -> NDArray[np.float32]:
    draw = np.random.default_rng(0)
    centre_CV = draw.standard_normal((max(10, items // 200), _DIM)).astype(np.float32)
    vector_IV = centre_CV[draw.integers(0, len(centre_CV), items)]
    vector_IV += 0.5 * draw.standard_normal((items, _DIM), dtype=np.float32)
    return vector_IV


def _whole_transitions(
    offsets_U1: NDArray[np.int64], item_N: NDArray[np.int64], positive_N: NDArray[np.bool_], *, num_items: int
) -> EdgeTable:
    """The plain way: a matrix of all pairs for every step, then one sort of all edges."""
    user_N = np.repeat(np.arange(len(offsets_U1) - 1), np.diff(offsets_U1))
    shape = (num_items, num_items)
    edges = scipy.sparse.csr_matrix(shape, dtype=np.float64)
    for step, weight in enumerate(STEPS, start=1):
        source, target = item_N[:-step], item_N[step:]
        counts = (user_N[:-step] == user_N[step:]) & (source != target)
        pairs = (source[counts], target[counts])
        edges = edges + scipy.sparse.csr_matrix((np.full(int(counts.sum()), weight), pairs), shape=shape)
    edges = (edges + REVERSE * edges.T).tocsr()
    edges.data /= np.repeat(np.asarray(edges.sum(axis=1)).ravel(), np.diff(edges.indptr))
    row_T = np.repeat(np.arange(num_items), np.diff(edges.indptr))
    value_T = np.log1p(GAMMA * edges.data).astype(np.float32)
    order_T = np.lexsort((edges.indices, -value_T, row_T))
    row_T, id_T, value_T = row_T[order_T], edges.indices[order_T], value_T[order_T]
    count_I = np.bincount(row_T, minlength=num_items)
    keep_T = np.arange(len(row_T)) - (np.cumsum(count_I) - count_I)[row_T] < _NEIGHBOURS
    indptr_I1 = np.concatenate([[0], np.cumsum(np.minimum(count_I, _NEIGHBOURS))])
    return EdgeTable(*(torch.from_numpy(column) for column in (indptr_I1, id_T[keep_T], value_T[keep_T])))
