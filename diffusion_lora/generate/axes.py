r"""Axes of a grid as people write them: `KEY=VALUE,VALUE,...`, or `KEY:NAME=...` where a LoRA of the stack is meant.

    strength:style=0,0.5,1          its strength            text:style=0,1       that of its text part
    block:style=IN04,MID,OUT05      it alone in that block  lora=a.safetensors,b.safetensors:0.8,none
    checkpoint:style=100,200,end    it as it was after so many steps of its run (`checkpoint.adapters = true`)
    seed=1,2,3   steps=10,20   guidance=3,7   sampler=ddim,euler   clip_skip=1,2   size=64x64,96x64
    replace=cat,dog,fish            the first is searched for in the prompt and replaced by each, itself among them

Commas inside a value are written as `\,`. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.axis import Axis, Change, lora_axis
from diffusion_lora.generate.request import LoraUse, Request, parse_lora_argument

BASELINE = "no LoRA"


def parse_axis(text: str, find: Callable[[LoraUse], LoraUse] = lambda use: use) -> Axis:
    """The axis that the text means; `find` looks a named LoRA up. Raises PromptError."""
    head, equals, tail = text.partition("=")
    key, _, name = (part.strip() for part in head.partition(":"))
    values = [value.replace("\\,", ",").strip() for value in re.split(r"(?<!\\),", tail)] if tail else []
    if not equals or not values:
        raise PromptError(f"the axis {text!r} is not understood; give KEY=VALUE,VALUE, as in {', '.join(_KEYS)}")
    if key in _OF_LORA:
        if not name:
            raise PromptError(f"the axis {text!r} does not say of which LoRA; write {key}:NAME={tail}")
        make = _OF_LORA[key]
        return Axis(f"{key} of {name}", tuple(values), tuple(_on_lora(name, make(text, value)) for value in values))
    match key:
        case "lora":
            stacks = [() if value == "none" else (find(parse_lora_argument(value)),) for value in values]
            return lora_axis(stacks)
        case "replace":
            return Axis("words", tuple(values), tuple(_replaced(values[0], value) for value in values))
        case "size":
            return Axis("size", tuple(values), tuple(_sized(text, value) for value in values))
        case _ if key in _FIELDS:
            field, kind = _FIELDS[key]
            return Axis(key, tuple(values), tuple(_with(field, _number(text, value, kind)) for value in values))
    raise PromptError(f"the axis {key!r} is unknown; say one of {', '.join(_KEYS)}")


def with_baseline(axis: Axis) -> Axis:
    """The axis with a place before all others in which no LoRA acts."""
    return Axis(axis.title, (BASELINE, *axis.labels), (_without_loras, *axis.changes))


_FIELDS: dict[str, tuple[str, type]] = {
    "seed": ("seed", int), "steps": ("steps", int), "guidance": ("guidance_scale", float), "sampler": ("sampler", str),
    "clip_skip": ("clip_skip", int), "prompt": ("prompt", str),
}  # fmt: skip


def _strength(text: str, value: str) -> Callable[[LoraUse], LoraUse]:
    number = _number(text, value, float)
    return lambda use: replace(use, strength=number)


def _text_strength(text: str, value: str) -> Callable[[LoraUse], LoraUse]:
    number = _number(text, value, float)
    return lambda use: replace(use, text_strength=number)


def _block(text: str, value: str) -> Callable[[LoraUse], LoraUse]:
    others = tuple((part, 0.0) for part in ("down", "mid", "up", "BASE"))
    return lambda use: replace(use, blocks=use.blocks if value == "all" else (*others, (value, 1.0)))


def _checkpoint(text: str, value: str) -> Callable[[LoraUse], LoraUse]:
    step = None if value == "end" else _number(text, value, int)

    def changed(use: LoraUse) -> LoraUse:
        if step is None:
            return use
        # In its run's folder the adapter is RUN/adapter.safetensors; published in a workspace, loras/RUN.safetensors.
        folders = [(use.path.parent, use.path.stem), (use.path.parent.parent / "runs" / use.path.stem, "adapter")]
        kept = {path: int(path.stem.rpartition("-")[2]) for folder, stem in folders
                for path in sorted((folder / "checkpoints").glob(f"{stem}-step-*.safetensors"))}  # fmt: skip
        found = [path for path, saved in kept.items() if saved == step]
        if not found:
            there = ", ".join(map(str, sorted(set(kept.values())))) or "none: checkpoint.adapters = true keeps them"
            raise PromptError(f"of {use.name} there is no adapter of step {step}; those of these steps are: {there}")
        return replace(use, path=found[0], sha=None)

    return changed


_OF_LORA = {"strength": _strength, "text": _text_strength, "block": _block, "checkpoint": _checkpoint}
_KEYS = (*(f"{key}:NAME" for key in _OF_LORA), "lora", "replace", "size", *_FIELDS)


def _on_lora(name: str, change: Callable[[LoraUse], LoraUse]) -> Change:
    def changed(request: Request) -> Request:
        if name not in (names := [use.name for use in request.loras]):
            raise PromptError(f"there is no LoRA {name} in the stack: {', '.join(names) or 'it is empty'}")
        return replace(request, loras=tuple(change(use) if use.name == name else use for use in request.loras))

    return changed


def _with(field: str, value: Any) -> Change:
    return lambda request: replace(request, **{field: value})


def _replaced(old: str, new: str) -> Change:
    def changed(request: Request) -> Request:
        if old not in request.prompt and old not in request.negative_prompt:
            raise PromptError(f"the words {old!r}, which are to be replaced, are not in the prompt {request.prompt!r}")
        return replace(
            request,
            prompt=request.prompt.replace(old, new),
            negative_prompt=request.negative_prompt.replace(old, new),
        )

    return changed


def _sized(text: str, value: str) -> Change:
    width, times, height = value.partition("x")
    if not times:
        raise PromptError(f"the axis {text!r}: {value!r} is no size, as 512x768 is")
    sides = _number(text, width, int), _number(text, height, int)
    return lambda request: replace(request, width=sides[0], height=sides[1])


def _without_loras(request: Request) -> Request:
    return replace(request, loras=())


def _number(text: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise PromptError(f"the axis {text!r}: {value!r} is no number") from None
