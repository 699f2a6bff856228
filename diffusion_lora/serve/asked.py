"""What a client may ask of the engine beside the picture itself: the bodies of its routes, read and told from here.

The dataclasses are what OpenAPI shows (`description`); `read` makes one of a JSON object. No torch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from diffusion_lora.adopted import lora_path
from diffusion_lora.errors import PromptError
from diffusion_lora.generate.infotext import request_from_fields
from diffusion_lora.generate.request import Request
from diffusion_lora.generate.start import Start
from diffusion_lora.run import write_atomically
from diffusion_lora.workspace import Workspace, check_name

MAX_REQUESTS = 1000


@dataclass(frozen=True)
class Generate:
    """Draw these pictures; those alike in size, steps and sampler are one batch, also with those of other callers.

    With an `owner` they are kept in the folder of that name.
    """

    requests: list[Request]
    previews: bool = True
    owner: str = ""


@dataclass(frozen=True)
class FromPicture:
    """Draw from a picture, all of it or where a mask is white. Both are files in base64; the rest is as in `Start`."""

    requests: list[Request]
    image: str
    mask: str = ""
    strength: float = 0.75
    blur_px: int = 4
    only_masked: bool = False
    padding_px: int = 32
    previews: bool = True


@dataclass(frozen=True)
class Grid:
    """Draw a request changed by every pair of a row and a column, and one labelled sheet of all.

    Axes are written as on the command line: `strength:NAME=0,0.5,1`, `seed=1,2`, `sampler=ddim,euler_a`, ... With
    `baseline` a first column has no LoRA. With an `owner` pictures and sheet are kept in the folder of that name.
    """

    request: Request
    rows: str
    columns: str
    baseline: bool = False
    title: str = ""
    theme: str = "light"
    previews: bool = False
    owner: str = ""


@dataclass(frozen=True)
class Cancel:
    """Give up the drawing of this id, which its first event told."""

    id: str


@dataclass(frozen=True)
class Load:
    """Load this base: pocket, the name of one of the workspace, a path or a hub id."""

    base: str


Asked = TypeVar("Asked", Generate, FromPicture, Grid, Cancel, Load)


def read(kind: type[Asked], body: Mapping[str, Any], workspace: Workspace) -> Asked:
    """The body as one of these, LoRAs found in the workspace. Raises UserError for anything else."""
    known = {field.name: field for field in fields(kind)}
    if strange := sorted(body.keys() - known.keys()):
        raise PromptError(f"the order says {strange[0]!r}, which is not read here; {', '.join(known)} are")
    values = dict(body)
    if values.get("owner") and isinstance(values["owner"], str):
        check_name(values["owner"])
    for name, field in known.items():
        if name not in values:
            continue
        value = values[name]
        match str(field.type):
            case "list[Request]":
                if not isinstance(value, list) or not 1 <= len(value) <= MAX_REQUESTS:
                    raise PromptError(f"the order has no list of 1 to {MAX_REQUESTS} requests")
                values[name] = [_request(one, workspace) for one in value]
            case "Request":
                values[name] = _request(value, workspace)
            case "float":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise PromptError(f"the order's {name} is {value!r}, which is no number")
            case word:
                wanted = {"str": str, "bool": bool, "int": int}[word]
                if type(value) is not wanted or (value == "" and name in ("id", "base", "rows", "columns", "image")):
                    raise PromptError(f"the order does not say which {name}")
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name in ("requests", "request", "rows", "columns", "image", "id", "base")
                   if name in known and name not in values]  # fmt: skip
        if missing == ["requests"]:
            raise PromptError(f"the order has no list of 1 to {MAX_REQUESTS} requests") from None
        raise PromptError(f"the order does not say which {missing[0]}") from None


def started(asked: FromPicture, workspace: Workspace) -> list[Request]:
    """The requests with the picture as their start, which is kept in the workspace under its hash."""
    mask = kept(asked.mask, workspace) if asked.mask else None
    start = Start(
        kept(asked.image, workspace), asked.strength, mask, asked.blur_px, asked.only_masked, asked.padding_px
    )
    return [replace(request, start=start) for request in asked.requests]


def kept(encoded: object, workspace: Workspace) -> Path:
    """A picture that was sent, in a file named by its content: the request of what is drawn from it points there."""
    try:
        data = base64.b64decode(str(encoded).rpartition(",")[2], validate=True)
    except (ValueError, binascii.Error):
        raise PromptError("a picture is not in base64") from None
    path = workspace.state / "given" / f"{hashlib.sha256(data).hexdigest()}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return path


def _request(value: object, workspace: Workspace) -> Request:
    """With relative paths of LoRAs taken from the workspace, wherever this process was started; what is no path of a
    file there may be the name of a LoRA. Raises WorkspaceError when it is neither."""
    if not isinstance(value, Mapping):
        raise PromptError("a request of the order is no JSON object")
    request = request_from_fields(value)
    return replace(request, loras=tuple(replace(use, path=lora_path(workspace, use.path)) for use in request.loras))
