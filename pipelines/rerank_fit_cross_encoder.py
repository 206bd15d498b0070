"""Training of a cross-encoder on short lists: ``rerank fit --method cross-encoder``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from recsys.errors import InputError
from recsys.files import atomic_folder, read_json, sha256_file, write_json
from recsys.pipelines.console import progress_bar, stdout_console
from recsys.pipelines.rerank_fit_examples import within_budget
from recsys.pipelines.rerank_fit_figures import measured, say_figures
from recsys.pipelines.rerank_fit_lists import FitLists
from recsys.pipelines.rerank_fit_module import Tuning
from recsys.pipelines.rerank_fit_pairs import CrossEncoderModule, offset_scale, pair_examples
from recsys.pipelines.rerank_fit_run import RunFolder
from recsys.pipelines.rerank_fit_teacher import taught
from recsys.pipelines.rerank_fit_training import train_module
from recsys.pipelines.rerank_lists import RerankLists
from recsys.retrieval.rerank.cross_encoder import CrossEncoderReranker
from recsys.retrieval.rerank.fusion import rerank_scores
from recsys.retrieval.rerank.lm.adapter import TRAINED, fingerprint
from recsys.tokenizers.text_encoder import LOADING_ERRORS

__all__ = ["fit_cross_encoder", "start_folder"]

FORMAT_VERSION = 1
_ACTIVATION = "torch.nn.modules.linear.Identity"
"""What sentence-transformers is to do with the output: nothing, so that scores add up."""
_AT_ONCE = 16


def fit_cross_encoder(
    lm: Path,
    output: Path,
    drawn: FitLists,
    held_out: RerankLists | None,
    tuning: Tuning,
    settings: dict[str, Any],
    *,
    resume: bool,
) -> None:
    """Train on lists, measure on held-out ones, write the folder.

    Args:
        lm: folder of an encoder, whose output is new then, or of a cross-encoder.
        output: of the trained model.
        drawn: makes the lists.
        held_out: of the test split; None = none are measured.
        tuning: how.
        settings: of the command: ``lists``, ``users``, ``teacher``, ``prompt``, ``max_tokens``, ``valid_users``.
        resume: go on with a run that was killed.

    Raises:
        InputError: the folder holds no encoder, or a setting does not fit.
    """
    config = _config(lm)
    settings = settings | {"lm": fingerprint(lm)}
    prompt = settings["prompt"] or "cross_encoder"
    with TemporaryDirectory() as made:
        start = start_folder(lm, Path(made) / "start", tuning.seed)
        reranker, net = CrossEncoderReranker(start, prompt=prompt), _net(start)
    learned = drawn.learned(settings["lists"], settings["users"], add_missing=False)
    teacher = settings["teacher"]
    learned, wanted = taught(None if teacher is None else Path(teacher), learned)
    examples = within_budget(pair_examples(reranker, learned, wanted), settings["max_tokens"] // tuning.epochs)
    unseen = drawn.judged(settings["lists"], settings["valid_users"]) if settings["valid_users"] else None
    judged = [] if unseen is None or tuning.epochs == 1 else pair_examples(reranker, unseen)
    run = RunFolder(output, settings, resume=resume)
    before = run.before
    if before is None and held_out is not None and _is_classifier(config):  # a new output says nothing
        before = measured(reranker, held_out, tuning.seed, "before", weight=1.0)
        run.keep_before(before)
    scale = offset_scale(examples)
    num_tokens = sum(one.num_tokens for one in examples)
    stdout_console().print(
        f"learning from {len(examples):,} lists, {num_tokens:,} tokens, {tuning.epochs} times; {len(judged)} choose "
        f"the epoch; the score before counts {scale:.2f}"
    )
    began = time.perf_counter()
    module = CrossEncoderModule(net, reranker.model.tokenizer, examples, judged, tuning, scale=scale)
    figure = train_module(module, run)
    about: dict[str, Any] = {
        "format": "recsys-reranker",
        "format_version": FORMAT_VERSION,
        "method": "cross-encoder",
        "prompt": {"name": reranker.prompt.name, "sha256": sha256_file(Path(reranker.prompt.source))},
        "base_model": str(lm.absolute()),
        "base_fingerprint": settings["lm"],
        "settings": settings,
        "tuning": asdict(tuning),
        "learned": {
            "lists": len(examples),
            "tokens": num_tokens * tuning.epochs,
            "seconds": round(time.perf_counter() - began, 3),
        },
        "best_epoch_figure": figure,
        "scale": scale,
    }
    with atomic_folder(output, marker=TRAINED) as folder:
        net.save_pretrained(folder)
        reranker.model.tokenizer.save_pretrained(folder)
        trained = CrossEncoderReranker(folder, prompt=prompt)
        weight = _weight(trained, learned.take(range(min(len(learned), 50))) if unseen is None else unseen, scale)
        about["weight"] = weight
        if held_out is not None:
            about["before"] = before
            about["after"] = measured(trained, held_out, tuning.seed, "after", weight=weight)
        write_json(folder / TRAINED, about)
    run.remove()
    if "after" in about:
        say_figures(about["after"], about["before"])
    worded = f" --prompt {settings['prompt']}" if settings["prompt"] else ""
    stdout_console().print(
        f"use it with the method cross-encoder: --cross-encoder {output} --rerank-weight {weight:g}{worded}, which "
        "adds both scores as they were learned together"
    )


def start_folder(lm: Path, folder: Path, seed: int) -> Path:
    """Write the cross-encoder that training starts from.

    Args:
        lm: folder of an encoder or of a sequence classifier with one output, weights as safetensors. Nothing is
            fetched, and no code of the folder is run.
        folder: where it is to stand; one that is there is written again.
        seed: of the weights of a new output.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds no such model, or transformers is not installed.
    """
    config = _config(lm)
    if not any(lm.glob("*.safetensors")):
        raise InputError(f"--lm {lm} holds no .safetensors weights; save the model with save_pretrained")
    outputs = len(config.get("id2label") or ()) or 2  # the number that transformers takes where nothing is said
    if _is_classifier(config) and outputs != 1:
        raise InputError(f"--lm {lm} has {outputs} outputs; give a cross-encoder with one, or an encoder without any")
    try:
        from transformers import AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(f"cross-encoders need transformers ({error}); pip install 'recsys[rag]'") from None
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # that an output is new
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(lm, local_files_only=True, trust_remote_code=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = _net(lm)
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--lm {lm} cannot be made a cross-encoder ({reason}); give an encoder such as BERT") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if tokenizer.pad_token_id is None:
        raise InputError(f"--lm {lm}: its tokenizer has no padding token; give an encoder such as BERT")
    if net.config.pad_token_id is None:
        net.config.pad_token_id = tokenizer.pad_token_id
    net.config.sentence_transformers = {"activation_fn": _ACTIVATION}
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _net(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    )


def _config(lm: Path) -> dict[str, Any]:
    if not (lm / "config.json").is_file():
        raise InputError(f"--lm {lm} holds no encoder (no config.json); give a folder of save_pretrained")
    config = read_json(lm / "config.json")
    return config if isinstance(config, dict) else {}


def _is_classifier(config: dict[str, Any]) -> bool:
    return any(str(kind).endswith("ForSequenceClassification") for kind in config.get("architectures") or ())


def _weight(reranker: CrossEncoderReranker, lists: RerankLists, scale: float) -> float:
    """What fusion, which standardises both scores, has to multiply the cross-encoder's by so that they add up as in
    training: the mean spread of its scores within a list over the scale of the earlier one."""
    spreads: list[float] = []
    with progress_bar("weighing", len(lists), unit="lists") as advance:
        for low in range(0, len(lists), _AT_ONCE):
            results = reranker.rerank(lists.requests[low : low + _AT_ONCE])
            spreads += [float(rerank_scores(result).std()) for result in results]
            advance(len(results))
    return round(float(np.mean(spreads)) / max(scale, 0.01), 4)
