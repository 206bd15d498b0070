"""What a question in words costs, step by step: a table under docs/results/.

``python -P -m recsys.pipelines.ask_cost --bundle goodbooks=BUNDLE,toys=BUNDLE`` asks made questions about values that
the items have, once without a language model and, with ``--lm``, some of them with one.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import InputError
from recsys.events import Event
from recsys.pipelines.command_parser import run_call
from recsys.pipelines.language_model import ModelDtype, ModelOptions, named_model
from recsys.pipelines.results import record, write
from recsys.retrieval.rag.ask import Asker
from recsys.retrieval.rag.ask_answer import AskAnswer
from recsys.retrieval.rag.sql.column_values import ColumnValues
from recsys.retrieval.recommender import Recommender
from recsys.retrieval.rerank.lm.protocol import LanguageModel

__all__ = ["asked_values", "main", "model_steps", "publish", "steps"]

_LEAST_ITEMS = 5
_MODEL_QUESTIONS = 3
_EVENTS = 20
_WISH, _COUNT = "something with {}", "how many items have {}?"


def asked_values(items: pl.DataFrame, count: int, seed: int) -> list[str]:
    """Values that at least five items have, of columns in turn.

    Raises:
        InputError: there are none.
    """
    known = [
        [value for value, number in zip(column.values, column.counts, strict=True) if number >= _LEAST_ITEMS]
        for column in ColumnValues.of(items).columns.values()
        if not column.names_items
    ]
    known = [values for values in known if values]
    if not known:
        raise InputError(f"no text of a column is that of {_LEAST_ITEMS} items or more; there is nothing to ask for")
    draw = random.Random(seed)
    return [draw.choice(known[at % len(known)]) for at in range(count)]


def steps(recommender: Recommender, *, questions: int, seed: int = 0) -> dict[str, float]:
    """Milliseconds of each step without a language model, medians but for what is made once, and the share of counts
    that had an answer.

    Args:
        recommender: whose items.
        questions: of each kind.
        seed: of the draws.

    Raises:
        InputError: its items have nothing to ask for.
    """
    histories = _histories(recommender, questions, seed)
    asker = Asker(recommender)
    try:
        first = asker.ask(None, "something nice", history=histories[0])
        values = asked_values(recommender.bundle.items, questions, seed)
        pairs = list(zip(histories, values, strict=True))
        recommended = [asker.ask(None, _WISH.format(value), history=history) for history, value in pairs]
        counted = [asker.ask(None, _COUNT.format(value), history=history) for history, value in pairs]
        tables = _median(counted[1:], "tables") if len(counted) > 1 else 0.0
        answered = [one.table is not None and one.table.result is not None for one in counted]
        return {
            "values and titles, once per version of the items, ms": first.milliseconds["catalogue"],
            "database file, once per version, at the first count, ms": max(
                0.0, counted[0].milliseconds["tables"] - tables
            ),
            "filters of a question, ms": _median(recommended, "words"),
            "recommend with the items that pass, ms": _median(recommended, "recommend"),
            "a whole question, recommended, ms": statistics.median(map(_whole, recommended)),
            "a whole question, a count from the tables, ms": statistics.median(map(_whole, counted[1:] or counted)),
            "counts that rules could answer": statistics.fmean(answered),
        }
    finally:
        asker.close()


def model_steps(
    recommender: Recommender, lm: LanguageModel, *, questions: int = _MODEL_QUESTIONS, seed: int = 0
) -> dict[str, Any]:
    """Means of what a language model reads and writes for a recommendation and for a fact, and what of it was usable.

    Args:
        recommender: whose items.
        lm: reads and writes.
        questions: of each kind.
        seed: of the draws.
    """
    histories = _histories(recommender, questions, seed)
    asker = Asker(recommender, lm)
    figures: dict[str, Any] = {}
    try:
        values = asked_values(recommender.bundle.items, questions, seed)
        pairs = list(zip(histories, values, strict=True))
        for kind, text in (("a recommendation", _WISH), ("a count", _COUNT)):
            found = [asker.ask(None, text.format(value), history=history) for history, value in pairs]
            for name in ("calls", "prompt_tokens", "reused_tokens", "generated_tokens", "seconds"):
                label = name.replace("_", " ")
                figures[f"{kind}: {label}"] = statistics.fmean(getattr(one.usage, name) for one in found)
            figures[f"{kind}: with a part of the model's"] = statistics.fmean(map(_by_model, found))
        return figures
    finally:
        asker.close()


def publish(
    *,
    bundle: str,
    lm: str | None = None,
    lm_dtype: ModelDtype | None = None,
    questions: int = 15,
    seed: int = 0,
    note: str | None = None,
) -> None:
    """Measure bundles and record a column for each.

    Args:
        bundle: NAME=BUNDLE,… : bundles and what to call them.
        lm: a language model, as `recsys ask` takes it, that is asked some of the questions.
        lm_dtype: numbers that it computes with, where it is a folder's.
        questions: of each kind, without a language model.
        seed: of the draws.
        note: a sentence below the table.
    """
    options = ModelOptions(dtype=lm_dtype)
    options.check(lm)
    model = None if lm is None else named_model(lm, options)
    rows: dict[str, dict[str, Any]] = {}
    names = []
    for named in bundle.split(","):
        name, found, path = named.partition("=")
        if not found:
            raise InputError(f"--bundle: expected NAME=BUNDLE, got {named!r}")
        names.append(name)
        recommender = Recommender.load(path)
        for step, took in steps(recommender, questions=questions, seed=seed).items():
            rows.setdefault(step, {"step": step})[name] = took
        if model is not None:
            for figure, mean in model_steps(recommender, model, seed=seed).items():
                rows.setdefault(figure, {"step": figure})[name] = mean
    notes = [
        f"Milliseconds of one process: medians of {questions} questions each, “something with VALUE” and “how many "
        f"items have VALUE?”, about values of the item table; made users with {_EVENTS} events; no language model.",
        *([f"With {model.name}: means of {_MODEL_QUESTIONS} questions of each kind."] if model is not None else []),
        *([note] if note else []),
    ]
    command = "python -P -m recsys.pipelines.ask_cost --bundle NAME=BUNDLE,…" + ("" if lm is None else " --lm LM")
    record("ask-cost", "What a question costs", command, list(rows.values()), ("step", *names), notes=notes)
    write(Path())


def _histories(recommender: Recommender, count: int, seed: int) -> list[list[Event]]:
    """Of made users, with items drawn at random."""
    known, draw = recommender.bundle.vocabulary, random.Random(seed)
    return [
        [
            Event(item_id=item_id, actions=known.actions[0], timestamp=at)
            for at, item_id in enumerate(known.items.take([draw.randrange(len(known.items)) for _ in range(_EVENTS)]))
        ]
        for _ in range(count)
    ]


def _median(answers: Sequence[AskAnswer], stage: str) -> float:
    return statistics.median(answer.milliseconds[stage] for answer in answers)


def _whole(answer: AskAnswer) -> float:
    return sum(answer.milliseconds.values())


def _by_model(answer: AskAnswer) -> bool:
    """Whether the model's sentences, filters or query stayed in the answer."""
    queried = answer.kind == "facts" and "words" not in answer.milliseconds
    return bool(answer.sentences) or any(one.source == "model" for one in answer.filters) or queried


def main(argv: Sequence[str]) -> int:
    """Measure the bundles named, in the root of the repository."""
    return run_call(publish, argv, prog="ask_cost", example="ask_cost --bundle toys=BUNDLE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
