"""The console script: dispatch, flags, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from recsys.errors import InputError
from recsys.pipelines import cli
from recsys.pipelines.command_parser import one_line, parse_call
from recsys.pipelines.evaluate import evaluate
from recsys.pipelines.report import report
from recsys.pipelines.tokenize import tokenize

CALLS: list[dict[str, object]] = []


def sample(
    *,
    output: Path,
    items: str | None = None,
    from_: str | None = None,
    min_user_events: int = 3,
    share: float = 0.5,
    split: Literal["test", "now"] = "test",
    user: str | None = None,
    histories: bool = False,
    shuffle: bool = True,
) -> None:
    """Make a sample.

    More about it.

    Args:
        output: Where the sample goes.
        from_: Which layout the input has.
    """
    if share > 1:
        raise InputError(f"share is {share}\nbut must not be above 1")
    if split == "now":
        raise KeyboardInterrupt
    CALLS.append(dict(locals()))


def named(name: str, long: bool = False) -> None:
    """Take one word.

    Args:
        name: Which one.
    """
    CALLS.append({"name": name, "long": long})


UNION = """Parser key "train.data.path":
  Does not validate against any of the Union subtypes
  Subtypes: [int, NoneType]
  Errors:
    - Expected a int
    - Expected a NoneType
  Given value type: str
  Given value: """


def failing_training(argv: list[str]) -> None:
    if "--help" in argv:
        raise SystemExit(0)
    if "--terminated" in argv:
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        raise SIGTERMException
    raise argparse.ArgumentError(None, UNION + argv[0])


@pytest.fixture(autouse=True)
def sample_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("recsys_sample_commands")
    module.__dict__.update(sample=sample, failing_training=failing_training, named=named)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = {
        "sample": cli.Command(module.__name__, "sample", "make a sample", "recsys sample --output here"),
        "named": cli.Command(module.__name__, "named", "one word", "recsys named it", positional=True),
        "named again": cli.Command(module.__name__, "sample", "two words", "recsys named again --output here"),
        "train": cli.Command(module.__name__, "failing_training", "train", "recsys train", takes_argv=True),
    }
    monkeypatch.setattr(cli, "COMMANDS", table)
    CALLS.clear()


def test_flags_are_the_parameters_in_their_types() -> None:
    words = "--output out --items i.parquet --from kuairand --min-user-events 5 --share .25 --user 007"
    assert cli.main(["sample", *words.split(), "--histories", "--no-shuffle"]) == 0
    assert CALLS == [
        {
            "output": Path("out"),
            "items": "i.parquet",
            "from_": "kuairand",
            "min_user_events": 5,
            "share": 0.25,
            "split": "test",
            "user": "007",
            "histories": True,
            "shuffle": False,
        }
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--output x --min-user-events many", "--min-user-events: expected int, got 'many'"),
        ("--output x --split train", "--split: expected Literal['test', 'now'], got 'train'"),
        ("--output x --min-user-event 3", "unknown flag --min-user-event; did you mean --min-user-events?"),
        ("--output x --min_user_events 3", "did you mean --min-user-events?"),
        ("--output x --zzz 3", "unknown flag --zzz; `recsys sample --help` lists the flags"),
        ("--output x stray", "'stray' stands alone"),
        ("--output s3://bucket/x", "--output s3:/bucket/x is a URL; only the input tables"),
        ("--share .1", "--output must be given"),
        ("--output", "--output: expected one argument"),
        ("--output x --share 2", "share is 2.0 but must not be above 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("recsys sample: ")
    assert line in err
    assert CALLS == []


def test_a_word_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["named", "it", "--long"]) == 0
    assert CALLS == [{"name": "it", "long": True}]
    assert cli.main(["named"]) == 2
    assert capsys.readouterr().err == "recsys named: name must be given; `recsys named --help` lists the flags\n"


def test_a_command_of_two_words_stands_beside_one_of_its_first_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["named", "again", "--output", "x"]) == 0
    assert CALLS[0]["output"] == Path("x")
    assert cli.main(["named", "another"]) == 0
    assert CALLS[1] == {"name": "another", "long": False}
    assert cli.main(["named", "again", "--share", ".1"]) == 2
    line = "recsys named again: --output must be given; `recsys named again --help` lists the flags\n"
    assert capsys.readouterr().err == line


def test_interrupt_is_exit_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "--output", "x", "--split", "now"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_errors_of_the_training_parser_are_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "recsys train: --data.path: expected int or null, got 'train'\n"


def test_help_of_a_training_command_ends_with_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert capsys.readouterr().out.endswith("example:\n  recsys train\n")


def test_a_terminated_training_does_not_look_like_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--terminated"])
    assert stop.value.code == 143
    assert capsys.readouterr().err == "recsys train: terminated before its end\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left", "runs/1/logs"), "runs/1/logs: no space is left; free some, or write"),
        (OSError(errno.EROFS, "Read-only", "out/.data.7f.partial"), "out: the file system is read-only; write somewh"),
        (FileExistsError(errno.EEXIST, "File exists", "log.csv"), "log.csv: a file stands where a folder should be;"),
        (IsADirectoryError(errno.EISDIR, "", "a", None, "b"), "b: a folder stands where a file should be; choose"),
        (RuntimeError("parquet: underlying IO error: No space left on device (os error 28)"), "no space is left; free"),
        (RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed"), "no space is left; free"),
    ],
)
def test_what_the_system_refuses_is_one_line_too(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise error

    monkeypatch.setattr(cli.Command, "load", lambda command: refused)
    assert cli.main(["sample"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"recsys sample: {line}") and err.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("something else")

    monkeypatch.setattr(cli.Command, "load", lambda command: broken)
    with pytest.raises(OSError, match="something else"):
        cli.main(["sample"])


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    none = tmp_path / "none"
    for path, why in ((tmp_path, "is a folder; give a file"), (tmp_path / "log" / "x", "log is a file, not a folder")):
        with pytest.raises(InputError, match=f"--json .*{why}"):
            evaluate(data=none, bundle=none, json=path)
        with pytest.raises(InputError, match=f"--json .*{why}"):
            tokenize(data=none, output=none, json=path)
        with pytest.raises(InputError, match=f"--output .*{why}"):
            report(run=tmp_path, output=path)
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_unknown_command_names_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["smaple"]) == 2
    assert "did you mean `recsys sample`?" in capsys.readouterr().err


def test_a_command_s_help_has_its_example_and_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "Make a sample." in out and "Where the sample goes." in out
    assert "recsys sample --output here" in out and "--min-user-events" in out


def test_parse_call_accepts_equals_signs_and_null() -> None:
    values = parse_call(sample, ["--output=o", "--from=null"], prog="recsys sample", example="")
    assert values["output"] == Path("o") and values["from_"] is None


def test_other_messages_keep_their_words_on_one_line() -> None:
    assert one_line("argument --k:\n bad", prog="recsys x") == "argument --k: bad; `recsys x --help` lists the flags"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The installed console script's own entry, in a fresh process."""
    command = [sys.executable, "-P", "-m", "recsys.pipelines.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_alone_it_lists_the_commands_of_the_table() -> None:
    done = run()
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed[:3] == ["simulate", "check-data", "prepare"] and "demo" in listed
    assert run("--help").stdout == done.stdout
    assert run("--version").stdout == "recsys 0.1.0\n"
