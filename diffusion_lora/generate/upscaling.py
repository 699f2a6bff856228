"""Models that enlarge pictures (ESRGAN and its kin) for the second pass, through spandrel, which is an extra.

spandrel asks for torchvision; where either is absent this says what to install. Its models were not at hand when this
was written: what stands here follows spandrel 0.4's interface and is untested with real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.start import UPSCALERS

_NEEDED = ("spandrel", "torchvision")


def check_upscaler(upscaler: str) -> None:
    """Raises PromptError where the upscaler is a model and cannot be used: what it needs is absent, or its file is."""
    if upscaler in UPSCALERS:
        return
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise PromptError(
            f"the upscaler {upscaler} is a model, for which {' and '.join(missing)} must be there: "
            f"pip install 'diffusion-lora[upscale]', or take {' or '.join(UPSCALERS)}"
        )
    if not Path(upscaler).expanduser().is_file():
        raise PromptError(f"the upscaler {upscaler} does not exist; name a file, or say {' or '.join(UPSCALERS)}")


def upscaled(images: Sequence[Image.Image], path: Path, device: torch.device) -> list[Image.Image]:
    """The pictures through the model in this file, larger by its own factor. Raises PromptError."""
    from spandrel import ImageModelDescriptor, ModelLoader  # type: ignore[import-not-found]

    try:
        model: Any = ModelLoader(device=device).load_from_file(path.expanduser())
    except Exception as error:  # spandrel raises a dozen different ones for a file that it does not know
        raise PromptError(f"the upscaler {path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(model, ImageModelDescriptor):
        raise PromptError(f"the upscaler {path} is a model for something else than enlarging pictures")
    model.eval()
    larger = []
    with torch.inference_mode():
        for image in images:
            x_HWC = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)
            y_BCHW = model(x_HWC.permute(2, 0, 1)[None].to(device)).clamp(0, 1)
            larger.append(Image.fromarray((y_BCHW[0].permute(1, 2, 0) * 255).round().to("cpu", torch.uint8).numpy()))
    return larger
