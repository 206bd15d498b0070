"""What calls of a language model took."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from recsys.errors import InputError, shown

__all__ = ["Prices", "Usage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Counts of one or several calls; they add up."""

    calls: int = 0
    """Questions put to the model; a retried one counts once."""
    prompt_tokens: int = 0
    """Tokens of the prompts, reused ones included."""
    reused_tokens: int = 0
    """Of these, tokens whose keys and values were there already and were not computed."""
    generated_tokens: int = 0
    seconds: float = 0.0
    """Of the model's work, or of waiting for a server; a batch's time is shared equally by its questions."""
    cost: float = 0.0
    """In the currency of the :class:`Prices` that the model was opened with; 0 without prices."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            reused_tokens=self.reused_tokens + other.reused_tokens,
            generated_tokens=self.generated_tokens + other.generated_tokens,
            seconds=self.seconds + other.seconds,
            cost=self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of a million tokens each."""

    prompt: float = 0.0
    reused: float = 0.0
    """Of prompt tokens that the server says it had kept."""
    generated: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            price = getattr(self, field.name)
            if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price < math.inf:
                raise InputError(f"Prices.{field.name} must be a number from 0, got {shown(price)}")

    def cost(self, prompt_tokens: int, reused_tokens: int, generated_tokens: int) -> float:
        """What one call costs.

        >>> Prices(prompt=1.0, reused=0.5, generated=4.0).cost(3_000_000, 2_000_000, 500_000)
        4.0
        """
        fresh = prompt_tokens - reused_tokens
        return (fresh * self.prompt + reused_tokens * self.reused + generated_tokens * self.generated) / 1e6
