"""Requests as Prometheus metrics, for those who have ``prometheus-client``."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from recsys.errors import InputError
from recsys.retrieval.timings import BatchTimings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["PrometheusMetrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_families: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
_lock = Lock()


class PrometheusMetrics:
    """Histograms of stages, requests and batch sizes, counters of requests, errors, candidates, tokens and states.

    Example:
        >>> metrics = PrometheusMetrics()                                                   # doctest: +SKIP
        >>> rec.observe(metrics)                                                            # doctest: +SKIP
        >>> body = metrics.text()               # for a handler of /metrics                   doctest: +SKIP
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, name: str = "default") -> None:
        """Make the metrics, or join those that the registry has.

        Args:
            registry: None = one of its own. ``prometheus_client.REGISTRY`` is the process's; several recommenders may
                share one and are told apart by their names.
            name: label ``recommender`` of every metric.

        Raises:
            InputError: ``prometheus-client`` is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            raise InputError(
                f"metrics need prometheus-client ({error}); install it with: pip install 'recsys[serving]'"
            ) from error
        self.registry = CollectorRegistry() if registry is None else registry
        self.name = name
        with _lock:
            if self.registry not in _families:
                _families[self.registry] = _made(self.registry)
            self._family = _families[self.registry]

    def answered(self, batch: BatchTimings) -> None:
        """See :class:`recsys.retrieval.timings.Observer`."""
        family, name = self._family, self.name
        family["requests"].labels(name).inc(batch.size)
        family["batch_size"].labels(name).observe(batch.size)
        waited = family["request_seconds"].labels(name)
        for _ in batch.requests:
            waited.observe(batch.seconds)
        for stage, seconds in batch.stage_seconds.items():
            family["stage_seconds"].labels(name, stage).observe(seconds)
        for what, count in batch.counts.items():
            family["counts"].labels(name, what).inc(count)
        for what in dict.fromkeys(what for counts in batch.request_counts for what in counts):
            family["counts"].labels(name, what).inc(sum(counts.get(what, 0) for counts in batch.request_counts))

    def failed(self, batch: BatchTimings, error: Exception) -> None:
        """See :class:`recsys.retrieval.timings.Observer`."""
        self._family["errors"].labels(self.name, type(error).__name__).inc()

    def cache_bytes(self, tier: str, read: Callable[[], float]) -> None:
        """Show bytes of kept user states, read whenever the metrics are collected.

        Args:
            tier: label, such as ``device`` or ``host``. read: says how many.
        """
        self._family["cache_bytes"].labels(self.name, tier).set_function(read)

    def text(self) -> bytes:
        """All metrics of the registry in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


def _made(registry: CollectorRegistry) -> dict[str, Any]:
    from prometheus_client import Counter, Gauge, Histogram

    one = ["recommender"]
    return {
        "requests": Counter("recsys_requests", "Requests answered", one, registry=registry),
        "errors": Counter("recsys_errors", "Batches ended by an error", [*one, "kind"], registry=registry),
        "counts": Counter(
            "recsys_work", "Candidates, events, tokens, states", [*one, "what"], registry=registry
        ),
        "request_seconds": Histogram(
            "recsys_request_seconds", "Wall time of the batch a request was answered in", one, buckets=_SECONDS,
            registry=registry,
        ),
        "stage_seconds": Histogram(
            "recsys_stage_seconds", "Wall time of a batch in a stage", [*one, "stage"], buckets=_SECONDS,
            registry=registry,
        ),
        "batch_size": Histogram(
            "recsys_batch_size", "Requests answered together", one, buckets=_SIZES, registry=registry
        ),
        "cache_bytes": Gauge("recsys_cache_bytes", "Bytes of kept user states", [*one, "tier"], registry=registry),
    }  # fmt: skip
