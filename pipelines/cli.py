"""The console script ``recsys``: one table of commands, each a typed function in the module it names.

A command's flags are its function's parameters: ``min_user_events`` is ``--min-user-events``, ``from_`` is ``--from``,
a ``bool`` that is False is a switch. Only the chosen command's module is imported. A command's name may be two words;
the longer name wins, so that ``rerank`` and ``rerank fit`` are two commands.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from recsys.errors import InputError

__all__ = ["COMMANDS", "Command", "main", "run_command"]


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand and where its function lives."""

    module: str
    function: str
    summary: str
    example: str
    takes_argv: bool = False
    """Whether the function parses the command line itself (the training commands)."""
    positional: bool = False
    """Whether parameters without a default are words of their own instead of flags."""

    def load(self) -> Callable[..., object]:
        """The function, importing its module."""
        function: Callable[..., object] = getattr(importlib.import_module(self.module), self.function)
        return function


def _lightning(name: str, summary: str, flags: str = "") -> Command:
    example = f"recsys {name} --data.path data{flags}"
    return Command("recsys.pipelines.fit", "main", summary, example, takes_argv=True)


_BEST = " --ckpt_path runs/1/checkpoints/best.ckpt"


COMMANDS: dict[str, Command] = {
    "simulate": Command(
        "recsys.pipelines.simulate.command",
        "simulate",
        "make data with known truth: events, slates, item text",
        "recsys simulate --output raw --users 2000 --items 1000 --seed 7",
    ),
    "check-data": Command(
        "recsys.pipelines.prepare.command",
        "check_data",
        "look through input tables and name the column and row at fault",
        "recsys check-data --interactions raw/interactions.parquet --items raw/items.parquet",
    ),
    "prepare": Command(
        "recsys.pipelines.prepare.command",
        "prepare",
        "turn input tables into a prepared dataset",
        "recsys prepare --interactions raw/interactions.parquet --items raw/items.parquet --output data",
    ),
    "tokenize": Command(
        "recsys.pipelines.tokenize",
        "tokenize",
        "make semantic IDs of a dataset's items",
        "recsys tokenize --data data --output sids",
    ),
    "fit": _lightning("fit", "train the unified model on a prepared dataset"),
    "validate": _lightning("validate", "metrics of a checkpoint on the validation split", _BEST),
    "test": _lightning("test", "metrics of a checkpoint on the test split", _BEST),
    "predict": _lightning("predict", "write candidates from a checkpoint", _BEST),
    "export": Command(
        "recsys.pipelines.export",
        "export",
        "write the bundle that serves a trained model",
        "recsys export --checkpoint runs/1/checkpoints/best.ckpt --data data --output bundle --histories",
    ),
    "export-programs": Command(
        "recsys.pipelines.export_programs",
        "export_programs",
        "write the model of a bundle as programs for other runtimes",
        "recsys export-programs --bundle bundle --output programs --onnx",
    ),
    "recommend": Command(
        "recsys.pipelines.lookup",
        "recommend",
        "look at the recommendations of one user",
        "recsys recommend --bundle bundle --user u7 --k 10",
    ),
    "similar": Command(
        "recsys.pipelines.lookup",
        "similar",
        "look at the items most similar to one item",
        "recsys similar --bundle bundle --item i42 --k 10",
    ),
    "ask": Command(
        "recsys.pipelines.ask",
        "ask",
        "answer a question in words with recommendations or facts",
        'recsys ask --bundle bundle --user u7 "something like a train, but not made of wood"',
        positional=True,
    ),
    "passages": Command(
        "recsys.pipelines.passages",
        "passages",
        "save texts of items and documents for ask to search in",
        "recsys passages --bundle bundle --documents manuals.parquet --output passages",
    ),
    "candidates": Command(
        "recsys.pipelines.candidates",
        "candidates",
        "write candidates for every user as Parquet",
        "recsys candidates --bundle bundle --data data --output candidates --k 100",
    ),
    "evaluate": Command(
        "recsys.pipelines.evaluate",
        "evaluate",
        "metrics of a bundle with intervals and segments, beside baselines",
        "recsys evaluate --bundle bundle --data data --split test --baselines all --json eval.json",
    ),
    "rerank": Command(
        "recsys.pipelines.rerank",
        "rerank",
        "put short lists in another order with a reranker",
        "recsys rerank --bundle bundle --user u7 --method first --lm models/small --json reranked.json",
    ),
    "bench": Command(
        "recsys.pipelines.bench.command",
        "bench",
        "compare two ways of doing the same work in one run",
        "recsys bench candidates --json bench.json",
        positional=True,
    ),
    "report": Command(
        "recsys.pipelines.report",
        "report",
        "one HTML page with curves, metrics and examples",
        "recsys report --run runs/1 --output report.html",
    ),
    "sweep": Command(
        "recsys.pipelines.sweep",
        "main",
        "tune the settings of fit on validation and print the winning command",
        "recsys sweep --data.path data --trials 24 --hours 2",
        takes_argv=True,
    ),
    "rerank fit": Command(
        "recsys.pipelines.rerank_fit",
        "rerank_fit",
        "train a reranker on what users chose from short lists",
        "recsys rerank fit --bundle bundle --data data --lm models/small --output reranker",
    ),
    "doctor": Command(
        "recsys.pipelines.doctor",
        "doctor",
        "versions, devices, what is missing and how to get it",
        "recsys doctor",
    ),
    "demo": Command(
        "recsys.pipelines.demo",
        "demo",
        "the whole way on simulated data, in a few minutes",
        "recsys demo --output demo",
    ),
}


def overview() -> str:
    """The text of ``recsys --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: recsys COMMAND [flags]",
            "",
            "One model that retrieves and ranks items from a single pass over a user's actions.",
            "",
            "commands:",
            *lines,
            "",
            "recsys COMMAND --help shows the flags of a command and an example; recsys --version the version.",
            "",
        ]
    )


def named(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command that a line names, of one word or of two, and the words after it."""
    words = list(argv)
    two = " ".join(words[:2])
    return (two, words[2:]) if len(words) > 1 and two in COMMANDS else (words[0], words[1:])


def run_command(argv: Sequence[str]) -> None:
    """Run one command and raise what it raises.

    Raises:
        InputError: bad input, in one line.
        SystemExit: help was asked for and shown.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return
    name, rest = named(argv)
    if name == "--version":
        import recsys

        sys.stdout.write(f"recsys {recsys.__version__}\n")
        return
    command = COMMANDS.get(name)
    if command is None:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `recsys {close[0]}`?" if close else "`recsys --help` lists the commands"
        raise InputError(f"{name!r} is no command; {hint}")
    function = command.load()
    if command.takes_argv:
        _run_training(function, [name, *rest], command.example)
        return
    from recsys.pipelines.command_parser import parse_call

    example, positional = command.example, command.positional
    function(**parse_call(function, rest, prog=f"recsys {name}", example=example, positional=positional))


def _run_training(function: Callable[..., object], argv: list[str], example: str) -> None:
    """Run a command that parses its own flags; its help and its errors look like those of the others."""
    try:
        function(argv)
    except SystemExit as stop:
        if {"-h", "--help"} & set(argv):
            sys.stdout.write(f"\nexample:\n  {example}\n")
        elif type(stop).__name__ == "SIGTERMException":  # Lightning's, which would end the process with code 0
            resume = {"fit": "; resume it with --ckpt_path last", "sweep": "; run it again to go on"}.get(argv[0], "")
            sys.stderr.write(f"recsys {argv[0]}: terminated before its end{resume}\n")
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    except argparse.ArgumentError as error:
        from recsys.pipelines.command_parser import one_line

        raise InputError(one_line(str(error), prog=f"recsys {argv[0]}")) from None


def _called(words: Sequence[str]) -> str:
    """What a line of error begins with."""
    name = named(words)[0] if words else ""
    return f"recsys {name}" if name in COMMANDS else "recsys"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``recsys``; those of this process where it is None.

    Returns:
        0 on success, 2 on bad input and where a file may not be written (one line on stderr says what), 130 when
        interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        run_command(words)
    except InputError as error:
        sys.stderr.write(f"{_called(words)}: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("recsys: interrupted\n")
        return 130
    except Exception as error:
        from recsys.files import refusal

        line = refusal(error)
        if line is None:
            raise
        sys.stderr.write(f"{_called(words)}: {line}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
