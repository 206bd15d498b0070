"""What baselines made, kept under the hash of the data: a changed dataset, setting or line of code never finds it."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import recsys
from recsys.files import atomic_file, sha256_file

if TYPE_CHECKING:
    from recsys.dataset import Dataset

__all__ = ["cache_entry", "cache_folder", "code_files", "read_arrays", "write_arrays"]

_SHARED = (
    *(f"index/{name}.py" for name in ("edge_table", "graph_search", "item_graph", "relations", "text_neighbours")),
    "index/transitions.py",
    "index/walks.py",
    "retrieval/memory.py",
    "recsys/metrics.py",
    "recsys/recent.py",
    "pipelines/baselines/*.py",
    "pipelines/evaluation_baselines.py",
    "pipelines/item_graphs.py",
    "pipelines/targets.py",
)
"""What the ranks of every baseline depend on."""
_TRAINING = (
    "kernels/*.py",
    "recsys/*.py",
    *(f"pipelines/{name}.py" for name in ("data_module", "fit", "recipe", "unified_module")),
)
"""What the weights of a network depend on besides."""


def cache_folder() -> Path:
    """Where results are kept: the environment variable RECSYS_CACHE, or ``~/.cache/recsys``."""
    folder = os.environ.get("RECSYS_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "recsys"


def code_files(*, trains: bool) -> list[Path]:
    """The files that decide what a baseline makes; ``trains`` adds those of the training of a network."""
    package = Path(str(recsys.__file__)).parent
    # Our own folder's files stand beside links to the other folders.
    places = [pattern.removeprefix("recsys/") for pattern in (*_SHARED, *(_TRAINING if trains else ()))]
    return sorted({file for place in places for file in package.glob(place)})


def cache_entry(dataset: Dataset, what: str, name: str, settings: Mapping[str, Any], *, trains: bool = False) -> Path:
    """The place of one result.

    Args:
        dataset: the prepared data.
        what: ``test`` or whatever else the result is of.
        name: of the baseline.
        settings: all that it was asked for and that the code does not fix.
        trains: whether it trains a network.
    """
    code = [sha256_file(file) for file in code_files(trains=trains)]
    key = hashlib.sha256(json.dumps([dict(settings), code], sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "baselines" / dataset.manifest.data_hash[:32]
    return folder / f"{what}-{name}-{recsys.__version__}-{key[:16]}"


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Arrays of a kept file; None where there is none, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays; a folder that cannot be written costs the next run its time and nothing else."""
    try:
        with atomic_file(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
    except OSError:
        return
