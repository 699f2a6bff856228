"""What is asked of the generator: all that determines a picture, as one checked value. No torch.

Not here: drawing (`engine`), and how a request is written into a picture (`infotext`).
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from diffusion_lora.errors import PromptError
from diffusion_lora.generate.samplers import sampler_named

SIZE_STEP_PX = 8
MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1
_ADAPTER_TAG = re.compile(r"<lora:[^>]*>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class LoraUse:
    """One adapter file and how strongly it acts: 0 is the base, 1 as trained; negative and larger values are allowed.

    `text_strength` is that of its text encoder part, None the same as `strength`. `sha` is the SHA-256 of the file's
    tensors or its first 12 digits or more; when given, another file under this path is refused.
    """

    name: str
    path: Path
    strength: float = 1.0
    text_strength: float | None = None
    sha: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).expanduser())
        for value in (self.strength, self.text_strength):
            if value is not None and not math.isfinite(value):
                raise PromptError(f"the strength of the LoRA {self.name} is {value}; give a finite number such as 0.8")

    @property
    def strength_of_text(self) -> float:
        """The strength that the text encoder part has in the end."""
        return self.strength if self.text_strength is None else self.text_strength

    def at(self, strength: float, text_strength: float | None = None) -> Self:
        """The same adapter at another strength."""
        return replace(self, strength=strength, text_strength=text_strength)


@dataclass(frozen=True)
class Request:
    """All that determines a picture. Raises PromptError on construction when a value cannot be drawn.

    `width` and `height` in px, 0 for the base's own size. `guidance_scale` is classifier-free guidance (Ho & Salimans
    2022): 1 is none, None the base's own. `base` and `base_hash`, empty for whatever model draws it, say which one did.
    """

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance_scale: float | None = None
    width: int = 0
    height: int = 0
    sampler: str = "ddim"
    loras: tuple[LoraUse, ...] = ()
    base: str = ""
    base_hash: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loras", tuple(self.loras))
        if self.base.startswith("~"):
            object.__setattr__(self, "base", str(Path(self.base).expanduser()))
        for name in ("seed", "steps", "width", "height"):
            if not isinstance(getattr(self, name), int):  # forms and JSON give 20.0 and "20"
                raise PromptError(f"{name} is {getattr(self, name)!r}; give a whole number")
        sampler_named(self.sampler)
        for name, side in (("width", self.width), ("height", self.height)):
            if side and (side % SIZE_STEP_PX or not MIN_SIZE_PX <= side <= MAX_SIZE_PX):
                raise PromptError(
                    f"the {name} is {side} px; give a multiple of {SIZE_STEP_PX} from {MIN_SIZE_PX} to {MAX_SIZE_PX}"
                    f"{_nearest_size(side)}, or 0 for the base's own size"
                )
        if not 1 <= self.steps <= MAX_STEPS:
            raise PromptError(f"steps is {self.steps}; give 1 to {MAX_STEPS}")
        if not 0 <= self.seed <= MAX_SEED:
            raise PromptError(f"the seed is {self.seed}; give 0 to {MAX_SEED}")
        if self.guidance_scale is not None and not 1 <= self.guidance_scale <= 100:
            raise PromptError(f"the guidance scale is {self.guidance_scale}; give 1 (none) to 100")
        for text in (self.prompt, self.negative_prompt):
            if tag := _ADAPTER_TAG.search(text):
                raise PromptError(f"{tag[0]} in a prompt is not read; give the LoRA by itself: --lora FILE:STRENGTH")


def parse_lora_argument(text: str) -> LoraUse:
    r"""FILE, FILE:STRENGTH or FILE:STRENGTH:TEXT_STRENGTH; a drive letter belongs to FILE (`C:\x.safetensors:0.8`).

    Raises PromptError when there is no file name, or what follows it is no number.
    """
    rest, numbers = text, list[float]()
    while len(numbers) < 2 and (parts := rest.rpartition(":"))[1] and _NUMBER.fullmatch(parts[2].strip()):
        rest = parts[0]
        numbers.insert(0, float(parts[2]))
    head, colon, tail = rest.rpartition(":")
    is_drive = len(head) == 1 and head.isalpha() and tail[:1] in ("\\", "/")
    if not rest.strip() or (colon and not is_drive and not any(slash in tail for slash in "\\/")):
        raise PromptError(f"the LoRA {text!r} is not understood; give FILE.safetensors or FILE.safetensors:0.8")
    strength, text_strength = (*numbers, None, None)[:2]
    path = Path(rest)
    name = rest.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
    return LoraUse(name, path, 1.0 if strength is None else strength, text_strength)


def _nearest_size(side: int) -> str:
    low = side // SIZE_STEP_PX * SIZE_STEP_PX
    near = [size for size in (low, low + SIZE_STEP_PX) if MIN_SIZE_PX <= size <= MAX_SIZE_PX]
    return f" ({' or '.join(map(str, near))} is near)" if near and side != low else ""
