"""Vectors of codes: sums over an item's codes come as near to its vector as they can."""

from __future__ import annotations

import torch

from recsys.code_vectors import additive_vectors, nested_vectors


def drawn(sizes, num_items=200, dim=5):
    generator = torch.Generator().manual_seed(0)
    code_IJ = torch.stack([torch.randint(size, (num_items,), generator=generator) for size in sizes], 1)
    return code_IJ, torch.randn(num_items, dim, generator=generator)


def test_additive_vectors_are_a_least_squares_fit():
    sizes = (4, 3, 6)
    code_IJ, vectors_ID = drawn(sizes)
    found_JKD = additive_vectors(vectors_ID, code_IJ, sizes)
    assert found_JKD.shape == (3, 6, 5) and not found_JKD[0, 4:].any() and not found_JKD[1, 3:].any()
    design = torch.cat([torch.nn.functional.one_hot(code_IJ[:, j], size).double() for j, size in enumerate(sizes)], 1)
    wanted = design @ torch.linalg.pinv(design) @ vectors_ID.double()
    found = sum(found_JKD[j][code_IJ[:, j]] for j in range(3))
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=1e-3)


def test_vectors_of_nested_codes_are_means_of_what_is_left():
    sizes = (4, 3)
    code_IJ, vectors_ID = drawn(sizes)
    first, second = nested_vectors(vectors_ID, code_IJ, sizes)
    torch.testing.assert_close(first[2], vectors_ID[code_IJ[:, 0] == 2].mean(0))
    left_ID = vectors_ID - first[code_IJ[:, 0]]
    torch.testing.assert_close(second[1], left_ID[code_IJ[:, 1] == 1].mean(0), atol=1e-6, rtol=1e-5)
    assert not nested_vectors(vectors_ID, code_IJ, (4, 5))[1][3:].any()  # codes that no item has
