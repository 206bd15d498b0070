"""The hash of events: the same for the same beginning, another for anything else."""

from __future__ import annotations

import time
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.event_hash import EventHash, history_hashes
from recsys.events import History
from recsys.vocabulary import empty_history


def changed(history: History, name: str, place: int) -> History:
    """One field of one event, changed by the least."""
    columns = {field.name: getattr(history, field.name).copy() for field in fields(History)}
    columns[name][place] = not columns[name][place] if name == "time_known" else columns[name][place] ^ 1
    return History(**columns)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(0, 30), cut=st.integers(0, 30), seed=st.integers(0, 99))
def test_a_beginning_has_the_hash_it_had_when_it_was_all(length, cut, seed, state_history):
    history = state_history(length, seed)
    cut = min(cut, length)
    first, whole = history_hashes(history, cut)
    assert first == EventHash().extend(history.prefix(cut)).digest()
    assert whole == EventHash().extend(history).digest()
    assert (first == whole) == (cut == length)
    grown = EventHash().extend(history.prefix(cut))
    assert grown.digest() == first
    assert grown.extend(history.at(slice(cut, None))).digest() == whole


@pytest.mark.parametrize("name", [field.name for field in fields(History)])
def test_every_field_of_every_event_counts(name, state_history):
    history = state_history(9, 3)
    hashes = {history_hashes(changed(history, name, place), 0)[1] for place in range(9)}
    hashes.add(history_hashes(history, 0)[1])
    assert len(hashes) == 10


def test_order_and_number_of_events_count(state_history):
    history = state_history(4, 1)
    twice = history.at(np.array([0, 1, 2, 3, 3]))
    turned = history.at(np.array([1, 0, 2, 3]))
    found = {history_hashes(one, 0)[1] for one in (history, twice, turned, history.prefix(3), empty_history())}
    assert len(found) == 5


def test_an_item_of_another_version_is_another_event(state_history):
    history = state_history(9, 5)
    version_I = np.zeros(40, dtype=np.int64)
    before = history_hashes(history, 0, version_I)[1]
    assert before == history_hashes(history, 0)[1]
    version_I[history.item.max()] = 1
    assert history_hashes(history, 0, version_I)[1] != before
    version_I[:] = 0
    version_I[np.setdiff1d(np.arange(40), history.item)] = 1
    assert history_hashes(history, 0, version_I)[1] == before


def test_a_million_events_take_well_under_a_second(state_history):
    history = state_history(10**6, 0)
    started = time.process_time()
    first, whole = history_hashes(history, 999_999)
    assert time.process_time() - started < 1.0
    assert first != whole
