"""Rerankers by the names of their methods."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import InputError, shown
from recsys.retrieval.rerank.reranker import Reranker

if TYPE_CHECKING:
    from recsys.bundle import Bundle
    from recsys.retrieval.rerank.lm.protocol import LanguageModel
    from recsys.retrieval.rerank.prompt import Prompt

__all__ = ["METHODS", "NEEDS_LM", "PROMPTED", "open_reranker"]

NEEDS_LM = ("pointwise", "pairwise-all", "pairwise-heap", "pairwise-sliding", "listwise", "first", "full-list", "set")
"""Methods that ask a language model."""
PROMPTED = (*NEEDS_LM, "cross-encoder")
"""Methods that word what they know by a prompt file."""
METHODS = (*PROMPTED, "embedding-feedback")


def open_reranker(
    method: str,
    *,
    lm: LanguageModel | str | Path | None = None,
    bundle: Bundle | None = None,
    cross_encoder: str | Path | None = None,
    feedback: str | Path | None = None,
    prompt: Prompt | str | Path | None = None,
    **settings: Any,
) -> Reranker:
    """The reranker of a method.

    Args:
        method: one of :data:`METHODS`.
        lm: a language model, or what :func:`~recsys.retrieval.rerank.lm.open.open_language_model` opens: a folder, or
            ``http(s)://host/v1#model``. For :data:`NEEDS_LM`; ``set`` needs a folder.
        bundle: loaded; for ``embedding-feedback``.
        cross_encoder: folder of a model that scores pairs of texts; for ``cross-encoder``.
        feedback: folder of a trained head; for ``embedding-feedback``, which does without one, too.
        prompt: instead of the method's own, by name, path or loaded; for :data:`PROMPTED`.
        settings: what else the method's class takes.

    Raises:
        InputError: an unknown method, something that it needs is not given or cannot be opened.
    """
    if method not in METHODS:
        close = get_close_matches(str(method), METHODS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
        raise InputError(f"no reranking method is called {shown(method)}; {hint}")
    if method in NEEDS_LM:
        if lm is None:
            raise InputError(
                f"the method {method} needs a language model; give lm, a folder or http(s)://host/v1#model"
            )
        return _of_language_model(method, _language_model(lm), prompt, settings)
    if method == "cross-encoder":
        if cross_encoder is None:
            raise InputError("the method cross-encoder needs a folder of a cross-encoder; give cross_encoder")
        from recsys.retrieval.rerank.cross_encoder import CrossEncoderReranker

        if prompt is not None:
            settings = {"prompt": prompt, **settings}
        return CrossEncoderReranker(cross_encoder, **settings)
    if prompt is not None:
        raise InputError(f"the method {method} words nothing; leave the prompt out")
    if bundle is None:
        raise InputError("the method embedding-feedback reads item vectors and the encoder; give bundle")
    from recsys.retrieval.rerank.embedding_feedback import EmbeddingFeedbackReranker

    return EmbeddingFeedbackReranker(bundle, feedback, **settings)


def _language_model(lm: LanguageModel | str | Path) -> LanguageModel:
    if not isinstance(lm, (str, Path)):
        return lm
    from recsys.retrieval.rerank.lm.open import open_language_model

    return open_language_model(str(lm))


def _of_language_model(
    method: str, lm: LanguageModel, prompt: Prompt | str | Path | None, settings: dict[str, Any]
) -> Reranker:
    made: Callable[..., Reranker]
    if method == "set":
        from recsys.retrieval.rerank.set_prompting import SetPromptingReranker as made
    elif method == "pointwise":
        from recsys.retrieval.rerank.pointwise import PointwiseReranker as made
    elif method == "listwise":
        from recsys.retrieval.rerank.listwise import ListwiseReranker as made
    elif method == "first":
        from recsys.retrieval.rerank.first import FirstReranker as made
    elif method == "full-list":
        from recsys.retrieval.rerank.full_list import FullListReranker as made
    else:
        from recsys.retrieval.rerank.pairwise import PairwiseReranker as made

        settings = {"sort": method.removeprefix("pairwise-"), **settings}
    return made(lm, prompt=prompt, **settings)
