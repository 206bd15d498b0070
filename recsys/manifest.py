"""What a prepared dataset says about itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.bundle_checks import inside
from recsys.errors import InputError, shown
from recsys.events import MOST_ACTIONS
from recsys.files import read_json, sha256_file

__all__ = ["FORMAT", "FORMAT_VERSION", "MANIFEST_FILE", "Manifest", "data_hash_of"]

FORMAT = "recsys-data"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"

_TYPES: dict[str, type] = {
    "data_hash": str, "settings": dict, "num_users": int, "num_items": int, "num_events": int, "num_slates": int,
    "actions": list, "positives": list, "negatives": list, "surfaces": list, "clock": str, "max_timestamp": int,
    "split": dict, "counts": dict, "dropped": dict, "notes": list, "item_features": list, "user_features": list,
    "files": dict,
}  # fmt: skip
_AGAIN = "make the dataset again with `recsys prepare`"


def data_hash_of(
    files: Mapping[str, str], split: Mapping[str, Any], actions: Sequence[str], positives: Sequence[str]
) -> str:
    """Hash of everything that a model or a metric can depend on; two equal ones hold the same data."""
    text = json.dumps([sorted(files.items()), dict(split), list(actions), list(positives)], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The settings, sizes and vocabularies of a prepared dataset, and the hash of each of its files."""

    data_hash: str
    settings: dict[str, Any]
    """What ``prepare`` was asked for."""
    num_users: int
    num_items: int
    num_events: int
    num_slates: int
    actions: tuple[str, ...]
    """Bit order of the action masks."""
    positives: tuple[str, ...]
    """Actions that make an event a positive."""
    negatives: tuple[str, ...]
    surfaces: tuple[str, ...]
    """Place 0 is the unknown surface."""
    clock: str
    """``real``, or ``order`` where timestamps only count."""
    max_timestamp: int
    split: dict[str, Any]
    counts: dict[str, int]
    dropped: dict[str, int]
    """Rows left out, by reason."""
    notes: tuple[str, ...]
    """Sentences for people: what was recognised in the data."""
    item_features: tuple[str, ...]
    user_features: tuple[str, ...]
    text: dict[str, Any] | None
    files: dict[str, str]
    """SHA-256 of every file beside the manifest."""
    raw: dict[str, Any]
    """The JSON as it stands in the file."""

    @property
    def positive_mask(self) -> int:
        """Bits of the positive actions."""
        return sum(1 << self.actions.index(name) for name in self.positives)

    @classmethod
    def from_json(cls, raw: Any, path: Path) -> Manifest:
        """Check and take over parsed JSON; ``path`` only serves the messages.

        Raises:
            InputError: it is no manifest, or one of another format version.
        """
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise InputError(f"{path} is not the manifest of a prepared dataset; {_AGAIN}")
        if raw.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {raw.get('format_version')!r}, not {FORMAT_VERSION} as read here; {_AGAIN}"
            )
        names = [name for name in cls.__dataclass_fields__ if name != "raw"]
        missing = [name for name in names if name not in raw]
        if missing:
            raise InputError(f"{path} has no {missing[0]!r}; {_AGAIN}")
        for name, kind in _TYPES.items():
            least = -(2**62) if name == "max_timestamp" else -1
            if type(raw[name]) is not kind or (kind is int and not least < raw[name] < 2**62):
                raise InputError(f"{path}: {name} must be {kind.__name__}, got {shown(raw[name])}; {_AGAIN}")
        if raw["clock"] not in ("real", "order"):
            raise InputError(f"{path}: clock must be 'real' or 'order', got {shown(raw['clock'])}; {_AGAIN}")
        for name in ("actions", "positives", "negatives", "surfaces"):
            if not all(isinstance(word, str) for word in raw[name]) or len(set(raw[name])) != len(raw[name]):
                raise InputError(f"{path}: {name} must be different names; {_AGAIN}")
        if not set(raw["positives"]) <= set(raw["actions"]) or len(raw["actions"]) > MOST_ACTIONS:
            raise InputError(f"{path}: its positives are not among its actions, at most {MOST_ACTIONS}; {_AGAIN}")
        if not all(isinstance(name, str) for name in (*raw["files"], *raw["files"].values())):
            raise InputError(f"{path}: files must be the SHA-256 of every file; {_AGAIN}")
        lists = ("actions", "positives", "negatives", "surfaces", "notes", "item_features", "user_features")
        fields: dict[str, Any] = {name: tuple(raw[name]) if name in lists else raw[name] for name in names}
        manifest = cls(raw=raw, **fields)
        expected = data_hash_of(manifest.files, manifest.split, manifest.actions, manifest.positives)
        if manifest.data_hash != expected:
            raise InputError(f"{path} was changed: its data hash does not fit its files; {_AGAIN}")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a prepared dataset.

        Raises:
            InputError: the folder holds no readable manifest.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise InputError(f"{folder} is not a prepared dataset (no {MANIFEST_FILE}); make one with `recsys prepare`")
        return cls.from_json(read_json(path), path)

    def check_files(self, folder: Path) -> None:
        """Compare every file with its hash.

        Raises:
            InputError: a file is missing, or its bytes are not those that were written.
        """
        for name, expected in self.files.items():
            path = inside(folder, name, _AGAIN)
            if sha256_file(path) != expected:
                raise InputError(f"{path} was truncated or changed (its hash is another one); {_AGAIN}")
