"""Requests as OpenTelemetry spans, for those who have its API; where spans go is the application's SDK's affair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.errors import InputError
from recsys.retrieval.timings import BatchTimings

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["RequestSpans"]


class RequestSpans:
    """A span ``recsys.recommend`` for every batch under the caller's current span, and one below it for every stage.

    Spans are written after the batch, with the times at which it happened. Attributes are numbers and names of stages:
    no ids of users or items.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Take a tracer.

        Args:
            provider: None = the process's; without an SDK its spans go nowhere.

        Raises:
            InputError: the OpenTelemetry API is not installed.
        """
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise InputError(
                f"spans need the OpenTelemetry API ({error}); install it with: pip install opentelemetry-api"
            ) from error
        self._trace = trace
        self._tracer = trace.get_tracer("recsys", tracer_provider=provider)

    def answered(self, batch: BatchTimings) -> None:
        """See :class:`recsys.retrieval.timings.Observer`."""
        self._write(batch, None)

    def failed(self, batch: BatchTimings, error: Exception) -> None:
        """See :class:`recsys.retrieval.timings.Observer`."""
        self._write(batch, error)

    def _write(self, batch: BatchTimings, error: Exception | None) -> None:
        def at_ns(seconds: float) -> int:
            return batch.began_ns + round(1e9 * (seconds - batch.begin_s))

        attributes: dict[str, Any] = {"recsys.batch_size": batch.size}
        attributes |= {f"recsys.{name}": count for name, count in batch.counts.items()}
        for name in ("candidates", "history_events"):
            attributes[f"recsys.{name}"] = sum(counts.get(name, 0) for counts in batch.request_counts)
        span = self._tracer.start_span("recsys.recommend", start_time=batch.began_ns, attributes=attributes)
        if error is not None:
            # Its kind alone: the text may quote ids.
            span.set_status(self._trace.StatusCode.ERROR, type(error).__name__)
        below = self._trace.set_span_in_context(span)
        for stage in batch.stages:
            rows = batch.size if stage.rows is None else len(stage.rows)
            part = self._tracer.start_span(
                f"recsys.{stage.name}", below, start_time=at_ns(stage.begin_s), attributes={"recsys.requests": rows}
            )
            part.end(at_ns(stage.begin_s + stage.seconds))
        span.end(at_ns(batch.end_s))
