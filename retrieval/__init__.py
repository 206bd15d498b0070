"""Search with a trained model, and without one."""

from recsys.retrieval.memory import MemoryRetriever
from recsys.retrieval.page import Hit, Page
from recsys.retrieval.protocol import Retriever

__all__ = ["Hit", "MemoryRetriever", "Page", "Retriever"]
