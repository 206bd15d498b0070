"""Fine-tuning of a language model on lists, with checkpoints that a killed run goes on from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from recsys.errors import InputError
from recsys.pipelines.console import progress_bar
from recsys.pipelines.last_checkpoint import LastCheckpoint
from recsys.pipelines.rerank_fit_examples import Example
from recsys.pipelines.rerank_fit_module import FIGURE, RerankModule, Tuning, score_examples
from recsys.pipelines.rerank_fit_run import RunFolder
from recsys.retrieval.rerank.lm.local import LocalLanguageModel

__all__ = ["train_module", "train_reranker"]

_LAST_EVERY = 10
"""Steps between checkpoints."""


def train_reranker(
    model: LocalLanguageModel,
    examples: list[Example],
    judged: list[Example],
    tuning: Tuning,
    run: RunFolder,
    *,
    lora_rank: int,
    watchers: Sequence[L.Callback] = (),
) -> tuple[Any, float | None]:
    """The network after its best epoch, and what that epoch was chosen by; None where nothing chose.

    Args:
        model: to start from; its network is trained in place.
        examples: to learn from. judged: that choose the epoch; may be empty.
        tuning: how.
        run: holds the checkpoints, and one to go on from where there is one.
        lora_rank: of the adapters; 0 = all weights are trained.
        watchers: callbacks that run beside those of every training.
    """
    net = model.model
    if tuning.loss == "irpo":
        with progress_bar("reference", None, unit="lists"):
            scores = score_examples(net, examples, tuning.batch_lists)
        examples = [replace(one, reference=row) for one, row in zip(examples, scores, strict=True)]
    # Small steps of all weights would be lost in bfloat16; adapters are float32 by themselves.
    net = _with_adapters(net, lora_rank, tuning.seed) if lora_rank else net.float().requires_grad_(True)
    figure = train_module(RerankModule(net, examples, judged, tuning), run, watchers=watchers)
    return net, figure


def train_module(module: RerankModule, run: RunFolder, *, watchers: Sequence[L.Callback] = ()) -> float | None:
    """Train a module's network in place, and leave it as it was after its best epoch.

    Args:
        module: with its lists; those that choose the epoch may be none.
        run: holds the checkpoints, and one to go on from where there is one.
        watchers: callbacks that run beside those of every training.

    Returns:
        What the best epoch was chosen by; None where nothing chose.

    Raises:
        InputError: a weight is no number any more.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", message=".*is deprecated")
        module.net.train()
        callbacks: list[L.Callback] = [RichProgressBar(), LastCheckpoint(run.path, _LAST_EVERY), *watchers]
        if module.judges:
            best = ModelCheckpoint(run.path, "best", monitor=FIGURE, mode="max", enable_version_counter=False)
            callbacks.append(best)
        trainer = L.Trainer(
            default_root_dir=run.path,
            max_epochs=module.tuning.epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            callbacks=callbacks,
            enable_model_summary=False,
            enable_checkpointing=module.judges,
            num_sanity_val_steps=0,
            limit_val_batches=None if module.judges else 0,
        )
        trainer.fit(module, ckpt_path=run.last, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    figure = None
    if module.judges:
        content = torch.load(run.path / "best.ckpt", map_location="cpu", weights_only=True)
        module.load_state_dict(content["state_dict"], strict=False)
        figure = float(best.best_model_score or 0.0)
    if not all(torch.isfinite(parameter).all() for parameter in module.parameters() if parameter.requires_grad):
        raise InputError(f"training left weights that are no numbers; give a lower --lr than {module.tuning.lr:g}")
    module.net.eval()
    return figure


def _with_adapters(net: Any, rank: int, seed: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError(f"adapters need peft ({error}); pip install 'recsys[llm]', or train with --whole") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated")
        torch.manual_seed(seed)
        return get_peft_model(net, config)
