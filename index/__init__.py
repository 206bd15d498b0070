"""Structures over the catalogue: vector indexes and the item graph."""

from recsys.index.exact import ExactIndex
from recsys.index.hits import Hits
from recsys.index.item_graph import ItemGraph
from recsys.index.protocol import VectorIndex
from recsys.index.registry import INDEX_KINDS, build_index, load_index
from recsys.index.transitions import transition_matrix

__all__ = [
    "INDEX_KINDS",
    "ExactIndex",
    "Hits",
    "ItemGraph",
    "VectorIndex",
    "build_index",
    "load_index",
    "transition_matrix",
]
