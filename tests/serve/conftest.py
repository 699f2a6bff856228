"""A real engine process over a workspace of its own, with two LoRAs in it and one broken file; all tests share it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_lora.generate.wire import EngineStatus
from diffusion_lora.lora.header import read_header
from diffusion_lora.processes import open_ui
from diffusion_lora.workspace import Workspace
from webui.engine import EngineClient

CHECKOUT = Path(__file__).resolve().parents[2]
START_S = 600.0  # seconds on two free cores; a crowded machine takes its time


class EngineProcess:
    """`diffusion-lora serve` on one workspace."""

    def __init__(self, workspace: Workspace, code: str | None = None) -> None:
        self.workspace = workspace
        self.client = EngineClient(workspace)
        self._arguments = ["-c", code] if code else ["-m", "diffusion_lora", "serve", "--device", "cpu"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "EngineProcess":
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "DIFFUSION_LORA_WORKSPACE": str(self.workspace.root)}
        with (self.workspace.root / "engine-output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
                cwd=self.workspace.root, env=environment, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self

    def output(self) -> str:
        return (self.workspace.root / "engine-output.txt").read_text()

    def wait_for(self, what: Callable[[EngineStatus], bool], timeout_s: float = START_S) -> EngineStatus:
        """The first status that is so."""
        end = time.monotonic() + timeout_s
        while not what(status := self.client.status()):
            assert time.monotonic() < end, f"{status}; the engine printed:\n{self.output()}"
            time.sleep(0.2)
        return status

    def wait_until(self, state: str, timeout_s: float = START_S) -> EngineStatus:
        return self.wait_for(lambda status: status.state == state, timeout_s)

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def leave(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(START_S)

    def ended(self, timeout_s: float) -> int:
        """The exit status of a process that ends by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def put_away(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def write_lora(path: Path, *, rank: int, seed: int) -> None:
    """A LoRA on pocket's attention whose matrices are random and change pictures visibly. No torch."""
    unet = CHECKOUT / "diffusion_lora/families/pocket/base/unet/diffusion_pytorch_model.safetensors"
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, info in read_header(unet).tensors.items():
        if name.endswith((".to_k.weight", ".to_v.weight")):
            layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            wide, narrow = info.shape
            tensors[f"{layer}.lora_down.weight"] = random.normal(0, narrow**-0.5, (rank, narrow)).astype(np.float32)
            tensors[f"{layer}.lora_up.weight"] = random.normal(0, 0.3, (wide, rank)).astype(np.float32)
            tensors[f"{layer}.alpha"] = np.array(rank / 2, dtype=np.float32)
    save_file(tensors, path, {"ss_network_alpha": str(rank / 2), "modelspec.trigger_phrase": f"word{seed}"})


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """The shared one; tests leave it ready, with nothing to draw."""
    workspace = Workspace.open(tmp_path_factory.mktemp("engine") / "ws")
    write_lora(workspace.loras / "style.safetensors", rank=4, seed=1)
    write_lora(workspace.loras / "hero.safetensors", rank=2, seed=2)
    (workspace.loras / "broken.safetensors").write_bytes((workspace.loras / "style.safetensors").read_bytes()[:9000])
    process = EngineProcess(workspace)
    with open_ui(workspace, 1):  # or it would leave while a test is about something else
        process.start()
        try:
            process.wait_until("ready")
            yield process
            assert "Traceback" not in process.output()
            assert process.leave() == 0
        finally:
            process.put_away()


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Engines of a test's own, on a fresh workspace each; ended with the test."""
    started: list[EngineProcess] = []

    def start(code: str | None = None) -> EngineProcess:
        workspace = Workspace.open(tmp_path / f"ws{len(started)}")
        started.append(EngineProcess(workspace, code).start())
        return started[-1]

    yield start
    for process in started:
        process.put_away()
