"""Benchmarks and device tests of this repository, written to ``docs/results`` and onto the pages.

``python -P -m recsys.pipelines.measure bench`` runs every benchmark; ``… gpu`` runs every test marked ``gpu`` and the
benchmarks on the CUDA device that is there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from recsys.errors import InputError
from recsys.pipelines.bench.command import BENCHES, run_bench
from recsys.pipelines.machine import device_name
from recsys.pipelines.results import record, write

__all__ = ["main"]

_COLUMNS = ("benchmark", "case", "ours", "compared with", "times better", "predicted")


def _bench_rows(name: str) -> list[dict[str, Any]]:
    cases = run_bench(name)["cases"]
    assert isinstance(cases, list)
    return [
        {
            "benchmark": name,
            "case": case["name"],
            "ours": _side(case["ours"]),
            "compared with": _side(case["other"]),
            "times better": case["ratio"],
            "predicted": case["predicted_ratio"],
        }
        for case in cases
    ]


def _side(figures: dict[str, Any]) -> str:
    parts = [str(figures["what"])] if "what" in figures else []
    return ", ".join(parts + [f"{name} {value:,.4g}" for name, value in figures.items() if not isinstance(value, str)])


def bench() -> None:
    """Run every benchmark and record one file for each."""
    for name in BENCHES:
        rows = _bench_rows(name)
        record(f"bench-{name}", f"Benchmark: {name}", f"recsys bench {name}", rows, _COLUMNS[1:])
    write(Path())


def gpu() -> None:
    """Run the device tests and the benchmarks, and record both in one file named after the device.

    Raises:
        InputError: there is no CUDA device, or a test failed.
    """
    if not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} sees no CUDA device, so nothing was run or recorded")
    tests = _device_tests()
    rows = [row for name in BENCHES for row in _bench_rows(name)]
    slug = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    note = f"{tests['passed']} tests that need a CUDA device passed, {tests['skipped']} were skipped."
    record(f"gpu-{slug}", f"On {device_name()}", "make gpu", rows, _COLUMNS, notes=[note])
    write(Path())


def _device_tests() -> dict[str, int]:
    """Run pytest on the tests marked ``gpu``; how many passed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(Path(sys.executable).parent / "pytest"), "-m", "gpu", f"--junitxml={report}"]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            raise InputError(f"the tests marked gpu ended with exit code {code}; mend them before recording figures")
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    return {"passed": total - skipped, "skipped": skipped}


def main(argv: Sequence[str]) -> int:
    """``bench`` or ``gpu``, in the root of the repository."""
    kinds = {"bench": bench, "gpu": gpu}
    if len(argv) != 1 or argv[0] not in kinds:
        sys.stderr.write("usage: python -P -m recsys.pipelines.measure bench|gpu\n")
        return 2
    try:
        kinds[argv[0]]()
    except InputError as error:
        sys.stderr.write(f"make {argv[0]}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
