"""Names that are no layer of a LoRA read here: what they are, for the sentence that says so. Key logic only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

_TRANSFORMER = (
    r"(double_blocks|single_blocks|single_transformer_blocks|joint_blocks)[._]|^transformer\.|^lora_transformer_"
    r"|(^|[._])(blocks|layers)[._]\d+[._](cross_attn|self_attn|ffn|attention)[._]"
)

# For a file that holds nothing else: "PATH is ..."
_KINDS = (
    (
        r"\.(oft_blocks|oft_diag|oft_[RS]|rescale)(\.|$)",
        "an OFT or BOFT adapter, which turns the base's weights and adds nothing",
    ),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", "a GLoRA adapter (LyCORIS), whose change depends on the base's weights"),
    (r"\.on_input$", "an IA3 adapter (LyCORIS), which multiplies and adds nothing"),
    (r"\.(w_norm|b_norm)$", "an adapter of normalisation layers alone (LyCORIS)"),
    (
        r"^(unet|text_encoder):\d+:(up|down)$",
        "a LoRA of cloneofsimo's tool, whose layers have numbers and no names, so that their places cannot be told",
    ),
    (r"^(emb_params|string_to_param|clip_[lg])$", "a textual-inversion embedding"),
    (r"^bundle_emb\.", "a bundle of textual-inversion embeddings"),
    (r"^lllite_", "a ControlNet-LLLite"),
    (r"^(control_model|controlnet)\.|^lora_controlnet", "a ControlNet"),
    (
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
        "a whole checkpoint, which --base expects",
    ),
    (
        _TRANSFORMER,
        "a LoRA for a diffusion transformer (Flux, SD 3 and others), which is built unlike Stable Diffusion",
    ),
    (
        r"\.(lora_|lora\.|hada_|lokr_|alpha$)|_lora[._](down|up)\.",
        "an adapter for a model that is no Stable Diffusion",
    ),
    (r"^(down_blocks|up_blocks|mid_block|encoder|decoder|text_model)\.", "a part of a base model"),
)

# For tensors left out of a file that is read for the rest.
_REASONS = (
    (r"^bundle_emb\.", "an embedding bundled in the file"),
    (r"\.(w_norm|b_norm)$", "a normalisation layer (LyCORIS)"),
    (r"\.(oft_blocks|oft_diag|oft_[RS]|rescale)(\.|$)", "OFT or BOFT"),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", "GLoRA"),
    (r"\.on_input$", "IA3"),
    (r"\.(bias|diff_b|bias_\w+)$", "a bias"),
    (r"^(lora_|lycoris_|unet\.|text_encoder|base_model\.|diffusion_model\.)", "no layer or tensor that is known"),
)


def describe(names: Iterable[str]) -> str | None:
    """What the names of a file that holds nothing readable give away ("a textual-inversion embedding"), or None."""
    names = list(names)
    for pattern, kind in _KINDS:
        find = re.compile(pattern).search
        if any(find(name) for name in names):
            return kind
    return None


def of_a_transformer(names: Iterable[str]) -> bool:
    """Whether any name is a layer of a diffusion transformer, whatever else a file holds."""
    return any(re.search(_TRANSFORMER, name) for name in names)


def by_reason(unread: Mapping[str, str]) -> str:
    """What is left out, counted: "12 (a bias), 1 (an unknown name)"."""
    return ", ".join(f"{count} ({reason})" for reason, count in Counter(unread.values()).most_common())


def reason(name: str) -> str:
    """Why one tensor of a file is left out."""
    return next((words for pattern, words in _REASONS if re.search(pattern, name)), "an unknown name")
