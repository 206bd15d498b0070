"""The language model that a command's ``--lm`` names."""

from __future__ import annotations

import os

from recsys.retrieval.rerank.lm.protocol import LanguageModel

__all__ = ["named_model"]

_KEY = "RECSYS_API_KEY"


def named_model(lm: str) -> LanguageModel:
    """Open the model; the key of a server is that of the environment's ``RECSYS_API_KEY``.

    Args:
        lm: a folder, or ``http(s)://host/v1#model``.

    Raises:
        InputError: as :func:`recsys.retrieval.rerank.lm.open.open_language_model`.
    """
    from recsys.retrieval.rerank.lm.open import open_language_model

    key = os.environ.get(_KEY)
    return open_language_model(lm, **({"api_key": key} if key and "://" in lm else {}))
