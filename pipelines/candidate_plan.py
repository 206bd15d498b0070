"""What a run of ``recsys candidates`` is going to write, so that a killed one can be resumed to the same bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recsys.errors import InputError
from recsys.files import read_json, write_json

__all__ = ["PLAN", "CandidatePlan", "open_output", "part_name"]

PLAN = "plan.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePlan:
    """Everything that decides the bytes of the part files, and nothing else."""

    bundle_hash: str
    data_hash: str
    split: str
    at: int | None
    """Time of the requests of ``now``."""
    k: int
    rank: int
    retrievers: list[str]
    users: str | None
    """Hash of the file of users; None = all of them."""
    allow: str | None
    exclude: str | None
    batch_users: int
    shard_users: int
    num_parts: int
    device: str
    rerank: dict[str, Any] | None = None
    """What decides the order of the first items; None = as retrieved."""
    rules: str | None = None
    """Hash of the file of business rules; None = there are none."""
    format_version: int = FORMAT_VERSION

    def difference(self, other: Any) -> str | None:
        """Name of the first setting in which a stored plan differs; None where it is the same plan."""
        if not isinstance(other, dict):
            return "format_version"
        mine = asdict(self)
        return next((field.name for field in fields(self) if other.get(field.name) != mine[field.name]), None)


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.parquet"


def open_output(output: Path, plan: CandidatePlan, resume: bool) -> set[int]:
    """Make the output folder ready and say which parts it already holds, complete.

    Raises:
        InputError: the folder holds something, and it is not to be resumed or comes from another plan.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a folder")
    names = sorted(file.name for file in output.iterdir()) if output.exists() else []
    if names and not resume:
        hint = "--resume goes on with it, or " if PLAN in names else ""
        raise InputError(f"--output {output} is not empty; {hint}give another folder")
    # What a killed run was writing. The plan itself may be among it.
    for name in [name for name in names if name.startswith(".") and name.endswith(".partial")]:
        (output / name).unlink(missing_ok=True)
        names.remove(name)
    if not names:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / PLAN, asdict(plan))
        return set()
    if PLAN not in names:
        raise InputError(f"--output {output} holds no {PLAN}, so there is nothing to resume; give another folder")
    other = plan.difference(read_json(output / PLAN))
    if other is not None:
        raise InputError(
            f"--resume: {output} was begun with another {other.replace('_', ' ')}; repeat the command as it was, "
            "or give another folder"
        )
    return {number for number in range(plan.num_parts) if part_name(number) in names}
