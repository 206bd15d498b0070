"""The retrievers of a bundle, made in one place for serving, batch jobs and evaluation.

Suffixes: I = items, D = width, N = chosen items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.index.code_neighbours import CodeNeighbours
from recsys.index.code_trie import CodeTrie
from recsys.index.item_graph import ItemGraph
from recsys.index.memory_terms import MemoryTerms, MemoryWeights
from recsys.index.protocol import VectorIndex
from recsys.list_head import ListHead
from recsys.model import UnifiedModel
from recsys.retrieval.dense import DenseRetriever
from recsys.retrieval.generative import GenerativeRetriever
from recsys.retrieval.hybrid import HybridRetriever
from recsys.retrieval.hybrid_weights import HybridWeights
from recsys.retrieval.list_features import ListFeatures
from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.parallel import ParallelRetriever
from recsys.retrieval.protocol import CodeRetriever, Retriever
from recsys.retrieval.set_retriever import SetRetriever

__all__ = ["RetrieverParts", "bundle_retrievers", "code_retriever_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverParts:
    """What retrievers are made of."""

    model: UnifiedModel
    vectors_ID: Tensor
    index: VectorIndex
    graph: ItemGraph
    memory_weights: MemoryWeights
    trie: CodeTrie | None
    """None where the model generates no semantic IDs."""
    hybrid_weights: HybridWeights | None = None
    hybrid_head: ListHead | None = None
    """None = the hybrid score is the sum alone."""
    gone_I: Tensor | None = None
    """[I] bool, items that retrievers by codes do not return; index, graph and trie know it by themselves."""
    neighbours: Mapping[str, CodeNeighbours] = field(default_factory=dict)
    """By kind of codes; of those that are walked, not scored whole."""

    def dense(self, name: str = "dense", relations: Sequence[str] | None = None) -> DenseRetriever:
        """The sum of the learned score and the memory terms, or of some relations of them."""
        chosen, is_new_I = self.memory_weights, ~self.model.items.has_id_I
        kept = self.graph.relations if relations is None else tuple(relations)
        terms = MemoryTerms.weighted(self.graph, chosen, is_new_I, kept)
        if terms.is_empty:
            return DenseRetriever(self.model, self.index, self.vectors_ID, name)
        return DenseRetriever(self.model, self.index, self.vectors_ID, name, memory=terms, learned=chosen.learned)

    def memory(self, name: str = "memory", relations: Sequence[str] | None = None) -> MemoryRetriever:
        """The rule that needs no training."""
        kept = self.graph.relations if relations is None else relations
        weights = {relation: b for relation, b in self.graph.default_weights.items() if relation in kept}
        return MemoryRetriever(self.graph, weights, name=name, recent=self.model.config.recent)

    def by_codes(self) -> list[CodeRetriever]:
        """The retrievers by semantic IDs that the model has heads for."""
        found: list[CodeRetriever] = []
        if self.trie is not None:
            found.append(GenerativeRetriever(self.model, self.trie))
        if self.model.parallel_codes is not None:
            found.append(ParallelRetriever(self.model, self.gone_I, self._walked("parallel_codes")))
        if self.model.set_codes is not None:
            found.append(SetRetriever(self.model, self.gone_I, self._walked("set_codes")))
        return found

    def _walked(self, kind: str) -> CodeNeighbours | None:
        """The graph of a kind of codes; None where there is none, or where items came after it was built."""
        found = self.neighbours.get(kind)
        return found if found is not None and found.num_items == self.model.config.num_items else None

    def hybrid(self, weights: HybridWeights | None = None) -> HybridRetriever:
        """The union of all; with the weights and the head of these parts, or with other weights and no head.

        Raises:
            ValueError: the head reads vectors or relations that are not there.
        """
        chosen = weights or self.hybrid_weights or HybridWeights()
        cold_N = (~self.model.items.has_id_I).nonzero().flatten()
        dense, codes, head = self.dense(), self.by_codes(), self.hybrid_head if weights is None else None
        features = None if head is None else ListFeatures(dense, self.graph)
        return HybridRetriever(dense, self.memory(), codes, cold_N, chosen, head, features)


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
    stored = bundle.manifest.get("hybrid_weights")
    try:
        hybrid_weights = None if stored is None else HybridWeights.from_dict(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{bundle.path}: hybrid_weights cannot be read ({error!r:.100}); export it again") from None
    parts = RetrieverParts(
        model=bundle.model,
        vectors_ID=bundle.vectors,
        index=bundle.index,
        graph=bundle.graph_train if training_only else bundle.graph_now,
        memory_weights=bundle.memory_weights,
        trie=bundle.trie,
        hybrid_weights=hybrid_weights,
        hybrid_head=bundle.hybrid_head,
        gone_I=bundle.index.gone_I,
        neighbours=bundle.neighbours,
    )
    return {name: _retriever(bundle, parts, name) for name in wanted}


def code_retriever_names(model: UnifiedModel) -> list[str]:
    """Names of the retrievers that a model's heads of semantic IDs make possible."""
    heads = {"generative": model.code_decoder, "parallel": model.parallel_codes, "set": model.set_codes}
    names = [name for name, head in heads.items() if head is not None]
    return [*names, "hybrid"] if names else []


def _retriever(bundle: Bundle, parts: RetrieverParts, name: str) -> Retriever:
    kind, slash, cut = name.partition("/")
    if kind not in bundle.retrievers or (slash and kind not in ("dense", "memory")):
        raise InputError(f"there is no retriever {name!r} in {bundle.path}; it has {', '.join(bundle.retrievers)}")
    graph = parts.graph
    relations = tuple(cut.split(",")) if slash else graph.relations
    for relation in relations:
        if relation not in graph.relations:
            there = ", ".join(graph.relations) or "none"
            raise InputError(f"{name}: the item graph of {bundle.path} has no relation {relation!r}; it has {there}")
    if kind == "memory":
        return parts.memory(name, relations)
    if kind == "dense":
        return parts.dense(name, relations)
    if kind == "dense_learned":
        return DenseRetriever(bundle.model, bundle.index, bundle.vectors, name)
    if kind == "hybrid":
        try:
            return parts.hybrid()
        except ValueError as error:
            raise InputError(f"{bundle.path}: {error}; export it again") from None
    for one in parts.by_codes():
        if one.name == kind:
            return one
    raise InputError(f"{bundle.path} asks for the retriever {name!r}; this recsys has none: upgrade it")
