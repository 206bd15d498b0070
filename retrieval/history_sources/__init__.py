"""Where the histories of users come from."""

from recsys.retrieval.history_sources.bundle import BundleHistories
from recsys.retrieval.history_sources.layered import LayeredHistories, over_bundle
from recsys.retrieval.history_sources.redis import RedisHistories
from recsys.retrieval.history_sources.source import HistorySource
from recsys.retrieval.history_sources.sqlite import SqliteHistories

__all__ = [
    "BundleHistories",
    "HistorySource",
    "LayeredHistories",
    "RedisHistories",
    "SqliteHistories",
    "over_bundle",
]
