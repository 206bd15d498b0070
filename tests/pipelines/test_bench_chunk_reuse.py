import math

import polars as pl
import pytest

from recsys.errors import InputError
from recsys.pipelines.bench import chunk_reuse
from recsys.pipelines.bench.chunk_reuse import Prompt, bench_chunk_reuse, compare, equal_beginnings, item_prompts
from recsys.pipelines.bench.command import run_bench

transformers = pytest.importorskip("transformers", reason="needs the extra llm")


@pytest.fixture
def items(tmp_path):
    rows = [
        (f"Toy {at} of wood", f"Toy {at} of wood. Category: Toys > Trains > Number {at % 7}. " * 2) for at in range(9)
    ]
    pl.DataFrame(rows, schema=["title", "text"], orient="row").write_parquet(tmp_path / "items.parquet")
    return tmp_path


@pytest.fixture
def few(monkeypatch):
    for name, value in (("_POOL", 8), ("_CHUNKS", 3), ("_ALPHAS", (0.0, 1.0)), ("_ANSWER", 4)):
        monkeypatch.setattr(chunk_reuse, name, value)


def test_ways_are_compared_on_equal_prompts(small_lm_folder, items, few):
    model, tokenizer = chunk_reuse._load(small_lm_folder)
    prompts = item_prompts(tokenizer, chunk_reuse._texts(items), num_prompts=5)
    figures = compare(model, prompts, (0.0, 1.0))
    computed = {alpha: sum(way.computed) for alpha, way in figures.items()}
    assert computed[0.0] < computed[1.0] < computed[math.inf] < computed[None]
    assert computed[None] == sum(len(prompt.tokens) for prompt in prompts)
    assert equal_beginnings(prompts) <= computed[math.inf]
    exact = figures[math.inf]
    assert all(exact.first_equal) and all(exact.all_equal) and max(exact.kl_nats) < 1e-5
    assert exact.recomputed == [0] * 5 and sum(figures[1.0].recomputed) > 0
    assert sum(figures[0.0].kl_nats) > sum(exact.kl_nats)


def test_the_headline_is_the_default_against_prefix_caching(small_lm_folder, items, few, monkeypatch):
    result = run_bench("chunk-reuse", lm=small_lm_folder, data=items)
    first, *_, last = result["cases"]
    assert len(result["cases"]) == 3
    assert first["name"].endswith("against prefix caching") and last["name"].endswith("against everything computed")
    assert first["predicted_ratio"] == first["other"]["tokens"] / first["ours"]["tokens"] > 1
    assert first["other"]["answer_equal"] == first["other"]["first_token_equal"] == 1
    assert "answer_equal" not in last["other"] and last["shape"]["prompts"] == 24
    monkeypatch.setattr(chunk_reuse, "made_prompts", lambda num_prompts: [Prompt([3], [[4] * 9, [5] * 7], [6])] * 2)
    made = bench_chunk_reuse(long=False)
    assert "answer_equal" not in made[0].ours and made[0].ours["tokens"] == 18 + 1


def test_a_prefix_cache_without_limits():
    prompts = [Prompt([1, 2], [[3, 4]], [5]), Prompt([1, 2], [[3, 9]], [5]), Prompt([1, 2], [[3, 4]], [5])]
    assert equal_beginnings(prompts) == 5 + 2 + 1


def test_what_it_needs(small_lm_folder, items, tmp_path):
    with pytest.raises(InputError, match="give --lm and --data together"):
        run_bench("chunk-reuse", lm=small_lm_folder)
    with pytest.raises(InputError, match="--data is for the benchmark layouts and chunk-reuse; leave it out"):
        run_bench("unify", data=items)
    with pytest.raises(InputError, match="holds no language model"):
        run_bench("chunk-reuse", lm=items, data=items)
    with pytest.raises(InputError, match="holds 9 items with a text, the benchmark needs 24"):
        run_bench("chunk-reuse", lm=small_lm_folder, data=items)
    with pytest.raises(InputError, match="there is no .*items.parquet"):
        run_bench("chunk-reuse", lm=small_lm_folder, data=tmp_path / "none")
    pl.DataFrame({"item_id": [1]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(InputError, match="has no columns title and text"):
        run_bench("chunk-reuse", lm=small_lm_folder, data=tmp_path)
