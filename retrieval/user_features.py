"""Features of a user as a request gives them, encoded as those of the users a model was trained on.

Suffixes: K = columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.errors import InputError, shown
from recsys.tokenizers.table_columns import table_rows

__all__ = ["encoded_user", "stored_user"]


def stored_user(bundle: Bundle, user_id: Any) -> NDArray[np.float32]:
    """[K] what the model of a bundle reads of a user in its histories; zeros where nothing is known."""
    if bundle.user_features_UK is not None and bundle.histories is not None:
        user = int(bundle.histories.users.index([user_id])[0])
        if user >= 0:
            stored: NDArray[np.float32] = bundle.user_features_UK[user].cpu().numpy()
            return stored
    return np.zeros(bundle.model.config.user_dim, dtype=np.float32)


def encoded_user(bundle: Bundle, given: Mapping[str, Any]) -> NDArray[np.float32]:
    """[K] what the model of a bundle reads of a user.

    Args:
        given: columns of the users table by name; those left out, or None, are unknown.

    Raises:
        InputError: the model reads no such column, or the value is of another kind.
    """
    names = [block["name"] for block in bundle.user_blocks]
    for name in given:
        if name not in names:
            read = (
                f"it reads {', '.join(names)}" if names else "it reads none; prepare with --user-features to have some"
            )
            raise InputError(
                f"user_features: the model of {bundle.path} reads no column {shown(name)} of users; {read}"
            )
    known = {name: value for name, value in given.items() if value is not None}
    try:
        row = pl.DataFrame({name: pl.Series([value]) for name, value in known.items()}) if known else pl.DataFrame()
        table = row if known else pl.DataFrame({"": [None]})
        encoded: NDArray[np.float32] = table_rows(bundle.user_blocks, table, pl.Series(["of the request"]))[0]
    except (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InputError(f"user_features: {' '.join(str(error).split())[:200]}") from error
    return encoded
