"""Dropout on a CPU against what dropout promises."""

from __future__ import annotations

import pytest
import torch

from recsys.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_share_scale_and_gradient(p):
    torch.manual_seed(0)
    x = torch.ones(999, 101, requires_grad=True)
    out = Dropout(p)(x)
    kept = out != 0
    assert (~kept).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out[kept].unique().numel() == 1 and out.mean().item() == pytest.approx(1.0, abs=0.01)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(200_000)) != 0).float().view(-1, 8)
    assert (torch.corrcoef(kept.T) - torch.eye(8)).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([kept[1:].flatten(), kept[:-1].flatten()]))[0, 1].abs() < 0.01


def test_the_same_seed_drops_the_same_elements():
    drop = Dropout(0.3)
    torch.manual_seed(4)
    first = drop(torch.ones(100))
    torch.manual_seed(4)
    assert torch.equal(first, drop(torch.ones(100)))


@pytest.mark.parametrize("p, training", [(0.0, True), (0.3, False)])
def test_nothing_is_dropped(p, training):
    x = torch.randn(7)
    assert Dropout(p).train(training)(x) is x
