"""The report: one safe page, with every section or a sentence in its place, and figures where they belong."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.pipelines.export import export_model
from recsys.pipelines.prepare.build import prepare_frames
from recsys.pipelines.report import report
from recsys.pipelines.report_charts import IntervalRow, interval_chart, line_chart, ticks
from recsys.pipelines.report_examples import _Names, examples_section
from recsys.pipelines.report_sections import calibration_points
from recsys.retrieval.recommender import Recommender

VOID = {"meta"}
EVIL = '<script>alert("x")</script> & <b>co</b>'


class Balanced(HTMLParser):
    """Notes every tag and that each one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The logs of a run that was resumed once; the second part logs step 20 again."""
    for version, lines in enumerate(
        (["0,10,3.5,", "0,20,9.9,", "0,20,,0.05"], ["1,20,3.1,", "1,40,2.5,", "1,40,,0.08"])
    ):
        folder = tmp_path / "run" / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        head = "epoch,step,train/item_nats,val/dense_learned/ndcg@10"
        (folder / "metrics.csv").write_text("\n".join([head, *lines]) + "\n")
    (tmp_path / "run" / "logs" / "version_2").mkdir()
    (tmp_path / "run" / "logs" / "version_2" / "metrics.csv").write_text("")
    return tmp_path / "run"


@pytest.fixture
def slate_data(toy_frames: Any, tmp_path: Path) -> Dataset:
    """The toy data with a slate of five items for every user after all events, and a dangerous title."""
    events = toy_frames["interactions"]
    rows = []
    for number, (user, last) in enumerate(
        events.group_by("user_id").agg(pl.col("timestamp").max()).sort("user_id").rows()
    ):
        items = [f"i{(number * 3 + step) % 30}" for step in range(5)]
        rows.append((f"s{number}", user, last + 3600, items, ["click", "", "like", "", "click+like"], ["home"] * 5))
    columns = ["slate_id", "user_id", "timestamp", "item_ids", "actions", "surfaces"]
    impressions = pl.DataFrame(rows, schema=columns, orient="row")
    items = toy_frames["items"].with_columns(title=pl.lit(EVIL))
    return prepare_frames(interactions=events, items=items, impressions=impressions, output=tmp_path / "slates")


def evaluation(data_hash: str) -> dict[str, Any]:
    row = {"ndcg@10": 0.0616, "ndcg@10_ci": [0.058, 0.065], "recall@10": 0.11, "recall@10_ci": [0.1, 0.12], "mrr": 0.05}
    action = {"auc": 0.71, "auc_ci": [0.69, 0.73], "gauc": 0.6, "logloss": 0.4, "ndcg@10": 0.5}
    return {
        "protocol": {"split": "test", "num_users": 39, "num_items": 30, "data_hash": data_hash, "segments_of": "dense"},
        "retrieval": {"dense": row, "memory": {**row, "ndcg@10": 0.0642}},
        "ranking": {"click": action},
        "segments": {"cold_items": {"num_users": 0}, "head_items": {**row, "num_users": 17, "meaning": EVIL}},
        "baselines": {
            "popularity": {
                **row,
                "ndcg@10": 0.0123,
                "coverage@10": 0.25,
                "ndcg@10_minus": 0.0493,
                "ndcg@10_minus_ci": [0.045, 0.053],
            },
            "memory": {**row, "ndcg@10": 0.0642},
            "past_rates": {"click": {**action, "auc": 0.66, "auc_minus": -0.05, "auc_minus_ci": [-0.07, -0.03]}},
        },
        "all_positives": {"dense": {**row, "num_targets": 1234}},
    }


def test_everything_given(run: Path, slate_data: Dataset, toy_model: UnifiedModel, tmp_path: Path) -> None:
    export_model(toy_model, slate_data, tmp_path / "bundle")
    (tmp_path / "eval.json").write_text(json.dumps(evaluation(slate_data.manifest.data_hash)))
    report(run, tmp_path / "new" / "report.html", slate_data.path, tmp_path / "bundle", tmp_path / "eval.json")
    text = (tmp_path / "new" / "report.html").read_text()
    page = Balanced(text)
    assert "script" not in page.seen and "&lt;script&gt;alert(&quot;x&quot;)" in text
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme:dark" in text
    assert headings(text) == [
        "Data and model", "Training", "Semantic IDs", "Retrieval", "Ranking", "Segments", "Calibration", "Example users"
    ]  # fmt: skip
    assert text.count('class="absent"') == 1 and "The model has no semantic IDs" in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    names = re.findall(r'<text class="name (\w+)"[^>]*>([^<]+)</text>', text)
    assert names[:4] == [
        ("ours", "memory"), ("other", "memory (baseline)"), ("ours", "dense"), ("other", "popularity")
    ]  # fmt: skip
    assert names[4:] == [("ours", "model"), ("other", "past_rates")]
    assert "0.0580 to 0.0650" in text and "0.2500" in text and "39 users of the test split" in text
    assert "<th>ours − it, ndcg@10</th>" in text and "<td>+0.0493" in text and "0.0450 to 0.0530" in text
    assert "<th>ours − it, auc</th>" in text and "<td>-0.0500" in text and "-0.0700 to -0.0300" in text
    assert "<h3>Every positive of the period</h3>" in text and "<td>1,234</td>" in text
    assert all(f"<figcaption>{action}</figcaption>" in text for action in slate_data.manifest.actions)
    requests = slate_data.requests("test")
    shown = re.findall(r"<h3>User (\w+)</h3>", text)
    assert len(shown) == 4 and set(shown) <= set(slate_data.user_ids.gather(requests.user))


def test_examples_show_probabilities_on_the_surface_of_slates(slate_data: Dataset, toy_model: UnifiedModel) -> None:
    bundle_path = slate_data.path.parent / "bundle"
    export_model(toy_model, slate_data, bundle_path)
    rec, requests = Recommender.load(bundle_path), slate_data.requests("test")
    text = examples_section(rec, slate_data).body
    assert "on home, the surface of most slates" in text
    others = 0
    for block in text.split('<div class="user">')[1:]:
        user = int(slate_data.user_index([re.findall(r"<h3>User (\w+)</h3>", block)[0]])[0])
        row = int(np.flatnonzero(requests.user == user)[0])
        asked = {"at": int(requests.timestamp[row]), "k": 8}
        events = _Names(slate_data).events(user, int(requests.end[row]))
        surface = slate_data.manifest.surfaces[requests.surface[row]]
        assert f"Chosen next, on {surface}" in block
        page = rec.recommend(history=events, surface=surface, **asked)
        shown = rec.recommend(history=events, surface="home", **{**asked, "k": 30})
        on_home = {hit.item_id: hit.actions for hit in shown}
        expected = [f"{on_home[hit.item_id][action]:.3f}" for hit in page for action in rec.actions]
        assert re.findall(r"<td>(\d\.\d{3})</td>", block) == expected
        others += surface != "home" and page[0].actions != on_home[page[0].item_id]
    assert others > 0


def test_only_a_run(run: Path, tmp_path: Path) -> None:
    report(run, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    Balanced(text)
    assert headings(text) == ["Training", "Semantic IDs", "Figures", "Calibration", "Example users"]
    assert text.count('class="absent"') == 4 and "No --evaluation was given" in text
    # step 20 of the resumed part stands in place of the first part's 9.9; the empty log does no harm
    points = re.findall(r"<title>(\d+): ([\d.]+)</title>", text)
    assert points == [("10", "3.5"), ("20", "3.1"), ("40", "2.5"), ("20", "0.05"), ("40", "0.08")]
    assert "best, 0.08 at 40" in text


def test_a_run_without_logs_and_an_evaluation_without_slates(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="run holds no run"):
        report(run=tmp_path / "run", output=tmp_path / "report.html")
    (tmp_path / "run" / "checkpoints").mkdir()
    result = evaluation("any")
    del result["ranking"], result["segments"], result["baselines"], result["all_positives"]
    (tmp_path / "eval.json").write_text(json.dumps(result))
    report(tmp_path / "run", tmp_path / "report.html", evaluation=tmp_path / "eval.json")
    text = (tmp_path / "report.html").read_text()
    assert headings(text) == [
        "Training", "Semantic IDs", "Retrieval", "Ranking", "Segments", "Calibration", "Example users"
    ]  # fmt: skip
    assert text.count('class="absent"') == 6 and "ours − it" not in text


def test_parts_that_do_not_belong_together(run: Path, toy_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(evaluation("0" * 64)))
    with pytest.raises(InputError, match="is of other data than"):
        report(run, tmp_path / "report.html", data=toy_dataset.path, evaluation=tmp_path / "eval.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no figures"):
        report(run, tmp_path / "report.html", evaluation=tmp_path / "list.json")
    with pytest.raises(InputError, match="is no folder"):
        report(tmp_path / "nowhere", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_calibration_groups_hold_means_of_equal_counts() -> None:
    prob = np.array([0.1, 0.9, 0.2, 0.8, 0.15, 0.85], dtype=np.float32)
    points = calibration_points(prob, np.array([0, 1, 1, 1, 0, 0], dtype=bool), bins=2)
    assert [point.count for point in points] == [3, 3]
    assert [point.predicted for point in points] == pytest.approx([0.15, 0.85])
    assert [point.observed for point in points] == pytest.approx([1 / 3, 2 / 3])
    # Wilson's interval of 1 in 3: (p + z²/2n ± z·sqrt(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    assert points[0].low == pytest.approx(0.0615, abs=1e-3) and points[0].high == pytest.approx(0.7923, abs=1e-3)
    assert len(calibration_points(prob[:2], np.array([True, False]))) == 2


def test_charts_place_larger_values_further_along() -> None:
    curve = line_chart([(0, 1.0), (10, 3.0)], title="t", x_label="step", best="max")
    first, last = re.findall(r'class="ours" cx="([\d.]+)" cy="([\d.]+)"', curve)[:2]
    assert float(first[0]) < float(last[0]) and float(first[1]) > float(last[1])
    bars = interval_chart([IntervalRow("a", 0.2, 0.1, 0.3, True), IntervalRow("b", 0.1)], title="t")
    a, b = re.findall(r'circle class="\w+" cx="([\d.]+)"', bars)
    whisker = re.search(r'class="whisker ours" x1="([\d.]+)" x2="([\d.]+)"', bars)
    assert whisker is not None and float(whisker[1]) < float(a) < float(whisker[2])
    assert float(b) < float(a)
    assert ticks(0.055, 0.071, 4) == [0.055, 0.06, 0.065, 0.07] and ticks(3.0, 3.0) == [3.0]
    line_chart([(5, 2.0)], title="one point", x_label="step", best="max")
