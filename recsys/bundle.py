"""The bundle: a folder with everything that serving needs, every byte of it accounted for.

::

    bundle.json            what this is, the vocabularies, and the SHA-256 of every other file
    model/                 configuration and weights
    items.parquet          row i is item i: item_id and the columns of the items table
    vectors.safetensors    item vectors of the dense retriever
    graph_train/           item graph whose transitions are those of training events (validation, test)
    graph_now/             the same of all known events (everything else)
    index/                 search structure over the item vectors
    hybrid_head.safetensors    net that has the last word on the first hits of `hybrid`, where fit adopted one
    trie/                  code trie of the semantic IDs, where the model generates them
    neighbours/            items with codes alike by kind of codes, where the catalogue is too large to score whole
    tokenizers/            what makes the codes of new items, by kind of codes, where codes were made here
    text/                  text transform as plain arrays, where the data had text; text/encoders/NAME: text encoders
    sparse_text.safetensors    TF-IDF rows of the item texts, where the item graph has the relation made of them
    content_map.safetensors    from the content of an item to what the model reads of it, where it reads content
    user_features.safetensors    what the model reads of the users in histories.parquet, where it reads something
    histories.parquet      the events of every user in internal numbers, where asked for
    past_counts.safetensors    how often each action followed so far, where the model reads past rates
    withdrawn.parquet      ids of items that are never returned, where there are some
    calibration.safetensors    temperature and offset of every action, curves of some, where slates were there to fit on
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recsys.bundle_checks import check_events, check_plain_files, check_rows, check_words, inside
from recsys.calibration import Calibration
from recsys.candidate_features import CandidateFeatures
from recsys.errors import InputError
from recsys.events import EventLog
from recsys.files import atomic_folder, read_json, sha256_file, write_json
from recsys.index.code_neighbours import CodeNeighbours
from recsys.index.code_trie import CodeTrie
from recsys.index.item_graph import ItemGraph
from recsys.index.memory_terms import MemoryWeights
from recsys.index.protocol import VectorIndex
from recsys.index.registry import load_index
from recsys.index.stored_checks import check_tensor
from recsys.list_head import ListHead
from recsys.model import UnifiedModel
from recsys.past_counts import PastSource, PastTable
from recsys.vocabulary import IdMap, Vocabulary, is_id_type

__all__ = [
    "FORMAT_VERSION",
    "HYBRID_HEAD",
    "MARKER",
    "SPARSE_TEXT",
    "USER_FEATURES",
    "WITHDRAWN",
    "Bundle",
    "StoredHistories",
    "new_bundle",
]

FORMAT = "recsys-bundle"
FORMAT_VERSION = 1
MARKER = "bundle.json"
USER_FEATURES = "user_features.safetensors"
SPARSE_TEXT = "sparse_text.safetensors"
HYBRID_HEAD = "hybrid_head.safetensors"
WITHDRAWN = "withdrawn.parquet"
REQUIRED = (
    "model/model.json",
    "model/model.safetensors",
    "items.parquet",
    "vectors.safetensors",
    "graph_train",
    "graph_now",
    "index",
)
_MISFITS = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, OSError, RuntimeError,
    SafetensorError, pl.exceptions.PolarsError, pl.exceptions.PanicException,
)  # fmt: skip
STORED_TYPES = {
    "user_id": is_id_type,
    "item": pl.List(pl.Int32),
    "timestamp": pl.List(pl.Int64),
    "yes": pl.List(pl.UInt32),
    "known": pl.List(pl.UInt32),
    "surface": pl.List(pl.UInt16),
    "time_known": pl.List(pl.Boolean),
}
"""Columns of ``histories.parquet``."""
_REMEDY = "copy the bundle again, or write it again with `recsys export`"


@dataclass(frozen=True, slots=True)
class StoredHistories:
    """Users known to the bundle and all their events."""

    users: IdMap
    events: EventLog

    @staticmethod
    def write(path: Path, user_ids: pl.Series, events: EventLog) -> None:
        """One row per user, their events as lists, so that a user's history is one contiguous read."""
        lengths = np.diff(events.offsets)
        row_N = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
        columns = {
            "item": events.item.astype(np.int32),
            "timestamp": events.timestamp,
            "yes": events.yes.astype(np.uint32),
            "known": events.known.astype(np.uint32),
            "surface": events.surface.astype(np.uint16),
            "time_known": events.time_known,
        }
        lists = pl.DataFrame({"row": row_N, **columns}).group_by("row", maintain_order=True).agg(pl.all())
        users = pl.DataFrame({"row": np.arange(len(lengths), dtype=np.uint32), "user_id": user_ids})
        users.join(lists, on="row", how="left", maintain_order="left").drop("row").write_parquet(path)

    @classmethod
    def read(cls, path: Path) -> StoredHistories:
        frame = pl.read_parquet(path, glob=False)
        lengths = frame["item"].list.len().fill_null(0).to_numpy().astype(np.int64)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        names = ["item", "timestamp", "yes", "known", "surface"]
        rows = frame.filter(pl.Series(lengths > 0)).select(*names, "time_known").explode(*names, "time_known")
        if rows.null_count().sum_horizontal().item():
            raise ValueError(f"{path.name} holds events without all of their values")
        ints = {name: rows[name].to_numpy().astype(np.int64) for name in names}
        events = EventLog(
            offsets=offsets,
            **ints,
            value=np.full(len(rows), np.nan, dtype=np.float32),
            time_known=rows["time_known"].to_numpy().astype(np.bool_),
        )
        return cls(IdMap(frame["user_id"]), events)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle. Nothing in it changes after loading, so threads may share it."""

    path: Path
    manifest: dict[str, Any]
    """``bundle.json`` as read."""
    vocabulary: Vocabulary
    items: pl.DataFrame
    model: UnifiedModel
    """In eval mode."""
    vectors: Tensor
    """[I, d] float32, what the dense score is the inner product with."""
    index: VectorIndex
    graph_now: ItemGraph
    graph_train: ItemGraph
    histories: StoredHistories | None
    """None where the bundle was written without them."""
    calibration: Calibration
    """Of the ranking head's logits; the identity where none was fitted."""
    user_features_UK: Tensor | None
    """Of the users in ``histories``, where the model reads some."""
    past: PastTable | None
    """Counts of everything known; None where the model reads no past rates."""
    trie: CodeTrie | None
    """Of the semantic IDs that the model generates; None where it generates none."""
    neighbours: dict[str, CodeNeighbours] = field(default_factory=dict)
    """By kind of codes that are predicted at once; empty where the whole catalogue is scored."""
    hybrid_head: ListHead | None = None
    """Has the last word on the first hits of ``hybrid``; None where none was fitted or adopted."""
    withdrawn_G: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[G] rising numbers of items that no search returns; index, graphs and trie know them as well."""

    def without(self, withdrawn_G: NDArray[np.int64]) -> Bundle:
        """The same bundle, sharing its memory, with other items withdrawn.

        Args:
            withdrawn_G: [G] int64, rising.
        """
        device = self.vectors.device
        gone_G = torch.from_numpy(withdrawn_G).to(device)
        gone_I = None
        if len(withdrawn_G):
            gone_I = torch.zeros(len(self.vectors), dtype=torch.bool, device=device)
            gone_I[gone_G] = True
        trie = None if self.trie is None else self.trie.whole()
        return replace(
            self,
            index=self.index.without(gone_I),
            graph_now=replace(self.graph_now, gone_I=gone_I),
            graph_train=replace(self.graph_train, gone_I=gone_I),
            trie=trie.without(gone_G) if trie is not None and len(withdrawn_G) else trie,
            withdrawn_G=withdrawn_G,
        )

    @property
    def data_hash(self) -> str:
        """Hash of the prepared dataset that the model was trained on."""
        return str(self.manifest["data_hash"])

    @property
    def model_hash(self) -> str:
        """Hash of the weights and the configuration that came with the bundle."""
        files = self.manifest["files"]
        both = f"{files['model/model.safetensors']} {files['model/model.json']}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def retrievers(self) -> tuple[str, ...]:
        """Names of the retrievers that this bundle can serve."""
        return tuple(self.manifest["retrievers"])

    @property
    def memory_weights(self) -> MemoryWeights:
        """Weights of the sum that ``dense`` is; those of the learned part alone where none were chosen."""
        return MemoryWeights.from_dict(self.manifest.get("memory_weights") or {"learned": 1.0, "relations": {}})

    @property
    def user_blocks(self) -> list[dict[str, Any]]:
        """How columns of users are read; empty where the model reads none."""
        return list(self.manifest.get("user_content") or [])

    def features(self, *, past: PastSource | None = None, training_only: bool = False) -> CandidateFeatures:
        """Where the ranking head finds what it reads beside the encoder.

        Args:
            past: other counts than those of everything known.
            training_only: transitions of training events alone, as validation and test must.
        """
        graph = self.graph_train if training_only else self.graph_now
        return CandidateFeatures(self.model.config, self.past if past is None else past, graph)

    @classmethod
    def open(cls, path: Path | str, device: str | torch.device = "cpu") -> Bundle:
        """Check every part, then load it.

        Raises:
            InputError: one line naming the part that is missing, truncated, changed or foreign, and what to do.
        """
        path = Path(path)
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device {str(device)!r} was asked for, but torch finds no CUDA device; use device='cpu'")
        manifest = checked_manifest(path)
        _check_files(path, manifest.get("files"))
        try:
            check_words(manifest)
            return cls._load(path, manifest, device)
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except _MISFITS as error:
            # Every byte is what the writer hashed, so only parts that never belonged together come here.
            line = " ".join(str(error).split())[:500]
            raise InputError(f"{path}: its parts do not fit together ({line}); {_REMEDY}") from error

    @classmethod
    def _load(cls, path: Path, manifest: dict[str, Any], device: str | torch.device) -> Bundle:
        model = UnifiedModel.load(path / "model", device=str(device))
        num_items = model.config.num_items
        if manifest["num_items"] != num_items:
            raise InputError(
                f"{path}: model holds {num_items} items but bundle.json says {manifest['num_items']}; {_REMEDY}"
            )
        check_rows(path / "items.parquet", num_items, {"item_id": is_id_type})
        items = pl.read_parquet(path / "items.parquet", glob=False)
        item_map = IdMap(items["item_id"])
        item_map.check_unique()
        vocabulary = Vocabulary(
            items=item_map,
            actions=tuple(manifest["actions"]),
            surfaces=tuple(manifest["surfaces"]),
            clock=str(manifest["clock"]),
            max_timestamp=int(manifest["max_timestamp"]),
        )
        vectors = check_tensor(
            "vectors", load_file(path / "vectors.safetensors", device=str(device)).get("vectors"), torch.float32, 2
        )
        if vectors.shape != (num_items, model.config.dim):
            raise ValueError(f"vectors must be {[num_items, model.config.dim]}, got {list(vectors.shape)}")
        try:
            index = load_index(path / "index", device=device)
        except ValueError as error:  # says what to do by itself, for one which extra to install
            raise InputError(str(error)) from error
        graphs = {name: ItemGraph.load(path / name, device=device) for name in ("graph_now", "graph_train")}
        histories = None
        if "histories.parquet" in manifest["files"]:
            check_rows(path / "histories.parquet", manifest["num_users"], STORED_TYPES)
            histories = StoredHistories.read(path / "histories.parquet")
            histories.users.check_unique()
            check_events(histories.events, model.config)
        calibration = Calibration.identity(model.config.num_actions)
        if "calibration.safetensors" in manifest["files"]:
            calibration = Calibration.load(path / "calibration.safetensors")
            for values in (calibration.scale_A, calibration.offset_A):
                if values.shape != (model.config.num_actions,) or not np.isfinite(values).all():
                    raise ValueError("calibration.safetensors is of other actions than the model")
        user_features = None
        if model.config.user_dim and histories is not None:
            if USER_FEATURES not in manifest["files"]:
                raise InputError(
                    f"{path}: its model reads features of users and there is no {USER_FEATURES}; {_REMEDY}"
                )
            user_features = check_tensor(
                "features", load_file(path / USER_FEATURES, device=str(device)).get("features"), torch.float32, 2
            )
            if user_features.shape != (len(histories.users), model.config.user_dim):
                raise InputError(f"{path}: {USER_FEATURES} is of other users or columns than the model; {_REMEDY}")
        blocks = manifest.get("user_content") or []
        if (int(blocks[-1]["stop"]) if blocks else 0) != model.config.user_dim:
            raise InputError(f"{path}: bundle.json describes other features of users than the model reads; {_REMEDY}")
        past = None
        if model.config.past_rates:
            if "past_counts.safetensors" not in manifest["files"]:
                raise InputError(
                    f"{path}: its model reads past rates and there is no past_counts.safetensors; {_REMEDY}"
                )
            past = PastTable.load(path / "past_counts.safetensors")
        trie = None
        if model.code_decoder is not None:
            if not any(name.startswith("trie/") for name in manifest["files"]):
                raise InputError(f"{path}: its model generates semantic IDs and there is no trie; {_REMEDY}")
            trie = CodeTrie.load(path / "trie")
            codes_IL = model.codes.of("codes").cpu().long()
            if trie.sizes != model.codes.sizes["codes"] or not torch.equal(trie.codes(), codes_IL):
                raise InputError(f"{path}: trie holds other semantic IDs than the model was trained on; {_REMEDY}")
            trie = trie.to(device)
        hybrid_head = None
        if HYBRID_HEAD in manifest["files"]:
            about = manifest["hybrid_head"]
            hybrid_head = ListHead.from_tensors(
                about["names"],
                load_file(path / HYBRID_HEAD, device=str(device)),
                float(about["weight"]),
                knows_new=bool(about["knows_new"]),
            )
        neighbours = {}
        for kind in ("parallel_codes", "set_codes"):
            if any(name.startswith(f"neighbours/{kind}/") for name in manifest["files"]):
                found = CodeNeighbours.load(path / "neighbours" / kind)
                found.check(model.codes.of(kind))
                neighbours[kind] = found.to(device)
        for name, sizes in (
            ("calibration.safetensors", (len(calibration.scale_A), model.config.num_surfaces)),
            ("past_counts.safetensors", (past.num_actions, past.num_surfaces) if past is not None else None),
        ):
            if sizes is not None and sizes != (model.config.num_actions, model.config.num_surfaces):
                raise InputError(f"{path}: {name} is of other actions or surfaces than the model; {_REMEDY}")
        counts = {
            "items.parquet": len(items),
            "model": model.config.num_items,
            "vectors.safetensors": len(vectors),
            "index": index.num_items,
            **{name: graph.num_items for name, graph in graphs.items()},
        }
        for name, count in counts.items():
            if count != manifest["num_items"]:
                raise InputError(
                    f"{path}: {name} holds {count} items but bundle.json says {manifest['num_items']}; {_REMEDY}"
                )
        weighted = MemoryWeights.from_dict(manifest.get("memory_weights") or {"learned": 1, "relations": {}}).relations
        for name in (*weighted, *model.config.relations):
            if name not in graphs["graph_now"].relations:
                raise InputError(f"{path}: its item graph has no relation {name!r}; {_REMEDY}")
        if model.config.num_actions != len(vocabulary.actions) or model.config.num_surfaces != len(vocabulary.surfaces):
            raise InputError(f"{path}: the model's actions and surfaces are not those of bundle.json; {_REMEDY}")
        bundle = cls(
            path=path,
            manifest=manifest,
            vocabulary=vocabulary,
            items=items,
            model=model,
            vectors=vectors,
            index=index,
            graph_now=graphs["graph_now"],
            graph_train=graphs["graph_train"],
            histories=histories,
            calibration=calibration,
            user_features_UK=user_features,
            past=past,
            trie=trie,
            neighbours=neighbours,
            hybrid_head=hybrid_head,
        )
        if WITHDRAWN not in manifest["files"]:
            return bundle
        ids = pl.read_parquet(path / WITHDRAWN)["item_id"]
        number_G = vocabulary.items.index(ids)
        if (number_G < 0).any():
            raise InputError(f"{path}: {WITHDRAWN} names items that {path / 'items.parquet'} does not hold; {_REMEDY}")
        return bundle.without(np.unique(number_G))

    def check_data(self, data_hash: str, where: Path | str) -> None:
        """Refuse a dataset other than the one this bundle was made from."""
        if data_hash != self.data_hash:
            raise InputError(
                f"{where} is not the dataset of bundle {self.path} (data hash {data_hash[:12]}, the bundle's "
                f"{self.data_hash[:12]}); give the dataset that the model was trained on, or fit and export again"
            )

    def save(self, path: Path | str) -> None:
        """Write the same bundle to another folder."""
        path = Path(path)
        if path.absolute() == self.path.absolute():
            return
        with atomic_folder(path, marker=MARKER) as folder:
            for name in [*self.manifest["files"], MARKER]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.path / name, folder / name)
            _check_files(folder, self.manifest["files"])


@contextmanager
def new_bundle(path: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to write the parts into; on success it appears at ``path`` with its ``bundle.json``.

    Args:
        path: where the bundle appears; an older bundle there is replaced, anything else is left alone.
        manifest: what ``bundle.json`` says beside the format and the hashes, which are added here.
    """
    with atomic_folder(path, marker=MARKER) as folder:
        yield folder
        files = {
            file.relative_to(folder).as_posix(): sha256_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        full = {
            **manifest,
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model_hash": files["model/model.safetensors"],
            "files": files,
        }
        write_json(folder / MARKER, {**full, "checksum": _checksum(full)})


def _checksum(manifest: dict[str, Any]) -> str:
    """Hash of a manifest without its own checksum, so that a changed bundle.json is noticed as well."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def checked_manifest(path: Path) -> dict[str, Any]:
    """Read ``bundle.json`` and refuse what this version cannot serve."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder; give a bundle written by `recsys export`")
    if not (path / MARKER).is_file():
        raise InputError(f"{path} holds no {MARKER}; give a bundle written by `recsys export`")
    inside(path, MARKER, _REMEDY)
    manifest = read_json(path / MARKER)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path / MARKER} does not describe a bundle; {_REMEDY}")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = (
            "upgrade recsys, or export again with this version" if newer else "export it again with `recsys export`"
        )
        raise InputError(f"{path} has bundle format version {version}, this recsys reads {FORMAT_VERSION}; {remedy}")
    if manifest.get("checksum") != _checksum(manifest):
        raise InputError(f"{path / MARKER} was changed after it was written; {_REMEDY}")
    return manifest


def _check_files(path: Path, files: Any) -> None:
    """Every listed file is there with its bytes, and no other file is."""
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in (*files, *files.values())):
        raise InputError(f"{path}: bundle.json does not list the SHA-256 of every file; {_REMEDY}")
    for part in REQUIRED:
        if not any(name == part or name.startswith(part + "/") for name in files):
            raise InputError(f"{path}: bundle.json lists no {part}; {_REMEDY}")
    for name, expected in sorted(files.items()):
        if sha256_file(inside(path, name, _REMEDY)) != expected:
            raise InputError(
                f"{path / name} is not the file this bundle was written with (truncated, damaged or from another "
                f"bundle); {_REMEDY}"
            )
    check_plain_files(path, files, MARKER)
