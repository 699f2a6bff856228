"""The judge of drawn pictures: objects and their colours, background, style and character.

One small convolutional network over whole 128 px pictures or halves of them. It knows the labels it was trained on
(they travel in the file's header), so a frozen judge stays the same when the drawn world grows. Training it is
`train.py`; choosing prompts and thresholds is `acceptance.py`. It ships with the tests, never in the wheel.

How it answers: a map of every kind of object is laid over the picture. The pooled map says whether the kind is
present, and the colour is read where the map is high, so that two objects of a picture keep their own colours.
Background, style and character are read from the pooled features; each has a class "none" for pictures that show
nothing of the sort (noise, mush, patches in disorder), and so has the colour.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PICTURE_PX = 128
NONE = "none"
FORMAT = "pocket-judge-1"

Part = Literal["all", "left", "right", "top", "bottom"]


@dataclass(frozen=True)
class Labels:
    """What the judge can name, in the order of its outputs; the class `none` comes after the last of each."""

    objects: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]
    characters: tuple[str, ...]


@dataclass(frozen=True)
class Readings:
    """Logits for a batch of B pictures; `none` is the last class of every head but `objects` and `characters`' maps.

    objects [B, O] (sigmoid each), colours [B, O, C+1] (of every kind, where that kind is seen), backgrounds [B, G+1],
    styles [B, S+1], characters [B, H+1], features [B, FEATURES].
    """

    objects: Tensor
    colours: Tensor
    backgrounds: Tensor
    styles: Tensor
    characters: Tensor
    features: Tensor


def _conv(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input passes unchanged (He et al. 2016, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu(x_BCHW + self.body(x_BCHW))


class JudgeNet(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] (H and W multiples of 16) to `Readings`."""

    def __init__(self, labels: Labels, width: int = 32) -> None:
        super().__init__()
        self.labels = labels
        self.width = width
        fine, middle, coarse = width, 2 * width, 4 * width
        # A wide first kernel at stride 2: line, hatch and dot are told apart at full resolution, all else is cheap.
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), _conv(16, fine, 2)
        )
        self.texture = _Residual(fine)
        self.trunk = nn.Sequential(_conv(fine, middle, 2), _Residual(middle), _conv(middle, coarse, 2))
        self.deep = _Residual(coarse)
        self.object_map = nn.Conv2d(coarse, len(labels.objects), 1)
        nn.init.constant_(self.object_map.bias, -3.0)  # type: ignore[arg-type]  # most kinds are absent
        self.colour_map = nn.Conv2d(fine + coarse, len(labels.colours) + 1, 1)
        pooled = self.features
        self.background = nn.Linear(pooled, len(labels.backgrounds) + 1)
        self.style = nn.Linear(pooled, len(labels.styles) + 1)
        self.character = nn.Linear(pooled, len(labels.characters) + 1)

    @property
    def features(self) -> int:
        """Width of the pooled features: fine texture (mean), deep features (mean and maximum)."""
        return self.width + 2 * 4 * self.width

    def forward(self, x_BCHW: Tensor) -> Readings:
        fine = self.texture(self.stem(x_BCHW))
        deep = self.deep(self.trunk(fine))
        # Half pictures have half the places: pooling by mean and maximum alone keeps the heads' scale the same.
        features = torch.cat([fine.mean((2, 3)), deep.mean((2, 3)), deep.amax((2, 3))], 1).float()
        seen = self.object_map(deep).flatten(2).float()  # [B, O, places]
        tones = torch.cat([nn.functional.adaptive_avg_pool2d(fine, deep.shape[-2:]), deep], 1)
        colour = self.colour_map(tones).flatten(2).float()  # [B, C+1, places]
        where = seen.softmax(-1)
        return Readings(
            objects=(where * seen).sum(-1),
            colours=torch.einsum("bop,bcp->boc", where, colour),
            backgrounds=self.background(features),
            styles=self.style(features),
            characters=self.character(features),
            features=features,
        )


@dataclass(frozen=True)
class Opinion:
    """Probabilities for N pictures (numpy): the judge's whole answer, with the questions one asks of it.

    objects [N, O] (each kind by itself), colours [N, O, C+1], backgrounds [N, G+1], styles [N, S+1],
    characters [N, H+1], features [N, F] for a Fréchet distance.
    """

    labels: Labels
    objects: np.ndarray
    colours: np.ndarray
    backgrounds: np.ndarray
    styles: np.ndarray
    characters: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.objects)

    def object_is(self, kinds: str | Sequence[str]) -> np.ndarray:
        """[N] whether this kind is the one most surely seen, and more likely there than not."""
        kind = self._index("objects", kinds)
        return (self.objects.argmax(1) == kind) & self.object_seen(kinds)

    def object_seen(self, kinds: str | Sequence[str]) -> np.ndarray:
        """[N] whether this kind is more likely in the picture than not, whatever else is."""
        return self.objects[np.arange(len(self)), self._index("objects", kinds)] >= 0.5

    def colour_is(self, kinds: str | Sequence[str], colours: str | Sequence[str]) -> np.ndarray:
        """[N] whether the most likely colour of the object of this kind is this one."""
        of_kind = self.colours[np.arange(len(self)), self._index("objects", kinds)]
        return of_kind.argmax(1) == self._index("colours", colours)

    def background_is(self, names: str | Sequence[str]) -> np.ndarray:
        """[N] whether this background is the most likely class, `none` included."""
        return self.backgrounds.argmax(1) == self._index("backgrounds", names)

    def style_is(self, names: str | Sequence[str]) -> np.ndarray:
        """[N] whether this style is the most likely class, `none` included."""
        return self.styles.argmax(1) == self._index("styles", names)

    def style_probability(self, name: str) -> np.ndarray:
        """[N] in [0, 1]."""
        return self.styles[:, self.labels.styles.index(name)]

    def character_is(self, names: str | Sequence[str]) -> np.ndarray:
        """[N] whether this character is the most likely class, `none` included."""
        return self.characters.argmax(1) == self._index("characters", names)

    def character_probability(self, name: str) -> np.ndarray:
        """[N] in [0, 1]."""
        return self.characters[:, self.labels.characters.index(name)]

    def _index(self, attribute: str, names: str | Sequence[str]) -> np.ndarray:
        """[N] class numbers; one name stands for all pictures."""
        known: tuple[str, ...] = (*getattr(self.labels, attribute), NONE)
        each = [names] * len(self) if isinstance(names, str) else names
        if len(each) != len(self):
            raise ValueError(f"{len(each)} {attribute} named for {len(self)} pictures")
        return np.array([known.index(name) for name in each], dtype=np.int64)


def as_batch(pictures: Sequence[Image.Image] | np.ndarray, part: Part = "all") -> Tensor:
    """PIL pictures of any size, or uint8 [N, H, W, 3], as [N, 3, h, w] in [-1, 1]: 128 px, then the part asked for."""
    size = (PICTURE_PX, PICTURE_PX)
    if isinstance(pictures, np.ndarray) and pictures.shape[1:3] == size:
        x_NHWC = pictures
    else:
        opened = [Image.fromarray(p) if isinstance(p, np.ndarray) else p for p in pictures]
        resized = [p if p.size == size else p.resize(size, Image.Resampling.LANCZOS) for p in opened]
        x_NHWC = np.stack([np.asarray(picture.convert("RGB")) for picture in resized])
    x_NCHW = torch.from_numpy(np.array(x_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return take_part(x_NCHW, part)


def take_part(x_NCHW: Tensor, part: Part) -> Tensor:
    """The half of every picture that `part` names, at the scale it has in the whole."""
    middle = x_NCHW.shape[-1] // 2
    match part:
        case "left":
            return x_NCHW[..., :middle]
        case "right":
            return x_NCHW[..., middle:]
        case "top":
            return x_NCHW[..., :middle, :]
        case "bottom":
            return x_NCHW[..., middle:, :]
        case "all":
            return x_NCHW


class Judge:
    """A frozen judge: `Judge.load(file).look(pictures)`."""

    def __init__(self, net: JudgeNet, trained: str = "") -> None:
        self.net = net.float().eval().requires_grad_(False)
        self.labels = net.labels
        self.trained = trained

    @classmethod
    def load(cls, file: Path) -> Judge:
        """The judge of a file written by `save`; ValueError when it is another kind of file."""
        with safe_open(file, "pt") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"{file} is not a judge of format {FORMAT}")
            labels = Labels(**{name: tuple(names) for name, names in json.loads(header["labels"]).items()})
            net = JudgeNet(labels, int(header["width"]))
            net.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        return cls(net, header.get("trained", ""))

    @torch.inference_mode()
    def look(self, pictures: Sequence[Image.Image] | np.ndarray, part: Part = "all", batch_size: int = 64) -> Opinion:
        """What the judge sees in each picture, or in the same half of each."""
        found: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(pictures), batch_size):
            readings = self.net(as_batch(pictures[start : start + batch_size], part))
            for name, values in (
                ("objects", readings.objects.sigmoid()),
                ("colours", readings.colours.softmax(-1)),
                ("backgrounds", readings.backgrounds.softmax(-1)),
                ("styles", readings.styles.softmax(-1)),
                ("characters", readings.characters.softmax(-1)),
                ("features", readings.features),
            ):
                found.setdefault(name, []).append(values.numpy())
        if not found:
            raise ValueError("no pictures to judge")
        return Opinion(self.labels, **{name: np.concatenate(parts) for name, parts in found.items()})


def save(net: JudgeNet, file: Path, trained: str) -> None:
    """Write the network as fp16 safetensors with its labels; `trained` says how, in words. Renamed into place."""
    weights = {
        name: value.detach().half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in net.state_dict().items()
    }
    header = {
        "format": FORMAT,
        "labels": json.dumps(asdict(net.labels)),
        "width": str(net.width),
        "trained": trained,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.new")
    save_file(weights, beside, header)
    beside.chmod(0o644)
    beside.replace(file)
