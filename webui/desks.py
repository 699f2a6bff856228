"""Whole desks under a name, in the workspace's `desks.json`: the channels as the browser holds them. No Gradio.

What is read back goes through `desk.channels_of` before anything is drawn, as everything from the browser does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.run import write_atomically
from diffusion_lora.workspace import Workspace, check_name
from webui.desk import channels_of

_KEPT = (
    "name", "strength", "text", "muted", "solo", "blocks", "steps", "negative", "master", "area", "mask", "words",
)  # fmt: skip
_MAX_BYTES = 4 << 20


def names(workspace: Workspace) -> list[str]:
    """The saved desks, by name; none where the file cannot be read."""
    try:
        return sorted(_read(workspace))
    except PromptError:
        return []


def save(workspace: Workspace, name: str, state: Any) -> str:
    """Keep a desk under a name, in place of one that has it; the name. Raises PromptError, OutputError."""
    if not state:
        raise PromptError("the desk is empty: add a LoRA, then save it")
    channels_of(state)
    kept = [{key: channel.get(key) for key in _KEPT} for channel in state]
    name = check_name(name.strip())
    data = json.dumps({**_read(workspace), name: kept}, ensure_ascii=False, indent=1)
    if len(data.encode()) > _MAX_BYTES:
        raise PromptError(f"the saved desks would be larger than {_MAX_BYTES >> 20} MB: paint smaller areas here")
    write_atomically(_file(workspace), data.encode())
    return name


def load(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """The channels of a saved desk. Raises PromptError."""
    desks = _read(workspace)
    if name not in desks:
        raise PromptError(f"there is no desk {name!r}: the saved ones are {', '.join(sorted(desks)) or 'none'}")
    state = desks[name]
    channels_of(state)
    return list(state)


def _read(workspace: Workspace) -> dict[str, Any]:
    try:
        with _file(workspace).open("rb") as file:
            desks = json.loads(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PromptError(f"{_file(workspace)} cannot be read ({error}): mend it, or move it away") from None
    return desks if isinstance(desks, dict) else {}


def _file(workspace: Workspace) -> Path:
    return workspace.root / "desks.json"
