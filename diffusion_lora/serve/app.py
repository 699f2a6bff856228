"""The engine's HTTP: routes over a `Studio`, and the news of a drawing as lines of JSON.

    GET  /status        the engine's status (generate.wire.EngineStatus)
    POST /generate      {requests, previews, owner} -> application/x-ndjson, an event a line; hanging up cancels
    POST /img2img       the same from a picture, with or without a mask
    POST /grid          the same for every pair of a row and a column, and a sheet of all
    POST /cancel        {id} -> {cancelled}
    POST /load          {base}; /unload lets go of it
    GET  /adapters      the cards of the LoRAs in the workspace
    GET  /bases         what can be loaded by name
    GET  /openapi.json  all of this described (`description`)
    /sdapi/v1/...       a part of AUTOMATIC1111's API (`web_api`)

Bodies are `asked`'s. What a person can get wrong is answered with status 400 and {text}. Who may ask is `guard`'s.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from diffusion_lora.errors import PromptError, UserError
from diffusion_lora.generate.wire import Last, Start, status_fields, to_line
from diffusion_lora.lora.card import workspace_cards
from diffusion_lora.serve.asked import Cancel, FromPicture, Generate, Grid, Load, read, started
from diffusion_lora.serve.description import describe
from diffusion_lora.serve.drawing import Drawing
from diffusion_lora.serve.grids import planned
from diffusion_lora.serve.guard import Message, Receive, Send
from diffusion_lora.serve.studio import Studio
from diffusion_lora.serve.web_api import add_web_api, bases_in
from diffusion_lora.workspace import Workspace

MAX_BODY_BYTES = 4_000_000
MAX_PICTURE_BYTES = 64_000_000  # bodies with pictures in them


def create_app(studio: Studio, workspace: Workspace, on_request: Callable[[], None]) -> FastAPI:
    """The routes. `on_request` is called at each request: the process wants to know when it was last needed."""
    app = FastAPI(docs_url=None, redoc_url=None)

    @app.exception_handler(UserError)
    async def _told(request: Request, error: UserError) -> Response:
        return JSONResponse({"text": str(error)}, status_code=400)

    @app.get("/status")
    async def _status() -> Response:
        on_request()
        return JSONResponse(status_fields(studio.status()))

    @app.post("/generate")
    async def _generate(request: Request) -> Response:
        on_request()
        order = read(Generate, await _body(request), workspace)
        return _News(studio, Drawing(order.requests, previews=order.previews, owner=order.owner))

    @app.post("/img2img")
    async def _img2img(request: Request) -> Response:
        on_request()
        order = read(FromPicture, await _body(request, MAX_PICTURE_BYTES), workspace)
        return _News(studio, Drawing(started(order, workspace), previews=order.previews))

    @app.post("/grid")
    async def _grid(request: Request) -> Response:
        on_request()
        order = read(Grid, await _body(request), workspace)
        requests, finish = planned(order, workspace)
        return _News(studio, Drawing(requests, previews=order.previews, owner=order.owner, finish=finish))

    @app.post("/cancel")
    async def _cancel(request: Request) -> Response:
        on_request()
        return JSONResponse({"cancelled": studio.cancel(read(Cancel, await _body(request), workspace).id)})

    @app.post("/load")
    async def _load(request: Request) -> Response:
        on_request()
        base = read(Load, await _body(request), workspace).base
        studio.load(bases_in(workspace).get(base, base))
        return JSONResponse({})

    @app.post("/unload")
    async def _unload() -> Response:
        on_request()
        studio.unload()
        return JSONResponse({})

    @app.get("/adapters")
    def _adapters() -> Response:  # no async: a long folder is read beside the loop
        on_request()
        cards = workspace_cards(workspace)
        paths = [{"path": card.path, "preview": card.preview} for card in cards]
        places = [{key: path and workspace.relative(path) for key, path in one.items()} for one in paths]
        return JSONResponse({"adapters": [asdict(card) | place for card, place in zip(cards, places, strict=True)]})

    @app.get("/bases")
    def _bases() -> Response:
        on_request()
        return JSONResponse({"bases": [{"name": name, "path": path} for name, path in bases_in(workspace).items()]})

    add_web_api(app, studio, workspace, partial(_body, limit=MAX_PICTURE_BYTES), on_request)
    describe(app)
    return app


class _News(Response):
    """The events of a drawing as they come. The order is given when the answer begins and given up when nobody listens.

    Starlette's own streams notice a hang-up at the next line at the latest; here a step may take a minute, so the
    connection is watched on its own.
    """

    media_type = "application/x-ndjson"

    def __init__(self, studio: Studio, drawing: Drawing) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._studio = studio
        self._drawing = drawing

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        drawing = self._drawing
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        watching = asyncio.create_task(_until_hung_up(receive, drawing))
        drawing.tell(Start(drawing.id))
        self._studio.order(drawing)
        try:
            with suppress(OSError):  # hung up in the middle of a line
                while event := await drawing.next():
                    ended = isinstance(event, Last)
                    await send({"type": "http.response.body", "body": to_line(event), "more_body": not ended})
                    if ended:
                        return
        finally:
            self._studio.cancel(drawing.id)
            watching.cancel()


async def _until_hung_up(receive: Receive, drawing: Drawing) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    drawing.hang_up()


async def _body(request: Request, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The JSON object sent. Raises PromptError for anything else."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > limit:
            raise PromptError(f"the order is longer than {limit:,} bytes")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise PromptError("the order is no JSON object")
    return body

