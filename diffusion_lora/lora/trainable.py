"""An adapter under training: its matrices and gradients as views of one flat buffer per parameter group.

8-bit optimizers keep fp32 state for small tensors and one scale for every 256 elements; a flat, aligned buffer gives
every layer 8-bit state, however small, and costs the optimizer one call a group. Which layers is `inject`'s to say, who
opens their gates is the bank's, and no optimizer is known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion_lora.errors import ConfigError
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.adaptive import AdaptiveLayer, Directions, RankBudget, Span
from diffusion_lora.lora.deltas import Decomposed, RankRows
from diffusion_lora.lora.dropout import Clock, DropoutRates, LayerDropout
from diffusion_lora.lora.gate import Gate
from diffusion_lora.lora.initial import gaussian_down, orthogonal_down, principal_factors
from diffusion_lora.lora.inject import Site
from diffusion_lora.lora.layer import Branch, Stack
from diffusion_lora.lora.magnitude import TrainedMagnitude, squares
from diffusion_lora.lora.metadata import LayerFacts
from diffusion_lora.lora.weights import LowRank

ALIGNMENT = 256
"""Elements of one block of 8-bit optimizers: no two matrices share a block, hence no scale."""

MIN_SEGMENT = 4096
"""bitsandbytes keeps fp32 state for parameters of fewer elements, so no segment is shorter."""

_AXES = {"off": None, "output": 0, "input": 1}


@dataclass(frozen=True)
class Recipe:
    """How an adapter is made beyond rank, alpha and the choice of its layers; the defaults make a plain LoRA.

    `rs`: the scale is alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732). `dora`: a
    trained magnitude for every output or input of a layer. `initial`: see the module of that name. `conv_rank` and
    `conv_alpha` are those of convolutions larger than 1 x 1 (kohya's conv_dim), 0 the same as of the rest. `ranks` and
    `alphas` are patterns, searched for in a layer's dotted path; the first that is found decides. `up_apart` puts the
    up matrices into segments of their own ("unet.up"), for a learning rate of their own (LoRA+). `blocks_apart` does
    the same with the layers of some blocks of the UNet: "unet@mid", "unet@IN04.up" (`unet_blocks.blocks_apart`).

    With an `adaptive_rank` above the rank, that is what every layer starts with (and in proportion where its rank is
    another), at the scale of the rank; within the `span` of the training they are cut until as many rank rows are left
    as there would be without (`adaptive`).
    """

    rs: bool = False
    dora: Literal["off", "output", "input"] = "off"
    initial: Literal["gaussian", "orthogonal", "pissa"] = "gaussian"
    conv_rank: int = 0
    conv_alpha: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    dropout: DropoutRates = field(default_factory=DropoutRates)
    up_apart: bool = False
    adaptive_rank: int = 0
    span: Span = field(default_factory=Span)
    blocks_apart: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dora != "off" and self.initial == "pissa":
            raise ValueError("a DoRA does not start as a part of the base's weight (PiSSA)")
        if self.adaptive_rank and (self.dora != "off" or self.initial == "pissa"):
            raise ValueError("ranks are adapted in a LoRA that starts from zero, not in a DoRA or PiSSA")


PLAIN = Recipe()


@dataclass(frozen=True)
class Report:
    """What is trained; `str()` is the line to show."""

    layers: int
    parameters: int
    base_parameters: int

    @property
    def share_percent(self) -> float:
        """Trained parameters in percent of those of the components they sit in."""
        return 100 * self.parameters / self.base_parameters

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.parameters:,} parameters, trainable {self.share_percent:.1f} % of the base"


@dataclass(frozen=True, eq=False)
class TrainedLayer:
    """One layer in training. `start` is a product that is taken off (PiSSA's), `magnitude` DoRA's, `directions` those
    that are left where ranks are adapted."""

    down: Tensor
    up: Tensor
    alpha: float
    rs: bool = False
    start: tuple[Tensor, Tensor] | None = None
    magnitude: TrainedMagnitude | None = None
    dropout: LayerDropout | None = None
    directions: Directions | None = None

    @property
    def scale(self) -> float:
        return _scale(self.down.shape[0], self.alpha, self.rs)

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """The leaves of this layer, views of the segments."""
        return (self.down, self.up) if self.magnitude is None else (self.down, self.up, self.magnitude.offset)

    @property
    def facts(self) -> LayerFacts:
        """Rank and alpha that `weights` will have."""
        is_conv = math.prod(self.down.shape[2:]) > 1
        if self.directions is not None:
            rank = len(self.down) if self.directions.into is None else len(self.directions.into)
            return LayerFacts(rank, self.scale * rank, is_conv)
        twice = 1 if self.start is None else 2
        alpha = self.alpha if self.start is None else 2 * self.scale * len(self.down)
        return LayerFacts(twice * len(self.down), alpha, is_conv)

    @property
    def gated_rows(self) -> tuple[int, float]:
        """(rows, scale) of its gate: the gate of rank rows holds their scale, a DoRA is one row of scale 1."""
        return (self.down.shape[0], self.scale) if self.magnitude is None else (1, 1.0)

    def branch(self, gate: Gate) -> Branch:
        if self.magnitude is None:
            return Stack(self.down, self.up, gate, self.start, self.dropout, self.directions)
        operator = RankRows(self.down, self.up, self.scale, self.dropout)
        return Decomposed(operator, self.magnitude.ratio, self.magnitude.axis, gate, self.dropout)

    def weights(self) -> LowRank:
        """A copy on the CPU, fp32. What was taken off at the start becomes rank rows too: the rank doubles, exactly."""
        down, up, alpha = _copy(self.down), _copy(self.up), self.alpha
        if self.directions is not None:
            down, up = self.directions.narrowed(down, up)
            return LowRank(down, up, self.scale * len(down))
        if self.start is not None:
            alpha = 2 * self.scale * len(down)
            down, up = torch.cat([down, self.start[0].cpu()]), torch.cat([up, -self.start[1].cpu()], dim=1)
            return LowRank(down, up, alpha)
        if self.magnitude is None:
            return LowRank(down, up, alpha, rs=self.rs)
        shape = [1] * down.ndim
        shape[self.magnitude.axis] = -1
        return LowRank(down, up, alpha, magnitude=_copy(self.magnitude.values()).view(shape), rs=self.rs)


@dataclass(frozen=True, eq=False)
class TrainableAdapter:
    """An adapter under training.

    `segments` is what the optimizer gets: one flat fp32 parameter per group ("unet", and "te" for all text encoders;
    "unet.up", "unet@mid" and the like where the recipe sets some apart), whose `.grad` is one buffer too. The leaves of
    `layers` are views of the segment, their gradients views of its gradient, so the backward pass writes straight into
    the flat buffers. Hence: clear gradients with `zero_grad()`, or an optimizer's `zero_grad(set_to_none=False)`;
    restore a state with ``segment.data.copy_()``; never replace either.

    `gradient` is all of the flat gradients, one tensor: what processes of one run add up. `leaves` are the matrices of
    each segment, for an optimizer that looks at rows and columns. `clock` is what dropout goes by: `zero_grad()` begins
    a step, `begin_pass()` a forward pass of it. `budget` is there where ranks are adapted.
    """

    name: str
    segments: Mapping[str, nn.Parameter]
    layers: Mapping[str, TrainedLayer]
    report: Report
    clock: Clock
    gradient: Tensor
    leaves: Mapping[str, tuple[Tensor, ...]]
    words: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # being learned, in the segment "word"
    budget: RankBudget | None = None

    def zero_grad(self) -> None:
        """Begin a step: zero all gradients in place."""
        for group, segment in self.segments.items():
            if segment.grad is None:
                raise RuntimeError(f"the flat gradient of {group} was set to None: clear it with this zero_grad()")
        self.gradient.zero_()
        self.clock.next_step()

    def begin_again(self) -> None:
        """Begin the present step again, after passes that failed."""
        self.gradient.zero_()
        self.clock.pass_number = 0

    def begin_pass(self) -> None:
        """Begin a forward pass: dropout draws anew."""
        self.clock.next_pass()

    def go_on_from(self, step: int) -> None:
        """Stand where `step` steps are done: the next `zero_grad()` begins the one after."""
        self.clock.step = step - 1

    def adapt(self, step: int, steps: int) -> dict[str, int] | None:
        """Look at the gradients of step 0, 1, ... of `steps` before the optimizer takes it, which must be finite and
        unscaled. When ranks were cut just now, the `total` of all layers, the `least` and the `most` of one."""
        ranks = None if self.budget is None else self.budget.observe(step, steps)
        if not ranks:
            return None
        return {"total": sum(ranks.values()), "least": min(ranks.values()), "most": max(ranks.values())}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the segments; only tensors in plain dictionaries."""
        return {} if self.budget is None else self.budget.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put a `state` back."""
        if self.budget is not None:
            self.budget.load(state)

    def adapter(self, metadata: Mapping[str, str] | None = None) -> Adapter:
        """A copy of the present state on the CPU, fp32."""
        layers = {key: layer.weights() for key, layer in self.layers.items()}
        words = {word: {part: _copy(view) for part, view in parts.items()} for word, parts in self.words.items()}
        return Adapter(layers, dict(metadata or {}), words=words)


def new_trainable(
    name: str,
    sites: Mapping[str, Site],
    rank: int,
    alpha: float,
    seed: int,
    base_parameters: int,
    recipe: Recipe = PLAIN,
    apart: Mapping[str, str] | None = None,
    words: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> TrainableAdapter:
    """A fresh adapter for these layers, which changes nothing yet.

    `apart` gives paths of the UNet the block in whose segment they go, `words` the first vectors of words to be learned
    with it, by word and text encoder.

    A layer's numbers depend on the seed and its key alone, so a wider choice of layers does not change them.
    ConfigError when a pattern for ranks or alphas is broken or matches none of the layers.
    """
    for setting, patterns in (("lora.rank_patterns", recipe.ranks), ("lora.alpha_patterns", recipe.alphas)):
        _check_patterns(setting, patterns, sites)
    axis = _AXES[recipe.dora]
    wanted = {key: _rank_and_alpha(site, rank, alpha, recipe) for key, site in sites.items()}
    sizes = {key: _widened(*wanted[key], rank, site.weight, recipe) for key, site in sites.items()}
    # What lies in which segment, in order: (key, role, shape).
    slots: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for key, site in sites.items():
        down_shape, up_shape = _shapes(site.weight, sizes[key][0])
        group = _group(key, (apart or {}).get(site.path))
        up_group = f"{group}.up" if recipe.up_apart else group
        slots.setdefault(group, []).append((key, "down", down_shape))
        slots.setdefault(up_group, []).append((key, "up", up_shape))
        if axis is not None:
            slots[group].append((key, "offset", (site.weight.shape[axis],)))
    first_vectors = {(word, part): first for word, parts in (words or {}).items() for part, first in parts.items()}
    if first_vectors:
        slots["word"] = [(*slot, tuple(vectors.shape)) for slot, vectors in first_vectors.items()]
    device = next(iter(sites.values())).weight.device
    segments: dict[str, nn.Parameter] = {}
    leaves_of: dict[str, tuple[Tensor, ...]] = {}
    leaves: dict[tuple[str, str], Tensor] = {}
    lengths = {group: _length([shape for _, _, shape in lying]) for group, lying in slots.items()}
    gradient = torch.zeros(sum(lengths.values()), device=device)
    for (group, lying), own in zip(slots.items(), gradient.split(list(lengths.values())), strict=True):
        segments[group], views = _flat_buffer([shape for _, _, shape in lying], own)
        leaves_of[group] = tuple(views)
        leaves |= {(key, role): view for (key, role, _), view in zip(lying, views, strict=True)}

    with torch.no_grad():
        for slot, vectors in first_vectors.items():
            leaves[slot].copy_(vectors)
    clock = Clock()
    layers = {}
    for key, site in sites.items():
        down, up, layer_alpha = leaves[key, "down"], leaves[key, "up"], sizes[key][1]
        rs = recipe.rs and not recipe.adaptive_rank  # an adapted rank changes, its scale does not
        scale = _scale(sizes[key][0], layer_alpha, rs)
        start = _begin(down, up, site.weight, scale, seed, key, recipe)
        magnitude = None
        if axis is not None:
            offset, base_squares = leaves[key, "offset"], squares(site.weight.detach(), axis)
            magnitude = TrainedMagnitude(site.weight, down, up, scale, axis, base_squares, offset)
        dropout = LayerDropout(recipe.dropout, clock, seed, key) if recipe.dropout else None
        directions = Directions() if recipe.adaptive_rank else None
        layers[key] = TrainedLayer(down, up, layer_alpha, rs, start, magnitude, dropout, directions)
    parameters = sum(leaf.numel() for leaf in leaves.values())
    report = Report(len(layers), parameters, base_parameters)
    budget = _budget(layers, sum(rank for rank, _ in wanted.values()), recipe.span) if recipe.adaptive_rank else None
    learned = {word: {part: leaves[word, part] for part in parts} for word, parts in (words or {}).items()}
    return TrainableAdapter(name, segments, layers, report, clock, gradient, leaves_of, learned, budget)


def _begin(
    down: Tensor, up: Tensor, weight: Tensor, scale: float, seed: int, key: str, recipe: Recipe
) -> tuple[Tensor, Tensor] | None:
    """Set the matrices to their first numbers; a copy of them where they are to be taken off."""
    first = orthogonal_down if recipe.initial == "orthogonal" else gaussian_down
    with torch.no_grad():
        down.copy_(first(tuple(down.shape), seed, key))
        if recipe.initial != "pissa":
            return None
        # A weight with fewer singular values than the rank leaves the other rows as they are in a plain LoRA.
        first_down, first_up = principal_factors(weight, len(down), scale)
        down[: len(first_down)].copy_(first_down)
        up[:, : len(first_down)].copy_(first_up)
        return down.detach().clone(), up.detach().clone()


def _rank_and_alpha(site: Site, rank: int, alpha: float, recipe: Recipe) -> tuple[int, float]:
    if any(n != 1 for n in site.weight.shape[2:]):
        rank, alpha = recipe.conv_rank or rank, recipe.conv_alpha or alpha
    rank = next((value for pattern, value in recipe.ranks.items() if re.search(pattern, site.path)), rank)
    alpha = next((value for pattern, value in recipe.alphas.items() if re.search(pattern, site.path)), alpha)
    return rank, alpha


def _widened(rank: int, alpha: float, usual: int, weight: Tensor, recipe: Recipe) -> tuple[int, float]:
    """The rank that an adapted layer starts with, and the alpha that keeps its scale; else what was given."""
    if not recipe.adaptive_rank:
        return rank, alpha
    bound = min(weight.shape[0], math.prod(weight.shape[1:]))
    start = max(1, min(-(-rank * recipe.adaptive_rank // usual), bound))
    return start, _scale(rank, alpha, recipe.rs) * start


def _budget(layers: Mapping[str, TrainedLayer], rows: int, span: Span) -> RankBudget:
    adaptive = {
        key: AdaptiveLayer(layer.down, layer.up, layer.directions)
        for key, layer in layers.items()
        if layer.directions is not None
    }
    return RankBudget(adaptive, rows, span)


def _check_patterns(setting: str, patterns: Mapping[str, object], sites: Mapping[str, Site]) -> None:
    for pattern in patterns:
        try:
            found = any(re.search(pattern, site.path) for site in sites.values())
        except re.error as error:
            raise ConfigError(f'{setting}: "{pattern}" is not a regular expression: {error}') from None
        if not found:
            raise ConfigError(f'{setting}: "{pattern}" matches none of the {len(sites)} layers that are trained')


def _scale(rank: int, alpha: float, rs: bool) -> float:
    return alpha / (math.sqrt(rank) if rs else rank)


def _group(key: str, block: str | None) -> str:
    if not key.startswith("unet."):
        return "te"
    return f"unet@{block}" if block else "unet"


def _shapes(weight: Tensor, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of down and up for a base weight ``[out, in(, k, k)]``."""
    out, kernel = weight.shape[0], weight.shape[2:]
    return (rank, *weight.shape[1:]), (out, rank, *(1 for _ in kernel))


def _length(shapes: list[tuple[int, ...]]) -> int:
    """Numbers in a segment that holds these shapes."""
    return max(sum(map(_aligned, shapes)), MIN_SEGMENT)


def _aligned(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT


def _flat_buffer(shapes: list[tuple[int, ...]], gradient: Tensor) -> tuple[nn.Parameter, list[Tensor]]:
    """A zero parameter with its gradient, and a leaf tensor for every shape that is a view of both."""
    flat = nn.Parameter(torch.zeros_like(gradient))
    flat.grad = gradient
    views, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        view = flat.detach()[start:stop].view(shape).requires_grad_()
        view.grad = gradient[start:stop].view(shape)
        views.append(view)
        start += _aligned(shape)
    return flat, views


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
