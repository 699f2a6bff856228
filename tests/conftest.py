"""For all tests: no network, cuda tests skip without a GPU, a real `diffusion-lora` process to talk to."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before any library reads it, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"

CHECKOUT = Path(__file__).resolve().parent.parent

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("cuda"):
                    item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return CHECKOUT


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Run `diffusion-lora ARGUMENTS` as a process in an empty folder and give back status and output."""

    def call(*arguments: object, cwd: Path = tmp_path, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "diffusion_lora", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "200", "NO_COLOR": "1"}
        settings = {"capture_output": True, "text": True, "timeout": 300, "check": False, **options}
        return subprocess.run(command, cwd=cwd, env=environment, **settings)

    return call
