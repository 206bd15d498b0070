"""Narrow tables read column by column: the numbers and gradients of a plain lookup."""

from __future__ import annotations

import pytest
import torch

from recsys.embedding_table import EmbeddingTable


@pytest.mark.parametrize("shape", [(3, 5, 7), (4,), (2, 1, 6), (0, 3, 3)])
def test_columns_are_those_of_a_plain_lookup(shape):
    torch.manual_seed(0)
    table = EmbeddingTable(11, 2)
    rows = torch.randint(0, 11, shape)
    plain = torch.nn.functional.embedding(rows, table.weight).movedim(-1, 1)
    wanted = torch.randn(plain.shape)
    (expected,) = torch.autograd.grad((plain * wanted).sum(), table.weight)
    found = table.by_column(rows)
    assert torch.equal(found, plain)
    (gradient,) = torch.autograd.grad((found * wanted).sum(), table.weight)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any() or not rows.numel()
