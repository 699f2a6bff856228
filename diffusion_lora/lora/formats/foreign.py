"""What a file is when it is not a LoRA in kohya's names: so that a refusal can say it. Key logic only."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KINDS = (
    (
        r"\.(lokr|hada|oft|boft|glora)_|\.lora_mid\.|\.(diff|diff_b|on_input|oft_blocks|a1\.weight)$",
        "a LyCORIS adapter",
    ),
    (r"\.dora_scale$|\.lora_magnitude_vector", "a DoRA adapter"),
    (
        r"\.lora_[AB]\.|\.lora\.(down|up)\.|_lora\.(down|up)\.|\.lora_linear_layer\.",
        "a LoRA in diffusers' or PEFT's names",
    ),
    (r"^(unet|text_encoder):\d+:(up|down)$", "a LoRA whose layers are numbered and not named (cloneofsimo)"),
    (r"^(emb_params|string_to_param|clip_[lg])$", "a textual-inversion embedding"),
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.", "a whole checkpoint, which --base expects"),
    (r"^(down_blocks|up_blocks|mid_block|encoder|decoder)\.", "a part of a base model"),
)


def describe(names: Iterable[str]) -> str | None:
    """What the tensor names give away ("a LyCORIS adapter"), or None."""
    names = list(names)
    for pattern, kind in _KINDS:
        if any(re.search(pattern, name) for name in names):
            return kind
    return None
