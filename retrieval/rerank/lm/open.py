"""A language model by one word: a folder, or an address with a model's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.lm.local import LocalLanguageModel
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.lm.server import ServerLanguageModel
from recsys.retrieval.rerank.lm.server_connection import refuse_password

__all__ = ["open_language_model"]


def open_language_model(spec: str | Path, **settings: Any) -> LanguageModel:
    """Open a model.

    Args:
        spec: folder of a causal language model, or ``http(s)://host/v1#model`` for one of an OpenAI-compatible server.
        settings: of :meth:`LocalLanguageModel.load` or :class:`ServerLanguageModel`; ``name`` and ``prices`` suit both.

    Raises:
        InputError: there is no such folder, the address names no model or holds a password, or a setting belongs to
            the other kind.
    """
    address = str(spec)
    refuse_password(address)
    if address.startswith(("http://", "https://")):
        base_url, _, model = address.partition("#")
        if not model:
            raise InputError(f"{shown(address)} names no model; write {base_url.rstrip('/')}#model")
        return _made(ServerLanguageModel, {"model": model, "base_url": base_url, **settings}, "a server's model")
    if "://" in address:
        raise InputError(f"{shown(address)} is neither a folder nor http(s); give one of the two")
    return _made(LocalLanguageModel.load, {"path": Path(spec), **settings}, "a local model")


def _made(make: Any, settings: dict[str, Any], what: str) -> Any:
    import inspect

    known = inspect.signature(make).parameters
    for name in settings:
        if name not in known:
            raise InputError(f"{name} is no setting of {what}; choose from {', '.join(list(known)[1:])}")
    return make(**settings)
