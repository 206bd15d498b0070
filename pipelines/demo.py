"""``recsys demo``: the whole way on simulated data, then what came of it beside the best that anyone could do."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys.errors import InputError
from recsys.files import read_json, write_json
from recsys.pipelines.cli import run_command
from recsys.pipelines.console import stdout_console
from recsys.retrieval.recommender import Recommender

__all__ = ["demo"]

MARKER = "demo.json"
_NUM_EPOCHS = "6"
"""Fewer than `fit` chooses, so that the whole way takes under three minutes."""
_BASELINES = "all,-esasrec,-hstu"
"""One trained network beside the classical methods: each takes as long as the model itself."""
_NUM_USERS_SHOWN = 3
_NUM_EVENTS_SHOWN = 4
_NUM_HITS_SHOWN = 4
_SURFACE_SHOWN = "feed"


def demo(output: Path = Path("demo"), users: int = 1000, items: int = 600, seed: int = 0) -> None:
    """Simulate, prepare, fit, export, candidates, evaluate and report, each by its own command.

    It ends with a table of the model, the baselines and the ceilings that the simulated truth allows, and with three
    example users. An earlier demo in the same folder is replaced.

    Args:
        output: folder for everything that is made.
        users: simulated users.
        items: simulated items.
        seed: of the simulated world.

    Raises:
        InputError: the folder holds something else.
    """
    console = stdout_console()
    began = time.perf_counter()
    _start(output)
    with _baselines_kept_in(output / "cache"):
        for words in _commands(output, users, items, seed):
            console.print(f"\n$ recsys {shlex.join(words)}", style="bold")
            step_began = time.perf_counter()
            run_command(words)
            console.print(f"{time.perf_counter() - step_began:.1f} s", style="dim")
    evaluation = read_json(output / "eval.json")
    ceilings = read_json(output / "raw" / "truth" / "ceilings.json")["test"]
    console.print()
    console.print(figures_table(evaluation, ceilings))
    console.print()
    _show_users(console, Recommender.load(output / "bundle"))
    console.print(f"{time.perf_counter() - began:.0f} s in all; the report is {output / 'report.html'}")


def _start(output: Path) -> None:
    """An empty folder that says what it is; the remains of an earlier demo are removed."""
    if output.is_file():
        raise InputError(f"--output {output} is a file; give a folder")
    if output.is_dir() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise InputError(f"--output {output} holds something other than a demo; choose another folder")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / MARKER, {"made_by": "recsys demo"})


@contextmanager
def _baselines_kept_in(folder: Path) -> Iterator[None]:
    """Figures of baselines stay in the demo's folder, unless the caller has a place for them."""
    if "RECSYS_CACHE" in os.environ:
        yield
        return
    os.environ["RECSYS_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["RECSYS_CACHE"]


def _commands(output: Path, users: int, items: int, seed: int) -> list[list[str]]:
    raw, data, run, bundle = (str(output / name) for name in ("raw", "data", "run", "bundle"))
    sizes = ["--users", str(users), "--items", str(items), "--seed", str(seed)]
    tables = [
        word
        for name in ("interactions", "items", "users", "impressions")
        for word in (f"--{name}", f"{raw}/{name}.parquet")
    ]
    served = ["--bundle", bundle, "--data", data]
    return [
        ["simulate", "--output", raw, *sizes],
        ["prepare", *tables, "--output", data],
        ["fit", "--data.path", data, "--trainer.default_root_dir", run, "--trainer.max_epochs", _NUM_EPOCHS],
        ["export", "--checkpoint", f"{run}/checkpoints/best.ckpt", "--data", data, "--output", bundle, "--histories"],
        ["candidates", *served, "--output", str(output / "candidates"), "--k", "100", "--rank", "20"],
        ["evaluate", *served, "--split", "test", "--baselines", _BASELINES, "--json", str(output / "eval.json")],
        [
            "report",
            "--run",
            run,
            *served,
            "--evaluation",
            str(output / "eval.json"),
            "--output",
            str(output / "report.html"),
        ],
    ]


def figures_table(evaluation: dict[str, Any], ceilings: dict[str, Any]) -> Table:
    """Retrieval and ranking of the model, the baselines and the ceilings of the simulated truth.

    Args:
        evaluation: what ``recsys evaluate --json`` wrote.
        ceilings: the test part of the simulation's ``ceilings.json``.
    """
    ranking = evaluation.get("ranking", {})
    table = Table(
        *("", "NDCG@10", "R@10", *(f"AUC {action}" for action in ranking)),
        title="held-out targets and slates of simulated users; full ranking, history filtered",
        title_justify="left",
    )
    baselines = evaluation.get("baselines", {})
    retrieval = {name: row for name, row in evaluation["retrieval"].items() if name not in baselines}
    for name, row in retrieval.items():
        label = "this model" if name == "dense" else f"this model, {name}"
        table.add_row(label, *_cells(row, ranking if name == "dense" else {}, ranking), style="bold")
    for name, row in baselines.items():
        retrieves = "ndcg@10" in row
        table.add_row(name, *_cells(row if retrieves else {}, {} if retrieves else row, ranking))
    table.add_section()
    for name in ("posterior", "true"):
        table.add_row(f"ceiling: {name}", *_cells(ceilings[name]["retrieval"], ceilings[name]["ranking"], ranking))
    table.caption = "The posterior knows the world and each user's history; true also knows the user's hidden type."
    table.caption_justify = "left"
    table.columns[0].no_wrap = True
    return table


def _cells(retrieval: dict[str, Any], ranking: dict[str, Any], actions: Iterable[str]) -> list[str]:
    figures = [retrieval.get("ndcg@10"), retrieval.get("recall@10")]
    figures += [ranking.get(action, {}).get("auc") for action in actions]
    return ["–" if figure is None else f"{figure:.4f}" for figure in figures]


def _show_users(console: Console, rec: Recommender) -> None:
    """What some users did last, and what they are recommended."""
    histories = rec.bundle.histories
    assert histories is not None, "the demo exports its bundle with histories"
    title_of = dict(rec.items.select("item_id", "title").iter_rows())
    known = rec.user_ids
    for user in known.gather_every(max(1, len(known) // _NUM_USERS_SHOWN)).head(_NUM_USERS_SHOWN):
        events = histories.events.history(int(histories.users.index([user])[0]))
        did = []
        for place in range(max(0, len(events) - _NUM_EVENTS_SHOWN), len(events)):
            item_id = rec.items["item_id"][int(events.item[place])]
            names = [name for bit, name in enumerate(rec.bundle.vocabulary.actions) if events.yes[place] >> bit & 1]
            did.append(f"{title_of[item_id]} ({'+'.join(names) or 'seen'})")
        # The time of the last event stands for now: the simulated days are long past.
        page = rec.recommend(user_id=user, k=_NUM_HITS_SHOWN, at=int(events.timestamp[-1]), surface=_SURFACE_SHOWN)
        table = Table(f"recommended on {_SURFACE_SHOWN}", *rec.actions, title=f"{user}: … {', '.join(did)}")
        table.title_justify = "left"
        for hit in page:
            table.add_row(title_of[hit.item_id], *(f"{hit.actions[action]:.2f}" for action in rec.actions))
        console.print(table)
