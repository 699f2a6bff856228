"""The adapters alive in one model: loaded from files, trained, exported, mixed, and folded into the base for a while.

A layer is wrapped when the first adapter touches it, and the plain layer comes back when the last one leaves. `mix`
opens the gates: it sets one small tensor for all layers of a block whose rank rows are laid out alike, so turning a
knob costs nothing, and every row of a batch can have its own mix, by block and in areas of the picture. The base's
weights are never written, but between `fold` and `restore`: then the originals are kept aside and put back, nothing is
subtracted.

Move the model to its device before adapters come; one thread at a time. What this module does not know: files,
diffusion, and which model it serves beyond the name it was told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.layouts.layout import layout_of_width
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.area import Patch, Setting, Sight, Spread, summed
from diffusion_lora.lora.deltas import Part, fits, prepare
from diffusion_lora.lora.fold import Values, folded_values, swap
from diffusion_lora.lora.gate import Gate
from diffusion_lora.lora.inject import Site, find_sites, select_sites
from diffusion_lora.lora.layer import Branch, LoraLayer, Stack, wrap
from diffusion_lora.lora.trainable import PLAIN, Recipe, TrainableAdapter, new_trainable
from diffusion_lora.lora.unet_blocks import BASE, block_factors, block_names, blocks_apart
from diffusion_lora.lora.weights import Full

Mix = Mapping[str, float | Sequence[Setting]]
"""Adapter name -> strength, or the settings with which it acts, one added to the other; who is not named does not."""

Rows = Mix | Sequence[Mix]
"""One mix for a whole batch, or one for each of its rows."""

R = TypeVar("R", bound=Rows)

_NO_PLACE = re.compile(r"(^|\.)(time_emb_proj$|time_embedding\.|add_embedding\.)")
_OF_WORDS = re.compile(r"\.attn2\.to_[kv]$")


@dataclass(frozen=True)
class _Layout:
    """How the rank rows of a stack are shared out: (adapter, rank, scale), in order. One gate serves each.

    A branch without rank rows counts as one row. `block` is the UNet's block, or none; `sight` what the layer sees.
    """

    component: str
    block: str
    sight: Sight
    parts: tuple[tuple[str, int, float], ...]
    device: torch.device


class AdapterBank:
    """The adapters of one model, by name.

    `components` are the parts that adapters touch, {"unet": ..., "te": ...}. `family_name` stands in error messages.
    `base_hash`, the SHA-256 of the base's weights where known, lets `load` note that an adapter was made on another
    checkpoint.
    """

    def __init__(self, components: Mapping[str, nn.Module], family_name: str, base_hash: str = "") -> None:
        self.components = dict(components)
        self.family_name = family_name
        self.base_hash = base_hash
        for component, root in self.components.items():
            if any(isinstance(module, LoraLayer) for module in root.modules()):
                raise ValueError(f"{component} already carries the adapters of another bank")
        self._sites = find_sites(self.components)
        self._blocks = block_names(site.path for site in self._sites.values() if site.component == "unet")
        self._loaded: dict[str, Adapter] = {}
        self._parts: dict[str, dict[str, Part]] = {}  # of the loaded adapters, by layer
        self._originals: Values = []  # while a mix is folded in
        self._trained: dict[str, TrainableAdapter] = {}
        self._wrapped: dict[str, LoraLayer] = {}
        self._gates: dict[_Layout, Gate] = {}
        self._rows: Mapping[str, Rows] | None = None  # by component; None outside `mix`
        self._in_lanes = False

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters present: the loaded ones, then those in training."""
        return (*self._loaded, *self._trained)

    @property
    def block_names(self) -> tuple[str, ...]:
        """The UNet's blocks, in their order: what a setting's factors go by, besides BASE for the text encoders."""
        return tuple(dict.fromkeys(self._blocks.values()))

    def block_factors(self, wanted: Sequence[float] | Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        """What a setting's `blocks` are, from a list of numbers or from words (`unet_blocks.block_factors`)."""
        return block_factors(self._blocks, wanted)

    def load(self, name: str, adapter: Adapter) -> tuple[str, ...]:
        """Put an adapter into the model, its gate closed until a mix opens it; notes for the user are returned.

        AdapterFileError when a layer or a shape is not this model's; the model is then as before. ValueError when the
        name is taken; RuntimeError while a mix is folded in.
        """
        self._check_name(name)
        self.check_fits(name, adapter)
        self._parts[name] = {key: prepare(layer, self._sites[key].weight) for key, layer in adapter.layers.items()}
        self._loaded[name] = adapter
        self._restack(adapter.layers)
        notes = [f"{name}: {note}" for note in adapter.notes]
        trained_on = adapter.metadata.get("ss_new_sd_model_hash", "")
        if self.base_hash and trained_on and trained_on != self.base_hash:
            made_on = adapter.metadata.get("ss_sd_model_name", "another checkpoint")
            notes.append(f"{name} was trained on {made_on}, a checkpoint other than this {self.family_name}")
        return tuple(notes)

    def add_trainable(
        self,
        name: str,
        rank: int,
        alpha: float,
        targets: str | Sequence[str] = "attention",
        text_targets: str = "attention",
        seed: int = 0,
        *,
        blocks: Sequence[str] | Sequence[int] = (),
        recipe: Recipe = PLAIN,
        words: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> TrainableAdapter:
        """A new adapter to train, at strength 1 outside `mix`; every base weight is frozen.

        `words` are the first vectors of words to be learned with it, which the model is taught elsewhere.

        It changes nothing yet, so the model starts as the base. ConfigError when the rank is below 1 or targets, blocks
        (`inject.select_sites`) or patterns are wrong; ValueError when the name is taken.
        """
        self._check_name(name)
        if rank < 1:
            raise ConfigError(f"lora.rank = {rank} is too small: the rank is at least 1")
        sites = select_sites(self._sites, targets, text_targets, blocks)
        base = [parameter for root in self.components.values() for parameter in root.parameters()]
        for parameter in base:
            parameter.requires_grad_(False)
        paths = [site.path for site in self._sites.values() if site.component == "unet"]
        apart = blocks_apart(block_names(paths), recipe.blocks_apart) if recipe.blocks_apart else None
        trained = new_trainable(
            name, sites, rank, alpha, seed, sum(parameter.numel() for parameter in base), recipe, apart, words
        )
        self._trained[name] = trained
        self._restack(trained.layers)
        return trained

    def unload(self, name: str) -> None:
        """Take an adapter out; layers that carry no other become the plain ones again.

        KeyError if it is not here; RuntimeError while a mix is folded in.
        """
        self._check_not_folded()
        gone = self._loaded.pop(name) if name in self._loaded else self._trained.pop(name)
        self._parts.pop(name, None)
        self._restack(gone.layers)

    def export(self, name: str, metadata: Mapping[str, str] | None = None) -> Adapter:
        """The adapter as a value, `metadata` added: a CPU copy of what is in training, or the loaded one."""
        if name in self._trained:
            return self._trained[name].adapter(metadata)
        adapter = self._loaded[name]
        return replace(adapter, metadata={**adapter.metadata, **(metadata or {})})

    def weight(self, key: str) -> Tensor:
        """The base's own weight of a layer, ``[out, in(, k, k)]``, whatever adapters it carries. KeyError."""
        return self._sites[key].weight

    @contextmanager
    def mix(self, rows: Rows, component_rows: Mapping[str, Rows] | None = None) -> Iterator[None]:
        """Inside the context adapters act with these strengths; those not named do not act.

        `rows` is one mix {name: strength} for the whole batch, or a mix for every batch row (with classifier-free
        guidance, for every row of the doubled batch). `component_rows` gives a component its own, {"te": ...}. The
        inner of nested contexts holds. With gradient checkpointing the backward pass must be inside too. KeyError for
        a name that is not loaded; RuntimeError while a mix is folded in.
        """
        self._check_not_folded()
        by_component = self._by_component(rows, component_rows)
        before = self._rows
        self._rows = by_component
        self._set_gates()
        try:
            yield
        finally:
            self._rows = before
            self._set_gates()

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Inside the context the rows of a batch fall into equal parts, one for each adapter in training, in the order
        in which they were added: each acts on its own rows alone, at strength 1.

        The base computes all of them at once; with gradient checkpointing the backward pass must be inside too. A `mix`
        inside is for the whole batch again. RuntimeError while a mix is folded in.
        """
        self._check_not_folded()
        self._in_lanes = True
        self._set_gates()
        try:
            yield
        finally:
            self._in_lanes = False
            self._set_gates()

    @property
    def folded(self) -> bool:
        """Whether a mix is folded into the base's weights."""
        return bool(self._originals)

    @torch.no_grad()
    def fold(self, mix: Mix, component_mixes: Mapping[str, Mix] | None = None) -> None:
        """Put one mix into the base's weights: a step then costs what it costs without adapters, until `restore`.

        The same as `mix` up to one rounding of each weight to the base's dtype: the sum is made in fp32. The originals
        of the layers it touches are kept, which takes their memory once more. All gates close; until `restore` nothing
        can be mixed, loaded or unloaded. KeyError and ValueError as in `mix`, ValueError too for an area, which no
        weight can hold; RuntimeError when a mix is folded in already, or a base weight is quantised.
        """
        self._check_not_folded()
        by_component = self._by_component(mix, component_mixes)
        layers = {name: self.export(name).layers for name in self.names}
        values: Values = []
        for key in self._wrapped:
            site = self._sites[key]
            block = self._blocks.get(site.path, "") if site.component == "unet" else BASE
            strengths = [
                (name, _strength_to_fold(name, _settings(wanted), block))
                for name, wanted in by_component[site.component].items()
            ]
            acting = [(strength, layers[name][key]) for name, strength in strengths if strength and key in layers[name]]
            if acting:
                values += folded_values(self._sites[key].module, acting)
        self._originals = swap(values)
        self._set_gates()

    def restore(self) -> None:
        """Put the kept originals back: the base is bit for bit what it was. Nothing happens when nothing is folded."""
        swap(self._originals)
        self._originals = []
        self._set_gates()

    def fold_in(self, adapters: Sequence[tuple[str, Adapter, float]]) -> tuple[str, ...]:
        """Make each (name, adapter, strength) a part of the base for good: nothing is kept to restore it.

        Of an empty bank; notes for the user are returned. Raises what `load` and `fold` raise, the base as before.
        """
        if self.names:
            raise ValueError("only a base without adapters takes others in for good")
        notes: list[str] = []
        places = {f"{place} {name}": (adapter, strength) for place, (name, adapter, strength) in enumerate(adapters)}
        try:
            for place, (adapter, _) in places.items():
                notes += (note.removeprefix(f"{place.split()[0]} ") for note in self.load(place, adapter))
            self.fold({place: strength for place, (_, strength) in places.items()})
            self._originals = []
        finally:
            for place in self.names:
                self.unload(place)
        return tuple(notes)

    def _by_component(self, rows: R, component_rows: Mapping[str, R] | None) -> dict[str, R]:
        """What is wanted of every component, checked."""
        by_component = dict.fromkeys(self.components, rows) | dict(component_rows or {})
        for component, wanted in by_component.items():
            if component not in self.components:
                raise KeyError(f"{component} is not a component of {self.family_name}: {', '.join(self.components)}")
            for name, strengths in ((name, value) for mix in _as_list(wanted) for name, value in mix.items()):
                if name not in self.names:
                    raise KeyError(f"{name} is not loaded; loaded: {', '.join(self.names) or 'nothing'}")
                for setting in _settings(strengths):
                    if not math.isfinite(setting.strength):
                        raise ValueError(f"the strength of {name} is {setting.strength}, not a finite number")
        return by_component

    def _check_not_folded(self) -> None:
        if self._originals:
            raise RuntimeError("a mix is folded into the base's weights: restore() them first")

    def _check_name(self, name: str) -> None:
        self._check_not_folded()
        if name in self.names:
            raise ValueError(f"an adapter named {name} is already in the bank")

    def check_fits(self, name: str, adapter: Adapter) -> None:
        """AdapterFileError when a layer or a shape of this adapter is not this model's."""
        mine, theirs = self._cross_attention_width(), adapter.cross_attention_width
        if mine is not None and theirs is not None and mine != theirs:
            raise AdapterFileError(
                f"{name} was made for {layout_of_width(theirs).title} (cross-attention {theirs} wide) and this base is "
                f"{self.family_name} ({mine} wide): choose a LoRA made for it, or the base that this one was made for"
            )
        strange = [key for key in adapter.layers if key not in self._sites]
        if strange:
            raise AdapterFileError(
                f"{name} belongs to another model than {self.family_name} ({_origin(adapter)}): {len(strange)} of its "
                f"{len(adapter.layers)} layers are unknown here, the first is {strange[0]}"
            )
        for key, layer in adapter.layers.items():
            site = self._sites[key]
            if not fits(layer, site.weight):
                raise AdapterFileError(
                    f"{name} belongs to another model than {self.family_name} ({_origin(adapter)}): {key} is "
                    f"{_times(layer.shape)} there and {_times(site.weight.shape)} here"
                )
            if isinstance(layer, Full) and layer.bias is not None and site.module.bias is None:
                raise AdapterFileError(f"{name} changes the bias of {key}, which has none in this {self.family_name}")

    def _cross_attention_width(self) -> int | None:
        for key, site in self._sites.items():
            if key.startswith("unet.") and key.endswith("attn2_to_k"):
                return site.weight.shape[1]
        return None

    def _restack(self, keys: Iterable[str]) -> None:
        """Rebuild the branches of these layers after a coming or a going: the only place where rank rows are joined."""
        for key in keys:
            site = self._sites[key]
            branches = self._branches(key)
            if branches and key not in self._wrapped:
                self._wrapped[key] = wrap(site.module)
                _replace(self.components[site.component], site.path, self._wrapped[key])
            if branches:
                self._wrapped[key].branches = branches
            else:
                _replace(self.components[site.component], site.path, site.module)
                del self._wrapped[key]
        in_use = {id(branch.gate) for layer in self._wrapped.values() for branch in layer.branches}
        self._gates = {layout: gate for layout, gate in self._gates.items() if id(gate) in in_use}
        self._set_gates()

    def _branches(self, key: str) -> tuple[Branch, ...]:
        """One stack for the rank rows of all loaded adapters, in the base's dtype; a branch for each without such rows;
        and one for each adapter in training, in fp32. In the order of their names: sums of floats depend on theirs, and
        a mix must not depend on who came first."""
        site = self._sites[key]
        loaded = {name: parts[key] for name, parts in sorted(self._parts.items()) if key in parts}
        rows = {name: part.rows for name, part in loaded.items() if part.rows is not None}
        branches: list[Branch] = []
        if rows:
            shares = tuple((name, len(part.down), part.scale) for name, part in rows.items())
            down = _joined([part.down for part in rows.values()], 0)
            up = _joined([part.up for part in rows.values()], 1)
            branches.append(Stack(down, up, self._gate(site, shares)))
        for name, part in loaded.items():
            if part.branch is not None:
                branches.append(part.branch(self._gate(site, ((name, 1, 1.0),))))
        for name, trained in self._trained.items():
            if key in trained.layers:
                layer = trained.layers[key]
                branches.append(layer.branch(self._gate(site, ((name, *layer.gated_rows),))))
        return tuple(branches)

    def _gate(self, site: Site, shares: tuple[tuple[str, int, float], ...]) -> Gate:
        is_unet = site.component == "unet"
        block = self._blocks.get(site.path, "") if is_unet else BASE
        sight = _sight(site.path) if is_unet else "nothing"
        layout = _Layout(site.component, block, sight, shares, site.weight.device)
        return self._gates.setdefault(layout, Gate())

    def _set_gates(self) -> None:
        """Set every gate to what is wanted; those of one place are views of one tensor, sent there at once."""
        waiting: dict[tuple[torch.device, str], list[tuple[_Layout, Gate, list[Patch], bool]]] = {}
        numbers: dict[tuple[torch.device, str], list[list[float]]] = {}
        order = {name: lane for lane, name in enumerate(self._trained)} if self._lanes else {}
        for layout, gate in self._gates.items():
            lane = order.get(layout.parts[0][0])  # an adapter in training has its gates to itself
            gate.lane = None if lane is None else (lane, len(order))
            mixes = _as_list(self._wanted(layout.component))
            values, patches = _values(layout, mixes)
            if not patches and not any(value for row in values for value in row):
                gate.close()
                continue
            place = layout.device, layout.component
            all_one = all(value == 1.0 for row in values for value in row)
            waiting.setdefault(place, []).append((layout, gate, patches, all_one))
            lines = numbers.setdefault(place, [[] for _ in values])
            for row, line in zip(values, lines, strict=True):
                for value, (_, rank, _) in zip(row, layout.parts, strict=True):
                    line.extend([value] * rank)
        for place, gates in waiting.items():
            device, component = place
            together = torch.tensor(numbers[place]).to(device)
            one_mix = isinstance(self._wanted(component), Mapping)
            widths = [sum(rank for _, rank, _ in layout.parts) for layout, *_ in gates]
            for (layout, gate, patches, all_one), part in zip(gates, together.split(widths, dim=1), strict=True):
                spread = Spread(part, patches, layout.sight) if patches else None
                gate.open(part[0] if one_mix else part, unit=all_one and not patches, spread=spread)

    @property
    def _lanes(self) -> bool:
        """Whether the batch is shared out; an adapter that is alone has all of it."""
        return self._in_lanes and self._rows is None and len(self._trained) > 1

    def _wanted(self, component: str) -> Rows:
        if self._originals:
            return {}
        return dict.fromkeys(self._trained, 1.0) if self._rows is None else self._rows[component]


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _as_list(rows: Rows) -> Sequence[Mix]:
    return [rows] if isinstance(rows, Mapping) else rows


def _settings(wanted: float | Sequence[Setting]) -> Sequence[Setting]:
    return (Setting(wanted),) if isinstance(wanted, int | float) else wanted


def _values(layout: _Layout, mixes: Sequence[Mix]) -> tuple[list[list[float]], list[Patch]]:
    """Of every mix the values of the layout's parts, as they act everywhere; and the patches that areas add."""
    values, patches = [], list[Patch]()
    for row, mix in enumerate(mixes):
        line, start = [], 0
        for name, rank, scale in layout.parts:
            wanted = mix.get(name, 0.0)
            if isinstance(wanted, int | float):
                line.append(wanted * scale)
            else:
                acting = [(setting.in_block(layout.block), setting.area) for setting in wanted]
                everywhere, inside = summed(acting, layout.sight)
                line.append(everywhere * scale)
                patches += [Patch(row, start, start + rank, value * scale, area) for value, area in inside]
            start += rank
        values.append(line)
    return values, patches


def _strength_to_fold(name: str, settings: Sequence[Setting], block: str) -> float:
    if any(setting.area is not None for setting in settings):
        raise ValueError(f"{name} acts in an area, which cannot be folded into weights")
    return sum(setting.in_block(block) for setting in settings)


def _sight(path: str) -> Sight:
    """What the UNet's layer of this path sees of the picture."""
    if _NO_PLACE.search(path):
        return "nothing"
    return "words" if _OF_WORDS.search(path) else "places"


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _origin(adapter: Adapter) -> str:
    made_for = adapter.metadata.get("modelspec.architecture") or adapter.metadata.get("ss_base_model_version")
    return f"its metadata says {made_for}" if made_for else "its metadata does not say which"


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
