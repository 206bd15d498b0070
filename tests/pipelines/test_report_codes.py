"""The report on semantic IDs: rectangles as wide as their branches, tables that count what the codes say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html import unescape
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.index.code_trie import CodeTrie
from recsys.model import UnifiedModel
from recsys.pipelines.code_settings import CodeSettings
from recsys.pipelines.export import export_model
from recsys.pipelines.model_codes import codes_of_model
from recsys.pipelines.report import report
from recsys.pipelines.report_codes import codes_section
from recsys.pipelines.report_tree import tree_branches, tree_chart

NAME = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def code_bundle(code_model: UnifiedModel, toy_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "bundle"
    export_model(code_model, toy_dataset, path, histories=True)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Logs of three epochs of a model with codes of two levels."""
    folder = tmp_path / "run" / "logs" / "version_0"
    folder.mkdir(parents=True)
    head = "epoch,step,train/code_nats,val/codes/level1_accuracy,val/codes/level2_accuracy"
    lines = [
        head + ",val/codes/level2_accuracy_after_wrong",
        "0,5,11.5,,,", "0,10,,0.1,0.2,0.01", "1,20,,0.3,0.5,0.03", "2,25,7.25,,,", "2,30,,0.4,0.7,0.02",
    ]  # fmt: skip
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "run"


def rectangles(drawing: str) -> list[list[tuple[float, float, str]]]:
    """(left, width, what it says) of every rectangle, row by row."""
    rows: dict[float, list[tuple[float, float, str]]] = {}
    for one in ElementTree.fromstring(drawing).iter():
        if one.tag.removeprefix(NAME) == "rect":
            said = "".join(one.itertext())
            rows.setdefault(float(one.attrib["y"]), []).append(
                (float(one.attrib["x"]), float(one.attrib["width"]), said)
            )
    return [rows[top] for top in sorted(rows)]


def svg(text: str) -> str:
    return re.findall(r"<svg.*?</svg>", text, re.DOTALL)[0]


def test_the_picture_shows_the_tree_of_the_codes(code_bundle: Path, run: Path, toy_dataset: Dataset) -> None:
    bundle = Bundle.open(code_bundle)
    text = codes_section(run, bundle).body
    codes_IL = bundle.model.codes.of("codes").tolist()
    first, second = Counter(row[0] for row in codes_IL), Counter((row[0], row[1]) for row in codes_IL)
    assert f"{len(first)} first codes, then {len(second)} pairs of first and second code" in text
    rows = rectangles(svg(text))
    assert len(rows) == 2
    per_item = 920 / len(codes_IL)
    wanted = [{str(code): count for code, count in first.items()}, {f"{a}, {b}": n for (a, b), n in second.items()}]
    titles, edges = toy_dataset.items["title"].to_list(), {}
    for row, counts in zip(rows, wanted, strict=True):
        found = {said.split(":")[0]: (left, width, said) for left, width, said in row}
        assert found.keys() == counts.keys()
        for codes, (left, width, said) in found.items():
            assert width == pytest.approx(counts[codes] * per_item, abs=0.02)
            assert re.match(rf"{codes}: {counts[codes]} items?;", said)
            named = said.split("such as ")[1].split("; ")
            assert len(named) == len(set(named)) == min(3, counts[codes])
            for title in named:
                row_codes = codes_IL[titles.index(title)]
                assert [str(code) for code in row_codes[: codes.count(",") + 1]] == codes.split(", ")
            edges[codes] = (left, left + width)
            parent = edges.get(codes.split(",")[0])
            assert parent is not None and parent[0] - 0.02 <= left and left + width <= parent[1] + 0.02
        lefts = sorted((left, width) for left, width, _ in row)
        assert lefts[0][0] == 0 and sum(width for _, width in lefts) == pytest.approx(920, abs=0.5)
        assert all(a + b == pytest.approx(c, abs=0.03) for (a, b), (c, _) in zip(lefts, lefts[1:], strict=False))
    widths = [width for _, width, _ in rows[0]]
    assert widths == sorted(widths, reverse=True)


def test_small_branches_stand_together_and_nothing_is_lost() -> None:
    rng = np.random.default_rng(0)
    first_I = np.minimum(rng.geometric(0.02, 20_000) - 1, 255)
    codes_IL = np.stack([first_I, rng.integers(0, 256, 20_000), rng.integers(0, 4, 20_000)], 1)
    codes_IL[:4000, :2] = 0
    trie = CodeTrie.build(codes_IL, (256, 256, 4))
    rows = tree_branches(trie)
    assert sum(len(row) for row in rows) < 500
    for depth, row in enumerate(rows):
        nodes, count_N = np.unique(codes_IL[:, : depth + 1], axis=0, return_counts=True)
        size = {tuple(node): int(count) for node, count in zip(nodes.tolist(), count_N, strict=True)}
        alone = {one.codes: one.num_items for one in row if not one.num_merged}
        assert alone.items() <= size.items()
        assert min(alone.values()) * 920 >= 2 * 20_000
        spans = sorted((one.left, one.num_items) for one in row)
        covered = sum(items for _, items in spans)
        assert covered == (20_000 if depth == 0 else sum(one.num_items for one in rows[0] if not one.num_merged))
        assert all(a + b <= c for (a, b), (c, _) in zip(spans, spans[1:], strict=False))
        for one in row:
            below = {node: items for node, items in size.items() if node[:depth] == one.codes and node not in alone}
            if one.num_merged:
                assert (one.num_merged, one.num_items) == (len(below), sum(below.values()))
    assert {one.codes for one in rows[1] if not one.num_merged} == {(0, 0)}
    drawings = re.findall(r"<svg.*?</svg>", tree_chart(trie, lambda item: f"<item {item}>"), re.DOTALL)
    said, larger = rectangles(drawings[0]), rectangles(drawings[1])
    assert any(re.match(r"\d+ small branches below 0: [\d,]+ items", one[2]) for one in said[1])
    assert said[0][0][2].startswith("0: ") and "such as <item " in said[0][0][2]
    # The second picture shows the six fullest first codes on its whole width.
    count_K = np.bincount(codes_IL[:, 0])
    fullest = np.argsort(-count_K, kind="stable")[:6]
    assert [int(one[2].split(":")[0]) for one in larger[0]] == fullest.tolist()
    scale = 920 / count_K[fullest].sum()
    assert [one[1] for one in larger[0]] == pytest.approx((count_K[fullest] * scale).tolist(), abs=0.02)
    assert sum(one[1] for one in larger[1]) == pytest.approx(920, abs=0.5)
    assert {int(one[2].split(",")[0]) for one in larger[1] if "small" not in one[2]} <= set(fullest.tolist())


def test_a_tree_of_one_level_and_of_one_item() -> None:
    trie = CodeTrie.build(torch.tensor([[1], [1], [0]]), (2,))
    assert [(one.codes, one.left, one.num_items) for one in tree_branches(trie)[0]] == [((1,), 0, 2), ((0,), 2, 1)]
    single = rectangles(svg(tree_chart(CodeTrie.build(torch.tensor([[3, 2, 1]]), (4, 4, 4)), str)))
    assert single == [[(0.0, 920.0, "3: 1 item; such as 0")], [(0.0, 920.0, "3, 2: 1 item; such as 0")]]


def cells(text: str, number: int) -> list[list[str]]:
    """Cells of a table of the page, small print after a bar."""
    table = re.findall(r"<tbody>(.*?)</tbody>", text)[number]
    table = table.replace('<span class="ci">', "|").replace("</span>", "")
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in table.split("</tr>")[:-1]]


def test_counts_of_codes_that_were_given(code_bundle: Path, run: Path) -> None:
    bundle = Bundle.open(code_bundle)
    text = codes_section(run, bundle).body
    sizes = bundle.model.codes.sizes
    by_kind, levels = cells(text, 0), cells(text, 1)
    assert [row[:3] for row in by_kind] == [
        ["codes", "generative", "given"], ["parallel_codes", "parallel", "given"], ["set_codes", "set", "given"]
    ]  # fmt: skip
    for row, kind in zip(by_kind, sizes, strict=True):
        tuples = Counter(map(tuple, bundle.model.codes.of(kind).tolist()))
        shared = sum(count for count in tuples.values() if count > 1)
        assert row[3:6] == [str(len(tuples)), f"{shared} of 30", str(max(tuples.values()))]
        assert row[6:] == ["not known", "not known"]
    assert [row[0] for row in levels] == ["1", "2", "3", "4"]
    for column, (kind, of_levels) in enumerate(sizes.items(), start=1):
        for level, row in enumerate(levels):
            if level >= len(of_levels):
                assert row[column] == ""
                continue
            size, used = of_levels[level], Counter(bundle.model.codes.of(kind)[:, level].tolist())
            bits = -sum(count / 30 * log2(count / 30) for count in used.values())
            assert row[column] == f"{bits:.2f} of {log2(size):.2f}|{size - len(used)} of {size} codes unused"


def test_health_of_codes_that_were_made_here(code_model: UnifiedModel, toy_dataset: Dataset, run: Path) -> None:
    made = codes_of_model(code_model, toy_dataset, CodeSettings(kinds=("parallel_codes",)))
    assert made is not None and made.made is not None
    config = code_model.config.to_dict() | {"code_sizes": (), "set_sizes": ()}
    config["parallel_sizes"] = made.sizes["parallel_codes"]
    model = UnifiedModel(type(code_model.config).from_dict(config)).eval()
    model.codes.fill(made.codes)
    assert toy_dataset.content is not None
    ones = torch.ones(toy_dataset.num_items, dtype=torch.bool)
    model.items.set_catalogue(torch.from_numpy(toy_dataset.content), ones)
    export_model(model, toy_dataset, run / "bundle", tokenizers=made.tokenizers())
    text = codes_section(run, Bundle.open(run / "bundle")).body
    health = made.made.kinds["parallel_codes"].health
    assert "there is no tree of them" in text and "<rect" not in text
    assert cells(text, 0) == [
        ["parallel_codes", "parallel", "opq of model", str(health.num_leaves), f"{health.num_collisions} of 30",
         str(health.largest_leaf), f"{health.relative_error:.3f}", f"{health.neighbours_kept:.1%}"]
    ]  # fmt: skip
    figures = zip(health.dead_codes, health.entropy_bits, health.max_bits, made.sizes["parallel_codes"], strict=True)
    assert [row[1] for row in cells(text, 1)] == [
        f"{bits:.2f} of {most:.2f}|{dead} of {size} codes unused" for dead, bits, most, size in figures
    ]


def test_accuracy_by_level_after_right_and_after_wrong_codes(run: Path) -> None:
    text = codes_section(run, None).body
    assert "No --bundle was given" in text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert captions == [
        "code 1: share of right ones, no code before it", "code 2: share of right ones; dashed: after wrong codes"
    ]  # fmt: skip
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    points = [re.findall(r'<circle class="(\w+)"[^>]*><title>(\d+): ([\d.]+)</title>', chart) for chart in charts]
    assert points[0] == [("ours", "10", "0.1"), ("ours", "20", "0.3"), ("ours", "30", "0.4")]
    assert [point[2] for point in points[1] if point[0] == "ours"] == ["0.2", "0.5", "0.7"]
    assert [point[2] for point in points[1] if point[0] == "other"] == ["0.01", "0.03", "0.02"]
    assert [chart.count("<polyline") for chart in charts] == [1, 2]


def test_the_page_holds_the_section_and_the_loss_of_the_codes(
    code_bundle: Path, run: Path, toy_dataset: Dataset, tmp_path: Path
) -> None:
    report(run, tmp_path / "report.html", toy_dataset.path, code_bundle)
    text = (tmp_path / "report.html").read_text()
    assert "<h2>Semantic IDs</h2><p" in text and "loss of the codes in training" in text
    assert re.findall(r"<title>(\d+): ([\d.]+)</title>", text)[:2] == [("5", "11.5"), ("25", "7.25")]
    assert "http" not in text and "url(" not in text and "<script" not in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_models_without_codes_and_runs_without_logs(toy_bundle: Path, run: Path, tmp_path: Path) -> None:
    assert "has no semantic IDs" in codes_section(run, Bundle.open(toy_bundle)).absent
    (tmp_path / "empty").mkdir()
    assert "It needs --bundle" in codes_section(tmp_path / "empty", None).absent
