"""Semantic IDs of a dataset's items, with the tokenizers that made them, in memory and as a folder.

The folder holds ``sids.json`` (what it is), ``codes.parquet`` (item_id and a list of codes per kind) and, per kind, the
tokenizer in a folder of that name. Equal bytes for equal data, settings and seed.
Suffixes: I = items, L = levels, V = entries of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.files import atomic_folder, read_json, sha256_file, write_json
from recsys.pipelines.code_blocks import CodeBlocks, code_blocks
from recsys.pipelines.code_fitting import fit_fusion, fit_kind
from recsys.pipelines.code_settings import KINDS, CodeSettings
from recsys.pipelines.console import stderr_console
from recsys.tokenizers.fitted_tokenizer import config_from
from recsys.tokenizers.health import code_health
from recsys.tokenizers.item_tokenizer import FusedTokenizer, fused, load_item_tokenizer
from recsys.tokenizers.modalities import BlockFusion, SeparateTokenizers
from recsys.tokenizers.protocol import Codes, Health
from recsys.tokenizers.semantic_ids import SemanticIds

__all__ = ["CODES_FILE", "SIDS_FILE", "MadeCodes", "MadeKind", "make_codes", "tokenizer_tensors", "write_tokenizers"]

FORMAT = "recsys-sids"
FORMAT_VERSION = 1
SIDS_FILE = "sids.json"
CODES_FILE = "codes.parquet"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MadeKind:
    """One kind of codes of a catalogue."""

    ids: SemanticIds
    tokenizer: FusedTokenizer | SeparateTokenizers
    health: Health
    method: str

    @property
    def about(self) -> dict[str, Any]:
        """What ``sids.json`` says of it."""
        separate = isinstance(self.tokenizer, SeparateTokenizers)
        made = self.tokenizer.tokenizers if isinstance(self.tokenizer, SeparateTokenizers) else {}
        configs = {name: asdict(one.config) for name, one in made.items()}
        return {
            "method": self.method,
            "fuse": "separate" if separate else "fused",
            "blocks": list(self.tokenizer.widths),
            "settings": configs
            if isinstance(self.tokenizer, SeparateTokenizers)
            else asdict(self.tokenizer.tokenizer.config),
            "sizes": list(self.ids.codebook_sizes),
            "health": asdict(self.health),
            "content_hash": self.ids.content_hash,
        }


@dataclass(frozen=True, slots=True)
class MadeCodes:
    """Semantic IDs of a catalogue."""

    item_ids: pl.Series
    """Callers' ids in internal order."""
    kinds: dict[str, MadeKind]
    """By name, some of :data:`~recsys.pipelines.code_settings.KINDS`."""
    about: dict[str, Any]
    """Data hash, seed, and how each block was made: plain JSON."""

    def save(self, folder: Path) -> None:
        """Write the folder, which appears whole or not at all.

        Raises:
            InputError: another folder stands there.
        """
        with atomic_folder(folder, marker=SIDS_FILE) as partial:
            self.write(partial)

    def write(self, folder: Path) -> None:
        """Write into an existing folder."""
        columns = {
            kind: pl.Series(kind, made.ids.codes_IL.astype(np.int32)).cast(pl.List(pl.Int32))
            for kind, made in self.kinds.items()
        }
        pl.DataFrame({"item_id": self.item_ids, **columns}).write_parquet(folder / CODES_FILE)
        for kind, made in self.kinds.items():
            made.tokenizer.save(folder / kind)
        write_json(
            folder / SIDS_FILE,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                **self.about,
                "num_items": len(self.item_ids),
                "kinds": {kind: made.about for kind, made in self.kinds.items()},
                "files": {CODES_FILE: sha256_file(folder / CODES_FILE)},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> MadeCodes:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: a part is missing, changed or does not belong to the others.
        """
        about = read_sids(folder)
        frame = pl.read_parquet(folder / CODES_FILE)
        kinds = {}
        for kind in (kind for kind in KINDS if kind in about["kinds"]):
            said = about["kinds"][kind]
            try:
                tokenizer = load_item_tokenizer(folder / kind)
                ids = SemanticIds.from_codes(frame[kind].list.to_array(len(said["sizes"])).to_numpy(), said["sizes"])
            except ValueError as error:
                raise InputError(f"{folder}: {error}") from error
            if ids.content_hash != said["content_hash"] or tokenizer.codebook_sizes != ids.codebook_sizes:
                raise InputError(f"{folder}: {kind} and their tokenizer do not belong together; make the codes again")
            health = config_from(Health, said["health"], where=str(folder / SIDS_FILE))
            kinds[kind] = MadeKind(ids, tokenizer, health, said["method"])
        rest = {
            name: value
            for name, value in about.items()
            if name not in ("format", "format_version", "num_items", "kinds", "files")
        }
        return cls(frame["item_id"], kinds, rest)


def read_sids(folder: Path) -> dict[str, Any]:
    """``sids.json`` of a folder, its codes checked against their hash.

    Raises:
        InputError: a file is missing, changed, or of another format version.
    """
    about = read_json(folder / SIDS_FILE)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{folder / SIDS_FILE} does not describe semantic IDs; give a folder of `recsys tokenize`")
    if about.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder} has format version {about.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "run `recsys tokenize` again"
        )
    for name, checksum in about["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != checksum:
            raise InputError(f"{folder / name} is missing or was changed; run `recsys tokenize` again")
    return about


def make_codes(
    dataset: Dataset,
    settings: CodeSettings | None = None,
    *,
    checkpoint: Path | None = None,
    text_encoder: str | None = None,
    say: Callable[[str], None] | None = None,
    advance: Callable[[int], None] = lambda steps: None,
    **options: Any,
) -> MadeCodes | None:
    """Make semantic IDs of a dataset's items.

    Args:
        dataset: its content and its training events are read, nothing of validation and test.
        settings: or give its fields as ``options``.
        checkpoint: of a model trained on the dataset, whose item vectors become a block.
        text_encoder: PATH or NAME=PATH of a sentence-transformers model, whose vectors become a block.
        say: takes the lines that tell why there are no codes, or none of a kind; None = stderr.
        advance: called with 1 after the blocks and after every kind.
        options: fields of :class:`~recsys.pipelines.code_settings.CodeSettings`.

    Returns:
        The codes; None where nothing tells items apart.

    Raises:
        InputError: settings that cannot work on this catalogue.
    """
    settings = settings or config_from(CodeSettings, options, where="make_codes")
    names = None if settings.blocks is None else list(settings.blocks)
    blocks = code_blocks(dataset, names, checkpoint=checkpoint, text_encoder=text_encoder, seed=settings.seed)
    advance(1)
    chosen = settings.blocks is not None or settings.codebook_size is not None or settings.levels is not None
    tell = say or stderr_console().print
    kinds = {}
    if blocks.vectors:
        weights = {name: weight for name, weight in (settings.blocks or {}).items() if weight is not None}
        fusion = fit_fusion(blocks.vectors, weights, settings.seed)
        for kind in (kind for kind in KINDS if kind in settings.kinds):
            try:
                tokenizer = fit_kind(kind, blocks.vectors, fusion, settings)
            except ValueError as error:
                if chosen:
                    raise InputError(f"{kind} of {dataset.path}: {error}") from error
                tell(f"no {kind}: {error}")
                continue
            kinds[kind] = _made(blocks, tokenizer, fusion, settings.method if kind == "codes" else "opq")
            advance(1)
    else:
        tell("no semantic IDs: the items have neither content nor training events that follow each other")
    if not kinds:
        return None
    about = {"data_hash": dataset.manifest.data_hash, "seed": settings.seed, "blocks": described(blocks, fusion)}
    return MadeCodes(dataset.item_ids, kinds, about)


def _made(
    blocks: CodeBlocks, tokenizer: FusedTokenizer | SeparateTokenizers, fusion: BlockFusion, method: str
) -> MadeKind:
    ids = SemanticIds.from_codes(tokenizer.assign(subset(blocks.vectors, tokenizer)), tokenizer.codebook_sizes)
    return MadeKind(ids, tokenizer, item_health(blocks.vectors, tokenizer, ids.codes_IL, fusion), method)


def described(blocks: CodeBlocks, fusion: BlockFusion) -> list[dict[str, Any]]:
    """Name, kind, width and scale of each block."""
    return [{"name": name, **about, "scale": fusion.scales[name]} for name, about in blocks.about.items()]


def subset(vectors: Mapping[str, Floats], tokenizer: FusedTokenizer | SeparateTokenizers) -> dict[str, Floats]:
    """The blocks that a tokenizer reads."""
    return {name: vectors[name] for name in tokenizer.widths}


def item_health(
    vectors: Mapping[str, Floats], tokenizer: FusedTokenizer | SeparateTokenizers, codes_IL: Codes, fusion: BlockFusion
) -> Health:
    """Figures of codes against the fused vectors, so that those of all kinds can be compared."""
    if isinstance(tokenizer, FusedTokenizer):
        rows_IV = fused(tokenizer.fusion, subset(vectors, tokenizer), tokenizer.fill)
        return tokenizer.tokenizer.health(rows_IV, codes_IL)
    decoded = tokenizer.decode(codes_IL)
    missing = {name: np.zeros_like(rows) for name, rows in vectors.items() if name not in decoded}
    given_IV, back_IV = fused(fusion, vectors), fused(fusion, {**decoded, **missing})
    return code_health(given_IV, codes_IL, back_IV, tokenizer.codebook_sizes)


def tokenizer_tensors(folder: Path) -> dict[str, Tensor]:
    """Every file of a folder of semantic IDs but the codes themselves, as uint8 tensors by their path in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CODES_FILE)
    return {
        file.relative_to(folder).as_posix(): torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        for file in files
    }


def write_tokenizers(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the files of :func:`tokenizer_tensors` into a folder.

    Raises:
        InputError: a name leads out of the folder.
    """
    for name, tensor in tensors.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"the stored file {name!r} leads out of its folder; the checkpoint is broken")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tensor.numpy().tobytes())
