"""The rows of a UNet's batch: which prompt and which adapters, for each half of each picture, from step to step.

A picture has a row for its prompt and, with guidance, one for its negative prompt before it; LoRA Composite gives it
such a pair for every adapter (`Request.combine`). What the rows are at a step is a `Moment`; steps that share their
moment share the very object, so that the loop turns gates and conditioning only when something changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lora.families.family import Model
from diffusion_lora.families.model import Conditioning
from diffusion_lora.families.sharing import PADDING, Sharing
from diffusion_lora.families.wording import TOKEN_AXIS, Frame, frames, joined
from diffusion_lora.generate.company import Company
from diffusion_lora.generate.masks import shares
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.shelf import Mix, Shelf
from diffusion_lora.lora.area import Area
from diffusion_lora.prompt.grammar import parse
from diffusion_lora.prompt.schedule import PLAIN, Stage, Wording, plain_wording, wordings

_Timing = tuple[int, int | None]
"""Steps of this pass, and of the one before it, if there was one."""

Encode = Callable[[Sequence[tuple[Frame, Mix, int]]], Conditioning]
"""Frames, each under its own text encoder mix and clip skip, to their states, one row each."""


class _Part(NamedTuple):
    """A prompt of a row with the text encoder's mix; its wordings over the steps."""

    stages: tuple[Stage, ...]
    mix: Mix

    def at(self, step: int) -> Wording:
        return next((stage.wording for stage in self.stages if step <= stage.until), self.stages[-1].wording)


@dataclass(frozen=True)
class Row:
    """One row: the place of its picture in the batch, which half of the guidance it is, and what acts in it."""

    picture: int
    is_negative: bool
    request: Request
    uses: tuple[LoraUse, ...]
    parts: tuple[_Part, ...]


@dataclass(frozen=True, eq=False)
class Moment:
    """What the UNet is given at a step, row by row, and its mixes."""

    conditioning: Conditioning
    mixes: tuple[Mix, ...]


class Rows:
    """The rows of a batch of resolved requests, negative halves first."""

    def __init__(
        self,
        model: Model,
        shelf: Shelf,
        requests: Sequence[Request],
        steps: int,
        encode: Encode,
        *,
        guided: bool,
        like: Company | None = None,
        first_pass_steps: int | None = None,
    ) -> None:
        self._model, self._shelf, self._steps = model, shelf, steps
        timing = steps, first_pass_steps
        guided = guided or (like is not None and like.guided)
        halves = (True, False) if guided else (False,)
        self.rows = [
            Row(place, is_negative, request, uses, _parts(shelf, request, uses, timing, is_negative=is_negative))
            for is_negative in halves
            for place, request in enumerate(requests)
            for uses in _passes(request)
        ]
        self._guided = guided
        self._pictures = len(requests)
        latent = model.latent_shape(requests[0].height, requests[0].width)[1:]
        self._places = [shares(request.regions, *latent).to(model.device) for request in requests]
        self._states = _encoded(model, self.rows, steps, encode)
        self._frames = _frames_a_part(self._states, self.rows, steps)
        self._fillers = 0 if like is None else max(0, like.rows - len(self.rows))
        self._sharing, self._areas = self._shared(like)
        self._moments: dict[tuple[object, ...], Moment] = {}

    @property
    def sharing(self) -> Sharing | None:
        """How the places of the pictures share the words; None where every place sees every word of its row."""
        return self._sharing

    @property
    def pictures(self) -> list[int]:
        """Of every row, fillers behind them, the place of its picture."""
        return [row.picture for row in self.rows] + [self.rows[-1].picture] * self._fillers

    @property
    def company(self) -> Company:
        """What a row of this batch has around it; how many are decoded at once is not known here."""
        sharing = self._sharing
        words, parts = (0, 0) if sharing is None else (sharing.parts.shape[1], sharing.shares.shape[1])
        return Company(len(self.rows) + self._fillers, self._guided, words, parts, 0)

    def only_mix(self) -> dict[str, float] | None:
        """The one mix of plain strengths that every row has at every step; None where they differ, or nothing acts."""
        first = self.at(1).mixes[0]
        plain = {name: strength for name, strength in first.items() if isinstance(strength, int | float)}
        if not plain or len(plain) < len(first):
            return None
        alike = all(mix == first for step in range(1, self._steps + 1) for mix in self.at(step).mixes)
        return plain if alike else None

    @property
    def last(self) -> list[int]:
        """Of every picture one row of its positive half."""
        return [
            next(index for index, row in enumerate(self.rows) if row.picture == picture and not row.is_negative)
            for picture in range(self._pictures)
        ]

    def guided(self, answers: Tensor, scales: Tensor) -> Tensor:
        """One prediction a picture from those of its rows: the halves guided by `scales`, passes averaged."""
        answers = answers[: len(self.rows)]
        halves = [self._averaged(half) for half in answers.chunk(2)] if self._guided else [self._averaged(answers)]
        if len(halves) == 1:
            return halves[0]
        negative, positive = halves
        return negative + scales * (positive - negative)

    def _averaged(self, half: Tensor) -> Tensor:
        if len(half) == self._pictures:
            return half
        pictures = [row.picture for row in self.rows[len(self.rows) - len(half) :]]
        own = [[row for row, owner in enumerate(pictures) if owner == picture] for picture in range(self._pictures)]
        return torch.stack([half[rows].mean(dim=0) for rows in own])

    def at(self, step: int) -> Moment:
        """What holds at a step, 1 being the first."""
        said = [[part.at(step) for part in row.parts] for row in self.rows]
        mixes = tuple(
            self._shelf.unet_mix(row.uses, step, self._steps, self._areas[row.picture], negative=row.is_negative)
            for row in self.rows
        )
        key = (tuple(map(tuple, said)), tuple(tuple(mix.items()) for mix in mixes))
        if key not in self._moments:
            fillers = mixes[-1:] * self._fillers
            # The one before will not come again soon.
            self._moments = {key: Moment(self._conditioning(said), mixes + fillers)}
        return self._moments[key]

    def _conditioning(self, said: Sequence[Sequence[Wording]]) -> Conditioning:
        """Of every row the words of its parts one after the other, padded to the longest row."""
        rows = []
        for row, wordings_of_row in zip(self.rows, said, strict=True):
            parts = [
                self._states[_key(part, wording, row)].padded(self._frames[row.picture])
                for part, wording in zip(row.parts, wordings_of_row, strict=True)
            ]
            rows.append(parts[0] if len(parts) == 1 else _one_after_the_other(parts))
        rows += rows[-1:] * self._fillers
        return Conditioning.cat(list(_equally_long(rows, 0 if self._sharing is None else self._sharing.parts.shape[1])))

    def _shared(self, like: Company | None) -> tuple[Sharing | None, list[dict[str, Area]]]:
        size = self._model.max_tokens + 2
        lengths = [len(places) * count * size for places, count in zip(self._places, self._frames, strict=True)]
        longest, most = max(lengths), max(map(len, self._places))
        if like is not None:
            longest, most = max(longest, like.words), max(most, like.parts)
        areas: list[dict[str, Area]] = [{} for _ in self._places]
        if {*lengths, longest} == {longest} and most == 1 and not (like is not None and like.parts):
            return None, areas
        parts = torch.full((len(self.rows), longest), PADDING, device=self._model.device)
        places = torch.zeros((len(self.rows), most, *self._places[0].shape[1:]), device=self._model.device)
        for index, row in enumerate(self.rows):
            words = self._frames[row.picture] * size
            for part in range(len(self._places[row.picture])):
                parts[index, part * words : (part + 1) * words] = part
            places[index, : len(self._places[row.picture])] = self._places[row.picture]
        for index, row in enumerate(self.rows):
            for part, region in enumerate(row.request.regions, start=1):
                own_words = (parts[index] == part).float()
                areas[row.picture].setdefault(region.name, Area(self._places[row.picture][part], own_words))
        every = [*range(len(self.rows)), *[len(self.rows) - 1] * self._fillers]
        return Sharing(parts[every], places[every]), areas


class _States(NamedTuple):
    """A wording encoded: its frames and the states of each; the empty prompt's to fill up with."""

    frames: list[Frame]
    states: list[Conditioning]
    empty: Conditioning
    empty_frame: Frame

    def padded(self, count: int) -> Conditioning:
        """The conditioning of the wording, with empty frames behind it up to `count`, as the web UI fills up."""
        missing = count - len(self.frames)
        whole = joined(self.frames, self.states)
        return _one_after_the_other([whole, *[self.empty] * missing]) if missing else whole


def _passes(request: Request) -> list[tuple[LoraUse, ...]]:
    """The adapters of each pass: all in one, or with LoRA Composite one after the other."""
    if request.combine == "composite" and len(request.loras) > 1:
        return [(use,) for use in request.loras]
    return [request.loras]


def _parts(
    shelf: Shelf, request: Request, uses: tuple[LoraUse, ...], timing: _Timing, *, is_negative: bool
) -> tuple[_Part, ...]:
    """The request's own prompt, and that of every region under the adapters that act there."""
    own = request.negative_prompt if is_negative else request.prompt
    parts = []
    for region in (None, *request.regions):
        text = own if is_negative or region is None or not region.prompt else region.prompt
        here = [use for use in uses if use.region in ("", region.name if region else "")]
        said = shelf.spelled(here, text, negative=is_negative, embeddings=request.embeddings)
        parts.append(_Part(_stages(request, said, *timing), shelf.text_mix(here, negative=is_negative)))
    return tuple(parts)


def _stages(request: Request, text: str, steps: int, first_pass_steps: int | None) -> tuple[Stage, ...]:
    if request.prompt_syntax == "plain":
        return (Stage(steps, plain_wording(text)),)
    return wordings(parse(text), steps, first_pass_steps=first_pass_steps)


def _key(part: _Part, wording: Wording, row: Row) -> tuple[object, ...]:
    return wording, frozenset(part.mix.items()), row.request.clip_skip, row.request.prompt_syntax


def _encoded(model: Model, rows: Sequence[Row], steps: int, encode: Encode) -> dict[tuple[object, ...], _States]:
    """Every distinct (wording, text mix, clip skip), each distinct frame encoded once."""
    wanted = {
        _key(part, stage.wording, row): (part, stage.wording, row)
        for row in rows
        for part in row.parts
        for stage in part.stages
    }
    read = {key: _frames(model, wording, row.request) for key, (_, wording, row) in wanted.items()}
    filling = any(len(found) > 1 for found in read.values())
    (empty,) = frames(model, PLAIN)
    distinct: dict[tuple[object, ...], tuple[Frame, Mix, int]] = {}
    for key, (part, _, row) in wanted.items():
        for frame in (*read[key], *([empty] if filling else [])):
            distinct.setdefault(_frame_key(frame, part, row), (frame, part.mix, row.request.clip_skip))
    states = encode(list(distinct.values()))
    place = {key: states[index] for index, key in enumerate(distinct)}
    return {
        key: _States(
            read[key],
            [place[_frame_key(frame, part, row)] for frame in read[key]],
            place.get(_frame_key(empty, part, row), states[0]),
            empty,
        )
        for key, (part, _, row) in wanted.items()
    }


def _frame_key(frame: Frame, part: _Part, row: Row) -> tuple[object, ...]:
    return tuple(frame.ids.values()), frozenset(part.mix.items()), row.request.clip_skip


def _frames(model: Model, wording: Wording, request: Request) -> list[Frame]:
    return frames(model, wording, longest=1 if request.prompt_syntax == "plain" else None)


def _frames_a_part(states: dict[tuple[object, ...], _States], rows: Sequence[Row], steps: int) -> list[int]:
    """Of every picture how many frames each of its prompts takes: as many as the longest, so that halves agree."""
    counts = [1] * (1 + max(row.picture for row in rows))
    for row in rows:
        for part in row.parts:
            for stage in part.stages:
                counts[row.picture] = max(counts[row.picture], len(states[_key(part, stage.wording, row)].frames))
    return counts


def _one_after_the_other(parts: Sequence[Conditioning]) -> Conditioning:
    """Words of one row joined; what belongs to the whole prompt is the first part's."""
    tensors = {
        name: torch.cat([part.tensors[name] for part in parts], dim=1) if name.endswith(TOKEN_AXIS) else tensor
        for name, tensor in parts[0].tensors.items()
    }
    return Conditioning(tensors)


def _equally_long(rows: Sequence[Conditioning], least: int) -> Iterator[Conditioning]:
    longest = {
        name: max(least, *(row.tensors[name].shape[1] for row in rows))
        for name in rows[0].tensors
        if name.endswith(TOKEN_AXIS)
    }
    for row in rows:
        yield replace(
            row,
            tensors={
                name: _padded(tensor, longest[name]) if name in longest else tensor
                for name, tensor in row.tensors.items()
            },
        )


def _padded(states: Tensor, length: int) -> Tensor:
    missing = length - states.shape[1]
    if not missing:
        return states
    return torch.cat([states, states.new_zeros(len(states), missing, *states.shape[2:])], dim=1)
