"""Several blocks per item: fused, or codes of each, with blocks missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recsys.tokenizers.modalities import BlockFusion, SeparateTokenizers, checked_blocks
from recsys.tokenizers.protocol import Floats
from recsys.tokenizers.residual_kmeans import ResidualKMeansConfig
from recsys.tokenizers.rq_vae import RqVae, RqVaeConfig


def blocks_of(num: int = 300, seed: int = 0) -> dict[str, Floats]:
    """Text for all but every tenth item (zeros), collaborative vectors for all but the last fifty (NaN)."""
    rng = np.random.default_rng(seed)
    text = (5 * rng.normal(size=(num, 6))).astype(np.float32)
    text[::10] = 0.0
    taken = (0.1 * rng.normal(size=(num, 4)) + 2).astype(np.float32)
    taken[-50:] = np.nan
    return {"text": text, "taken": taken}


BLOCKS = blocks_of()
CONFIGS = {
    "text": ResidualKMeansConfig(codebook_sizes=(8, 4)),
    "taken": ResidualKMeansConfig(codebook_sizes=(6,), balance="none"),
}


def separate() -> SeparateTokenizers:
    return SeparateTokenizers.fit(BLOCKS, configs=CONFIGS, seed=0)


def test_fused_blocks_have_the_mean_norm_of_their_weight() -> None:
    fusion = BlockFusion.fit(BLOCKS, weights={"taken": 3.0})
    assert fusion.widths == {"text": 6, "taken": 4}
    fused = fusion.fuse(BLOCKS)
    assert fused.shape == (300, 10) and fused.dtype == np.float32
    present = np.arange(300) % 10 != 0
    assert np.linalg.norm(fused[present, :6], axis=1).mean() == pytest.approx(1.0, rel=1e-5)
    assert np.linalg.norm(fused[:250, 6:], axis=1).mean() == pytest.approx(3.0, rel=1e-5)
    expected = BLOCKS["text"][1] / np.linalg.norm(BLOCKS["text"][present], axis=1).mean()
    np.testing.assert_allclose(fused[1, :6], expected, rtol=1e-5)


def test_a_missing_block_becomes_the_mean_of_the_present_ones() -> None:
    fused = BlockFusion.fit(BLOCKS).fuse(BLOCKS)
    present = np.arange(300) % 10 != 0
    np.testing.assert_allclose(fused[0, :6], fused[present, :6].mean(0), atol=1e-6)
    np.testing.assert_allclose(fused[-1, 6:], fused[:250, 6:].mean(0), atol=1e-6)
    assert np.isfinite(fused).all()


def test_fused_rows_do_not_depend_on_the_others_nor_on_the_order_of_blocks(tmp_path: Path) -> None:
    fusion = BlockFusion.fit(BLOCKS)
    part = {name: BLOCKS[name][5:25] for name in ("taken", "text")}
    np.testing.assert_array_equal(fusion.fuse(part), fusion.fuse(BLOCKS)[5:25])
    fusion.save(tmp_path)
    np.testing.assert_array_equal(BlockFusion.load(tmp_path).fuse(part), fusion.fuse(part))
    assert list(BlockFusion.load(tmp_path).widths) == ["text", "taken"]
    assert np.isnan(BLOCKS["taken"][-1]).all()  # what was given is not changed


def test_neural_methods_take_the_widths_of_a_fusion() -> None:
    fusion = BlockFusion.fit(BLOCKS)
    config = RqVaeConfig(
        codebook_sizes=(4,),
        hidden_dims=(8,),
        latent_dim=4,
        num_steps=3,
        block_widths=tuple(fusion.widths.values()),
        block_dropout=0.2,
    )
    assert RqVae.fit(fusion.fuse(BLOCKS), config, seed=0).encode(fusion.fuse(BLOCKS)).shape == (300, 1)


def test_separate_codes_stand_side_by_side_and_say_what_is_missing() -> None:
    made = separate()
    codes = made.encode(BLOCKS)
    assert made.codebook_sizes == (9, 5, 7)
    assert codes.dtype == np.int32 and codes.shape == (300, 3)
    np.testing.assert_array_equal((codes[:, :2] == [8, 4]).all(1), np.arange(300) % 10 == 0)
    np.testing.assert_array_equal(codes[:, 2] == 6, np.arange(300) >= 250)
    text = BLOCKS["text"][1:10]
    np.testing.assert_array_equal(codes[1:10, :2], made.tokenizers["text"].encode(text))
    np.testing.assert_array_equal(made.append({name: rows[7:8] for name, rows in BLOCKS.items()}), codes[7:8])


def test_balance_counts_only_items_that_have_the_block() -> None:
    codes = separate().assign(BLOCKS)
    count = np.bincount(codes[:, 0], minlength=9)
    assert set(count[:8].tolist()) == {33, 34}  # 270 items that have a text, 8 codes
    assert count[8] == 30


def test_separate_codes_are_decoded_block_by_block() -> None:
    made = separate()
    codes = made.encode(BLOCKS)
    decoded = made.decode(codes)
    assert {name: rows.shape for name, rows in decoded.items()} == {"text": (300, 6), "taken": (300, 4)}
    assert not decoded["text"][::10].any() and not decoded["taken"][250:].any()
    np.testing.assert_array_equal(decoded["taken"][:9], made.tokenizers["taken"].decode(codes[:9, 2:]))
    with pytest.raises(ValueError, match=r"separate tokenizers: codes\[0, 2\] = 7 is outside \[0, 7\)"):
        made.decode([[0, 0, 7]])


def test_separate_tokenizers_come_back_from_files(tmp_path: Path) -> None:
    made = separate()
    made.save(tmp_path)
    back = SeparateTokenizers.load(tmp_path)
    assert list(back.tokenizers) == ["text", "taken"] and back.codebook_sizes == made.codebook_sizes
    np.testing.assert_array_equal(back.encode(BLOCKS), made.encode(BLOCKS))
    made.tokenizers["taken"].save(tmp_path / "block_0")
    with pytest.raises(ValueError, match="block_0 is another tokenizer than was saved as block 'text'"):
        SeparateTokenizers.load(tmp_path)
    header = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**header, "blocks": ["taken", "text"]}))
    with pytest.raises(ValueError, match="was changed after it was written"):
        SeparateTokenizers.load(tmp_path)
    with pytest.raises(ValueError, match="does not describe a recsys-block-fusion"):
        BlockFusion.load(tmp_path)


def test_blocks_that_cannot_work_are_refused() -> None:
    rows = BLOCKS["text"].copy()
    rows[3, 1] = np.nan
    for wrong, text in [
        ({"text": rows}, "block 'text', row 3 holds NaN or infinity beside numbers; a missing row is NaN or 0"),
        ({"text": rows[:2], "taken": rows[:1]}, "different numbers of rows .*'text': 2, 'taken': 1"),
        ({"text": rows[0]}, r"block 'text' must be \[items, entries\], got shape \(6,\)"),
        ({}, "there are 0 blocks"),
    ]:
        with pytest.raises(ValueError, match=text):
            checked_blocks(wrong)
    infinite = np.full((4, 2), np.inf)
    with pytest.raises(ValueError, match="row 0 holds NaN or infinity"):
        checked_blocks({"text": infinite})
    fusion = BlockFusion.fit(BLOCKS)
    with pytest.raises(ValueError, match="blocks text were given, those fitted are taken, text; give every block"):
        fusion.fuse({"text": BLOCKS["text"]})
    with pytest.raises(ValueError, match="block 'text' has 4 entries, the fitted one 6"):
        fusion.fuse({"text": BLOCKS["taken"], "taken": BLOCKS["taken"]})
    with pytest.raises(ValueError, match="block 'gone' is missing for all 300 items; leave it out"):
        BlockFusion.fit({**BLOCKS, "gone": np.zeros((300, 2))})
    for weights in ({"image": 1.0}, {"text": 0.0}):
        with pytest.raises(ValueError, match=r"a weight is positive and of a block \(text, taken\)"):
            BlockFusion.fit(BLOCKS, weights=weights)
    with pytest.raises(ValueError, match="block 'flat': rq-kmeans: all 300 vectors are equal"):
        SeparateTokenizers.fit({**BLOCKS, "flat": np.ones((300, 2))})
    with pytest.raises(ValueError, match="there is no block 'image'; choose from text, taken"):
        SeparateTokenizers.fit(BLOCKS, {"image": "fsq"})
