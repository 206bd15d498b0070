"""A grown item graph is the graph of everything."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings

from recsys.index import ItemGraph, relations, text_neighbours, transitions
from recsys.index.transitions import TransitionLog, touched_items

OLD, NEW = 25, 34


def grown_log(seed, users=12, longest=9):
    """A log, and how many events of each user an earlier log had: users and items are new, some users silent."""
    draw = np.random.default_rng(seed)
    length = draw.integers(0, longest, users)
    known = np.minimum(draw.integers(0, longest, users), length) * (draw.random(users) < 0.8)
    offsets = np.concatenate([[0], np.cumsum(length)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length)
    is_new = place >= np.repeat(known, length)
    item = np.where(is_new, draw.integers(-1, NEW, offsets[-1]), draw.integers(-1, OLD, offsets[-1]))
    positive = draw.random(offsets[-1]) < 0.8
    return offsets, item, positive, known, is_new


def earlier(offsets, item, positive, known, is_new):
    return np.concatenate([[0], np.cumsum(known)]), item[~is_new], positive[~is_new]


def vectors_of(seed, form):
    draw = np.random.default_rng(seed)
    rows = draw.integers(0, 3, (NEW, 7)) * (draw.random((NEW, 7)) < 0.5).astype(np.float64)
    return scipy.sparse.csr_matrix(rows) if form == "sparse" else rows.astype(np.float32)


def same(one, other):
    return (
        one.relations == other.relations
        and torch.equal(one.indptr, other.indptr)
        and torch.equal(one.neighbours, other.neighbours)
        and torch.equal(one.values, other.values)
    )


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16), most=st.sampled_from([2, 4, 50]))
def test_appending_events_and_items_equals_building_anew(seed, most):
    offsets, item, positive, known, is_new = grown_log(seed)
    now = TransitionLog.of(offsets, item, positive, num_items=NEW)
    before = TransitionLog.of(*earlier(offsets, item, positive, known, is_new), num_items=OLD)
    texts = {"words": vectors_of(seed, "sparse"), "vec": vectors_of(seed + 1, "dense")}
    walks = ("two_step", "pagerank") if seed % 3 == 0 else ()
    old_texts = {name: vectors[:OLD] for name, vectors in texts.items()}
    graph = ItemGraph.build(OLD, transitions=before, texts=old_texts, walks=walks, max_neighbours=most)
    touched = touched_items(offsets, item, positive, known, num_items=NEW)
    grown = graph.append(NEW, transitions=now, touched=touched, texts=texts)
    built = ItemGraph.build(NEW, transitions=now, texts=texts, walks=walks, max_neighbours=most)
    assert same(grown, built)
    assert same(graph.append(NEW, transitions=now, texts=texts), built)  # all rows counted again


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**16))
def test_touched_items_are_those_whose_rows_differ(seed):
    offsets, item, positive, known, is_new = grown_log(seed)
    now = TransitionLog.of(offsets, item, positive, num_items=NEW).rows(np.arange(NEW)).toarray()
    before = TransitionLog.of(*earlier(offsets, item, positive, known, is_new), num_items=NEW)
    differ = np.flatnonzero((now != before.rows(np.arange(NEW)).toarray()).any(1))
    touched = touched_items(offsets, item, positive, known, num_items=NEW)
    assert set(differ) <= set(touched.tolist())
    new_positive = positive & (item >= 0) & is_new
    assert set(touched.tolist()) >= set(item[new_positive].tolist())
    # No more than what stands at most three positives before something new, in one row.
    near = set()
    for low, high in zip(offsets[:-1], offsets[1:], strict=True):
        kept = [at for at in range(low, high) if positive[at] and item[at] >= 0]
        near |= {int(item[at]) for rank, at in enumerate(kept) if is_new[kept[rank : rank + 4]].any()}
    assert set(touched.tolist()) == near


@pytest.mark.parametrize("rows_at_once", [1, 5, 2**14])
def test_blocks_and_files_change_nothing(rows_at_once, tmp_path, monkeypatch):
    offsets, item, positive, known, is_new = grown_log(3, users=40)
    now = TransitionLog.of(offsets, item, positive, num_items=NEW)
    before = TransitionLog.of(*earlier(offsets, item, positive, known, is_new), num_items=OLD)
    touched = touched_items(offsets, item, positive, known, num_items=NEW)
    vectors = vectors_of(3, "sparse")
    built = ItemGraph.build(NEW, transitions=now, texts={"text": vectors}, walks=("two_step",), max_neighbours=4)
    monkeypatch.setattr(relations, "_ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr("recsys.index.item_graph._ITEMS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(transitions, "_PAIRS_AT_ONCE", 40 * rows_at_once)
    monkeypatch.setattr("recsys.index.walks._EDGES_AT_ONCE", rows_at_once)
    monkeypatch.setattr(text_neighbours, "_ITEMS_AT_ONCE", rows_at_once)
    again = ItemGraph.build(
        NEW, transitions=now, texts={"text": vectors}, walks=("two_step",), max_neighbours=4, scratch=tmp_path / "a"
    )
    assert same(again, built)
    graph = ItemGraph.build(
        OLD, transitions=before, texts={"text": vectors[:OLD]}, walks=("two_step",), max_neighbours=4
    )
    grown = graph.append(NEW, transitions=now, touched=touched, texts={"text": vectors}, scratch=tmp_path / "b")
    assert same(grown, built)
    grown.save(tmp_path / "graph")
    assert same(ItemGraph.load(tmp_path / "graph"), built)
    assert list((tmp_path / "a").iterdir()) == list((tmp_path / "b").iterdir()) == []  # nameless


def test_new_items_alone_leave_transitions_as_they_were():
    offsets, item, positive, known, is_new = grown_log(5)
    before = TransitionLog.of(*earlier(offsets, item, positive, known, is_new), num_items=OLD)
    graph = ItemGraph.build(OLD, transitions=before, texts={"text": vectors_of(5, "sparse")[:OLD]})
    grown = graph.append(NEW, texts={"text": vectors_of(5, "sparse")})
    recent = torch.arange(OLD).unsqueeze(1)
    only = {"transition": 1.0}
    assert torch.equal(grown.scores(recent, only)[:, :OLD], graph.scores(recent, only))
    assert not grown.scores(recent, only)[:, OLD:].any()
    assert grown.scores(recent, {"text": 1.0})[:, OLD:].any()  # new neighbours of older items
    assert grown.scores(torch.arange(OLD, NEW).unsqueeze(1), {"text": 1.0}).any()


def test_what_cannot_be_appended_is_named():
    graph = ItemGraph.build(OLD, texts={"text": vectors_of(0, "sparse")[:OLD]})
    with pytest.raises(ValueError, match="9 new items and no vectors for the relation 'text'"):
        graph.append(NEW)
    with pytest.raises(ValueError, match="3 items are fewer than the 25"):
        graph.append(3)
    with pytest.raises(ValueError, match=r"relation 'text' must be \[34, V\]"):
        graph.append(NEW, texts={"text": vectors_of(0, "sparse")[:30]})
    with pytest.raises(ValueError, match="known_U must hold"):
        touched_items(np.array([0, 2]), np.array([0, 1]), np.array([True, True]), np.array([3]), num_items=2)
