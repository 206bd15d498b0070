"""``recsys sweep``: a search over the settings of `fit` that looks at validation alone and goes on when killed."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json as json_text
import math
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import check_file_output, write_json
from recsys.pipelines.command_parser import CommandParser, one_line
from recsys.pipelines.console import stderr_console, stdout_console

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from recsys.pipelines.sweep_space import Setting
    from recsys.pipelines.sweep_trial import Figures

__all__ = ["main", "sweep"]

_PROG = "recsys sweep"
_PASSED_ON = ("--model.", "--data.", "--trainer.")
_NUM_RANDOM = 8
"""Trials, the default among them, before the sampler learns from what it saw."""
_NUM_SHOWN = 5


def sweep(
    data: Path,
    trials: int = 24,
    hours: float | None = None,
    study: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    json: Path | None = None,
    fixed: Sequence[str] = (),
) -> dict[str, Any]:
    """Tune the settings of `fit` on validation and print the winning command.

    The first trial is the recipe that `fit` would choose. Every trial is a training by `fit` itself; its best epoch
    counts, by NDCG@10, times 2 AUC − 1 of the actions where the data has slates. Trials whose figures are below the
    median of the others at the same epoch are stopped. The test split is never looked at. Everything is kept in a
    study: run again with the same flags, a killed sweep goes on where it was. Any flag of `fit` that begins with
    --model., --data. or --trainer. may be given too: it holds in every trial and is not tuned.

    Args:
        data: the prepared dataset.
        trials: trials of the whole study, finished, stopped and failed ones together.
        hours: no new trial starts once the study has been running for so long, all its runs together.
        study: SQLite file of the study; default runs/sweep-HASH.db, HASH being the dataset's.
        epochs: most passes over the training events of a trial; default what `fit` chooses.
        seed: of the search; the trainings have --data.seed.
        json: also write every trial and the winning command to this file.
        fixed: flags of `recsys fit`, such as --model.dim=64, that hold in every trial and are not tuned.

    Raises:
        InputError: bad input, a missing extra, or no trial that came to an end.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("sweep needs optuna; pip install 'recsys[sweep]'") from None
    from recsys.pipelines.data_module import PreparedData
    from recsys.pipelines.sweep_space import search_space

    for flag, value in (("--trials", trials), ("--hours", hours), ("--epochs", epochs)):
        if value is not None and not value > 0:
            raise InputError(f"{flag} must be positive, got {value}")
    if json is not None:
        check_file_output(json, "--json")
    given = _as_mapping(fixed)
    prepared = PreparedData(str(data))
    dataset = prepared.dataset
    if not len(dataset.requests("validation")):
        raise InputError(f"{data} has no validation targets to tune on; prepare it with another split")
    if epochs is not None:
        given["--trainer.max_epochs"] = str(epochs)
    space = search_space(prepared, given)
    path = Path("runs") / f"sweep-{dataset.manifest.data_hash[:12]}.db" if study is None else Path(study)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _alone(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = _open_study(path, _name(dataset, given, space, seed), _spared_epochs(epochs))
        folder = path.with_name(path.name + ".trial")
        _search(found, dataset, folder, space, given, trials=trials, hours=hours, seed=seed)
        result = _result(found, dataset, space, given, data=data, seed=seed)
    if json is not None:
        write_json(json, result)
    _say(result)
    return result


def main(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: the words, ``sweep`` the first of them.

    Raises:
        InputError: bad input; one line.
    """
    ours, fixed = _split(argv[1:])
    parser = CommandParser(
        prog=_PROG,
        description="Tune the settings of `recsys fit` on validation and print the winning command. Flags of `fit` "
        "that begin with --model., --data. or --trainer. hold in every trial and are not tuned.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--data.path", type=Path, required=True, help="the prepared dataset")
    parser.add_function_arguments(sweep, as_group=False, skip={"data", "fixed"})
    try:
        values = dict(parser.parse_args(ours).as_dict())
    except argparse.ArgumentError as error:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise InputError(one_line(str(error), prog=_PROG, flags=flags)) from None
    sweep(values.pop("data")["path"], fixed=fixed, **values)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own words, and flags of `fit` as FLAG=VALUE.

    >>> _split(["--trials", "3", "--model.dim", "64", "--data.path=data", "--data.seed=1"])
    (['--trials', '3', '--data.path=data'], ['--model.dim=64', '--data.seed=1'])
    """
    ours: list[str] = []
    fixed: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith(_PASSED_ON) or word.split("=")[0] == "--data.path":
            ours.append(word)
        elif "=" in word:
            fixed.append(word)
        else:
            fixed.append(f"{word}={next(rest, '')}")
    return ours, fixed


def _as_mapping(fixed: Sequence[str]) -> dict[str, str]:
    given = dict(word.split("=", 1) for word in fixed)
    for flag in ("--trainer.default_root_dir", "--trainer.callbacks", "--trainer.logger"):
        if flag in given:
            raise InputError(f"{flag} cannot be given: every trial has a folder of its own and keeps nothing")
    return given


# -- the study ---------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One sweep at a time for a study, so that a trial without an end is known to be one of a killed process."""
    if path.is_dir():
        raise InputError(f"--study {path} is a folder; give a file")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as stream:
            if stream.read(16) != b"SQLite format 3\x00":
                raise InputError(f"--study {path} is no SQLite file; give another, or none")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError as error:
        raise InputError(f"--study {path} cannot be written ({error.strerror}); give another file") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another sweep is at work on {path}; wait for it, or give another --study") from None
        yield


def _name(dataset: Dataset, given: Mapping[str, str], space: Sequence[Setting], seed: int) -> str:
    """Of a study: equal where trials can be compared, i.e. for the same data, flags and ranges."""
    text = json_text.dumps([sorted(given.items()), [asdict(setting) for setting in space], seed])
    return f"{dataset.manifest.data_hash[:12]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _spared_epochs(epochs: int | None) -> int:
    """The first epoch after which a trial may be stopped: the third, or half of a short training.

    >>> _spared_epochs(None), _spared_epochs(3), _spared_epochs(1)
    (3, 2, 1)
    """
    return 3 if epochs is None else min(3, (epochs + 1) // 2)


def _open_study(path: Path, name: str, spared_epochs: int) -> Study:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=spared_epochs),
        )
    except (SQLAlchemyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"--study {path} cannot be used ({reason}); give another file, or none") from None
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process was killed
    return study


def _counted(study: Study) -> list[FrozenTrial]:
    """Trials that came to an end of their own. What a killed one tried is drawn again: the sampler skips failures."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs
    ]


# -- the search --------------------------------------------------------------------------------------------------------


def _search(
    study: Study,
    dataset: Dataset,
    folder: Path,
    space: Sequence[Setting],
    given: Mapping[str, str],
    *,
    trials: int,
    hours: float | None,
    seed: int,
) -> None:
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    console = stderr_console()
    done = _counted(study)
    if done:
        console.print(f"goes on with a study of {len(done)} trials")
    while len(done) < trials:
        spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in done)
        if hours is not None and spent >= hours * 3600:
            console.print(f"no more trials: the study has been running for {spent / 3600:.2f} hours")
            return
        # A function of seed and place, so that a resumed search draws what an undisturbed one would have drawn.
        study.sampler = TPESampler(seed=seed * 1_000_003 + len(done), n_startup_trials=_NUM_RANDOM)
        if not done and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial({setting.flag.rpartition(".")[2]: setting.default for setting in space})
        trial = study.ask()
        settings = {setting.flag: setting.draw(trial) for setting in space}
        said = _run(study, trial, dataset, folder, settings, given, is_first=not done)
        done = _counted(study)
        shown = ", ".join(f"{flag.rpartition('.')[2]} {value}" for flag, value in settings.items())
        console.print(f"trial {len(done)} of {trials}: {said}; {shown}", markup=False, soft_wrap=True)


def _run(
    study: Study,
    trial: Trial,
    dataset: Dataset,
    folder: Path,
    settings: Mapping[str, Any],
    given: Mapping[str, str],
    *,
    is_first: bool,
) -> str:
    """Run one trial, record what came of it, and say it in a few words."""
    from optuna.trial import TrialState

    from recsys.pipelines.sweep_trial import run_trial

    def hopeless(epoch: int, figures: Figures) -> bool:
        if not math.isfinite(figures.objective):
            return True
        trial.report(figures.objective, epoch)
        return trial.should_prune()

    trial.set_user_attr("settings", dict(settings))
    began = time.perf_counter()
    try:
        figures, num_epochs, is_pruned = run_trial(
            dataset, folder, [f"{flag}={value}" for flag, value in {**settings, **given}.items()], hopeless
        )
        if not math.isfinite(figures.objective):
            raise ArithmeticError("the figures are not finite")
    except (InputError, argparse.ArgumentError) as error:
        if is_first:  # the recipe itself does not run: a flag is wrong, which no other trial can mend
            study.tell(trial, state=TrialState.FAIL)
            raise
        return _failed(study, trial, error, began)
    except (ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
        return _failed(study, trial, error, began)
    trial.set_user_attr("figures", {"ndcg@10": figures.ndcg, "auc": figures.auc})
    trial.set_user_attr("objective", figures.objective)
    trial.set_user_attr("epochs", num_epochs)
    trial.set_user_attr("seconds", time.perf_counter() - began)
    if is_pruned:
        study.tell(trial, state=TrialState.PRUNED)
        return f"stopped after epoch {num_epochs} at {figures.objective:.4f}"
    study.tell(trial, figures.objective)
    return f"{figures.objective:.4f}"


def _failed(study: Study, trial: Trial, error: BaseException, began: float) -> str:
    from optuna.trial import TrialState

    line = " ".join(str(error).split())[:300] or type(error).__name__
    trial.set_user_attr("error", line)
    trial.set_user_attr("seconds", time.perf_counter() - began)
    study.tell(trial, state=TrialState.FAIL)
    return f"failed: {line}"


# -- what came of it ---------------------------------------------------------------------------------------------------


def _result(
    study: Study, dataset: Dataset, space: Sequence[Setting], given: Mapping[str, str], *, data: Path, seed: int
) -> dict[str, Any]:
    rows = [_row(number, trial) for number, trial in enumerate(_counted(study))]
    ended = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["objective"])
    if not ended:
        line = next((row["error"] for row in rows if "error" in row), "none was run")
        raise InputError(f"none of the {len(rows)} trials came to an end with figures: {line}")
    best = ended[0]
    flags = [f"{flag}={value}" for flag, value in {**best["settings"], **given}.items()]
    ranks_slates = bool(best["auc"])
    return {
        "objective": "ndcg@10 × (2 auc − 1)" if ranks_slates else "ndcg@10",
        "protocol": {"split": "validation", "data_hash": dataset.manifest.data_hash, "seed": seed},
        "space": [asdict(setting) for setting in space],
        "fixed": dict(given),
        "trials": rows,
        "best": best,
        "command": ["recsys", "fit", "--data.path", str(data), *flags],
    }


def _row(number: int, trial: FrozenTrial) -> dict[str, Any]:
    found = trial.user_attrs
    row = {"number": number, "state": trial.state.name.lower(), "settings": found["settings"]}
    row |= {name: found[name] for name in ("objective", "epochs", "seconds", "error") if name in found}
    return row | found.get("figures", {})


def _say(result: Mapping[str, Any]) -> None:
    console = stdout_console()
    rows = result["trials"]
    ended = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["objective"])
    shown = ended[:_NUM_SHOWN] + [row for row in ended[_NUM_SHOWN:] if row["number"] == 0]
    actions = list(result["best"]["auc"])
    names = [setting["flag"] for setting in result["space"]]
    table = Table(
        "", *("default" if row["number"] == 0 else f"trial {row['number'] + 1}" for row in shown), title_justify="left"
    )
    table.title = f"best trials by {result['objective']} of validation"
    table.add_row("objective", *(f"{row['objective']:.4f}" for row in shown), style="bold")
    table.add_row("NDCG@10", *(f"{row['ndcg@10']:.4f}" for row in shown))
    for action in actions:
        table.add_row(f"AUC {action}", *(f"{row['auc'].get(action, math.nan):.4f}" for row in shown))
    table.add_section()
    for name in names:
        table.add_row(name.rpartition(".")[2], *(str(row["settings"].get(name, "")) for row in shown))
    table.add_section()
    table.add_row("epochs", *(str(row["epochs"]) for row in shown))
    table.add_row("seconds", *(f"{row['seconds']:.0f}" for row in shown))
    console.print(table)
    counts = [(sum(row["state"] == state for row in rows), name) for state, name in _STATES]
    console.print("trials: " + ", ".join(f"{count} {name}" for count, name in counts if count))
    console.print("the winner:")
    console.print(f"  {shlex.join(result['command'])}", markup=False)


_STATES = (("complete", "ended"), ("pruned", "stopped early"), ("fail", "failed"))
