"""What a drawing begins with, as values: nothing, a picture, a part of one, or its own smaller self. No Gradio.

The browser says {mode, picture, mask, ...}: a picture is one of the asker's own by name, or one that was sent here, by
the hash of its content. What was sent is kept where the engine keeps such pictures too, since the request of what is
drawn points to it. What this module does not know: the form, the desk, and how anything is drawn (`generate.start`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_lora.errors import DatasetError, PromptError
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.start import Hires, Start
from diffusion_lora.images import open_image
from diffusion_lora.run import write_atomically
from diffusion_lora.workspace import Workspace
from webui.gallery import picture_named
from webui.owners import pictures_of

MODES = ("text", "image", "inpaint", "upscale")
MAX_SENT_BYTES = 12_000_000
MAX_SENT_PX = 1536
"""The longer side of a picture as the browser sends it."""
MAX_MASK_PX = 1024
_MAX_MASK_BYTES = 300_000
_SHA = re.compile(r"[0-9a-f]{64}")

NOTHING: Mapping[str, Any] = {
    "mode": "text", "picture": None, "strength": 0.6, "mask": "", "blur": 4, "padding": 32,
    "only_masked": False, "scale": 2.0, "again": 0.35, "upscaler": "lanczos",
}  # fmt: skip
"""What the browser holds at first."""


@dataclass(frozen=True)
class Source:
    """What every request of a drawing has in common beside form and desk."""

    start: Start | None = None
    hires: Hires | None = None

    def of(self, requests: Iterable[Request]) -> list[Request]:
        """The requests with it."""
        return [replace(request, start=self.start, hires=self.hires) for request in requests]


def source_of(state: Any, workspace: Workspace, user: str) -> Source:
    """What the browser's state asks for. Raises PromptError, in words."""
    said = {**NOTHING, **(state if isinstance(state, Mapping) else {})}
    try:
        if said["mode"] == "upscale":
            return Source(hires=Hires(float(said["scale"]), float(said["again"]), 0, str(said["upscaler"])))
        if said["mode"] not in ("image", "inpaint"):
            return Source()
        masked = said["mode"] == "inpaint"
        if masked and not said["mask"]:
            raise PromptError("nothing is painted: paint where to draw anew, or choose Image to draw all of it anew")
        return Source(
            Start(
                _picture(said["picture"], workspace, user),
                float(said["strength"]),
                sent(said["mask"], workspace) if masked else None,
                int(said["blur"]),
                masked and bool(said["only_masked"]),
                int(said["padding"]),
            )
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"what the picture begins with is not understood ({error}): reload the page") from error


def sent(data: Any, workspace: Workspace) -> Path:
    """A picture that the browser sent as a data address, kept under its hash. Raises PromptError."""
    try:
        content = base64.b64decode(str(data).rpartition(",")[2], validate=True)
    except (ValueError, binascii.Error):
        raise PromptError("the picture has not arrived whole: choose it again") from None
    if len(content) > MAX_SENT_BYTES:
        raise PromptError(f"the picture has more than {MAX_SENT_BYTES // 1_000_000} MB: choose a smaller one")
    path = _given(workspace) / f"{hashlib.sha256(content).hexdigest()}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        try:
            open_image(path)
        except DatasetError:
            path.unlink(missing_ok=True)
            raise PromptError("this is no picture that can be read: choose a PNG, JPEG or WebP") from None
    return path


def state_of(
    request: Request, workspace: Workspace, user: str, address: Callable[[Path], str]
) -> tuple[dict[str, Any], str]:
    """What the browser holds for a picture's request, and a sentence about what could not be put back, or "".

    `address` is where a picture is shown from. Files elsewhere are not opened: whoever passes a picture on could name
    any of this machine.
    """
    if hires := request.hires:
        return {**NOTHING, "mode": "upscale", "scale": hires.scale, "again": hires.strength,
                "upscaler": hires.upscaler}, ""  # fmt: skip
    start = request.start
    if start is None:
        return dict(NOTHING), ""
    state = {**NOTHING, "strength": start.strength, "blur": start.blur_px, "padding": start.padding_px}
    state |= {"only_masked": start.only_masked}
    picture = _found(start.image, workspace, user)
    if picture is None:
        told = f"The picture that it was drawn from, {start.image.name}, is not among yours: choose it again."
        return {**state, "mode": "image"}, told
    state |= {"mode": "image", "picture": {**picture, "src": address(start.image)}}
    if start.mask is None:
        return state, ""
    if _found(start.mask, workspace, user) is None:
        return {**state, "mode": "inpaint"}, "What was painted on it is no longer there: paint it again."
    return {**state, "mode": "inpaint", "mask": _as_mask(start.mask)}, ""


def picture_of(path: Path, workspace: Workspace, user: str, src: str) -> dict[str, Any]:
    """A picture as the browser holds it, with its size. Raises PromptError."""
    try:
        width, height = open_image(path).size
    except DatasetError as error:
        raise PromptError(str(error)) from error
    return {**(_found(path, workspace, user) or {}), "src": src, "width": width, "height": height}


def _picture(said: Any, workspace: Workspace, user: str) -> Path:
    if not isinstance(said, Mapping):
        raise PromptError("there is no picture to begin with: choose one, or send one from the stage")
    if "given" in said:
        path = _given(workspace) / f"{said['given']}.png"
        if not _SHA.fullmatch(str(said["given"])) or not path.is_file():
            raise PromptError("the picture to begin with is no longer here: choose it again")
        return path
    return picture_named(pictures_of(workspace, user), str(said.get("name", "")))


def _found(path: Path, workspace: Workspace, user: str) -> dict[str, str] | None:
    """By which the browser names a picture; None for one that is not the asker's to see."""
    if not path.is_file():
        return None
    if path.parent == _given(workspace) and _SHA.fullmatch(path.stem):
        return {"given": path.stem}
    return {"name": path.name} if path.parent == pictures_of(workspace, user) else None


def _as_mask(path: Path) -> str:
    """A mask as the browser paints on: the file as it is, for so the same picture is drawn, or a smaller copy."""
    content = path.read_bytes()
    if len(content) <= _MAX_MASK_BYTES:
        return base64.b64encode(content).decode()
    image = open_image(path).convert("L")
    image.thumbnail((MAX_MASK_PX, MAX_MASK_PX), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _given(workspace: Workspace) -> Path:
    return workspace.state / "given"
