"""Pages of user states: what they take, what comes back out, and what eight bits cost."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from recsys.errors import InputError
from recsys.free_memory import free_bytes
from recsys.state_int8 import dequantised, quantised
from recsys.state_layout import StateLayout
from recsys.state_pages import StatePages
from recsys.state_store import UserStateStore

CPU = torch.device("cpu")


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize(
    "changes", [{}, {"layout": "interleaved", "block": "ligr"}, {"past_rates": True, "num_blocks": 3}]
)
def test_bytes_of_a_state_are_those_of_the_tensors_that_hold_it(changes, storage, state_model):
    model = state_model(**changes)
    layout = StateLayout.of(model.config, page_rows=8, storage=storage)
    pages = StatePages(layout, 100 * layout.page_bytes, CPU)
    assert pages.num_pages == 99
    taken = sum(stored.numel() * stored.element_size() for stored in pages._tensors())
    assert taken == 100 * layout.page_bytes
    for num_events in (1, 4, 5, 16, 40):
        rows = min(num_events, 16) * model.layout.rows_per_event
        assert layout.state_bytes(num_events) == -(-rows // 8) * layout.page_bytes


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_used_bytes_are_the_predicted_bytes_of_the_kept_states(storage, state_model, state_history):
    model = state_model(layout="lagged")
    store = UserStateStore(model, model_hash="a", max_bytes=10**6, page_rows=4, storage=storage)
    lengths = [0, 1, 4, 5, 12, 15, 16, 30]
    store.states(range(8), [state_history(n, n) for n in lengths])
    visible = [n - model.config.first_visible(n) for n in lengths]
    assert store.used_bytes == sum(store.layout.state_bytes(n) for n in visible)
    assert store.num_states == 7


def test_resident_memory_grows_by_what_the_layout_predicts():
    layout = StateLayout(
        num_layers=2, num_heads=2, head_dim=32, rows_per_event=1, dim=64, num_recent=4, num_past=0, window=1024
    )
    # Large enough for tensors that the allocator takes from the system and not from what tests before it gave back.
    pages = StatePages(layout, 182 * layout.state_bytes(1024), CPU)
    pages.clear(pages.take(layout.num_pages(1024)))  # code and small buffers are loaded with the first use
    before = _resident()
    for _ in range(180):
        pages.clear(pages.take(layout.num_pages(1024)))
    grown, predicted = _resident() - before, 180 * layout.state_bytes(1024)
    assert grown == pytest.approx(predicted, rel=0.05)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e30])
def test_int8_is_off_by_at_most_half_a_step_of_its_row_and_head(scale):
    x = scale * torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(1))
    number, steps = quantised(x)
    assert number.dtype == torch.int8
    assert steps.shape == (50, 3)
    error = (dequantised(number, steps) - x).abs()
    assert bool((error <= x.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-5)).all())


@pytest.mark.parametrize("block", ["hstu", "softmax"])
def test_int8_states_answer_nearly_the_same(block, state_model, state_history):
    model = state_model(block=block)
    histories = [state_history(n, n) for n in (3, 9, 16, 30)]
    store = UserStateStore(model, model_hash="a", max_bytes=10**6, storage="int8")
    store.states(range(4), histories)
    kept, counts = store.states(range(4), histories)
    fresh = model.encode(histories)
    assert counts.hits == 4
    assert torch.equal(kept.last_BD, fresh.last_BD)
    for ours, theirs in zip(kept.cache, fresh.cache, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            off = (mine - other).abs()
            assert bool((off <= other.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-4) + 1e-6).all())
            assert bool((off > 0).any())
    item_BC, at_B = torch.arange(20).expand(4, -1), torch.full((4,), 1_700_000_000)
    chances = [model.rank(states, item_BC, at_B, torch.zeros_like(item_BC)).sigmoid() for states in (kept, fresh)]
    assert float((chances[0] - chances[1]).abs().max()) < 0.03


@pytest.mark.parametrize(
    "changes", [{"storage": "int4"}, {"page_rows": 0}, {"max_bytes": -1}, {"host_bytes": -5}, {"max_bytes": 1 << 60}]
)
def test_a_store_that_cannot_be_meant_is_refused(changes, state_model):
    with pytest.raises(InputError, match=r"storage|page_rows|max_bytes|host_bytes|cannot be had"):
        UserStateStore(state_model(), model_hash="a", **{"max_bytes": 10**5, **changes})


def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path):
    proc, groups = tmp_path / "meminfo", tmp_path / "groups"
    groups.mkdir()
    proc.write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    assert free_bytes(CPU, proc=proc, groups=groups) == 500 * 1024
    (groups / "memory.max").write_text("max\n")
    (groups / "memory.current").write_text("70000\n")
    assert free_bytes(CPU, proc=proc, groups=groups) == 500 * 1024
    (groups / "memory.max").write_text("100000\n")
    assert free_bytes(CPU, proc=proc, groups=groups) == 30_000
    assert free_bytes(CPU) > 0
