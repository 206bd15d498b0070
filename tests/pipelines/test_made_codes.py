"""Semantic IDs of a dataset: blocks from training events alone, three kinds, small catalogues, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.pipelines.code_blocks import code_blocks
from recsys.pipelines.code_settings import KINDS, CodeSettings
from recsys.pipelines.item_codes import read_codes
from recsys.pipelines.made_codes import MadeCodes, make_codes, tokenizer_tensors, write_tokenizers
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.sids_update import aligned_to, appended_to, settings_like
from recsys.pipelines.transition_vectors import transition_vectors
from recsys.tokenizers.item_tokenizer import load_item_tokenizer
from recsys.tokenizers.new_item_blocks import blocks_of_new_items


@pytest.fixture(scope="module")
def made(toy_dataset: Dataset) -> MadeCodes:
    codes = make_codes(toy_dataset, seed=0, balance="none")  # so that the catalogue's codes are those of encode()
    assert codes is not None
    return codes


def test_codes_are_balanced_unless_it_is_said_otherwise(toy_dataset: Dataset, made: MadeCodes) -> None:
    codes = make_codes(toy_dataset, seed=0)
    assert codes is not None
    assert codes.kinds["codes"].about["settings"]["balance"] == "sinkhorn"
    assert made.kinds["codes"].about["settings"]["balance"] == "none"
    assert codes.kinds["parallel_codes"].ids.content_hash == made.kinds["parallel_codes"].ids.content_hash
    assert sum(codes.kinds["codes"].health.entropy_bits) >= sum(made.kinds["codes"].health.entropy_bits)


def catalogue(num_items: int, folder: Path, *, text: bool = True, events: bool = True) -> Dataset:
    """A dataset of some items, taken in turn by a few users."""
    rng = np.random.default_rng(num_items)
    rows = [
        (f"u{user}", f"i{int(rng.integers(num_items)) if events else user % num_items}", step, "click")
        for user in range(max(6, num_items))
        for step in range(6 if events else 1)
    ]
    items = {"item_id": [f"i{item}" for item in range(num_items)]}
    if text:
        items["title"] = [f"word{item % 7} word{item % 5} only{item}x" for item in range(num_items)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "action"], orient="row")
    return prepare_frames(interactions, pl.DataFrame(items), output=folder)


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_events_of_validation_and_test_enter_no_block(toy_frames: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    frames = toy_frames["interactions"].with_row_index()
    before = prepare_frames(toy_frames["interactions"], toy_frames["items"], output=tmp_path / "before")
    # Every held-out event now goes to an item that exists all the same: content stays, what may train stays.
    length_U = np.diff(before.events.offsets)
    held_N = np.concatenate([np.arange(length) >= end for length, end in zip(length_U, before.train_end, strict=True)])
    assert held_N.sum() >= 2 * 30
    users = before.user_ids.to_list()
    order = frames.with_columns(place=pl.col("user_id").replace_strict({u: i for i, u in enumerate(users)}))
    order = order.sort("place", "timestamp", "index")
    changed = order.with_columns(item_id=pl.when(pl.Series(held_N)).then(pl.lit("i7")).otherwise("item_id"))
    after = prepare_frames(changed.sort("index").drop("index", "place"), toy_frames["items"], output=tmp_path / "after")
    assert np.array_equal(after.train_end, before.train_end)
    assert (after.events.item != before.events.item).sum() >= 2 * 30
    row_I = after.item_index(before.item_ids)
    first, second = transition_vectors(before), transition_vectors(after)
    assert first is not None and second is not None
    assert np.allclose(first @ first.T, (second @ second.T)[np.ix_(row_I, row_I)], atol=1e-4)


def test_an_item_without_training_events_misses_its_transitions(toy_dataset: Dataset) -> None:
    blocks = code_blocks(toy_dataset)
    assert list(blocks.vectors) == ["content", "transition"]
    never = toy_dataset.train_item_counts() == 0
    missing = np.linalg.norm(blocks.vectors["transition"], axis=1) == 0
    assert missing[never].all() and blocks.about["transition"]["num_missing"] == missing.sum()
    assert toy_dataset.content is not None
    assert np.array_equal(blocks.vectors["content"], toy_dataset.content)


def test_blocks_by_name(toy_dataset: Dataset) -> None:
    assert list(code_blocks(toy_dataset, ["text"]).vectors) == ["text"]
    with pytest.raises(InputError, match=r"no block 'colour'; choose some of content, transition, text"):
        code_blocks(toy_dataset, ["colour"])
    with pytest.raises(InputError, match=r"no block 'model' \(it needs --checkpoint\)"):
        code_blocks(toy_dataset, ["model"])


def test_item_vectors_of_a_trained_model_are_a_block(
    toy_dataset: Dataset, toy_model: UnifiedModel, tmp_path: Path
) -> None:
    state = {f"net.{name}": value for name, value in toy_model.state_dict().items()}
    about = {"config": toy_model.config.to_dict(), "data_hash": toy_dataset.manifest.data_hash}
    torch.save({"state_dict": state, "recsys": about}, tmp_path / "model.ckpt")
    blocks = code_blocks(toy_dataset, checkpoint=tmp_path / "model.ckpt")
    assert list(blocks.vectors) == ["content", "transition", "model"]
    assert np.allclose(blocks.vectors["model"], toy_model.item_vectors().detach().numpy())
    torch.save({"state_dict": state, "recsys": about | {"data_hash": "other"}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="was not trained on"):
        code_blocks(toy_dataset, checkpoint=tmp_path / "other.ckpt")


# -- codes -------------------------------------------------------------------------------------------------------------


def test_three_kinds_with_their_sizes(made: MadeCodes, toy_dataset: Dataset) -> None:
    assert tuple(made.kinds) == KINDS
    for one in made.kinds.values():
        assert one.ids.num_items == toy_dataset.num_items == one.health.num_items
        assert one.tokenizer.codebook_sizes == one.ids.codebook_sizes
    assert made.kinds["codes"].ids.codebook_sizes == (4, 4, 4)  # a quarter of 30 items
    assert made.kinds["set_codes"].ids.num_levels == 8  # four of the content, four of the transitions
    assert made.kinds["set_codes"].about["blocks"] == ["content", "transition"]


def test_new_items_are_encoded_as_the_catalogue_was(made: MadeCodes, toy_dataset: Dataset) -> None:
    blocks = code_blocks(toy_dataset).vectors
    known = np.array([3, 11])
    for one in made.kinds.values():
        again = one.tokenizer.encode({name: rows[known] for name, rows in blocks.items()})
        assert np.array_equal(again, one.ids.codes_IL[known])
    about = {block["name"]: block for block in made.about["blocks"]}
    assert toy_dataset.content is not None
    unseen = blocks_of_new_items(about, toy_dataset.content[known], 2)
    assert not unseen["transition"].any()
    sets = made.kinds["set_codes"].tokenizer.encode(unseen)
    assert np.array_equal(sets[:, :4], made.kinds["set_codes"].ids.codes_IL[known, :4])
    assert (sets[:, 4:] == np.array(made.kinds["set_codes"].ids.codebook_sizes[4:]) - 1).all()  # the learned "missing"


@pytest.mark.parametrize("num_items", [2, 3, 4, 5, 9, 17])
def test_small_catalogues(num_items: int, tmp_path: Path) -> None:
    codes = make_codes(catalogue(num_items, tmp_path / "data"))
    assert codes is not None
    for one in codes.kinds.values():
        assert one.ids.num_items == num_items
        assert one.health.num_leaves > 1


@pytest.mark.parametrize(("text", "events", "blocks"), [(True, False, ["content"]), (False, True, ["transition"])])
def test_content_or_transitions_alone(text: bool, events: bool, blocks: list[str], tmp_path: Path) -> None:
    codes = make_codes(catalogue(12, tmp_path / "data", text=text, events=events))
    assert codes is not None
    assert [block["name"] for block in codes.about["blocks"]] == blocks


def test_nothing_to_make_codes_of(tmp_path: Path) -> None:
    reasons: list[str] = []
    data = catalogue(12, tmp_path / "data", text=False, events=False)
    assert make_codes(data, say=reasons.append) is None
    assert reasons == ["no semantic IDs: the items have neither content nor training events that follow each other"]
    single = catalogue(1, tmp_path / "single")
    assert make_codes(single, say=reasons.append) is None
    assert [reason.split(":")[0] for reason in reasons[1:]] == ["no codes", "no parallel_codes", "no set_codes"]
    # Two of one text and one of none: what is missing is filled in with the mean, and nothing is left.
    alike = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["red ship", "red ship", None]})
    events = pl.DataFrame({"user_id": ["u", "v", "w"], "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    same = prepare_frames(events.with_columns(action=pl.lit("click")), alike, output=tmp_path / "same")
    assert make_codes(same, say=reasons.append) is None and "vectors are equal" in reasons[-1]
    with pytest.raises(InputError, match="no item of .* has the block transition"):
        make_codes(data, blocks={"transition": None})


def test_stated_sizes_are_kept_or_refused(toy_dataset: Dataset) -> None:
    codes = make_codes(toy_dataset, kinds=("codes",), levels=2, codebook_size=6)
    assert codes is not None and codes.kinds["codes"].ids.codebook_sizes == (6, 6)
    with pytest.raises(InputError, match=r"codes of .*30 distinct vectors for 64 codes"):
        make_codes(toy_dataset, codebook_size=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kmeans"}, "--method kmeans: choose one of rq-kmeans, rq-vae, fsq, opq"),
        ({"balance": "equal"}, "--balance equal: choose one of"),
        ({"balance": "capacity", "method": "fsq"}, "fsq has no balance"),
        ({"levels": 0}, "--levels 0"),
        ({"codebook_size": 1}, "--codebook-size 1"),
        ({"kinds": ("tree",)}, "kinds tree"),
        ({"blocks": {"content": 0.0}}, "a weight is a positive number"),
    ],
)
def test_settings_that_cannot_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CodeSettings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["opq", "fsq", "rq-vae"])
def test_other_methods_and_separate_codes(method: str, toy_dataset: Dataset) -> None:
    settings = CodeSettings(
        kinds=("codes",), method=method, fuse="separate", blocks={"content": 1.0}, levels=2, num_steps=3
    )
    codes = make_codes(toy_dataset, settings)
    assert codes is not None
    about = codes.kinds["codes"].about
    assert about["method"] == method and about["fuse"] == "separate" and len(about["sizes"]) == 2


# -- files -------------------------------------------------------------------------------------------------------------


def test_equal_seeds_write_equal_bytes(made: MadeCodes, toy_dataset: Dataset, tmp_path: Path) -> None:
    made.save(tmp_path / "one")
    again = make_codes(Dataset.open(toy_dataset.path), seed=0, balance="none")
    assert again is not None
    again.save(tmp_path / "two")
    MadeCodes.load(tmp_path / "one").save(tmp_path / "three")
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert {file.parts[0] for file in files} == {"codes.parquet", "sids.json", *KINDS}
    for other in ("two", "three"):
        assert [
            file for file in files if (tmp_path / other / file).read_bytes() != (tmp_path / "one" / file).read_bytes()
        ] == []


def test_training_reads_all_kinds_with_their_true_sizes(made: MadeCodes, toy_dataset: Dataset, tmp_path: Path) -> None:
    made.save(tmp_path / "sids")
    codes = read_codes(tmp_path / "sids", toy_dataset)
    assert codes.sizes == {kind: one.ids.codebook_sizes for kind, one in made.kinds.items()}
    assert np.array_equal(codes.codes["codes"].numpy(), made.kinds["codes"].ids.codes_IL)
    assert codes.made is not None and set(codes.tokenizers() or {}) > {"sids.json"}
    file = read_codes(tmp_path / "sids" / "codes.parquet", toy_dataset)
    assert file.made is None and torch.equal(file.codes["codes"], codes.codes["codes"])
    for wrong in (-1, 2**24):
        huge = pl.DataFrame({"item_id": toy_dataset.item_ids, "codes": [[wrong, 0]] * toy_dataset.num_items})
        huge.write_parquet(tmp_path / "huge.parquet")
        with pytest.raises(InputError, match=f"at least 0 and below 16777216, got .*{wrong}"):
            read_codes(tmp_path / "huge.parquet", toy_dataset)
    for row, said in ((None, "None"), ([], r"\[\]"), ([1], r"\[1\]"), ([1, None], r"\[1, None\]")):
        rows = [[0, 0]] * toy_dataset.num_items
        rows[7] = row
        odd = pl.DataFrame({"item_id": toy_dataset.item_ids, "codes": rows}).reverse()
        odd.write_parquet(tmp_path / "odd.parquet")
        with pytest.raises(InputError, match=f"as many codes as the first.*{toy_dataset.item_ids[7]!r} has {said}"):
            read_codes(tmp_path / "odd.parquet", toy_dataset)
    stranger = pl.DataFrame({"item_id": ["nobody"], "codes": pl.Series([None], dtype=pl.List(pl.Int64))})
    whole = pl.DataFrame({"item_id": toy_dataset.item_ids, "codes": [[0, 0]] * toy_dataset.num_items})
    pl.concat([stranger, whole]).write_parquet(tmp_path / "more.parquet")
    assert read_codes(tmp_path / "more.parquet", toy_dataset).sizes == {"codes": (1, 1)}  # strangers are left aside
    # No item misses its content, so that the codes themselves do not show the one that says so.
    known, needed = codes.sizes["set_codes"][:4], file.sizes["set_codes"][:4]
    assert all(size == most + 1 for size, most in zip(known, needed, strict=True))


def test_codes_that_were_changed_are_refused(made: MadeCodes, toy_dataset: Dataset, tmp_path: Path) -> None:
    made.save(tmp_path / "sids")
    frame = pl.read_parquet(tmp_path / "sids" / "codes.parquet")
    frame.reverse().write_parquet(tmp_path / "sids" / "codes.parquet")
    for read in (lambda: MadeCodes.load(tmp_path / "sids"), lambda: read_codes(tmp_path / "sids", toy_dataset)):
        with pytest.raises(InputError, match=r"codes\.parquet is missing or was changed"):
            read()


def test_a_checkpoint_can_carry_the_tokenizers(made: MadeCodes, toy_dataset: Dataset, tmp_path: Path) -> None:
    made.save(tmp_path / "sids")
    tensors = tokenizer_tensors(tmp_path / "sids")
    assert "sids.json" in tensors and all(tensor.dtype == torch.uint8 for tensor in tensors.values())
    write_tokenizers(tensors, tmp_path / "kept")
    assert not (tmp_path / "kept" / "codes.parquet").exists()
    blocks = code_blocks(toy_dataset).vectors
    for kind, one in made.kinds.items():
        assert np.array_equal(load_item_tokenizer(tmp_path / "kept" / kind).encode(blocks), one.ids.codes_IL)
    with pytest.raises(InputError, match="leads out of its folder"):
        write_tokenizers({"../escaped": tensors["sids.json"]}, tmp_path / "kept")


# -- a catalogue that changes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(toy_frames: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The toy frames with five more items, two of them copies of old ones, prepared anew."""
    items = toy_frames["items"]
    copies = items.filter(pl.col("item_id").is_in(["i3", "i11"])).with_columns(item_id="copy_" + pl.col("item_id"))
    others = pl.DataFrame(
        {"item_id": ["n0", "n1", "n2"], "title": ["new"] * 3, "text": ["red ship", "blue car", "wood"]}
    )
    return prepare_frames(
        toy_frames["interactions"], pl.concat([items, copies, others]), output=tmp_path_factory.mktemp("grown") / "data"
    )


def test_appending_keeps_old_codes(made: MadeCodes, grown: Dataset, toy_dataset: Dataset) -> None:
    more = appended_to(made, grown)
    row_I = grown.item_index(toy_dataset.item_ids)
    for kind, one in made.kinds.items():
        new = more.kinds[kind]
        assert np.array_equal(new.ids.codes_IL[row_I], one.ids.codes_IL)
        assert new.ids.codebook_sizes == one.ids.codebook_sizes and new.health.num_items == grown.num_items
    # A new item without events lies in the content blocks where the old item of the same text lies.
    copy_B, old_B = grown.item_index(["copy_i3", "copy_i11"]), toy_dataset.item_index(["i3", "i11"])
    old = made.kinds["set_codes"].ids.codes_IL[old_B, :4]
    assert (more.kinds["set_codes"].ids.codes_IL[copy_B, :4] == old).mean() > 0.5
    assert (
        more.kinds["set_codes"].ids.codes_IL[copy_B, 4:] == np.array(made.kinds["set_codes"].ids.codebook_sizes[4:]) - 1
    ).all()


def test_alignment_keeps_numbers_where_codes_agree(made: MadeCodes, grown: Dataset, toy_dataset: Dataset) -> None:
    refit = make_codes(grown, settings_like(CodeSettings(seed=1, balance="none"), made))
    assert refit is not None
    aligned = aligned_to(refit, made)
    row_I = grown.item_index(toy_dataset.item_ids)
    for kind, one in made.kinds.items():
        before = (refit.kinds[kind].ids.codes_IL[row_I] == one.ids.codes_IL).mean()
        after = (aligned.kinds[kind].ids.codes_IL[row_I] == one.ids.codes_IL).mean()
        assert after > before
        blocks = code_blocks(grown, seed=1).vectors
        assert np.array_equal(aligned.kinds[kind].tokenizer.encode(blocks), aligned.kinds[kind].ids.codes_IL)
        assert aligned.kinds[kind].health == refit.kinds[kind].health
    with pytest.raises(InputError, match="the old codes are rq-kmeans, fused, of 3 levels, those asked for fsq"):
        settings_like(CodeSettings(method="fsq"), made)


def test_catalogues_without_a_common_item_are_refused(made: MadeCodes, small_world: Dataset) -> None:
    codes = make_codes(small_world, kinds=("codes",))
    assert codes is not None
    with pytest.raises(InputError, match="no item in common"):
        aligned_to(codes, made)
    with pytest.raises(InputError, match="too few to see how it turned|no item of .* has the block content"):
        appended_to(made, small_world)
