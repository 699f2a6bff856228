"""Stable Diffusion XL (Podell et al. 2023, https://arxiv.org/abs/2307.01952): the verbs.

Two text encoders, each read before its last layer and without the final norm, side by side; the pooled output of the
second; and the size, cut and target size of the picture. An empty prompt is zeros where the base says so, as it was
when XL was trained without text: as negative prompt, and as the caption that is left out in training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lora.families.model import Conditioning, Family, Model, Sizes
from diffusion_lora.families.vae import decode, encode_image


def encode_text(model: Model, prompts: Sequence[str]) -> Conditioning:
    """Hidden states [B, tokens, width 1 + width 2] and the pooled text [B, width] of the prompts."""
    length = model.max_tokens + 2
    return encode_ids(
        model,
        {
            part: tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            for part, tokenizer in model.tokenizers.items()
        },
    )


def encode_ids(model: Model, ids: Mapping[str, Tensor], clip_skip: int = 1) -> Conditioning:
    """The same of token ids [B, tokens] for each encoder; `clip_skip` counts from the last layer.

    XL is always read before it: 1, which stands for the base's own, and 2 are the same. So a picture of the web UI that
    says "Clip skip: 2", to which XL pays no heed there, is drawn as it was, and 3 is what ComfyUI calls -3.
    """
    hidden, pooled = [], None
    for part, encoder in model.text_encoders.items():
        answer: Any = encoder(ids[part].to(model.device), output_hidden_states=True)
        states = answer.hidden_states
        hidden.append(states[-min(max(clip_skip, 2), len(states))])
        pooled = getattr(answer, "text_embeds", pooled)
    assert pooled is not None, "the second text encoder has a projection"
    hidden_BTC = torch.cat(hidden, dim=-1)
    first, tokenizer = next(iter(ids.values())), next(iter(model.tokenizers.values()))
    spoken_B = (first[:, 1] != tokenizer.eos_token_id).to(model.device)
    if model.zero_empty_prompt and not bool(spoken_B.all()):
        hidden_BTC = hidden_BTC.where(spoken_B[:, None, None], 0)
        pooled = pooled.where(spoken_B[:, None], 0)
    return Conditioning({"hidden_BTC": hidden_BTC, "pooled_BC": pooled})


def with_sizes(model: Model, cond: Conditioning, sizes: Sequence[Sizes]) -> Conditioning:
    """The conditioning of pictures of these sizes, one for each row."""
    numbers = [[*each.original_px, *each.cut_px, *each.target_px] for each in sizes]
    return Conditioning({**cond.tensors, "sizes_B6": torch.tensor(numbers, dtype=torch.float32, device=model.device)})


def predict(model: Model, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
    """The UNet's output [B, C, h, w]. Where no sizes were given the picture is whole and as large as its latents."""
    dtype = model.dtype
    sizes_B6 = cond.tensors.get("sizes_B6")
    if sizes_B6 is None:
        height, width = (side * model.vae_factor for side in noisy.shape[-2:])
        sizes_B6 = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=noisy.device)
        sizes_B6 = sizes_B6.expand(len(noisy), -1)
    added = {"text_embeds": cond.tensors["pooled_BC"].to(dtype), "time_ids": sizes_B6}
    return model.unet(
        noisy.to(dtype),
        timesteps,
        encoder_hidden_states=cond.tensors["hidden_BTC"].to(dtype),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def tokens(model: Model, prompt: str) -> int:
    """How many tokens the prompt has, start and end marks apart; both encoders read the same ones."""
    return len(model.tokenizers["te1"](prompt, add_special_tokens=False, verbose=False).input_ids)


FAMILY = Family(
    name="sdxl",
    encode_text=encode_text,
    encode_ids=encode_ids,
    encode_image=encode_image,
    decode=decode,
    predict=predict,
    tokens=tokens,
    with_sizes=with_sizes,
)
