"""What the LoRAs on the desk do to each other, pair by pair, measured when somebody asks. No Gradio, no torch.

It takes values, so it is a command of the program (`adapter compare`), a process of its own; each pair is measured once
as long as its files stay the same, at strength 1: what faders make of it, the browser reckons. What is drawn is told by
the engine beside the picture, without being asked (`generate.conflicts`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from diffusion_lora.errors import PromptError, ServiceError
from diffusion_lora.jobs.launch import answer_of
from diffusion_lora.workspace import Workspace
from webui.desk import lora_file

MOST = 4
"""LoRAs that are compared at once: six pairs, some seconds each."""


class Meetings:
    """The pairs measured so far."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[tuple[tuple[str, int, int], ...], dict[str, float]] = {}
        self._measuring = threading.Lock()

    def of(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """{names} -> {pairs: [{a, b, cosine, norm_a, norm_b}]}. Raises UserErrors, in words."""
        names = [str(name) for name in asked.get("names") or ()][: MOST + 1]
        if not 2 <= len(names) <= MOST:
            raise PromptError(f"2 to {MOST} LoRAs are compared at once: mute the others")
        return {"pairs": [{"a": a, "b": b, **self._pair(a, b)} for a, b in combinations(names, 2)]}

    def _pair(self, *names: str) -> dict[str, float]:
        files = [lora_file(name, self._workspace) for name in names]
        stats = [file.stat() for file in files]
        key = tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in zip(files, stats, strict=True))
        with self._measuring:  # one process at a time, however often the button is pressed
            if key not in self._known:
                try:
                    said = answer_of(
                        ("adapter", "compare", *(f"{file}:1" for file in files), "--json"), self._workspace.root
                    )
                except ServiceError as error:
                    raise ServiceError(str(error).replace(f"{self._workspace.loras}/", "")) from None
                told = json.loads(said)
                self._known[key] = {name: float(told[name]) for name in ("cosine", "norm_a", "norm_b")}
            return self._known[key]
