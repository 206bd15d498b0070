"""The command ``export-programs``: a bundle's model as programs that other runtimes run.

Suffixes: B = requests, L = events, C = candidates, A = actions.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from recsys.bundle import Bundle
from recsys.errors import InputError
from recsys.events import History
from recsys.files import atomic_folder, write_json
from recsys.past_rates import past_width
from recsys.pipelines.console import stdout_console
from recsys.programs import CandidateScorer, Port, QueryTower

__all__ = ["PROGRAMS_FILE", "Run", "export_programs", "history_tensors", "largest_difference", "load_program"]

PROGRAMS_FILE = "programs.json"
TOWER, SCORER = "query_tower", "candidate_scorer"
TOLERANCE = 1e-5
"""Largest difference of a query's element, relative to 1 or to its size, and of a probability."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""A loaded program: inputs by name to outputs by name."""


def export_programs(bundle: Path, output: Path, onnx: bool = False) -> None:
    """Write the model of a bundle as programs of plain tensors, for runtimes other than this package.

    Args:
        bundle: what `recsys export` wrote.
        output: folder to write: query_tower.pt2, candidate_scorer.pt2 and programs.json, which says how to call them.
        onnx: write .onnx files beside them (packages onnx, onnxscript and onnxruntime).
    """
    if onnx:
        for name in _ONNX_PACKAGES:
            if importlib.util.find_spec(name) is None:
                raise InputError(f"--onnx needs {name}; install it with: pip install {' '.join(_ONNX_PACKAGES)}")
    opened = Bundle.open(bundle)
    tower = QueryTower(opened.model).eval()
    programs: dict[str, QueryTower | CandidateScorer] = {TOWER: tower}
    if opened.model.action_head is not None:
        programs[SCORER] = CandidateScorer(opened.model, opened.calibration).eval()
    suffixes = ("pt2", "onnx") if onnx else ("pt2",)
    with atomic_folder(output, marker=PROGRAMS_FILE) as folder:
        for name, program in programs.items():
            _write(program, folder / name, onnx)
        worst = {}
        for suffix in suffixes:
            runs = {name: load_program(folder / f"{name}.{suffix}") for name in programs}
            worst[suffix] = largest_difference(opened, runs[TOWER], runs.get(SCORER))
            if not worst[suffix] <= TOLERANCE:
                raise InputError(
                    f"the .{suffix} programs differ from the model by {worst[suffix]:.1e}, more than {TOLERANCE:.0e}; "
                    "nothing was written, serve the bundle instead"
                )
        names = sorted(file.name for file in folder.iterdir())
        write_json(folder / PROGRAMS_FILE, _description(opened, programs, names))
    said = f"largest difference from the model {max(worst.values()):.1e}"
    stdout_console().print(f"programs {output}: {', '.join(names)}; {said}", markup=False)


def load_program(path: Path) -> Run:
    """A program by its file: ``.pt2`` by ``torch.export.load``, ``.onnx`` by onnxruntime on the CPU.

    A ``.pt2`` file is code of whoever wrote it: load only your own.
    """
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_outputs()]

        def run_onnx(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
            return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, found, strict=True)}

        return run_onnx
    with _quiet():
        module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = module(**inputs)
        return found

    return run


def history_tensors(histories: Sequence[History]) -> dict[str, Tensor]:
    """What a query tower reads of histories: events padded on the right to the longest."""
    columns = max(1, *map(len, histories))
    tables = {}
    for name in ("item", "yes", "known", "timestamp", "time_known", "surface"):
        table_BL = torch.zeros(len(histories), columns, dtype=torch.bool if name == "time_known" else torch.int64)
        for row_L, history in zip(table_BL, histories, strict=True):
            row_L[: len(history)] = torch.from_numpy(np.ascontiguousarray(getattr(history, name)))
        tables["time" if name == "timestamp" else name] = table_BL
    return {**tables, "length": torch.tensor([len(history) for history in histories])}


@torch.no_grad()
def largest_difference(bundle: Bundle, tower: Run, scorer: Run | None, *, seed: int = 0) -> float:
    """How far programs are from the bundle's model, on made histories of every kind of length.

    Returns:
        The largest difference of a probability or of a query's element (in units of its size where that is above 1).
    """
    config, rng = bundle.model.config, np.random.default_rng(seed)
    lengths = (0, 1, 2, config.window - 1, config.window, config.window + 1, 3 * config.window + 2)
    worst = 0.0
    for group in (lengths, lengths[1:2], lengths[:1]):
        histories = [_made_history(bundle, length, rng) for length in group]
        at_B = torch.tensor([int(h.timestamp[-1]) if len(h) else bundle.vocabulary.max_timestamp for h in histories])
        at_B = at_B + torch.from_numpy(rng.integers(0, 10**6, len(group)))
        surface_B = torch.from_numpy(rng.integers(0, config.num_surfaces, len(group)))
        user = {}
        if config.user_dim:
            user["user"] = torch.from_numpy(rng.normal(size=(len(group), config.user_dim)).astype(np.float32))
        state = tower({**history_tensors(histories), "at": at_B, "at_surface": surface_B, **user})
        query_BD = state.pop("query")
        states = bundle.model.encode(histories, user_BK=user.get("user"))
        expected_BD = bundle.model.query(states, at_B, surface_B)
        worst = max(worst, float(((query_BD - expected_BD).abs() / expected_BD.abs().clamp_min(1)).max()))
        if scorer is None:
            continue
        for num_candidates in (1, 7):
            item_BC = torch.from_numpy(rng.integers(0, config.num_items, (len(group), num_candidates)))
            surface_BC = surface_B[:, None].expand_as(item_BC).contiguous()
            feature_BCF = bundle.features().of(states, item_BC, at_B, surface_BC)
            logits = bundle.model.rank(states, item_BC, at_B, surface_BC, feature_BCF)
            more = user if feature_BCF is None else {**user, "features": feature_BCF}
            found = scorer({**state, "item": item_BC, "at": at_B, "at_surface": surface_BC, **more})
            worst = max(worst, float((found["probability"] - bundle.calibration.probabilities(logits)).abs().max()))
    return worst


def _made_history(bundle: Bundle, length: int, rng: np.random.Generator) -> History:
    config = bundle.model.config
    every = (1 << config.num_actions) - 1
    yes = rng.integers(0, every + 1, length)
    gaps = rng.choice([0, 40, 4_000, 400_000], length)
    return History(
        item=rng.integers(-1, config.num_items, length),
        timestamp=bundle.vocabulary.max_timestamp - int(gaps.sum()) + np.cumsum(gaps),
        yes=yes,
        known=yes | rng.integers(0, every + 1, length),
        surface=rng.integers(0, config.num_surfaces, length),
        time_known=rng.random(length) < 0.8,
    )


def _write(program: QueryTower | CandidateScorer, path: Path, onnx: bool) -> None:
    """Trace a program with made inputs, whose sizes may differ from call to call, and save it."""
    traced = {"requests": 3, "events": 7, "candidates": 5}
    sizes = {name: Dim(name, min=1) for name in traced}
    example, shapes = {}, {}
    for port in program.inputs:
        dims = [traced[size] if isinstance(size, str) else size for size in port.dims]
        example[port.name] = torch.zeros(dims, dtype=getattr(torch, port.dtype))
        shapes[port.name] = {axis: sizes[size] for axis, size in enumerate(port.dims) if isinstance(size, str)}
    with _quiet(), torch.no_grad():
        exported = torch.export.export(program, (), example, dynamic_shapes=shapes, strict=False)
        torch.export.save(exported, path.with_suffix(".pt2"))
        if onnx:
            converted = torch.onnx.export(
                exported,
                dynamo=True,
                verbose=False,
                input_names=[port.name for port in program.inputs],
                output_names=[port.name for port in program.outputs],
            )
            assert converted is not None
            converted.save(path.with_suffix(".onnx"))


def _description(
    bundle: Bundle, programs: Mapping[str, QueryTower | CandidateScorer], files: Sequence[str]
) -> dict[str, Any]:
    """What a caller without this package needs to know."""
    config, words = bundle.model.config, bundle.vocabulary
    return {
        "format": "recsys-programs",
        "format_version": 1,
        "model_hash": bundle.manifest["model_hash"],
        "data_hash": bundle.data_hash,
        "torch": torch.__version__,
        "num_items": config.num_items,
        "actions": list(words.actions),
        "surfaces": list(words.surfaces),
        "clock": words.clock,
        "window": config.window,
        "stride": config.stride,
        "positive_mask": config.positive_mask,
        "user_content": bundle.user_blocks,
        "features": {
            "past_rates": past_width(config.num_actions) if config.past_rates else 0,
            "memory_terms": list(config.relations) if config.memory_features else [],
        },
        "programs": {
            name: {
                "files": [file for file in files if file.startswith(f"{name}.")],
                "inputs": [_port(port) for port in program.inputs],
                "outputs": [_port(port) for port in program.outputs],
            }
            for name, program in programs.items()
        },
    }


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.dims), "meaning": port.meaning}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the exporters on their own insides."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
