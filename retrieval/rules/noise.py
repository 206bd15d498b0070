"""Random numbers that depend on what they are for, and on nothing that was drawn before.

Suffix: C = candidates.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["uniforms"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(key: str, item_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] numbers inside (0, 1), one per item: a keyed SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).

    An item's number is the same whichever other items are asked for.
    """
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    start = np.uint64(int.from_bytes(digest, "little"))
    state_C = start + (item_C.astype(np.uint64) + np.uint64(1)) * _STEP
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        state_C = (state_C ^ (state_C >> np.uint64(shift))) * factor
    state_C = state_C ^ (state_C >> np.uint64(31))
    found_C: NDArray[np.float64] = ((state_C >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return found_C
