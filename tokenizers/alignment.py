"""New codes under the numbers of old ones: after a refit, a model that knows the old codes can go on from them.

Hungarian matching of each level's codes on the items they share, as in arXiv 2604.13273.
Suffixes: I = items that both have, L = levels, K = codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from recsys.tokenizers.fitted_tokenizer import FittedTokenizer
from recsys.tokenizers.product_codes import ProductCodes
from recsys.tokenizers.protocol import Codes
from recsys.tokenizers.vector_checks import checked_codes

__all__ = ["aligned_codes", "aligned_tokenizer", "code_permutations", "renamed_codes"]


def code_permutations(
    old_codes_IL: ArrayLike, new_codes_IL: ArrayLike, sizes: Sequence[int], *, parallel: bool = False
) -> list[NDArray[np.int64]]:
    """The number each new code should have, so that as many items as possible keep theirs.

    Args:
        old_codes_IL: [I, L] codes before; a number beyond the new size of its level cannot be kept and is ignored.
        new_codes_IL: [I, L] codes now, of the same items in the same order.
        sizes: new codes per level.
        parallel: levels do not build on each other. Else a level counts first the items whose renamed codes of all
            earlier levels agree with the old ones, since a residual means the same only after the same codes; all
            items break ties.

    Returns:
        Per level [K] int64, a permutation: new number of each new code.

    Raises:
        ValueError: codes of different items or levels, or out of range.
    """
    new_IL = checked_codes(new_codes_IL, tuple(sizes), name="alignment: new codes")
    old_IL = np.asarray(old_codes_IL)
    if old_IL.shape != new_IL.shape or old_IL.dtype.kind not in "iu":
        raise ValueError(
            f"alignment: old codes are {old_IL.dtype} of shape {old_IL.shape}, new ones int32 of {new_IL.shape}; "
            "give the items that both have, in the same order, and tokenizers of as many levels"
        )
    agree_I = np.ones(len(new_IL), dtype=bool)
    permutations = []
    for level, size in enumerate(sizes):
        old_I, new_I = old_IL[:, level].astype(np.int64), new_IL[:, level].astype(np.int64)
        kept_I = (old_I >= 0) & (old_I < size)
        pair_I = new_I * size + np.where(kept_I, old_I, 0)
        overlap_KK = np.bincount(pair_I[kept_I], minlength=size * size).astype(np.float64)
        if not parallel:
            first_KK = np.bincount(pair_I[kept_I & agree_I], minlength=size * size)
            overlap_KK += first_KK * float(len(new_IL) + 1)  # below 2^53 for 10^7 items: exact
        _, number_K = linear_sum_assignment(overlap_KK.reshape(size, size), maximize=True)
        permutations.append(np.asarray(number_K, dtype=np.int64))
        agree_I &= number_K[new_I] == old_I
    return permutations


def renamed_codes(codes_IL: Codes, permutations: Sequence[NDArray[np.int64]]) -> Codes:
    """[I, L] int32 codes under new numbers."""
    columns = [number_K[codes_IL[:, level]] for level, number_K in enumerate(permutations)]
    return np.stack(columns, axis=1).astype(np.int32)


def aligned_codes(
    old_codes_IL: ArrayLike, new_codes_IL: ArrayLike, sizes: Sequence[int], *, parallel: bool = False
) -> Codes:
    """[I, L] new codes under the numbers of :func:`code_permutations`; which items share a code does not change."""
    new_IL = checked_codes(new_codes_IL, tuple(sizes), name="alignment: new codes")
    return renamed_codes(new_IL, code_permutations(old_codes_IL, new_IL, sizes, parallel=parallel))


def aligned_tokenizer(
    tokenizer: FittedTokenizer, old_codes_IL: ArrayLike, new_codes_IL: ArrayLike
) -> tuple[FittedTokenizer, Codes]:
    """A refitted tokenizer whose code numbers agree with the old one's where possible.

    Args:
        tokenizer: the new one; its codebooks' rows move with the numbers.
        old_codes_IL: [I, L] codes of items under the old tokenizer.
        new_codes_IL: [I, L] codes of the same items from ``tokenizer``.

    Returns:
        The tokenizer with other numbers, and the items' codes from it.

    Raises:
        ValueError: the codes are not of the same items and levels, or the method is fsq: its numbers are digits.
    """
    new_IL = checked_codes(new_codes_IL, tokenizer.codebook_sizes, name="alignment: new codes")
    if not tokenizer.can_renumber:
        raise ValueError(
            f"alignment: code numbers of {tokenizer.name} are made of digits and cannot be renamed; "
            "keep the old tokenizer and append() the new items"
        )
    parallel = isinstance(tokenizer, ProductCodes)
    permutations = code_permutations(old_codes_IL, new_IL, tokenizer.codebook_sizes, parallel=parallel)
    return tokenizer.renumbered(permutations), renamed_codes(new_IL, permutations)
