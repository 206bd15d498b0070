"""What the report says of a run: training curves and the figures of an evaluation.

Suffixes: R = slate rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.pipelines.report_charts import (
    CalibrationPoint,
    IntervalRow,
    calibration_chart,
    interval_chart,
    line_chart,
)
from recsys.pipelines.report_page import Section, note, table
from recsys.pipelines.run_logs import curve, run_log
from recsys.ranking import predict_slates

__all__ = ["calibration_section", "curves_section", "ranking_section", "retrieval_section", "segments_section"]

_CURVES = {
    "train/item_nats": ("retrieval loss in training (nats per target)", "min"),
    "train/action_nats": ("ranking loss in training (nats per action)", "min"),
    "train/code_nats": ("loss of the codes in training (nats per target)", "min"),
    "val/dense_learned/ndcg@10": ("validation NDCG@10 of dense_learned", "max"),
}
_MAIN = ("ndcg@10", "recall@10", "recall@100", "mrr")
_RANKING = ("auc", "gauc", "logloss", "ndcg@10")
_HEADS = {"ndcg@10_minus": "ours − it, ndcg@10", "auc_minus": "ours − it, auc"}
_BINS = 10

Row = Mapping[str, Any]


def curves_section(run: Path) -> Section:
    """Training curves from the CSV logs of a run, resumed parts put together."""
    title = "Training"
    log = run_log(run)
    if log is None:
        return Section(title, absent=f"{run} holds no logs/version_*/metrics.csv, so there are no curves.")
    charts = []
    for name, (label, best) in _CURVES.items():
        points = curve(log, name)
        if points:
            charts.append(line_chart(points, title=label, x_label="step", best=best if best == "max" else None))
    if not charts:
        return Section(title, absent="The logs of the run hold no curve yet.")
    return Section(title, f'<div class="charts">{"".join(charts)}</div>')


def retrieval_section(result: Row) -> Section:
    """Retrieval figures beside the baselines'."""
    protocol, ours = result.get("protocol", {}), result.get("retrieval", {})
    others = {name: row for name, row in result.get("baselines", {}).items() if isinstance(row.get("ndcg@10"), float)}
    rows = sorted(
        [(name, row, True) for name, row in ours.items()] + [(name, row, False) for name, row in others.items()],
        key=lambda entry: -float(entry[1].get("ndcg@10", 0.0)),
    )
    if not rows:
        return Section("Retrieval", absent="The evaluation holds no retrieval figures.")
    shown = [(name, row, mine) for name, row, mine in rows if isinstance(row.get("ndcg@10"), float)]
    chart = interval_chart(
        [
            IntervalRow(_label(name, mine, ours), row["ndcg@10"], *_interval(row, "ndcg@10"), mine)
            for name, row, mine in shown
        ],
        title="NDCG@10 with its 95 % interval",
    )
    said = (
        f"{protocol.get('num_users', 0):,} users of the {protocol.get('split', 'test')} split, every target ranked "
        f"against {protocol.get('num_items', 0):,} items. History filter: "
        f"{protocol.get('history_filter', 'not stated')}. "
        f"{protocol.get('num_unreachable', 0):,} targets stand in their own history; {protocol.get('num_tied', 0):,} "
        f"are tied ({protocol.get('tie_rule', 'not stated')})."
    )
    further = sorted(
        {
            name
            for _, row, _ in rows
            for name, value in row.items()
            if isinstance(value, float) and name not in _MAIN and not name.endswith(("_minus", "_ci"))
        }
    )
    body = note(said) + chart + _figures(rows, (*_MAIN, "ndcg@10_minus"), ours)
    if further:
        body += "<h3>All other figures</h3>" + _figures(rows, further, ours, intervals=False)
    every = [(name, row, True) for name, row in result.get("all_positives", {}).items()]
    if every:
        body += "<h3>Every positive of the period</h3>" + _figures(every, ("num_targets", *_MAIN), ours)
    return Section("Retrieval", body)


def ranking_section(result: Row) -> Section:
    """Ranking figures per action beside the baselines'."""
    ours = result.get("ranking", {})
    if not ours:
        return Section("Ranking", absent="The evaluation holds no ranking figures: the data has no slates to rank.")
    body = note("Candidates of held-out slates; AUC over all rows, GAUC within a user, NDCG@10 within a slate.")
    for action, figures in ours.items():
        rows = [("model", figures, True)]
        rows += [
            (name, row[action], False)
            for name, row in result.get("baselines", {}).items()
            if isinstance(row.get(action), dict)
        ]
        rows.sort(key=lambda entry: -float(entry[1].get("auc", 0.0)))
        known = [(name, row, mine) for name, row, mine in rows if isinstance(row.get("auc"), float)]
        chart = interval_chart(
            [IntervalRow(name, row["auc"], *_interval(row, "auc"), mine) for name, row, mine in known],
            title="AUC with its 95 % interval; dashed: chance",
            chance=0.5,
        )
        body += f"<h3>{escape(action)}</h3>" + chart + _figures(rows, (*_RANKING, "auc_minus"), {})
    return Section("Ranking", body)


def segments_section(result: Row) -> Section:
    """The default retriever's figures on groups of users and targets."""
    segments = {name: row for name, row in result.get("segments", {}).items() if row.get("num_users")}
    if not segments:
        return Section("Segments", absent="The evaluation holds no segments.")
    rows, small = [], {}
    for place, (name, row) in enumerate(segments.items()):
        cells = [name.replace("_", " "), str(row.get("meaning", "")), f"{row['num_users']:,}"]
        for column, figure in enumerate(_MAIN, start=len(cells)):
            cells.append(_number(row.get(figure)))
            if f"{figure}_ci" in row:
                small[place, column] = _range(*_interval(row, figure))
        rows.append(cells)
    which = result.get("protocol", {}).get("segments_of")
    head = note(f"Figures of {which} on parts of the users and targets.") if which else ""
    return Section("Segments", head + table(["segment", "which", "users", *_MAIN], rows, text=(1,), intervals=small))


def calibration_section(bundle: Bundle, dataset: Dataset) -> Section:
    """Predicted against observed rates on the slates of the test split."""
    title = "Calibration"
    slates = dataset.slates
    if slates is None or not (slates.split == 2).any():
        return Section(title, absent="The data holds no slates of the test split, so there is nothing to calibrate on.")
    if bundle.model.action_head is None:
        return Section(title, absent="The model learned no action probabilities.")
    predicted = predict_slates(bundle.model, dataset, 2, graph=bundle.graph_train)
    prob_RA = predicted.calibrated_RA(bundle.calibration)
    known_R, yes_R = slates.known[predicted.row_R], slates.yes[predicted.row_R]
    charts = []
    for bit, action in enumerate(dataset.manifest.actions):
        mine = (known_R >> bit & 1).astype(bool)
        points = calibration_points(prob_RA[mine, bit], (yes_R[mine] >> bit & 1).astype(bool))
        if points:
            charts.append(calibration_chart(points, title=action))
    if not charts:
        return Section(title, absent="No action of the test slates is known.")
    said = (
        f"{len(predicted.row_R):,} rows of the test slates in groups of equal size by predicted probability; "
        "whiskers are 95 % intervals of the observed rate. On the dashed line a probability means what it says."
    )
    return Section(title, note(said) + f'<div class="charts">{"".join(charts)}</div>')


def calibration_points(
    prob_R: np.typing.NDArray[np.float32], yes_R: np.typing.NDArray[np.bool_], bins: int = _BINS
) -> list[CalibrationPoint]:
    """Means of groups of equal size by predicted probability; Wilson intervals of the observed rates."""
    points = []
    for rows in np.array_split(np.argsort(prob_R, kind="stable"), bins):
        if not len(rows):
            continue
        count, rate = len(rows), float(yes_R[rows].mean())
        z2 = 1.96**2 / count
        centre = (rate + z2 / 2) / (1 + z2)
        room = math.sqrt(z2 * (rate * (1 - rate) + z2 / 4)) / (1 + z2)
        points.append(
            CalibrationPoint(float(prob_R[rows].mean()), rate, max(0.0, centre - room), min(1.0, centre + room), count)
        )
    return points


def _figures(
    rows: list[tuple[str, Row, bool]], names: tuple[str, ...] | list[str], ours: Row, *, intervals: bool = True
) -> str:
    names = [name for name in names if any(name in row for _, row, _ in rows)]
    cells, small = [], {}
    for place, (label, row, mine) in enumerate(rows):
        figures = (_number(row.get(name), "+" if name in _HEADS else "") for name in names)
        cells.append([_label(label, mine, ours), *figures])
        for column, name in enumerate(names, start=1):
            if intervals and f"{name}_ci" in row:
                small[place, column] = _range(*_interval(row, name))
    heads = ["", *(_HEADS.get(name, name) for name in names)]
    return table(heads, cells, ours=[mine for _, _, mine in rows], intervals=small)


def _label(name: str, mine: bool, ours: Row) -> str:
    return f"{name} (baseline)" if not mine and name in ours else name


def _interval(row: Row, name: str) -> tuple[float | None, float | None]:
    low, high = row.get(f"{name}_ci", (None, None))
    return low, high


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _number(value: Any, sign: str = "") -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:{sign}.4f}"
