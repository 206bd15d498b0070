"""The benchmark of common beginnings of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recsys.errors import InputError
from recsys.pipelines.bench.command import bench, run_bench

pytest.importorskip("transformers", reason="needs the extra llm")

from recsys.pipelines.bench.rerank_prefix import prefix_reuse_case, prefix_reuse_cases


def test_fewer_tokens_in_every_way_of_asking(small_lm_folder: Path) -> None:
    one, separate, again = prefix_reuse_cases(small_lm_folder, num_users=2, num_candidates=5)
    for case in (one, separate, again):
        assert case.predicted_ratio is not None and case.predicted_ratio > 3
        assert case.ours["tokens"] + case.ours["reused"] * case.other["tokens"] == pytest.approx(case.other["tokens"])
    assert again.ours["tokens"] < one.ours["tokens"] <= separate.ours["tokens"]
    assert one.other["tokens"] == separate.other["tokens"]


def test_a_made_model_is_enough() -> None:
    case = prefix_reuse_case(num_users=1, num_candidates=4)
    assert case.shape["model"] == "made" and case.ours["tokens"] < case.other["tokens"] / 2


def test_only_this_one_takes_a_model(small_lm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--lm is for the benchmark rerank_prefix"):
        run_bench("beam", lm=small_lm_folder)
    with pytest.raises(InputError, match=r"no config\.json"):
        run_bench("rerank_prefix", lm=tmp_path)
    bench("rerank_prefix", json=tmp_path / "out.json", lm=small_lm_folder)
    result = json.loads((tmp_path / "out.json").read_text())
    assert [case["name"] for case in result["cases"]] == ["one call", "a call a user", "back again"]
    assert result["cases"][0]["shape"]["model"] == small_lm_folder.name
