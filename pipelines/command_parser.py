"""From a function's signature and docstring to its command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from recsys.errors import InputError
from recsys.files import check_local

__all__ = ["CommandParser", "command_parser", "one_line", "parse_call", "run_call"]


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the example below the flags as it is written."""


class CommandParser(ArgumentParser):
    """Flags with ``-`` where the parameters have ``_``, and switches for bools; errors are raised, not printed."""

    def add_argument(self, *args: str, **kwargs: Any) -> Any:
        """Add one argument under its flag's name; its key stays the parameter's name."""
        if len(args) == 1 and args[0].startswith("--"):
            kwargs.setdefault("dest", args[0][2:])
            args = (flag_of(kwargs["dest"]),)
            if kwargs["dest"].endswith("_"):
                kwargs.setdefault("metavar", kwargs["dest"].rstrip("_").upper())
            # jsonargparse hands its own action over, made for the hint of the parameter.
            num_words = _num_words(getattr(kwargs.get("action"), "_typehint", None))
            if num_words:
                del kwargs["action"]
                kwargs |= {"type": str, "nargs": num_words}
                if num_words == 2:
                    kwargs["metavar"] = ("NAME", "PATH")
            if kwargs.get("type") is bool:
                del kwargs["type"]
                kwargs["action"] = "store_false" if kwargs["default"] else "store_true"
                args = (f"--no-{args[0][2:]}",) if kwargs["default"] else args
        return super().add_argument(*args, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and refuse URLs where a path of this machine is wanted."""
        found = super().parse_args(*args, **kwargs)
        for name, value in found.items():
            if isinstance(value, Path):
                check_local(value, flag_of(name))
        return found


def _num_words(kind: Any) -> int:
    """Two for ``tuple[str, str]``, with ``| None`` too: such a flag is followed by as many words; else 0."""
    for member in (kind, *get_args(kind)):
        if get_origin(member) is tuple:
            return len(get_args(member))
    return 0


def flag_of(parameter: str) -> str:
    """``min_user_events`` -> ``--min-user-events``, ``from_`` -> ``--from``."""
    return "--" + parameter.rstrip("_").replace("_", "-")


def command_parser(
    function: Callable[..., object], *, prog: str, example: str, positional: bool = False
) -> CommandParser:
    """The parser of one command: types and defaults from the signature, help from the Google docstring."""
    parser = CommandParser(
        prog=prog,
        description=_first_paragraph(function),
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_function_arguments(function, as_group=False, as_positional=positional)
    return parser


def _first_paragraph(function: Callable[..., object]) -> str:
    return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())


def parse_call(
    function: Callable[..., object], argv: Sequence[str], *, prog: str, example: str, positional: bool = False
) -> dict[str, Any]:
    """The keyword arguments that a command line states for ``function``.

    Args:
        function: whose parameters are the flags.
        argv: the words after the command.
        prog: the command, for its help.
        example: a line for its help.
        positional: whether parameters without a default are words of their own instead of flags.

    Raises:
        InputError: the command line is wrong; its text is one line.
    """
    parser = command_parser(function, prog=prog, example=example, positional=positional)
    try:
        values = parser.parse_args(list(argv))
    except argparse.ArgumentError as error:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        words = [action.dest for action in parser._actions if not action.option_strings]
        raise InputError(one_line(str(error), prog=prog, flags=flags, positionals=words)) from None
    # Not vars(): there keys such as `items`, which are methods of the namespace too, stand under other names.
    return dict(values.as_dict())


def run_call(function: Callable[..., object], argv: Sequence[str], *, prog: str, example: str) -> int:
    """Call ``function`` with what a command line states for it.

    Args:
        function: whose parameters are the flags.
        argv: the words after the command.
        prog: the command, for its help.
        example: a line for its help.

    Returns:
        The exit code: 2 where the call or what it names is wrong, with one line on stderr that says what.
    """
    try:
        function(**parse_call(function, argv, prog=prog, example=example))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


_KEY = re.compile(r"""^Parser key ["']([\w.]+)["']:\s*""")
_EXPECTED = re.compile(r"Expected an? (.+?)\. Got value: (.*)$")
_UNION = re.compile(r"Subtypes: \[(.*)\] Errors: .* Given value: (.*)$")
_TYPE = re.compile(r"<class '(?:\w+\.)*(\w+)'>")


def one_line(message: str, *, prog: str, flags: Sequence[str] = (), positionals: Sequence[str] = ()) -> str:
    """Reduce a parser's message to one line that names the flag and what to do.

    Args:
        message: as argparse or jsonargparse words it, on any number of lines.
        prog: the command, for the way to its help.
        flags: known flags, among which a mistyped one is looked up.
        positionals: parameters that are words of their own.
    """
    text = " ".join(message.split())
    help_hint = f"`{prog} --help` lists the flags"
    if text.startswith("unrecognized arguments: "):
        wrong = text.removeprefix("unrecognized arguments: ").split()[0]
        if not wrong.startswith("-"):
            return f"{wrong!r} stands alone, but every value follows a flag; {help_hint}"
        close = get_close_matches(wrong.split("=")[0].replace("_", "-"), flags, n=1)
        return f"unknown flag {wrong}; " + (f"did you mean {close[0]}?" if close else help_hint)
    if "arguments are required: " in text:
        names = text.split("arguments are required: ")[1].split(", ")
        words = [name if name in positionals else _known_flag(name, prog, flags) for name in names]
        return f"{', '.join(words)} must be given; {help_hint}"
    key = _KEY.match(text)
    if key:
        return f"{_known_flag(key[1], prog, flags)}: {_expectation(text[key.end() :])}"
    return f"{text}; {help_hint}"


def _expectation(text: str) -> str:
    """What was expected and what came, from jsonargparse's words for it."""
    text = _TYPE.sub(r"\1", text).replace("typing.", "")
    union, expected = _UNION.search(text), _EXPECTED.search(text)
    if union:
        return f"expected {union[1].replace(', NoneType', ' or null')}, got {union[2]!r}"
    return f"expected {expected[1]}, got {expected[2]!r}" if expected else text


def _known_flag(parameter: str, prog: str, flags: Sequence[str]) -> str:
    """The spelling of a parameter on this command line; those of training commands keep dots and underscores."""
    flag = flag_of(parameter)
    return flag if flag in flags else f"--{parameter.removeprefix(prog.split()[-1] + '.')}"
