"""What was read of an adapter file and what was not, how strong it is and for which models: the load report.

From a header alone it needs no torch and reads a few bytes beside it (the alphas); from an adapter's values it also has
norms, and names layers that are broken or do nothing. Other programs say the most of this in a console line, or drop
layers in silence. How it is shown is the faces'; `as_dict` is its JSON.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.blocks import block_of
from diffusion_lora.lora.formats.foreign import by_reason
from diffusion_lora.lora.formats.forms import ALPHA, Form, as_float32, scale_of
from diffusion_lora.lora.formats.peft import MAX_SETTINGS_BYTES, Settings
from diffusion_lora.lora.formats.reading import LayerNames, layout_of, read_names
from diffusion_lora.lora.header import Header, read_scalars

if TYPE_CHECKING:
    from diffusion_lora.lora.adapter import Adapter

Shapes = Mapping[str, Sequence[int]]
"""The shape of the weight of every layer of a model that can carry an adapter, by layer key."""

Range = tuple[float, float]

_MOST_TRIGGERS = 3


@dataclass(frozen=True)
class LoadReport:
    """An adapter, told.

    `family` is the title of the models it was made for, None if its layers do not tell. `kinds` and `components` count
    layers. `matched` of `total` tensors belong to a layer; `unread` holds the others by name, and `unfit` the layers
    that the model at hand has not, or in another shape, each with its reason. `ranks`, `alphas` and `scales` are
    ranges, lowest and highest, and `scale` is what most layers are multiplied by at strength 1. `norms` are Frobenius
    norms of the change by block, `norm` that of all; they, `not_finite` and `zero` (layers by key) are None when only
    the header was read. Of layers that need the base (`dora`) the norm is that before their magnitude.
    """

    family: str | None
    format: str
    kinds: Mapping[str, int]
    components: Mapping[str, int]
    matched: int
    total: int
    unread: Mapping[str, str]
    unfit: Mapping[str, str]
    ranks: tuple[int, int] | None
    alphas: Range
    scales: Range
    scale: float
    dora: int
    dtypes: tuple[str, ...]
    parameters: int
    trigger_words: tuple[str, ...]
    base: str
    norms: Mapping[str, float] | None = None
    norm: float | None = None
    not_finite: tuple[str, ...] | None = None
    zero: tuple[str, ...] | None = None

    @property
    def layers(self) -> int:
        return sum(self.kinds.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must not be overlooked, a sentence each."""
        said = []
        if self.unread:
            said.append(f"{len(self.unread)} of {self.total} tensors are not read: {by_reason(self.unread)}")
        if self.unfit:
            key, reason = next(iter(self.unfit.items()))
            said.append(f"{len(self.unfit)} of {self.layers} layers are not this model's, the first is {key}: {reason}")
        for keys, what in ((self.not_finite, "hold values that are not finite"), (self.zero, "are all zero")):
            if keys:
                said.append(f"{len(keys)} of {self.layers} layers {what}, the first is {keys[0]}")
        return tuple(said)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, layers and warnings; numbers that are not finite as text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        told: dict[str, Any] = _plain({**values, "layers": self.layers, "warnings": self.warnings})
        return told


@dataclass(frozen=True)
class _Told:
    """One layer, whether from names or from values."""

    form: Form
    alpha: float
    scale: float


def load_report(
    subject: Header | Adapter,
    sites: Shapes | None = None,
    *,
    values: Adapter | None = None,
    config: Settings | None = None,
) -> LoadReport:
    """The report of a file by its header, or of an adapter by its values.

    With a header and `values`, what `read_adapter(path, finite=False)` gave of the same file, it has all of both; of
    values alone it counts tensors without the alphas. With `sites` it says which layers the model at hand has not.
    `config` is PEFT's settings from beside the file.
    AdapterFileError as in `read_adapter` when nothing in a file is read.
    """
    if isinstance(subject, Header):
        reading = read_names(subject, config)
        told = _by_names(subject, reading.layers)
        spelling, unread, matched, metadata = reading.format, reading.unread, reading.matched, subject.metadata
        read = {name for layer in reading.layers.values() for name in layer.tensors.values()}
        infos = [subject.tensors[name] for name in subject.tensors if name in read and not name.endswith(".alpha")]
        dtypes = Counter(info.dtype for info in infos)
        parameters = sum(math.prod(info.shape) for info in infos)
    else:
        values = subject
        told = {key: _Told(layer.form, layer.alpha, layer.scale) for key, layer in subject.layers.items()}
        spelling, unread, metadata = subject.format, subject.unread, subject.metadata
        tensors = [tensor for layer in subject.layers.values() for tensor in layer.tensors().values()]
        matched, dtypes = len(tensors), Counter(_dtype(tensor.dtype) for tensor in tensors)
        parameters = subject.parameters
    layout = layout_of({key: layer.form.shape for key, layer in told.items()})
    ranks = [layer.form.rank for layer in told.values() if layer.form.rank is not None]
    alphas, scales = [layer.alpha for layer in told.values()], [layer.scale for layer in told.values()]
    report = LoadReport(
        family=None if layout is None else layout.title,
        format=spelling,
        kinds=dict(Counter(layer.form.kind for layer in told.values()).most_common()),
        components=dict(sorted(Counter(key.split(".", 1)[0] for key in told).items())),
        matched=matched,
        total=matched + len(unread),
        unread=dict(unread),
        unfit={} if sites is None else _unfit(told, sites),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        alphas=(min(alphas), max(alphas)),
        scales=(min(scales), max(scales)),
        scale=Counter(scales).most_common(1)[0][0],
        dora=sum(layer.form.has_magnitude for layer in told.values()),
        dtypes=tuple(dtype for dtype, _ in dtypes.most_common()),
        parameters=parameters,
        trigger_words=trigger_words(metadata),
        base=metadata.get("ss_sd_model_name", ""),
    )
    return report if values is None else _with_norms(report, values)


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call what was trained: those that the metadata name, else the tags that all captions share.

    kohya's trainer writes no trigger word, but counts tags and pictures by folder.
    """
    named = metadata.get("modelspec.trigger_phrase") or metadata.get("ss_trigger_word") or ""
    if named.strip():
        return tuple(word for part in named.split(",") if (word := part.strip()))
    tags, folders = _json(metadata, "ss_tag_frequency"), _json(metadata, "ss_dataset_dirs")
    pictures = sum(_count(folder.get("img_count")) for folder in folders.values() if isinstance(folder, Mapping))
    counts: Counter[str] = Counter()
    for folder in tags.values():
        if isinstance(folder, Mapping):
            counts.update({str(tag).strip(): _count(count) for tag, count in folder.items()})
    return tuple(tag for tag, count in counts.most_common(_MOST_TRIGGERS) if pictures and count >= pictures and tag)


def _by_names(header: Header, layers: Mapping[str, LayerNames]) -> dict[str, _Told]:
    alphas = read_scalars(header, (layer.tensors[ALPHA] for layer in layers.values() if ALPHA in layer.tensors))
    told = {}
    for key, layer in layers.items():
        stated = alphas[layer.tensors[ALPHA]] or None if ALPHA in layer.tensors else layer.alpha
        try:
            alpha = as_float32(float(layer.form.rank or 1) if stated is None else stated)
        except ValueError as error:
            raise AdapterFileError(f"{header.path} is damaged: {key}: {error}") from None
        told[key] = _Told(layer.form, alpha, scale_of(layer.form, alpha, rs=layer.rs))
    return told


def _unfit(told: Mapping[str, _Told], sites: Shapes) -> dict[str, str]:
    reasons = {}
    for key, layer in told.items():
        if key not in sites:
            reasons[key] = "the model has no such layer"
        elif not _fits(layer.form.shape, sites[key]):
            mine, theirs = ("x".join(map(str, shape)) for shape in (layer.form.shape, sites[key]))
            reasons[key] = f"it is {mine} there and {theirs} in the model"
    return reasons


def _fits(mine: Sequence[int], theirs: Sequence[int]) -> bool:
    """A linear layer and a 1 x 1 convolution are one matrix, and some forms hide a kernel in their inputs."""
    if len(mine) == len(theirs) == 4 and tuple(mine[2:]) != tuple(theirs[2:]):
        return False
    return mine[0] == theirs[0] and math.prod(mine[1:]) == math.prod(theirs[1:])


def _with_norms(report: LoadReport, adapter: Adapter) -> LoadReport:
    norms = {key: layer.norm() for key, layer in adapter.layers.items()}
    sound = {key: norm for key, norm in norms.items() if math.isfinite(norm)}
    by_block: dict[str, list[float]] = {}
    for key, norm in sound.items():
        by_block.setdefault(block_of(key), []).append(norm)
    return replace(
        report,
        norms={block: math.hypot(*by_block[block]) for block in sorted(by_block, key=_place_of_block)},
        norm=math.hypot(*sound.values()),
        not_finite=tuple(key for key in norms if key not in sound),
        zero=tuple(key for key, norm in norms.items() if norm == 0),
    )


def _place_of_block(block: str) -> tuple[int, str]:
    """Text encoders first, then the UNet's blocks in the order in which they compute."""
    order = ("text", "unet", "down", "mid", "up")
    return next((place for place, start in enumerate(order) if block.startswith(start)), len(order)), block


def _dtype(dtype: object) -> str:
    """torch's word in the format's: "torch.float16" -> "F16"."""
    word = str(dtype).removeprefix("torch.")
    return word.replace("bfloat", "BF").replace("float", "F").split("_", 1)[0].upper()


def _json(metadata: Mapping[str, str], key: str) -> Mapping[str, Any]:
    """The table in a metadata value; an empty one when there is none, for a report does not fail over it."""
    text = metadata.get(key, "")
    try:
        table = json.loads(text) if len(text) <= MAX_SETTINGS_BYTES else None
    except (ValueError, RecursionError):
        table = None
    return table if isinstance(table, Mapping) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
