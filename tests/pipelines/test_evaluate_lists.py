"""Measuring lists that anybody made."""

from __future__ import annotations

from math import log2

import numpy as np
import polars as pl
import pytest

from recsys.errors import InputError
from recsys.pipelines.cli import main
from recsys.pipelines.evaluate import evaluate_lists


@pytest.fixture
def questions(toy_dataset):
    """(user id, target id or None where it cannot be reached, a seen id, unseen other ids) of every test user."""
    requests, names = toy_dataset.requests("test"), toy_dataset.item_ids
    rows = []
    for q in range(len(requests)):
        user, target = int(requests.user[q]), int(requests.target[q])
        seen = toy_dataset.events.history(user, int(requests.end[q])).item
        others = np.setdiff1d(np.arange(toy_dataset.num_items), [*seen, target])
        reached = names[target] if target not in seen else None
        rows.append((toy_dataset.user_ids[user], reached, names[int(seen[0])], [names[int(i)] for i in others]))
    return rows


def write(path, rows):
    pl.DataFrame(rows, schema={"user_id": pl.String, "item_ids": pl.List(pl.String)}, orient="row").write_parquet(path)
    return path


def test_figures_of_lists_by_hand(questions, toy_dataset, tmp_path):
    rows, gains = [], []
    for number, (user, target, seen, others) in enumerate(questions):
        if number % 4 == 0:
            continue_without = number == 0
            gains.append(0.0)
            if continue_without:
                continue  # no list at all
        place = 1 + number % 3
        head = others[: place - 1] if target else others
        listed = [seen, *head, *([target] if target and number % 4 else []), *others[place - 1 :]][:12]
        rows.append((user, listed))
        if number % 4:
            at = len([i for i in head if i in listed]) + 1
            gains.append(1 / log2(at + 1) if target else 0.0)
    result = evaluate_lists(write(tmp_path / "lists.parquet", rows), toy_dataset)
    row = result["retrieval"]["lists"]
    assert row["ndcg@10"] == pytest.approx(np.mean(gains)) and np.mean(gains) > 0
    assert result["protocol"]["candidates"] == "lists"
    assert result["protocol"]["num_unreachable"] == sum(target is None for _, target, _, _ in questions)
    assert "recall@10" in row and "recall@100" not in row  # the longest list has 12 places
    notes = " ".join(result["notes"])
    assert f"1 of {len(questions)} users have no list" in notes
    assert f"{len(rows)} places with items of the user's history" in notes


def test_repeats_and_seen_items_give_no_place_and_strange_ones_keep_theirs(questions, toy_dataset, tmp_path):
    rows = [
        (user, [seen, others[0], others[0], "no such item", target or others[1]])
        for user, target, seen, others in questions
        if others[1:]
    ]
    result = evaluate_lists(write(tmp_path / "lists.parquet", rows), toy_dataset)
    reached = sum(target is not None for _, target, _, others in questions if others[1:])
    expected = reached * (1 / 3) / len(questions)  # behind one other and one strange item
    assert result["retrieval"]["lists"]["mrr"] == pytest.approx(expected)
    assert "recall@5" in result["retrieval"]["lists"] and "recall@10" not in result["retrieval"]["lists"]
    assert any("outside the catalogue" in note for note in result["notes"])


def test_a_folder_of_parts_and_the_json(questions, toy_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = [(user, [*([target] if target else []), *others]) for user, target, _, others in questions]
    write(folder / "part-0.parquet", rows[:7])
    write(folder / "part-1.parquet", [*rows[7:], ("nobody", [])])
    words = ["--lists", str(folder), "--data", str(toy_dataset.path), "--json", str(tmp_path / "e.json")]
    assert main(["evaluate", *words, "--baselines", "popularity"]) == 0
    result = evaluate_lists(folder, toy_dataset, baselines="popularity")
    share = np.mean([target is not None for _, target, _, _ in questions])
    assert result["retrieval"]["lists"]["recall@5"] == result["retrieval"]["lists"]["mrr"] == pytest.approx(share)
    assert result["baselines"]["popularity"]["ndcg@10_minus"] == pytest.approx(
        share - result["baselines"]["popularity"]["ndcg@10"]
    )
    assert "1 lists are of users without a test target" in " ".join(result["notes"])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"user_id": ["u1"], "items": [["i1"]]}), "has no column item_ids; it has user_id, items"),
        (pl.DataFrame({"user_id": ["u1"], "item_ids": ["i1"]}), "must hold lists"),
        (pl.DataFrame({"user_id": ["u1"], "item_ids": [[["i1"]]]}), "must hold lists of ids"),
        (pl.DataFrame({"user_id": ["u1", "u1"], "item_ids": [["i1"], ["i2"]]}), "row 1 is a second list of user 'u1'"),
        (pl.DataFrame({"user_id": ["u1", None], "item_ids": [["i1"], ["i2"]]}), "row 1 has no user_id"),
        (pl.DataFrame({"user_id": ["u1", "u2"], "item_ids": [None, ["i2"]]}), "row 0 has no item_ids"),
        (pl.DataFrame({"user_id": ["x"], "item_ids": [["i1"]]}), "a list for none of the"),
    ],
)
def test_bad_lists_are_one_line(frame, message, toy_dataset, tmp_path):
    frame.write_parquet(tmp_path / "lists.parquet")
    with pytest.raises(InputError, match=message) as caught:
        evaluate_lists(tmp_path / "lists.parquet", toy_dataset)
    assert "lists.parquet" in str(caught.value)


def test_files_that_are_no_lists_are_one_line(toy_dataset, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        evaluate_lists(tmp_path / "none.parquet", toy_dataset)
    (tmp_path / "text.parquet").write_text("user_id,item_ids")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        evaluate_lists(tmp_path / "text.parquet", toy_dataset)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no .parquet file"):
        evaluate_lists(tmp_path / "empty", toy_dataset)
