import shutil

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings

from recsys.index import ItemGraph, text_neighbours, transition_matrix


def made_graph(seed, num_items=30, max_neighbours=6, levels=4):
    """Transitions and one text relation with few distinct values, so that scores tie."""
    draw = np.random.default_rng(seed)
    transitions = draw.integers(0, levels, (num_items, num_items)) * (draw.random((num_items, num_items)) < 0.4)
    text = draw.integers(0, levels, (num_items, 5)) * (draw.random((num_items, 5)) < 0.5)
    return ItemGraph.build(
        num_items,
        transitions=scipy.sparse.csr_matrix(transitions / levels),
        texts={"text": scipy.sparse.csr_matrix(text.astype(np.float64))},
        max_neighbours=max_neighbours,
    )


def edges_of(graph, item, relation):
    """{neighbour: value} of one row, read off the table."""
    row = item * len(graph.relations) + graph.relations.index(relation)
    at = slice(int(graph.indptr[row]), int(graph.indptr[row + 1]))
    return dict(zip(graph.neighbours[at].tolist(), graph.values[at].tolist(), strict=True))


def sorted_dense(scores_I, k, exclude, allow):
    left = np.arange(len(scores_I)) if allow is None else allow
    left = left[~np.isin(left, exclude)]
    left = left[scores_I[left] > 0]
    return left[np.lexsort((left, -scores_I[left]))][:k]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    users=st.integers(0, 5),
    k=st.integers(1, 35),
    weights=st.sampled_from(
        [None, {"text": 2.0}, {"transition": 1.0, "text": 0.0}, {}, {"transition": 0.5, "text": 2}]
    ),
    decay=st.sampled_from([1.0, 0.6, 0.5]),
)
def test_search_equals_sorting_the_dense_scores(seed, users, k, weights, decay):
    graph = made_graph(seed % 7)
    draw = np.random.default_rng(seed)
    recent = torch.from_numpy(draw.integers(-1, 30, (users, 4)))  # padding anywhere, items repeated
    exclude = draw.integers(-1, 30, (users, 9))
    allow = np.sort(draw.permutation(30)[:20]) if seed % 2 else None
    hits = graph.search(
        recent,
        k,
        weights=weights,
        decay=decay,
        exclude_QE=torch.from_numpy(exclude),
        allow_N=None if allow is None else torch.from_numpy(allow),
    )
    dense = graph.scores(recent, weights, decay).numpy()
    for row in range(users):
        best = sorted_dense(dense[row], k, exclude[row], allow)
        pad = [-1] * (k - len(best))
        assert hits.ids_QK[row].tolist() == best.tolist() + pad
        assert hits.scores_QK[row].tolist() == dense[row, best].tolist() + [-np.inf] * len(pad)


def test_scores_by_hand():
    graph = made_graph(1)
    recent = torch.tensor([[3, 8, -1, 3]])
    expected = np.zeros(30)
    for back, item in enumerate(recent[0].tolist()):
        for relation, weight in (("transition", 1.5), ("text", 0.25)):
            for neighbour, value in (edges_of(graph, item, relation) if item >= 0 else {}).items():
                expected[neighbour] += 0.7**back * weight * value
    got = graph.scores(recent, {"transition": 1.5, "text": 0.25}, 0.7)
    assert np.allclose(got[0].numpy(), expected, rtol=1e-6)
    assert (expected > 0).sum() > 5


def test_default_weights_and_relations():
    graph = made_graph(2)
    recent = torch.tensor([[1, 2, 3, 4]])
    assert graph.relations == ("transition", "text")
    assert graph.default_weights == {"transition": 1.0, "text": 2.0}
    assert torch.equal(graph.scores(recent), graph.scores(recent, {"text": 2, "transition": 1}, 0.6))
    both = graph.scores(recent, {"text": 2.0}) + graph.scores(recent, {"transition": 1.0})
    assert torch.allclose(graph.scores(recent), both)


@pytest.mark.parametrize("edges_at_once", [1, 64, 2**22])
def test_chunks_change_nothing(edges_at_once, monkeypatch):
    graph = made_graph(5)
    recent = torch.from_numpy(np.random.default_rng(0).integers(-1, 30, (40, 4)))
    hits, dense = graph.search(recent, 10), graph.scores(recent)
    monkeypatch.setattr("recsys.index.graph_search._EDGES_AT_ONCE", edges_at_once)
    again = graph.search(recent, 10)
    assert torch.equal(hits.ids_QK, again.ids_QK)
    assert torch.equal(hits.scores_QK, again.scores_QK)
    assert torch.equal(dense, graph.scores(recent))


def cosine_table(vectors):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    table = unit @ unit.T
    np.fill_diagonal(table, 0)
    return table


@pytest.mark.parametrize("form", ["sparse", "dense", "tensor"])
@pytest.mark.parametrize("pairs_at_once", [1, 200, 2**22])
def test_text_neighbours_are_the_best_cosines(form, pairs_at_once, monkeypatch):
    monkeypatch.setattr(text_neighbours, "_PAIRS_AT_ONCE", pairs_at_once)
    draw = np.random.default_rng(4)
    vectors = draw.standard_normal((50, 12)) * (draw.random((50, 12)) < 0.3)
    vectors[7] = 0  # an item without text
    vectors[20] = 3 * vectors[21]  # length does not count
    given_form = {"sparse": scipy.sparse.csr_matrix, "dense": np.asarray, "tensor": torch.from_numpy}[form](vectors)
    graph = ItemGraph.build(50, texts={"text": given_form}, max_neighbours=8)
    table = cosine_table(vectors)
    assert edges_of(graph, 7, "text") == {}
    assert edges_of(graph, 20, "text")[21] == pytest.approx(1.0)
    for item in range(50):
        edges = edges_of(graph, item, "text")
        best = np.sort(table[item][table[item] > 1e-6])[::-1][:8]
        assert list(edges.values()) == pytest.approx(best.tolist(), abs=1e-6)
        assert item not in edges
        assert all(value == pytest.approx(table[item, other], abs=1e-6) for other, value in edges.items())


def test_equal_cosines_keep_the_smaller_ids():
    graph = ItemGraph.build(9, texts={"text": scipy.sparse.csr_matrix(np.ones((9, 2)))}, max_neighbours=3)
    assert list(edges_of(graph, 0, "text")) == [1, 2, 3]
    assert list(edges_of(graph, 2, "text")) == [0, 1, 3]
    assert list(edges_of(graph, 8, "text")) == [0, 1, 2]


def test_words_that_nearly_all_items_share_add_but_do_not_introduce(monkeypatch):
    monkeypatch.setattr(text_neighbours, "_MOST_ITEMS_OF_A_WORD", 4)
    vectors = np.zeros((40, 9))
    vectors[:, 0] = 1.0  # in every item
    for item in range(20):
        vectors[item, 1 + item % 8] = 1 + item / 20  # shared by two or three
    graph = ItemGraph.build(40, texts={"text": scipy.sparse.csr_matrix(vectors)}, max_neighbours=5)
    table = cosine_table(vectors)
    for item in range(40):
        sharing = {other for other in range(20) if item < 20 and other != item and other % 8 == item % 8}
        edges = edges_of(graph, item, "text")
        assert set(edges) == sharing
        assert all(value == pytest.approx(table[item, other], abs=1e-6) for other, value in edges.items())


def test_transitions_by_hand():
    # One user: a 0, a 1 that is not positive, then 2, 0, 3. Positives: 0, 2, 0, 3. Another user: 2, 3.
    matrix = transition_matrix(
        np.array([0, 5, 5, 7]),
        np.array([0, 1, 2, 0, 3, 2, 3]),
        np.array([True, False, True, True, True, True, True]),
        num_items=5,
    )
    forward = np.zeros((5, 5))
    forward[0, 2] += 1  # one step
    forward[2, 0] += 1
    forward[0, 3] += 1
    forward[2, 3] += 0.6  # two steps; 0 -> 0 is none
    forward[0, 3] += 0.36  # three steps
    forward[2, 3] += 1  # the other user
    both = forward + 0.7 * forward.T
    total = both.sum(1, keepdims=True)
    assert np.allclose(matrix.toarray(), both / np.where(total > 0, total, 1))
    graph = ItemGraph.build(5, transitions=matrix)
    assert edges_of(graph, 0, "transition") == pytest.approx(
        {item: np.log1p(100 * matrix[0, item]) for item in (2, 3)}, rel=1e-6
    )
    assert edges_of(graph, 1, "transition") == edges_of(graph, 4, "transition") == {}


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 8), max_size=6), seed=st.integers(0, 2**16))
def test_transition_rows_sum_to_one_and_stay_inside_users(lengths, seed):
    draw = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    item = draw.integers(-1, 6, offsets[-1])
    positive = draw.random(offsets[-1]) < 0.7
    matrix = transition_matrix(offsets, item, positive, num_items=6).toarray()
    pairs = set()
    for low, high in zip(offsets[:-1], offsets[1:], strict=True):
        kept = [int(one) for one, yes in zip(item[low:high], positive[low:high], strict=True) if yes and one >= 0]
        pairs |= {(a, b) for at, a in enumerate(kept) for b in kept[at + 1 : at + 4] if a != b}
    pairs |= {(b, a) for a, b in pairs}
    assert {(int(a), int(b)) for a, b in zip(*matrix.nonzero(), strict=True)} == pairs
    total = matrix.sum(1)
    assert np.allclose(total[total > 0], 1)


def test_most_neighbours_kept_per_relation():
    graph, whole = made_graph(3, max_neighbours=4), made_graph(3, max_neighbours=30)
    for item in range(30):
        for relation in graph.relations:
            kept, every = edges_of(graph, item, relation), edges_of(whole, item, relation)
            best = sorted(every, key=lambda other: (-every[other], other))[:4]
            assert list(kept) == best


@pytest.mark.parametrize("num_items", [0, 30])
def test_reloads_from_files(tmp_path, num_items):
    graph = made_graph(3, num_items=num_items)
    graph.save(tmp_path / "graph")
    again = ItemGraph.load(tmp_path / "graph")
    assert (again.relations, again.max_neighbours, again.num_items) == (graph.relations, 6, num_items)
    for name in ("indptr", "neighbours", "values"):
        assert torch.equal(getattr(graph, name), getattr(again, name))


@pytest.mark.parametrize("part", ["edges.safetensors", "graph.json"])
def test_damaged_files_are_refused_unread(tmp_path, part, monkeypatch):
    good = tmp_path / "good"
    made_graph(3).save(good)
    monkeypatch.setattr("recsys.index.item_graph.load_file", lambda *a, **kw: pytest.fail("read unchecked"))
    data = (good / part).read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damaged in (None, data[:-9], bytes(flipped), b"\x00" * len(data)):
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        (bad / part).unlink()
        if damaged is not None:
            (bad / part).write_bytes(damaged)
        with pytest.raises(ValueError, match=part.replace(".", r"\.")) as caught:
            ItemGraph.load(bad)
        assert "again" in str(caught.value) and "\n" not in str(caught.value)


def test_graph_without_relations_finds_nothing():
    graph = ItemGraph.build(4)
    assert graph.num_items == 4
    assert graph.search(torch.tensor([[1, 2]]), 3).ids_QK.tolist() == [[-1, -1, -1]]
    assert graph.scores(torch.tensor([[1, 2]])).tolist() == [[0.0] * 4]


def test_bad_requests_are_named():
    graph = made_graph(0)
    recent = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="no relation 'minilm'; it has transition, text"):
        graph.search(recent, 3, weights={"minilm": 1.0})
    with pytest.raises(ValueError, match="weight of relation 'text' must be at least 0, got -1"):
        graph.scores(recent, {"text": -1})
    with pytest.raises(ValueError, match="recent item 30 is outside the graph's 30 items"):
        graph.search(torch.tensor([[30]]), 3)
    with pytest.raises(ValueError, match=r"relation 'text' must be \[5, V\], got \[4, 2\]"):
        ItemGraph.build(5, texts={"text": np.ones((4, 2))})
    with pytest.raises(ValueError, match="offsets end at 3, but there are 2 items"):
        transition_matrix(np.array([0, 3]), np.array([1, 2]), np.array([True, True]), num_items=5)
