"""Drawn pictures with what the judge shall say of them, kept as arrays on disk.

A set is drawn once (milliseconds a picture) and read back as a memory map; it is drawn anew when the drawn world's
code has changed. Through an autoencoder the same pictures come back as it decodes them. How pictures are damaged
during training is `damage.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.pocket import world
from recipes.pocket.judge.model import PICTURE_PX, Labels, Part, as_batch
from recipes.pocket.world.draw import SPANS

PARTS: tuple[Part, ...] = ("all", "left", "right", "top", "bottom")
IGNORE = -1
LABELS = Labels(
    objects=tuple(world.OBJECTS),
    colours=tuple(world.COLOURS),
    backgrounds=tuple(world.BACKGROUNDS),
    styles=(*world.STYLES, *world.HELD_STYLES),
    characters=tuple(world.CHARACTERS),
)

_EMPTY_SHARE, _CHARACTER_SHARE = 0.07, 0.26
_SEEN, _UNSEEN = 0.8, 0.1
"""A thing counts as present when this share of its box is in the crop, as absent below the second; between, neither."""
_CHUNK = 64


@dataclass(frozen=True)
class Answers:
    """What is true of N pictures; every array begins with N, and -1 means that no answer is expected.

    objects [N, O] in {0, 1}, colours [N, O] (class of the kind's colour), backgrounds, styles, characters [N].
    """

    objects: np.ndarray
    colours: np.ndarray
    backgrounds: np.ndarray
    styles: np.ndarray
    characters: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Answers:
        return Answers(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.styles)


@dataclass(frozen=True)
class Drawings:
    """N pictures, uint8 [N, 128, 128, 3], and the answers for the whole and for each half."""

    pictures: np.ndarray
    answers: dict[Part, Answers]


def any_scene(rng: random.Random) -> world.Scene:
    """A scene of any style, character and pair; now and then, in a style that needs no thing, an empty one."""
    draw_of_lots = rng.random()
    if draw_of_lots < _EMPTY_SHARE:
        return world.Scene(rng.choice(LABELS.backgrounds), (), rng.choice(world.STYLES), rng.randrange(2**31))
    character = rng.choice(LABELS.characters) if draw_of_lots < _EMPTY_SHARE + _CHARACTER_SHARE else None
    return world.sample_scene(rng, styles=LABELS.styles, pairs="any", character=character)


def scenes(count: int, seed: int) -> Iterator[world.Scene]:
    """`count` scenes; scene i depends on (seed, i) alone."""
    for index in range(count):
        yield any_scene(random.Random(f"judge {seed} {index}"))


def answers(drawn: Sequence[world.Scene], part: Part) -> Answers:
    """What is true of this part of each scene's picture."""
    count, kinds = len(drawn), len(LABELS.objects)
    out = Answers(
        objects=np.zeros((count, kinds), np.int8),
        colours=np.full((count, kinds), IGNORE, np.int8),
        backgrounds=np.array([LABELS.backgrounds.index(scene.background) for scene in drawn], np.int8),
        styles=np.array([LABELS.styles.index(scene.style) for scene in drawn], np.int8),
        characters=np.full(count, len(LABELS.characters), np.int8),
    )
    for row, scene in enumerate(drawn):
        shares = [_visible(thing, part) for thing in scene.things]
        for thing, share in zip(scene.things, shares, strict=True):
            if thing.colour is None:
                if share > _UNSEEN:
                    seen = LABELS.characters.index(thing.kind) if share >= _SEEN else IGNORE
                    out.characters[row] = seen
            else:
                kind = LABELS.objects.index(thing.kind)
                if share > _UNSEEN:
                    out.objects[row, kind] = 1 if share >= _SEEN else IGNORE
                if share >= _SEEN:
                    out.colours[row, kind] = LABELS.colours.index(thing.colour)
        if not scene.things:
            out.colours[row] = len(LABELS.colours)
        if part in ("top", "bottom"):
            out.backgrounds[row] = IGNORE  # a strip of sky or ground alone belongs to several
        if sum(shares) < 0.4 and (part != "all" or scene.background == "paper"):
            out.styles[row] = IGNORE  # a stretch of bare paper looks alike in several styles
    return out


def _visible(thing: world.Thing, part: Part) -> float:
    """The share of a thing's square box inside a part of the picture; draw() keeps boxes wholly inside the whole."""
    half = sum(SPANS[thing.size]) / 4
    x, y = (min(max(centre, half + 0.02), 0.98 - half) for centre in (thing.x, thing.y))
    match part:
        case "left":
            inside = 0.5 - (x - half)
        case "right":
            inside = (x + half) - 0.5
        case "top":
            inside = 0.5 - (y - half)
        case "bottom":
            inside = (y + half) - 0.5
        case _:
            return 1.0
    return min(1.0, max(0.0, inside / (2 * half)))


def world_hash() -> str:
    """Changes when the code that draws changes."""
    code = hashlib.sha256()
    for file in sorted(Path(world.__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()[:12]


def drawings(folder: Path, count: int, seed: int, tell: Callable[[str], None], processes: int = 1) -> Drawings:
    """The set of this count and seed, drawn into `folder` by so many processes unless it is there."""
    wanted = list(scenes(count, seed))
    file = folder / f"drawn-{world_hash()}-{seed}-{count}.npy"

    with ExitStack() as stack:
        spread = stack.enter_context(ProcessPoolExecutor(processes)).map if processes > 1 else map

        def chunk(start: int) -> np.ndarray:
            return np.stack(list(spread(_drawn, wanted[start : start + _CHUNK])))

        return Drawings(_kept(file, count, chunk, tell), {part: answers(wanted, part) for part in PARTS})


def _drawn(scene: world.Scene) -> np.ndarray:
    return np.asarray(world.draw(scene, PICTURE_PX))


@dataclass(frozen=True)
class Autoencoder:
    """A diffusers AutoencoderKL folder, as far as the judge needs it."""

    vae: Any  # AutoencoderKL; its decorated methods have no types
    scale: float
    name: str

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Autoencoder:
        """ValueError when the folder holds no AutoencoderKL."""
        from diffusers import AutoencoderKL  # here, for without it nothing of diffusers is needed

        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no autoencoder (no config.json)")
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
        vae = vae.eval().requires_grad_(False).to(device)
        weights = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            weights.update(file.read_bytes())
        return cls(vae, float(vae.config.scaling_factor), weights.hexdigest()[:12])

    @torch.inference_mode()
    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """uint8 [N, H, W, 3] to mean latents [N, 4, h, w], scaled to unit spread."""
        with torch.autocast(self.vae.device.type, torch.bfloat16):
            x_NCHW = as_batch(pictures).to(self.vae.device)
            return self.vae.encode(x_NCHW).latent_dist.mean.float().cpu() * self.scale

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Scaled latents to uint8 pictures [N, H, W, 3]."""
        with torch.autocast(self.vae.device.type, torch.bfloat16):
            x_NCHW = self.vae.decode(latents.to(self.vae.device) / self.scale).sample.float().cpu()
        return ((x_NCHW.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def decoded(
    folder: Path, drawn: Drawings, autoencoder: Autoencoder, seed: int, unrest: float, tell: Callable[[str], None]
) -> np.ndarray:
    """The pictures of `drawn` as the autoencoder gives them back, uint8, same shape.

    Each latent is moved by noise of up to `unrest` of its spread: a sampler never lands where the encoder does.
    """
    count = len(drawn.pictures)
    file = folder / f"decoded-{world_hash()}-{autoencoder.name}-{seed}-{count}-{unrest:g}.npy"

    def chunk(start: int) -> np.ndarray:
        latents = autoencoder.encode(drawn.pictures[start : start + _CHUNK])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        amount = torch.rand(len(latents), 1, 1, 1, generator=generator) * unrest
        return autoencoder.decode(latents + amount * torch.randn(latents.shape, generator=generator))

    return _kept(file, count, chunk, tell)


def decoded_noise(folder: Path, drawn: Drawings, autoencoder: Autoencoder, count: int, seed: int) -> np.ndarray:
    """What the decoder makes of latents that show nothing: noise, soft noise, and pictures drowned in noise.

    uint8 [count, 128, 128, 3]
    """
    file = folder / f"noise-{world_hash()}-{autoencoder.name}-{seed}-{count}.npy"

    def chunk(start: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        rows = np.arange(start, min(start + _CHUNK, count)) % len(drawn.pictures)
        latents = autoencoder.encode(drawn.pictures[rows])
        noise = torch.randn(latents.shape, generator=generator)
        out = noise.clone()
        for row in range(1, len(out), 3):  # soft blotches of the same spread
            out[row] = _softened(noise[row], cells=2 + int(torch.randint(6, (), generator=generator)))
        kept = 0.05 * torch.rand((), generator=generator)
        out[2::3] = kept.sqrt() * latents[2::3] + (1 - kept).sqrt() * noise[2::3]
        return autoencoder.decode(out)

    return _kept(file, count, chunk, lambda _: None)


def _softened(noise_CHW: torch.Tensor, cells: int) -> torch.Tensor:
    coarse = noise_CHW[None, :, :cells, :cells]
    return torch.nn.functional.interpolate(coarse, noise_CHW.shape[-2:], mode="bilinear")[0]


def _kept(file: Path, count: int, chunk: Callable[[int], np.ndarray], tell: Callable[[str], None]) -> np.ndarray:
    """The array of `file`, made chunk by chunk; a making that was cut off goes on where it stopped."""
    shape = (count, PICTURE_PX, PICTURE_PX, 3)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        growing, mark = file.with_suffix(".part"), file.with_suffix(".json")
        done = json.loads(mark.read_text())["done"] if mark.exists() and growing.exists() else 0
        array = np.lib.format.open_memmap(growing, "r+" if done else "w+", np.uint8, shape)
        for start in range(done, count, _CHUNK):
            array[start : start + _CHUNK] = chunk(start)
            if start // _CHUNK % 16 == 15:
                array.flush()
                mark.write_text(json.dumps({"done": start + _CHUNK}))
                tell(f"{file.name}: {start + _CHUNK}/{count}")
        array.flush()
        growing.replace(file)
        mark.unlink(missing_ok=True)
    return np.load(file, mmap_mode="r")
