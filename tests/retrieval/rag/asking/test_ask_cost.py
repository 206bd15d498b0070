"""What questions cost is measured on questions that the item table can answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.errors import InputError
from recsys.pipelines import ask_cost
from recsys.pipelines.ask_cost import asked_values, main, model_steps, steps
from recsys.pipelines.language_model import named_model
from recsys.retrieval.rag.ask import Asker
from recsys.retrieval.recommender import Recommender

pytest.importorskip("duckdb", reason="needs the extra rag")


def test_every_step_is_measured(shop: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    asked = Asker.ask

    def noted(self: Asker, *args: Any, **settings: Any) -> Any:
        answers.append(asked(self, *args, **settings))
        return answers[-1]

    monkeypatch.setattr(Asker, "ask", noted)
    took = steps(shop, questions=3)
    assert [answer.kind for answer in answers] == ["items"] * 4 + ["facts"] * 3
    values = asked_values(shop.bundle.items, 3, 0)
    for value, wish, count in zip(values, answers[1:4], answers[4:], strict=True):
        assert any(value in each.values for each in wish.filters)
        assert count.table.result.rows[0][0] >= ask_cost._LEAST_ITEMS
    parts = took["filters of a question, ms"] + took["recommend with the items that pass, ms"]
    assert 0 < parts <= 1.5 * took["a whole question, recommended, ms"]
    assert took["a whole question, a count from the tables, ms"] > 0
    assert took["counts that rules could answer"] == 1


def test_what_a_model_reads_is_counted(shop: Recommender, small_lm_folder: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra llm")
    found = model_steps(shop, named_model(str(small_lm_folder)), questions=1)
    for kind in ("a recommendation", "a count"):
        assert found[f"{kind}: prompt tokens"] > found[f"{kind}: reused tokens"] >= 0
        assert found[f"{kind}: calls"] >= 1 and found[f"{kind}: generated tokens"] > 0
        assert 0 <= found[f"{kind}: with a part of the model's"] <= 1


def test_a_bundle_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", "somewhere"]) == 2
    assert "NAME=BUNDLE" in capsys.readouterr().err
    assert main(["--bundle", "toys=somewhere", "--lm-dtype", "bfloat16"]) == 2
    assert "--lm-dtype is of a language model" in capsys.readouterr().err


def test_items_without_groups_are_refused(shop_items: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="nothing to ask for"):
        asked_values(shop_items.select("item_id"), 3, 0)
