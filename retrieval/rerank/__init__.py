"""Reordering of a short list of items, with language models or without. Nothing of the core imports this folder."""

from recsys.retrieval.rerank.request import RerankItem, RerankRequest
from recsys.retrieval.rerank.reranker import Reranker
from recsys.retrieval.rerank.result import Faults, RerankResult

__all__ = ["Faults", "RerankItem", "RerankRequest", "RerankResult", "Reranker"]
