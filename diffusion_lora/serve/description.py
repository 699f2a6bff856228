"""The engine's HTTP described in OpenAPI, made of the very types that are read and told: what they say, it says.

FastAPI finds the routes; what they take and give is said here, because bodies are read by `asked` and not by FastAPI,
whose refusals are no sentences for people. The document stands at /openapi.json, behind the same token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from diffusion_lora import __version__
from diffusion_lora.generate.wire import KINDS, EngineStatus
from diffusion_lora.serve.asked import Cancel, FromPicture, Generate, Grid, Load

_EVENTS = "Event"
_REF = "#/components/schemas/{model}"
_TEXT: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@dataclass(frozen=True)
class _Route:
    """What a route is for, the type of its body, and its answer: a type, a JSON schema, or _EVENTS."""

    summary: str
    body: Any = None
    answer: Any = None


@dataclass(frozen=True)
class Txt2Img:
    """The fields of AUTOMATIC1111's txt2img that are read here. Others are refused where they ask for what
    this engine has not (scripts, extensions, styles, a refiner, face restoration), and passed over elsewhere."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    steps: int = 20
    cfg_scale: float | None = None
    width: int = 0
    height: int = 0
    batch_size: int = 1
    n_iter: int = 1
    sampler_name: str = "DDIM"
    scheduler: str = "Automatic"
    tiling: bool = False
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    denoising_strength: float = 0.7
    override_settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class Img2Img(Txt2Img):
    """The same with a picture to start from, in base64, and a mask."""

    init_images: tuple[str, ...] = ()
    mask: str | None = None
    mask_blur: int = 4
    inpaint_full_res: bool = False
    inpaint_full_res_padding: int = 32


@dataclass(frozen=True)
class PngInfo:
    """A picture in base64."""

    image: str


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_STRING, _NUMBER = {"type": "string"}, {"type": "number"}
_DRAWN = _object(
    images={"type": "array", "items": _STRING | {"description": "PNG in base64, with its settings"}},
    parameters={"type": "object"},
    info=_STRING | {"description": "JSON: all_seeds, seed, infotexts, interrupted"},
)
_NAMED = {"type": "array", "items": {"type": "object"}}

_ROUTES: dict[tuple[str, str], _Route] = {
    ("/status", "get"): _Route("What the engine does", answer=EngineStatus),
    ("/generate", "post"): _Route("Draw pictures; told step by step, with previews", Generate, _EVENTS),
    ("/img2img", "post"): _Route("Draw from a picture, or inpaint", FromPicture, _EVENTS),
    ("/grid", "post"): _Route("Draw a grid and its sheet", Grid, _EVENTS),
    ("/cancel", "post"): _Route("Give up a drawing", Cancel, _object(cancelled={"type": "boolean"})),
    ("/load", "post"): _Route("Load a base", Load, {"type": "object"}),
    ("/unload", "post"): _Route("Let go of the base and the device", None, {"type": "object"}),
    ("/adapters", "get"): _Route("The LoRAs of the workspace", answer=_object(adapters=_NAMED)),
    ("/bases", "get"): _Route("The bases that have names", answer=_object(bases=_NAMED)),
    ("/sdapi/v1/txt2img", "post"): _Route("AUTOMATIC1111: draw", Txt2Img, _DRAWN),
    ("/sdapi/v1/img2img", "post"): _Route("AUTOMATIC1111: draw from a picture", Img2Img, _DRAWN),
    ("/sdapi/v1/png-info", "post"): _Route(
        "AUTOMATIC1111: the settings in a picture", PngInfo, _object(info=_STRING, items={"type": "object"})
    ),
    ("/sdapi/v1/progress", "get"): _Route(
        "AUTOMATIC1111: how far the drawing is",
        answer=_object(progress=_NUMBER, eta_relative=_NUMBER, state={"type": "object"}, current_image=_STRING),
    ),
    ("/sdapi/v1/interrupt", "post"): _Route("AUTOMATIC1111: give up what is drawn", answer={"type": "object"}),
    ("/sdapi/v1/loras", "get"): _Route("AUTOMATIC1111: the LoRAs", answer=_NAMED),
    ("/sdapi/v1/samplers", "get"): _Route("AUTOMATIC1111: the samplers", answer=_NAMED),
    ("/sdapi/v1/schedulers", "get"): _Route("AUTOMATIC1111: the schedules", answer=_NAMED),
    ("/sdapi/v1/scripts", "get"): _Route("AUTOMATIC1111: there are no scripts", answer={"type": "object"}),
    ("/sdapi/v1/sd-models", "get"): _Route("AUTOMATIC1111: the bases", answer=_NAMED),
    ("/sdapi/v1/options", "get"): _Route("AUTOMATIC1111: which base is loaded", answer={"type": "object"}),
    ("/sdapi/v1/options", "post"): _Route(
        "AUTOMATIC1111: load a base", _object(sd_model_checkpoint=_STRING), {"type": "null"}
    ),
}


def describe(app: FastAPI) -> None:
    """Give the app its document, made when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    whole = get_openapi(
        title="diffusion-lora",
        version=__version__,
        description="The engine of a workspace. Port and token stand in the workspace's state/engine.json. A drawing's "
        "events come as JSON, one a line; hanging up cancels it. ControlNet is not offered.",
        routes=app.routes,
    )
    components = whole.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "password": {"type": "http", "scheme": "basic", "description": "any name, the token as the password"},
    }
    whole["security"] = [{"token": []}, {"password": []}]
    schemas[_EVENTS] = {"oneOf": [_event(kind, event, schemas) for kind, event in KINDS.items()]}
    for (path, method), route in _ROUTES.items():
        told = whole["paths"][path][method]
        told["summary"] = route.summary
        if route.body is not None:
            told["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": _schema(route.body, schemas)}},
            }
        if route.answer == _EVENTS:
            content = {"application/x-ndjson": {"schema": {"$ref": _REF.format(model=_EVENTS)}}}
        else:
            content = {"application/json": {"schema": _schema(route.answer, schemas)}}
        refused = {"application/json": {"schema": _TEXT}}
        told["responses"] = {
            "200": {"description": "What was asked for", "content": content},
            "400": {"description": "What is wrong, in a sentence", "content": refused},
            "401": {"description": "The token is missing or wrong", "content": refused},
        }
    return whole


def _schema(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type, what it is made of kept among `schemas`; a schema is one already."""
    if isinstance(kind, dict):
        return kind
    schema = TypeAdapter(kind).json_schema(ref_template=_REF)
    schemas |= schema.pop("$defs", {})
    schemas[kind.__name__] = schema
    return {"$ref": _REF.format(model=kind.__name__)}


def _event(kind: str, event: type[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """An event's schema with its kind, which stands in every line; under a name of its own, because a picture too has a
    Start."""
    schema = TypeAdapter(event).json_schema(ref_template=_REF)
    schemas |= schema.pop("$defs", {})
    properties = {"kind": {"const": kind}, **schema.get("properties", {})}
    name = f"{event.__name__}Event"
    schemas[name] = schema | {"properties": properties, "required": ["kind", *schema.get("required", [])]}
    return {"$ref": _REF.format(model=name)}
