"""What a run wrote down while it trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["curve", "run_log"]

_MAX_POINTS = 400


def run_log(run: Path) -> pl.DataFrame | None:
    """The CSV logs of a run, resumed parts put together; None where there are none.

    Args:
        run: folder of a run of `recsys fit`.
    """
    files = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.rsplit("_", 1)[1]))
    frames = []
    for file in files:
        try:
            frames.append(pl.read_csv(file, infer_schema_length=None))
        except pl.exceptions.PolarsError:  # a run killed before its first line leaves an empty file
            continue
    return pl.concat(frames, how="diagonal_relaxed") if frames else None


def curve(log: pl.DataFrame, name: str) -> list[tuple[float, float]]:
    """(step, value) of a figure in rising order of the step, 400 points at most; empty where it was not logged."""
    if name not in log.columns:
        return []
    points = (
        log.select("step", y=pl.col(name).cast(pl.Float64, strict=False))
        .drop_nulls()
        .filter(pl.col("y").is_finite())
        .unique("step", keep="last", maintain_order=True)  # a resumed run logs some steps again
        .sort("step")
    )
    if not len(points):
        return []
    return points[np.unique(np.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).astype(np.int64))].rows()
