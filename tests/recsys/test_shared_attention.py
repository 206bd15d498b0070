"""Shared keys and values under many rows, beside one plain attention over everything a row sees."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from recsys import shared_attention
from recsys.attention import attend_delta, delta_weights
from recsys.shared_attention import Part, attend_own, attend_shared, joined, shared_bias


def plain(q, k_own, v_own, k, v, visible, bias, bias_own, kind, max_len):
    """The definition in float64: every row by itself, over the cached rows it sees and its own."""
    users, rows, heads, width = q.shape
    out = torch.zeros(users, rows, heads, width, dtype=torch.float64)
    for b in range(users):
        for n in range(rows):
            seen = int(visible[b, n % visible.shape[1]])
            for h in range(heads):
                keys = torch.cat([k[b, :seen, h], k_own[b, n, None, h]]).double()
                values = torch.cat([v[b, :seen, h], v_own[b, n, None, h]]).double()
                score = keys @ q[b, n, h].double() * width**-0.5
                score = score + torch.cat([bias[b, h, n % bias.shape[2], :seen], bias_own[h, None]])
                weight = score.softmax(0) if kind == "softmax" else torch.nn.functional.silu(score) / max_len
                out[b, n, h] = weight @ values
    return out


def drawn(seed, users, rows, length, same, scale=1.0):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(users, size, 2, 4) * scale for size in (rows, length, length))
    k_own, v_own = (torch.randn(users, rows, 2, 4) * scale for _ in range(2))
    visible = torch.randint(0, length + 1, (users, 1 if same else rows))
    bias = torch.randn(users, 2, 1 if same else rows, length)
    return q, k_own, v_own, k, v, visible, bias, torch.randn(2)


@settings(deadline=None, max_examples=50)
@given(
    users=st.integers(1, 3), rows=st.integers(1, 9), length=st.integers(0, 11),
    same=st.booleans(), kind=st.sampled_from(["softmax", "silu"]), scores=st.sampled_from([1, 30, 2**17]),
    grad=st.booleans(), scale=st.sampled_from([1.0, 12.0]), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_delta_attention_is_the_plain_one(users, rows, length, same, kind, scores, grad, scale, seed):
    q, k_own, v_own, k, v, visible, bias, bias_own = drawn(seed, users, rows, length, same, scale)
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(grad):
        patch.setattr(shared_attention, "_SCORES", scores)
        got = attend_delta(
            q, k_own, v_own, k, v, visible,
            own="self", bias_BHNL=bias, bias_own=bias_own, kind=kind, max_len=7,
        )  # fmt: skip
    wanted = plain(q, k_own, v_own, k, v, visible, bias, bias_own, kind, 7)
    assert torch.allclose(got.double(), wanted, atol=1e-5 * scale**2, rtol=1e-4)


def test_large_scores_are_joined_exactly():
    """Scores of hundreds, whose exponentials no float holds, on either side or on both."""
    for seed, (here, there) in enumerate([(1.0, 40.0), (40.0, 1.0), (40.0, 40.0)]):
        q, k_own, v_own, k, v, visible, bias, bias_own = drawn(seed, 2, 5, 6, False)
        bias, bias_own = bias * 0, bias_own * 0
        k, k_own = k * 20 * here, k_own * 20 * there
        with torch.inference_mode():
            got = attend_delta(
                q, k_own, v_own, k, v, visible,
                own="self", bias_BHNL=bias, bias_own=bias_own, kind="softmax", max_len=7,
            )  # fmt: skip
        assert torch.isfinite(got).all()
        wanted = plain(q, k_own, v_own, k, v, visible, bias, bias_own, "softmax", 7)
        assert torch.allclose(got.double(), wanted, atol=1e-4)


def test_parts_join_in_either_order_and_nothing_seen_adds_nothing():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4), torch.randn(2, 4, 9), torch.randn(2, 9, 4)
    with torch.inference_mode():
        whole = attend_shared(q, k, v, None, kind="softmax")
        for cut in (1, 4, 8):
            left = attend_shared(q, k[..., :cut], v[:, :cut], None, kind="softmax")
            right = attend_shared(q, k[..., cut:], v[:, cut:], None, kind="softmax")
            assert torch.allclose(joined(left, right), whole.read_XNE, atol=1e-6)
            assert torch.allclose(joined(right, left), whole.read_XNE, atol=1e-6)
            both = torch.logaddexp(left.log_sum_XN1, right.log_sum_XN1)
            assert torch.allclose(both, whole.log_sum_XN1, atol=1e-6)
        bias = shared_bias(None, torch.zeros(1, 1, dtype=torch.int64), 9, 2)
        nothing = attend_shared(q, k, v, bias, kind="softmax")
        own = attend_own(torch.randn(2, 3, 1), torch.randn(2, 3, 4), kind="softmax")
        assert torch.equal(joined(nothing, own), own.read_XNE)
        silent = attend_shared(q, k, v, bias, kind="silu")
        assert torch.equal(silent.read_XNE, torch.zeros(2, 3, 4)) and isinstance(silent, Part)


def test_gradients_flow_through_both_parts():
    q, k_own, v_own, k, v, visible, bias, bias_own = drawn(3, 1, 3, 5, False)
    inputs = [x.double().requires_grad_() for x in (q, k_own, v_own, k, v, bias, bias_own)]
    visible = torch.tensor([[0, 3, 5]])

    for kind in ("softmax", "silu"):

        def attend(q, k_own, v_own, k, v, bias, bias_own, kind=kind):
            return attend_delta(
                q, k_own, v_own, k, v, visible,
                own="self", bias_BHNL=bias, bias_own=bias_own, kind=kind, max_len=7,
            )  # fmt: skip

        assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("kind", ["softmax", "silu"])
def test_weights_are_those_that_values_are_read_by(kind):
    q, k_own, v_own, k, v, visible, bias, bias_own = drawn(5, 2, 3, 6, True)
    shared = {"bias_BHNL": bias, "bias_own": bias_own, "kind": kind, "max_len": 7}
    weight_BNHL = delta_weights(q, k_own, k, visible, **shared)
    read = attend_delta(q, k_own, torch.zeros_like(v_own), k, v, visible, own="self", **shared)
    assert torch.allclose(torch.einsum("bnhl,blhd->bnhd", weight_BNHL, v), read, atol=1e-5)
