"""Business rules of a request: what may be shown, how much of it, and in which order."""

from recsys.retrieval.rules.rule import MMR, Boost, Cap, Explore, Floor, Freshness, Pin, Rule, Where

__all__ = ["MMR", "Boost", "Cap", "Explore", "Floor", "Freshness", "Pin", "Rule", "Where"]
