"""The benchmark of common beginnings of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.pipelines.bench.command import run_bench

pytest.importorskip("transformers", reason="needs the extra llm")

from recsys.pipelines.bench.rerank_prefix import prefix_reuse_case, prefix_reuse_cases


def test_fewer_tokens_in_every_way_of_asking() -> None:
    one, separate, again = prefix_reuse_cases(None, num_users=2, num_candidates=5)
    for case in (one, separate, again):
        assert case.predicted_ratio is not None and case.predicted_ratio > 3
        assert case.ours["tokens"] + case.ours["reused"] * case.other["tokens"] == pytest.approx(case.other["tokens"])
    assert again.ours["tokens"] < one.ours["tokens"] <= separate.ours["tokens"]
    assert one.other["tokens"] == separate.other["tokens"]


def test_one_case_by_itself() -> None:
    case = prefix_reuse_case(num_users=1, num_candidates=4)
    assert case.shape["model"] == "made" and case.ours["tokens"] < case.other["tokens"] / 2


def test_this_benchmark_alone_takes_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--lm is for the benchmark rerank-prefix"):
        run_bench("beam", lm=tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        run_bench("rerank-prefix", lm=tmp_path)
