"""The service keeps what its OpenAPI document promises, whatever is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = "from schemathesis.cli import schemathesis; schemathesis()"
CONFIG = """
[checks]
# A fitting message may name a retriever, a column or an item that the bundle does not hold, or be too large as a whole.
positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 413]
negative_data_rejection.expected-statuses = [400, 404, 405, 411, 413, 422]
"""


@pytest.mark.parametrize(
    "bounds",
    [
        pytest.param(["--phases=fuzzing", "--max-examples=3"], id="some"),
        pytest.param(["--max-examples=30"], id="every-limit", marks=pytest.mark.slow),
    ],
)
def test_every_answer_is_one_of_the_document(service: Any, tmp_path: Path, bounds: list[str]) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis reads the OpenAPI document")
    config, cases = tmp_path / "schemathesis.toml", tmp_path / "cases.ndjson"
    config.write_text(CONFIG, encoding="utf-8")
    told = ["--seed=1", "--no-color", "--report=ndjson", f"--report-ndjson-path={cases}", *bounds]
    run = [sys.executable, "-P", "-c", RUN, f"--config-file={config}", "run", f"{service.url}/openapi.json", *told]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Operations:       10 selected / 10 total" in done.stdout
    lines = cases.read_text(encoding="utf-8").splitlines()
    assert sum("ScenarioFinished" in json.loads(line) for line in lines) >= 10


def test_every_route_documents_its_errors_by_one_model(service: Any) -> None:
    import httpx

    document = httpx.get(f"{service.url}/openapi.json", trust_env=False).json()
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert {path for path, _, _ in operations} == {
        "/health", "/ready", "/metrics", "/about", "/recommend", "/similar", "/events", "/items", "/explain",
    }  # fmt: skip
    for path, method, operation in operations:
        errors = {int(status) for status in operation["responses"] if status >= "400"}
        expected = {500} | ({400, 411, 413, 422, 503} if method == "post" else set())
        assert errors >= expected, (path, method)
        for status in errors:
            (content,) = operation["responses"][str(status)]["content"].values()
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorReply"}, (path, method, status)
