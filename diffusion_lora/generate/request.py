"""What is asked of the generator: all that determines a picture, as one checked value. No torch.

Not here: drawing (`engine`), and how a request is written into a picture (`infotext`).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.region import Region
from diffusion_lora.generate.samplers import sampler_named
from diffusion_lora.generate.schedules import parse_schedule
from diffusion_lora.generate.start import Hires, Start
from diffusion_lora.prompt.grammar import parse

SIZE_STEP_PX = 8
MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1
MAX_REGIONS = 8
MAX_CLIP_SKIP = 12
Combine = Literal["sum", "composite"]
PromptSyntax = Literal["weighted", "plain"]
OPTIONS = ("steps", "blocks", "region", "negative")
"""What a LoRA's options may say, in `--lora` and in tags."""
_ADAPTER_TAG = re.compile(r"<lora:[^>]*>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


Blocks = tuple[float, ...] | tuple[tuple[str, float], ...]
"""Factors of strength by block: a list of numbers, or (word, factor) pairs."""


@dataclass(frozen=True)
class LoraUse:
    """One adapter file and how strongly it acts: 0 is the base, 1 as trained; negative and larger values are allowed.

    `text_strength` is that of its text encoder part, None the same as `strength`. `sha` is the SHA-256 of the file's
    tensors or its first 12 digits or more; when given, another file under this path is refused.

    `blocks` multiplies the strength block by block: 12, 17, 20 or 26 numbers (`lora.unet_blocks`), or pairs such as
    ("down", 0.5), which leave the others at 1. `steps` is a schedule (`schedules`). `region` names the request's region
    that it acts in, text and all. `negative` is its strength in the negative half of the guidance, None the same.
    """

    name: str
    path: Path
    strength: float = 1.0
    text_strength: float | None = None
    sha: str | None = None
    blocks: Blocks = ()
    steps: str = ""
    region: str = ""
    negative: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser())
        object.__setattr__(self, "blocks", _blocks(self.name, self.blocks))
        factors = [item[1] if isinstance(item, tuple) else item for item in self.blocks]
        for value in (self.strength, self.text_strength, self.negative, *factors):
            if value is not None and not math.isfinite(value):
                raise PromptError(f"the strength of the LoRA {self.name} is {value}; give a finite number such as 0.8")
        parse_schedule(self.steps)

    @property
    def strength_of_text(self) -> float:
        """The strength that the text encoder part has in the end."""
        return self.strength if self.text_strength is None else self.text_strength

    def at(self, strength: float, text_strength: float | None = None) -> Self:
        """The same adapter at another strength."""
        return replace(self, strength=strength, text_strength=text_strength)


@dataclass(frozen=True)
class Embedding:
    """A word with vectors of its own (textual inversion): a file, which acts wherever `name` stands in a prompt.

    `sha` is the SHA-256 of the file's tensors or its first 12 digits or more; when given, another file is refused.
    """

    name: str
    path: Path
    sha: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser())


@dataclass(frozen=True)
class Request:
    """All that determines a picture. Raises PromptError on construction when a value cannot be drawn.

    `width` and `height` in px, 0 for the base's own size. `guidance_scale` is classifier-free guidance (Ho & Salimans
    2022): 1 is none, None the base's own. `base` and `base_hash`, empty for whatever model draws it, say which one did;
    `vae` and `vae_hash` the same of an autoencoder in place of the base's own.

    `combine` says how several LoRAs come together: their changes summed in one pass, or "composite", a pass for each
    with their guidance averaged (LoRA Composite, Zhong et al. 2024, https://arxiv.org/abs/2402.16843, eq. 2).
    `prompt_syntax` "plain" takes prompts as they stand, cut off where the text encoder ends, as early versions did.
    `clip_skip` counts the text encoder's layers from the end, as the web UI does.

    `start` is a picture to begin with, `hires` a second pass at a larger size. The noise of `variation_seed` is mixed
    in by `variation_strength` (0 to 1), on the sphere. With `tiling` the picture's edges meet. `embeddings` are the
    words of the prompts that have files of their own.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance_scale: float | None = None
    width: int = 0
    height: int = 0
    sampler: str = "ddim"
    loras: tuple[LoraUse, ...] = ()
    base: str = ""
    base_hash: str = ""
    regions: tuple[Region, ...] = ()
    combine: Combine = "sum"
    prompt_syntax: PromptSyntax = "weighted"
    clip_skip: int = 1
    start: Start | None = None
    hires: Hires | None = None
    variation_seed: int | None = None
    variation_strength: float = 0.0
    tiling: bool = False
    vae: str = ""
    vae_hash: str = ""
    embeddings: tuple[Embedding, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "loras", tuple(self.loras))
        object.__setattr__(self, "regions", tuple(self.regions))
        object.__setattr__(self, "embeddings", tuple(self.embeddings))
        _check_words("combine", self.combine, get_args(Combine))
        _check_words("prompt_syntax", self.prompt_syntax, get_args(PromptSyntax))
        if not isinstance(self.clip_skip, int) or not 1 <= self.clip_skip <= MAX_CLIP_SKIP:
            raise PromptError(f"the clip skip is {self.clip_skip}; give 1 (the last layer) to {MAX_CLIP_SKIP}")
        if not 0 <= self.variation_strength <= 1:
            raise PromptError(f"the variation strength is {self.variation_strength}; give 0 to 1")
        if self.variation_seed is not None and not 0 <= self.variation_seed <= MAX_SEED:
            raise PromptError(f"the variation seed is {self.variation_seed}; give 0 to {MAX_SEED}")
        if self.start is not None and self.hires is not None:
            raise PromptError("a start and a second pass do not go together; give a larger size instead")
        names = [region.name for region in self.regions]
        if len(names) > MAX_REGIONS or len(set(names)) < len(names):
            raise PromptError(f"the regions are {', '.join(names)}; give up to {MAX_REGIONS}, each a name of its own")
        for use in self.loras:
            if use.region and use.region not in names:
                raise PromptError(
                    f"the LoRA {use.name} acts in the region {use.region!r}, which the request does not have"
                    + (f": it has {', '.join(names)}" if names else "")
                )
        for name in ("base", "vae"):
            if getattr(self, name).startswith("~"):
                object.__setattr__(self, name, str(Path(getattr(self, name)).expanduser()))
        for name in ("seed", "steps", "width", "height"):
            if not isinstance(getattr(self, name), int):  # forms and JSON give 20.0 and "20"
                raise PromptError(f"{name} is {getattr(self, name)!r}; give a whole number")
        sampler_named(self.sampler)
        for name, side in (("width", self.width), ("height", self.height)):
            if side and (side % SIZE_STEP_PX or not MIN_SIZE_PX <= side <= MAX_SIZE_PX):
                raise PromptError(
                    f"the {name} is {side} px; give a multiple of {SIZE_STEP_PX} from {MIN_SIZE_PX} to {MAX_SIZE_PX}"
                    f"{_nearest_size(side)}, or 0 for the base's own size"
                )
        if not 1 <= self.steps <= MAX_STEPS:
            raise PromptError(f"steps is {self.steps}; give 1 to {MAX_STEPS}")
        if not 0 <= self.seed <= MAX_SEED:
            raise PromptError(f"the seed is {self.seed}; give 0 to {MAX_SEED}")
        if self.guidance_scale is not None and not 1 <= self.guidance_scale <= 100:
            raise PromptError(f"the guidance scale is {self.guidance_scale}; give 1 (none) to 100")
        for text in (self.prompt, self.negative_prompt, *(region.prompt for region in self.regions)):
            if self.prompt_syntax == "weighted":
                parse(text)
            if tag := _ADAPTER_TAG.search(text):
                raise PromptError(f"{tag[0]} in a prompt is not read; give the LoRA by itself: --lora FILE:STRENGTH")


def settings_beyond(request: Request, held: Sequence[str] = ()) -> tuple[str, ...]:
    """What a request says beyond prompts, numbers and plain strengths, in words: for faces that hold no more than
    these and the `held`."""
    said = {
        "regions": request.regions,
        "a composite of its LoRAs": request.combine != "sum",
        "plain prompts": request.prompt_syntax != "weighted",
        "a clip skip": request.clip_skip > 1,
        "a picture to start from": request.start,
        "a second pass": request.hires,
        "a variation seed": request.variation_strength,
        "tiling": request.tiling,
        "LoRAs by block, step or half": any(
            use.blocks or use.steps or use.negative is not None for use in request.loras
        ),
    }
    return tuple(name for name, there in said.items() if there and name not in held)


def parse_lora_argument(text: str) -> LoraUse:
    r"""FILE, FILE:STRENGTH or FILE:STRENGTH:TEXT_STRENGTH; a drive letter belongs to FILE (`C:\x.safetensors:0.8`).

    Options follow after semicolons: `FILE:0.8;steps=0-0.5;blocks=down:0.5,mid:1;region=left;negative=0`. Raises
    PromptError when there is no file name, what follows it is no number, or an option is not understood.
    """
    rest, *options = text.split(";")
    numbers = list[float]()
    while len(numbers) < 2 and (parts := rest.rpartition(":"))[1] and _NUMBER.fullmatch(parts[2].strip()):
        rest = parts[0]
        numbers.insert(0, float(parts[2]))
    head, colon, tail = rest.rpartition(":")
    is_drive = len(head) == 1 and head.isalpha() and tail[:1] in ("\\", "/")
    if not rest.strip() or (colon and not is_drive and not any(slash in tail for slash in "\\/")):
        raise PromptError(f"the LoRA {text!r} is not understood; give FILE.safetensors or FILE.safetensors:0.8")
    strength, text_strength = (*numbers, None, None)[:2]
    path = Path(rest)
    name = rest.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
    use = LoraUse(name, path, 1.0 if strength is None else strength, text_strength)
    return with_options(use, dict(_option(text, option) for option in options))


def with_options(use: LoraUse, options: Mapping[str, str]) -> LoraUse:
    """The use with `steps`, `blocks`, `region` and `negative` as they are written in options and tags."""
    values: dict[str, Any] = {}
    for key, value in options.items():
        match key:
            case "steps" | "region":
                values[key] = value
            case "blocks":
                values[key] = parse_blocks(value)
            case "negative":
                values[key] = _factor(f"negative={value}", value)
            case _:
                raise PromptError(f"{key}= is unknown for the LoRA {use.name}; {', '.join(OPTIONS)} are read")
    return replace(use, **values)


def parse_blocks(text: str) -> Blocks:
    """`1,0.5,...` (numbers) or `down:0.5,mid:1` (words). Raises PromptError."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if all(":" in item for item in items):
        pairs = (item.rpartition(":") for item in items)
        return tuple((word.strip(), _factor(f"blocks={text}", factor)) for word, _, factor in pairs)
    return tuple(_factor(f"blocks={text}", item) for item in items)


def written_options(use: LoraUse) -> dict[str, str]:
    """The options of a use as `with_options` reads them, without those that say nothing."""
    written = {"steps": use.steps, "region": use.region}
    written["blocks"] = ",".join(
        f"{item[0]}:{item[1]:g}" if isinstance(item, tuple) else f"{item:g}" for item in use.blocks
    )
    written["negative"] = "" if use.negative is None else repr(float(use.negative))
    return {key: written[key] for key in OPTIONS if written[key]}


def _option(text: str, option: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in option.partition("="))
    if not equals or not value:
        raise PromptError(f"the LoRA {text!r}: {option!r} is not understood; options read KEY=VALUE")
    return key, value


def _factor(where: str, text: str) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise PromptError(f"{where}: {text.strip()!r} is no number, as 0.5 is")
    return float(text)


def _blocks(name: str, blocks: Sequence[Any]) -> Blocks:
    """Blocks from JSON too, where pairs are lists. Raises PromptError."""
    try:
        if all(isinstance(item, list | tuple) for item in blocks):
            return tuple((str(word), float(factor)) for word, factor in blocks)
        return tuple(float(factor) for factor in blocks)
    except (TypeError, ValueError):
        raise PromptError(f"the blocks of the LoRA {name} are {blocks!r}; give numbers, or down:0.5,mid:1") from None


def _check_words(name: str, value: object, words: Sequence[str]) -> None:
    if value not in words:
        raise PromptError(f"{name} is {value!r}; say {' or '.join(words)}")


def _nearest_size(side: int) -> str:
    low = side // SIZE_STEP_PX * SIZE_STEP_PX
    near = [size for size in (low, low + SIZE_STEP_PX) if MIN_SIZE_PX <= size <= MAX_SIZE_PX]
    return f" ({' or '.join(map(str, near))} is near)" if near and side != low else ""
