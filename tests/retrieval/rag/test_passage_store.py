"""A store finds what it should, survives a round trip and refuses damaged files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.errors import InputError
from recsys.retrieval.rag.chunking import ChunkLimits
from recsys.retrieval.rag.passage import FoundPassage, Passage
from recsys.retrieval.rag.passage_store import PassageStore
from recsys.retrieval.rag.passages_of import document_passages, item_passages, read_documents

pytest.importorskip("bm25s", reason="needs the extra rag")

ITEMS = pl.DataFrame(
    {
        "item_id": [1, 2, 3, 4, 5],
        "title": ["Red train", "Blue ship", "Wooden puzzle", None, "Steel car"],
        "text": ["A red wooden train with a wagon", "A ship for the bath", "For children", None, "A small steel car"],
    }
)
DOCUMENTS = pl.DataFrame(
    {"id": ["care", "return"], "text": ["Wash a wooden puzzle in cold water.", "Return a car."], "item_id": [3, None]}
)


def texts(found: list[FoundPassage]) -> list[str]:
    return [hit.passage.text for hit in found]


@pytest.fixture(scope="module")
def store() -> PassageStore:
    return PassageStore.build([*item_passages(ITEMS), *document_passages(DOCUMENTS)])


@pytest.fixture(scope="module")
def full_store(small_encoder_folder: Path, small_sparse_folder: Path) -> PassageStore:
    made = [*item_passages(ITEMS), *document_passages(DOCUMENTS)]
    return PassageStore.build(made, encoder=small_encoder_folder, sparse_encoder=small_sparse_folder)


def test_words_find_items_and_documents(store: PassageStore) -> None:
    assert store.retrievers == ("bm25",) and len(store) == 6  # item 4 has no text
    assert store.search("red TRAINS", 1)[0].passage.item_id == 1
    (best, *_) = store.search("how do I wash a puzzle?")
    assert (best.passage.source, best.passage.item_id, best.ranks) == ("care", 3, {"bm25": 1})
    assert store.search("zebra") == [] and store.search("  ") == [] and store.search("the of") == []


def test_filters_hold(store: PassageStore) -> None:
    assert {hit.passage.item_id for hit in store.search("wooden car train puzzle", item_ids=[3, 5])} == {3, 5}
    assert store.search("wooden", item_ids=[]) == []
    assert store.search("wooden", item_ids=["3", None, [3]]) == []  # ids of another type are nobody's
    assert {hit.passage.source for hit in store.search("car puzzle", sources=["return"])} == {"return"}


def test_every_retriever_takes_part(full_store: PassageStore) -> None:
    assert full_store.retrievers == ("bm25", "dense", "sparse")
    (best, *_) = full_store.search("A red wooden train with a wagon")
    assert best.passage.item_id == 1 and set(best.ranks) == {"bm25", "dense", "sparse"}
    alone = full_store.search("red train", retrievers=["dense"])
    assert all(set(hit.ranks) == {"dense"} for hit in alone)
    assert [hit.scores["dense"] for hit in alone] == sorted((hit.scores["dense"] for hit in alone), reverse=True)
    assert texts(full_store.search("red train", retrievers=["sparse"], item_ids=[2])) == [
        "Blue ship\nA ship for the bath"
    ]
    with pytest.raises(InputError, match=r"no retriever 'bm26' in this store; it has bm25, dense, sparse"):
        full_store.search("a", retrievers=["bm26"])


def test_a_question_does_not_depend_on_its_batch(full_store: PassageStore) -> None:
    questions = ["red train", "a large blue ship for the bath", "", "zebra"]
    alone = [full_store.search(question) for question in questions]
    for one, other in zip(full_store.search_batch(questions), alone, strict=True):
        assert texts(one) == texts(other)
    assert alone[2] == []


def test_round_trip_finds_the_same(full_store: PassageStore, small_encoder_folder: Path, small_sparse_folder: Path,
                                   tmp_path: Path) -> None:  # fmt: skip
    full_store.save(tmp_path / "store")
    assert not [file for file in (tmp_path / "store").rglob("*") if file.suffix in (".pkl", ".pickle", ".bin")]
    back = PassageStore.load(tmp_path / "store", encoder=small_encoder_folder, sparse_encoder=small_sparse_folder)
    for question in ("red train", "wash the puzzle", "steel"):
        assert back.search(question) == full_store.search(question)
    assert back.passages == full_store.passages
    words_only = PassageStore.load(tmp_path / "store")
    assert words_only.retrievers == ("bm25",)
    assert np.array_equal(words_only.similarity(back.passages), full_store.similarity(back.passages))
    with pytest.raises(InputError, match="loaded without its encoder"):
        words_only.add([Passage.of("something new", "note")])


def test_it_says_what_is_left_out_for_want_of_a_model(
    full_store: PassageStore, store: PassageStore, small_sparse_folder: Path, tmp_path: Path
) -> None:
    full_store.save(tmp_path / "store")
    assert PassageStore.load(tmp_path / "store").without_model == ("dense", "sparse")
    assert PassageStore.load(tmp_path / "store", sparse_encoder=small_sparse_folder).without_model == ("dense",)
    assert full_store.without_model == store.without_model == ()


def test_encoding_that_tells_how_far_it_came_makes_the_same_vectors(
    small_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, steps = item_passages(ITEMS), list[int]()
    plain = PassageStore.build(made, encoder=small_encoder_folder)
    monkeypatch.setattr("recsys.retrieval.rag.passage_store._ENCODED_AT_ONCE", 3)
    told = PassageStore.build(made, encoder=small_encoder_folder, advance=steps.append)
    assert steps == [3, 1] and plain._stock.vectors_PK is not None and told._stock.vectors_PK is not None
    assert np.allclose(told._stock.vectors_PK, plain._stock.vectors_PK, atol=1e-6)
    assert PassageStore.build([], encoder=small_encoder_folder, advance=steps.append).search("x") == []


def test_arrays_are_mapped(store: PassageStore, tmp_path: Path) -> None:
    store.save(tmp_path / "store")
    back = PassageStore.load(tmp_path / "store")
    assert isinstance(back._stock.keywords._ranker.scores["data"], np.memmap)


def test_files_are_the_same_in_every_process(tmp_path: Path, root: Path) -> None:
    made = [Passage.of(f"word{i} other{i % 7} more", "x") for i in range(50)]
    PassageStore.build(made).save(tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from recsys.retrieval.rag.passage_store import PassageStore;"
        "from recsys.retrieval.rag.passage import Passage;"
        "PassageStore.build([Passage.of(f'word{i} other{i % 7} more', 'x') for i in range(50)]).save(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "there")], cwd=root, check=True, timeout=120)
    files = sorted(file.name for file in (tmp_path / "here").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "there").iterdir()) and len(files) >= 6
    for name in files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_add_and_remove(small_encoder_folder: Path, tmp_path: Path) -> None:
    store = PassageStore.build(item_passages(ITEMS), encoder=small_encoder_folder)
    whole = PassageStore.build([*item_passages(ITEMS), *document_passages(DOCUMENTS)], encoder=small_encoder_folder)
    assert store.add(document_passages(DOCUMENTS)) == 2 and store.add(document_passages(DOCUMENTS)) == 0
    assert texts(store.search("wash a puzzle")) == texts(whole.search("wash a puzzle"))
    assert store.remove(item_ids=[3, 99], sources=["nowhere"]) == 2 and store.remove(item_ids=[3]) == 0
    assert not {3} & {hit.passage.item_id for hit in store.search("wooden puzzle for children")}
    assert store.of_items([3]) == [] and len(store) == 4
    store.save(tmp_path / "store")
    back = PassageStore.load(tmp_path / "store", encoder=small_encoder_folder)
    assert back.search("wooden puzzle") == store.search("wooden puzzle") and len(back) == 4
    assert back.add(item_passages(ITEMS)) == 1  # what was removed is found again
    assert 3 in {hit.passage.item_id for hit in back.search("wooden puzzle for children")}


def test_an_empty_store_finds_nothing_and_grows(small_encoder_folder: Path, tmp_path: Path) -> None:
    store = PassageStore.build([], encoder=small_encoder_folder)
    assert store.search("anything") == [] and len(store) == 0
    store.save(tmp_path / "store")
    back = PassageStore.load(tmp_path / "store", encoder=small_encoder_folder)
    assert back.search("red") == [] and back.add([Passage.of("a red kite", "note")]) == 1
    assert texts(back.search("kite")) == ["a red kite"]


def test_faiss_index(small_encoder_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs the extra faiss")
    passages = item_passages(ITEMS)
    exact = PassageStore.build(passages, encoder=small_encoder_folder)
    store = PassageStore.build(passages, encoder=small_encoder_folder, index="flat")
    store.save(tmp_path / "store")
    back = PassageStore.load(tmp_path / "store", encoder=small_encoder_folder)
    for question in ("red train", "a ship"):
        assert texts(back.search(question)) == texts(exact.search(question))
    back.add([Passage.of("a blue kite for children", "note")])
    assert "a blue kite for children" in texts(back.search("kite", retrievers=["dense"]))


@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_damaged_files_are_named(store: PassageStore, tmp_path: Path, how: str) -> None:
    store.save(tmp_path / "store")
    for file in sorted((tmp_path / "store").iterdir()):
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path / "store", broken)
        path, content = broken / file.name, file.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            middle = len(content) // 2
            path.write_bytes(content[:middle] if how == "cut" else
                             content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])  # fmt: skip
        with pytest.raises(InputError) as caught:
            PassageStore.load(broken)
        assert "broken" in str(caught.value) and "\n" not in str(caught.value)
        shutil.rmtree(broken)


def test_numbers_that_lead_outside_are_refused_although_hashes_fit(store: PassageStore, tmp_path: Path) -> None:
    from recsys.index.parts import write_parts

    store.save(tmp_path / "store")
    array = {name: np.load(tmp_path / "store" / f"bm25_{name}.npy") for name in ("passages", "offsets")}
    bad = {
        "bm25_passages.npy": lambda path: _save(path, np.full_like(array["passages"], 77)),
        "bm25_offsets.npy": lambda path: _save(path, array["offsets"][::-1].copy()),
        "bm25_words.json": lambda path: path.write_text('{"train": 10000}'),
        "bm25_scores.npy": lambda path: _save(path, np.array([object()], dtype=object), allow_pickle=True),
    }  # fmt: skip
    for name, write in bad.items():
        folder = tmp_path / f"bad_{name}"
        shutil.copytree(tmp_path / "store", folder)
        header = json.loads((folder / "store.json").read_text())
        same = {
            part: (lambda path, part=part: shutil.copy(tmp_path / "store" / part, path)) for part in header["parts"]
        }
        rest = {key: value for key, value in header.items() if key not in ("parts", "checksum")}
        write_parts(folder, "store.json", rest, {**same, name: write})
        with pytest.raises(InputError, match="bad_"):
            PassageStore.load(folder)


def _save(path: Path, array: np.ndarray, allow_pickle: bool = False) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=allow_pickle)


def test_another_model_is_refused(
    store: PassageStore, full_store: PassageStore, small_encoder_folder: Path, small_sparse_folder: Path, tmp_path: Path
) -> None:
    store.save(tmp_path / "words")
    with pytest.raises(InputError, match="was built without one, not with the encoder small_encoder"):
        PassageStore.load(tmp_path / "words", encoder=small_encoder_folder)
    full_store.save(tmp_path / "full")
    other = shutil.copytree(small_encoder_folder, tmp_path / "other-encoder")
    (other / "README.md").write_text("a changed note does not matter")
    PassageStore.load(tmp_path / "full", encoder=other)
    (other / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(InputError, match="was built with small_encoder, not with the encoder other_encoder"):
        PassageStore.load(tmp_path / "full", encoder=other)
    with pytest.raises(InputError, match="not with the sparse encoder"):
        PassageStore.load(tmp_path / "words", sparse_encoder=small_sparse_folder)


def test_only_a_store_is_replaced(store: PassageStore, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no store\.json"):
        store.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    store.save(tmp_path / "store")
    store.save(tmp_path / "store")


def test_strange_text_and_ids() -> None:
    store = PassageStore.build([Passage.of("a\ud800 kite \x00", "note"), Passage.of("红色的火车", "note", 7)])
    assert texts(store.search("kite\udfff")) == ["a\ufffd kite \x00"] and texts(store.search("火车")) == ["红色的火车"]
    assert store.search("x" * 10**6 + " kite") == []  # what is far behind is not read
    with pytest.raises(InputError, match="'7' is a string"):
        store.add([Passage.of("other", "note", "7")])
    with pytest.raises(InputError, match="k must be a positive integer, got 0"):
        store.search("a", 0)
    with pytest.raises(InputError, match="must be integers or strings, got float"):
        PassageStore.build([Passage.of("other", "note", 7.5)])


def test_long_items_keep_their_title_and_lose_nothing() -> None:
    words = " ".join(f"word{number}" for number in range(300))
    items = pl.DataFrame({"item_id": ["a"], "title": ["Red train"], "text": [words], "brand": ["Acme"]})
    made = item_passages(items, columns=["brand"], limits=ChunkLimits(max_tokens=60, overlap_tokens=0))
    assert len(made) > 5 and all("Red train" in passage.text for passage in made)
    joined = " ".join(passage.text for passage in made)
    assert {f"word{number}" for number in range(300)} <= set(joined.split()) and "brand: Acme" in joined
    assert len({passage.id for passage in made}) == len(made)
    assert item_passages(items.with_columns(item_id=pl.lit("b")))[0].id != made[0].id
    with pytest.raises(InputError, match="no column 'colour'; it has item_id, title, text, brand"):
        item_passages(items, columns=["colour"])


def test_documents_from_files(tmp_path: Path) -> None:
    DOCUMENTS.write_parquet(tmp_path / "documents.parquet")
    DOCUMENTS.write_ndjson(tmp_path / "documents.jsonl")
    same = [read_documents(tmp_path / f"documents.{kind}") for kind in ("parquet", "jsonl")]
    assert document_passages(same[0]) == document_passages(same[1]) == document_passages(DOCUMENTS)
    lines = [{"id": n, "text": None} for n in range(120)] + [{"id": "late", "text": "a", "item_id": "i"}]
    (tmp_path / "late[1].jsonl").write_text("\n".join(map(json.dumps, lines)))  # brackets are no pattern of names
    (late,) = document_passages(read_documents(tmp_path / "late[1].jsonl"))
    assert (late.source, late.text, late.item_id) == ("late", "a", "i")
    DOCUMENTS.write_parquet(tmp_path / "documents[1].parquet")
    assert read_documents(tmp_path / "documents[1].parquet").equals(DOCUMENTS)
    (tmp_path / "broken.jsonl").write_text('{"id": "a", "text": ')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name in ("broken.jsonl", "broken.parquet"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_documents(tmp_path / name)
    with pytest.raises(InputError, match="neither .parquet nor .jsonl"):
        read_documents(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="gone.jsonl is missing"):
        read_documents(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="no column 'text'; they have id"):
        document_passages(DOCUMENTS.select("id"))
    with pytest.raises(InputError, match="id 'care' twice"):
        document_passages(pl.concat([DOCUMENTS, DOCUMENTS]))
    with pytest.raises(InputError, match="row 0 of the documents has no id"):
        document_passages(pl.DataFrame({"id": [None], "text": ["a"]}))
    for odd, message in (
        ({"id": [["a"]]}, r"'id' of the documents must hold texts or integers, and it holds List\(String\)"),
        ({"text": [b"\xff"]}, "'text' of the documents must hold texts, and it holds Binary"),
        ({"text": [["a"]]}, "'text' of the documents must hold texts"),
        ({"item_id": [7.5]}, "'item_id' of the documents must hold texts or integers, and it holds Float64"),
        ({"item_id": [True]}, "and it holds Boolean"),
    ):
        with pytest.raises(InputError, match=message):
            document_passages(pl.DataFrame({"id": ["a"], "text": ["a"], "item_id": ["i"]} | odd))


def test_columns_of_items_are_words() -> None:
    items = pl.DataFrame(
        {"item_id": [1, 2], "title": ["A", "B"], "tags": [["red", None, "wood"], []], "price": [2.5, None],
         "sizes": [[1, 2], None], "raw": [b"\xff", b"a"]}
    )  # fmt: skip
    made = item_passages(items, columns=["tags", "price", "sizes"])
    assert [one.text for one in made] == ["A\ntags: red, wood\nprice: 2.5\nsizes: 1, 2", "B"]
    with pytest.raises(InputError, match="'raw' of the items holds Binary, no words"):
        item_passages(items, columns=["raw"])


def test_models_that_are_none_are_refused(tmp_path: Path, small_encoder_folder: Path) -> None:
    for name in ("encoder", "sparse_encoder"):
        with pytest.raises(InputError, match="is no folder"):
            PassageStore.build([], **{name: tmp_path / "nowhere"})
    pickled = shutil.copytree(small_encoder_folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="weights as a pickle"):
        PassageStore.build([], encoder=pickled)
    foreign = shutil.copytree(small_encoder_folder, tmp_path / "foreign")
    (foreign / "modules.json").write_text('[{"type": "evil.Code", "path": ""}]')
    for name in ("encoder", "sparse_encoder"):
        with pytest.raises(InputError, match=r"asks for the class evil\.Code"):
            PassageStore.build([], **{name: foreign})
    with pytest.raises(InputError, match="no index kind 'tree'"):
        PassageStore.build([Passage.of("a", "b")], encoder=small_encoder_folder, index="tree")


def test_threads_search_while_another_adds(small_encoder_folder: Path) -> None:
    store = PassageStore.build(item_passages(ITEMS), encoder=small_encoder_folder)
    (wanted,) = store.of_items([1])
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(15):
                for name in store.retrievers:
                    assert store.search(wanted.text, 1, retrievers=[name])[0].passage == wanted
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5):
        store.add([Passage.of(f"kite number {number}", "note")])
    for thread in threads:
        thread.join()
    assert errors == [] and len(store) == 9
