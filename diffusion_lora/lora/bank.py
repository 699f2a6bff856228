"""The adapters alive in one model: loaded from files, trained, exported, and mixed.

The base's weights are never written. A layer is wrapped when the first adapter touches it, and the plain layer comes
back when the last one leaves. `mix` opens the gates: it sets one small tensor for all layers whose rank rows are laid
out alike, so turning a knob costs nothing, and every row of a batch can have its own mix.

Move the model to its device before adapters come; one thread at a time. What this module does not know: files,
diffusion, and which model it serves beyond the name it was told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffusion_lora.errors import AdapterFileError, ConfigError
from diffusion_lora.layouts.layout import layout_of_width
from diffusion_lora.lora.adapter import Adapter, AdapterLayer
from diffusion_lora.lora.inject import find_sites, select_sites
from diffusion_lora.lora.layer import Gate, LoraLayer, Stack, wrap
from diffusion_lora.lora.trainable import TrainableAdapter, new_trainable

Mix = Mapping[str, float]
"""Adapter name -> strength; who is not named does not act."""

Rows = Mix | Sequence[Mix]
"""One mix for a whole batch, or one for each of its rows."""


@dataclass(frozen=True)
class _Layout:
    """How the rank rows of a stack are shared out: (adapter, rank, alpha / rank), in order. One gate serves each."""

    component: str
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
        self._loaded: dict[str, Adapter] = {}
        self._trained: dict[str, TrainableAdapter] = {}
        self._wrapped: dict[str, LoraLayer] = {}
        self._gates: dict[_Layout, Gate] = {}
        self._rows: Mapping[str, Rows] | None = None  # by component; None outside `mix`

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters present: the loaded ones, then those in training."""
        return (*self._loaded, *self._trained)

    def load(self, name: str, adapter: Adapter) -> tuple[str, ...]:
        """Put an adapter into the model, its gate closed until a mix opens it; notes for the user are returned.

        AdapterFileError when a layer or a shape is not this model's; the model is then as before. ValueError when the
        name is taken.
        """
        self._check_name(name)
        self._check_fits(name, adapter)
        self._loaded[name] = adapter
        self._restack(adapter.layers)
        trained_on = adapter.metadata.get("ss_new_sd_model_hash", "")
        if self.base_hash and trained_on and trained_on != self.base_hash:
            made_on = adapter.metadata.get("ss_sd_model_name", "another checkpoint")
            return (f"{name} was trained on {made_on}, a checkpoint other than this {self.family_name}",)
        return ()

    def add_trainable(
        self,
        name: str,
        rank: int,
        alpha: float,
        targets: str | Sequence[str] = "attention",
        text_targets: str = "attention",
        seed: int = 0,
    ) -> TrainableAdapter:
        """A new adapter to train, at strength 1 outside `mix`; every base weight is frozen.

        Its up matrices are zero, so the model starts as the base. ConfigError when the rank is below 1 or the targets
        are wrong (`inject.select_layers`); ValueError when the name is taken.
        """
        self._check_name(name)
        if rank < 1:
            raise ConfigError(f"lora.rank = {rank} is too small: the rank is at least 1")
        sites = select_sites(self._sites, targets, text_targets)
        base = [parameter for root in self.components.values() for parameter in root.parameters()]
        for parameter in base:
            parameter.requires_grad_(False)
        trained = new_trainable(name, sites, rank, alpha, seed, sum(parameter.numel() for parameter in base))
        self._trained[name] = trained
        self._restack(trained.layers)
        return trained

    def unload(self, name: str) -> None:
        """Take an adapter out; layers that carry no other become the plain ones again. KeyError if it is not here."""
        gone = self._loaded.pop(name) if name in self._loaded else self._trained.pop(name)
        self._restack(gone.layers)

    def export(self, name: str, metadata: Mapping[str, str] | None = None) -> Adapter:
        """The adapter as a value, `metadata` added: a CPU copy of what is in training, or the loaded one."""
        if name in self._trained:
            return self._trained[name].adapter(metadata)
        adapter = self._loaded[name]
        return replace(adapter, metadata={**adapter.metadata, **(metadata or {})})

    @contextmanager
    def mix(self, rows: Rows, component_rows: Mapping[str, Rows] | None = None) -> Iterator[None]:
        """Inside the context adapters act with these strengths; those not named do not act.

        `rows` is one mix {name: strength} for the whole batch, or a mix for every batch row (with classifier-free
        guidance, for every row of the doubled batch). `component_rows` gives a component its own, {"te": ...}. The
        inner of nested contexts holds. With gradient checkpointing the backward pass must be inside too. KeyError for
        a name that is not loaded.
        """
        by_component = dict.fromkeys(self.components, rows) | dict(component_rows or {})
        for component, wanted in by_component.items():
            if component not in self.components:
                raise KeyError(f"{component} is not a component of {self.family_name}: {', '.join(self.components)}")
            for name, strength in ((name, strength) for mix in _as_list(wanted) for name, strength in mix.items()):
                if name not in self.names:
                    raise KeyError(f"{name} is not loaded; loaded: {', '.join(self.names) or 'nothing'}")
                if not math.isfinite(strength):
                    raise ValueError(f"the strength of {name} is {strength}, not a finite number")
        before = self._rows
        self._rows = by_component
        self._set_gates()
        try:
            yield
        finally:
            self._rows = before
            self._set_gates()

    def _check_name(self, name: str) -> None:
        if name in self.names:
            raise ValueError(f"an adapter named {name} is already in the bank")

    def _check_fits(self, name: str, adapter: Adapter) -> None:
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
            weight = self._sites[key].weight
            if _fit(layer, weight) is None:
                raise AdapterFileError(
                    f"{name} belongs to another model than {self.family_name} ({_origin(adapter)}): {key} is "
                    f"{_times(layer.up.shape[:1] + layer.down.shape[1:])} there and {_times(weight.shape)} here"
                )

    def _cross_attention_width(self) -> int | None:
        for key, site in self._sites.items():
            if key.startswith("unet.") and key.endswith("attn2_to_k"):
                return site.weight.shape[1]
        return None

    def _restack(self, keys: Iterable[str]) -> None:
        """Rebuild the stacks of these layers after a coming or a going: the only place where rank rows are joined."""
        for key in keys:
            site = self._sites[key]
            stacks = self._stacks(key)
            if stacks and key not in self._wrapped:
                self._wrapped[key] = wrap(site.module)
                _replace(self.components[site.component], site.path, self._wrapped[key])
            if stacks:
                self._wrapped[key].stacks = stacks
            else:
                _replace(self.components[site.component], site.path, site.module)
                del self._wrapped[key]
        in_use = {id(stack.gate) for layer in self._wrapped.values() for stack in layer.stacks}
        self._gates = {layout: gate for layout, gate in self._gates.items() if id(gate) in in_use}
        self._set_gates()

    def _stacks(self, key: str) -> tuple[Stack, ...]:
        """One stack for all loaded adapters, in the base's dtype, and one for each adapter in training, in fp32."""
        site = self._sites[key]
        stacks = []
        loaded = {name: adapter.layers[key] for name, adapter in self._loaded.items() if key in adapter.layers}
        if loaded:
            dtype = site.weight.dtype if site.weight.is_floating_point() else torch.float32
            fitted = [pair for layer in loaded.values() if (pair := _fit(layer, site.weight))]
            down = torch.cat([down.to(site.weight.device, dtype) for down, _ in fitted])
            up = torch.cat([up.to(site.weight.device, dtype) for _, up in fitted], dim=1)
            parts = tuple((name, layer.rank, layer.scale) for name, layer in loaded.items())
            stacks.append(Stack(down, up, self._gate(_Layout(site.component, parts, down.device))))
        for name, trained in self._trained.items():
            if key in trained.layers:
                down, up = trained.layers[key]
                parts = ((name, trained.rank, trained.alpha / trained.rank),)
                stacks.append(Stack(down, up, self._gate(_Layout(site.component, parts, down.device))))
        return tuple(stacks)

    def _gate(self, layout: _Layout) -> Gate:
        return self._gates.setdefault(layout, Gate())

    def _set_gates(self) -> None:
        for layout, gate in self._gates.items():
            rows: Rows = dict.fromkeys(self._trained, 1.0) if self._rows is None else self._rows[layout.component]
            values = [[mix.get(name, 0.0) * scale for name, _, scale in layout.parts] for mix in _as_list(rows)]
            if not any(value for row in values for value in row):
                gate.close()
                continue
            ranks = torch.tensor([rank for _, rank, _ in layout.parts])
            tensor = torch.tensor(values).repeat_interleave(ranks, dim=1).to(layout.device)
            unit = all(value == 1.0 for row in values for value in row)
            gate.open(tensor[0] if isinstance(rows, Mapping) else tensor, unit=unit)


def _as_list(rows: Rows) -> Sequence[Mix]:
    return [rows] if isinstance(rows, Mapping) else rows


def _fit(layer: AdapterLayer, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """(down, up) in the shapes that this base weight needs, or None when they do not fit.

    A linear layer and a 1 x 1 convolution are the same matrix, and programs write either shape for both.
    """
    kernel = tuple(weight.shape[2:])
    is_matrix = all(n == 1 for n in (*layer.down.shape[2:], *kernel))
    if layer.down.shape[1] != weight.shape[1] or layer.up.shape[0] != weight.shape[0]:
        return None
    if tuple(layer.down.shape[2:]) != kernel and not is_matrix:
        return None
    return layer.down.reshape(layer.rank, -1, *kernel), layer.up.reshape(-1, layer.rank, *(1 for _ in kernel))


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _origin(adapter: Adapter) -> str:
    made_for = adapter.metadata.get("modelspec.architecture") or adapter.metadata.get("ss_base_model_version")
    return f"its metadata says {made_for}" if made_for else "its metadata does not say which"


def _times(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
