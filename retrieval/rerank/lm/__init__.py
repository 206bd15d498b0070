"""Language models, run here or by a server."""

from recsys.retrieval.rerank.lm.protocol import Chat, Choice, Generation, LanguageModel, Message
from recsys.retrieval.rerank.lm.usage import Prices, Usage

__all__ = ["Chat", "Choice", "Generation", "LanguageModel", "Message", "Prices", "Usage"]
