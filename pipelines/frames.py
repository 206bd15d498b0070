"""The Python way: frames in, a dataset, a recommender and metrics out, through the code of the command line."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.pipelines.evaluate import evaluate_bundle
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.prepare.settings import PrepareSettings
from recsys.retrieval.recommender import Recommender

__all__ = ["evaluate", "fit", "prepare"]


def prepare(
    interactions: Any,
    items: Any = None,
    users: Any = None,
    impressions: Any = None,
    *,
    output: Path | str | None = None,
    **settings: Any,
) -> Dataset:
    """Make a dataset from frames, as `recsys prepare` makes it from files.

    Args:
        interactions: polars or pandas: user_id, item_id, timestamp, action [, unknown, value, surface, time_known].
        items: item_id [, title, text, any columns].
        users: user_id [, any columns].
        impressions: slates: slate_id, user_id, timestamp, item_ids, actions [, surfaces, times, values].
        output: folder to write; None = a temporary one that lives as long as the dataset.
        settings: the command's flags with underscores; lists for what it separates by commas.

    Raises:
        InputError: the tables or settings are wrong; one line says where.
    """
    for name in settings:
        if name not in PrepareSettings.__dataclass_fields__:
            raise InputError(
                f"prepare has no setting {name!r}; it has {', '.join(PrepareSettings.__dataclass_fields__)}"
            )
    if output is not None:
        return prepare_frames(interactions, items, users, impressions, output=Path(output), **settings)
    folder = _temporary("data")
    try:
        dataset = prepare_frames(interactions, items, users, impressions, output=folder / "data", **settings)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _remove_with(dataset, folder)
    return dataset


def fit(
    data: Dataset | Path | str, *, output: Path | str | None = None, index: str = "exact", **settings: Any
) -> Recommender:
    """Train on a dataset, as `recsys fit` and `recsys export --histories` do, and load the result.

    Args:
        data: from :func:`prepare`, or the folder of a prepared dataset.
        output: folder for the run (checkpoints, logs) and, as ``bundle`` inside it, the bundle. None = a temporary
            one that lives as long as the recommender; keep it with ``rec.save("bundle/")``.
        index: kind of vector index; see `recsys export`.
        settings: settings of training; without any, they are chosen for the dataset.

    Raises:
        InputError: a setting is wrong, or the dataset cannot be trained on.
    """
    # Lightning is loaded by those who train, not by everyone who names `recsys.prepare`.
    from recsys.pipelines.export import export_checkpoint
    from recsys.pipelines.fit import fit_dataset

    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    folder = _temporary("fit") if output is None else Path(output)
    try:
        checkpoint = fit_dataset(dataset, folder, **settings)
        export_checkpoint(checkpoint, dataset, folder / "bundle", histories=True, index=index)
        rec = Recommender.load(folder / "bundle")
    except BaseException:
        if output is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if output is None:
        _remove_with(rec, folder)
    return rec


def evaluate(
    rec: Recommender | Path | str,
    data: Dataset | Path | str,
    *,
    split: str = "test",
    retrievers: Sequence[str] | None = None,
    baselines: str | Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a recommender on held-out targets and slates, as `recsys evaluate` does.

    Args:
        rec: a recommender, or the folder of a bundle.
        data: the dataset that it was trained on, or its folder.
        split: ``test`` or ``validation``.
        retrievers: names of those that get a row; None = all.
        baselines: ``"all"`` or names to run beside it; None = none, and nothing is trained.
        seed: of the bootstrap intervals.

    Returns:
        What the command's ``--json`` writes: ``result["retrieval"]["dense"]["ndcg@10"]`` and so on.

    Raises:
        InputError: an unknown name, or data that the recommender was not trained on.
    """
    bundle = rec.bundle if isinstance(rec, Recommender) else rec
    names = baselines if baselines is None or isinstance(baselines, str) else ",".join(baselines)
    return evaluate_bundle(bundle, data, split=split, retrievers=retrievers, baselines=names, seed=seed)


def _temporary(what: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"recsys-{what}-"))


def _remove_with(holder: object, folder: Path) -> None:
    """Remove a folder when its holder goes, at the latest when Python ends."""
    weakref.finalize(holder, shutil.rmtree, folder, ignore_errors=True)
