"""The command ``predict``: candidates straight from a checkpoint, through a bundle that nobody keeps."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recsys.errors import InputError
from recsys.pipelines.candidates import candidates
from recsys.pipelines.command_parser import CommandParser, one_line
from recsys.pipelines.export import export
from recsys.pipelines.last_checkpoint import last_of_run

__all__ = ["main"]

_PROG = "recsys predict"


def main(argv: Sequence[str]) -> None:
    """Export a checkpoint to a temporary folder and write what ``recsys candidates`` writes from it.

    Args:
        argv: the words after ``predict``: --data.path, --ckpt_path, --config with a file of flags, and the flags of
            ``recsys candidates`` but --bundle and --data.

    Raises:
        InputError: bad input; one line.
    """
    parser = _parser()
    try:
        values = dict(parser.parse_args(list(argv)).as_dict())
    except argparse.ArgumentError as error:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise InputError(one_line(str(error), prog=_PROG, flags=flags)) from None
    data, checkpoint = values.pop("data")["path"], values.pop("ckpt_path")
    values.pop("config")
    folder = values.pop("trainer")["default_root_dir"]
    if checkpoint == Path("last"):
        checkpoint = last_of_run(folder)
    with tempfile.TemporaryDirectory(prefix="recsys-predict-") as folder:
        bundle = Path(folder) / "bundle"
        export(checkpoint, data, bundle)
        candidates(bundle, data, **values)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=_PROG,
        description="Write candidates from a checkpoint, as `recsys candidates` does from a bundle.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    parser.add_argument("--config", action="config", help="settings as YAML; flags given after it win")
    parser.add_argument("--data.path", type=Path, required=True, help="the prepared dataset it was trained on")
    # Two spellings: that of the training commands, and that of all others.
    parser.add_argument(
        "--ckpt_path", "--ckpt-path", type=Path, required=True, help="last, or RUN/checkpoints/best.ckpt"
    )
    parser.add_argument(
        "--trainer.default_root_dir",
        type=Path | None,
        default=None,
        help="folder of the run that `--ckpt_path last` means; default the newest in runs/",
    )
    parser.add_function_arguments(candidates, as_group=False, skip={"bundle", "data"})
    return parser
