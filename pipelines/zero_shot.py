"""A model trained with codes of texts and no item ids, on a catalogue that it never saw, as a table.

``python -P -m recsys.pipelines.zero_shot --train DATA,DATA --test DATA --text-encoder FOLDER --output DIR`` (after
RecGPT, arXiv 2506.06270). Of the test dataset training sees nothing; what answers for it reads the texts of its items
and the history of the user who asks. A few minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import write_json
from recsys.pipelines.command_parser import run_call
from recsys.pipelines.console import stdout_console
from recsys.pipelines.evaluate import HISTORY_FILTER, TIE_RULE
from recsys.pipelines.item_text_vectors import encoded_texts, stored_vectors
from recsys.pipelines.results import record, write
from recsys.pipelines.text_codes import TextCodes
from recsys.pipelines.zero_shot_run import Catalogue, TextOnly, zero_shot_figures

__all__ = ["main", "zero_shot"]

_EXAMPLE = "zero_shot --train goodbooks,simulated --test toys --text-encoder all-MiniLM-L6-v2 --output zero-shot"
_COLUMNS = ["model", "trained on", "reads", "NDCG@10", "Recall@10", "it − text_knn", "unfiltered NDCG@10"]
_COLUMNS += ["unfiltered Recall@10", "seen catalogues NDCG@10"]


def zero_shot(
    train: str,
    test: Path,
    output: Path,
    text_encoder: Path | None = None,
    vectors: str | None = None,
    parts: int = 24,
    dim: int = 64,
    epochs: int = 4,
    reads: Literal["codes", "vectors"] = "codes",
    seed: int = 0,
    json: Path | None = None,
    name: str | None = None,
) -> None:
    """Train on the texts of some catalogues and recommend on another.

    Args:
        train: A,B: prepared datasets whose positive events train; their last two of each user are held out.
        test: the prepared dataset of a catalogue that training does not see.
        output: folder of the tokenizers, the united data and the checkpoints.
        text_encoder: folder of a sentence-transformers model that all texts go through.
        vectors: name of item vectors that all datasets were prepared with, instead.
        parts: sub-vectors of an item's vector, one code each.
        dim: width of the model.
        epochs: passes at most; the best is chosen on the training catalogues.
        reads: what the model knows of an item, its codes or, to see what these cost, its vector as it is.
        seed: of tokenizer, training and intervals.
        json: write all figures to this file too.
        name: write the table to docs/results/NAME.json, in the root of the repository.
    """
    for flag, value in (("--parts", parts), ("--dim", dim), ("--epochs", epochs)):
        if value < 1:
            raise InputError(f"{flag} must be positive, got {value}")
    if (text_encoder is None) == (vectors is None):
        raise InputError("give either --text-encoder or --vectors to say what all texts are read by")
    paths = [Path(word) for word in train.split(",") if word]
    if not paths:
        raise InputError("--train names no dataset")

    def catalogue(path: Path) -> Catalogue:
        data = Dataset.open(path)
        return Catalogue(
            data, stored_vectors(data, vectors or "") if text_encoder is None else encoded_texts(data, text_encoder)
        )

    seen, unseen = tuple(catalogue(path) for path in paths), catalogue(test)
    widths = {one.data.path: one.vectors_IK.shape[1] for one in (*seen, unseen)}
    if len(set(widths.values())) > 1:
        about = ", ".join(f"{path}: {width}" for path, width in widths.items())
        raise InputError(f"the vectors differ in width ({about}); prepare all datasets with the same encoder")
    if any(one.data.manifest.data_hash == unseen.data.manifest.data_hash for one in seen):
        raise InputError(f"{test} stands in --train too: nothing there would be unseen")
    codes = TextCodes.fit(np.concatenate([one.vectors_IK for one in seen]), num_parts=parts, seed=seed)
    codes.tokenizer.save(output / "tokenizer")
    training = TextOnly(seen, codes, output, dim, epochs, seed, reads)
    rows = zero_shot_figures(training, unseen, seed=seed)
    protocol = {
        "split": "test",
        "tie_rule": TIE_RULE,
        "history_filter": HISTORY_FILTER,
        "num_users": len(unseen.data.requests("test")),
        "num_items": unseen.data.num_items,
        "data_hash": unseen.data.manifest.data_hash,
        "trained_on": {str(one.data.path): one.data.manifest.data_hash for one in seen},
        "seed": seed,
    }
    if json is not None:
        write_json(json, {"protocol": protocol, "rows": rows})
    said = [
        f"Test targets of {protocol['num_users']:,} users, full ranking of {unseen.data.num_items:,} items; "
        f"{TIE_RULE}; 95 % bootstrap intervals over users. "
        f"History filter but where a column says unfiltered: {HISTORY_FILTER}.",
        "No event of the test catalogue trains anything but popularity; epoch and decay of text_knn are chosen on "
        "validation targets of the training catalogues. Seen catalogues: their own test targets, one dataset of both.",
    ]
    command = "python -P -m recsys.pipelines.zero_shot --train DATA,DATA --test DATA --text-encoder FOLDER --output DIR"
    command += f" --epochs {epochs}" + ("" if reads == "codes" else f" --reads {reads}")
    _show(rows)
    if name is not None:
        title = f"Trained on {training.name}, asked about {unseen.data.path.name}; the model reads {reads}"
        record(name, title, command, rows, _COLUMNS, data_hash=unseen.data.manifest.data_hash, notes=said)
        write(Path())


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(*_COLUMNS, box=box.SIMPLE_HEAD)
    for row in rows:
        cells = [row.get(column, "") for column in _COLUMNS]
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells))
    stdout_console().print(table)


def main(argv: Sequence[str]) -> int:
    """Run the comparison."""
    return run_call(zero_shot, argv, prog="zero_shot", example=_EXAMPLE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
