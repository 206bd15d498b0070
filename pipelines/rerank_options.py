"""What the commands that rerank have in common: which reranker, on how much of a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import read_json, sha256_file
from recsys.pipelines.language_model import ModelOptions, named_model
from recsys.pipelines.rerank_fit_lists import validation_users
from recsys.retrieval.rerank.chain import RerankChain
from recsys.retrieval.rerank.lm.adapter import TRAINED
from recsys.retrieval.rerank.lm.protocol import LanguageModel
from recsys.retrieval.rerank.open import METHODS, NEEDS_LM, PROMPTED, open_reranker
from recsys.retrieval.rerank.reranker import Reranker

__all__ = ["RerankOptions", "refuse_rerank_flags"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """The flags of a reranker. Refused at once: a method without what it needs, or with what it does not read."""

    method: str
    lm: str | None = None
    model: ModelOptions = field(default_factory=ModelOptions)
    """The flags beside ``lm``."""
    cross_encoder: Path | None = None
    feedback: Path | None = None
    prompt: str | None = None
    top: int = 20
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"no reranking method is called {self.method!r}; there are {', '.join(METHODS)}")
        reads = {
            "lm": self.method in NEEDS_LM,
            "cross_encoder": self.method == "cross-encoder",
            "feedback": self.method == "embedding-feedback",
            "prompt": self.method in PROMPTED,
        }
        for name, is_read in reads.items():
            flag = f"--{name.replace('_', '-')}"
            if getattr(self, name) is not None and not is_read:
                raise InputError(f"{flag}: the method {self.method} does not read it; leave it out")
            if getattr(self, name) is None and is_read and name in ("lm", "cross_encoder"):
                what = "a folder, or http(s)://host/v1#model" if name == "lm" else "the folder of a cross-encoder"
                raise InputError(f"{flag} must be given for the method {self.method}: {what}")
        if self.lm is None and self.model.flags:
            raise InputError(f"{self.model.flags[0]}: the method {self.method} asks no language model; leave it out")
        self.model.check(self.lm)
        if self.top < 2:
            raise InputError(f"--rerank-top must be at least 2, got {self.top}")
        if self.weight is not None and not 0 <= self.weight < float("inf"):
            raise InputError(f"--rerank-weight must be a number from 0, got {self.weight}")

    @classmethod
    def of_methods(cls, methods: str, **fields: Any) -> list[RerankOptions]:
        """Options of several methods, A,B, that share their flags; each gets those that it reads."""
        names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
        if not names:
            raise InputError(f"--rerank names no method; there are {', '.join(METHODS)}")
        if len(names) == 1:
            return [cls(method=names[0], **fields)]
        made = []
        for name in names:
            mine = dict(fields)
            if name not in NEEDS_LM:
                mine |= {"lm": None, "model": ModelOptions()}
            if name not in PROMPTED:
                mine["prompt"] = None
            if name != "cross-encoder":
                mine["cross_encoder"] = None
            if name != "embedding-feedback":
                mine["feedback"] = None
            made.append(cls(method=name, **mine))
        return made

    def open(self, bundle: Bundle, *, training_only: bool = False, lm: LanguageModel | None = None) -> Reranker:
        """Load the reranker.

        Args:
            bundle: that retrieves the lists.
            training_only: whether transitions of training events alone may be used, as for validation and test.
            lm: open already; None = what the flag names.
        """
        if lm is None and self.lm is not None:
            lm = named_model(self.lm, self.model)
        settings: dict[str, Any] = {"training_only": training_only} if self.method == "embedding-feedback" else {}
        return open_reranker(
            self.method,
            lm=lm if self.method in NEEDS_LM else None,
            bundle=bundle,
            cross_encoder=self.cross_encoder,
            feedback=self.feedback,
            prompt=self.prompt,
            **settings,
        )

    def chain(self, bundle: Bundle, *, training_only: bool = False) -> RerankChain:
        """The reranker as requests use it; see :meth:`open`."""
        return RerankChain(self.open(bundle, training_only=training_only), top=self.top, weight=self.weight)

    @property
    def holds_earlier_score(self) -> bool:
        """Whether the reranker's score is that of the retriever and what it adds, so that no weight is chosen."""
        return self.method == "embedding-feedback"

    def unseen_users(self, dataset: Dataset) -> Ints | None:
        """Internal users whose validation targets a trained model has not seen; None = all.

        Raises:
            InputError: the model was trained on other data.
        """
        flag, model = ("--lm", self.lm) if self.cross_encoder is None else ("--cross-encoder", self.cross_encoder)
        about = None if model is None else Path(model) / TRAINED
        if about is None or not about.is_file():
            return None
        settings = read_json(about).get("settings", {})
        if settings.get("lists") != "validation":
            return None
        if settings.get("data") != dataset.manifest.data_hash:
            raise InputError(f"{flag}: {about} was trained on the targets of other data than {dataset.path}")
        return validation_users(dataset, int(settings["seed"]))[1]

    def identity(self) -> dict[str, Any]:
        """What decides the orders, for records and plans: the settings, and hashes of local weights and prompts."""
        said = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        del said["model"]  # prices and patience decide no order
        said["lm_prefill"] = None if self.model.prefill else False
        said["lm_dtype"] = self.model.dtype
        for name in ("lm", "cross_encoder", "feedback", "prompt"):
            path = None if said[name] is None else Path(said[name])
            if path is not None and path.exists():
                files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
                said[f"{name}_hash"] = [sha256_file(file)[:16] for file in files]
        return {name: value for name, value in said.items() if value is not None}

    @classmethod
    def of_identity(cls, said: Mapping[str, Any]) -> RerankOptions:
        """The options whose :meth:`identity` this is, to measure once more.

        Raises:
            InputError: a model or prompt is gone, or is another one now.
        """
        fields: dict[str, Any] = {name: said.get(name) for name in ("method", "lm", "prompt", "top", "weight")}
        fields |= {name: Path(said[name]) for name in ("cross_encoder", "feedback") if name in said}
        model = ModelOptions(dtype=said.get("lm_dtype"), prefill=said.get("lm_prefill", True))
        found = cls(**fields, model=model)
        if found.identity() != dict(said):
            raise InputError(f"the model or prompt of {said['method']} has changed since its row; measure it again")
        return found


def refuse_rerank_flags(lm: str | None, model: ModelOptions, *others: object) -> None:
    """Where no method is given.

    Args:
        lm, model, others: flags that only a reranker reads; None = not given.

    Raises:
        InputError: some are given.
    """
    if model.flags:
        raise InputError(f"{model.flags[0]} belongs to --rerank METHOD with --lm")
    if any(one is not None for one in (lm, *others)):
        raise InputError("--lm, --cross-encoder, --feedback, --prompt and --rerank-weight belong to --rerank METHOD")
