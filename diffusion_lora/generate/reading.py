"""Settings out of pictures, whoever drew them: ours, AUTOMATIC1111, Forge, Fooocus, InvokeAI, ComfyUI. No torch.

    reading = read_picture(Path("00001-7.png"))
    reading.request, reading.program, reading.told

PNG, JPEG and WebP; text that is hidden in the pixels ("stealth") included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.company import Company, company_from_fields
from diffusion_lora.generate.embedded import COMMENT, DESCRIPTION, texts_in
from diffusion_lora.generate.foreign import Found, read_comfyui, read_fooocus, read_invokeai
from diffusion_lora.generate.infotext import JSON_CHUNK, TEXT_CHUNK, from_json, request_from_infotext
from diffusion_lora.generate.request import Request

OURS = "diffusion-lora"


@dataclass(frozen=True)
class Reading:
    """What a picture says of itself: the request, the program that wrote it, the batch it was drawn in (ours alone),
    and sentences about what was not understood."""

    request: Request
    program: str
    company: Company | None = None
    told: tuple[str, ...] = ()


def read_picture(path: Path) -> Reading:
    """Raises PromptError when the file is no picture, tells of no request, or of one that cannot be drawn."""
    texts = texts_in(path)
    for name in (JSON_CHUNK, DESCRIPTION):
        if (document := _object(texts.get(name))) and "request" in document:
            return Reading(from_json(texts[name]), OURS, company_from_fields(document.get("batch")))
    found = _foreign(texts)
    if found is not None:
        return Reading(found.request(), found.program, told=tuple(found.told))
    for name in (TEXT_CHUNK, COMMENT):
        if name in texts:
            return Reading(request_from_infotext(texts[name]), "AUTOMATIC1111")
    raise PromptError(f"{path} does not say how it was drawn: it has no generation parameters")


def read_request(path: Path) -> Request:
    """The request of `read_picture`."""
    return read_picture(path).request


def _foreign(texts: Mapping[str, str]) -> Found | None:
    """What other programs wrote as JSON, the one who says most first."""
    if document := _object(texts.get("invokeai_metadata")):
        return read_invokeai(document)
    for name in (TEXT_CHUNK, COMMENT):
        if document := _object(texts.get(name)):
            return read_fooocus(document)
    if TEXT_CHUNK not in texts and (graph := _object(texts.get("prompt"))):
        return read_comfyui(graph)
    return None


def _object(text: str | None) -> dict[str, Any] | None:
    if not text or not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
