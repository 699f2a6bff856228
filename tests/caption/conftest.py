"""Miniature captioners, made once a session, and pictures to describe."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def miniatures() -> ModuleType:
    """How the miniatures are made."""
    return _module("miniatures")


@pytest.fixture(scope="session")
def saved(miniatures: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a miniature of a kind."""
    root, made = tmp_path_factory.mktemp("captioners"), {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = miniatures.save(kind, root / kind.replace(" ", "-"))
        return made[kind]

    return of


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Eight pictures of several sizes."""
    rng = np.random.default_rng(0)
    sizes = ((40, 30), (32, 32), (64, 100), (20, 20))
    grainy = [Image.fromarray(rng.integers(0, 255, (high, wide, 3), np.uint8)) for high, wide in sizes]
    return grainy + [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "white", "black")]
