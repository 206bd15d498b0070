"""Semantic IDs of a dataset's items, made on the spot or read from files, as training takes them.

Suffixes: I = items, L = codes of an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recsys.dataset import Dataset
from recsys.errors import InputError
from recsys.model import UnifiedModel
from recsys.pipelines.code_settings import KINDS
from recsys.pipelines.made_codes import CODES_FILE, MadeCodes, make_codes, read_sids, tokenizer_tensors
from recsys.tokenizers.alignment import code_permutations, renamed_codes
from recsys.tokenizers.item_tokenizer import aligned_item_tokenizer
from recsys.tokenizers.semantic_ids import SemanticIds
from recsys.vocabulary import IdMap

__all__ = ["AUTO", "CONTENT", "NONE", "GivenCodes", "codes_for", "read_codes"]

AUTO, CONTENT, NONE = "auto", "content", "none"

_MOST_CODES = 2**24
"""Of a codebook in a file: a head has a row for each, and more must be a mistake."""


@dataclass(frozen=True, slots=True)
class GivenCodes:
    """Codes of every item of a dataset, by kind, in internal order."""

    codes: dict[str, Tensor]
    """[I, L] int32."""
    sizes: dict[str, tuple[int, ...]]
    """Codes of each codebook."""
    made: MadeCodes | None = None
    """With the tokenizers that code new items; None where only codes were given."""

    @classmethod
    def of(cls, made: MadeCodes, kinds: Sequence[str] = KINDS) -> GivenCodes:
        """Some kinds of codes that were made here."""
        wanted = {kind: one for kind, one in made.kinds.items() if kind in kinds}
        return cls(
            {kind: torch.from_numpy(one.ids.codes_IL.copy()) for kind, one in wanted.items()},
            {kind: one.ids.codebook_sizes for kind, one in wanted.items()},
            replace(made, kinds=wanted),
        )

    def tokenizers(self) -> dict[str, Tensor] | None:
        """Files of the tokenizers as a checkpoint keeps them; None where there are none."""
        if self.made is None:
            return None
        with TemporaryDirectory() as folder:
            self.made.write(Path(folder))
            return tokenizer_tensors(Path(folder))

    def aligned(self, old: UnifiedModel, old_row_I: Tensor) -> GivenCodes:
        """The same codes under the numbers that a model knows, by Hungarian matching on the items that both have.

        Kinds whose codebooks have other sizes there, or whose numbers are digits (FSQ), keep their numbers.

        Args:
            old: the model.
            old_row_I: [I] its row of each item, −1 = it does not know it.
        """
        row_I = old_row_I.numpy()
        here_I = np.flatnonzero(row_I >= 0)
        codes = dict(self.codes)
        kinds = {} if self.made is None else dict(self.made.kinds)
        for kind, sizes in self.sizes.items():
            one = kinds.get(kind)
            if old.codes.sizes.get(kind) != sizes or (one is not None and one.method == "fsq"):
                continue
            before_SL = old.codes.of(kind).cpu().numpy()[row_I[here_I]]
            new_IL = codes[kind].numpy().astype(np.int32)
            if one is None:
                numbers = code_permutations(before_SL, new_IL[here_I], sizes, parallel=kind != "codes")
            else:
                tokenizer, numbers = aligned_item_tokenizer(one.tokenizer, before_SL, new_IL[here_I])
                ids = SemanticIds.from_codes(renamed_codes(new_IL, numbers), sizes)
                kinds[kind] = replace(one, ids=ids, tokenizer=tokenizer)
            codes[kind] = torch.from_numpy(renamed_codes(new_IL, numbers))
        return GivenCodes(codes, self.sizes, None if self.made is None else replace(self.made, kinds=kinds))


def codes_for(dataset: Dataset, sids: str, kinds: Sequence[str], seed: int) -> GivenCodes | None:
    """What ``--data.sids`` asks for; None = the model gets no heads of semantic IDs.

    Args:
        dataset: to be trained on.
        sids: ``content`` = make codes of content and transitions now, ``none``, or a path for :func:`read_codes`.
        kinds: those wanted. Files may lack some.
        seed: of codes that are made now.

    Raises:
        InputError: an unknown kind, or the file cannot be read.
    """
    if sids == NONE or not kinds:
        return None
    if sids != CONTENT:
        return read_codes(Path(sids), dataset, kinds)
    made = make_codes(dataset, seed=seed, kinds=tuple(kinds))
    return None if made is None else GivenCodes.of(made, kinds)


def read_codes(path: Path, dataset: Dataset, kinds: Sequence[str] = KINDS) -> GivenCodes:
    """Read the codes of a dataset's items.

    Args:
        path: the folder that `recsys tokenize` wrote, or a Parquet file of ``item_id`` and some of ``codes``,
            ``parallel_codes`` and ``set_codes`` (lists of integers from 0, all of one length). The sizes of a file's
            codebooks are those that its codes need, a folder's are known. Items that the dataset does not know are left
            aside.
        kinds: those wanted; the file may lack some.

    Raises:
        InputError: the file cannot be read, or an item has no codes or wrong ones.
    """
    about = read_sids(path) if path.is_dir() else None
    file = path / CODES_FILE if path.is_dir() else path
    try:
        if not file.is_file():
            raise InputError(f"{file} is no file; give what `recsys tokenize` wrote, or a Parquet file of codes")
        frame = pl.read_parquet(file, glob=False)
        ids = IdMap(frame["item_id"]) if "item_id" in frame.columns else None
    except InputError:
        raise
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(f"{file} cannot be read as semantic IDs ({' '.join(str(error).split())[:120]})") from None
    kinds = [kind for kind in KINDS if kind in frame.columns and kind in kinds]
    if ids is None or not kinds:
        raise InputError(
            f"{file} needs the columns item_id and codes (or parallel_codes, set_codes), it has {frame.columns}"
        )
    row_I = ids.index(dataset.items["item_id"])
    if (row_I < 0).any():
        missing = dataset.items["item_id"][int(np.flatnonzero(row_I < 0)[0])]
        raise InputError(f"{file} has no codes of the item {missing!r} of {dataset.path}; run `recsys tokenize` on it")
    if about is not None and ids.ids.equals(dataset.item_ids):
        return GivenCodes.of(MadeCodes.load(path), kinds)
    stated = {} if about is None else {kind: tuple(said["sizes"]) for kind, said in about["kinds"].items()}
    codes = {kind: _codes(file, frame[kind].gather(row_I), dataset.items["item_id"]) for kind in kinds}
    sizes = {kind: stated.get(kind) or tuple(int(c) + 1 for c in found.amax(0)) for kind, found in codes.items()}
    return GivenCodes(codes, sizes)


def _codes(file: Path, column: pl.Series, item_ids: pl.Series) -> Tensor:
    if not isinstance(column.dtype, pl.List) or not column.dtype.inner.is_integer():
        raise InputError(f"{file}: {column.name} must be a list of integers, got {column.dtype}")
    length_I = column.list.len().fill_null(0)
    has_null_I = column.list.eval(pl.element().is_null().any()).list.first().fill_null(value=False)
    odd_I = ((length_I != length_I[0]) | (length_I == 0) | has_null_I).to_numpy()
    if odd_I.any():
        row = int(odd_I.argmax())
        found = None if column[row] is None else column[row].to_list()[:5]
        raise InputError(
            f"{file}: every item needs as many {column.name} as the first, one or more and none of them null; "
            f"{item_ids[row]!r} has {found}"
        )
    codes = column.list.to_array(int(length_I[0])).to_numpy().astype(np.int64)
    if codes.min() < 0 or codes.max() >= _MOST_CODES:
        raise InputError(
            f"{file}: {column.name} must be at least 0 and below {_MOST_CODES}, "
            f"got {int(codes.min())} to {int(codes.max())}"
        )
    return torch.from_numpy(codes.astype(np.int32))
