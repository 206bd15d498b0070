"""What large catalogues are built with gives what small ones are built with."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from safetensors.torch import load_file

from recsys.index import ItemGraph, text_neighbours, transition_matrix, transitions
from recsys.index.tensor_file import write_tensors
from recsys.index.text_neighbours import nearest_by_cosine


def all_at_once(offsets, item, positive, num_items, steps, reverse):
    """Transitions from whole matrices, one a step."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[positive & (item >= 0)]
    item = item[positive & (item >= 0)]
    edges = scipy.sparse.csr_matrix((num_items, num_items), dtype=np.float64)
    for step, weight in enumerate(steps, start=1):
        source, target = item[:-step], item[step:]
        counts = (user[:-step] == user[step:]) & (source != target)
        pairs = (source[counts], target[counts])
        edges = edges + scipy.sparse.csr_matrix((np.full(counts.sum(), weight), pairs), shape=edges.shape)
    edges = (edges + reverse * edges.T).toarray()
    total = edges.sum(1, keepdims=True)
    return edges / np.where(total > 0, total, 1)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 12), max_size=8),
    seed=st.integers(0, 2**16),
    steps=st.sampled_from([(1.0, 0.6, 0.36), (1.0,), (0.5, 0.0, 1.0, 2.0)]),
    reverse=st.sampled_from([0.7, 0.0, 1.0]),
    pairs_at_once=st.sampled_from([1, 30, 2**22]),
)
def test_counting_by_blocks_equals_whole_matrices(lengths, seed, steps, reverse, pairs_at_once):
    draw = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    item = np.minimum(draw.geometric(0.3, offsets[-1]) - 2, 8)  # some items are everywhere
    positive = draw.random(offsets[-1]) < 0.8
    before = transitions._PAIRS_AT_ONCE
    transitions._PAIRS_AT_ONCE = pairs_at_once
    try:
        matrix = transition_matrix(offsets, item, positive, num_items=9, steps=steps, reverse=reverse)
    finally:
        transitions._PAIRS_AT_ONCE = before
    np.testing.assert_allclose(
        matrix.toarray(), all_at_once(offsets, item, positive, 9, steps, reverse), rtol=1e-12, atol=1e-15
    )
    assert matrix.has_sorted_indices and (matrix.data > 0).all()


def found(vectors, most, **how):
    """{item: (ids, cosines)}"""
    return {
        int(item): (ids[ids >= 0].tolist(), cosine[ids >= 0].tolist())
        for block in nearest_by_cosine(vectors, most, **how)
        for item, cosine, ids in zip(*block, strict=True)
    }


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_some_items_among_some(form):
    draw = np.random.default_rng(1)
    rows = draw.integers(0, 4, (60, 8)) * (draw.random((60, 8)) < 0.4)
    vectors = scipy.sparse.csr_matrix(rows.astype(np.float32)) if form == "sparse" else rows.astype(np.float32)
    everything = found(vectors, 60)
    some = found(vectors, 60, queries=range(5, 50), among=range(20, 60))
    assert sorted(some) == list(range(5, 50))
    for item, (ids, cosines) in some.items():
        inside = [place for place, other in enumerate(everything[item][0]) if other >= 20]
        assert ids == [everything[item][0][place] for place in inside]
        assert cosines == pytest.approx([everything[item][1][place] for place in inside], abs=1e-6)


def test_runs_of_items_come_in_order(monkeypatch):
    monkeypatch.setattr(text_neighbours, "_ITEMS_AT_ONCE", 16)
    monkeypatch.setattr(text_neighbours, "_ROWS_AT_ONCE", 5)
    vectors = scipy.sparse.random(50, 6, density=0.5, random_state=0, format="csr")
    order = np.concatenate([item_B for item_B, _, _ in nearest_by_cosine(vectors, 3)])
    assert (order // 16 == np.sort(order) // 16).all() and sorted(order) == list(range(50))


def test_large_catalogues_hold_more_words_to_be_common(monkeypatch):
    monkeypatch.setattr(text_neighbours, "_MOST_ITEMS_OF_A_WORD", 10)
    monkeypatch.setattr(text_neighbours, "_PAIRS_PER_ITEM", 5)
    limit = text_neighbours._most_items_of_a_word
    assert limit(np.array([9, 9, 9, 9, 2, 3]), 10) == 10  # no larger than the bound: nothing is left out
    assert limit(np.array([2, 2, 3, 3]), 11) == 10  # 26 pairs are few enough
    assert limit(np.array([6, 2, 2, 6, 3, 3]), 11) == 5  # 26 pairs, then 36 more of which not even one word fits
    rows = np.zeros((40, 13))
    rows[:, 12] = rows[:24, 0] = 1  # held to be common
    rows[np.arange(40), 1 + np.arange(40) // 4] = 2
    together = found(scipy.sparse.csr_matrix(rows), 5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for item, (ids, cosines) in together.items():
        assert set(ids) == {4 * (item // 4) + at for at in range(4)} - {item}
        assert cosines == pytest.approx([float(unit[item] @ unit[other]) for other in ids], abs=1e-6)


def clustered(num_items=3000, dim=16):
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((60, dim)) * 2
    return (centres[draw.integers(0, 60, num_items)] + draw.standard_normal((num_items, dim))).astype(np.float32)


@pytest.mark.parametrize("method", ["ivf", "hnsw", "pq"])
def test_approximate_neighbours_are_nearly_the_exact_ones(method):
    pytest.importorskip("faiss", reason="the extra `faiss` is not installed")
    vectors = clustered()
    exact, near = found(vectors, 20), found(vectors, 20, method=method)
    shared = np.mean([len(set(exact[item][0]) & set(near[item][0])) / 20 for item in exact])
    assert shared > 0.9
    cosines = {item: dict(zip(*exact[item], strict=True)) for item in exact}
    for item, (ids, values) in near.items():
        assert item not in ids
        known = [
            (value, cosines[item][other]) for other, value in zip(ids, values, strict=True) if other in cosines[item]
        ]
        assert all(value == pytest.approx(truth, abs=1e-6) for value, truth in known)


def test_many_items_are_searched_approximately_where_faiss_is_installed(monkeypatch):
    asked = []
    real = text_neighbours.build_index
    monkeypatch.setattr(
        text_neighbours, "build_index", lambda kind, *rest, **how: (asked.append(kind), real("exact", *rest))[1]
    )
    monkeypatch.setattr(text_neighbours, "EXACT_ITEMS", 40)
    vectors = clustered(50)
    monkeypatch.setattr(text_neighbours, "find_spec", lambda name: object())
    found(vectors, 3)
    found(vectors, 3, among=range(40))
    assert asked == ["ivf", "exact"]
    monkeypatch.setattr(text_neighbours, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"50 items are searched exactly.*recsys\[faiss\]"):
        found(vectors, 3)
    assert asked[-1] == "exact"
    with pytest.raises(ValueError, match="there is no way 'annoy' to find neighbours; choose auto, exact"):
        found(vectors, 3, method="annoy")


def test_tensor_files_are_those_of_safetensors(tmp_path):
    tensors = {
        "indptr": torch.arange(5),
        "neighbours": torch.arange(7, dtype=torch.int32),
        "values": torch.rand(7),
        "nothing": torch.empty(0),
        "table": torch.rand(3, 4),
    }
    write_tensors(tensors, tmp_path / "x.safetensors")
    again = load_file(tmp_path / "x.safetensors")
    assert set(again) == set(tensors)
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_a_mapped_graph_answers_like_one_in_memory(tmp_path):
    draw = np.random.default_rng(2)
    matrix = scipy.sparse.random(300, 300, density=0.05, random_state=3, format="csr")
    texts = {"vec": draw.standard_normal((300, 5)).astype(np.float32)}
    plain = ItemGraph.build(300, transitions=matrix, texts=texts, max_neighbours=20)
    mapped = ItemGraph.build(300, transitions=matrix, texts=texts, max_neighbours=20, scratch=tmp_path)
    recent = torch.from_numpy(draw.integers(0, 300, (8, 4)))
    assert torch.equal(plain.search(recent, 30).ids_QK, mapped.search(recent, 30).ids_QK)
    assert torch.equal(plain.scores(recent), mapped.scores(recent))
    assert torch.equal(plain.values, mapped.values)
