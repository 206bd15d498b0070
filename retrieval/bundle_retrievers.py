"""The retrievers of a bundle, made in one place for serving, batch jobs and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.index.memory_terms import MemoryTerms
from recsys.model import UnifiedModel
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.generative import GenerativeRetriever
from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.parallel import ParallelRetriever
from recsys.retrieval.protocol import Retriever
from recsys.retrieval.set_retriever import SetRetriever

__all__ = ["bundle_retrievers", "code_retrievers"]


def bundle_retrievers(
    bundle: Bundle, names: Sequence[str] | None = None, *, training_only: bool = False
) -> dict[str, Retriever]:
    """Retrievers by name.

    ``dense`` and ``memory`` may be cut down to some relations of the item graph: ``dense/transition`` is the sum with
    transitions alone, ``memory/text,transition`` the rule with two relations.

    Args:
        bundle: a loaded bundle.
        names: which ones; None = all of the bundle.
        training_only: use transitions of training events alone, as validation and test must.

    Raises:
        InputError: the bundle has no such retriever or relation.
    """
    wanted = bundle.retrievers if names is None else tuple(dict.fromkeys(names))
    return {name: _retriever(bundle, name, training_only) for name in wanted}


def code_retrievers(model: UnifiedModel) -> list[str]:
    """Names of the retrievers that a model's heads of semantic IDs make possible."""
    heads = {"generative": model.code_decoder, "parallel": model.parallel_codes, "set": model.set_codes}
    return [name for name, head in heads.items() if head is not None]


def _retriever(bundle: Bundle, name: str, training_only: bool) -> Retriever:
    kind, slash, cut = name.partition("/")
    if kind not in bundle.retrievers or (slash and kind not in ("dense", "memory")):
        raise InputError(f"there is no retriever {name!r} in {bundle.path}; it has {', '.join(bundle.retrievers)}")
    graph = bundle.graph_train if training_only else bundle.graph_now
    relations = tuple(cut.split(",")) if slash else graph.relations
    for relation in relations:
        if relation not in graph.relations:
            there = ", ".join(graph.relations) or "none"
            raise InputError(f"{name}: the item graph of {bundle.path} has no relation {relation!r}; it has {there}")
    if kind == "memory":
        weights = {relation: b for relation, b in graph.default_weights.items() if relation in relations}
        return MemoryRetriever(graph, weights, name=name)
    if kind == "dense_learned":
        return DenseRetriever(bundle.model, bundle.index, bundle.vectors, name)
    if kind == "generative" and bundle.trie is not None:
        return GenerativeRetriever(bundle.model, bundle.trie)
    if kind == "parallel":
        return ParallelRetriever(bundle.model)
    if kind == "set":
        return SetRetriever(bundle.model)
    if kind != "dense":
        raise InputError(f"{bundle.path} asks for the retriever {name!r}; this recsys has none: upgrade it")
    chosen, is_new_I = bundle.memory_weights, ~bundle.model.items.has_id_I
    terms = MemoryTerms.weighted(graph, chosen, is_new_I, relations)
    if terms.is_empty:
        return DenseRetriever(bundle.model, bundle.index, bundle.vectors, name)
    return DenseRetriever(bundle.model, bundle.index, bundle.vectors, name, memory=terms, learned=chosen.learned)
