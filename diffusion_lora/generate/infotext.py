"""A request as text: AUTOMATIC1111's infotext, which other programs read, and our own JSON, which loses nothing.

Both stand in the PNG as text chunks: `parameters` (what a person and a web UI see) and `diffusion_lora` (from which
the same request is read back). Paths below the home folder are written with `~`, so that a picture passed on does not
tell its maker's account name. No torch.

The rules of the infotext are those of the web UI's `infotext_utils.py`: the last line is `Key: value` pairs, a value
with a comma, colon or newline is JSON-quoted, and adapters stand in the prompt as `<lora:name:strength>`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from diffusion_lora import __version__
from diffusion_lora.errors import PromptError
from diffusion_lora.generate.company import Company
from diffusion_lora.generate.region import Region
from diffusion_lora.generate.request import Embedding, LoraUse, Request, with_options, written_options
from diffusion_lora.generate.samplers import sampler_named, sampler_of_a1111
from diffusion_lora.generate.start import Hires, Start
from diffusion_lora.prompt.tags import AdapterTag, take_tags

TEXT_CHUNK, JSON_CHUNK = "parameters", "diffusion_lora"
_FORMAT = 2
# What a request of version 0.1 did not have: left out where it says nothing, so that those versions read it.
_NEWER = {"regions": (), "combine": "sum", "prompt_syntax": "weighted", "clip_skip": 1, "start": None, "hires": None,
          "variation_seed": None, "variation_strength": 0.0, "tiling": False, "vae": "", "vae_hash": "",
          "embeddings": ()}  # fmt: skip
_NEWER_OF_LORA = {"blocks": (), "steps": "", "region": "", "negative": None}
_SIGNS = re.compile(r"[][(){}|:<>\\]|\b(AND|BREAK)\b|__")
_LONGEST_SURE_PROMPT = 70  # no prompt of so many characters was ever cut off
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_MIN_PAIRS = 3


@dataclass(frozen=True)
class Infotext:
    """An infotext taken apart; `parameters` as they stand, unquoted. Adapter tags are still in the prompt."""

    prompt: str
    negative_prompt: str
    parameters: Mapping[str, str]


def write_infotext(request: Request) -> str:
    """The infotext of a request that was drawn: its size, guidance and base are filled in."""
    sampler = sampler_named(request.sampler)
    parameters = {
        "Steps": request.steps,
        "Sampler": sampler.a1111,
        "Schedule type": sampler.a1111_schedule,
        "CFG scale": None if request.guidance_scale is None else _plain(request.guidance_scale),
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}" if request.width and request.height else None,
        "Variation seed": request.variation_seed if request.variation_strength else None,
        "Variation seed strength": _plain(request.variation_strength) if request.variation_strength else None,
        **_told_passes(request),
        "Tiling": True if request.tiling else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "Model hash": request.base_hash[:10] or None,
        "Model": _last_part(request.base) or None,
        "VAE hash": request.vae_hash[:10] or None,
        "VAE": _last_part(request.vae) or None,
        "RNG": "CPU",
        "Lora hashes": ", ".join(f"{_tag_name(use)}: {use.sha[:12]}" for use in request.loras if use.sha) or None,
        "TI hashes": ", ".join(f"{one.name}: {one.sha[:12]}" for one in request.embeddings if one.sha) or None,
        "Regions": "; ".join(map(_told_region, request.regions)) or None,
        "Version": f"diffusion-lora {__version__}",
    }
    lines = [" ".join([request.prompt, *map(_tag, request.loras)]).strip()]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in parameters.items() if value is not None))
    return "\n".join(lines)


def parse_infotext(text: str) -> Infotext:
    """Take an infotext apart, whoever wrote it. A last line of fewer than three pairs is a line of the prompt."""
    lines = text.strip().splitlines()
    pairs = dict(_PAIR.findall(lines[-1])) if lines else {}
    if len(pairs) < _MIN_PAIRS:
        pairs = {}
    else:
        lines.pop()
    prompt, negative = list[str](), list[str]()
    part = prompt
    for line in lines:
        if line.strip().startswith("Negative prompt:"):
            part, line = negative, line.strip().removeprefix("Negative prompt:")
        part.append(line.strip())
    parameters = {key.strip(): _unquoted(value.strip()) for key, value in pairs.items()}
    return Infotext("\n".join(prompt), "\n".join(negative), parameters)


def request_from_infotext(text: str) -> Request:
    """The request an infotext tells of, for whatever base will draw it: the name of a base does not say where it lies.

    Adapters too are known by name and hash alone, so their path is `NAME.safetensors`. Raises PromptError when there
    are no parameters, or a value that this program cannot draw.
    """
    info = parse_infotext(text)
    if not info.parameters:
        raise PromptError("the text holds no generation parameters (a last line such as `Steps: 20, Sampler: DDIM, …`)")
    parameters = {
        "Sampler": "DDIM", "Schedule type": "", "Steps": "20", "Seed": "0", "Size": "0x0", "CFG scale": "",
        "Lora hashes": "", "Clip skip": "1",
    } | dict(info.parameters)  # fmt: skip
    hashes = dict(pair.split(": ", 1) for pair in parameters["Lora hashes"].split(", ") if ": " in pair)
    try:
        width, height = (int(side) for side in parameters["Size"].split("x"))
        prompt, tags = take_tags(info.prompt, foreign=True)
        loras = tuple(_use(tag, hashes) for tag in tags)
        return Request(
            prompt=prompt.strip(),
            negative_prompt=info.negative_prompt,
            seed=int(parameters["Seed"]),
            steps=int(parameters["Steps"]),
            guidance_scale=float(parameters["CFG scale"]) if parameters["CFG scale"] else None,
            width=width,
            height=height,
            sampler=sampler_of_a1111(parameters["Sampler"], parameters["Schedule type"]).name,
            loras=loras,
            clip_skip=int(parameters["Clip skip"]),
            hires=_hires(parameters),
            variation_seed=int(parameters["Variation seed"]) if "Variation seed" in parameters else None,
            variation_strength=float(parameters.get("Variation seed strength", 0)),
            tiling=parameters.get("Tiling") == "True",
        )
    except ValueError as error:
        raise PromptError(f"the generation parameters hold a value that is no number ({error})") from error


def png_chunks(request: Request, company: Company | None = None) -> PngInfo:
    """The text chunks of a picture: infotext and JSON."""
    info = PngInfo()
    info.add_text(TEXT_CHUNK, write_infotext(request))
    info.add_text(JSON_CHUNK, to_json(request, company))
    return info


def to_json(request: Request, company: Company | None = None, *, ascii_only: bool = False) -> str:
    """The request as JSON; `from_json` gives back an equal one. `company` is the batch it was drawn in."""
    document = {"format": _FORMAT, "version": __version__, "request": request_fields(request)}
    return json.dumps(document | ({"batch": company.fields()} if company else {}), ensure_ascii=ascii_only)


def from_json(text: str) -> Request:
    """The request that `to_json` wrote. Raises PromptError for anything else."""
    try:
        document = json.loads(text)
        fields = dict(document["request"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PromptError(f"the request in the picture is damaged, or of a newer version ({error})") from error
    if document.get("format") == 1 and _meant_plainly(fields):
        fields["prompt_syntax"] = "plain"
    return request_from_fields(fields)


def _meant_plainly(fields: Mapping[str, Any]) -> bool:
    """Whether a request of version 0.1, which had no prompt grammar, would be drawn otherwise with one."""
    texts = [str(fields.get(name, "")) for name in ("prompt", "negative_prompt")]
    return any(_SIGNS.search(text) or len(text) > _LONGEST_SURE_PROMPT for text in texts)


def request_fields(request: Request) -> dict[str, Any]:
    """The request as the object that stands in our JSON, paths below the home folder with `~`."""
    fields = _without(asdict(request), _NEWER)
    fields["loras"] = [_without(use, _NEWER_OF_LORA) for use in fields["loras"]]
    for use in (*fields["loras"], *fields.get("embeddings", ())):
        use["path"] = below_home(Path(use["path"]))
    if start := fields.get("start"):
        for name in ("image", "mask"):
            start[name] = start[name] and below_home(Path(start[name]))
    for name in ("base", "vae"):
        if fields.get(name) and Path(fields[name]).is_absolute():
            fields[name] = below_home(Path(fields[name]))
    return fields


def request_from_fields(fields: Mapping[str, Any]) -> Request:
    """The request of such an object; what it leaves out has its default. Raises PromptError for anything else."""
    try:
        values = dict(fields)
        loras = tuple(LoraUse(**use) for use in values.pop("loras", ()))
        regions = tuple(Region(**region) for region in values.pop("regions", ()))
        embeddings = tuple(Embedding(**one) for one in values.pop("embeddings", ()))
        start, hires = values.pop("start", None), values.pop("hires", None)
        return Request(
            **values,
            loras=loras,
            regions=regions,
            embeddings=embeddings,
            start=Start(**start) if start else None,
            hires=Hires(**hires) if hires else None,
        )
    except (ValueError, TypeError) as error:
        raise PromptError(f"the request is damaged, or of a newer version ({error})") from error


def _tag(use: LoraUse) -> str:
    """`<lora:name:text encoder:unet>` in the web UI's order, or one number for both; our options behind, by name."""
    numbers = [use.strength] if use.text_strength is None else [use.text_strength, use.strength]
    options = [f"{key}={value.replace(':', '=')}" for key, value in written_options(use).items()]
    return f"<lora:{':'.join([_tag_name(use), *map(_plain, numbers), *options])}>"


def _told_passes(request: Request) -> dict[str, object]:
    """What the web UI writes of a start and of a second pass."""
    if request.start is not None:
        told: dict[str, object] = {"Denoising strength": _plain(request.start.strength)}
        if request.start.mask is not None:
            told["Mask blur"] = request.start.blur_px
            told["Inpaint area"] = "Only masked" if request.start.only_masked else None
        return told
    if request.hires is not None:
        return {
            "Denoising strength": _plain(request.hires.strength),
            "Hires upscale": _plain(request.hires.scale),
            "Hires steps": request.hires.steps or None,
            "Hires upscaler": {"latent": "Latent", "lanczos": "Lanczos"}.get(
                request.hires.upscaler, Path(request.hires.upscaler).stem
            ),
        }
    return {}


def _told_region(region: Region) -> str:
    where = "a mask" if region.mask else ",".join(f"{side:g}" for side in region.box)
    return f"{region.name} ({where}): {region.prompt}" if region.prompt else f"{region.name} ({where})"


def _without(fields: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in defaults or value != defaults[key]}


def _tag_name(use: LoraUse) -> str:
    return re.sub(r"[:,<>]", "", use.name)


def _use(tag: AdapterTag, hashes: Mapping[str, str]) -> LoraUse:
    text = None if tag.text == tag.unet else tag.text
    use = LoraUse(tag.name, Path(f"{tag.name}.safetensors"), tag.unet, text, hashes.get(tag.name))
    return with_options(use, {key: value for key, value in tag.options if key != "region"})


def _hires(parameters: Mapping[str, str]) -> Hires | None:
    """The second pass; with an upscaler of another program it is drawn with ours of the same kind."""
    if "Hires upscale" not in parameters:
        return None
    upscaler = "latent" if parameters.get("Hires upscaler", "Latent").startswith("Latent") else "lanczos"
    strength = float(parameters.get("Denoising strength", 0.7))
    return Hires(float(parameters["Hires upscale"]), strength, int(parameters.get("Hires steps", 0)), upscaler)


def _plain(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _last_part(base: str) -> str:
    return base.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def below_home(path: Path) -> str:
    """The path, with `~` for the home folder: a picture passed on does not tell its maker's account name."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _unquoted(value: str) -> str:
    if value[:1] == value[-1:] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
