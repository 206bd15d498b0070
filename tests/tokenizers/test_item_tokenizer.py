"""Items from named blocks to codes and back, fused or separate, saved, loaded and renumbered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys.tokenizers.alignment import renamed_codes
from recsys.tokenizers.fsq import FsqConfig
from recsys.tokenizers.item_tokenizer import (
    FusedTokenizer,
    ItemTokenizer,
    aligned_item_tokenizer,
    fitted_fill,
    fused,
    load_item_tokenizer,
)
from recsys.tokenizers.modalities import BlockFusion, SeparateTokenizers
from recsys.tokenizers.protocol import Floats
from recsys.tokenizers.tokenizer_registry import fit_tokenizer, tokenizer_config

SIZES = (8, 4)


def item_blocks(seed: int = 0, num: int = 200) -> dict[str, Floats]:
    """Text of every item but each tenth, vectors of all but the last thirty."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(num, 6)).astype(np.float32)
    taken = (text @ rng.normal(size=(6, 4)) + 0.2 * rng.normal(size=(num, 4))).astype(np.float32)
    text[::10], taken[-30:] = 0.0, 0.0
    return {"text": text, "taken": taken}


def made(form: str, blocks: dict[str, Floats], seed: int = 0) -> FusedTokenizer | SeparateTokenizers:
    config = tokenizer_config("rq-kmeans", codebook_sizes=SIZES, balance="none")
    if form == "separate":
        return SeparateTokenizers.fit(blocks, configs=dict.fromkeys(blocks, config), seed=seed)
    fusion = BlockFusion.fit(blocks)
    fill = fitted_fill(fusion, blocks)
    return FusedTokenizer(fusion, fit_tokenizer("rq-kmeans", fused(fusion, blocks, fill), config, seed=seed), fill)


@pytest.fixture(params=["fused", "separate"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_codes_of_an_item_do_not_depend_on_the_others(form: str) -> None:
    blocks = item_blocks()
    tokenizer = made(form, blocks)
    assert isinstance(tokenizer, ItemTokenizer)
    assert tokenizer.widths == {"text": 6, "taken": 4}
    codes = tokenizer.encode(blocks)
    alone = [tokenizer.encode({name: rows[at : at + 1] for name, rows in blocks.items()}) for at in (0, 7, 190)]
    assert np.array_equal(np.concatenate(alone), codes[[0, 7, 190]])
    assert np.array_equal(tokenizer.assign(blocks), codes)  # without a balance
    with pytest.raises(ValueError, match=r"those fitted are taken, text"):
        tokenizer.encode({"text": blocks["text"]})


def test_reconstructions_are_in_the_space_of_each_block(form: str) -> None:
    blocks = item_blocks()
    tokenizer = made(form, blocks)
    decoded = tokenizer.decode(tokenizer.encode(blocks))
    for name, rows in blocks.items():
        there = rows.any(axis=1)
        lost = np.square(decoded[name][there] - rows[there]).sum()
        assert lost < 0.8 * np.square(rows[there] - rows[there].mean(0)).sum(), name


def test_what_is_loaded_gives_the_same_codes(form: str, tmp_path: Path) -> None:
    blocks = item_blocks()
    tokenizer = made(form, blocks)
    tokenizer.save(tmp_path / "kept")
    loaded = load_item_tokenizer(tmp_path / "kept")
    assert type(loaded) is type(tokenizer)
    assert loaded.widths == tokenizer.widths and loaded.codebook_sizes == tokenizer.codebook_sizes
    assert np.array_equal(loaded.encode(item_blocks(5)), tokenizer.encode(item_blocks(5)))


def test_parts_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    blocks = item_blocks()
    made("fused", blocks).save(tmp_path / "one")
    fit_tokenizer("rq-kmeans", blocks["text"], codebook_sizes=SIZES, seed=0).save(tmp_path / "one" / "vectors")
    with pytest.raises(ValueError, match="joins blocks of 10 entries for a tokenizer of 6"):
        load_item_tokenizer(tmp_path / "one")
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        load_item_tokenizer(tmp_path / "nothing")


def test_a_refit_gets_the_old_numbers_back(form: str) -> None:
    blocks = item_blocks()
    tokenizer = made(form, blocks)
    codes = tokenizer.encode(blocks)
    rng = np.random.default_rng(3)
    shuffle = [rng.permutation(size) for size in SIZES]
    if isinstance(tokenizer, FusedTokenizer):
        other: FusedTokenizer | SeparateTokenizers = FusedTokenizer(
            tokenizer.fusion, tokenizer.tokenizer.renumbered(shuffle), tokenizer.fill
        )
    else:
        other = SeparateTokenizers({name: one.renumbered(shuffle) for name, one in tokenizer.tokenizers.items()})
    shuffled = other.encode(blocks)
    assert (shuffled != codes).any()
    aligned, numbers = aligned_item_tokenizer(other, codes[20:], shuffled[20:])
    assert np.array_equal(renamed_codes(shuffled, numbers), codes)
    assert np.array_equal(aligned.encode(blocks), codes)


def test_alignment_of_other_levels_and_of_digits_is_refused() -> None:
    blocks = item_blocks()
    separate = made("separate", blocks)
    codes = separate.encode(blocks)
    with pytest.raises(ValueError, match=r"old codes have shape \(200, 3\), new ones \(200, 4\)"):
        aligned_item_tokenizer(separate, codes[:, :3], codes)
    fusion = BlockFusion.fit(blocks)
    fsq = fit_tokenizer("fsq", fusion.fuse(blocks), FsqConfig(num_parts=2, levels=(3, 3), num_steps=2), seed=0)
    digits = fsq.encode(fusion.fuse(blocks))
    with pytest.raises(ValueError, match="digits"):
        aligned_item_tokenizer(FusedTokenizer(fusion, fsq), digits, digits)


def test_a_missing_block_is_guessed_from_the_others(tmp_path: Path) -> None:
    blocks = item_blocks()
    tokenizer = made("fused", blocks)
    assert isinstance(tokenizer, FusedTokenizer) and tokenizer.fill is not None
    known = slice(1, 9)
    truth = fused(tokenizer.fusion, {name: rows[known] for name, rows in blocks.items()})
    without = {"text": blocks["text"][known], "taken": np.full((8, 4), np.nan, np.float32)}
    guessed, mean = fused(tokenizer.fusion, without, tokenizer.fill), fused(tokenizer.fusion, without)
    assert np.array_equal(guessed[:, :6], truth[:, :6])  # what is there stays
    assert np.square(guessed - truth).sum() < 0.2 * np.square(mean - truth).sum()
    nothing = {name: np.zeros_like(rows[:2]) for name, rows in blocks.items()}
    assert np.array_equal(fused(tokenizer.fusion, nothing, tokenizer.fill), fused(tokenizer.fusion, nothing))
    tokenizer.save(tmp_path / "kept")
    loaded = load_item_tokenizer(tmp_path / "kept")
    assert np.array_equal(loaded.encode(without), tokenizer.encode(without))
    assert len(tokenizer.encode({name: rows[:0] for name, rows in blocks.items()})) == 0


def test_a_guess_reads_nothing_of_another_missing_block() -> None:
    """The mean that stands for a missing block is of all items that have it, not of those that made the guess."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(200, 4))
    taken, shown = text @ rng.normal(size=(4, 3)), text @ rng.normal(size=(4, 2))
    taken[:60], shown[:60], shown[60:80] = 0.0, shown[:60] + 5.0, 0.0
    blocks = {name: rows.astype(np.float32) for name, rows in (("text", text), ("taken", taken), ("shown", shown))}
    fusion = BlockFusion.fit(blocks)
    fill = fitted_fill(fusion, blocks)
    item = {name: rows[100:101] * (name == "text") for name, rows in blocks.items()}
    known = fused(fusion, item).astype(np.float64) - fill.mean_V
    known[:, 4:] = 0.0
    guessed = known @ fill.turns["taken"] + fill.mean_V[4:7]
    assert np.allclose(fused(fusion, item, fill)[:, 4:7], guessed, atol=1e-6)


def test_a_guess_that_is_no_better_than_the_mean_is_not_made() -> None:
    rng = np.random.default_rng(0)
    noise = {"text": rng.normal(size=(40, 30)).astype(np.float32), "taken": rng.normal(size=(40, 4)).astype(np.float32)}
    fill = fitted_fill(BlockFusion.fit(noise), noise)
    assert fill.turns == {}
    few = {name: rows[:2] for name, rows in noise.items()}
    assert fitted_fill(BlockFusion.fit(few), few).turns == {}
