"""What a request says of its stages, and where else it is told: logs, Prometheus, OpenTelemetry."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.retrieval.metrics_export import PrometheusMetrics
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.request import Request
from recsys.retrieval.request_log import RequestLog
from recsys.retrieval.timings import BatchTimings
from recsys.retrieval.tracing import RequestSpans

AT = 1_702_000_000


@pytest.fixture
def rec(toy_bundle: Path) -> Recommender:
    return Recommender.load(toy_bundle)


def test_a_page_tells_its_stages_and_counts(rec: Recommender):
    page = rec.recommend("u7", k=5, at=AT, retrievers=("dense", "memory"))
    told = page.timings
    stages = {"history", "encode", "search/dense", "search/memory", "rank", "rules", "page"}
    assert stages <= set(told["batch_ms"]) and told["batch_size"] == 1
    assert all(ms > 0 for ms in told["batch_ms"].values())
    parts = [ms for name, ms in told["batch_ms"].items() if name != "total"]
    assert 0.5 * told["batch_ms"]["total"] < sum(parts) <= told["batch_ms"]["total"]
    assert told["share_ms"] == pytest.approx(told["batch_ms"])
    history = rec.bundle.histories.events.history(int(rec.bundle.histories.users.index(["u7"])[0]))
    config = rec.bundle.model.config
    assert told["counts"] == {"history_events": len(history), "candidates": 5}
    visible = len(history) - config.first_visible(len(history))
    encoded = {"tokens_encoded": visible, "states_encoded": 1}
    assert told["batch_counts"] == encoded | {"tokens_reused": 0, "cache_hits": 0, "states_appended": 0}
    again = rec.recommend("u7", k=5, at=AT).timings["batch_counts"]
    assert (again["cache_hits"], again["tokens_encoded"], again["tokens_reused"]) == (1, 0, visible)
    assert page == rec.recommend("u7", k=5, at=AT, retrievers=("dense", "memory"))  # times are no part of an answer


def test_shares_of_a_batch_add_up_to_its_wall_time(rec: Recommender):
    requests = [Request(user_id=f"u{row}", at=AT, rank=row > 1, retrievers=("dense",)) for row in range(5)]
    requests.append(Request(user_id="u9", at=AT, retrievers=("memory",), rank=False))
    pages = rec.recommend_batch(requests)
    batch = pages[0].timings["batch_ms"]
    for page in pages:
        assert page.timings["batch_ms"] == batch and page.timings["batch_size"] == 6
    for name, ms in batch.items():
        assert sum(page.timings["share_ms"].get(name, 0.0) for page in pages) == pytest.approx(ms)
    assert "rank" not in pages[0].timings["share_ms"] and "rank" in pages[2].timings["share_ms"]
    assert "search/dense" not in pages[5].timings["share_ms"]
    counts = pages[0].timings["batch_counts"]
    assert counts["tokens_encoded"] == pages[5].timings["batch_counts"]["tokens_encoded"] > 6


def test_a_store_of_states_says_what_it_reused():
    class Counts:
        hits, appended, encoded, tokens_encoded, tokens_reused = 3, 2, 1, 40, 900

    timings = BatchTimings([object()])
    timings.states(Counts())
    timings.finish()
    told = timings.of(0)["batch_counts"]
    assert told["cache_hits"] == 5 and told["tokens_encoded"] == 40 and told["tokens_reused"] == 900


def test_the_log_is_silent_unless_slow_and_names_nobody(rec: Recommender, caplog: pytest.LogCaptureFixture):
    log = logging.getLogger("recsys.requests")
    assert not log.handlers and not logging.getLogger("recsys").handlers
    with caplog.at_level(logging.INFO, logger="recsys"):
        rec.recommend("u7", at=AT)
        assert not caplog.records
        rec.observe(RequestLog(slow_ms=1e-6))
        rec.recommend("u7", at=AT)
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("recsys.requests", "WARNING")
        assert "slow batch of 1 took" in record.message and "encode" in record.message
        assert "u7" not in record.message
        caplog.clear()
        rec.observe(RequestLog(slow_ms=1e-6, slow_level=logging.INFO, users=True))
        rec.recommend("u7", at=AT)
        assert caplog.records[0].levelname == "INFO" and "u7" in caplog.records[0].message
        caplog.clear()
        with pytest.raises(InputError):
            rec.recommend("u7", retrievers=("psychic",))
        assert caplog.records[0].message == "batch of 1 failed in history: InputError"
    with caplog.at_level(logging.DEBUG, logger="recsys"):
        rec.observe(RequestLog())
        rec.recommend("u7", at=AT)
        assert caplog.records[-1].levelname == "DEBUG"
    with pytest.raises(InputError, match="slow_ms must be above 0, got 0"):
        RequestLog(slow_ms=0)


def test_prometheus_counts_what_was_asked(rec: Recommender, toy_bundle: Path):
    client = pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    metrics = PrometheusMetrics()
    rec.observe(metrics)
    rec.recommend_batch([Request(user_id=f"u{row}", at=AT, k=4) for row in range(3)])
    rec.recommend("u7", at=AT, k=4)
    with pytest.raises(InputError):
        rec.recommend("u7", rank_by="nothing")

    def value(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(name, {"recommender": "default", **labels})

    assert value("recsys_requests_total") == 4
    assert value("recsys_errors_total", kind="InputError") == 1
    assert value("recsys_batch_size_sum") == 4 and value("recsys_batch_size_count") == 2
    assert value("recsys_request_seconds_count") == 4
    assert value("recsys_stage_seconds_count", stage="encode") == 2
    assert value("recsys_work_total", what="candidates") == 16
    assert value("recsys_work_total", what="tokens_encoded") > 4
    held = [7.0]
    metrics.cache_bytes("device", lambda: held[0])
    held[0] = 4096.0
    assert value("recsys_cache_bytes", tier="device") == 4096.0
    assert b'recsys_stage_seconds_bucket{le="0.001",recommender="default",stage="rank"}' in metrics.text()
    # Two recommenders in one registry are told apart; the process's own registry was left alone.
    shared = client.CollectorRegistry()
    for name in ("one", "two"):
        other = Recommender.load(toy_bundle)
        other.observe(PrometheusMetrics(shared, name=name))
        other.recommend("u3", at=AT)
    counted = [shared.get_sample_value("recsys_requests_total", {"recommender": name}) for name in ("one", "two")]
    assert counted == [1, 1]
    assert client.REGISTRY.get_sample_value("recsys_requests_total", {"recommender": "default"}) is None


def test_spans_stand_under_the_callers_and_hold_the_stages(rec: Recommender):
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the OpenTelemetry SDK is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    rec.observe(RequestSpans(provider))
    with provider.get_tracer("app").start_as_current_span("page view") as outer:
        rec.recommend("u7", at=AT, k=4)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    whole = spans["recsys.recommend"]
    assert whole.parent.span_id == outer.get_span_context().span_id
    assert whole.attributes["recsys.batch_size"] == 1 and whole.attributes["recsys.candidates"] == 4
    for stage in ("history", "encode", "search/dense", "rank", "page"):
        span = spans[f"recsys.{stage}"]
        assert span.parent.span_id == whole.context.span_id
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
    assert not any("u7" in str(value) for span in spans.values() for value in span.attributes.values())
    exporter.clear()
    with pytest.raises(InputError):
        rec.recommend("u7", retrievers=("psychic",))
    failed = next(span for span in exporter.get_finished_spans() if span.name == "recsys.recommend")
    assert failed.status.description == "InputError" and not failed.status.is_ok


def test_without_an_sdk_spans_go_nowhere(rec: Recommender):
    pytest.importorskip("opentelemetry", reason="the OpenTelemetry API is not installed")
    rec.observe(RequestSpans())
    assert len(rec.recommend("u7", at=AT, k=4)) == 4
