"""Baselines for the evaluation: fitted, applied, and kept under the hash of the data.

Suffixes: S = rows of a split's slates, A = actions.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import recsys
from recsys import metrics, past_rates, recent
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.events import Requests
from recsys.files import atomic_file, sha256_file
from recsys.index import item_graph, text_neighbours, transitions
from recsys.index.item_graph import ItemGraph
from recsys.pipelines import baselines, targets
from recsys.pipelines.baselines import RANKING, RETRIEVAL, skip_reason
from recsys.pipelines.evaluation_ranking import SlateRows
from recsys.pipelines.item_graphs import item_graphs
from recsys.pipelines.targets import RankedTargets, histories_of, rank_all
from recsys.recent import recent_positives
from recsys.retrieval import memory
from recsys.retrieval.memory import MemoryRetriever, RecentItems

__all__ = ["MemoryScorer", "baseline_names", "cache_folder", "ranked_baseline", "slate_baseline"]

RECENT_ITEMS = 4
Arrays = dict[str, NDArray[np.generic]]


class MemoryScorer:
    """The retriever that needs no training, without a model beside it."""

    name = "memory"

    def __init__(self, dataset: Dataset, graph: ItemGraph) -> None:
        self._dataset = dataset
        self._retriever = MemoryRetriever(graph)

    def score(self, requests: Requests) -> NDArray[np.float32]:
        """[Q, I]; -inf for items that no recent item has as a neighbour."""
        histories = histories_of(self._dataset, requests)
        recent = recent_positives(histories, self._dataset.manifest.positive_mask, RECENT_ITEMS)
        scores_QI: NDArray[np.float32] = self._retriever.scores(RecentItems(recent)).numpy()
        return np.where(scores_QI > 0, scores_QI, np.float32(-np.inf))


def baseline_names(asked: str | None, dataset: Dataset) -> tuple[list[str], list[str]]:
    """The baselines to run, and a sentence for each that ``all`` leaves out.

    Args:
        asked: ``all``, or names separated by commas; None or empty = none.
        dataset: what they would run on.

    Raises:
        InputError: a name that there is not, or that cannot run on this dataset.
    """
    every = [*RETRIEVAL, *(name for name in ("memory",) if name not in RETRIEVAL), *RANKING]
    words = [word.strip() for word in (asked or "").split(",") if word.strip()]
    for word in words:
        if word not in (*every, "all"):
            raise InputError(f"--baselines: there is no {word!r}; choose all, or some of {','.join(every)}")
    chosen, notes = [], []
    for name in every:
        if name not in words and "all" not in words:
            continue
        reason = skip_reason(name, dataset)
        if reason is None:
            chosen.append(name)
        elif name in words:
            raise InputError(f"--baselines {name}: {reason}")
        else:
            notes.append(f"{reason}; left out")
    return chosen, notes


def ranked_baseline(
    name: str,
    dataset: Dataset,
    split: str,
    *,
    graph: ItemGraph | None = None,
    advance: Callable[[int], None] | None = None,
) -> RankedTargets:
    """Ranks of a retrieval baseline, from the cache where it was run before.

    Args:
        name: key of ``RETRIEVAL``, or memory.
        dataset: the prepared data.
        split: ``validation`` or ``test``.
        graph: item graph of training transitions for memory; built where None.
        advance: for a progress bar.
    """
    path = _cache_file(name, dataset, split)
    kept = _read(path, ("rank_Q", "reachable_Q", "tied_Q", "list_QK"))
    requests = dataset.requests(split)
    if kept is None or len(kept["rank_Q"]) != len(requests):
        if name == "memory" and name not in RETRIEVAL:
            ranked = rank_all(
                [MemoryScorer(dataset, graph or item_graphs(dataset)[0])], dataset, split, advance=advance
            )[0]
        else:
            ranked = rank_all([RETRIEVAL[name](dataset)], dataset, split, advance=advance)[0]
        _write(
            path,
            {
                "rank_Q": ranked.rank_Q,
                "reachable_Q": ranked.reachable_Q,
                "tied_Q": ranked.tied_Q,
                "list_QK": ranked.list_QK,
            },
        )
        return ranked
    if advance is not None:
        advance(len(requests))
    return RankedTargets(
        name,
        requests,
        kept["rank_Q"].astype(np.int64),
        kept["reachable_Q"].astype(np.bool_),
        kept["tied_Q"].astype(np.bool_),
        kept["list_QK"].astype(np.int64),
    )


def slate_baseline(name: str, dataset: Dataset, split: str, rows: SlateRows) -> NDArray[np.float32]:
    """[S, A] probabilities of a ranking baseline for the slate rows of a split, from the cache where it has them."""
    path = _cache_file(name, dataset, split)
    kept = _read(path, ("prob_SA",))
    shape = (len(rows.row_S), len(dataset.manifest.actions))
    if kept is not None and kept["prob_SA"].shape == shape:
        return kept["prob_SA"].astype(np.float32)
    predicted = RANKING[name](dataset).predict(dataset, 1 if split == "validation" else 2)
    prob_SA = np.full(shape, np.nan, dtype=np.float32)
    for action, action_name in enumerate(dataset.manifest.actions):
        if action_name in predicted:
            prob_SA[:, action] = predicted[action_name][rows.row_S]
    _write(path, {"prob_SA": prob_SA})
    return prob_SA


# -- the cache ---------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where results are kept: the environment variable RECSYS_CACHE, or ``~/.cache/recsys``."""
    folder = os.environ.get("RECSYS_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "recsys"


def _cache_file(name: str, dataset: Dataset, split: str) -> Path:
    code = _code_hash()[:12]
    return (
        cache_folder()
        / "baselines"
        / dataset.manifest.data_hash[:32]
        / f"{split}-{name}-{recsys.__version__}-{code}.npz"
    )


def _code_hash() -> str:
    """Hash of the code that makes these results, so that a changed baseline runs again."""
    modules = (targets, item_graph, transitions, text_neighbours, memory, recent, metrics, past_rates)
    files = [Path(str(module.__file__)) for module in modules]
    files += [*sorted(Path(str(baselines.__file__)).parent.glob("*.py")), Path(__file__)]
    return hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()


def _read(path: Path, names: Sequence[str]) -> Arrays | None:
    """Arrays of a kept file; None where there is none, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """Keep arrays; a folder that cannot be written costs the next run its time and nothing else."""
    try:
        with atomic_file(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
    except OSError:
        return
