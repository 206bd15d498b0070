"""Vectors of codes that add up to about the vector of an item.

They say what dense retrieval thinks of each code, whatever the codes were made of, and are where the heads of semantic
IDs start: the inner product of a query with an item's vector is then about the sum of those with its codes' vectors.

Suffixes: I = items, D = width, J = codes of an item, K = codes of a codebook, P = pairs of a first and a second code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["additive_vectors", "code_means", "nested_vectors", "num_pairs"]

_ROUNDS = 8


def code_means(rows_ID: Tensor, code_I: Tensor, size: int) -> Tensor:
    """[K, D] mean row of the items of each code, zero where there is none."""
    sum_KD = rows_ID.new_zeros(size, rows_ID.shape[1]).index_add_(0, code_I, rows_ID)
    return sum_KD / torch.bincount(code_I, minlength=size).clamp_min(1)[:, None]


def nested_vectors(vectors_ID: Tensor, code_IJ: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Per level [K, D] mean of what the levels before left of the items of each code.

    >>> [book.flatten().tolist() for book in nested_vectors(
    ...     torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([[0, 0], [0, 1], [1, 1]]), (2, 2))]
    [[2.0, 7.0], [-1.0, 0.5]]
    """
    rest_ID, books = vectors_ID.clone(), []
    for level, size in enumerate(sizes):
        books.append(code_means(rest_ID, code_IJ[:, level], size))
        rest_ID -= books[-1][code_IJ[:, level]]
    return books


def additive_vectors(vectors_ID: Tensor, code_IJ: Tensor, sizes: Sequence[int]) -> Tensor:
    """[J, K, D] vectors whose sums over an item's codes are nearest to the items' vectors, zero past a codebook's end.

    Least squares, codebook after codebook, eight rounds: on vectors of Amazon Toys with 16 codes of 256 further rounds
    change the error in the third digit.
    """
    book_JKD = vectors_ID.new_zeros(len(sizes), max(sizes), vectors_ID.shape[1])
    rest_ID = vectors_ID.clone()
    for _ in range(_ROUNDS):
        for place, size in enumerate(sizes):
            code_I = code_IJ[:, place]
            rest_ID += book_JKD[place, code_I]
            book_JKD[place, :size] = code_means(rest_ID, code_I, size)
            rest_ID -= book_JKD[place, code_I]
    return book_JKD


def num_pairs(code_IJ: Tensor, sizes: Sequence[int], most_cells: int = 1 << 16) -> int:
    """How many pairs of a first and a second code items have; 0 where there could be more than ``most_cells``.

    >>> codes = torch.tensor([[0, 1], [0, 1], [1, 0]])
    >>> num_pairs(codes, (2, 2)), num_pairs(codes, (300, 300)), num_pairs(codes[:, :1], (2,))
    (2, 0, 0)
    """
    if len(sizes) < 2 or sizes[0] * sizes[1] > most_cells:
        return 0
    return len(torch.unique(code_IJ[:, 0].long() * sizes[1] + code_IJ[:, 1].long()))
