import numpy as np
import pytest
import scipy.sparse
import torch

from recsys.index import ItemGraph, walks


def made(seed=0, num_items=12, degree=4):
    draw = np.random.default_rng(seed)
    table = draw.random((num_items, num_items)) * (draw.random((num_items, num_items)) < degree / num_items)
    np.fill_diagonal(table, 0)
    table[3] = 0  # nothing follows it
    total = table.sum(1, keepdims=True)
    return table / np.where(total > 0, total, 1)


def values(graph, relation):
    """[I, I] f of a relation."""
    return graph.scores(torch.arange(graph.num_items).unsqueeze(1), {relation: 1.0}).numpy()


def log1p_without_diagonal(table):
    out = np.log1p(100 * table)
    np.fill_diagonal(out, 0)
    return out


def test_two_step_is_the_square_of_the_transitions():
    table = made()
    graph = ItemGraph.build(12, transitions=scipy.sparse.csr_matrix(table), walks=("two_step",))
    assert graph.relations == ("transition", "two_step")
    np.testing.assert_allclose(values(graph, "two_step"), log1p_without_diagonal(table @ table), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("restart", [0.2, 0.3, 0.6])
def test_pagerank_is_the_sum_over_walks(restart, monkeypatch):
    monkeypatch.setattr(walks, "_LEAST", 1e-7)
    table = made(1)
    blocks = list(walks.walk_blocks("pagerank", scipy.sparse.csr_matrix(table.astype(np.float32)), restart=restart))
    got = scipy.sparse.vstack([rows for _, rows in blocks]).toarray()
    expected = sum(restart * (1 - restart) ** t * np.linalg.matrix_power(table, t) for t in range(1, 5))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    # All walks: the restarts of what was left out are the difference.
    whole = restart * np.linalg.inv(np.eye(12) - (1 - restart) * table) - restart * np.eye(12)
    assert np.abs(got - whole).sum(1).max() <= (1 - restart) ** 5 + 1e-5


def test_unlikely_items_are_left_out_of_long_walks_but_not_of_transitions():
    table = made(2, num_items=60, degree=55)
    table[:, 0] *= 1e-3
    likely = table @ table
    graph = ItemGraph.build(60, transitions=scipy.sparse.csr_matrix(table), walks=("pagerank",))
    got = values(graph, "pagerank")
    assert (got[:, 0][table[:, 0] > 0] > 0).all()  # first steps all count
    one_step = np.log1p(100 * 0.3 * 0.7 * table[:, 0])
    assert np.allclose(got[:, 0], np.where(table[:, 0] > 0, one_step, 0), rtol=1e-3)  # further ones below 1/1000 do not
    assert likely[:, 0].max() < 1e-3


def test_walks_use_the_kept_transitions_and_keep_the_best():
    table = made(4, num_items=30, degree=10)
    transitions = scipy.sparse.csr_matrix(table)
    graph = ItemGraph.build(30, transitions=transitions, walks=walks.WALKS, max_neighbours=3)
    kept = np.where(table >= np.sort(table, 1)[:, [-3]], table, 0)
    square = log1p_without_diagonal(kept @ kept)
    best = np.where(square >= np.sort(square, 1)[:, [-3]], square, 0)
    np.testing.assert_allclose(values(graph, "two_step"), best, rtol=1e-4, atol=1e-5)
    assert (values(graph, "pagerank") > 0).sum(1).max() == 3


def test_walks_need_transitions():
    with pytest.raises(ValueError, match="'pagerank' is made of transitions"):
        ItemGraph.build(3, walks=("pagerank",))
    with pytest.raises(ValueError, match="there is no walk 'three_step'; choose one of two_step, pagerank"):
        ItemGraph.build(3, transitions=scipy.sparse.csr_matrix((3, 3)), walks=("three_step",))
    with pytest.raises(ValueError, match="cannot be called 'two_step'"):
        ItemGraph.build(3, texts={"two_step": np.ones((3, 2))})
    assert ItemGraph.build(3, transitions=scipy.sparse.csr_matrix((3, 3)), walks=walks.WALKS).num_edges == 0
    assert ItemGraph.build(0, transitions=scipy.sparse.csr_matrix((0, 0)), walks=walks.WALKS).num_edges == 0
