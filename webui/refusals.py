"""What the page refuses, written down: a line each in `state/page.log`. Why it is refused is decided elsewhere."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler

from starlette.types import Scope

from diffusion_lora.workspace import Workspace

_LOG = logging.getLogger("diffusion_lora.page")
_LOG_BYTES = 1_000_000
_LONGEST = 200


def open_log(workspace: Workspace) -> None:
    """Write refusals of this process into the workspace from now on."""
    handler = RotatingFileHandler(
        workspace.state / "page.log", maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    _LOG.handlers = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


def note_refusal(scope: Scope, status: int, why: str) -> None:
    """One request that was refused: what was asked, from where, and why. Nothing a sender wrote can forge a line."""
    who = (scope.get("client") or ("?", 0))[0]
    asked = f"{scope.get('method', scope['type'])} {scope.get('path', '')}"[:_LONGEST]
    _LOG.warning("refused %s  %s  %s  %s", status, ascii(who), ascii(asked), ascii(why[:_LONGEST]))
