"""``recsys fit|validate|test|predict``: the Lightning command line, with settings chosen for the data at hand."""

from __future__ import annotations

import inspect
import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import atomic_file, check_local
from recsys.index.memory_terms import MemoryWeights
from recsys.model_config import ModelConfig
from recsys.pipelines.checkpoint import load_model
from recsys.pipelines.code_training import add_code_heads
from recsys.pipelines.console import stdout_console
from recsys.pipelines.data_module import PreparedData
from recsys.pipelines.hybrid_choice import ChosenHybrid, add_hybrid_weights
from recsys.pipelines.item_graphs import chosen_relations
from recsys.pipelines.last_checkpoint import LastCheckpoint, WholeCheckpoints, last_of_run
from recsys.pipelines.memory_weights import ChosenWeights, add_memory_weights
from recsys.pipelines.model_codes import with_codes
from recsys.pipelines.ranking_shares import add_ranking_shares
from recsys.pipelines.recipe import chosen_code_epochs
from recsys.pipelines.unified_module import SELECTION, UnifiedModule
from recsys.pipelines.warm_start import warm_start
from recsys.retrieval.hybrid import LISTED

__all__ = ["add_training_flags", "fit_dataset", "main"]

_KNOWN_WARNINGS = (
    "LightningCLI's args parameter",
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # ours needs no state: batches are functions of seed and step
    ".*smaller than the logging interval.*",
    "Checkpoint directory .* exists and is not empty",
    ".*treespec.*is deprecated.*",
    ".*callbacks used to create the checkpoint.*",  # validate and test need none of them
)
_COMMANDS = ("fit", "validate", "test")


class _SaveConfig(SaveConfigCallback):
    """Keeps every setting of the run beside its checkpoints, in ``config.yaml``."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        with atomic_file(folder / "config.yaml") as partial:
            self.parser.save(self.config, partial, skip_none=False, overwrite=True, multifile=False)


class _Patience(EarlyStopping):
    """Early stopping that waits for the rate to fall: figures that stand still at the peak rate rise once it does."""

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        module, last = trainer.lightning_module, trainer.max_epochs
        assert isinstance(module, UnifiedModule)
        if last is not None and trainer.current_epoch < (1.0 - module.decay_share) * last:
            self.wait_count = -1  # what this epoch adds is not counted
        super()._run_early_stopping_check(trainer)


def add_training_flags(parser: ArgumentParser) -> None:
    """Flags of ``recsys fit`` beside those of the data, the model and the trainer."""
    parser.add_argument(
        "--patience",
        type=int,
        default=3,
        help="epochs on end that validation may be no better once the learning rate falls",
    )
    parser.add_argument("--quiet", type=bool, default=False, help="say nothing of what was chosen")
    parser.add_argument("--memory", type=bool, default=True, help="choose weights of memory terms on validation")
    parser.add_argument(
        "--memory_relations",
        type=str,
        default="default",
        help="relations of the memory terms, A,B: default (transition, all kinds of text), two_step, pagerank, …",
    )
    parser.add_argument(
        "--new_item_factor",
        type=PositiveFloat | None,
        default=None,
        help="how many times content counts in the memory terms of items without training events; null = chosen so "
        "that new items fare no worse than by content alone",
    )
    parser.add_argument(
        "--code_epochs",
        type=NonNegativeInt | None,
        default=None,
        help="passes over the training events in which the heads of semantic IDs learn, after the best epoch is "
        "known; 0 = the model gets none; null = 2, or 1 where there are more than 1.33 million events",
    )
    # Two spellings: that of this command line, and that of all others.
    parser.add_argument(
        "--init_from",
        "--init-from",
        type=str,
        default=None,
        help="start from the weights of a checkpoint of an earlier state of the data; items, actions and surfaces are "
        "matched by their ids and names",
    )
    parser.add_argument("--last_every_n_steps", type=int, default=100, help="steps between writes of last.ckpt")


class _TrainingCLI(LightningCLI):
    """LightningCLI whose unset values come from the recipe of the data set."""

    notes: tuple[str, ...] = ()
    """How the network came about, where it does not start anew."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_training_flags(parser)

    def _parse_ckpt_path(self) -> None:
        """Lightning would unpack the checkpoint here to look for settings; ours are read, and checked, later."""

    def before_instantiate_classes(self) -> None:
        """Lightning's own flag for the seed is the seed of the data module, which decides all that is drawn."""
        config = self.config[self.subcommand]
        seed = config.get("seed_everything")
        if seed is None or isinstance(seed, bool):
            return
        if config["data"]["seed"] not in (0, seed):
            raise InputError(f"--seed_everything {seed} and --data.seed {config['data']['seed']} differ; give one")
        config["data"]["seed"] = seed

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[self.subcommand]
        trainer, data, module = config["trainer"], self.datamodule, self.model
        assert isinstance(data, PreparedData) and isinstance(module, UnifiedModule)
        checkpoint = config.get("ckpt_path")
        if self.subcommand == "fit":
            chosen_relations(data.dataset, config["memory_relations"])  # a wrong name is said now, not after training
            if config["new_item_factor"] == math.inf:
                raise InputError("--new_item_factor must be a finite number, got inf")
            folder = Path(trainer["default_root_dir"] or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
            check_local(folder, "--trainer.default_root_dir")
            if trainer["max_epochs"] is None and trainer["max_steps"] == -1:
                kwargs["max_epochs"] = data.recipe.max_epochs
            kwargs |= {"default_root_dir": str(folder)}
            if trainer["logger"] is None:
                kwargs["logger"] = [CSVLogger(folder, "logs"), TensorBoardLogger(folder, "tensorboard")]
            if trainer["plugins"] is None:
                kwargs["plugins"] = [WholeCheckpoints()]
            kwargs["callbacks"] = [*(trainer["callbacks"] or []), *_callbacks(folder / "checkpoints", data, config)]
        elif checkpoint is None:
            raise InputError("--ckpt_path must name a checkpoint, e.g. RUN/checkpoints/best.ckpt")
        else:
            kwargs["logger"] = trainer["logger"] or False
        if trainer["enable_checkpointing"] is None and self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        if self.subcommand == "fit" and checkpoint is None and config["init_from"] is not None:
            started = warm_start(data, module.changes, Path(config["init_from"]))
            module.net, module.changes, self.notes = started.network, started.network.config.to_dict(), started.notes
            module.tokenizers = started.tokenizers
        module.codes_settled = config.get("init_from") is not None
        if checkpoint is not None:
            _take_over(module, data, Path(checkpoint), trained=self.subcommand != "fit")
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except (MisconfigurationException, ValueError) as error:
            line = " ".join(str(error).split())[:200]
            raise InputError(f"the --trainer.… flags cannot be followed ({line}); change them") from error

    def before_fit(self) -> None:
        assert isinstance(self.datamodule, PreparedData) and isinstance(self.model, UnifiedModule)
        self.model.start(self.datamodule)  # what is wrong with its settings is said before there is a run folder
        if not self.config_init.fit.quiet:
            _say_choice(self.datamodule, self.model, self.trainer, self.notes)

    def after_fit(self) -> None:
        assert isinstance(self.datamodule, PreparedData)
        best = Path(self.trainer.default_root_dir) / "checkpoints" / "best.ckpt"
        if not best.exists():  # stopped before the first validation: what there is, is the best
            self.trainer.save_checkpoint(best)
        chosen, shares = None, dict[str, float]()
        if self.trainer.is_global_zero and not self.trainer.interrupted:
            shares = add_ranking_shares(best, self.datamodule.dataset)
            self._add_code_heads(best)
        if self.config_init.fit.memory and self.trainer.is_global_zero and not self.trainer.interrupted:
            relations = chosen_relations(self.datamodule.dataset, self.config_init.fit.memory_relations)
            factor = self.config_init.fit.new_item_factor
            chosen = add_memory_weights(best, self.datamodule.dataset, relations, factor)
        hybrid = None
        if self.trainer.is_global_zero and not self.trainer.interrupted:
            hybrid = add_hybrid_weights(best, self.datamodule.dataset)
        if not self.config_init.fit.quiet:
            _say_result(self.datamodule, self.trainer, chosen, shares, hybrid)

    def _add_code_heads(self, best: Path) -> None:
        config, data = self.config_init.fit, self.datamodule
        assert isinstance(data, PreparedData)
        epochs = config.code_epochs
        if epochs is None:
            epochs = chosen_code_epochs(int(data.dataset.train_end.sum()))
        if not epochs:
            return
        before = self.trainer.global_step

        def log(figures: dict[str, float], step: int) -> None:
            for logger in self.trainer.loggers:
                logger.log_metrics(figures, step=before + step)

        init_from = None if config.init_from is None else Path(config.init_from)
        add_code_heads(best, data, epochs, init_from=init_from, moved=before > 0, log=log)
        for logger in self.trainer.loggers:
            logger.save()


def _callbacks(folder: Path, data: PreparedData, config: Any) -> list[L.Callback]:
    judged = len(data.dataset.requests("validation")) > 0 and config["trainer"]["limit_val_batches"] != 0
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=SELECTION if judged else None,
        mode="max",
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=not judged,
    )
    callbacks: list[L.Callback] = [best]
    if judged:
        callbacks.append(_Patience(SELECTION, mode="max", patience=config["patience"], strict=False))
    if config["trainer"]["enable_progress_bar"] is not False:
        callbacks.append(RichProgressBar())
    return [*callbacks, LastCheckpoint(folder, config["last_every_n_steps"])]


def _take_over(module: UnifiedModule, data: PreparedData, checkpoint: Path, *, trained: bool) -> None:
    """A checkpoint decides the network; flags that contradict it are an error."""
    model, meta = load_model(checkpoint)
    if meta.get("data_hash") != data.dataset.manifest.data_hash:
        raise InputError(
            f"{checkpoint} was trained on another dataset than {data.dataset.path}; give the one it was trained on"
        )
    stored = ModelConfig.from_dict(meta["config"]).to_dict()
    for name, value in module.changes.items():
        if stored[name] != value:
            raise InputError(
                f"{checkpoint} has model.{name} = {stored[name]!r}, not {value!r}; leave the flag out or train anew"
            )
    module.changes, module.tokenizers = stored, meta.get("tokenizers")
    if not trained and stored["detach_codes"]:  # heads of semantic IDs come after the last epoch, in best.ckpt alone
        module.changes = with_codes(model.config, None).to_dict()
    if trained and meta.get("memory_weights"):
        module.memory_weights = MemoryWeights.from_dict(meta["memory_weights"])


def _resumed(argv: list[str]) -> list[str]:
    """Resolve ``--ckpt_path last``; in a fit the run's own settings come first, flags given now after them."""
    if _flag(argv, "--ckpt_path") != "last":
        return argv
    folder = _flag(argv, "--trainer.default_root_dir")
    last = last_of_run(None if folder is None else Path(folder))
    root, rest = last.parent.parent, _without(argv[1:], "--ckpt_path")
    if argv[0] != "fit":
        return [argv[0], *rest, "--ckpt_path", str(last)]
    settings = ["--config", str(root / "config.yaml")] if (root / "config.yaml").is_file() else []
    where = ["--trainer.default_root_dir", str(root)]
    # Killed before its first checkpoint, a run starts again: same seed, same bytes.
    return [
        "fit",
        *settings,
        *_without(rest, "--trainer.default_root_dir"),
        *where,
        *(["--ckpt_path", str(last)] if last.is_file() else ["--ckpt_path", "null"]),
    ]


def _flag(argv: Sequence[str], name: str) -> str | None:
    for place, word in enumerate(argv):
        if word == name and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
    return None


def _without(argv: list[str], name: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip or word == name:
            skip = word == name
            continue
        if not word.startswith(name + "="):
            kept.append(word)
    return kept


def main(argv: list[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        InputError: bad input, one line.
        argparse.ArgumentError: a flag that does not parse; the caller reduces it to a line.
    """
    if argv[0] == "predict":
        from recsys.pipelines.predict import main as predict

        predict(argv[1:])
        return
    data = _flag(argv, "--data")
    if data is not None and Path(data).is_dir():  # the flag of most other commands; here it takes a YAML file
        raise InputError(f"--data must be --data.path here, as in `recsys {argv[0]} --data.path {data}`")
    _run(argv)


def _run(argv: list[str], watchers: Sequence[L.Callback] = ()) -> _TrainingCLI:
    quiet = {"exit_on_error": False, "allow_abbrev": False}
    resumed = _resumed(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        cli = _TrainingCLI(
            UnifiedModule,
            PreparedData,
            args=[resumed[0], "--weights_only=true", *resumed[1:]],
            seed_everything_default=False,
            save_config_callback=_SaveConfig,
            auto_configure_optimizers=False,
            parser_kwargs={**quiet, **dict.fromkeys(_COMMANDS, quiet)},
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "callbacks": list(watchers),
            },
        )
    return cli


def _say_choice(data: PreparedData, module: UnifiedModule, trainer: L.Trainer, more: Sequence[str]) -> None:
    console = stdout_console()
    stated = set(module.changes) | ({"batch_tokens"} if data.batch_tokens is not None else set())
    chosen = (reason for setting, reason in data.recipe.reasons.items() if setting not in stated)
    for note in (*data.dataset.manifest.notes, *chosen, *more):
        console.print(f"· {note}")
    console.print(f"· run folder {trainer.default_root_dir}, at most {trainer.max_epochs} epochs")


def _say_result(
    data: PreparedData,
    trainer: L.Trainer,
    chosen: ChosenWeights | None,
    shares: Mapping[str, float],
    hybrid: ChosenHybrid | None,
) -> None:
    console = stdout_console()
    best = Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt"
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    if score is not None:
        ranks = any(name.startswith("val/") and name.endswith("/auc") for name in trainer.callback_metrics)
        what = "NDCG@10 of dense_learned" + (" × (2 AUC − 1) of the actions" if ranks else "")
        console.print(f"best validation {what}: {float(score):.4f} (full ranking, history filtered)")
    if shares:
        about = ", ".join(f"{action} {share:.2f}" for action, share in shares.items())
        console.print(f"ranking believes of the network, beside past rates: {about}")
    if chosen is not None and chosen.num_requests:
        about = ", ".join(f"{name} {row[0]:.3g}" for name, row in chosen.weights.relations.items())
        console.print(
            f"with memory terms: {chosen.sum_ndcg:.4f} beside {chosen.learned_ndcg:.4f} on {chosen.num_requests:,} "
            f"requests (learned {chosen.weights.learned:.3g}, {about}; newest item, then decaying)"
        )
        if chosen.new_items is not None:
            new = chosen.new_items
            console.print(
                f"content counts {new.factor:g} times for items without training events: {new.ndcg:.4f} on targets "
                f"taken for such, {new.plain_ndcg:.4f} with 1, {new.content_ndcg:.4f} by content alone"
            )
    if hybrid is not None and hybrid.num_requests:
        about = ", ".join(f"{name} {weight:g}" for name, weight in hybrid.weights.codes.items()) or "nothing"
        console.print(
            f"with semantic IDs: {hybrid.ndcg:.4f} beside {hybrid.dense_ndcg:.4f} of dense on {hybrid.num_requests:,} "
            f"requests (hybrid adds {about}; the learned score {hybrid.weights.learned:+.3g}, items without training "
            f"events {hybrid.weights.cold:+g})"
        )
        if hybrid.head is not None:
            console.print(
                f"a head for the first {LISTED} hits of hybrid: {hybrid.head.ndcg:.4f} beside "
                f"{hybrid.head.start_ndcg:.4f} of the sum, on lists that it did not learn from"
            )
    if chosen is not None and chosen.new_users is not None:
        start = chosen.new_users
        console.print(
            f"users without any event start from frequent items: {start.ndcg:.4f} beside {start.plain_ndcg:.4f}"
        )
    console.print("serve it with:")
    console.print(f"  recsys export --checkpoint {best} --data {data.dataset.path} --output bundle --histories")


def fit_dataset(
    dataset: Dataset,
    root_dir: Path,
    *,
    flags: Sequence[str] = (),
    watchers: Sequence[L.Callback] = (),
    **settings: Any,
) -> Path:
    """Train on a prepared dataset through the command line's own code.

    Args:
        root_dir: folder of the run.
        flags: more words of the command line, such as ``--trainer.accelerator=cpu``.
        watchers: callbacks that run beside those of every training.
        settings: parameters of :class:`UnifiedModule`, :class:`PreparedData` or of Lightning's ``Trainer``, by name.

    Returns:
        the checkpoint of the best epoch; see :data:`~recsys.pipelines.unified_module.SELECTION`.

    Raises:
        InputError: an unknown or impossible setting.
    """
    homes = {
        **dict.fromkeys(inspect.signature(L.Trainer.__init__).parameters, "trainer."),
        **dict.fromkeys(inspect.signature(PreparedData.__init__).parameters, "data."),
        **dict.fromkeys(inspect.signature(UnifiedModule.__init__).parameters, "model."),
        "patience": "",
        "quiet": "",
        "last_every_n_steps": "",
        "memory": "",
        "memory_relations": "",
        "new_item_factor": "",
        "init_from": "",
        "code_epochs": "",
    }
    argv = ["fit", "--data.path", str(dataset.path), "--trainer.default_root_dir", str(root_dir)]
    for name, value in settings.items():
        if name not in homes or name in ("self", "path", "default_root_dir"):
            raise InputError(f"fit has no setting {name!r}; see `recsys fit --help`")
        argv.append(f"--{homes[name]}{name}={value}")
    _run([*argv, *flags], watchers)
    return Path(root_dir) / "checkpoints" / "best.ckpt"
