"""``recsys passages``: what is saved, of which texts, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from recsys.pipelines.cli import main
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.recommender import Recommender

pytest.importorskip("bm25s", reason="needs the extra rag")


def test_items_and_documents_are_saved_together(toy_bundle: Path, tmp_path: Path) -> None:
    documents, output, figures = tmp_path / "d.jsonl", tmp_path / "store", tmp_path / "figures.json"
    rows = [{"id": "care", "text": "Wipe it.", "item_id": "i4"}, {"id": "old", "text": "Gone.", "item_id": "i999"},
            {"id": "house", "text": "Open from nine."}]  # fmt: skip
    documents.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["passages", "--bundle", str(toy_bundle), "--documents", str(documents), "--columns", "title"]
    assert main([*words, "--output", str(output), "--json", str(figures)]) == 0
    store = PassageStore.load(output)
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert (found["num_passages"], found["num_items"], found["num_documents"]) == (len(store), 30, 3)
    assert found["num_documents_of_unknown_items"] == 1 and found["retrievers"] == ["bm25"] and found["tokens"] > 100
    titles = dict(Recommender.load(toy_bundle).items.select("item_id", "title").iter_rows())
    item, *others = store.of_items(["i4"])
    assert f"title: {titles['i4']}" in item.text and [one.source for one in others] == ["care"]
    assert [one.item_id for one in store.passages if one.source == "house"] == [None]
    again = tmp_path / "again.jsonl"
    again.write_text(json.dumps(rows[2]) + "\n")
    assert main(["passages", "--documents", str(again), "--output", str(output)]) == 0, "an older store is replaced"
    assert [one.text for one in PassageStore.load(output).passages] == ["Open from nine."]


def test_ids_of_documents_become_those_of_the_catalogue(tmp_path: Path) -> None:
    from recsys.errors import InputError
    from recsys.pipelines.passages import _with_ids_like

    items = pl.DataFrame({"item_id": [7, 8]})
    frame = pl.DataFrame({"id": ["a", "b"], "item_id": ["7", None]})
    assert _with_ids_like(frame, items, tmp_path)["item_id"].to_list() == [7, None]
    texts = _with_ids_like(pl.DataFrame({"item_id": [7]}), pl.DataFrame({"item_id": ["7"]}), tmp_path)
    assert texts["item_id"].to_list() == ["7"]
    with pytest.raises(InputError, match="row 1 of .* has item_id 'x', and those of the bundle are integers"):
        _with_ids_like(pl.DataFrame({"item_id": ["7", "x"]}), items, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --bundle for the texts of its items, --documents for others, or both"),
        (["--documents", "d.csv", "--columns", "brand"], "--columns are of items"),
        (["--documents", "d.csv", "--index", "tree"], "--index: there is no index 'tree'; choose one of exact"),
        (["--documents", "d.csv", "--index", "hnsw"], "--index hnsw is of the vectors of --encoder"),
        (["--documents", "d.csv"], "d.csv is neither .parquet nor .jsonl"),
        (["--documents", "DOCUMENTS"], "there is no text to search in"),
        (["--bundle", "BUNDLE", "--columns", "brand"], "the item table has no column 'brand'"),
        (["--bundle", "BUNDLE", "--encoder", "nowhere"], "nowhere"),
    ],
)
def test_a_fault_of_the_user_is_one_line(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "blank.jsonl").write_text('{"id": "a", "text": " "}\n')
    places = {"BUNDLE": str(toy_bundle), "DOCUMENTS": str(tmp_path / "blank.jsonl")}
    output = tmp_path / "store"
    assert main(["passages", *(places.get(word, word) for word in words), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("recsys passages: ")
    assert not output.exists()


def test_somebody_else_s_folder_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    assert main(["passages", "--bundle", "nowhere", "--output", str(tmp_path)]) == 2
    assert "holds no store.json" in capsys.readouterr().err and (tmp_path / "precious.txt").exists()
