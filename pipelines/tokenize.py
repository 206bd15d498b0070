"""The command ``tokenize``: from a prepared dataset to semantic IDs of its items."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import atomic_folder, check_file_output, read_json, write_json
from recsys.pipelines.code_settings import KINDS, CodeSettings
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.made_codes import SIDS_FILE, MadeCodes, make_codes
from recsys.pipelines.sids_update import aligned_to, appended_to, settings_like

__all__ = ["tokenize"]


def tokenize(
    data: Path,
    output: Path,
    method: str = "rq-kmeans",
    levels: int | None = None,
    codebook_size: int | None = None,
    balance: str | None = None,
    blocks: str | None = None,
    fuse: str = "fused",
    block_dropout: float = 0.1,
    checkpoint: Path | None = None,
    text_encoder: str | None = None,
    align_to: Path | None = None,
    append_to: Path | None = None,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Make semantic IDs of a dataset's items, for `recsys fit --data.sids`.

    Every item gets three kinds: `codes` are generated one after the other, `parallel_codes` predicted all at once, and
    `set_codes` are a set with codes of their own for every block of vectors. Only training events are read.

    Args:
        data: a prepared dataset.
        output: folder to write: codes.parquet, sids.json and the tokenizers.
        method: of `codes`: rq-kmeans, rq-vae, fsq or opq; the other kinds are opq.
        levels: codes of an item; default 3, above 200,000 items 4.
        codebook_size: codes of a level; default 256, less for a small catalogue.
        balance: none, capacity (every code equally often) or sinkhorn (about), of rq-kmeans and opq; default sinkhorn
            for rq-kmeans up to 200,000 items, else none.
        blocks: what codes are made of, NAME or NAME:WEIGHT separated by commas: content (all that the model reads of
            items), transition (what follows what), model (with --checkpoint), or a column or text encoder of the
            content. Default content,transition.
        fuse: fused (one code of all blocks) or separate (codes of each block after the other).
        block_dropout: of rq-vae and fsq, share of training rows that miss one block.
        checkpoint: of a model trained on the dataset; its item vectors become the block model.
        text_encoder: folder of a sentence-transformers model for the item texts, PATH or NAME=PATH (extra `text`).
        align_to: an earlier folder; new codes get the numbers of the old ones that they agree with most.
        append_to: an earlier folder; its items keep their codes, new ones get theirs from its frozen codebooks.
        seed: of everything that is drawn.
        json: write the figures to this file too.
    """
    if json is not None:
        check_file_output(json, "--json")
    began = time.perf_counter()
    settings = CodeSettings(
        seed=seed,
        method=method,
        levels=levels,
        codebook_size=codebook_size,
        balance=balance,
        blocks=None if blocks is None else parse_blocks(blocks),
        fuse=fuse,
        block_dropout=block_dropout,
    )
    if append_to is not None and align_to is not None:
        raise InputError("--append-to keeps codebooks and --align-to makes new ones; give one of them")
    if append_to is not None and settings != CodeSettings(seed=seed):
        raise InputError(
            "--append-to takes the old codebooks as they are; leave --method, sizes, --blocks and such out"
        )
    dataset = Dataset.open(data)
    old_folder = append_to or align_to
    old = None if old_folder is None else MadeCodes.load(old_folder)
    kinds = KINDS if old is None else tuple(old.kinds)
    if old is not None and align_to is not None:
        settings = settings_like(settings, old)
    reasons: list[str] = []
    given: dict[str, Any] = {"checkpoint": checkpoint, "text_encoder": text_encoder}
    # The folder first: what stands in its place is said before the work.
    with atomic_folder(output, marker=SIDS_FILE) as partial, progress_bar("semantic IDs", 1 + len(kinds)) as advance:
        if append_to is not None and old is not None:
            made: MadeCodes | None = appended_to(old, dataset, advance=advance, **given)
        else:
            made = make_codes(dataset, settings, say=reasons.append, advance=advance, **given)
        if made is None:
            raise InputError(f"{data}: {reasons[0]}")
        if align_to is not None and old is not None:
            made = aligned_to(made, old)
        made.write(partial)
    if json is not None:
        write_json(json, read_json(output / SIDS_FILE))
    _show(made, data, output, time.perf_counter() - began)


def parse_blocks(text: str) -> dict[str, float | None]:
    """``content,transition:1.5`` as names and weights.

    Raises:
        InputError: a name stands twice, or a weight is no number.
    """
    chosen: dict[str, float | None] = {}
    for word in (word.strip() for word in text.split(",") if word.strip()):
        name, colon, weight = word.rpartition(":")
        name = name if colon else word
        try:
            value = float(weight) if colon else None
        except ValueError:
            raise InputError(f"--blocks {word}: {weight!r} is no number; write NAME or NAME:WEIGHT") from None
        if not name or name in chosen:
            raise InputError(f"--blocks {text}: {'a name is missing' if not name else f'{name} stands twice'}")
        chosen[name] = value
    if not chosen:
        raise InputError("--blocks names none; leave it out for content,transition")
    return chosen


def _show(made: MadeCodes, data: Path, output: Path, seconds: float) -> None:
    table = Table(title=f"semantic IDs of {len(made.item_ids):,} items", title_justify="left")
    for column in ("", *made.kinds):
        table.add_column(column, justify="left" if not column else "right")
    for label, cell in _ROWS.items():
        table.add_row(label, *(cell(one) for one in made.kinds.values()))
    console = stdout_console()
    console.print(table)
    blocks = ", ".join(
        f"{block['name']} ({block['width']}, {block['num_missing']:,} without)" for block in made.about["blocks"]
    )
    console.print(f"made of {blocks}")
    console.print(f"{output} written in {seconds:.1f} s; train with:")
    console.print(f"  recsys fit --data.path {data} --data.sids {output}")


def _figures(values: Any, form: str) -> str:
    """One per level; the range where there are many."""
    numbers = [float(value) for value in values]
    if len(numbers) <= 4:
        return " ".join(format(number, form) for number in numbers)
    return f"{format(min(numbers), form)} to {format(max(numbers), form)}"


def _sizes(sizes: tuple[int, ...]) -> str:
    return f"{len(sizes)} × {sizes[0]}" if len(set(sizes)) == 1 else " ".join(str(size) for size in sizes)


_ROWS: dict[str, Any] = {
    "method": lambda one: one.method,
    "codes": lambda one: _sizes(one.ids.codebook_sizes),
    "different tuples": lambda one: f"{one.health.num_leaves:,}",
    "items that share theirs": lambda one: f"{one.health.num_collisions:,}",
    "most items of a tuple": lambda one: f"{one.health.largest_leaf:,}",
    "unused codes per level": lambda one: _figures(one.health.dead_codes, ".0f"),
    "entropy per level, bits": lambda one: _figures(one.health.entropy_bits, ".2f"),
    "at most": lambda one: _figures(np.array(one.health.max_bits), ".2f"),
    "error of reconstruction": lambda one: f"{one.health.relative_error:.3f}",
    "neighbours kept": lambda one: f"{one.health.neighbours_kept:.3f}",
}
