"""Pictures drawn on the way, with the adapter as it is: the same noise every time, so that only learning shows.

Drawing touches no random state that training uses: a run with previews learns the same numbers as one without.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.config import PreviewTable, TrainConfig
from diffusion_lora.diffusion.sampler import ddim
from diffusion_lora.families.family import Conditioning, decode, encode_text, predict
from diffusion_lora.families.learned_words import spelled
from diffusion_lora.run import Run, write_atomically
from diffusion_lora.train.conditioning import taught
from diffusion_lora.train.draws import preview_noise
from diffusion_lora.train.material import picture_size_px
from diffusion_lora.train.prepare import Prepared
from diffusion_lora.train.residency import AUTOENCODER, at_work

_SAMPLES = 4  # pictures drawn when asked for and no prompts are configured


def previews_of(config: TrainConfig, ready: Prepared) -> PreviewTable:
    """What to draw: the configured prompts; where there are none and somebody asks, captions of the data set."""
    if config.preview.prompts:
        return config.preview
    captions = dict.fromkeys(item.caption for item in ready.dataset.items)
    return config.preview.model_copy(update={"prompts": tuple(captions)[:_SAMPLES]})


def draw_previews(run: Run, ready: Prepared, table: PreviewTable, step: int) -> list[str]:
    """One PNG for each prompt, named `previews/step-N-i.png`, in a sweep `previews/step-N-rank4-i.png`; the names are
    returned, relative to the folder. Raises OutputError.
    """
    names = []
    for name, adapter in ready.adapters.items():
        with ready.bank.mix({adapter.name: 1.0}) if name else nullcontext():
            words = taught(adapter, side_by_side=len(ready.adapters) > 1)
            names += save_previews(run, ready, preview_latents(ready, run.config, words, table), step, name)
    return names


@torch.no_grad()
def preview_latents(
    ready: Prepared,
    config: TrainConfig,
    words: Mapping[str, str],
    table: PreviewTable,
    arithmetic: Callable[[], AbstractContextManager[None]] | None = None,
) -> Tensor:
    """Latents [B, C, H, W] of a picture for each prompt, by what acts in the model now.

    Guidance is classifier-free (Ho & Salimans 2022), against the empty prompt. `words` are learned ones, with the keys
    under which the model knows them; `arithmetic` is that of the training unless another is given.
    """
    arithmetic = arithmetic or ready.arithmetic
    model, count = ready.model, len(table.prompts)
    side_px = picture_size_px(config, model)
    shape_CHW = model.latent_shape(side_px, side_px)
    noise_BCHW = torch.stack([preview_noise(shape_CHW, table.seed + index) for index in range(count)])
    with arithmetic(), at_work(model, list(model.text_encoders)):
        prompts = [spelled(model, prompt, words) for prompt in table.prompts]
        cond = Conditioning.cat([encode_text(model, [""] * count), encode_text(model, prompts)])

    def guided(x_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        with arithmetic():
            both = predict(model, torch.cat([x_BCHW, x_BCHW]), torch.cat([timesteps_B, timesteps_B]), cond)
        plain, prompted = both.float().chunk(2)
        return plain + table.guidance * (prompted - plain)

    return ddim(guided, noise_BCHW.to(model.device), ready.schedule, table.steps)


@torch.no_grad()
def save_previews(run: Run, ready: Prepared, latents: Tensor, step: int, name: str = "") -> list[str]:
    """Write latents as the previews of a step, those of the adapter of this name in a sweep. Raises OutputError."""
    prefix = f"step-{step:06d}-{name}-" if name else f"step-{step:06d}-"
    with at_work(ready.model, [AUTOENCODER]):
        pictures = decode(ready.model, latents)
    names = []
    for index, picture_CHW in enumerate(pictures):
        pixels_HWC = (picture_CHW.permute(1, 2, 0) * 255).round().to("cpu", torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels_HWC).save(buffer, format="PNG")
        names.append(f"previews/{prefix}{index}.png")
        write_atomically(run.folder / names[-1], buffer.getvalue())
    return names
