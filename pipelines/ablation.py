"""What each option of `fit` is worth on a dataset, on validation alone, as a table under docs/results/.

``python -P -m recsys.pipelines.ablation --data.path DATA --name toys`` trains the default recipe and then one option
at a time, a few minutes each. Every training that ends is a line of a file in the work folder: run again with the same
flags, a killed ablation goes on, and only what failed is tried again. An option that gains is trained with more seeds.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import read_json, write_json
from recsys.pipelines.ablation_options import Option, chosen_options
from recsys.pipelines.ablation_run import code_hash
from recsys.pipelines.command_parser import CommandParser, one_line
from recsys.pipelines.console import stderr_console
from recsys.pipelines.recipe import chosen_recipe
from recsys.pipelines.results import record, write

__all__ = ["Job", "ablation", "main", "train_apart"]

_GAIN = 1.02
"""An option whose figure is so many times the default's is trained again with the other seeds."""
_OPTION, _LEARNED, _SUM = "recsys fit …", "NDCG@10", "NDCG@10 of the sum"
_DEFAULT = Option("default", {})
_SCRATCH = "run-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training, and all that its figures depend on."""

    data: str
    data_hash: str
    code_hash: str
    flags: dict[str, str]
    seed: int
    minutes: float
    epochs: int | None

    @property
    def key(self) -> str:
        """Equal for trainings that would give the same figures, wherever the dataset lies."""
        about = {name: value for name, value in asdict(self).items() if name != "data"}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def ablation(
    data: Path,
    name: str,
    options: str | None = None,
    seeds: str = "0,1,2",
    jobs: int = 2,
    max_minutes: float = 5.0,
    epochs: int | None = None,
    work: Path | None = None,
    root: Path = Path(),
) -> Path:
    """Train the default recipe and one option at a time, and write docs/results/ablation-NAME.json.

    Args:
        data: the prepared dataset.
        name: of the result.
        options: A,B: these alone; default all that change something of the dataset's recipe.
        seeds: the first is that of every training; an option that gains 2 % or more, and the default with it, is
            trained with the others too.
        jobs: trainings at once, each with one thread.
        max_minutes: of one training, validations included.
        epochs: most passes over the training events; default what `fit` chooses.
        work: folder of what is done already; default runs/ablation-NAME.
        root: root of the repository.

    Returns:
        The file written.

    Raises:
        InputError: bad input, or the default recipe itself does not train.
    """
    for flag, value in (("--jobs", jobs), ("--max-minutes", max_minutes), ("--epochs", epochs)):
        if value is not None and not value > 0:
            raise InputError(f"{flag} must be positive, got {value}")
    first, *others = _seeds(seeds)
    dataset = Dataset.open(data)
    if not len(dataset.requests("validation")):
        raise InputError(f"{data} has no validation targets to judge on; prepare it with another split")
    asked = None if options is None else [word for word in options.split(",") if word]
    tried = chosen_options(dataset, chosen_recipe(dataset).model, asked)
    code = code_hash()

    def job(option: Option, seed: int) -> Job:
        return Job(
            data=str(data), data_hash=dataset.manifest.data_hash, code_hash=code, flags=option.flags, seed=seed,
            minutes=max_minutes, epochs=epochs,
        )  # fmt: skip

    folder = work or Path("runs") / f"ablation-{name}"
    with _alone(folder):
        for left in folder.glob(f"{_SCRATCH}*"):  # of trainings that were killed
            shutil.rmtree(left, ignore_errors=True)
        done = _Done(folder / "runs.jsonl")
        _run_all([job(option, first) for option in (_DEFAULT, *tried)], done, folder, jobs)
        base = done.figures(job(_DEFAULT, first))
        if base is None:
            raise InputError(f"the default recipe does not train on {data}: {done.error(job(_DEFAULT, first))}")
        gaining = [option for option in tried if _gain(done.figures(job(option, first)), base) >= _GAIN]
        if gaining and others:
            repeated = [job(option, seed) for option in (_DEFAULT, *gaining) for seed in others]
            _run_all(repeated, done, folder, jobs)
    all_seeds = {option.name: [first, *others] for option in (_DEFAULT, *gaining)}
    rows = []
    for option in (_DEFAULT, *tried):
        pairs = [(job(option, seed), job(_DEFAULT, seed)) for seed in all_seeds.get(option.name, [first])]
        if not gaining:
            pairs = pairs[:1]
        rows.append(
            _row(option, [(done.figures(one), done.figures(base)) for one, base in pairs], done.error(pairs[0][0]))
        )
    columns = [_OPTION, "seeds", "epochs", _LEARNED, "Recall@10", "Recall@100", _SUM]
    columns += sorted({key for row in rows for key in row if key.startswith("AUC ")})
    columns += ["s/step", "× default", *(["failed"] if any("failed" in row for row in rows) else [])]
    notes = [
        f"Validation, one option changed at a time: full ranking of {dataset.num_items:,} items, history filtered, "
        f"ties against the target; at most {max_minutes:g} minutes a training on one thread, {jobs} at once; the epoch "
        "with the best NDCG@10 of the learned part. The weights of the sum are chosen on the same requests.",
        "× default is NDCG@10 by that of the default with the same seeds. One seed; where a figure was "
        f"{_GAIN - 1:.0%} above the default's, the mean of several.",
    ]
    if any(row.get("out of time") for row in rows):
        notes.append("* ended by the clock, before its last epoch or its patience did.")
    command = "python -P -m recsys.pipelines.ablation --data.path DATA --name " + name
    command += "" if epochs is None else f" --epochs {epochs}"
    command += "" if options is None else " --options …"
    title = f"One option of fit at a time: {name}"
    path = record(
        f"ablation-{name}", title, command, rows, columns, data_hash=dataset.manifest.data_hash, notes=notes, root=root
    )
    write(root)
    return path


def _seeds(words: str) -> list[int]:
    try:
        seeds = [int(word) for word in words.split(",")]
    except ValueError:
        raise InputError(f"--seeds must be whole numbers with commas between them, got {words!r}") from None
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {words} names one twice")
    return seeds


# -- running -----------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise InputError(f"--work {folder} cannot be written ({error.strerror}); give another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another ablation is at work in {folder}; wait for it, or give another --work") from None
        yield


class _Done:
    """Trainings that ended, by key, and their file of one line each; a line cut short by a kill counts for nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.results = path, dict[str, dict[str, Any]]()
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.results[row["key"]] = row
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")

    def add(self, job: Job, result: Mapping[str, Any]) -> None:
        row = {"key": job.key, **asdict(job), **result}
        self.results[job.key] = row
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def figures(self, job: Job) -> dict[str, Any] | None:
        return self.results.get(job.key, {}).get("figures")

    def error(self, job: Job) -> str | None:
        return self.results.get(job.key, {}).get("error")


def _run_all(jobs: Sequence[Job], done: _Done, folder: Path, at_once: int) -> None:
    """Run what has no figures yet; what fails is recorded and does not stop the rest."""
    console = stderr_console()
    waiting = [job for job in jobs if done.figures(job) is None]
    pool = ThreadPoolExecutor(at_once)
    try:
        running = {pool.submit(train_apart, job, folder): job for job in waiting}
        for number, future in enumerate(as_completed(running), 1):
            job, result = running[future], future.result()
            done.add(job, result)
            said = result.get("error") or f"NDCG@10 {result['figures'][_LEARNED]:.4f}"
            shown = _words(job.flags) or "default"
            console.print(f"{number} of {len(waiting)}: {shown}, seed {job.seed}: {said}", markup=False, soft_wrap=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def train_apart(job: Job, folder: Path, *, module: str = "recsys.pipelines.ablation_run") -> dict[str, Any]:
    """Run a job in a process of its own.

    Returns:
        ``figures``, or ``error`` with a line that says what went wrong.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        asked, answer = Path(scratch) / "job.json", Path(scratch) / "answer.json"
        write_json(asked, asdict(job))
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        most = 600 + 3 * 60 * job.minutes  # opening the data and choosing the weights come on top
        with (Path(scratch) / "said").open("w+", encoding="utf-8", errors="replace") as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(asked), str(answer)],
                stdin=subprocess.PIPE, stdout=said, stderr=said, env={**os.environ, **threads},
            )  # fmt: skip
            try:
                code = process.wait(timeout=most)
            except subprocess.TimeoutExpired:
                return {"error": f"was stopped after {most / 60:.0f} minutes"}
            finally:
                process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
            if answer.exists():
                result: dict[str, Any] = read_json(answer)
                return result
            said.seek(0)
            lines = said.read().strip().splitlines()
        return {"error": f"its process ended with code {code}" + (f": {lines[-1][:200]}" if lines else "")}


# -- the table ---------------------------------------------------------------------------------------------------------


def _words(flags: Mapping[str, str]) -> str:
    return " ".join(f"{flag} {value}" for flag, value in flags.items())


def _judged(figures: Mapping[str, Any]) -> list[float]:
    """What an option may gain in: NDCG@10 of the learned part and of the sum, and the mean AUC."""
    auc = [value for key, value in figures.items() if key.startswith("AUC ")]
    return [figures[_LEARNED], figures[_SUM] or math.nan, sum(auc) / len(auc) if auc else math.nan]


def _gain(figures: Mapping[str, Any] | None, base: Mapping[str, Any]) -> float:
    if figures is None:
        return 0.0
    pairs = zip(_judged(figures), _judged(base), strict=True)
    return max((ours / other for ours, other in pairs if other > 0 and not math.isnan(ours)), default=0.0)


def _row(option: Option, pairs: Sequence[tuple[Any, Any]], error: str | None) -> dict[str, Any]:
    """Means over the seeds for which both the option and the default have figures."""
    both = [(ours, base) for ours, base in pairs if ours is not None and base is not None]
    shown = _words(option.flags) or "(defaults)"
    if not both:
        return {_OPTION: shown, "seeds": 0, "failed": error or "has no figures"}
    row: dict[str, Any] = {_OPTION: shown, "seeds": len(both)}
    if any(ours["out of time"] for ours, _ in both):
        row |= {_OPTION: f"{shown} *", "out of time": True}
    shared = [key for key in both[0][0] if all(ours.get(key) is not None for ours, _ in both) and key != "out of time"]
    row |= {key: _mean([ours[key] for ours, _ in both]) for key in shared}
    base_ndcg = _mean([base[_LEARNED] for _, base in both])
    return row | {"epochs": round(row["epochs"]), "× default": row[_LEARNED] / base_ndcg if base_ndcg else None}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(argv: Sequence[str], run: Callable[..., object] = ablation) -> int:
    """Run one ablation, in the root of the repository."""
    parser = CommandParser(prog="ablation", exit_on_error=False, allow_abbrev=False, print_config=None)
    parser.add_argument("--data.path", type=Path, required=True, help="the prepared dataset")
    parser.add_function_arguments(ablation, as_group=False, skip={"data", "root"})
    try:
        values = dict(parser.parse_args(list(argv)).as_dict())
        run(values.pop("data")["path"], **values)
    except argparse.ArgumentError as error:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        sys.stderr.write(f"{one_line(str(error), prog='ablation', flags=flags)}\n")
        return 2
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
