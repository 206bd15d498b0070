"""The example service as a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    log: Path


@pytest.fixture(scope="session")
def start_service(
    root: Path, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Starts services of the toy bundle; each is killed at the end, if it is not before."""
    httpx = pytest.importorskip("httpx", reason="httpx asks the service")
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(name, reason=f"the service needs {name}")
    folder = tmp_path_factory.mktemp("service")
    started: list[subprocess.Popen[bytes]] = []

    def start(events: Path, *flags: str) -> Server:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        command = [sys.executable, "-m", "examples.service", "--bundle", str(toy_bundle), "--events", str(events)]
        log = folder / f"{port}.log"
        with log.open("wb") as lines:
            process = subprocess.Popen(
                [*command, "--port", str(port), *flags],
                cwd=root,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=lines,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(f"{url}/ready", trust_env=False).status_code == 200:
                    return Server(process, url, port, log)
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < until, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.05)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def service(start_service: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One service with its usual limits, for all tests: each uses users of its own."""
    return start_service(tmp_path_factory.mktemp("events") / "events.sqlite")
