"""A made world with known truth: what it holds, what users do in it, and the best that anyone could predict."""

from __future__ import annotations

from recsys.pipelines.simulate.world import World, WorldConfig

__all__ = ["World", "WorldConfig"]
