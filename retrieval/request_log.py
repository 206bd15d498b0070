"""Requests in the standard library's log."""

from __future__ import annotations

import logging

from recsys.errors import InputError
from recsys.retrieval.timings import BatchTimings

__all__ = ["RequestLog"]

_LOGGER = logging.getLogger("recsys.requests")


class RequestLog:
    """Writes to the logger ``recsys.requests``; which handlers there are and what they show is the application's.

    DEBUG: every batch with its stages. WARNING: a batch slower than the threshold, and an error that is not the
    caller's fault; INFO: one that is. Nothing says who asked or for what, unless it is asked for.
    """

    def __init__(self, *, slow_ms: float = 1000.0, slow_level: int = logging.WARNING, users: bool = False) -> None:
        """Set the threshold.

        Args:
            slow_ms: wall time of a batch from which on it is slow.
            slow_level: of slow batches.
            users: name the users of slow batches.
        """
        if not slow_ms > 0:
            raise InputError(f"slow_ms must be above 0, got {slow_ms!r}; leave it out for 1000")
        self.slow_ms, self.slow_level, self.users = slow_ms, slow_level, users

    def answered(self, batch: BatchTimings) -> None:
        """See :class:`recsys.retrieval.timings.Observer`."""
        is_slow = 1e3 * batch.seconds >= self.slow_ms
        level = self.slow_level if is_slow else logging.DEBUG
        if not _LOGGER.isEnabledFor(level):
            return
        text = "%s of %d took %.1f ms (%s)"
        values: list[object] = ["slow batch" if is_slow else "batch", batch.size, 1e3 * batch.seconds, _stages(batch)]
        if is_slow and self.users:
            text += ", users %s"
            values.append([getattr(request, "user_id", None) for request in batch.requests])
        _LOGGER.log(level, text, *values)

    def failed(self, batch: BatchTimings, error: Exception) -> None:
        """See :class:`recsys.retrieval.timings.Observer`."""
        where = batch.stages[-1].name if batch.stages else "start"
        level = logging.INFO if isinstance(error, InputError) else logging.WARNING
        # The text of an error may quote ids; its kind does not.
        _LOGGER.log(level, "batch of %d failed in %s: %s", batch.size, where, type(error).__name__)


def _stages(batch: BatchTimings) -> str:
    parts = [f"{name} {1e3 * seconds:.1f}" for name, seconds in batch.stage_seconds.items()]
    return ", ".join(parts + [f"{name} {count}" for name, count in batch.counts.items()])
