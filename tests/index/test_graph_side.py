"""An item graph whose items moved: the edges of a graph built anew, without a copy of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.index.graph_side import moved
from recsys.index.item_graph import ItemGraph
from recsys.index.pair_values import pair_values

MOST = 4


def cosines(vectors: Tensor) -> Callable[[Tensor], Tensor]:
    unit_IV = torch.nn.functional.normalize(vectors, dim=1).double()  # rounded once, as the exact index does
    return lambda item_B: (unit_IV[item_B] @ unit_IV.T).float().clamp(max=1.0)


def transitions(num_items: int, rng: np.random.Generator) -> np.ndarray:
    matrix = rng.random((num_items, num_items)) * (rng.random((num_items, num_items)) < 0.3)
    np.fill_diagonal(matrix, 0)
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-9)


def same_edges(one: ItemGraph, other: ItemGraph) -> None:
    one, other = one.compact(), other.compact()
    assert torch.equal(one.indptr, other.indptr)
    assert torch.equal(one.neighbours, other.neighbours)
    assert torch.allclose(one.values, other.values, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=4))
def test_items_that_come_and_move_leave_the_graph_of_a_build(seed: int, steps: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    # Small whole numbers, so that there are ties and items without a neighbour.
    vectors = torch.from_numpy(rng.integers(-1, 3, (12, 3))).float()
    matrix = transitions(12, rng)
    graph = ItemGraph.build(
        12, transitions=scipy.sparse.csr_matrix(matrix), texts={"text": vectors}, max_neighbours=MOST
    )
    for num_new, num_changed in steps:
        changed = torch.from_numpy(rng.choice(len(vectors), num_changed, replace=False)).sort().values
        vectors = vectors.clone()
        vectors[changed] = torch.from_numpy(rng.integers(-1, 3, (num_changed, 3))).float()
        vectors = torch.cat([vectors, torch.from_numpy(rng.integers(-1, 3, (num_new, 3))).float()])
        moved_J = torch.cat([changed, torch.arange(len(vectors) - num_new, len(vectors))])
        graph = moved(graph, len(vectors), moved_J, {"text": cosines(vectors)})
    wide = np.zeros((len(vectors), len(vectors)))
    wide[:12, :12] = matrix
    anew = ItemGraph.build(
        len(vectors), transitions=scipy.sparse.csr_matrix(wide), texts={"text": vectors}, max_neighbours=MOST
    )
    assert (graph.num_items, graph.num_edges) == (anew.num_items, anew.num_edges)
    same_edges(graph, anew)
    recent = torch.from_numpy(rng.integers(-1, len(vectors), (5, 3)))
    assert torch.allclose(graph.scores(recent), anew.scores(recent), atol=1e-5)
    pairs = torch.from_numpy(rng.integers(-1, len(vectors), (2, 40)))
    assert torch.allclose(pair_values(graph, *pairs), pair_values(anew, *pairs), atol=1e-5)


def test_the_table_is_shared_and_only_what_changed_lies_beside_it(tmp_path: Path) -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    graph = ItemGraph.build(299, texts={"text": vectors[:299]}, max_neighbours=16)
    grown = moved(graph, 300, torch.tensor([299]), {"text": cosines(vectors)})
    assert grown.neighbours is graph.neighbours and grown.values is graph.values
    assert grown.side is not None and len(grown.side.neighbours) < 100 < len(graph.neighbours)
    grown.save(tmp_path)
    loaded = ItemGraph.load(tmp_path)
    assert loaded.side is None
    same_edges(loaded, grown)
    assert grown.append(300) is not grown and grown.append(300).side is None


def test_items_that_are_gone_are_never_found_and_leave_no_gap() -> None:
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    graph = ItemGraph.build(40, texts={"text": vectors}, max_neighbours=30)
    recent = torch.tensor([[3, 7], [9, -1]])
    gone = torch.zeros(40, dtype=torch.bool)
    gone[graph.search(recent, 5).ids_QK.flatten().unique()] = True
    hits = replace(graph, gone_I=gone).search(recent, 5)
    plain = graph.search(recent, 5, exclude_QE=gone.nonzero().flatten().expand(2, -1).contiguous())
    assert torch.equal(hits.ids_QK, plain.ids_QK) and torch.equal(hits.scores_QK, plain.scores_QK)
    assert bool((hits.ids_QK >= 0).all()) and not bool(gone[hits.ids_QK].any())


@pytest.mark.parametrize("num_items", [5, 6])
def test_a_graph_without_relations_only_counts_its_items(num_items: int) -> None:
    graph = ItemGraph.build(5)
    assert moved(graph, num_items, torch.arange(5, num_items), {}).num_items == num_items
