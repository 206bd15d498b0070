"""The command ``report``: one HTML page about a run, complete in itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recsys
from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import atomic_file, check_file_output, read_json
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.report_codes import codes_section
from recsys.pipelines.report_examples import examples_section
from recsys.pipelines.report_page import Section, page, table
from recsys.pipelines.report_sections import (
    calibration_section,
    curves_section,
    ranking_section,
    retrieval_section,
    segments_section,
)
from recsys.retrieval.recommender import Recommender

__all__ = ["report"]


def report(
    run: Path, output: Path, data: Path | None = None, bundle: Path | None = None, evaluation: Path | None = None
) -> None:
    """Write one HTML page about a run: curves, semantic IDs, figures beside baselines, calibration, example users.

    The page holds everything it shows and fetches nothing. What is not given is left out, and the page says so.

    Args:
        run: folder of a run of `recsys fit`.
        output: the HTML file to write.
        data: the prepared dataset, for calibration and example users.
        bundle: the exported bundle, for semantic IDs, calibration and example users.
        evaluation: what `recsys evaluate --json` wrote.
    """
    if not run.is_dir():
        raise InputError(f"--run {run} is no folder; give one that `recsys fit` wrote")
    check_file_output(output, "--output")
    if not any((run / name).exists() for name in ("config.yaml", "logs", "checkpoints")):
        raise InputError(f"--run {run} holds no run; give a folder that `recsys fit` wrote")
    result = None if evaluation is None else _evaluation(evaluation)
    dataset = None if data is None else Dataset.open(data)
    rec = None if bundle is None else Recommender(Bundle.open(bundle))
    if dataset is not None:
        if rec is not None:
            rec.bundle.check_data(dataset.manifest.data_hash, dataset.path)
        evaluated = None if result is None else result.get("protocol", {}).get("data_hash")
        if evaluated not in (None, dataset.manifest.data_hash):
            raise InputError(
                f"--evaluation {evaluation} is of other data than {data} (data hash {str(evaluated)[:12]}, the "
                f"dataset's {dataset.manifest.data_hash[:12]}); evaluate again"
            )
    sections: list[Section] = []
    with progress_bar("report", 5, unit="parts") as advance:
        if dataset is not None:
            sections.append(_about(dataset, None if rec is None else rec.bundle))
        sections.append(curves_section(run))
        advance(1)
        sections.append(codes_section(run, None if rec is None else rec.bundle))
        advance(1)
        if result is None:
            sections.append(Section("Figures", absent="No --evaluation was given, so there are no figures to show."))
        else:
            sections += [retrieval_section(result), ranking_section(result), segments_section(result)]
        advance(1)
        for title, make in (("Calibration", _calibration), ("Example users", examples_section)):
            if rec is None or dataset is None:
                sections.append(Section(title, absent="It needs both --bundle and --data."))
            else:
                sections.append(make(rec, dataset))
            advance(1)
    where = f"run {run.resolve().name}"
    subtitle = where if dataset is None else f"{where}, data {dataset.manifest.data_hash[:12]}"
    text = page("Recommender report", subtitle, sections, f"Written by recsys {recsys.__version__}.")
    with atomic_file(output) as partial:
        partial.write_text(text, encoding="utf-8")
    stdout_console().print(f"report {output}: {len(text) / 1000:,.0f} kB, open it in a browser")


def _evaluation(path: Path) -> dict[str, Any]:
    result = read_json(path)
    if not isinstance(result, dict) or not ({"retrieval", "ranking"} & set(result)):
        raise InputError(f"--evaluation {path} holds no figures; give a file that `recsys evaluate --json` wrote")
    return result


def _calibration(rec: Recommender, dataset: Dataset) -> Section:
    return calibration_section(rec.bundle, dataset)


def _about(dataset: Dataset, bundle: Bundle | None) -> Section:
    """What the model was trained on, and what it is."""
    manifest = dataset.manifest
    rows = [
        ["users, items, events", f"{dataset.num_users:,}, {dataset.num_items:,}, {dataset.num_events:,}"],
        ["actions", ", ".join(manifest.actions) or "none"],
        ["split", str(manifest.split["kind"])],
        ["clock", manifest.clock],
    ]
    if dataset.slates is not None:
        rows.append(["slates", f"{len(dataset.slates):,}"])
    if bundle is not None:
        config = bundle.model.config
        size = sum(parameter.numel() for parameter in bundle.model.parameters())
        rows.append(["model", f"width {config.dim}, window {config.window} events, {size:,} parameters"])
        rows.append(["retrievers", ", ".join(bundle.retrievers)])
    rows += [["note", text] for text in manifest.notes]
    return Section("Data and model", table(["", ""], rows, text=(1,)))
