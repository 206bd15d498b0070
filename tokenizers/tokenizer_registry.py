"""Tokenizers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from recsys.tokenizers.fitted_tokenizer import FORMAT, FORMAT_VERSION, FittedTokenizer, config_from
from recsys.tokenizers.fsq import Fsq
from recsys.tokenizers.product_codes import ProductCodes
from recsys.tokenizers.residual_kmeans import ResidualKMeans
from recsys.tokenizers.rq_vae import RqVae
from recsys.tokenizers.tokenizer_files import CONFIG_FILE, read_tokenizer

__all__ = ["TOKENIZER_METHODS", "fit_tokenizer", "load_tokenizer", "tokenizer_config"]

_CLASSES: dict[str, type[Any]] = {made.name: made for made in (ResidualKMeans, RqVae, Fsq, ProductCodes)}
TOKENIZER_METHODS = tuple(_CLASSES)
"""Names of the methods, the default first."""
NEURAL_METHODS = (RqVae.name, Fsq.name)
"""Those with a network, which take ``device`` and block dropout."""


def _class_of(method: str) -> type[Any]:
    if method not in _CLASSES:
        raise ValueError(f"there is no tokenizer {method!r}; choose one of {', '.join(TOKENIZER_METHODS)}")
    return _CLASSES[method]


def tokenizer_config(method: str, **options: Any) -> Any:
    """The config of a method; ValueError for an unknown method or option."""
    return config_from(_class_of(method).config_class, options, where=method)


def fit_tokenizer(
    method: str, vectors_IV: ArrayLike, config: Any = None, *, seed: int = 0, device: str = "cpu", **options: Any
) -> FittedTokenizer:
    """Fit a tokenizer on the vectors of a catalogue.

    Args:
        method: one of :data:`TOKENIZER_METHODS`.
        vectors_IV: [I, V] finite floats, one row per item.
        config: of the method; or give its fields as ``options``.
        seed: of everything that is drawn.
        device: where networks train; k-means runs on the CPU.
        options: fields of the config.

    Returns:
        The tokenizer; its :meth:`assign` gives the catalogue's codes.

    Raises:
        ValueError: an unknown method or option, or vectors that cannot work.
        TypeError: the config of another method.
    """
    chosen = _class_of(method)
    if config is None:
        config = tokenizer_config(method, **options)
    elif options:
        raise ValueError(f"{method}: give a config or its fields ({', '.join(options)}), not both")
    elif not isinstance(config, chosen.config_class):
        raise TypeError(f"{method} takes a {chosen.config_class.__name__}, got a {type(config).__name__}")
    where = {"device": device} if method in NEURAL_METHODS else {}
    tokenizer: FittedTokenizer = chosen.fit(vectors_IV, config, seed=seed, **where)
    return tokenizer


def load_tokenizer(folder: Path) -> FittedTokenizer:
    """Read a tokenizer of any method.

    Raises:
        ValueError: one line naming the file that is missing, changed or foreign, and what to do.
    """
    header, _ = read_tokenizer(folder, format=FORMAT, format_version=FORMAT_VERSION)
    if header["method"] not in _CLASSES:
        raise ValueError(
            f"{folder / CONFIG_FILE} holds a tokenizer {header['method']!r} that this version does not know"
        )
    tokenizer: FittedTokenizer = _CLASSES[header["method"]].load(folder)
    return tokenizer
