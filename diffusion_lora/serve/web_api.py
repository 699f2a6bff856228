"""A part of the HTTP API of AUTOMATIC1111's web UI, so that its clients find an engine here.

    POST /sdapi/v1/txt2img, /img2img     draw; PNGs in base64, with their infotexts
    POST /sdapi/v1/png-info              the infotext of a picture
    GET  /sdapi/v1/progress              of what is being drawn through this API, with a glimpse of it
    POST /sdapi/v1/interrupt             give it up
    GET  /sdapi/v1/loras, /samplers, /schedulers, /sd-models, /scripts      what there is
    GET, POST /sdapi/v1/options          which base is loaded; `sd_model_checkpoint` loads another

`<lora:name:…>` in prompts is looked up in the workspace. What a field asks for and this engine has not is refused in
words, never drawn without. Clients log in with any name and the engine's token as the password (`guard`).
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from diffusion_lora.adopted import find_model, models
from diffusion_lora.errors import PromptError
from diffusion_lora.generate.embedded import COMMENT, texts_in
from diffusion_lora.generate.infotext import TEXT_CHUNK, write_infotext
from diffusion_lora.generate.request import Request as PictureRequest
from diffusion_lora.generate.samplers import SAMPLERS, sampler_named, sampler_of_a1111
from diffusion_lora.generate.start import Hires, Start
from diffusion_lora.generate.tags import read_embeddings, read_typed_prompt
from diffusion_lora.generate.wire import Cancelled, Drawn, Failed, Last, Preview, Step
from diffusion_lora.lora.card import workspace_cards
from diffusion_lora.serve.asked import kept
from diffusion_lora.serve.drawing import Drawing
from diffusion_lora.serve.studio import Studio
from diffusion_lora.workspace import Workspace

Body = Callable[[Request], Any]
MAX_PICTURES = 64
_REFUSED = {"script_name": "scripts", "alwayson_scripts": "extensions", "styles": "styles", "refiner_checkpoint":
            "a refiner", "restore_faces": "face restoration"}  # fmt: skip


@dataclass
class _State:
    """What is being drawn through this API."""

    drawings: dict[str, Drawing] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    glimpse: str | None = None


def add_web_api(app: FastAPI, studio: Studio, workspace: Workspace, body: Body, on_request: Callable[[], None]) -> None:
    """Add the routes; `body` reads a JSON object, `on_request` is called at each request."""
    state = _State()

    async def drawn(asked: dict[str, Any], start: Start | None) -> Response:
        requests = _requests(asked, workspace, start)
        drawing = Drawing(requests, previews=True)
        state.drawings[drawing.id] = drawing
        studio.order(drawing)
        found: dict[int, Drawn] = {}
        try:
            while event := await drawing.next():
                if isinstance(event, Drawn):
                    found[event.index] = event
                elif isinstance(event, Step):
                    state.done, state.total = event.done, event.total
                elif isinstance(event, Preview):
                    state.glimpse = event.webp
                elif isinstance(event, Failed):
                    raise PromptError(event.text)
                if isinstance(event, Last):
                    break
        finally:
            studio.cancel(drawing.id)
            del state.drawings[drawing.id]
            state.done, state.total, state.glimpse = 0, 0, None
        pictures = [found[index] for index in sorted(found)]
        infotexts = [write_infotext(picture.request) for picture in pictures]
        info = {
            "prompt": asked.get("prompt", ""),
            "all_seeds": [picture.request.seed for picture in pictures],
            "seed": pictures[0].request.seed if pictures else -1,
            "infotexts": infotexts,
            "interrupted": isinstance(event, Cancelled),
        }
        images = [base64.b64encode((workspace.root / one.path).read_bytes()).decode() for one in pictures]
        return JSONResponse({"images": images, "parameters": asked, "info": json.dumps(info)})

    @app.post("/sdapi/v1/txt2img")
    async def _txt2img(request: Request) -> Response:
        on_request()
        return await drawn(await body(request), None)

    @app.post("/sdapi/v1/img2img")
    async def _img2img(request: Request) -> Response:
        on_request()
        asked = await body(request)
        start = _start(asked, workspace)
        return await drawn({key: value for key, value in asked.items() if key not in ("init_images", "mask")}, start)

    @app.post("/sdapi/v1/png-info")
    async def _png_info(request: Request) -> Response:
        on_request()
        texts = texts_in(kept((await body(request)).get("image"), workspace))
        return JSONResponse({"info": texts.get(TEXT_CHUNK, texts.get(COMMENT, "")), "items": texts})

    @app.get("/sdapi/v1/progress")
    async def _progress(skip_current_image: bool = False) -> Response:
        on_request()
        share = state.done / state.total if state.total else 0.0
        told = {"job_count": len(state.drawings), "sampling_step": state.done, "sampling_steps": state.total}
        glimpse = None if skip_current_image else state.glimpse
        return JSONResponse({"progress": share, "eta_relative": 0.0, "state": told, "current_image": glimpse})

    @app.post("/sdapi/v1/interrupt")
    async def _interrupt() -> Response:
        on_request()
        for drawing_id in list(state.drawings):
            studio.cancel(drawing_id)
        return JSONResponse({})

    @app.get("/sdapi/v1/loras")
    def _loras() -> Response:
        on_request()
        cards = [card for card in workspace_cards(workspace) if not card.problem]
        return JSONResponse([{"name": card.name, "alias": card.name, "path": str(card.path)} for card in cards])

    @app.get("/sdapi/v1/samplers")
    async def _samplers() -> Response:
        on_request()
        names = dict.fromkeys(sampler.a1111 for sampler in SAMPLERS.values())
        return JSONResponse([{"name": name, "aliases": [], "options": {}} for name in names])

    @app.get("/sdapi/v1/schedulers")
    async def _schedulers() -> Response:
        on_request()
        labels = dict.fromkeys(["Automatic", *(sampler.a1111_schedule for sampler in SAMPLERS.values())])
        return JSONResponse([{"name": label.lower().replace(" ", "_"), "label": label} for label in labels])

    @app.get("/sdapi/v1/scripts")
    async def _scripts() -> Response:
        on_request()
        return JSONResponse({"txt2img": [], "img2img": []})

    @app.get("/sdapi/v1/sd-models")
    def _bases() -> Response:
        on_request()
        return JSONResponse([
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": place, "config": None}
            for name, place in bases_in(workspace).items()
        ])  # fmt: skip

    @app.get("/sdapi/v1/options")
    async def _options() -> Response:
        on_request()
        status = studio.status()
        return JSONResponse({"sd_model_checkpoint": status.base, "sd_checkpoint_hash": status.base_hash})

    @app.post("/sdapi/v1/options")
    async def _set_options(request: Request) -> Response:
        on_request()
        wanted = await body(request)
        base = wanted.pop("sd_model_checkpoint", None)
        if wanted:
            raise PromptError(f"{next(iter(wanted))}: of the options this engine has sd_model_checkpoint alone")
        if base is not None:
            studio.load(bases_in(workspace).get(str(base), str(base)))
        return JSONResponse(None)


def bases_in(workspace: Workspace) -> dict[str, str]:
    """What can be loaded by name here: the embedded base, and those of the workspace and of adopted folders."""
    return {"pocket": "pocket"} | {model.name: str(model.path) for model in models(workspace, "bases")}


def _requests(asked: dict[str, Any], workspace: Workspace, start: Start | None) -> list[PictureRequest]:
    for key, what in _REFUSED.items():
        if asked.get(key):
            raise PromptError(f"{key}: this engine has no {what}")
    count = _whole(asked, "batch_size", 1) * _whole(asked, "n_iter", 1)
    if not 1 <= count <= MAX_PICTURES:
        raise PromptError(f"{count} pictures are asked for; give 1 to {MAX_PICTURES}")
    seed = _whole(asked, "seed", -1)
    seed = secrets.randbelow(2**32) if seed == -1 else seed
    prompt, uses = read_typed_prompt(
        str(asked.get("prompt") or ""), seed, find=lambda name: find_model(workspace, "loras", name).path
    )
    (prompt, negative), embeddings = read_embeddings(
        (prompt, str(asked.get("negative_prompt") or "")), [workspace.embeddings]
    )
    settings = asked.get("override_settings")
    clip_skip = settings.get("CLIP_stop_at_last_layers", 1) if isinstance(settings, dict) else 1
    hires = None
    if asked.get("enable_hr"):
        upscaler = "latent" if str(asked.get("hr_upscaler", "Latent")).startswith("Latent") else "lanczos"
        strength = _number(asked, "denoising_strength", 0.7)
        hires = Hires(_number(asked, "hr_scale", 2.0), strength, _whole(asked, "hr_second_pass_steps", 0), upscaler)
    subseed = _whole(asked, "subseed", -1)
    first = PictureRequest(
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        steps=_whole(asked, "steps", 20),
        guidance_scale=None if asked.get("cfg_scale") is None else _number(asked, "cfg_scale", 7.0),
        width=_whole(asked, "width", 0),
        height=_whole(asked, "height", 0),
        sampler=_sampler(asked),
        loras=uses,
        clip_skip=clip_skip,
        start=start,
        hires=hires,
        variation_seed=None if subseed == -1 else subseed,
        variation_strength=_number(asked, "subseed_strength", 0.0) if subseed != -1 else 0.0,
        tiling=bool(asked.get("tiling")),
        embeddings=embeddings,
    )
    return [replace(first, seed=seed + index) for index in range(count)]


def _sampler(asked: dict[str, Any]) -> str:
    name = str(asked.get("sampler_name") or asked.get("sampler_index") or "DDIM")
    if name in SAMPLERS:
        return sampler_named(name).name
    return sampler_of_a1111(name, str(asked.get("scheduler") or "Automatic")).name


def _start(asked: dict[str, Any], workspace: Workspace) -> Start:
    images = asked.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        raise PromptError("init_images holds no picture to start from, or more than one")
    mask = kept(asked["mask"], workspace) if asked.get("mask") else None
    if asked.get("inpainting_mask_invert"):
        raise PromptError("inpainting_mask_invert: this engine draws where the mask is white; invert it first")
    return Start(
        kept(images[0], workspace),
        _number(asked, "denoising_strength", 0.75),
        mask,
        _whole(asked, "mask_blur", 4),
        bool(asked.get("inpaint_full_res")) and mask is not None,
        _whole(asked, "inpaint_full_res_padding", 32),
    )


def _whole(asked: dict[str, Any], name: str, default: int) -> int:
    number = _number(asked, name, default)
    if number != int(number):
        raise PromptError(f"{name} is {number:g}; give a whole number")
    return int(number)


def _number(asked: dict[str, Any], name: str, default: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**63:
        raise PromptError(f"{name} is {value!r}, which is no number")
    return value
