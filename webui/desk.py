"""The desk as values: channels and form in, requests out, and back again. No Gradio, no torch.

The desk's state lives in the browser as a JSON list, one object a channel, and comes with every order; nothing in it
is believed before it has been looked at: a channel names a LoRA as the workspace lists it, never by a path. What the
strips look like is `strips`' business, and drawing is the engine's.
"""

from __future__ import annotations

import math
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_lora.adopted import model_named
from diffusion_lora.errors import AdapterFileError, PromptError
from diffusion_lora.generate.region import Region
from diffusion_lora.generate.request import LoraUse, Request, parse_blocks, settings_beyond, written_options
from diffusion_lora.generate.tags import read_typed_prompt
from diffusion_lora.lora.card import Card
from diffusion_lora.lora.header import tensor_hash
from diffusion_lora.workspace import Workspace
from webui.areas import EVERYWHERE, Area, area_in, area_of, argument, is_held, regions_of
from webui.knobs import checked, course

MAX_STRENGTH = 10.0
MAX_PICTURES = 64
SWEEP = (0.0, 1.2, 7)
"""From, to and how many: what a click on Sweep draws."""

_SUFFIX = ".safetensors"
_HELD = frozenset(("LoRAs by block, step or half", "a picture to start from", "a second pass"))
"""What `settings_beyond` tells of and the page holds: on the strips, or as what the picture begins with (`sources`)."""


@dataclass(frozen=True)
class Channel:
    """One LoRA on the desk; `name` is the one that the workspace lists it under (`adopted`).

    `text_strength` is that of its text encoder part, None the same as `strength`; `negative` its strength in the
    negative half of the guidance, likewise. `blocks` and `steps` are texts of the library's grammar (`knobs`).
    `master` is what every strength is multiplied by, the same for the whole desk; `area` where on the picture it acts.
    """

    name: str
    strength: float = 1.0
    text_strength: float | None = None
    muted: bool = False
    solo: bool = False
    blocks: str = ""
    steps: str = ""
    negative: float | None = None
    master: float = 1.0
    area: Area = EVERYWHERE


@dataclass(frozen=True)
class Form:
    """What the form says: 0 and empty fields leave the choice to the base, an empty seed to chance."""

    prompt: str = ""
    negative_prompt: str = ""
    width: float | None = None
    height: float | None = None
    pictures: float | None = 1
    steps: float | None = 20
    guidance: float | None = None
    sampler: str = "ddim"
    seed: str = ""


@dataclass(frozen=True)
class Sweep:
    """One channel at `count` strengths, evenly from `start` to `stop`, all else as it is."""

    name: str
    start: float = SWEEP[0]
    stop: float = SWEEP[1]
    count: int = SWEEP[2]

    def values(self) -> tuple[float, ...]:
        """The strengths, rounded to what a fader can show."""
        if self.count == 1:
            return (self.start,)
        step = (self.stop - self.start) / (self.count - 1)
        return tuple(round(self.start + index * step, 3) for index in range(self.count))


@dataclass(frozen=True)
class Restored:
    """The settings of a picture, put back; `told` are sentences about what could not be."""

    form: Form
    channels: tuple[Channel, ...]
    told: tuple[str, ...] = ()


def channels_of(state: Any) -> tuple[Channel, ...]:
    """The channels of the browser's state. Raises PromptError when it is none."""
    if not state:
        return ()
    try:
        # A channel that another tab has put beside the others does not know of the fader of all of them.
        master = next((_strength(entry["master"]) for entry in state if entry.get("master") is not None), 1.0)
        return tuple(_channel(entry, master) for entry in state)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise PromptError("the desk cannot be read: reload the page") from error


def _channel(entry: Mapping[str, Any], master: float) -> Channel:
    name = str(entry["name"])
    steps, blocks = checked(name, entry.get("steps"), entry.get("blocks"))
    return Channel(
        name=name,
        strength=_strength(entry.get("strength", 1.0)),
        text_strength=None if entry.get("text") is None else _strength(entry["text"]),
        muted=bool(entry.get("muted")),
        solo=bool(entry.get("solo")),
        blocks=blocks,
        steps=steps,
        negative=None if entry.get("negative") is None else _strength(entry["negative"]),
        master=master,
        area=area_of(entry),
    )


def sounding(channels: Iterable[Channel]) -> tuple[Channel, ...]:
    """The channels that are heard: not muted and, where some are soloed, one of those; a fader at 0 is not heard."""
    every = tuple(channels)
    soloed = any(channel.solo for channel in every)
    return tuple(
        channel
        for channel in every
        if not channel.muted
        and (channel.solo or not soloed)
        and (channel.strength or channel.text_strength or channel.negative)
    )


def requests_of(form: Form, channels: Iterable[Channel], workspace: Workspace) -> list[Request]:
    """One request a picture, picture i with seed + i. Raises PromptError and AdapterFileError, in words."""
    count = _whole(form.pictures, "the number of pictures", 1)
    if not 1 <= count <= MAX_PICTURES:
        raise PromptError(f"{count} pictures are asked for; give 1 to {MAX_PICTURES}")
    first = request_of(form, sounding(channels), workspace)
    return [replace(first, seed=first.seed + index) for index in range(count)]


def sweep_requests(form: Form, channels: Iterable[Channel], sweep: Sweep, workspace: Workspace) -> list[Request]:
    """One request a strength of the swept channel, all of one seed; the one that is asked about is
    heard, muted or not, and beside those that are soloed.

    Raises PromptError and AdapterFileError, in words.
    """
    every = tuple(channels)
    if sweep.name not in {channel.name for channel in every}:
        raise PromptError(f"{sweep.name} is not on the desk: add it, then sweep it")
    if not 2 <= sweep.count <= MAX_PICTURES:
        raise PromptError(f"a sweep of {sweep.count} is asked for; give 2 to {MAX_PICTURES} pictures")
    seeded = replace(form, seed=str(_seed(form.seed)))
    soloed = any(channel.solo for channel in every)
    drawn = []
    for value in sweep.values():
        turned = (
            replace(channel, strength=value, muted=False, solo=soloed) if channel.name == sweep.name else channel
            for channel in every
        )
        drawn.append(request_of(seeded, sounding(turned), workspace))
    return drawn


def sweep_of(data: Mapping[str, Any]) -> Sweep:
    """The sweep that the browser asks for. Raises PromptError for fields that are no numbers."""
    try:
        return Sweep(str(data["name"]), _strength(data["from"]), _strength(data["to"]), int(float(data["count"])))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PromptError("a sweep needs numbers: from 0 to 1.2 in 7, for example") from error


def command(
    request: Request,
    *,
    count: int = 1,
    base: str = "pocket",
    device: str = "auto",
    seeded: bool = True,
    file_of: Callable[[str], Path] | None = None,
) -> str:
    """The command line that draws the request (`count` of them, with seeds that count on) pixel for pixel.

    `seeded` False leaves the seed to chance, as an empty field does. `file_of` keeps a painted area as a file.
    """
    options: list[str] = []
    for use in request.loras:
        text = "" if use.text_strength is None else f":{_plain(use.text_strength)}"
        more = "".join(f";{key}={value}" for key, value in written_options(use).items())
        options += ["--lora", f"{use.path}:{_plain(use.strength)}{text}{more}"]
    for region in request.regions:
        options += ["--region", argument(region, str(file_of(region.mask)) if file_of and region.mask else "")]
    options += _begun(request)
    if seeded:
        options += ["--seed", str(request.seed)]
    options += ["--steps", str(request.steps)]
    if count > 1:
        options += ["--count", str(count)]
    if request.negative_prompt:
        options += ["--negative", request.negative_prompt]
    if request.guidance_scale is not None:
        options += ["--guidance", _plain(request.guidance_scale)]
    if request.width and request.height:
        options += ["--size", f"{request.width}x{request.height}"]
    if request.sampler != "ddim":
        options += ["--sampler", request.sampler]
    if (base := request.base or base) != "pocket":
        options += ["--base", base]
    if device != "auto":
        options += ["--device", device]
    head = ("diffusion-lora", "generate")
    if request.prompt.startswith("-"):
        return shlex.join([*head, *options, "--", request.prompt])
    return shlex.join([*head, request.prompt, *options])


def _begun(request: Request) -> list[str]:
    """What the picture begins with, as options."""
    if hires := request.hires:
        passes = ["--hires", _plain(hires.scale), "--strength", _plain(hires.strength), "--upscaler", hires.upscaler]
        return passes + (["--hires-steps", str(hires.steps)] if hires.steps else [])
    start = request.start
    if start is None:
        return []
    options = ["--image", str(start.image), "--strength", _plain(start.strength)]
    if start.mask is not None:
        options += ["--mask", str(start.mask), "--mask-blur", str(start.blur_px)]
    return options + (["--only-masked"] if start.only_masked else [])


def restore(request: Request, cards: Sequence[Card], *, base: str = "") -> Restored:
    """A picture's request as form and channels; `cards` are the LoRAs there are and `base` the one that draws now.

    A LoRA is looked for where it was, then by its file name, then by the hash of its tensors; one that is gone, or has
    another content than it had, is told by name.
    """
    channels: list[Channel] = []
    told: list[str] = []
    regions = {region.name: region for region in request.regions}
    for use in request.loras:
        card = _find(use, cards)
        if card is None:
            told.append(
                f"The LoRA {use.name} is not in the loras folder: put {use.name}{_SUFFIX} there and drop the picture "
                "again. It is left out."
            )
            continue
        if use.sha and not _is_same(card, use.sha):
            told.append(f"{card.name} has changed since this picture was drawn: the same settings draw another one.")
        if card.name in {channel.name for channel in channels}:
            told.append(f"{card.name} stood in this picture twice: the desk has it once, at its last strength.")
            channels = [channel for channel in channels if channel.name != card.name]
        channels.append(_channel_of(use, card.name, regions))
    if request.base and base and request.base != base:
        told.append(f"This picture was drawn by {request.base}, and {base} is loaded: it will look different.")
    used = {use.region for use in request.loras}
    held = _HELD | ({"regions"} if all(one.name in used and is_held(one) for one in request.regions) else set())
    if beyond := settings_beyond(request, held=tuple(held)):
        told.append(
            f"This picture also had {', '.join(beyond)}, which the desk does not hold: `diffusion-lora redraw` draws "
            "it as it was."
        )
    form = Form(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width or None,
        height=request.height or None,
        pictures=1,
        steps=request.steps,
        guidance=request.guidance_scale,
        sampler=request.sampler,
        seed=str(request.seed),
    )
    return Restored(form, tuple(channels), tuple(told))


def strip(channel: Channel, card: Card | None, thumb: str | None = None) -> dict[str, Any]:
    """A channel as the browser holds it, with what its file says of itself."""
    return {
        "name": channel.name,
        "strength": channel.strength,
        "text": channel.text_strength,
        "muted": channel.muted,
        "solo": channel.solo,
        "blocks": channel.blocks,
        "steps": channel.steps,
        "negative": channel.negative,
        "course": course(channel.steps),
        "master": channel.master,
        "area": channel.area.place,
        "mask": channel.area.mask,
        "words": channel.area.words,
        **facts(card, thumb),
    }


def facts(card: Card | None, thumb: str | None = None) -> dict[str, Any]:
    """What a strip tells of its file: kind and rank in words, the trigger word, a small picture."""
    if card is None:
        return {"kind": "", "trigger": "", "thumb": thumb}
    kind = ", ".join(part for part in (card.kind, f"rank {card.rank}" if card.rank else "") if part)
    return {"kind": kind, "trigger": card.trigger_word, "thumb": thumb}


def request_of(form: Form, channels: Iterable[Channel], workspace: Workspace) -> Request:
    """One picture of these channels, all of them heard. Raises PromptError and AdapterFileError, in words."""
    seed = _seed(form.seed)
    words, tagged = read_typed_prompt(form.prompt.strip(), seed, find=lambda name: lora_file(name, workspace))
    heard = tuple(channels)
    regions, names = regions_of(channel.area for channel in heard)
    return Request(
        prompt=words,
        negative_prompt=form.negative_prompt.strip(),
        seed=seed,
        steps=_whole(form.steps, "steps", 20),
        guidance_scale=float(form.guidance) if form.guidance else None,
        width=_whole(form.width, "the width", 0),
        height=_whole(form.height, "the height", 0),
        sampler=form.sampler,
        loras=tuple(_use_of(channel, names.get(channel.area, ""), workspace) for channel in heard) + tagged,
        regions=regions,
    )


def _use_of(channel: Channel, region: str, workspace: Workspace) -> LoraUse:
    return LoraUse(
        channel.name,
        lora_file(channel.name, workspace),
        _times(channel.strength, channel.master) or 0.0,
        _times(channel.text_strength, channel.master),
        blocks=parse_blocks(channel.blocks),
        steps=channel.steps,
        region=region,
        negative=_times(channel.negative, channel.master),
    )


def _times(strength: float | None, master: float) -> float | None:
    """A fader's value under the fader of all, to what can be typed again."""
    return strength if strength is None or master == 1.0 else round(strength * master, 4)


def _channel_of(use: LoraUse, name: str, regions: Mapping[str, Region]) -> Channel:
    """The channel of a use, under the name that the workspace lists its file by."""
    blocks = written_options(use).get("blocks", "")
    area = area_in(regions[use.region]) if use.region else EVERYWHERE
    return Channel(
        name, use.strength, use.text_strength, blocks=blocks, steps=use.steps, negative=use.negative, area=area
    )


def lora_file(name: str, workspace: Workspace) -> Path:
    """The file of a LoRA by its name in the workspace. Raises AdapterFileError when it is not there."""
    model = model_named(workspace, "loras", name)
    if model is None:
        raise AdapterFileError(
            f"the LoRA {name} is no longer in {workspace.loras}: put its file back, or take its channel off the desk"
        )
    return model.path


def _find(use: LoraUse, cards: Sequence[Card]) -> Card | None:
    usable = [card for card in cards if not card.problem]
    there = [card for card in usable if card.path == use.path]
    named = [card for card in usable if card.path.name == use.path.name]
    if found := there or named:
        return next((card for card in found if use.sha and _is_same(card, use.sha)), found[0])
    return next((card for card in usable if use.sha and _is_same(card, use.sha)), None)


def _is_same(card: Card, sha: str) -> bool:
    return tensor_hash(card.path).startswith(sha.lower())


def _strength(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or abs(number) > MAX_STRENGTH:
        raise ValueError(f"{value} is no strength")
    return number


def _seed(text: str) -> int:
    """The seed that a field says; none, or -1, is any."""
    text = text.strip()
    if text in ("", "-1"):
        return secrets.randbelow(2**32)
    if not text.isdecimal():
        raise PromptError(f"the seed {text!r} is no whole number; give 0 or more, or leave it empty for any")
    return int(text)


def _whole(value: float | None, name: str, default: int) -> int:
    if value is None:
        return default
    if value != int(value):
        raise PromptError(f"{name} is {value:g}; give a whole number")
    return int(value)


def _plain(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
