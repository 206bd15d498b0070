"""``docs/commands.md``, written from the table of commands and the functions behind it.

``python -P -m recsys.pipelines.cli_reference`` writes the page of the repository in the current folder.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

from recsys.files import atomic_file
from recsys.pipelines.cli import COMMANDS, Command
from recsys.pipelines.command_parser import flag_of

__all__ = ["PAGE", "command_reference"]

PAGE = Path("docs") / "commands.md"
_HEAD = """# Commands

Written by `python -P -m recsys.pipelines.cli_reference` from the functions behind the commands; `recsys COMMAND --help`
says the same. Every command exits with 0 on success and with 2 on bad input, after one line that says what is wrong,
where, and what to do.
"""
_TRAINING_FLAGS = (
    (
        "--config FILE",
        "settings as YAML; flags given after it win. A run keeps its own in `RUN/config.yaml`, which all but `predict` "
        "take",
    ),
    (
        "--ckpt_path last\\|FILE",
        "`fit`: resume the run in `--trainer.default_root_dir`; others: the checkpoint to use; `last`: of that run, or "
        "of the newest in `runs/`",
    ),
    ("--trainer.default_root_dir DIR", "folder of the run; default `runs/<time>`"),
    ("--trainer.max_epochs N", "most passes over the training events; chosen from the data where it is not given"),
    ("--trainer.…", "every other setting of Lightning's Trainer"),
)
_PREDICT = (
    "`recsys predict` takes `--data.path`, `--ckpt_path`, `--config` with a file of its own flags, and those of "
    "[`recsys candidates`](#recsys-candidates) but `--bundle` and `--data`."
)
_PASSED_ON = {"data": "--data.path", "fixed": "--model.… --data.… --trainer.…"}
"""Parameters of a command with the flags of the training commands."""


def command_reference() -> str:
    """The page's text."""
    parts = [_HEAD]
    training = [name for name, command in COMMANDS.items() if command.module == "recsys.pipelines.fit"]
    for name, command in COMMANDS.items():
        if name not in training:
            parts.append("\n".join(_section(name, command)))
        elif name == training[0]:
            parts.append("\n".join(_training_section(training)))
    return "\n".join(parts)


def _section(name: str, command: Command) -> Iterator[str]:
    function = command.load()
    if command.takes_argv:  # its flags are those of the function of the command's own name beside it
        function = getattr(importlib.import_module(command.module), name)
    yield from _heading(f"recsys {name}", inspect.getdoc(function) or "", [command.example])
    yield from _flag_table(function, lambda parameter: _word_of(parameter, command))


def _word_of(parameter: inspect.Parameter, command: Command) -> str:
    if command.takes_argv and parameter.name in _PASSED_ON:
        return _PASSED_ON[parameter.name]
    positional = command.positional and parameter.default is inspect.Parameter.empty
    return parameter.name.upper() if positional else flag_of(parameter.name)


def _training_section(names: list[str]) -> Iterator[str]:
    from recsys.pipelines.data_module import PreparedData
    from recsys.pipelines.fit import add_training_flags
    from recsys.pipelines.unified_module import UnifiedModule

    text = (
        "Training and its metrics, by the Lightning command line. `recsys fit --data.path DATA` alone chooses sizes, "
        "batches and schedule for the data at hand and says what it chose."
    )
    title = "recsys " + ", ".join(names)
    yield from _heading(title, text, [COMMANDS[name].example for name in names])
    yield "| flag | meaning |"
    yield "| --- | --- |"
    yield from (f"| `{flag}` | {meaning} |" for flag, meaning in _TRAINING_FLAGS)
    yield ""
    yield from (_PREDICT, "")
    parser = ArgumentParser(add_help=False)
    add_training_flags(parser)
    yield "| flag of `fit` | default | meaning |"
    yield "| --- | --- | --- |"
    for action in parser._actions:
        default = "" if action.default is None else f"`{action.default}`"
        yield f"| `{action.option_strings[-1]}` | {default} | {action.help} |"
    yield ""
    for prefix, owner in (("--data.", PreparedData), ("--model.", UnifiedModule)):
        yield from _flag_table(owner, lambda parameter, prefix=prefix: f"{prefix}{parameter.name}")  # type: ignore[misc]


def _heading(title: str, docstring: str, examples: list[str]) -> Iterator[str]:
    parsed = docstring_parser.parse(docstring)
    yield from (f"## {title}", "", parsed.short_description or "", "")
    if parsed.long_description:
        yield from (" ".join(parsed.long_description.split()), "")
    yield from ("```bash", *examples, "```", "")


def _flag_table(owner: Callable[..., Any], flag: Callable[[inspect.Parameter], str]) -> Iterator[str]:
    doc = {param.arg_name: param.description for param in docstring_parser.parse(inspect.getdoc(owner) or "").params}
    yield "| flag | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for parameter in inspect.signature(owner).parameters.values():
        kind = str(parameter.annotation).replace("|", "\\|")
        required = parameter.default is inspect.Parameter.empty
        default = "required" if required else "" if parameter.default is None else f"`{parameter.default}`"
        meaning = " ".join((doc.get(parameter.name) or "").split()).replace("|", "\\|")
        name = flag(parameter)
        if kind == "bool" and not name.startswith(("--data.", "--model.")):
            name, kind, default = (f"--no-{name[2:]}" if parameter.default else name), "switch", ""
        yield f"| `{name}` | {kind} | {default} | {meaning} |"
    yield ""


def main() -> int:
    """Write the page."""
    with atomic_file(PAGE) as partial:
        partial.write_text(command_reference(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
