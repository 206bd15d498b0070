import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from recsys.events import UNKNOWN_ITEM, History
from recsys.index import ItemGraph, transition_matrix
from recsys.recent import recent_positives
from recsys.retrieval import MemoryRetriever, Retriever
from recsys.retrieval.memory import RecentItems


def history(items, yes):
    n = len(items)
    ints = np.arange(n)
    return History(
        np.array(items, dtype=np.int64),
        ints,
        np.array(yes, dtype=np.int64),
        np.full(n, 7),
        0 * ints,
        np.ones(n, dtype=bool),
    )


def test_recent_items_are_the_last_positives_newest_first():
    mask = 0b011  # the third action is negative
    histories = [
        history([4, 5, 6, 7, 8], [1, 2, 4, 0, 3]),
        history([1, 2, 3, 4, 5, 6], [1] * 6),
        history([3, UNKNOWN_ITEM, 3], [1, 1, 1]),
        history([], []),
    ]
    assert recent_positives(histories, mask, 4).tolist() == [[8, 5, 4, -1], [6, 5, 4, 3], [3, 3, -1, -1], [-1] * 4]


@pytest.fixture
def chain():
    """Items 0 -> 1 -> 2 -> 3, and items 1 and 3 alike in text."""
    transitions = scipy.sparse.csr_matrix(np.diag([1.0, 1.0, 1.0], 1))
    return ItemGraph.build(4, transitions=transitions, texts={"text": np.array([[1, 0], [0, 1], [0, 0], [0, 1.0]])})


def test_scores_follow_the_rule(chain):
    retriever = MemoryRetriever(chain)
    assert isinstance(retriever, Retriever)
    assert retriever.name == "memory"
    f = np.log(101)
    states = RecentItems(torch.tensor([[1, 0], [-1, -1]]))
    asked = {"at_B": torch.zeros(2, dtype=torch.int64), "surface_B": torch.zeros(2, dtype=torch.int64)}
    # From 1 (newest): 2 by transition, 3 by text. From 0, decayed: 1 by transition.
    expected = [[0, 0.6 * f, f, 2], [0, 0, 0, 0]]
    assert np.allclose(retriever.scores(states, **asked).numpy(), expected)
    hits = retriever.search(states, 3, **asked)
    assert hits.ids_QK.tolist() == [[2, 1, 3], [-1, -1, -1]]
    hits = retriever.search(states, 3, exclude_QE=torch.tensor([[2], [-1]]), allow_N=torch.tensor([2, 3]), **asked)
    assert hits.ids_QK.tolist() == [[3, -1, -1], [-1, -1, -1]]


def test_weights_and_decay_are_switches(chain):
    states = RecentItems(torch.tensor([[1, 0]]))
    assert MemoryRetriever(chain, {"text": 2.0}).search(states, 3).ids_QK.tolist() == [[3, -1, -1]]
    assert MemoryRetriever(chain, {"transition": 1.0, "text": 0.0}, 0.5).search(states, 3).ids_QK.tolist() == [
        [2, 1, -1]
    ]


@pytest.mark.slow
def test_toys_without_training():
    """Leave-one-out, full ranking, history filtered: transitions and TF-IDF, nothing trained."""
    folder = os.environ.get("RECSYS_DATA")
    if not folder:
        pytest.skip("RECSYS_DATA names no folder with amazon_toys")
    events = pl.read_parquet(Path(folder) / "amazon_toys" / "interactions.parquet").sort(
        "user_id", "timestamp", maintain_order=True
    )
    items = pl.read_parquet(Path(folder) / "amazon_toys" / "items.parquet")
    item_N = events["item_id"].replace_strict(items["item_id"], np.arange(len(items))).to_numpy().astype(np.int64)
    length_U = events.group_by("user_id", maintain_order=True).len()["len"].to_numpy().astype(np.int64)
    end_U = np.cumsum(length_U)
    start_U = end_U - length_U
    train_N = np.arange(len(events)) < np.repeat(end_U - 2, length_U)
    transitions = transition_matrix(
        np.concatenate([[0], np.cumsum(length_U - 2)]),
        item_N[train_N],
        np.ones(train_N.sum(), bool),
        num_items=len(items),
    )
    text = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit_transform(items["text"].to_list())
    graph = ItemGraph.build(len(items), transitions=transitions, texts={"text": text})
    recent = torch.from_numpy(np.stack([item_N[np.maximum(end_U - 2 - back, 0)] for back in range(4)], axis=1))
    exclude = np.full((len(end_U), length_U.max()), -1)
    for row, (low, high) in enumerate(zip(start_U, end_U, strict=True)):
        exclude[row, : high - low - 1] = item_N[low : high - 1]
    hits = MemoryRetriever(graph).search(RecentItems(recent), 10, exclude_QE=torch.from_numpy(exclude))
    found = hits.ids_QK.numpy() == item_N[end_U - 1][:, None]
    assert 0.066 <= (found / np.log2(np.arange(10) + 2)).sum(1).mean() <= 0.076
