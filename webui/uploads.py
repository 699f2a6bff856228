"""Files sent to the page: streamed to the disk under a name of our own, measured while they come, then looked at.

    POST /upload/lora?name=FILE                  a .safetensors file; it goes among the LoRAs
    POST /upload/picture?set=FOLDER&name=FILE    a picture, or the .txt that is its caption; into a set of the workspace
    POST /upload/zip?name=FILE                   a .zip of both; it becomes a set of its own

A body that is too long is given up where it passes the limit, a file of another kind before it is read. What is refused
is answered with 4xx and {problem}, and logged. Nothing that was sent is served back from here.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusion_lora.data.imports import import_zip
from diffusion_lora.errors import DatasetError, UserError
from diffusion_lora.images import SUFFIXES
from diffusion_lora.workspace import Workspace
from webui import sets
from webui.library import SUFFIX, Library
from webui.refusals import note_refusal
from webui.words import sentence

MAX_LORA_BYTES = 1_000_000_000
MAX_PICTURE_BYTES = 100_000_000
MAX_ZIP_BYTES = 1_000_000_000


_KINDS_OF_GRADIO = (*sorted(SUFFIXES), ".txt")
"""What its own fields of the page take: a picture whose settings come back, pictures to train on, their captions."""
_FILE_NAME = re.compile(rb'filename\*?="?([^"\r\n]*)')
_LONGEST_HEAD = 4096


class Sieve:
    """The middleware before Gradio's own upload: by the names in its parts, other kinds of files are refused (415)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or scope["method"] != "POST" or not path.endswith(("/upload", "/upload_progress")):
            await self._app(scope, receive, send)
            return
        held, wrong = b"", ""

        async def look() -> Message:
            nonlocal held, wrong
            message = await receive()
            seen = held + message.get("body", b"")
            held = seen[-_LONGEST_HEAD:]
            for found in _FILE_NAME.finditer(seen):
                name = found[1].decode("utf-8", "replace")
                if not name.lower().endswith(_KINDS_OF_GRADIO) and found.end() < len(seen):
                    wrong = name
                    return {"type": "http.disconnect"}
            return message

        async def answer(message: Message) -> None:
            if not wrong:
                await send(message)

        try:
            await self._app(scope, look, answer)
        except Exception:  # of the part that was cut off; without one it is told where all errors are
            if not wrong:
                raise
        if wrong:
            told = f"{wrong[:80]} is none of {', '.join(_KINDS_OF_GRADIO)}."
            note_refusal(scope, 415, told)
            await JSONResponse({"problem": told}, 415)(scope, receive, send)


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

    @router.post("/upload/picture")
    async def picture(request: Request, name: str = "", set: str = "") -> Response:  # noqa: A002 -- as the page says it
        kinds = (*sorted(SUFFIXES), ".txt")

        def take(file: Path) -> dict[str, Any]:
            folder = _set_of(workspace, set)
            taken = sets.take_picture(folder, file, name)
            return {"folder": str(folder), "name": taken, "count": int(not taken.endswith(".txt"))}

        return await _taken(request, workspace, name, kinds, MAX_PICTURE_BYTES, take)

    @router.post("/upload/zip")
    async def archive(request: Request, name: str = "") -> Response:
        def take(file: Path) -> dict[str, Any]:
            folder = sets.free_folder(workspace, Path(name.replace("\\", "/")).stem)
            try:
                import_zip(file, folder)
            except DatasetError as error:
                raise DatasetError(str(error).replace(str(file), Path(name).name)) from None
            return {"folder": str(folder), "count": len(sets.open_set(str(folder)).items)}

        return await _taken(request, workspace, name, (".zip",), MAX_ZIP_BYTES, take)

    return router


def _set_of(workspace: Workspace, folder: str) -> Path:
    """The folder that new pictures go to: a set of the workspace, or else a new one. Raises OutputError."""
    place = Path(folder)
    if folder and place.parent == workspace.datasets and place.is_dir() and not place.is_symlink():
        return place
    return sets.new_set(workspace, sets.FIRST_OWN_SET)


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
