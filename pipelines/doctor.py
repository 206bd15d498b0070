"""``recsys doctor``: what is installed, on what machine, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recsys.errors import InputError
from recsys.files import write_json
from recsys.pipelines.console import stdout_console
from recsys.pipelines.machine import cpu_name, memory_gib

__all__ = ["Findings", "doctor", "examine"]

EITHER_OR = {"faiss": "gpu", "gpu": "faiss"}
"""Extras of which one is enough."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look at an environment found."""

    python: str
    platform: str
    devices: list[str]
    versions: dict[str, str]
    """Package name -> installed version, of every package that recsys or an extra names."""
    extras: dict[str, dict[str, object]]
    """Extra -> {"missing": requirements that are not met, "install": the line that installs them or None}."""
    problems: list[str]
    """One sentence each: which pair or version does not work, and what to do."""


def doctor(json: Path | None = None) -> None:
    """Show versions, devices, missing extras with the line that installs each, and pairs known not to work.

    Args:
        json: Also write the findings to this file.
    """
    findings = examine(installed_versions(), requirements_of("recsys"))
    if json is not None:
        write_json(json, asdict(findings))
    _show(findings)


def installed_versions() -> dict[str, str]:
    """Version of every installed distribution by its canonical name."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # the remains of an interrupted installation have none
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def requirements_of(package: str) -> list[Requirement]:
    """What an installed package says it needs."""
    try:
        return [Requirement(line) for line in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{package} is not installed; run `make install`, or pip install it into this Python"
        ) from None


def examine(installed: Mapping[str, str], requirements: Iterable[Requirement]) -> Findings:
    """Compare an environment with what recsys needs.

    Args:
        installed: versions by canonical distribution name.
        requirements: those of recsys, with its extras' behind ``extra == "…"`` markers.
    """
    core, extras = _by_extra(requirements)
    named = {canonicalize_name(need.name) for needs in (core, *extras.values()) for need in needs}
    problems = [_unmet(need, installed) for need in core if not _met(need, installed)]
    problems += [sentence for rule in _RULES if (sentence := rule(installed)) is not None]
    return Findings(
        python=platform.python_version(),
        platform=platform.platform(),
        devices=_devices(),
        versions={name: installed[name] for name in sorted(named) if name in installed},
        extras={name: _extra(name, extras, installed) for name in extras},
        problems=problems,
    )


def _by_extra(requirements: Iterable[Requirement]) -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    core: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    for need in requirements:
        text = str(need.marker or "")
        if "extra ==" not in text:
            if need.marker is None or need.marker.evaluate():
                core.append(need)
            continue
        name = text.split("extra ==")[1].split('"')[1]
        extras.setdefault(name, []).append(need)
    return core, extras


def _met(need: Requirement, installed: Mapping[str, str]) -> bool:
    version = installed.get(canonicalize_name(need.name))
    return version is not None and need.specifier.contains(version, prereleases=True)


def _unmet(need: Requirement, installed: Mapping[str, str]) -> str:
    version = installed.get(canonicalize_name(need.name))
    state = "is not installed" if version is None else f"{version} is outside {need.specifier}"
    return f"{need.name} {state}; run: {_install([need])}"


def _install(needs: Iterable[Requirement]) -> str:
    return "pip install " + " ".join(f"'{need.name}{need.specifier}'" for need in needs)


def _extra(name: str, extras: Mapping[str, list[Requirement]], installed: Mapping[str, str]) -> dict[str, object]:
    missing = [need for need in extras[name] if not _met(need, installed)]
    other = extras.get(EITHER_OR.get(name, ""), [])
    replaced = bool(missing) and bool(other) and all(_met(need, installed) for need in other)
    return {
        "missing": [f"{need.name}{need.specifier}" for need in missing],
        "install": _install(missing) if missing and not replaced else None,
    }


def _two_faiss(installed: Mapping[str, str]) -> str | None:
    found = sorted(name for name in installed if name == "faiss-cpu" or name.startswith("faiss-gpu"))
    if len(found) < 2:
        return None
    return f"{' and '.join(found)} overwrite each other's files; run: pip uninstall {' '.join(found)}, then install one"


def _torch_and_triton(installed: Mapping[str, str]) -> str | None:
    """CUDA builds of torch name one exact triton; CPU builds none, and there triton only interprets."""
    if "torch" not in installed or "triton" not in installed:
        return None
    for need in requirements_of("torch"):
        if need.name == "triton" and (need.marker is None or need.marker.evaluate()) and not _met(need, installed):
            found = f"torch {installed['torch']} wants triton{need.specifier}, but {installed['triton']} is installed"
            return f"{found}; run: {_install([need])}"
    return None


def _torchrec_and_fbgemm(installed: Mapping[str, str]) -> str | None:
    if "torchrec" not in installed:
        return None
    fbgemm = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if name in installed]
    wanted = ".".join(installed["torchrec"].split(".")[:2])
    if not fbgemm:
        return f"torchrec {installed['torchrec']} needs fbgemm; run: pip install --no-deps 'fbgemm-gpu-cpu=={wanted}.*'"
    if not installed[fbgemm[0]].startswith(f"{wanted}."):
        pair = f"torchrec {installed['torchrec']} with {fbgemm[0]} {installed[fbgemm[0]]}"
        return f"{pair} does not load; run: pip install --no-deps '{fbgemm[0]}=={wanted}.*'"
    return None


def _torchrec_and_torchmetrics(installed: Mapping[str, str]) -> str | None:
    """TorchRec pins torchmetrics 1.0.3, with which recent Lightning does not work."""
    if "torchrec" in installed and installed.get("torchmetrics", "").startswith("1.0."):
        found = f"torchmetrics {installed['torchmetrics']} (pinned by torchrec) is too old for lightning"
        return f"{found}; run: pip install --no-deps 'torchmetrics>=1.9'"
    return None


_RULES: tuple[Callable[[Mapping[str, str]], str | None], ...] = (
    _two_faiss,
    _torch_and_triton,
    _torchrec_and_fbgemm,
    _torchrec_and_torchmetrics,
)


def _devices() -> list[str]:
    found = [f"cpu: {cpu_name()}, {memory_gib():.0f} GiB, torch uses {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        found.append(
            f"cuda:{number}: {card.name}, {card.total_memory / 2**30:.0f} GiB, capability {card.major}.{card.minor}"
        )
    if torch.backends.mps.is_available():
        found.append("mps: Apple GPU")
    if os.environ.get("TRITON_INTERPRET") == "1":
        found.append("triton runs in its interpreter (TRITON_INTERPRET=1)")
    return found


def _show(findings: Findings) -> None:
    console = stdout_console()
    console.print(f"Python {findings.python} on {findings.platform}")
    for device in findings.devices:
        console.print(f"  {device}")
    console.print("\nversions: " + ", ".join(f"{name} {version}" for name, version in findings.versions.items()))
    console.print("\nextras:")
    width = max(map(len, findings.extras), default=0)
    for name, extra in findings.extras.items():
        install = extra["install"]
        state = "installed" if not extra["missing"] else f"not needed beside {EITHER_OR.get(name)}"
        console.print(f"  {name:<{width}}  {state if install is None else f'missing: {install}'}", markup=False)
    if findings.problems:
        console.print("\nproblems:", style="bold red")
        for sentence in findings.problems:
            console.print(f"  {sentence}")
    else:
        console.print("\nno pair of versions known not to work", style="green")
