"""Items that come, change and go under way answer as a bundle that was made with them."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from recsys.errors import InputError
from recsys.events import Event
from recsys.retrieval.catalogue_change import CatalogueChange, given_rows
from recsys.retrieval.catalogue_content import CatalogueContent
from recsys.retrieval.live_catalogue import LiveCatalogue
from recsys.retrieval.page import Page
from recsys.retrieval.recommender import Recommender
from recsys.vocabulary import IdMap

AT = 1_702_000_000
NEW = pl.DataFrame(
    {
        "item_id": ["n0", "n1", "n2", "i500"],
        "title": ["red train", None, "title 3", None],
        "text": ["red wood train of steel", "a blue ship", None, None],
        "colour": ["red", "pink", None, None],
        "vec": [[0.1, -0.5, 1.0, 0.3], None, [1.0, 1.0, -1.0, 0.0], None],
    }
)
"""Among them an item that nothing is known of."""


@pytest.fixture(scope="module")
def loaded(full_world: Any) -> Callable[[], Recommender]:
    return lambda: Recommender.load(full_world.bundle)


def ask(rec: Recommender, exclude: Any = ()) -> dict[str, Page]:
    """Every retriever, alone, for known users, a new one, and histories with new items."""
    events = [
        Event(item_id="n0", actions="click", timestamp=AT - 900),
        Event(item_id="i3", actions="like", timestamp=AT - 500),
        Event(item_id="n2", actions="click", timestamp=AT - 300),
        Event(item_id="nobody", actions="click", timestamp=AT - 200),
    ]
    who: list[dict[str, Any]] = [{"user_id": name} for name in ("u1", "u8", "u20", "u33")]
    who += [{"history": events}, {}, {"user_id": "u5", "new_events": events[:1], "allow": ["n0", "i4", "n1", "i7"]}]
    pages = {}
    for name in rec.retrievers:
        common = {"retrievers": (name,), "k": 12, "at": AT, "surface": "mail", "exclude": list(exclude)}
        for row, page in enumerate(rec.recommend_batch([{**common, **one} for one in who])):
            pages[f"{name} {row}"] = page
    ranked = rec.recommend("u8", k=6, at=AT, rank_by="like", candidates=15, exclude=list(exclude))
    pages["rank_by"] = ranked
    return pages


def assert_same(ours: dict[str, Page], theirs: dict[str, Page], atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, page in ours.items():
        other = theirs[name]
        assert page.num_reachable == other.num_reachable, name
        assert len(page) == len(other), name
        scores, others = ([hit.score for hit in one] for one in (page, other))
        assert scores == pytest.approx(others, abs=atol, rel=1e-5), name
        tied = any(abs(a - b) < 1e-4 for a, b in zip(others, others[1:], strict=False))
        assert tied or page.item_ids == other.item_ids, name
        found = {hit.item_id: hit for hit in other}
        for hit in page:
            if hit.item_id in found:
                expected = found[hit.item_id]
                assert list(hit.actions.values()) == pytest.approx(list(expected.actions.values()), abs=atol), name
                assert hit.retriever == expected.retriever


# -- equality ------------------------------------------------------------------------------------------------------


def test_new_items_answer_as_in_a_bundle_made_with_them(
    loaded: Callable[[], Recommender], grown_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    rec, anew = loaded(), Recommender.load(grown_bundle(tmp_path / "anew", NEW))
    assert len(rec.retrievers) == 7
    rec.update_items(NEW[:2])
    rec.update_items(NEW[2:])
    ours = ask(rec)
    assert_same(ours, ask(anew))
    found = {item for page in ours.values() for item in page.item_ids}
    assert {"n0", "n1", "n2", "i500"} <= found
    assert {item for name, page in ours.items() if name.startswith("generative") for item in page.item_ids} & {
        "n0",
        "n1",
        "n2",
        "i500",
    }
    for name in ("n0", "i3", "i500", "i31"):
        one, other = rec.similar_items(name, 8), anew.similar_items(name, 8)
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-5)
    assert rec.bundle.trie is not None and anew.bundle.trie is not None
    assert torch.equal(rec.bundle.trie.codes(), anew.bundle.trie.codes())
    assert torch.allclose(rec.bundle.vectors, anew.bundle.vectors, atol=1e-5)
    assert rec.items.equals(anew.items)
    assert rec.items.height == 36 and rec.bundle.vocabulary.items.index(["n2"]).tolist() == [34]


def test_changed_items_answer_as_in_a_bundle_made_with_them(
    loaded: Callable[[], Recommender], grown_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    rec = loaded()
    changed = pl.DataFrame(
        {
            "item_id": ["i3", "i12", "i31"],
            "text": ["steel ship steel car", "small", "large red wood"],
            "vec": [[3.0, 1.0, 0.0, -1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.5, 0.2, 0.1]],
        }
    )
    anew = Recommender.load(grown_bundle(tmp_path / "anew", NEW, changed))
    before = rec.recommend("u8", at=AT)
    rec.update_items(NEW)
    rec.update_items(changed.to_dicts())
    assert_same(ask(rec), ask(anew))
    assert rec.items.equals(anew.items)
    assert before.item_ids != rec.recommend("u8", at=AT).item_ids


def test_withdrawn_items_are_as_excluded_by_every_request(loaded: Callable[[], Recommender]) -> None:
    rec, plain = loaded(), loaded()
    for one in (rec, plain):
        one.update_items(NEW)
    gone = ["i4", "n0", "i7", "i500", "i8", "i30", *rec.recommend("u8", k=3, at=AT).item_ids]
    rec.update_items(withdraw=gone)
    ours = ask(rec)
    for name, page in ours.items():
        assert not set(page.item_ids) & set(gone), name
    theirs = ask(plain, exclude=gone)
    assert_same(ours, theirs)
    assert len(ours["dense 0"]) == len(ours["generative 0"]) == len(ours["set 0"]) == 12  # none is missing at the end
    assert sorted(rec.withdrawn) == sorted(gone)
    near = rec.similar_items("i4", 40)
    assert len(near) == near.num_reachable == 36 - len(gone) and not set(near.item_ids) & set(gone)
    rec.update_items(restore=gone)
    assert rec.withdrawn == []
    assert_same(ask(rec), ask(plain))


def test_merging_with_an_approximate_index_knows_the_changes_too(full_world: Any, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra `faiss` is not installed")
    full_world.extra["index"] = "flat"  # neighbours are then merged with hits instead of scored with everything
    try:
        full_world.export(full_world.dataset, full_world.model, tmp_path / "flat")
    finally:
        del full_world.extra["index"]
    recs = [Recommender.load(path) for path in (tmp_path / "flat", full_world.bundle)]
    for rec in recs:
        rec.update_items(NEW)
        rec.update_items([{"item_id": "i3", "text": "steel ship"}], withdraw=["i4", "n0", "i7"])
    assert recs[0].bundle.index.kind == "flat"
    assert_same(ask(recs[0]), ask(recs[1]))


def test_a_withdrawn_item_still_counts_as_an_event(loaded: Callable[[], Recommender]) -> None:
    rec = loaded()
    history = [Event(item_id="i3", actions="click", timestamp=AT - 50)]
    before = rec.recommend(history=history, k=30, at=AT)
    rec.update_items(withdraw=["i3"])
    after = rec.recommend(history=history, k=30, at=AT)
    assert [hit.score for hit in after] == pytest.approx([hit.score for hit in before], abs=1e-6)
    assert after.item_ids == before.item_ids and not after.notes[:-1]


def test_an_update_can_be_saved_and_loaded(loaded: Callable[[], Recommender], tmp_path: Path) -> None:
    rec = loaded()
    rec.update_items(NEW[:3])
    rec.update_items([{"item_id": "i3", "text": "steel ship steel car"}], withdraw=["i5", "i9"])
    rec.save(tmp_path / "saved")
    again = Recommender.load(tmp_path / "saved")
    assert_same(ask(again), ask(rec))
    assert again.withdrawn == rec.withdrawn == ["i5", "i9"] or set(again.withdrawn) == {"i5", "i9"}
    assert again.items.equals(rec.items)
    for one in (rec, again):  # and it goes on from there
        one.update_items(NEW[3:], restore=["i5"])
    assert_same(ask(again), ask(rec))
    with pytest.raises(InputError, match="is the bundle that is served"):
        rec.save(rec.bundle.path)


def test_pandas_polars_and_mappings_say_the_same(loaded: Callable[[], Recommender]) -> None:
    recs = [loaded() for _ in range(3)]
    rows = NEW.to_dicts()
    recs[0].update_items(NEW)
    recs[1].update_items(rows)
    recs[2].update_items(pd.DataFrame({**{name: NEW[name].to_list() for name in NEW.columns}}))
    for rec in recs[1:]:
        assert rec.items.equals(recs[0].items)
        assert torch.equal(rec.bundle.vectors, recs[0].bundle.vectors)


# -- what a snapshot says of itself --------------------------------------------------------------------------------


def test_versions_and_state_hashes(loaded: Callable[[], Recommender]) -> None:
    rec = loaded()
    hashes, versions = [rec._snapshot.state_hash], [rec.recommend(at=AT).version]
    assert versions[0].endswith(".0") and versions[0].startswith(rec.bundle.manifest["checksum"][:16])
    for change in (
        {"items": NEW},
        {"withdraw": ["i3"]},
        {"items": [{"item_id": "i4", "price": 7.0}]},  # a column that nothing reads
        {"items": [{"item_id": "i4", "colour": "blue" if rec.items["colour"][4] != "blue" else "red"}]},
    ):
        rec.update_items(**change)
        hashes.append(rec._snapshot.state_hash)
        versions.append(rec.similar_items("i3", 2).version)
    assert hashes[0] == rec.bundle.model_hash
    assert hashes[0] == hashes[1] == hashes[2] == hashes[3] != hashes[4]
    assert len(set(versions)) == 5
    same = rec._snapshot
    rec.update_items([{"item_id": "i4", "price": 7.0}], withdraw=["i3"])  # nothing that is not so already
    assert rec._snapshot is same
    assert rec.recommend_frame(["u1"], k=2)["item_id"].len() == 2


def test_states_of_items_that_did_not_change_are_equal(loaded: Callable[[], Recommender]) -> None:
    rec = loaded()
    history = rec.bundle.histories.events.history(3)  # type: ignore[union-attr]
    before = rec.bundle.model.encode([history])
    rec.update_items(NEW, withdraw=["i3"])
    after = rec.bundle.model.encode([history])
    assert torch.equal(before.last_BD, after.last_BD)
    for one, other in zip(before.cache, after.cache, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_nothing_is_copied_that_stays(loaded: Callable[[], Recommender]) -> None:
    rec = loaded()
    before = rec.bundle
    rec.update_items(NEW)
    after = rec.bundle
    assert after.graph_now.neighbours is before.graph_now.neighbours
    assert after.model.encoder is before.model.encoder
    assert after.model.items.base is before.model.items
    rec.update_items(withdraw=["n0"])
    assert rec.bundle.vectors is after.vectors and rec.bundle.model is after.model


def test_a_change_is_one_assignment_of_parts_that_belong_together(loaded: Callable[[], Recommender]) -> None:
    rec, seen = loaded(), list[Any]()

    class Watched(LiveCatalogue):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_state":
                seen.append(value)
            super().__setattr__(name, value)

    rec._live.__class__ = Watched
    rec.update_items(NEW, withdraw=["i3"])
    rec.update_items(withdraw=["n0"])
    rec.swap(rec.bundle.path)
    assert len(seen) == 3
    for state in seen:
        snapshot, bundle = state.snapshot, state.snapshot.bundle
        counts = [len(bundle.items), len(bundle.vocabulary.items), len(bundle.vectors), bundle.index.num_items]
        counts += [bundle.graph_now.num_items, bundle.graph_train.num_items, bundle.trie.num_items]
        counts += [
            bundle.model.config.num_items,
            len(snapshot.length_I),
            len(snapshot.retrievers["set"].catalogue.code_IJ),
        ]
        assert counts == [36] * len(counts)
        assert snapshot.retrievers["dense"].index is bundle.index
        assert snapshot.retrievers["memory"].graph is bundle.graph_now
        assert snapshot.retrievers["generative"].trie is bundle.trie
        for gone_I in (bundle.index.gone_I, bundle.graph_now.gone_I, snapshot.retrievers["set"].catalogue.gone_I):
            assert gone_I.nonzero().flatten().tolist() == bundle.withdrawn_G.tolist()
        assert bundle.trie.num_left == 36 - len(bundle.withdrawn_G)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": NEW.with_columns(pl.lit(1).alias("size"))}, r"has no column 'size'; its columns are item_id, title"),
        ({"items": pl.concat([NEW, NEW[:1]])}, r"the id 'n0' stands in two rows"),
        ({"items": NEW.drop("vec")}, r"new item 'n0' has no column vec, a vector"),
        ({"items": NEW.drop("item_id")}, r"the column item_id is missing"),
        ({"items": [{"item_id": None, "vec": None}]}, r"row 1 has no item_id"),
        ({"items": [{"item_id": "n0", "vec": [1.0, 2.0]}]}, r"column vec: id 'n0': a vector must hold 4 finite"),
        ({"items": [{"item_id": "n0", "vec": [1.0, float("nan"), 0.0, 1.0]}]}, r"a vector must hold 4 finite"),
        ({"items": [{"item_id": "i3", "price": "cheap"}]}, r"column price: its values are no Float64"),
        ({"items": [{"item_id": "n0", "vec": None, "codes": [1]}]}, r"column codes: item 'n0' needs 3 integers"),
        ({"items": [{"item_id": "n0", "vec": None, "codes": [1, 2, 99]}]}, r"level 3 must be from 0 to"),
        ({"items": 7}, r"items is a int; give a polars or pandas frame"),
        ({"withdraw": ["i3", "strange"]}, r"withdraw: item 'strange' is not in the catalogue"),
        ({"withdraw": [10**5000]}, "withdraw: item an integer of 16610 bits is not in the catalogue"),
        ({"withdraw": [["i3"]]}, r"withdraw: item \['i3'\] is not in the catalogue"),
        ({"withdraw": 5}, "withdraw must be a collection of item ids, got the single value 5"),
        ({"restore": None}, "restore must be a collection of item ids, got the single value None"),
        ({"items": {1: 2}}, "items: a column is called 1; names of columns are text"),
        ({"items": [{"item_id": "\ud800", "vec": None}]}, "column item_id: its values are not of one type"),
        ({"items": [{"item_id": True, "vec": None}]}, "items: item_id True is no id; give integers or text"),
        ({"items": [{"item_id": 7.5, "vec": None}]}, "items: item_id 7.5 is no id"),
        ({"withdraw": "i3"}, r"withdraw must be a collection of item ids"),
        ({"restore": ["strange"]}, r"restore: item 'strange'"),
        ({"items": NEW, "withdraw": ["n0"]}, r"what is new cannot be withdrawn in the same call"),
        ({"withdraw": ["i3"], "restore": ["i3"]}, r"'i3' stands in withdraw and in restore"),
    ],
)
def test_bad_changes_are_one_line_and_change_nothing(
    change: dict[str, Any], message: str, loaded: Callable[[], Recommender]
) -> None:
    rec = loaded()
    rec.update_items(withdraw=["i2"])
    before = rec._snapshot
    with pytest.raises(InputError, match=message) as error:
        rec.update_items(**change)
    assert "\n" not in str(error.value)
    assert rec._snapshot is before


def test_no_number_is_cut_to_fit_its_column(loaded: Callable[[], Recommender]) -> None:
    bundle = loaded().bundle
    frame = pl.DataFrame({"item_id": [7, 8], "stock": [1, None], "sold": [True, None], "price": [0.5, None]})
    counted = replace(bundle, items=frame, vocabulary=replace(bundle.vocabulary, items=IdMap(frame["item_id"])))

    def changed(**row: Any) -> dict[str, Any]:
        found: dict[str, Any] = CatalogueChange.of(counted, given_rows([row])).changed.to_dicts()[0]
        return found

    assert changed(item_id=7.0, stock=3.0, price=2) == {"item_id": 7, "stock": 3, "sold": True, "price": 2.0}
    assert changed(item_id="8", sold=False)["sold"] is False
    for name, value in (("stock", 7.5), ("stock", float("inf")), ("sold", 0.5)):
        with pytest.raises(InputError, match=f"column {name}: its values are no (Int64|Boolean)"):
            changed(item_id=7, **{name: value})


def test_codes_may_be_given(loaded: Callable[[], Recommender]) -> None:
    rec = loaded()
    rec.update_items([{"item_id": "n0", "vec": None, "codes": [1, 2, 3], "text": "red"}])
    assert rec.bundle.trie is not None and rec.bundle.trie.codes()[-1].tolist() == [1, 2, 3]


def test_items_beside_those_with_stated_codes_are_coded_by_their_own_vectors(
    loaded: Callable[[], Recommender], monkeypatch: pytest.MonkeyPatch
) -> None:
    rec, seen, plain = loaded(), {}, CatalogueContent.codes

    def codes(self: CatalogueContent, kind: str, rows: Any, vectors_JD: torch.Tensor) -> Any:
        seen[kind] = rows.content_IC, vectors_JD
        return plain(self, kind, rows, vectors_JD)

    monkeypatch.setattr(CatalogueContent, "codes", codes)
    rec.update_items(NEW.with_columns(codes=pl.Series([[1, 2, 3], None, [0, 0, 0], None])))
    number_J = torch.from_numpy(rec.bundle.vocabulary.items.index(NEW["item_id"]))
    vectors_JD = rec.bundle.vectors[number_J]
    assert len(vectors_JD.unique(dim=0)) == 4
    assert torch.equal(seen["codes"][1], vectors_JD[[1, 3]])
    assert torch.equal(seen["parallel_codes"][1], vectors_JD)
    assert np.array_equal(seen["codes"][0], seen["parallel_codes"][0][[1, 3]])
    assert rec.bundle.model.codes.of("codes")[number_J[[0, 2]]].tolist() == [[1, 2, 3], [0, 0, 0]]


def test_given_codes_stay_with_the_codebooks_that_they_were_given_for(serving_worlds: Any, other_weights: Path) -> None:
    row = {"item_id": "n0", "vec": None, "text": "red"}

    def code_of(rec: Recommender) -> list[int]:
        code: list[int] = rec.bundle.model.codes.of("codes")[rec.bundle.vocabulary.items.index(["n0"])[0]].tolist()
        return code

    first, second = (world.bundle for world in serving_worlds)
    made = Recommender.load(second)
    made.update_items([row])
    given = [code + 1 for code in code_of(made)[:-1]] + [0]
    rec = Recommender.load(first)
    rec.update_items([{**row, "codes": given}])
    for bundle, expected in ((other_weights, given), (second, code_of(made)), (first, given)):
        rec.swap(bundle)
        assert code_of(rec) == expected, bundle


@pytest.mark.parametrize("code", [2**32 + 1, 2**63])
@pytest.mark.parametrize("kind", ["codes", "parallel_codes", "set_codes"])
def test_given_codes_that_32_bits_would_wrap_into_range_are_refused(
    kind: str, code: int, loaded: Callable[[], Recommender]
) -> None:
    rec = loaded()
    before, sizes = rec._snapshot, rec.bundle.model.codes.sizes[kind]
    codes = pl.Series([[code, *[0] * (len(sizes) - 1)]], dtype=pl.List(pl.Int64 if code < 2**63 else pl.UInt64))
    row = pl.DataFrame({"item_id": ["n0"], "vec": [None], kind: codes})
    wanted = rf"column {kind}: codes of level 1 must be from 0 to {sizes[0] - 1}, item 'n0' has {code}"
    with pytest.raises(InputError, match=wanted):
        rec.update_items(row)
    assert rec._snapshot is before


# -- bundles that take over ----------------------------------------------------------------------------------------


def test_swapping_keeps_or_drops_updates_and_goes_back(
    full_world: Any, grown_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    other = grown_bundle(tmp_path / "other", NEW[:2])
    rec = Recommender.load(full_world.bundle)
    first = ask(rec)
    rec.update_items(NEW[1:], withdraw=["i4"])
    rec.update_items([{"item_id": "i5", "text": "steel"}])
    rec.swap(other)
    assert rec.withdrawn == ["i4"]
    assert set(NEW["item_id"]) <= set(rec.items["item_id"]) and rec.items.height == 36
    assert rec.items.filter(item_id="i5")["text"].to_list() == ["steel"]
    plain = Recommender.load(other)
    plain.update_items(NEW[2:])
    plain.update_items([{"item_id": "i5", "text": "steel"}], withdraw=["i4"])
    assert_same(ask(rec), ask(plain))
    rec.swap(full_world.bundle, keep_updates=False)
    assert rec.withdrawn == []
    assert_same(ask(rec), first)
    rec.swap(other)
    assert rec.withdrawn == []  # dropped is dropped
    rec.update_items(withdraw=["n0"])
    rec.swap(full_world.bundle)  # which does not know it
    assert rec.withdrawn == []
    rec.swap(other)
    assert rec.withdrawn == ["n0"]


def test_a_new_item_that_was_withdrawn_stays_so_in_the_next_bundle(full_world: Any) -> None:
    rec = Recommender.load(full_world.bundle)
    rec.update_items(NEW)
    rec.update_items(withdraw=["n0", "i4"])
    for _ in range(2):
        rec.swap(full_world.bundle)
        assert set(rec.withdrawn) == {"n0", "i4"} and rec.items.height == 36
        assert not {"n0", "i4"} & set(rec.recommend(k=36, at=AT).item_ids)
    rec.update_items(restore=["n0"])
    rec.swap(full_world.bundle)
    assert rec.withdrawn == ["i4"]


def test_a_changed_item_does_not_come_back_in_a_bundle_that_leaves_it_out(
    full_world: Any, grown_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Other values of a known item are no new item: they wait for a bundle that knows it."""
    other = grown_bundle(tmp_path / "other", NEW[:2])
    rec = Recommender.load(other)
    rec.update_items([{"item_id": "n0", "title": "second edition", "vec": None}])
    rec.update_items(NEW[2:3])
    rec.swap(full_world.bundle)
    assert "n0" not in rec.items["item_id"] and "n2" in rec.items["item_id"]
    rec.swap(other)
    assert rec.items.filter(item_id="n0")["title"].to_list() == ["second edition"]


def test_values_keep_their_type_in_the_next_bundle(full_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole number after a broken one makes neither whole, however many changes there were."""
    given: dict[str, Any] = {"i1": 1.5, "i2": 2, "i3": "3.25", "i4": 7.75}
    for most in (64, 1):
        monkeypatch.setattr("recsys.retrieval.live_catalogue._FRAMES_AT_MOST", most)
        rec = Recommender.load(full_world.bundle)
        for name, price in given.items():
            rec.update_items([{"item_id": name, "price": price}])
        rec.swap(full_world.bundle)
        prices = dict(rec.items.select("item_id", "price").iter_rows())
        assert {name: prices[name] for name in given} == {"i1": 1.5, "i2": 2.0, "i3": 3.25, "i4": 7.75}


def test_user_states_do_not_outlive_numbers_that_were_given_out(full_world: Any) -> None:
    rec = Recommender.load(full_world.bundle)
    before = rec._snapshot.state_hash
    rec.swap(full_world.bundle)
    assert rec._snapshot.state_hash == before
    rec.update_items(NEW[:1])
    rec.swap(full_world.bundle, keep_updates=False)
    rec.update_items(NEW[1:2])  # has the number that the other had
    assert rec._snapshot.state_hash != before


def test_a_bundle_that_cannot_answer_does_not_take_over(full_world: Any, tmp_path: Path) -> None:
    rec = Recommender.load(full_world.bundle)
    before = rec._snapshot
    broken = Path(shutil.copytree(full_world.bundle, tmp_path / "broken"))
    (broken / "items.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match="items.parquet is not the file"):
        rec.swap(broken)
    with pytest.raises(InputError, match="is no folder"):
        rec.swap(tmp_path / "nowhere")
    assert rec._snapshot is before
    bad = Recommender.load(full_world.bundle).bundle
    with torch.no_grad():
        bad.vectors.fill_(float("nan"))
    with pytest.raises(InputError, match=r"nothing was swapped"):
        rec.swap(bad)
    assert rec._snapshot is before


def test_the_old_snapshot_goes_with_its_last_request(full_world: Any) -> None:
    rec = Recommender.load(full_world.bundle)
    held = rec._snapshot
    gone, alive = weakref.ref(held), weakref.ref(held.bundle.model)
    rec.swap(full_world.bundle)
    gc.collect()
    assert gone() is held and alive() is not None  # a request under way has it
    del held
    gc.collect()
    assert gone() is None and alive() is None


def test_a_bundle_that_was_replaced_on_disk_takes_no_new_items(full_world: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(full_world.bundle, tmp_path / "copy"))
    rec = Recommender.load(copy)
    shutil.rmtree(copy)
    rec.update_items(withdraw=["i3"])  # needs nothing of it
    with pytest.raises(InputError, match="is no folder"):
        rec.update_items(NEW)
    assert rec.withdrawn == ["i3"] and np.isfinite(rec.recommend("u1", at=AT)[0].score)
