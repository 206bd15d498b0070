"""Labels spread to similar items: who is near, and how much of a label each gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.neighbour_targets import NeighbourTargets
from recsys.pipelines.content_neighbours import content_neighbours


def test_neighbours_are_the_nearest_trained_items(toy_dataset):
    found = content_neighbours(toy_dataset, 4)
    assert found is not None
    id_IK, weight_IK = found
    text = toy_dataset.sparse_text.toarray()
    cosine = text @ text.T
    np.fill_diagonal(cosine, -1)
    trained = toy_dataset.train_item_counts() > 0
    for item in range(toy_dataset.num_items):
        best = [i for i in np.argsort(-cosine[item], kind="stable")[:4] if cosine[item, i] > 0]
        kept = [int(i) for i in id_IK[item] if i >= 0]
        assert sorted(kept) == sorted(int(i) for i in best if trained[i])
        for near, weight in zip(id_IK[item].tolist(), weight_IK[item].tolist(), strict=True):
            assert weight == (0.0 if near < 0 else pytest.approx(np.exp(10 * (cosine[item, near] - 1)), rel=1e-4))


def spread() -> NeighbourTargets:
    neighbours = torch.tensor([[1, 2], [0, -1], [-1, -1]])
    return NeighbourTargets(neighbours, torch.tensor([[3.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), 0.4)


def test_a_label_is_shared_with_the_neighbours_by_weight():
    item_NL, weight_NL = spread().labels(torch.tensor([0, 1, 2]))
    label = torch.zeros(3, 3).scatter_add(1, item_NL, weight_NL)
    assert label.numpy() == pytest.approx(np.array([[0.6, 0.3, 0.1], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]]))


def test_an_item_is_drawn_by_its_share_of_the_label():
    torch.manual_seed(0)
    drawn = spread().drawn(torch.zeros(20_000, dtype=torch.int64))
    share = torch.bincount(drawn, minlength=3) / 20_000
    assert share.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.015)
    assert set(spread().drawn(torch.full((500,), 1)).tolist()) == {0, 1}
    assert spread().drawn(torch.full((500,), 2)).tolist() == [2] * 500  # nothing is near it
    assert not len(spread().drawn(torch.empty(0, dtype=torch.int64)))


def test_no_share_changes_nothing(toy_dataset):
    found = content_neighbours(toy_dataset, 4)
    target = torch.arange(toy_dataset.num_items)
    assert torch.equal(NeighbourTargets(*found, 0.0).drawn(target), target)
