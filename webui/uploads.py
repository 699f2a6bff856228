"""Files sent to the page: streamed to the disk under a name of our own, measured while they come, then looked at.

    POST /upload/lora?name=FILE    the body is a .safetensors file; it goes among the LoRAs

A body that is too long is given up where it passes the limit, a file of another kind before it is read. What is refused
is answered with 4xx and {problem}, and logged. Nothing that was sent is served back from here.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from diffusion_lora.errors import UserError
from diffusion_lora.workspace import Workspace
from webui.library import SUFFIX, Library
from webui.refusals import note_refusal
from webui.words import sentence

MAX_LORA_BYTES = 1_000_000_000


class _Refused(Exception):  # noqa: N818 -- never leaves this module
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def upload_routes(workspace: Workspace, library: Library) -> APIRouter:
    """The routes of this module."""
    router = APIRouter()

    @router.post("/upload/lora")
    async def lora(request: Request, name: str = "") -> Response:
        kinds, most = (SUFFIX,), MAX_LORA_BYTES
        return await _taken(request, workspace, name, kinds, most, lambda file: library.take(file, name))

    return router


async def _taken(
    request: Request,
    workspace: Workspace,
    name: str,
    kinds: tuple[str, ...],
    most: int,
    take: Callable[[Path], dict[str, Any]],
) -> Response:
    """Receive a file and hand it on; what `take` raises is the answer."""
    try:
        if not name.lower().endswith(kinds):
            raise _Refused(415, f"{Path(name).name or 'a file without a name'} is not of the kind that is taken here: "
                                f"{', '.join(kinds)}")  # fmt: skip
        async with _received(request, workspace, most) as file:
            return JSONResponse(await anyio.to_thread.run_sync(take, file))
    except _Refused as refused:
        status, text = refused.status, str(refused)
    except UserError as error:
        status, text = 422, str(error)
    told = sentence(text)
    note_refusal(request.scope, status, told)
    return JSONResponse({"problem": told}, status)


@asynccontextmanager
async def _received(request: Request, workspace: Workspace, most: int) -> AsyncIterator[Path]:
    """The body as a file that is gone afterwards, unless it was moved away. Raises _Refused."""
    too_long = _Refused(413, f"the file is larger than {most // 1_000_000:,} MB: put it into the folder by hand")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise too_long
    folder = workspace.state / "uploads"
    folder.mkdir(exist_ok=True)
    place = folder / f".{secrets.token_hex(8)}.part"
    try:
        size = 0
        with place.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise too_long
                await anyio.to_thread.run_sync(file.write, chunk)
        yield place
    except OSError as error:
        raise _Refused(507, f"the file cannot be kept ({error.strerror or error}): free some space") from error
    finally:
        place.unlink(missing_ok=True)
