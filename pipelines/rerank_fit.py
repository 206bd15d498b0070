"""The command ``rerank fit``: trains a reranker and measures it before and after."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import atomic_folder, sha256_file, write_json
from recsys.pipelines.console import stdout_console
from recsys.pipelines.language_model import ModelDtype
from recsys.pipelines.rerank_feedback import fit_feedback
from recsys.pipelines.rerank_fit_cross_encoder import fit_cross_encoder
from recsys.pipelines.rerank_fit_examples import ExampleMaker, within_budget
from recsys.pipelines.rerank_fit_figures import measured, say_figures
from recsys.pipelines.rerank_fit_lists import FitLists
from recsys.pipelines.rerank_fit_module import LossName, Tuning
from recsys.pipelines.rerank_fit_run import RunFolder
from recsys.pipelines.rerank_fit_teacher import taught
from recsys.pipelines.rerank_fit_training import train_reranker
from recsys.pipelines.rerank_lists import RerankLists
from recsys.retrieval.rerank.embedding_feedback import EmbeddingFeedbackReranker
from recsys.retrieval.rerank.first import FirstReranker
from recsys.retrieval.rerank.full_list import FullListReranker
from recsys.retrieval.rerank.item_lines import LETTERS
from recsys.retrieval.rerank.lm.adapter import TRAINED, fingerprint, is_adapter
from recsys.retrieval.rerank.lm.chat_tokens import ChatTokens
from recsys.retrieval.rerank.lm.local import LocalLanguageModel

__all__ = ["rerank_fit"]

FORMAT_VERSION = 1
FEEDBACK = "feedback.json"
"""Marks a folder with a head of embedding feedback."""
_LR = {"adapter": 2e-4, "whole": 2e-5, "cross-encoder": 5e-5}


def rerank_fit(
    bundle: Path,
    data: Path,
    output: Path,
    lm: Path | None = None,
    lm_dtype: ModelDtype | None = None,
    method: Literal["language-model", "cross-encoder", "embedding-feedback"] = "language-model",
    loss: Literal["first", "full-list", "pg-rank", "irpo"] = "first",
    lists: Literal["validation", "train", "slates"] = "validation",
    teacher: Path | None = None,
    k: int = 20,
    users: int = 1000,
    max_tokens: int = 300_000,
    epochs: int = 1,
    lr: float | None = None,
    batch_lists: int = 8,
    whole: bool = False,
    lora_rank: int = 16,
    shuffle: bool = False,
    add_missing: bool = False,
    retriever: str = "dense",
    rank_by: str | None = None,
    prompt: Path | None = None,
    text_encoder: Path | None = None,
    valid_users: int = 50,
    test_users: int = 100,
    rank_weight: float | None = None,
    separator_weight: float = 1.0,
    num_samples: int = 16,
    beta: float = 1.0,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train a reranker on short lists, and measure it on held-out ones before and after.

    A language model learns, through low-rank adapters unless --whole is given, to put the item that a user chose
    first. Lists that hold no chosen item teach nothing and are passed over. The output is a folder that every command
    takes in the place of a language model; rerank.json in it says how it was made and what it reaches.

    With --method cross-encoder, all weights of an encoder that reads history and candidate together are trained. It
    learns what to add to the score that the list was ordered by; --rerank-weight, which is printed, adds both again.

    Args:
        bundle: what `recsys export` wrote; its retriever makes the lists.
        data: the prepared dataset that the bundle was made from.
        output: folder of the trained model; what a run needs to be resumed stands beside it in OUTPUT-run until then.
        lm: folder of the language model to start from, or for cross-encoder of any encoder, such as one that makes
            vectors of texts, or of a cross-encoder; not used by embedding-feedback.
        lm_dtype: numbers that the weights beneath adapters are kept and computed in; adapters are float32. Default
            bfloat16 on a GPU that has it, else float32; on processors with bfloat16 instructions it is about twice as
            fast.
        method: language-model; cross-encoder; or embedding-feedback, which learns how far the items of a list move the
            user's vector.
        loss: first and pg-rank and irpo train the first label of the answer (method first), full-list the written
            order (method full-list). A cross-encoder takes first, a softmax over the list, and pg-rank.
        lists: what is learned from: validation = targets of four fifths of the users, which the bundle's model has not
            seen, train = last training targets, which it has, or slates, as they were shown.
        teacher: learn these orders instead, by first or full-list: JSON lines with user_id and item_ids, of the same
            lists.
        k: items of a list.
        users: most lists to learn from.
        max_tokens: of all questions and answers that are learned from, epochs counted; lists beyond are left out.
        epochs: passes over the lists; with more than one, the best on validation lists is kept.
        lr: highest learning rate; default 0.0002 for adapters, 0.00002 for whole models, 0.00005 for cross-encoders.
        batch_lists: lists of one step.
        whole: train all weights instead of adapters.
        lora_rank: of the adapters.
        shuffle: show the lists in another order than retrieval's while learning, so that places teach nothing.
        add_missing: put a target that was not retrieved in the last place of its list while learning.
        retriever: whose lists they are.
        rank_by: order lists by the probability of this action instead of by retrieval.
        prompt: a prompt file in the place of the method's own.
        text_encoder: a sentence-transformers folder whose vectors of item texts embedding-feedback reads as well.
        valid_users: lists that choose the best epoch, and of a cross-encoder the weight that is printed.
        test_users: lists of the test split with their target, for the figures before and after; 0 = none.
        rank_weight: of the ranking loss of first, beside that of the language model or the softmax; default 1, and 0
            for cross-encoder.
        separator_weight: of the tokens between the labels, in full-list.
        num_samples: orders drawn of each list by pg-rank.
        beta: how strongly irpo holds on to the model it starts from.
        seed: of all draws.
        resume: go on with a run that was killed.
    """
    settings = {name: value for name, value in locals().items() if name != "resume"}
    _check(settings)
    marker = FEEDBACK if method == "embedding-feedback" else TRAINED
    if output.exists() and (output.is_file() or (any(output.iterdir()) and not (output / marker).is_file())):
        raise InputError(f"--output {output} is in use and holds no {marker}; choose another folder")
    dataset, loaded = Dataset.open(data), Bundle.open(bundle)
    loaded.check_data(dataset.manifest.data_hash, dataset.path)
    drawn = FitLists(loaded, dataset, k, retriever, rank_by, seed)
    held_out = drawn.held_out(lists, test_users) if test_users else None
    if method == "embedding-feedback":
        _fit_feedback(loaded, dataset, output, text_encoder, held_out, seed)
        return
    if lm is None:
        raise InputError("--lm must be given: the folder of the language model to start from")
    if is_adapter(lm):
        raise InputError(f"--lm {lm} is an adapter already; start from the whole model beneath it")
    tuning = Tuning(
        loss=loss,
        lr=lr or _LR[method if method == "cross-encoder" else "whole" if whole else "adapter"],
        epochs=epochs,
        batch_lists=batch_lists,
        rank_weight=(0.0 if method == "cross-encoder" else 1.0) if rank_weight is None else rank_weight,
        separator_weight=separator_weight,
        num_samples=num_samples,
        beta=beta,
        seed=seed,
    )
    settings |= {"bundle": loaded.manifest["checksum"], "data": dataset.manifest.data_hash}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    if method == "cross-encoder":
        fit_cross_encoder(lm, output, drawn, held_out, tuning, settings, resume=resume)
        return
    dtype = lm_dtype or "auto"
    model = LocalLanguageModel.load(lm, dtype=dtype)
    settings["lm"] = fingerprint(lm)
    console = stdout_console()
    reranker = _reranker(model, loss, k, prompt)
    maker = ExampleMaker(reranker, ChatTokens(model.tokenizer, lm), shuffle=shuffle)
    learned = drawn.learned(lists, users, add_missing=add_missing)
    learned, wanted = taught(teacher, learned)
    examples = within_budget(maker.of(learned, wanted, seed=seed), max_tokens // epochs)
    judged = []
    if epochs > 1 and valid_users:
        judged = ExampleMaker(reranker, ChatTokens(model.tokenizer, lm)).of(drawn.judged(lists, valid_users))
    run = RunFolder(output, settings, resume=resume)
    before = run.before
    if held_out is not None and before is None:
        before = measured(
            _reranker(LocalLanguageModel.load(lm, dtype=dtype), loss, k, prompt), held_out, seed, "before"
        )
        run.keep_before(before)
    num_tokens = sum(example.num_tokens for example in examples)
    console.print(
        f"learning from {len(examples):,} lists of {dataset.path}, {num_tokens:,} tokens, {epochs} times; "
        f"{len(judged)} choose the epoch"
    )
    began = time.perf_counter()
    net, figure = train_reranker(model, examples, judged, tuning, run, lora_rank=0 if whole else lora_rank)
    seconds = time.perf_counter() - began
    about = {
        "format": "recsys-reranker",
        "format_version": FORMAT_VERSION,
        "method": "full-list" if loss == "full-list" else "first",
        "prompt": {"name": reranker.prompt.name, "sha256": sha256_file(Path(reranker.prompt.source))},
        "base_model": str(lm.absolute()),
        "base_fingerprint": fingerprint(lm),
        "adapter": not whole,
        "settings": settings,
        "tuning": asdict(tuning),
        "learned": {"lists": len(examples), "tokens": num_tokens * epochs, "seconds": round(seconds, 3)},
        "best_epoch_figure": figure,
    }
    with atomic_folder(output, marker=TRAINED) as folder:
        net.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # a model card of blanks
        model.tokenizer.save_pretrained(folder)
        write_json(folder / TRAINED, about)
        if held_out is not None:
            trained = _reranker(LocalLanguageModel.load(folder, dtype=dtype), loss, k, prompt)
            about["before"], after = before, measured(trained, held_out, seed, "after")
            about["after"] = after
            write_json(folder / TRAINED, about)
    run.remove()
    _say(about, output)


def _fit_feedback(
    bundle: Bundle, dataset: Dataset, output: Path, text_encoder: Path | None, held_out: RerankLists | None, seed: int
) -> None:
    """Fit and write a head of embedding feedback; it chooses its own lists."""
    fitted = fit_feedback(bundle, dataset, text_encoder=text_encoder, seed=seed)
    fitted.head.save(output)
    console = stdout_console()
    adopted = f"weight {fitted.head.head.weight:g}" if fitted.head.head.weight else "not adopted: no weight helped"
    console.print(
        f"learned from {fitted.num_lists:,} of {fitted.num_requests:,} validation lists in {fitted.seconds:.0f} s; "
        f"NDCG@10 on lists that were not learned from {fitted.ndcg:.4f} beside {fitted.dense_ndcg:.4f} ({adopted})"
    )
    if held_out is not None:
        reranker = EmbeddingFeedbackReranker(bundle, fitted.head, training_only=True)
        say_figures(measured(reranker, held_out, seed, "after"))
    console.print(f"use it with the method embedding-feedback: {output}")


def _check(settings: dict[str, Any]) -> None:
    least = {
        "k": 2, "users": 1, "max_tokens": 1, "epochs": 1, "batch_lists": 1, "lora_rank": 1, "valid_users": 0,
        "test_users": 0, "num_samples": 2, "seed": 0,
    }  # fmt: skip
    for name, smallest in least.items():
        if settings[name] < smallest:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} must be at least {smallest}, got {settings[name]}")
    if settings["lr"] is not None and not settings["lr"] > 0:
        raise InputError(f"--lr must be positive, got {settings['lr']}")
    if settings["beta"] <= 0:
        raise InputError(f"--beta must be positive, got {settings['beta']}")
    if settings["rank_weight"] is not None and settings["rank_weight"] < 0:
        raise InputError(f"--rank-weight must be a number from 0, got {settings['rank_weight']}")
    if not 0 <= settings["separator_weight"] <= 1:
        raise InputError(f"--separator-weight must be from 0 to 1, got {settings['separator_weight']}")
    if settings["lm_dtype"] is not None and (settings["method"] != "language-model" or settings["whole"]):
        raise InputError("--lm-dtype is of a language model beneath adapters; all other weights train in float32")
    if settings["method"] == "cross-encoder":
        if settings["loss"] not in ("first", "pg-rank"):
            raise InputError(
                f"--loss {settings['loss']} is of language models; a cross-encoder learns by first, pg-rank"
            )
        if settings["add_missing"]:
            raise InputError("--add-missing: a cross-encoder learns beside scores, and a target that is added has none")
    elif settings["loss"] != "full-list" and settings["k"] > len(LETTERS):
        raise InputError(f"--k: the labels of {settings['loss']} are letters, at most {len(LETTERS)}; --loss full-list")
    if settings["teacher"] is not None:
        if settings["method"] == "embedding-feedback":
            raise InputError("--teacher: a head of embedding-feedback learns what users chose; leave it out")
        if settings["loss"] in ("pg-rank", "irpo"):
            raise InputError(f"--teacher: {settings['loss']} learns from what users chose; give another --loss")
    if settings["lists"] == "slates" and (settings["add_missing"] or settings["rank_by"]):
        raise InputError("--lists slates: slates stand as they were shown; leave out --add-missing and --rank-by")


def _reranker(
    model: LocalLanguageModel, loss: LossName, k: int, prompt: Path | None
) -> FirstReranker | FullListReranker:
    if loss == "full-list":
        return FullListReranker(model, prompt=prompt)
    return FirstReranker(model, window=k, step=max(1, k // 2), prompt=prompt)


def _say(about: dict[str, Any], output: Path) -> None:
    if "after" in about:
        say_figures(about["after"], about["before"])
    stdout_console().print(f"use it in the place of a language model, with the method {about['method']}: {output}")
