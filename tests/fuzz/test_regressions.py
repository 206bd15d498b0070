"""What fuzzing found, each as the smallest case that showed it; mended since, and to stay so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from recsys.bundle import Bundle, _checksum
from recsys.errors import InputError
from recsys.events import Event
from recsys.files import sha256_file
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rules import Explore


@pytest.fixture
def signed(toy_bundle: Path, tmp_path: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """Change one file of a bundle and make the hashes right."""

    def changed(name: str, change: Callable[[Path], None]) -> Path:
        bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
        change(bundle / name)
        manifest = json.loads((bundle / "bundle.json").read_text())
        manifest["files"] = {part: sha256_file(bundle / part) for part in manifest["files"]}
        manifest["checksum"] = _checksum(manifest)
        (bundle / "bundle.json").write_text(json.dumps(manifest))
        return bundle

    return changed


Signed = Callable[[str, Callable[[Path], None]], Path]


def test_items_that_share_an_id_came_back_twice(signed: Signed):
    bundle = signed(
        "items.parquet", lambda file: pl.read_parquet(file).with_columns(item_id=pl.lit("x")).write_parquet(file)
    )
    with pytest.raises(InputError, match="ids must be there and differ"):
        Bundle.open(bundle)


def test_events_without_an_item_became_events_of_any_item(signed: Signed):
    def change(file: Path) -> None:
        none = pl.col("item").list.eval(pl.lit(None, dtype=pl.Int32))
        pl.read_parquet(file).with_columns(none).write_parquet(file)

    with pytest.raises(InputError, match="its parts do not fit together"):
        Bundle.open(signed("histories.parquet", change))


def test_a_mask_of_text_was_a_type_error_in_the_first_request(signed: Signed):
    def change(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), "positive_mask": "../x"}))

    with pytest.raises(InputError, match=r"model.positive_mask must be int, got '\.\./x'"):
        Bundle.open(signed("model/model.json", change))


def test_weights_too_large_to_compute_with_were_a_value_error(signed: Signed):
    def change(file: Path) -> None:
        weights = load_file(file)
        save_file({**weights, "start_D": np.full_like(weights["start_D"], 3e38)}, file)

    rec = Recommender.load(signed("model/model.safetensors", change))
    with pytest.raises(InputError, match="NaN or infinity"):
        rec.recommend(retrievers=("dense_learned",), rank=False)


@pytest.mark.parametrize(
    "fields",
    [{"k": 10**5000}, {"user_id": 10**5000}, {"history": [Event(item_id=10**5000, timestamp=1.5)]}],
    ids=["k", "user_id", "item_id"],
)
def test_integers_too_long_to_be_written_out_were_a_value_error(toy_bundle: Path, fields: dict[str, object]):
    rec = Recommender.load(toy_bundle)
    try:
        page = rec.recommend(**fields)
    except InputError as error:
        assert len(str(error)) < 300
    else:
        assert "an integer of 16610 bits is not in this bundle" in page.notes[0]


@pytest.mark.parametrize("user", [10**5000, "\ud800", b"u1"], ids=["long", "surrogate", "bytes"])
def test_chance_for_an_id_that_nobody_can_have_was_a_value_error(toy_bundle: Path, user: object):
    rec, rules = Recommender.load(toy_bundle), [Explore(3, epsilon=0.5)]
    drawn = rec.recommend(user, at=1_702_000_000, rules=rules)
    assert drawn.item_ids == rec.recommend(at=1_702_000_000, rules=rules).item_ids
