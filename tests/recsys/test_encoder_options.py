"""Options of the encoder and of retrieval scores, each against its definition."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.blocks import LigrBlock
from recsys.errors import InputError
from recsys.events import History
from recsys.model import UnifiedModel
from recsys.model_config import ModelConfig
from recsys.packing import pack_histories
from recsys.positive_age import age_after, positive_ages
from recsys.time_rotary import rotate, time_turn

OPTIONS = {
    "block": "ligr",
    "time_encoding": "rotary",
    "position_bias": True,
    "positive_recency": True,
    "crop": 0.5,
    "score": "cosine",
    "label_smoothing": 0.1,
}


def make_config(**changes) -> ModelConfig:
    settings = {"num_items": 30, "num_actions": 2, "num_surfaces": 2, "positive_mask": 1, "dim": 16, "window": 16}
    return ModelConfig(**{**settings, **changes})


def make_model(**changes) -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(make_config(**changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.eval()


def make_history(length: int, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    return History(
        item=rng.integers(0, 30, length),
        timestamp=1_700_000_000 + np.cumsum(rng.integers(1, 90_000, length)),
        yes=rng.integers(0, 2, length),
        known=np.full(length, 3),
        surface=np.ones(length, dtype=np.int64),
        time_known=np.ones(length, dtype=bool),
    )


def outputs(model: UnifiedModel, history: History, hidden: list[int] | None = None) -> torch.Tensor:
    hidden_T = torch.zeros(len(history), dtype=torch.bool)
    hidden_T[hidden or []] = True
    with torch.no_grad():
        return model.encode_packed(pack_histories([history]), hidden_T, model.items.rows)[0]


def test_a_configuration_written_before_the_options_reads_as_their_defaults():
    old = {name: value for name, value in make_config().to_dict().items() if name not in set(OPTIONS) - {"block"}}
    assert ModelConfig.from_dict(old) == make_config()


def test_a_setting_that_was_removed_is_read_where_it_had_no_effect():
    old = make_config().to_dict()
    off = {"reasoning_steps": 0, "target_aware": 0.0, "target_aware_negatives": 8}
    assert ModelConfig.from_dict({**old, **off}) == make_config()
    with pytest.raises(InputError, match="'reasoning_steps'; it was written by another version"):
        ModelConfig.from_dict({**old, "reasoning_steps": 2})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block": "gpt"}, "model.block must be one of softmax, hstu, ligr"),
        ({"time_encoding": "sine"}, "model.time_encoding must be one of bias, rotary, both, none"),
        ({"score": "euclid"}, "model.score must be one of dot, cosine"),
        ({"label_smoothing": 1.0}, r"model.label_smoothing must be in \[0, 1\)"),
        ({"crop": 1.5}, r"model.crop must be in \[0, 1\]"),
        ({"time_encoding": "rotary", "dim": 15, "num_heads": 3}, "must be even"),
    ],
)
def test_what_does_not_exist_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        make_config(**changes)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_a_parameter_of_the_training_module(name):
    from recsys.pipelines.unified_module import UnifiedModule

    assert UnifiedModule(**{name: OPTIONS[name]}).changes == {name: OPTIONS[name]}
    assert UnifiedModule().changes == {}
    assert name in {field.name for field in fields(ModelConfig)}


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_ligr_block_is_its_formula():
    torch.manual_seed(0)
    block = LigrBlock(make_config(dropout=0.0))
    x, attended = torch.randn(5, 16), torch.randn(5, 2, 8)
    gate = block.project(x)[3]
    one = x + torch.sigmoid(x @ block.gate_attention.weight.T + block.gate_attention.bias) * block.out(
        attended.flatten(1)
    )
    up = block.up(block.norm_ffn(one))
    swiglu = block.down(up[:, :64] * torch.sigmoid(up[:, :64]) * up[:, 64:])
    two = one + torch.sigmoid(block.gate_ffn(one)) * swiglu
    assert torch.allclose(block.finish(x, attended, gate), two, atol=1e-6)


# -- time and position ------------------------------------------------------------------------------------------------


def test_rotary_scores_depend_on_the_difference_of_times_alone():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 8), torch.randn(1, 2, 8)

    def score(late: int, early: int) -> torch.Tensor:
        known = torch.ones(1, dtype=torch.bool)
        turns = [time_turn(torch.tensor([time]), known, 2, 8) for time in (late, early)]
        return (rotate(q, turns[0]) * rotate(k, turns[1])).sum(-1)

    start = 1_700_000_123
    assert torch.allclose(score(start + 5_000, start), score(5_000, 0), atol=1e-5)
    assert torch.allclose(score(start, start), (q * k).sum(-1), atol=1e-5)
    assert (score(start + 5_000, start) - score(start, start)).abs().min() > 1e-3
    assert torch.allclose(score(start + 1, start), score(1, 0), atol=1e-6)  # to the second, at today's timestamps


def test_row_of_unknown_time_is_not_turned():
    x = torch.randn(3, 2, 8)
    turn = time_turn(torch.tensor([5, 50_000, 10**9]), torch.tensor([False, True, False]), 2, 8)
    assert torch.equal(rotate(x, turn)[[0, 2]], x[[0, 2]])
    assert not torch.allclose(rotate(x, turn)[1], x[1], atol=1e-2)


def test_half_of_a_head_never_turns():
    x = torch.randn(4, 2, 8)
    turn = time_turn(torch.arange(4) * 10_000, torch.ones(4, dtype=torch.bool), 2, 8)
    assert torch.equal(rotate(x, turn)[..., 4:], x[..., 4:])


@pytest.mark.parametrize(("encoding", "weights"), [("bias", 1), ("rotary", 0), ("both", 1), ("none", 0)])
def test_time_encoding_picks_what_attention_sees_of_time(encoding, weights):
    model = make_model(time_encoding=encoding)
    assert sum("time_bias" in name for name in model.state_dict()) == weights * model.config.num_blocks
    clock = {"token": model.tokens.context.gap.weight}
    for parameter in clock.values():
        parameter.data.zero_()
    model.tokens.mix.weight.data[:, -4:] = 0.0  # calendar features; only attention sees the clock now
    history = make_history(8)
    before = outputs(model, history)
    history.timestamp[4:] += 40_000
    assert torch.allclose(before, outputs(model, history), atol=1e-6) == (encoding == "none")
    assert torch.equal(before[:4], outputs(model, history)[:4])


def test_data_without_a_clock_has_no_time_in_attention():
    model = make_model(time_encoding="both", use_time=False)
    assert not any("time_bias" in name for name in model.state_dict())
    history = make_history(8)
    before = outputs(model, history)
    history.timestamp[4:] += 40_000
    assert torch.equal(before, outputs(model, history))


def test_position_bias_counts_rows_and_shares_what_is_far():
    model = make_model(position_bias=True, num_blocks=1)
    table = model.encoder.blocks[0].position_bias.table
    history = make_history(10)
    before = outputs(model, history)
    table.weight.data[3] += 2.0
    after = outputs(model, history)
    assert torch.equal(before[:3], after[:3])  # nobody there looks three rows back
    assert ((after - before)[3:].abs().amax(1) > 1e-4).all()
    bias = model.encoder.blocks[0].position_bias
    far = bias(torch.tensor([[[16, 17, 500, -4, 0]]]))[0, :, 0]
    assert torch.equal(far[:, 1:3], table.weight[16, :, None].expand(-1, 2))
    assert torch.equal(far[:, 0], far[:, 1]) and torch.equal(far[:, 3], far[:, 4])


# -- scores -----------------------------------------------------------------------------------------------------------


def test_cosine_scores_are_inner_products_of_the_index():
    model = make_model(score="cosine")
    model.query_head.log_scale.data.fill_(float(np.log(20.0)))
    states = model.encode([make_history(n, n) for n in (0, 3, 12)])
    query = model.query(states, torch.full((3,), 1_700_900_000), torch.ones(3, dtype=torch.int64))
    vectors = model.item_vectors()
    raw = model.items.table()[:-1]
    assert torch.allclose(vectors.norm(dim=1), torch.ones(30), atol=1e-6)
    expected = 20.0 * torch.nn.functional.cosine_similarity(query[:, None], raw[None], dim=-1)
    assert torch.allclose(query @ vectors.T, expected, atol=1e-4)
    for wild, scale in ((9.0, 100.0), (-3.0, 1.0)):
        model.query_head.log_scale.data.fill_(wild)
        wilder = model.query(states, torch.full((3,), 1_700_900_000), torch.ones(3, dtype=torch.int64))
        assert torch.allclose(wilder.norm(dim=1), torch.full((3,), scale), rtol=1e-5)


def test_temperature_starts_at_a_twentieth():
    cosine, dot = (UnifiedModel(make_config(score=score)).query_head.log_scale for score in ("cosine", "dot"))
    assert cosine.exp().item() == pytest.approx(20.0) and dot.item() == 0.0


# -- recency of positives ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    first=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    seed=st.integers(0, 999),
)
def test_ages_are_counted_inside_each_sequence(lengths, first, seed):
    positive = np.random.default_rng(seed).random(sum(lengths)) < 0.4
    position = np.concatenate([np.arange(n) for n in lengths])
    first_age = torch.from_numpy(np.repeat(first[: len(lengths)], lengths))
    found = positive_ages(torch.from_numpy(positive), torch.from_numpy(position), first_age)
    expected, row = [], 0
    for length, age in zip(lengths, first, strict=False):
        for _ in range(length):
            expected.append(age)
            age = 1 if positive[row] else age + 1 if age else 0
            row += 1
    assert found.tolist() == expected
    after = age_after(found, torch.from_numpy(positive))
    assert after[:-1][position[1:] > 0].equal(found[1:][position[1:] > 0])


def test_age_reaches_the_rows_after_a_positive_event():
    model = make_model(positive_recency=True, num_blocks=1)
    history = make_history(6)
    history.yes[:] = 0
    before = outputs(model, history)
    model.tokens.positive_age.table.weight.data[1:] += torch.randn(12, 16)
    assert torch.equal(before, outputs(model, history))  # no positive event, nobody has an age
    history.yes[2] = 1
    one = outputs(model, history)
    model.tokens.positive_age.table.weight.data[1:] += torch.randn(12, 16)
    assert torch.equal(one[:3], outputs(model, history)[:3])
    assert ((one - outputs(model, history))[3:].abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("recency", [True, False])
def test_hidden_action_reaches_no_row_at_all(recency):
    model = make_model(positive_recency=recency)
    history = make_history(9)
    history.yes[:] = 1
    before = outputs(model, history, [4, 8])
    history.yes[[4, 8]] = 0
    assert torch.equal(before, outputs(model, history, [4, 8]))
    assert not torch.equal(before, outputs(model, history, [8]))
