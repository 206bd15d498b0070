"""Coverage-guided fuzzing of bundles and requests with atheris (libFuzzer): `coverage_guided.py BUNDLE FOLDER -runs=N`.

Every input is a string of choices for :mod:`damage`: one in four opens a damaged bundle, the others ask a whole one an
odd question. FOLDER is where the damaged bundle stands, best in memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["recsys"], enable_loader_override=False):
    sys.path.insert(0, str(Path(__file__).parent))
    import damage
    import torch

    from recsys.retrieval.recommender import Recommender


class BytesAsChoices:
    """Choices out of the fuzzer's bytes; the smallest one where they have run out."""

    def __init__(self, data: bytes) -> None:
        self.provider = atheris.FuzzedDataProvider(data)

    def integer(self, low: int, high: int) -> int:
        return int(self.provider.ConsumeIntInRange(low, high))


def main(argv: list[str]) -> None:
    whole = Path(argv[1])
    place, rec = damage.Workplace(whole, Path(argv[2]) / "bundle"), Recommender.load(whole)

    def one_input(data: bytes) -> None:
        choices = BytesAsChoices(data)
        if choices.integer(0, 3):
            damage.ask(rec, damage.odd_request(choices))
            return
        place.damage(choices)
        try:
            found = place.open()
            if found is not None:
                damage.ask(found, {"user_id": "u7", "k": 5, "at": 1_702_000_000})
        finally:
            place.restore()

    torch.set_num_threads(1)
    atheris.Setup([argv[0], *argv[3:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
